//! Unigram tokens: of all ways to spell a text, the one whose tokens' log probabilities sum highest
//! (`tokenizer.ggml.model` = `t5`).
//!
//! Kudo, "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates"
//! (2018). With s(t) the score of token t and i ≤ j places in the text,
//! best(j) = max over tokens t that spell text[i..j] of best(i) + s(t), best(0) = 0.

use super::merge::NONE;
use super::pieces::{Pieces, TokenKind};
use super::prefixes::Prefixes;
use super::tokenizer::Out;
use super::unicode::Chars;

/// The tokens and scores of a Unigram vocabulary.
#[derive(Debug)]
pub(super) struct Unigram {
    tokens: Prefixes,
    scores: Vec<f32>,
    /// What a character without a token costs: ten less than the least likely token.
    unknown: f64,
}

/// The best way to reach a place.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    from: usize,
    id: u32,
}

impl Unigram {
    /// `scores` are finite and as many as there are tokens.
    pub fn new(pieces: &Pieces, scores: Vec<f32>) -> Unigram {
        let lowest = pieces
            .ids()
            .filter(|&id| pieces.kind(id) == TokenKind::Normal)
            .map(|id| scores[id as usize])
            .fold(0.0, f32::min);
        let spells = |id| matches!(pieces.kind(id), TokenKind::Normal | TokenKind::UserDefined);
        Unigram { tokens: Prefixes::new(pieces, spells), scores, unknown: lowest as f64 - 10.0 }
    }

    /// Appends the tokens of normalised text.
    pub fn encode(&self, pieces: &Pieces, text: &[u8], out: &mut Out) {
        // best[0] is the start; a place inside a character may be reached, but nothing goes on from there.
        let unreached = Best { score: f64::NEG_INFINITY, from: 0, id: NONE };
        let mut best = vec![unreached; text.len() + 1];
        best[0].score = 0.0;
        let mut at = 0;
        for c in Chars(text) {
            let width = c.width as usize;
            let here = best[at].score;
            let mut whole = false;
            self.tokens.each(pieces, &text[at..], |length, id| {
                whole |= length == width;
                // What the user defined is free, so that it always wins.
                let cost = match pieces.kind(id) {
                    TokenKind::UserDefined => 0.0,
                    _ => self.scores[id as usize] as f64,
                };
                improve(&mut best[at + length], Best { score: here + cost, from: at, id });
            });
            if !whole {
                let score = here + self.unknown;
                improve(&mut best[at + width], Best { score, from: at, id: NONE });
            }
            at += width;
        }
        let mut path = Vec::new();
        let mut end = text.len();
        while end > 0 {
            path.push((best[end], end));
            end = best[end].from;
        }
        for &(Best { from, id, .. }, end) in path.iter().rev() {
            match id {
                NONE => out.unknown(pieces, text, from, end),
                id => out.push(id, from, end),
            }
        }
    }
}

/// Of two equal ways the earlier found, which starts earlier, stays.
fn improve(best: &mut Best, other: Best) {
    if other.score > best.score {
        *best = other;
    }
}

#[cfg(test)]
mod tests {
    use super::super::pieces::tests::pieces;
    use super::*;

    #[test]
    fn the_likeliest_spelling_wins() {
        let p = pieces(&["a", "b", "ab", "abc", "c"]);
        let ids = |scores: [f32; 5], text: &str| {
            let mut out = Out::default();
            Unigram::new(&p, scores.to_vec()).encode(&p, text.as_bytes(), &mut out);
            out.tokens.iter().map(|t| t.id).collect::<Vec<_>>()
        };
        assert_eq!(ids([-1.0, -1.0, -1.5, -9.0, -1.0], "abc"), [2, 4]);
        assert_eq!(ids([-1.0, -1.0, -3.0, -2.5, -1.0], "abc"), [3]);
        assert_eq!(ids([-1.0, -1.0, -2.0, -3.0, -1.0], "ab"), [2], "ties go to the longer first token");
        // There is no token for x and none that stands for the unknown: it is left out.
        assert_eq!(ids([-1.0, -1.0, -1.5, -9.0, -1.0], "axb"), [0, 1]);
    }
}
