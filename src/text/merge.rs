//! Joining neighbours, best pair first: the loop that SentencePiece-style and byte-level BPE share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token: the id of a symbol that the vocabulary does not know.
pub(super) const NONE: u32 = u32::MAX;

/// A stretch of text that is, so far, one token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    pub start: usize,
    pub len: usize,
    /// The token, or [`NONE`].
    pub id: u32,
    prev: usize,
    next: usize,
}

/// A pair that may be joined. Ordered by rank, then from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    right: usize,
    /// The joined length when this was proposed; if it no longer holds, one side has grown.
    len: usize,
    id: u32,
}

/// The symbols of one word, and the queue. Kept and cleared, so that a text of many words allocates once.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the symbols.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol; it must begin where the last one ended.
    pub fn push(&mut self, start: usize, len: usize, id: u32) {
        let at = self.symbols.len();
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol { start, len, id, prev: at.wrapping_sub(1), next: usize::MAX });
    }

    /// Joins pairs until none is left. `pair` says whether two neighbours make a token: the rank (lower goes first)
    /// and the id. With n symbols this makes less than 3·n calls and n·log n steps of the queue.
    pub fn run(&mut self, mut pair: impl FnMut(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() {
            self.propose(right - 1, right, &mut pair);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let Candidate { left, right, len, id, .. } = best;
            let (l, r) = (self.symbols[left], self.symbols[right]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            self.symbols[left] = Symbol { len, id, next: r.next, ..l };
            self.symbols[right].len = 0;
            if let Some(after) = self.symbols.get_mut(r.next) {
                after.prev = left;
            }
            self.propose(l.prev, left, &mut pair);
            self.propose(left, r.next, &mut pair);
        }
    }

    fn propose(
        &mut self,
        left: usize,
        right: usize,
        pair: &mut impl FnMut(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        let (Some(l), Some(r)) = (self.symbols.get(left), self.symbols.get(right)) else { return };
        if let Some((rank, id)) = pair(l, r) {
            self.queue.push(Reverse(Candidate { rank, left, right, len: l.len + r.len, id }));
        }
    }

    /// The symbols that are left, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins single letters by a list of pairs, the first pair first.
    fn join(word: &str, pairs: &[&str]) -> Vec<String> {
        let mut m = Merger::default();
        for i in 0..word.len() {
            m.push(i, 1, NONE);
        }
        m.run(|l, r| {
            let text = &word[l.start..r.start + r.len];
            pairs.iter().position(|p| *p == text).map(|rank| (rank as u32, rank as u32))
        });
        m.symbols().map(|s| word[s.start..s.start + s.len].to_string()).collect()
    }

    #[test]
    fn takes_the_best_pair_and_then_the_leftmost() {
        assert_eq!(join("aaaa", &["aa"]), ["aa", "aa"]);
        assert_eq!(join("aaaaa", &["aa"]), ["aa", "aa", "a"]);
        assert_eq!(join("abc", &["bc", "ab", "abc"]), ["abc"]);
        assert_eq!(join("abc", &["ab", "bc"]), ["ab", "c"]);
        assert_eq!(join("abab", &["ba", "ab"]), ["a", "ba", "b"]);
        assert!(join("", &[]).is_empty());
    }
}
