//! The one walk over a file's bytes: every step is checked against their end.

use super::value::ValueType;
use crate::error::{Error, Kind, Place, Result};

/// Arrays of arrays deeper than this are refused: nobody writes them, and depth is stack.
pub(super) const MAX_DEPTH: usize = 8;

/// Bytes before the elements of an array.
pub(super) const ARRAY_HEAD: usize = 12;

/// The fewest bytes one value can take.
fn least(kind: ValueType) -> u64 {
    match kind {
        ValueType::Text => 8,
        ValueType::Array => ARRAY_HEAD as u64,
        other => other.size().unwrap_or(1) as u64,
    }
}

/// A place in a file's bytes; every step is checked against their end.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Bytes not walked over yet.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The error `text` at this place.
    pub(super) fn error(&self, text: String) -> Error {
        Error::new(Kind::Format, text).at(Place::Byte(self.at as u64))
    }

    /// The next `n` bytes, which are `what`.
    pub(super) fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(
                self.error(format!("{what}: expected {n} bytes, found {} up to the end", self.left()))
            );
        }
        let from = self.at;
        self.at += n as usize; // n is at most the length of a slice
        Ok(&self.bytes[from..self.at])
    }

    /// A little-endian `u32`.
    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("4 bytes")))
    }

    /// A little-endian `u64`.
    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("8 bytes")))
    }

    /// A string's bytes.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        if len > self.left() {
            let left = self.left();
            self.at -= 8;
            return Err(
                self.error(format!("{what}: a string of {len} bytes does not fit into the {left} left"))
            );
        }
        self.take(len, what)
    }

    /// The type of a value.
    pub(super) fn kind(&mut self, what: &str) -> Result<ValueType> {
        let start = self.at;
        let id = self.u32(what)?;
        ValueType::from_id(id).ok_or_else(|| {
            self.at = start;
            self.error(format!("{what}: expected a number up to 12, found {id}"))
        })
    }

    /// An array's element type and count; the count is one that the bytes left can hold.
    pub(super) fn array_head(&mut self) -> Result<(ValueType, u64)> {
        let kind = self.kind("type of an array's elements")?;
        let count = self.u64("count of an array")?;
        if count > self.left() / least(kind) {
            self.at -= 8;
            let left = self.left() - 8;
            return Err(
                self.error(format!("an array of {count} {} does not fit into {left} bytes", kind.name()))
            );
        }
        Ok((kind, count))
    }

    /// Walks over one value, checking everything that reading it relies on; `depth` arrays are around it.
    pub(super) fn skip(&mut self, kind: ValueType, depth: usize) -> Result<()> {
        match kind {
            ValueType::Text => self.string("string").map(|_| ()),
            ValueType::Bool => self.bools(1),
            ValueType::Array => {
                if depth == MAX_DEPTH {
                    return Err(self.error(format!("arrays are nested deeper than {MAX_DEPTH}")));
                }
                let (kind, count) = self.array_head()?;
                match kind.size() {
                    Some(1) if kind == ValueType::Bool => self.bools(count),
                    Some(size) => self.take(count * size as u64, "array").map(|_| ()), // fits: see array_head
                    None => (0..count).try_for_each(|_| self.skip(kind, depth + 1)),
                }
            }
            number => self.take(least(number), number.name()).map(|_| ()),
        }
    }

    fn bools(&mut self, count: u64) -> Result<()> {
        let from = self.at;
        let bytes = self.take(count, "bool")?;
        match bytes.iter().position(|&b| b > 1) {
            None => Ok(()),
            Some(i) => {
                self.at = from + i;
                Err(self.error(format!("bool: expected 0 or 1, found {}", bytes[i])))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(kind: ValueType, count: u64, items: &[u8]) -> Vec<u8> {
        [&kind.id().to_le_bytes()[..], &count.to_le_bytes(), items].concat()
    }

    #[test]
    fn depth_is_limited() {
        let mut bytes = array(ValueType::U8, 1, &[7]);
        for depth in 1..=MAX_DEPTH {
            let ok = Cursor::new(&bytes).skip(ValueType::Array, 0).is_ok();
            assert!(ok, "{depth}");
            bytes = array(ValueType::Array, 1, &bytes);
        }
        let error = Cursor::new(&bytes).skip(ValueType::Array, 0).unwrap_err();
        assert_eq!(error.to_string(), "byte 96: arrays are nested deeper than 8");
    }

    #[test]
    fn counts_are_checked_before_they_are_followed() {
        for kind in ValueType::ALL {
            let bytes = array(kind, 1 << 60, &[0; 64]);
            let error = Cursor::new(&bytes).skip(ValueType::Array, 0).unwrap_err();
            assert!(error.to_string().contains("does not fit into 64 bytes"), "{error}");
        }
        let error =
            Cursor::new(&array(ValueType::Bool, 3, &[1, 0, 2])).skip(ValueType::Array, 0).unwrap_err();
        assert_eq!(error.to_string(), "byte 14: bool: expected 0 or 1, found 2");
    }
}
