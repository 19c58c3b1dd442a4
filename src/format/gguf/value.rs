//! Metadata values as they lie in the file.
//!
//! ```text
//! string   u64 length, then that many bytes
//! array    u32 element type, u64 count, then the elements
//! others   little-endian, without padding; a bool is one byte, 0 or 1
//! ```
//!
//! A value is walked over once, when the file is parsed, and read again where it lies whenever it is asked for. The
//! second reading is checked like the first: somebody may have written to a mapped file meanwhile. What can then not
//! be read is empty; nothing panics and nothing is read outside the file.

use super::cursor::{ARRAY_HEAD, Cursor};
use std::fmt;

/// The types of metadata values; the discriminants are the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ValueType {
    /// `u8`
    U8 = 0,
    /// `i8`
    I8 = 1,
    /// `u16`
    U16 = 2,
    /// `i16`
    I16 = 3,
    /// `u32`
    U32 = 4,
    /// `i32`
    I32 = 5,
    /// `f32`
    F32 = 6,
    /// One byte, 0 or 1.
    Bool = 7,
    /// A string.
    Text = 8,
    /// An array of one element type.
    Array = 9,
    /// `u64`
    U64 = 10,
    /// `i64`
    I64 = 11,
    /// `f64`
    F64 = 12,
}

impl ValueType {
    pub(super) const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64]
    };

    /// The type of a number in the file; `None` for a number without meaning.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Its number in the file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"]
            [self as usize]
    }

    /// The bytes of one value; `None` for strings and arrays.
    pub fn size(self) -> Option<usize> {
        [
            Some(1),
            Some(1),
            Some(2),
            Some(2),
            Some(4),
            Some(4),
            Some(4),
            Some(1),
            None,
            None,
            Some(8),
            Some(8),
            Some(8),
        ][self as usize]
    }
}

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `u8`
    U8(u8),
    /// `i8`
    I8(i8),
    /// `u16`
    U16(u16),
    /// `i16`
    I16(i16),
    /// `u32`
    U32(u32),
    /// `i32`
    I32(i32),
    /// `f32`
    F32(f32),
    /// A bool.
    Bool(bool),
    /// A string.
    Text(&'a str),
    /// A string whose bytes are not UTF-8 (seen in vocabularies and in free text).
    Bytes(&'a [u8]),
    /// An array.
    Array(Array<'a>),
    /// `u64`
    U64(u64),
    /// `i64`
    I64(i64),
    /// `f64`
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value whose encoding is `bytes`.
    pub(super) fn read(kind: ValueType, bytes: &'a [u8]) -> Option<Value<'a>> {
        macro_rules! number {
            ($variant:ident $t:ty) => {
                Value::$variant(<$t>::from_le_bytes(*bytes.first_chunk()?))
            };
        }
        Some(match kind {
            ValueType::U8 => number!(U8 u8),
            ValueType::I8 => number!(I8 i8),
            ValueType::U16 => number!(U16 u16),
            ValueType::I16 => number!(I16 i16),
            ValueType::U32 => number!(U32 u32),
            ValueType::I32 => number!(I32 i32),
            ValueType::F32 => number!(F32 f32),
            ValueType::U64 => number!(U64 u64),
            ValueType::I64 => number!(I64 i64),
            ValueType::F64 => number!(F64 f64),
            ValueType::Bool => Value::Bool(*bytes.first()? != 0),
            ValueType::Text => {
                let text = Cursor::new(bytes).string("string").ok()?;
                std::str::from_utf8(text).map_or(Value::Bytes(text), Value::Text)
            }
            ValueType::Array => Value::Array(Array::read(bytes)?),
        })
    }

    /// The type this value has in a file.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Text(_) | Value::Bytes(_) => ValueType::Text,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value of any integer type.
    pub fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(x) => x.into(),
            Value::I8(x) => x.into(),
            Value::U16(x) => x.into(),
            Value::I16(x) => x.into(),
            Value::U32(x) => x.into(),
            Value::I32(x) => x.into(),
            Value::U64(x) => x.into(),
            Value::I64(x) => x.into(),
            _ => return None,
        })
    }
}

/// Shown shortly, as in a message: long texts and arrays are cut.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(t) => write!(f, "string {:?}", shown(t.as_bytes())),
            Value::Bytes(b) => write!(f, "string {:?} (not UTF-8)", shown(b)),
            Value::Array(a) => write!(f, "array of {} {}", a.len(), a.kind().name()),
            Value::Bool(b) => write!(f, "bool {b}"),
            Value::F32(x) => write!(f, "f32 {x}"),
            Value::F64(x) => write!(f, "f64 {x}"),
            other => write!(f, "{} {}", other.kind().name(), other.integer().unwrap_or_default()),
        }
    }
}

/// Bytes of a file as a message may carry them: lossy, and not long.
pub(super) fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 96;
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned();
    if bytes.len() > LONGEST {
        text.push('…');
    }
    text
}

/// An array where it lies in the file.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: ValueType,
    len: usize,
    /// Type, count and elements.
    whole: &'a [u8],
}

