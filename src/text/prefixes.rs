//! Which tokens a text begins with.

use super::pieces::Pieces;

/// Token ids sorted by their text: a trie without nodes.
///
/// Reading a text byte by byte narrows a range of the sorted list; a token ends where the range's first entry is as
/// long as what was read. Memory is four bytes per token whatever the texts are, and a step costs two binary
/// searches.
#[derive(Debug)]
pub(super) struct Prefixes {
    order: Vec<u32>,
    /// `first[b]..first[b + 1]` are the tokens whose first byte is `b`.
    first: Box<[u32; 257]>,
}

impl Prefixes {
    /// The tokens of `pieces` that `chosen` accepts and that are not empty.
    pub fn new(pieces: &Pieces, chosen: impl Fn(u32) -> bool) -> Prefixes {
        let mut order: Vec<u32> =
            pieces.ids().filter(|&id| !pieces.text(id).is_empty() && chosen(id)).collect();
        order.sort_unstable_by_key(|&id| pieces.text(id));
        let mut first = Box::new([0; 257]);
        for &id in &order {
            first[pieces.text(id)[0] as usize + 1] += 1;
        }
        for b in 0..256 {
            first[b + 1] += first[b];
        }
        Prefixes { order, first }
    }

    /// Calls `found` with the length and id of every token that `text` begins with, shortest first.
    pub fn each(&self, pieces: &Pieces, text: &[u8], mut found: impl FnMut(usize, u32)) {
        let Some(&b) = text.first() else { return };
        let range = self.first[b as usize] as usize..self.first[b as usize + 1] as usize;
        let mut range = &self.order[range];
        let mut depth = 1;
        while let [id, longer @ ..] = range {
            if pieces.text(*id).len() == depth {
                found(depth, *id);
                range = longer;
            }
            let Some(&b) = text.get(depth) else { return };
            // Every text in the range is longer than `depth` and agrees with `text` so far.
            let byte = |id: &u32| pieces.text(*id)[depth];
            range = &range[range.partition_point(|id| byte(id) < b)..];
            range = &range[..range.partition_point(|id| byte(id) == b)];
            depth += 1;
        }
    }

    /// The longest token that `text` begins with: its length and id.
    pub fn longest(&self, pieces: &Pieces, text: &[u8]) -> Option<(usize, u32)> {
        let mut best = None;
        self.each(pieces, text, |length, id| best = Some((length, id)));
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::pieces::tests::pieces;
    use super::*;

    #[test]
    fn finds_every_prefix_in_order() {
        let p = pieces(&["b", "ab", "a", "abcd", "", "abc\u{0}", "abd"]);
        let all = Prefixes::new(&p, |_| true);
        let mut found = vec![];
        all.each(&p, b"abcdx", |n, id| found.push((n, id)));
        assert_eq!(found, [(1, 2), (2, 1), (4, 3)]);
        assert_eq!(all.longest(&p, b"abc"), Some((2, 1)));
        assert_eq!(all.longest(&p, b"c"), None);
        assert_eq!(all.longest(&p, b""), None);
        assert_eq!(Prefixes::new(&p, |id| id == 0).longest(&p, b"ab"), None);
    }
}
