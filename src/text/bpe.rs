//! Byte-level byte-pair encoding (`tokenizer.ggml.model` = `gpt2`).
//!
//! Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), over bytes as
//! in Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).

use std::collections::HashMap;

use super::Strings;
use super::merge::{Merger, NONE};
use super::pieces::{Pieces, byte_level};
use super::split::Rule;
use super::tokenizer::Out;
use super::unicode::{Char, Chars};
use crate::error::{Error, Findings, Kind, Place, Result};

/// The merges of a byte-level vocabulary and the rule that cuts words.
#[derive(Debug)]
pub(super) struct Bpe {
    rule: &'static Rule,
    /// Left and right token to the merge's rank and the token it makes.
    merges: HashMap<(u32, u32), (u32, u32)>,
}

impl Bpe {
    /// Checks that every merge joins two tokens to a third.
    pub fn new(pieces: &Pieces, merges: &Strings, rule: &'static Rule) -> Result<Bpe> {
        let place = || Place::Key("tokenizer.ggml.merges".into());
        if merges.len() > i32::MAX as usize {
            let found = merges.len();
            return Err(
                Error::expected(Kind::Format, "number of merges", "at most 2147483647", found).at(place())
            );
        }
        let mut wrong = Findings::default();
        let mut map = HashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, merge) in merges.iter().enumerate() {
            let made = halves(merge).and_then(|(left, right)| {
                joined.clear();
                joined.extend_from_slice(left);
                joined.extend_from_slice(right);
                Some(((pieces.find(left)?, pieces.find(right)?), pieces.find(&joined)?))
            });
            match made {
                // The first of two equal merges counts.
                Some((pair, id)) => _ = map.entry(pair).or_insert((rank as u32, id)),
                None => {
                    let what = format!("merge {rank}");
                    let found = String::from_utf8_lossy(merge).into_owned();
                    wrong.push(
                        Error::expected(Kind::Format, &what, "two tokens that make a third", found)
                            .at(place()),
                    );
                }
            }
        }
        wrong.refuse("the merges do not fit the vocabulary")?;
        Ok(Bpe { rule, merges: map })
    }

    /// Appends the tokens of text.
    pub fn encode(&self, pieces: &Pieces, text: &[u8], out: &mut Out) {
        let chars: Vec<Char> = Chars(text).collect();
        let mut merger = Merger::default();
        let mut spelled = Vec::new();
        let (mut first, mut start) = (0, 0);
        for last in self.rule.cut(&chars) {
            let end = start + chars[first..last].iter().map(|c| c.width as usize).sum::<usize>();
            self.word(pieces, text, start..end, &mut merger, &mut spelled, out);
            (first, start) = (last, end);
        }
    }

    fn word(
        &self,
        pieces: &Pieces,
        text: &[u8],
        range: std::ops::Range<usize>,
        merger: &mut Merger,
        spelled: &mut Vec<u8>,
        out: &mut Out,
    ) {
        if self.rule.whole_words && range.len() <= pieces.longest() {
            spelled.clear();
            for &byte in &text[range.clone()] {
                spelled.extend_from_slice(byte_level::char_of(byte).encode_utf8(&mut [0; 4]).as_bytes());
            }
            if let Some(id) = pieces.find(spelled) {
                return out.push(id, range.start, range.end);
            }
        }
        merger.clear();
        for at in range {
            merger.push(at, 1, pieces.byte(text[at]));
        }
        merger.run(|l, r| self.merges.get(&(l.id, r.id)).copied());
        for symbol in merger.symbols() {
            match symbol.id {
                NONE => out.unknown(pieces, text, symbol.start, symbol.start + symbol.len),
                id => out.push(id, symbol.start, symbol.start + symbol.len),
            }
        }
    }
}

/// A merge is two texts with a space between; the first may begin with what looks like one.
fn halves(merge: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = 1 + merge.get(1..)?.iter().position(|&b| b == b' ')?;
    Some((&merge[..space], &merge[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::super::pieces::Spelling;
    use super::*;

    #[test]
    fn a_merge_of_what_is_no_token_is_refused() {
        let tokens = Strings::from_iter(["a", "b", "ab"]);
        let pieces = Pieces::new(tokens, &[], Spelling::ByteLevel).unwrap();
        let rule = Rule::named("gpt-2").unwrap();
        let ok = Strings::from_iter(["a b", "a b"]);
        assert_eq!(Bpe::new(&pieces, &ok, rule).unwrap().merges[&(0, 1)], (0, 2));
        for bad in ["a c", "b a", "ab", "", " ", "a  b"] {
            let merges = Strings::from_iter(["a b", bad]);
            let e = Bpe::new(&pieces, &merges, rule).unwrap_err();
            assert!(e.to_string().contains("merge 1"), "{e}");
        }
    }
}
