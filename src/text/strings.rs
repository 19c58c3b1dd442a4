//! Byte strings end to end in one buffer.

/// A list of byte strings kept in one allocation: a vocabulary of 200 000 tokens is two vectors, not 200 000.
///
/// ```
/// use onlay::text::Strings;
/// let names = Strings::from_iter(["a", "bc"]);
/// assert_eq!(names.get(1), Some(&b"bc"[..]));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Strings {
    /// Appends one string.
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Strings {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut all = Strings::default();
        for item in items {
            all.push(item.as_ref());
        }
        all
    }
}

impl std::fmt::Debug for Strings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} strings, {} bytes", self.len(), self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_empty_and_binary_strings() {
        let all = Strings::from_iter([&b"x"[..], b"", b"\xff\x00"]);
        assert_eq!(all.len(), 3);
        assert_eq!(all.iter().collect::<Vec<_>>(), [&b"x"[..], b"", b"\xff\x00"]);
        assert_eq!(all.get(3), None);
    }
}
