//! SentencePiece-style pairs: of all neighbours that make a token together, those with the highest score join
//! first (`tokenizer.ggml.model` = `llama`).
//!
//! Kudo and Richardson, "SentencePiece: A simple and language independent subword tokenizer" (2018), its BPE model.

use std::collections::HashMap;

use super::merge::{Merger, NONE, Symbol};
use super::pieces::{Pieces, TokenKind};
use super::tokenizer::Out;
use super::unicode::Chars;

/// `▁`, a space after normalising.
const SPACE: char = '\u{2581}';

/// The ranks of an SPM vocabulary.
#[derive(Debug)]
pub(super) struct Spm {
    /// The order in which tokens are made: lower first, from the score. [`NONE`]: never made by joining.
    ranks: Vec<u32>,
    /// Whether any token is an unused one, which is made and then taken apart again.
    unused: bool,
    /// Whether no token goes on from another character to a `▁`, so that words can be joined one by one.
    words_apart: bool,
}

impl Spm {
    /// `scores` are finite and as many as there are tokens. Control and byte tokens are never made from text,
    /// whatever their names.
    pub fn new(pieces: &Pieces, scores: &[f32]) -> Spm {
        let rank = |id: u32| match pieces.kind(id) {
            TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused => descending(scores[id as usize]),
            _ => NONE,
        };
        let ranks: Vec<u32> = pieces.ids().map(rank).collect();
        let unused = pieces.ids().any(|id| pieces.kind(id) == TokenKind::Unused);
        let joins_words = |id: u32| {
            let mut begun = false;
            ranks[id as usize] != NONE
                && Chars(pieces.text(id)).any(|c| std::mem::replace(&mut begun, c.c != SPACE) && c.c == SPACE)
        };
        let words_apart = !unused && !pieces.ids().any(joins_words);
        Spm { ranks, unused, words_apart }
    }

    /// Appends the tokens of normalised text.
    pub fn encode(&self, pieces: &Pieces, text: &[u8], out: &mut Out) {
        let mut merger = Merger::default();
        let mut start = 0;
        let mut begun = false;
        for c in Chars(text) {
            let len = c.width as usize;
            if std::mem::replace(&mut begun, c.c != SPACE) && c.c == SPACE && self.words_apart {
                self.join(pieces, text, &mut merger, out);
            }
            merger.push(start, len, self.made(pieces, &text[start..start + len]).unwrap_or(NONE));
            start += len;
        }
        self.join(pieces, text, &mut merger, out);
    }

    /// Joins the symbols at hand, writes what they became and forgets them.
    fn join(&self, pieces: &Pieces, text: &[u8], merger: &mut Merger, out: &mut Out) {
        // Of an unused token, the length of the left part that it was last proposed from.
        let mut parts = HashMap::new();
        merger.run(|l, r| {
            let id = self.made(pieces, &text[l.start..r.start + r.len])?;
            if self.unused && pieces.kind(id) == TokenKind::Unused {
                parts.insert(id, l.len);
            }
            Some((self.ranks[id as usize], id))
        });
        for symbol in merger.symbols() {
            self.emit(pieces, text, symbol, &parts, out);
        }
        merger.clear();
    }

    /// The token of this text, if text can make it.
    fn made(&self, pieces: &Pieces, text: &[u8]) -> Option<u32> {
        pieces.find(text).filter(|&id| self.ranks[id as usize] != NONE)
    }

    /// Writes one symbol: an unused token as the parts it was made of, an unknown character as its bytes.
    fn emit(
        &self,
        pieces: &Pieces,
        text: &[u8],
        symbol: &Symbol,
        parts: &HashMap<u32, usize>,
        out: &mut Out,
    ) {
        let mut open = vec![(symbol.start, symbol.start + symbol.len, symbol.id)];
        while let Some((start, end, id)) = open.pop() {
            match parts.get(&id) {
                Some(left) if pieces.kind(id) == TokenKind::Unused => {
                    let middle = start + left;
                    for (start, end) in [(middle, end), (start, middle)] {
                        open.push((start, end, self.made(pieces, &text[start..end]).unwrap_or(NONE)));
                    }
                }
                _ if id == NONE => out.unknown(pieces, text, start, end),
                _ => out.push(id, start, end),
            }
        }
    }
}

/// Maps scores to numbers whose order is the reverse; both zeros are one.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    // `NONE` would need a NaN.
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_scores_downwards() {
        let scores = [f32::MAX, 1.5, 0.0, -1e-9, -7.0, f32::MIN];
        let ranks = scores.map(descending);
        assert!(ranks.is_sorted_by(|a, b| a < b));
        assert_eq!(descending(-0.0), descending(0.0));
        assert!(!ranks.contains(&NONE));
    }
}
