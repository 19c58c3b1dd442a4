//! Text from tokens as they come.

use std::ops::Deref;

use super::Tokenizer;

/// Turns tokens into text one by one and never gives out a broken character.
///
/// A character of several bytes may come as several tokens; its bytes wait until it is whole. `T` is whatever
/// leads to the tokenizer: a reference, or an `Arc` where the stream must live on its own.
///
/// ```
/// # use onlay::text::{Strings, Tokenizer, Vocabulary};
/// # let tokens = ["▁a", "<0xC3>", "<0xA4>"];
/// # let kinds = vec![1, 6, 6];
/// # let v = Vocabulary { model: "llama".into(), tokens: Strings::from_iter(tokens), kinds, ..Default::default() };
/// # let tokenizer = Tokenizer::new(&v)?;
/// let mut stream = tokenizer.stream(false);
/// assert_eq!(stream.push(0), "a");
/// assert_eq!(stream.push(1), "");
/// assert_eq!(stream.push(2), "ä");
/// # Ok::<(), onlay::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Stream<T> {
    tokenizer: T,
    special: bool,
    first: bool,
    /// The beginning of a character whose end has not come yet: at most three bytes.
    pending: Vec<u8>,
    text: String,
}

impl<T: Deref<Target = Tokenizer>> Stream<T> {
    /// Begins a text. Control tokens are written out if `special` is set.
    pub fn new(tokenizer: T, special: bool) -> Self {
        Stream { tokenizer, special, first: true, pending: Vec::new(), text: String::new() }
    }

    /// Goes on after `prompt`: a leading space belongs to the text unless `prompt` ends with a special token.
    pub fn after(tokenizer: T, prompt: &[u32], special: bool) -> Self {
        let mut stream = Stream::new(tokenizer, special);
        for &id in prompt {
            stream.tokenizer.decode_next(id, special, &mut stream.first);
        }
        stream
    }

    /// The text that this token completes; often its own text, sometimes nothing yet.
    pub fn push(&mut self, id: u32) -> &str {
        self.text.clear();
        let bytes = self.tokenizer.decode_next(id, self.special, &mut self.first);
        self.pending.extend_from_slice(bytes);
        let kept = valid(&self.pending, &mut self.text);
        self.pending.drain(..kept);
        &self.text
    }

    /// Ends the text: what is left of an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !std::mem::take(&mut self.pending).is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// Appends the characters in `bytes`, with U+FFFD for what can be none, and gives how many bytes that took; the rest
/// may yet become a character.
fn valid(bytes: &[u8], text: &mut String) -> usize {
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let broken = chunk.invalid();
        let last = taken + broken.len() == bytes.len();
        let unfinished = last && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none());
        if !broken.is_empty() && !unfinished {
            text.push(char::REPLACEMENT_CHARACTER);
            taken += broken.len();
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_characters_only() {
        let feed = |parts: &[&[u8]]| {
            let (mut pending, mut text) = (Vec::new(), String::new());
            for part in parts {
                pending.extend_from_slice(part);
                let n = valid(&pending, &mut text);
                pending.drain(..n);
                assert!(pending.len() < 4);
            }
            (text, pending.len())
        };
        assert_eq!(feed(&[b"a\xf0", b"\x9f", b"\x98", b"\x81b"]), ("a😁b".into(), 0));
        assert_eq!(feed(&[b"\xf0\x9f", b"x"]), ("\u{fffd}x".into(), 0));
        assert_eq!(feed(&[b"\x81\xc3"]), ("\u{fffd}".into(), 1));
        assert_eq!(feed(&[b"\xc3\xc3", b"\xa4"]), ("\u{fffd}ä".into(), 0));
    }
}
