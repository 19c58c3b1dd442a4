//! Metadata values on their way into a file.

use super::cursor::MAX_DEPTH;
use super::value::{Array, Value, ValueType};
use crate::error::{Error, Kind, Result};
use std::borrow::Cow;

/// A metadata value in the file's encoding.
///
/// Made from any number, bool or string with `into()`, from a slice with [`Encoded::array`], and from a [`Value`] of
/// another file, whose bytes are borrowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded<'a> {
    kind: ValueType,
    bytes: Cow<'a, [u8]>,
    /// Arrays around the innermost element.
    pub(super) depth: usize,
}

/// What a metadata value or the element of an array can be.
pub trait Element {
    /// Its type in the file.
    const KIND: ValueType;
    /// Appends its encoding.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! elements {
    ($($kind:ident $t:ty),*) => { $(
        impl Element for $t {
            const KIND: ValueType = ValueType::$kind;
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )* };
}
elements!(U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, F32 f32, U64 u64, I64 i64, F64 f64);

impl Element for bool {
    const KIND: ValueType = ValueType::Bool;
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

/// A string as bytes, which should be UTF-8 outside vocabularies.
impl Element for &[u8] {
    const KIND: ValueType = ValueType::Text;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u64).to_le_bytes());
        out.extend_from_slice(self);
    }
}

impl<const N: usize> Element for &[u8; N] {
    const KIND: ValueType = ValueType::Text;
    fn encode(&self, out: &mut Vec<u8>) {
        (&self[..]).encode(out);
    }
}

impl Element for &str {
    const KIND: ValueType = ValueType::Text;
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_bytes().encode(out);
    }
}

impl Element for String {
    const KIND: ValueType = ValueType::Text;
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_bytes().encode(out);
    }
}

impl<T: Element> From<T> for Encoded<'_> {
    fn from(value: T) -> Self {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        Encoded { kind: T::KIND, bytes: bytes.into(), depth: 0 }
    }
}

impl<'a> From<Value<'a>> for Encoded<'a> {
    fn from(value: Value<'a>) -> Self {
        match value {
            Value::U8(x) => x.into(),
            Value::I8(x) => x.into(),
            Value::U16(x) => x.into(),
            Value::I16(x) => x.into(),
            Value::U32(x) => x.into(),
            Value::I32(x) => x.into(),
            Value::F32(x) => x.into(),
            Value::Bool(x) => x.into(),
            Value::Text(x) => x.into(),
            Value::Bytes(x) => x.into(),
            Value::U64(x) => x.into(),
            Value::I64(x) => x.into(),
            Value::F64(x) => x.into(),
            Value::Array(x) => x.into(),
        }
    }
}

impl<'a> From<Array<'a>> for Encoded<'a> {
    fn from(array: Array<'a>) -> Self {
        let inner = |a: &Array<'a>| match a.kind() {
            ValueType::Array => a.iter().map(|v| Encoded::from(v).depth).max().unwrap_or(0),
            _ => 0,
        };
        Encoded { kind: ValueType::Array, bytes: array.whole().into(), depth: 1 + inner(&array) }
    }
}

impl<'a> Encoded<'a> {
    /// An array of numbers, bools or strings.
    pub fn array<T: Element>(items: &[T]) -> Encoded<'a> {
        let mut bytes = array_head(T::KIND, items.len());
        items.iter().for_each(|item| item.encode(&mut bytes));
        Encoded { kind: ValueType::Array, bytes: bytes.into(), depth: 1 }
    }

    /// An array of arrays.
    ///
    /// # Errors
    /// [`Kind::Argument`] if an item is not an array, or if they are nested deeper than a reader takes.
    pub fn arrays(items: &[Encoded<'_>]) -> Result<Encoded<'a>> {
        if items.iter().any(|i| i.kind != ValueType::Array) {
            return Err(Error::new(Kind::Argument, "an array of arrays must hold arrays"));
        }
        let depth = 1 + items.iter().map(|i| i.depth).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(Error::new(Kind::Argument, format!("arrays are nested deeper than {MAX_DEPTH}")));
        }
        let mut bytes = array_head(ValueType::Array, items.len());
        items.iter().for_each(|i| bytes.extend_from_slice(&i.bytes));
        Ok(Encoded { kind: ValueType::Array, bytes: bytes.into(), depth })
    }

    /// The type in the file.
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// The encoding, without the type of the value.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn array_head(kind: ValueType, len: usize) -> Vec<u8> {
    let mut head = Vec::new();
    kind.id().encode(&mut head);
    (len as u64).encode(&mut head);
    head
}