impl<'a> Array<'a> {
    fn read(whole: &'a [u8]) -> Option<Array<'a>> {
        let mut cursor = Cursor::new(whole);
        let (kind, count) = cursor.array_head().ok()?;
        Some(Array { kind, len: usize::try_from(count).ok()?, whole })
    }

    /// The type of the elements.
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> Elements<'a> {
        Elements { cursor: Cursor::new(self.items()), kind: self.kind, left: self.len }
    }

    /// The array as it is encoded.
    pub(super) fn whole(&self) -> &'a [u8] {
        self.whole
    }

    fn items(&self) -> &'a [u8] {
        self.whole.get(ARRAY_HEAD..).unwrap_or_default()
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().take(16)).finish()?;
        if self.len > 16 { write!(f, " and {} more", self.len - 16) } else { Ok(()) }
    }
}

/// The elements of an [`Array`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    cursor: Cursor<'a>,
    kind: ValueType,
    left: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let from = self.cursor.at;
        self.cursor.skip(self.kind, 0).ok()?;
        Value::read(self.kind, &self.cursor.bytes[from..self.cursor.at])
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Elements<'_> {}

/// An array of strings, as bytes: a vocabulary may hold pieces of characters.
#[derive(Clone, Debug)]
pub struct Texts<'a> {
    items: &'a [u8],
    len: usize,
    /// Where every [`Texts::STRIDE`]th string begins, so that `get` need not walk from the start.
    marks: Vec<usize>,
}

impl<'a> Texts<'a> {
    const STRIDE: usize = 32;

    /// The strings of an array; `None` if it holds something else.
    pub fn new(array: &Array<'a>) -> Option<Texts<'a>> {
        if array.kind != ValueType::Text {
            return None;
        }
        let items = array.items();
        let mut walk = TextsIter { cursor: Cursor::new(items), left: array.len };
        let mut marks = Vec::with_capacity(array.len.div_ceil(Self::STRIDE));
        for i in 0..array.len {
            if i % Self::STRIDE == 0 {
                marks.push(walk.cursor.at);
            }
            walk.next();
        }
        Some(Texts { items, len: array.len, marks })
    }

    /// How many strings.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings in order.
    pub fn iter(&self) -> TextsIter<'a> {
        TextsIter { cursor: Cursor::new(self.items), left: self.len }
    }

    /// The string at `index`; `None` past the end. Walks over at most 31 others.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        if index >= self.len {
            return None;
        }
        let cursor = Cursor { bytes: self.items, at: *self.marks.get(index / Self::STRIDE)? };
        let from = index - index % Self::STRIDE;
        TextsIter { cursor, left: self.len - from }.nth(index % Self::STRIDE)
    }
}

/// The strings of [`Texts`].
#[derive(Clone, Debug)]
pub struct TextsIter<'a> {
    cursor: Cursor<'a>,
    left: usize,
}

impl<'a> Iterator for TextsIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        Some(self.cursor.string("string").unwrap_or_default())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for TextsIter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(kind: ValueType, count: u64, items: &[u8]) -> Vec<u8> {
        [&kind.id().to_le_bytes()[..], &count.to_le_bytes(), items].concat()
    }

    fn strings(items: &[&[u8]]) -> Vec<u8> {
        items.iter().flat_map(|s| [&(s.len() as u64).to_le_bytes()[..], s].concat()).collect()
    }

    #[test]
    fn texts_are_found_by_index() {
        let words: Vec<Vec<u8>> = (0..100u8).map(|i| vec![i | 0x80; usize::from(i) % 7]).collect();
        let refs: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let bytes = array(ValueType::Text, 100, &strings(&refs));
        let texts = Texts::new(&Array::read(&bytes).unwrap()).unwrap();
        assert_eq!(texts.iter().collect::<Vec<_>>(), refs);
        assert_eq!(texts.iter().len(), 100);
        for (i, word) in refs.iter().enumerate() {
            assert_eq!(texts.get(i), Some(*word));
        }
        assert_eq!(texts.get(100), None);
    }

    #[test]
    fn a_value_changed_after_parsing_reads_as_empty_and_never_panics() {
        let mut bytes = array(ValueType::Text, 3, &strings(&[b"one", b"two", b"three"]));
        bytes[12 + 11] = 0xff; // the length of "two"
        let texts = Texts::new(&Array::read(&bytes).unwrap()).unwrap();
        assert_eq!(texts.iter().collect::<Vec<_>>()[..2], [&b"one"[..], b""]);
        assert_eq!(texts.iter().count(), 3);
        assert_eq!(Array::read(&bytes).unwrap().iter().count(), 1);
        bytes[4..12].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Array::read(&bytes).is_none());
    }

    #[test]
    fn messages_stay_short() {
        let long = "x".repeat(10_000);
        assert!(Value::Text(&long).to_string().len() < 120);
        assert_eq!(Value::I8(-3).to_string(), "i8 -3");
        assert_eq!(Value::Bytes(&[0xff]).to_string(), "string \"\u{fffd}\" (not UTF-8)");
    }
}
