//! Asking a file's metadata.
//!
//! For every type there are two questions. `u32(key)` is `Ok(None)` where the key is absent and an error where it is
//! there with another type or out of range; `need_u32(key)` is an error in both cases. Integers of any width and sign
//! are taken where their value fits, because writers differ in the widths they choose.

use super::Directory;
use super::value::{Texts, Value};
use crate::error::{Error, Kind, Place, Result};

/// A file's metadata, where it lies.
///
/// ```
/// use onlay::format::gguf::{Builder, parse};
/// let mut file = Vec::new();
/// let mut builder = Builder::new();
/// builder.set("general.architecture", "llama").set("llama.block_count", 22u32);
/// builder.write(&mut file)?;
///
/// let directory = parse(&file)?;
/// let metadata = directory.metadata(&file);
/// assert_eq!(metadata.need_text("general.architecture")?, "llama");
/// assert_eq!(metadata.u64("llama.block_count")?, Some(22));
/// assert_eq!(metadata.f32("llama.rope.freq_base")?, None);
/// assert!(metadata.text("llama.block_count").is_err());
/// # Ok::<(), onlay::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    directory: &'a Directory,
    bytes: &'a [u8],
}

/// The optional question and the one that must have an answer.
macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident $need:ident -> $t:ty, $wanted:literal, $read:expr;)*) => { $(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Kind::Format`] at the key where it holds something else.
        pub fn $name(&self, key: &str) -> Result<Option<$t>> {
            self.ask(key, $wanted, $read)
        }

        #[doc = concat!("As [`", stringify!($name), "`](Self::", stringify!($name), "), and an absent key is an error too.")]
        ///
        /// # Errors
        /// [`Kind::Format`] at the key where it is absent or holds something else.
        pub fn $need(&self, key: &str) -> Result<$t> {
            self.$name(key)?.ok_or_else(|| self.missing(key))
        }
    )* };
}

impl<'a> Metadata<'a> {
    pub(super) fn new(directory: &'a Directory, bytes: &'a [u8]) -> Self {
        Metadata { directory, bytes }
    }

    /// The keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let bytes = self.bytes;
        self.directory.entries.iter().map(move |e| e.key.text(bytes))
    }

    /// Keys with their values, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> + use<'a> {
        let bytes = self.bytes;
        self.directory
            .entries
            .iter()
            .filter_map(move |e| Some((e.key.text(bytes), Value::read(e.kind, e.value.of(bytes))?)))
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.directory.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `key`, whatever its type; `None` where it is absent.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let entry = self.directory.entry(key, self.bytes)?;
        Value::read(entry.kind, entry.value.of(self.bytes))
    }

    questions! {
        /// An integer that fits into `u32`.
        u32 need_u32 -> u32, "an integer from 0 to 4294967295", |v| v.integer().and_then(|i| i.try_into().ok());
        /// An integer that fits into `u64`.
        u64 need_u64 -> u64, "an integer of 64 bits, not below 0", |v| v.integer().and_then(|i| i.try_into().ok());
        /// An integer that fits into `i64`.
        i64 need_i64 -> i64, "an integer of 64 bits", |v| v.integer().and_then(|i| i.try_into().ok());
        /// A number of type `f32`, or of type `f64` and rounded.
        f32 need_f32 -> f32, "a floating-point number", float;
        /// A bool.
        bool need_bool -> bool, "a bool", |v| match v { Value::Bool(b) => Some(b), _ => None };
        /// A string, which must be UTF-8.
        text need_text -> &'a str, "a UTF-8 string", |v| match v { Value::Text(t) => Some(t), _ => None };
        /// An array of strings, as bytes.
        texts need_texts -> Texts<'a>, "an array of strings", |v| match v {
            Value::Array(a) => Texts::new(&a),
            _ => None,
        };
        /// An array of floating-point numbers.
        f32s need_f32s -> Vec<f32>, "an array of floating-point numbers", |v| all(v, float);
        /// An array of integers that fit into `i32`.
        i32s need_i32s -> Vec<i32>, "an array of integers of 32 bits", |v| all(v, |v| v.integer()?.try_into().ok());
        /// An array of integers that fit into `u32`.
        u32s need_u32s -> Vec<u32>, "an array of integers from 0 to 4294967295",
            |v| all(v, |v| v.integer()?.try_into().ok());
        /// An array of bools.
        bools need_bools -> Vec<bool>, "an array of bools",
            |v| all(v, |v| match v { Value::Bool(b) => Some(b), _ => None });
    }

    /// The error `text` about `key`, for a caller that finds a well-typed value impossible.
    pub fn error(&self, key: &str, text: impl Into<String>) -> Error {
        let error = Error::new(Kind::Format, text).at(Place::Key(key.into()));
        match &self.directory.path {
            Some(path) => error.in_file(path),
            None => error,
        }
    }

    fn missing(&self, key: &str) -> Error {
        self.error(key, "missing")
    }

    fn ask<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(entry) = self.directory.entry(key, self.bytes) else { return Ok(None) };
        let Some(value) = Value::read(entry.kind, entry.value.of(self.bytes)) else {
            return Err(self.error(key, "the file was changed while it was open"));
        };
        match read(value) {
            Some(answer) => Ok(Some(answer)),
            None => Err(self.error(key, format!("expected {wanted}, found {value}"))),
        }
    }
}

fn float(value: Value<'_>) -> Option<f32> {
    match value {
        Value::F32(x) => Some(x),
        Value::F64(x) => Some(x as f32).filter(|narrow| narrow.is_finite() || !x.is_finite()),
        _ => None,
    }
}

/// Every element of an array, or `None` if one does not fit. At most 4 times the array's bytes are allocated.
fn all<T>(value: Value<'_>, one: impl Fn(Value<'_>) -> Option<T>) -> Option<Vec<T>> {
    let Value::Array(array) = value else { return None };
    let items: Vec<T> = array.iter().map(one).collect::<Option<_>>()?;
    (items.len() == array.len()).then_some(items)
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Encoded, parse};
    use super::*;
    use std::path::Path;

    fn file() -> Vec<u8> {
        let mut b = Builder::new();
        b.set("a", 7u8).set("b", -1i64).set("c", 1u64 << 40).set("pi", 3.25f64).set("huge", 1e300f64);
        b.set("yes", true).set("name", "onlay").set("latin", &b"\xe9t\xe9"[..]);
        b.set("ids", Encoded::array(&[1i64, -2, 3])).set("flags", Encoded::array(&[true, false]));
        b.set("rates", Encoded::array(&[0.5f32, 2.0])).set("words", Encoded::array(&["x", ""]));
        b.set("none", Encoded::array::<u32>(&[]));
        let mut out = Vec::new();
        b.write(&mut out).unwrap();
        out
    }

    #[test]
    fn integers_of_any_width_fit_or_are_refused() {
        let bytes = file();
        let d = parse(&bytes).unwrap();
        let m = d.metadata(&bytes);
        assert_eq!((m.u32("a").unwrap(), m.i64("b").unwrap()), (Some(7), Some(-1)));
        assert_eq!(m.u64("c").unwrap(), Some(1 << 40));
        let text = m.u32("c").unwrap_err().to_string();
        assert_eq!(text, "c: expected an integer from 0 to 4294967295, found u64 1099511627776");
        assert!(m.u32("b").is_err() && m.u64("b").is_err() && m.u32("pi").is_err() && m.u32("yes").is_err());
        assert_eq!(m.u32("absent").unwrap(), None);
        assert_eq!(m.need_u32("absent").unwrap_err().to_string(), "absent: missing");
    }

    #[test]
    fn other_types() {
        let bytes = file();
        let d = parse(&bytes).unwrap();
        let m = d.metadata(&bytes);
        assert_eq!(m.need_f32("pi").unwrap(), 3.25);
        assert!(m.f32("huge").is_err() && m.f32("a").is_err());
        assert!(m.need_bool("yes").unwrap());
        assert_eq!(m.need_text("name").unwrap(), "onlay");
        assert_eq!(m.get("latin"), Some(Value::Bytes(b"\xe9t\xe9")));
        let text = m.text("latin").unwrap_err().to_string();
        assert!(text.ends_with("(not UTF-8)"), "{text}");
        assert_eq!(m.need_i32s("ids").unwrap(), [1, -2, 3]);
        assert!(m.u32s("ids").is_err() && m.f32s("ids").is_err() && m.i32s("a").is_err());
        assert_eq!(m.need_bools("flags").unwrap(), [true, false]);
        assert_eq!(m.need_f32s("rates").unwrap(), [0.5, 2.0]);
        assert_eq!(m.need_texts("words").unwrap().iter().collect::<Vec<_>>(), [&b"x"[..], b""]);
        assert!(m.need_u32s("none").unwrap().is_empty());
        assert_eq!(m.keys().count(), m.len());
        assert_eq!(m.iter().next(), Some(("a", Value::U8(7))));
    }

    #[test]
    fn errors_name_the_file() {
        let bytes = file();
        let d = parse(&bytes).unwrap().in_file(Path::new("dir/base.gguf"));
        let text = d.metadata(&bytes).need_text("tokenizer.chat_template").unwrap_err().to_string();
        assert_eq!(text, "dir/base.gguf: tokenizer.chat_template: missing");
    }
}
