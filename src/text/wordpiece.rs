//! WordPiece: words are cut into the longest tokens from left to right (`tokenizer.ggml.model` = `bert`).
//!
//! Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (2019). GGUF
//! files write a token that begins a word as `▁word` and one that continues it bare.

use unicode_normalization::char::decompose_canonical;

use super::pieces::{METASPACE, Pieces, TokenKind};
use super::prefixes::Prefixes;
use super::tokenizer::Out;
use super::unicode::{Chars, Class};

/// The tokens of a WordPiece vocabulary and what happens to text first.
#[derive(Debug)]
pub(super) struct WordPiece {
    tokens: Prefixes,
    /// Whether upper and lower case are one.
    pub lowercase: bool,
    /// Whether accents are dropped.
    pub strip_accents: bool,
}

/// A word as it will be looked up, `▁` first, with the source range of every byte's character.
#[derive(Default)]
struct Word {
    text: Vec<u8>,
    source: Vec<(usize, usize)>,
}

impl Word {
    fn push(&mut self, c: char, source: (usize, usize)) {
        if self.text.is_empty() {
            self.text.extend_from_slice(METASPACE.as_bytes());
            self.source.extend([(source.0, source.0); METASPACE.len()]);
        }
        let mut utf8 = [0; 4];
        let utf8 = c.encode_utf8(&mut utf8).as_bytes();
        self.text.extend_from_slice(utf8);
        self.source.extend(utf8.iter().map(|_| source));
    }
}

impl WordPiece {
    /// The vocabulary with what it says about case and accents.
    pub fn new(pieces: &Pieces, lowercase: bool, strip_accents: bool) -> WordPiece {
        let tokens = Prefixes::new(pieces, |id| {
            matches!(pieces.kind(id), TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
        });
        WordPiece { tokens, lowercase, strip_accents }
    }

    /// Appends the tokens of text. A word that cannot be spelled to its end is one unknown token.
    pub fn encode(&self, pieces: &Pieces, text: &[u8], out: &mut Out) {
        let mut word = Word::default();
        let mut at = 0;
        for c in Chars(text) {
            let source = (at, at + c.width as usize);
            at = source.1;
            // Control characters go without parting words, even those that elsewhere count as white space.
            if c.is(Class::SPACE) && (!c.is(Class::CONTROL) || matches!(c.c, '\t' | '\n' | '\r')) {
                self.finish(pieces, &mut word, out);
                continue;
            }
            if self.strip_accents {
                decompose_canonical(c.c, |part| self.add(pieces, part, source, &mut word, out));
            } else {
                self.add(pieces, c.c, source, &mut word, out);
            }
        }
        self.finish(pieces, &mut word, out);
    }

    /// Adds one character to the word, or makes it a word of its own.
    fn add(&self, pieces: &Pieces, c: char, source: (usize, usize), word: &mut Word, out: &mut Out) {
        let class = Class::of(c);
        if c == char::REPLACEMENT_CHARACTER || class.has(Class::CONTROL) {
            return;
        }
        if self.strip_accents && class.has(Class::ACCENT) {
            return;
        }
        let alone = class.has(Class::PUNCTUATION) || c.is_ascii_punctuation() || is_ideograph(c);
        if alone {
            self.finish(pieces, word, out);
        }
        if self.lowercase {
            c.to_lowercase().for_each(|c| word.push(c, source));
        } else {
            word.push(c, source);
        }
        if alone {
            self.finish(pieces, word, out);
        }
    }

    /// Writes the word's tokens and empties it.
    fn finish(&self, pieces: &Pieces, word: &mut Word, out: &mut Out) {
        let Word { text, source } = word;
        let begun = out.tokens.len();
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            // A `▁` that the user wrote must not be taken for the beginning of a word.
            let found = if at > 0 && rest.starts_with(METASPACE.as_bytes()) {
                None
            } else {
                self.tokens.longest(pieces, rest)
            };
            let Some((length, id)) = found else {
                out.tokens.truncate(begun);
                out.unknown_word(source[0].0, source[source.len() - 1].1);
                break;
            };
            let (start, last) = (source[at].0, source[at + length - 1]);
            at += length;
            // Of several tokens that share a character, the last has it.
            let shared = source.get(at).is_some_and(|next| next.0 == last.0);
            out.push(id, start, if shared { last.0 } else { last.1 });
        }
        text.clear();
        source.clear();
    }
}

/// The blocks of Chinese characters that BERT sets apart. The fifth begins at 2B920 and not, as Unicode has it, at
/// 2B820: so it stands in the tokenizers the models were trained with.
fn is_ideograph(c: char) -> bool {
    matches!(c as u32,
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::super::pieces::tests::pieces;
    use super::*;

    fn ids(text: &str) -> Vec<(u32, usize, usize)> {
        let p = pieces(&["▁un", "able", "▁un-", "▁-", "▁a", "▁b", "▁中", "▁"]);
        let mut out = Out::default();
        out.unknown = Some(99);
        WordPiece::new(&p, true, true).encode(&p, text.as_bytes(), &mut out);
        out.tokens.iter().map(|t| (t.id, t.start, t.end)).collect()
    }

    #[test]
    fn words_are_cut_greedily() {
        assert_eq!(ids("Unable"), [(0, 0, 2), (1, 2, 6)]);
        assert_eq!(ids("un-able"), [(0, 0, 2), (3, 2, 3), (99, 3, 7)]);
        assert_eq!(ids(" Á\u{0} b中a"), [(4, 1, 3), (5, 5, 6), (6, 6, 9), (4, 9, 10)]);
        assert_eq!(ids("unx a▁b"), [(99, 0, 3), (99, 4, 9)]);
    }
}
