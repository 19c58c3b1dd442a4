//! What SentencePiece does to text before it looks for tokens: replacements, spaces, `▁`.

use super::pieces::METASPACE;
use super::unicode::Chars;
use crate::error::{Error, Kind, Place, Result};

/// The steps before tokens are looked for, in their order.
#[derive(Debug, Default)]
pub(super) struct Normaliser {
    /// Replacements of characters and sequences (NFKC and the like), compiled to a table by the trainer.
    pub charsmap: Option<Charsmap>,
    /// Whether text begins with a space that is not there.
    pub prefix: bool,
    /// Whether runs of spaces become one, and spaces at both ends none.
    pub collapse: bool,
}

/// Normalised text and where each of its bytes comes from.
#[derive(Debug, Default)]
pub(super) struct Normalised {
    pub text: Vec<u8>,
    /// For each byte of `text` the offset of what it was made from, and at the end the length of the original.
    pub source: Vec<usize>,
}

impl Normalised {
    fn push(&mut self, byte: u8, source: usize) {
        if byte == b' ' {
            self.text.extend_from_slice(METASPACE.as_bytes());
            self.source.extend([source; METASPACE.len()]);
        } else {
            self.text.push(byte);
            self.source.push(source);
        }
    }
}

impl Normaliser {
    /// Normalises one stretch of text. `first` says that it stands at the beginning or after a special token, where
    /// the phantom space goes.
    pub fn apply(&self, text: &[u8], first: bool) -> Normalised {
        let mut done = Normalised::default();
        done.text.reserve(text.len() + text.len() / 4 + METASPACE.len());
        done.source.reserve(done.text.capacity() + 1);
        let mut at = 0;
        // After this flag's spaces there is nothing that a further space would stand apart from.
        let mut after_space = self.collapse;
        let mut begun = false;
        while at < text.len() {
            let (made, taken, verbatim) = self.step(&text[at..]);
            let spaces = if after_space { made.iter().take_while(|&&b| b == b' ').count() } else { 0 };
            let kept = &made[spaces..];
            let begins = !kept.is_empty() || !self.collapse;
            if begins && !begun && self.prefix && first {
                done.push(b' ', at);
            }
            begun |= begins;
            for (i, &byte) in kept.iter().enumerate() {
                done.push(byte, if verbatim { at + i } else { at });
            }
            if let Some(last) = kept.last() {
                after_space = self.collapse && *last == b' ';
            }
            at += taken;
        }
        if self.collapse {
            while done.text.ends_with(METASPACE.as_bytes()) {
                done.text.truncate(done.text.len() - METASPACE.len());
            }
            done.source.truncate(done.text.len());
        }
        done.source.push(text.len());
        done
    }

    /// What the beginning of `text` becomes, how many bytes of it are used up, and whether they stay as they are.
    fn step<'a>(&'a self, text: &'a [u8]) -> (&'a [u8], usize, bool) {
        if let Some((made, taken)) = self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            return (made, taken, false);
        }
        let width = Chars(text).next().map_or(0, |c| c.width as usize);
        (&text[..width], width, true)
    }
}

/// A compiled table of replacements: a double-array trie whose leaves point to zero-terminated strings.
///
/// The units are those of the Darts-clone library: a leaf holds its value in the low 31 bits, another unit its label
/// in the low 8, a flag that a leaf follows in bit 8, and the distance to its children above.
#[derive(Debug)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// The longest sequence that is looked up, and the longest replacement accepted. The largest in use have a few
    /// dozen bytes; without bounds a file could make normalising quadratic in time or memory.
    const LONGEST: usize = 512;

    /// Reads the table: its size in bytes, its units, the strings.
    pub fn new(table: &[u8]) -> Result<Charsmap> {
        let wrong = |what: &str, expected: &str, found: String| {
            let place = Place::Key("tokenizer.ggml.precompiled_charsmap".into());
            Err(Error::expected(Kind::Format, what, expected, found).at(place))
        };
        let Some((size, rest)) = table.split_first_chunk::<4>() else {
            return wrong("length", "at least 4 bytes", table.len().to_string());
        };
        let size = u32::from_le_bytes(*size) as usize;
        if size % 4 != 0 || size > rest.len() {
            return wrong("size of its trie", "a multiple of 4 within it", size.to_string());
        }
        let (units, replacements) = rest.split_at(size);
        if replacements.last().is_some_and(|&last| last != 0) {
            return wrong("last replacement", "a zero at its end", "none".into());
        }
        if let Some(long) = replacements.split(|&b| b == 0).map(<[u8]>::len).find(|&n| n > Self::LONGEST) {
            return wrong("length of replacements", "at most 512 bytes", long.to_string());
        }
        Ok(Charsmap {
            units: units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: replacements.to_vec(),
        })
    }

    /// The replacement of the longest known sequence that `text` begins with, and the sequence's length.
    fn longest(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = offset(*self.units.first()?);
        let mut best = None;
        for (i, &byte) in text.iter().take(Self::LONGEST).enumerate() {
            node ^= byte as u32;
            let Some(&unit) = self.units.get(node as usize) else { break };
            if byte == 0 || unit & (1 << 31 | 0xff) != byte as u32 {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let Some(leaf) = self.units.get(node as usize) else { break };
                best = Some((leaf & !(1 << 31), i + 1));
            }
        }
        let (start, length) = best?;
        let made = self.replacements.get(start as usize..)?;
        let end = made.iter().position(|&b| b == 0)?;
        Some((&made[..end], length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spaces(collapse: bool, text: &str) -> (String, Vec<usize>) {
        let n = Normaliser { charsmap: None, prefix: true, collapse }.apply(text.as_bytes(), true);
        (String::from_utf8(n.text).unwrap(), n.source)
    }

    #[test]
    fn spaces_are_escaped_and_their_places_known() {
        let (text, source) = spaces(false, "a  b");
        assert_eq!(text, "▁a▁▁b");
        assert_eq!(source, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4]);
        assert_eq!(spaces(false, " ").0, "▁▁");
        assert_eq!(spaces(false, "").0, "");
    }

    #[test]
    fn spaces_collapse() {
        assert_eq!(spaces(true, "  a   b  ").0, "▁a▁b");
        assert_eq!(spaces(true, "  a   b  ").1.last(), Some(&9));
        assert_eq!(spaces(true, "   ").0, "");
    }

    #[test]
    fn hostile_tables_are_refused_or_harmless() {
        for bad in [&b""[..], b"\x01\0\0\0", b"\x03\0\0\0aaa", b"\x04\0\0\0\0\0\0\0a"] {
            assert_eq!(Charsmap::new(bad).unwrap_err().kind(), Kind::Format);
        }
        let mut long = vec![0, 0, 0, 0];
        long.resize(4 + 513, b'x');
        long.push(0);
        assert!(Charsmap::new(&long).is_err());
        // Units that point at themselves, outside, or back.
        for seed in 0..2000u32 {
            let mut table = 64u32.to_le_bytes().to_vec();
            let mut state = seed;
            for _ in 0..16 {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                table.extend((state >> 12 | (state & 3) << 30).to_le_bytes());
            }
            table.extend(b"ab\0c\0");
            let map = Charsmap::new(&table).unwrap();
            for byte in 0..=255 {
                map.longest(&[byte; 40]);
            }
        }
    }
}
