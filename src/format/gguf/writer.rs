//! Writing GGUF files (version 3).
//!
//! A [`Builder`] gathers metadata and a tensor table, checks all of it, and then streams: weights come from a slice or
//! from a callback at the moment their turn comes, so a file larger than memory can be written. Whatever
//! [`Builder::write`] accepts, [`parse`](super::parse) reads back equal.

use super::cursor::MAX_DEPTH;
use super::encode::{Element, Encoded};
use super::value::{Value, shown};
use super::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, MAX_KEY, MAX_KEYS, MAX_TENSORS, VERSION};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::gguf::Metadata;
use crate::format::types::Type;
use std::collections::HashSet;
use std::io::Write;

/// Tensor names longer than this cannot be loaded by llama.cpp (`GGML_MAX_NAME` is 64 with the closing zero).
const MAX_NAME: usize = 63;

/// Where the weights of one tensor go while they are written; it counts.
pub struct Sink<'w> {
    out: &'w mut dyn Write,
    left: u64,
}

impl Sink<'_> {
    /// Writes bytes of the weights.
    ///
    /// # Errors
    /// [`Kind::Io`] as the writer says; [`Kind::Argument`] if the tensor would get more bytes than its shape has.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let text = format!("{} bytes more than its shape has", bytes.len() as u64 - self.left);
            Error::new(Kind::Argument, text)
        })?;
        self.out.write_all(bytes).map_err(unwritten)
    }

    /// Writes the weights of an F32 tensor.
    ///
    /// # Errors
    /// As [`Sink::put`].
    pub fn put_f32s(&mut self, weights: &[f32]) -> Result<()> {
        let mut buffer = [0u8; 4096];
        for some in weights.chunks(buffer.len() / 4) {
            let (words, _) = buffer.as_chunks_mut::<4>();
            words.iter_mut().zip(some).for_each(|(to, w)| *to = w.to_le_bytes());
            self.put(&buffer[..4 * some.len()])?;
        }
        Ok(())
    }
}

fn unwritten(error: std::io::Error) -> Error {
    Error::new(Kind::Io, format!("cannot write: {error}"))
}

type Source<'a> = Box<dyn FnOnce(&mut Sink<'_>) -> Result<()> + 'a>;

struct Pending<'a> {
    name: String,
    kind: Type,
    dims: Vec<usize>,
    source: Source<'a>,
}

impl Pending<'_> {
    fn byte_len(&self) -> Option<u64> {
        let rows = self.dims.get(1..)?.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        rows.checked_mul(self.dims[0])?; // what a reader will count
        Some(self.kind.row_bytes(self.dims[0])?.checked_mul(rows)? as u64)
    }
}

/// A file that is being put together.
///
/// The methods that add cannot fail; [`Builder::write`] and [`Builder::file_len`] list everything that is wrong.
#[derive(Default)]
pub struct Builder<'a> {
    metadata: Vec<(String, Encoded<'a>)>,
    tensors: Vec<Pending<'a>>,
}

impl<'a> Builder<'a> {
    /// An empty file.
    pub fn new() -> Self {
        Builder::default()
    }

    /// Sets a key, in place where it is already there. `general.alignment` is obeyed.
    pub fn set(&mut self, key: &str, value: impl Into<Encoded<'a>>) -> &mut Self {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value,
            None => self.metadata.push((key.into(), value)),
        }
        self
    }

    /// Takes a key out, if it is there.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// Sets every key of another file, except those that say how it was split.
    pub fn copy(&mut self, from: Metadata<'a>) -> &mut Self {
        for (key, value) in from.iter().filter(|(key, _)| !key.starts_with("split.")) {
            self.set(key, value);
        }
        self
    }

    /// Adds a tensor whose weights are `bytes`. `dims[0]` is the length of a row.
    pub fn tensor(&mut self, name: &str, kind: Type, dims: &[usize], bytes: &'a [u8]) -> &mut Self {
        self.tensor_from(name, kind, dims, move |sink| sink.put(bytes))
    }

    /// Adds an F32 tensor. `dims[0]` is the length of a row.
    pub fn tensor_f32(&mut self, name: &str, dims: &[usize], weights: &'a [f32]) -> &mut Self {
        self.tensor_from(name, Type::F32, dims, move |sink| sink.put_f32s(weights))
    }

    /// Adds a tensor whose weights `source` delivers when they are to be written, exactly as many bytes as the shape
    /// has.
    pub fn tensor_from(
        &mut self,
        name: &str,
        kind: Type,
        dims: &[usize],
        source: impl FnOnce(&mut Sink<'_>) -> Result<()> + 'a,
    ) -> &mut Self {
        self.tensors.push(Pending { name: name.into(), kind, dims: dims.into(), source: Box::new(source) });
        self
    }

    /// The length of the file that would be written, in bytes.
    ///
    /// # Errors
    /// As [`Builder::write`], before anything is written.
    pub fn file_len(&self) -> Result<u64> {
        let (head, offsets) = self.head()?;
        Ok(head.len() as u64 + offsets.last().copied().unwrap_or(0))
    }

    /// Writes the file and says how many bytes it has. Neither buffers nor flushes: give it a buffered writer, and a
    /// file from [`write_atomically`](crate::format::files::write_atomically).
    ///
    /// # Errors
    /// [`Kind::Argument`], listing every key and tensor that cannot be written, before anything is written: names that
    /// are empty, twice there or too long, shapes that are not 1 to 4 lengths of whole blocks, sizes past counting.
    /// Then whatever the writer or a tensor's source says, and [`Kind::Argument`] for a source that delivers another
    /// number of bytes than its shape has.
    pub fn write(self, out: &mut dyn Write) -> Result<u64> {
        let (head, offsets) = self.head()?;
        out.write_all(&head).map_err(unwritten)?;
        for (tensor, place) in self.tensors.into_iter().zip(offsets.windows(2)) {
            let len = tensor.byte_len().unwrap_or(0); // checked by head()
            let mut sink = Sink { out: &mut *out, left: len };
            let done = (tensor.source)(&mut sink).and_then(|()| match sink.left {
                0 => Ok(()),
                left => Err(Error::new(Kind::Argument, format!("{left} bytes fewer than its shape has"))),
            });
            done.map_err(|e| e.at(Place::Tensor(tensor.name)))?;
            pad(out, place[1] - place[0] - len)?; // after the last one too: ggml reads whole multiples
        }
        Ok(head.len() as u64 + offsets.last().copied().unwrap_or(0))
    }

    /// Everything before the data, and where in the data each tensor begins, with the end of the data after them.
    fn head(&self) -> Result<(Vec<u8>, Vec<u64>)> {
        let mut wrong = Findings::default();
        let alignment = wrong.keep(self.check_keys()).unwrap_or(ALIGNMENT);
        let offsets = self.check_tensors(alignment, &mut wrong);
        wrong.refuse("the file cannot be written")?;

        let mut head = MAGIC.to_vec();
        VERSION.encode(&mut head);
        (self.tensors.len() as u64).encode(&mut head);
        (self.metadata.len() as u64).encode(&mut head);
        for (key, value) in &self.metadata {
            key.encode(&mut head);
            value.kind().id().encode(&mut head);
            head.extend_from_slice(value.bytes());
        }
        for (tensor, offset) in self.tensors.iter().zip(&offsets) {
            tensor.name.encode(&mut head);
            (tensor.dims.len() as u32).encode(&mut head); // 1 to 4
            tensor.dims.iter().for_each(|&d| (d as u64).encode(&mut head));
            tensor.kind.id().encode(&mut head);
            offset.encode(&mut head);
        }
        if !self.tensors.is_empty() {
            let padding = (head.len() as u64).next_multiple_of(alignment) - head.len() as u64;
            pad(&mut head, padding)?;
        }
        Ok((head, offsets))
    }

    fn check_keys(&self) -> Result<u64> {
        let mut wrong = Findings::default();
        let mut alignment = ALIGNMENT;
        let bad =
            |key: &str, text: String| Error::new(Kind::Argument, text).at(Place::Key(shown(key.as_bytes())));
        if self.metadata.len() as u64 > MAX_KEYS {
            wrong.push(Error::expected(
                Kind::Argument,
                "keys",
                format!("at most {MAX_KEYS}"),
                self.metadata.len(),
            ));
        }
        for (key, value) in &self.metadata {
            if key.is_empty() || key.len() as u64 > MAX_KEY || key.chars().any(char::is_control) {
                let text = format!("a key has 1 to {MAX_KEY} bytes and no control characters");
                wrong.push(bad(key, text));
            }
            if value.depth > MAX_DEPTH {
                wrong.push(bad(key, format!("arrays are nested deeper than {MAX_DEPTH}")));
            }
            if key == ALIGNMENT_KEY {
                let found = Value::read(value.kind(), value.bytes()).and_then(|v| v.integer());
                match found.and_then(|n| u32::try_from(n).ok()) {
                    Some(n) if n >= 8 && n.is_power_of_two() => alignment = n.into(),
                    _ => wrong.push(bad(key, "expected a power of two from 8 to 2^31".into())),
                }
            }
        }
        wrong.refuse("metadata").map(|()| alignment)
    }

    fn check_tensors(&self, alignment: u64, wrong: &mut Findings) -> Vec<u64> {
        if self.tensors.len() as u64 > MAX_TENSORS {
            let most = format!("at most {MAX_TENSORS}");
            wrong.push(Error::expected(Kind::Argument, "tensors", most, self.tensors.len()));
        }
        let mut seen = HashSet::new();
        let mut next = 0u64;
        let mut offsets = Vec::with_capacity(self.tensors.len() + 1);
        for tensor in &self.tensors {
            let mut bad = |text: String| {
                let name = shown(tensor.name.as_bytes());
                wrong.push(Error::new(Kind::Argument, text).at(Place::Tensor(name)));
            };
            let name = &tensor.name;
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                bad(format!("a name has 1 to {MAX_NAME} bytes and no control characters"));
            }
            if !seen.insert(name) {
                bad("the name is there twice".into());
            }
            let shape = &tensor.dims;
            if !(1..=4).contains(&shape.len()) || shape.contains(&0) {
                bad(format!("shape {shape:?}: expected 1 to 4 lengths above 0"));
                continue;
            }
            let Some(len) = tensor.byte_len() else {
                bad(format!(
                    "shape {shape:?}: expected rows of whole blocks of {} and a size that can be counted",
                    tensor.kind.block_len()
                ));
                continue;
            };
            offsets.push(next);
            let end = next.checked_add(len).and_then(|n| n.checked_next_multiple_of(alignment));
            match end.filter(|n| *n < 1 << 63) {
                Some(end) => next = end,
                None => bad("the file would have more bytes than can be counted".into()),
            }
        }
        offsets.push(next);
        offsets
    }
}

fn pad(out: &mut dyn Write, n: u64) -> Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), n), out).map(|_| ()).map_err(unwritten)
}

#[cfg(test)]
mod tests {
    use super::super::{Directory, ValueType, parse};
    use super::*;
    use crate::format::types::TYPES;
    use crate::rng::Rng;

    fn bytes_of(builder: Builder<'_>) -> Vec<u8> {
        let len = builder.file_len().unwrap();
        let mut out = Vec::new();
        assert_eq!(builder.write(&mut out).unwrap(), len);
        assert_eq!(out.len() as u64, len);
        out
    }

    /// A value of any type, arrays up to `depth`.
    fn any_value(rng: &mut Rng, depth: usize) -> Encoded<'static> {
        let mut text = |n| (0..rng.below(n)).map(|_| rng.next_u64() as u8).collect::<Vec<u8>>();
        let (a, b) = (text(40), text(12));
        let bits = rng.next_u64();
        match rng.below(if depth == 0 { 12 } else { 19 }) {
            0 => (bits as u8).into(),
            1 => (bits as i8).into(),
            2 => (bits as u16).into(),
            3 => (bits as i16).into(),
            4 => (bits as u32).into(),
            5 => (bits as i32).into(),
            6 => f32::from_bits(bits as u32).into(),
            7 => (bits % 2 == 0).into(),
            8 => bits.into(),
            9 => (bits as i64).into(),
            10 => f64::from_bits(bits).into(),
            11 => a.as_slice().into(),
            12 => Encoded::array(&[a.as_slice(), &b, &[]]),
            13 => Encoded::array(&a),
            14 => Encoded::array(&a.iter().map(|x| x % 2 == 0).collect::<Vec<_>>()),
            15 => Encoded::array(&a.iter().map(|x| f32::from(*x) * 0.5).collect::<Vec<_>>()),
            16 => Encoded::array(&b.iter().map(|x| i64::from(*x) - 100).collect::<Vec<_>>()),
            17 => Encoded::array::<u16>(&[]),
            _ => {
                let inner: Vec<_> = (0..rng.below(4)).map(|_| any_value(rng, depth - 1)).collect();
                let arrays: Vec<_> = inner.into_iter().filter(|v| v.kind() == ValueType::Array).collect();
                Encoded::arrays(&arrays).unwrap()
            }
        }
    }

    type Weights = (String, Type, Vec<usize>, Vec<u8>);

    fn any_tensor(rng: &mut Rng, i: usize) -> Weights {
        let kind = TYPES[rng.below(TYPES.len() as u64) as usize];
        let mut dims = vec![kind.block_len() * (1 + rng.below(3) as usize)];
        dims.extend((0..rng.below(4)).map(|_| 1 + rng.below(5) as usize));
        let len = kind.row_bytes(dims[0]).unwrap() * dims[1..].iter().product::<usize>();
        (format!("ß.{i}.{}", rng.below(100)), kind, dims, (0..len).map(|_| rng.next_u64() as u8).collect())
    }

    #[test]
    fn what_is_written_is_read() {
        let mut rng = Rng::new(20_240_817);
        for round in 0..200 {
            let values: Vec<_> =
                (0..rng.below(12)).map(|i| (format!("k.{i}"), any_value(&mut rng, 4))).collect();
            let tensors: Vec<_> = (0..rng.below(6) as usize).map(|i| any_tensor(&mut rng, i)).collect();
            let mut b = Builder::new();
            if round % 3 == 0 {
                b.set(ALIGNMENT_KEY, 8u32 << rng.below(8));
            }
            for (key, value) in &values {
                b.set(key, value.clone());
            }
            for (name, kind, dims, bytes) in &tensors {
                b.tensor(name, *kind, dims, bytes);
            }
            let bytes = bytes_of(b);
            let d = parse(&bytes).unwrap();
            let m = d.metadata(&bytes);
            for (key, value) in &values {
                assert_eq!(&Encoded::from(m.get(key).unwrap()), value, "{key}");
            }
            same_tensors(&d, &bytes, &tensors);

            let mut again = Builder::new();
            again.copy(m);
            for t in d.tensors() {
                again.tensor(t.name(&bytes), t.kind(), t.dims(), t.data(&bytes));
            }
            assert_eq!(bytes_of(again), bytes);
        }
    }

    fn same_tensors(d: &Directory, bytes: &[u8], tensors: &[Weights]) {
        assert_eq!(d.tensors().len(), tensors.len());
        for (t, (name, kind, dims, weights)) in d.tensors().iter().zip(tensors) {
            assert_eq!((t.name(bytes), t.kind(), t.dims()), (name.as_str(), *kind, &dims[..]));
            assert_eq!(t.data(bytes), weights);
            assert_eq!(t.offset() as u64 % d.alignment(), 0);
        }
    }

    #[test]
    fn f32_weights_and_callbacks() {
        let weights: Vec<f32> = (0..3000).map(|i| i as f32 * 0.25).collect();
        let mut b = Builder::new();
        b.tensor_f32("w", &[1500, 2], &weights);
        b.tensor_from("c", Type::I8, &[3], |sink| sink.put(&[1]).and_then(|()| sink.put(&[2, 3])));
        let bytes = bytes_of(b);
        let d = parse(&bytes).unwrap();
        let back = d.tensor("w", &bytes).unwrap().data(&bytes);
        assert!(back.chunks(4).zip(&weights).all(|(b, w)| b == w.to_le_bytes()));
        assert_eq!(d.tensor("c", &bytes).unwrap().data(&bytes), [1, 2, 3]);
    }

    #[test]
    fn everything_wrong_is_listed_and_nothing_written() {
        let mut b = Builder::new();
        b.set("", 1u8).set(ALIGNMENT_KEY, 3u32);
        b.tensor("a", Type::Q4_0, &[33], &[]).tensor("a", Type::F32, &[0], &[]);
        b.tensor(&"n".repeat(64), Type::F32, &[1, 1, 1, 1, 1], &[]);
        b.tensor("huge", Type::F64, &[usize::MAX / 4, 2], &[]);
        let mut out = Vec::new();
        let error = b.write(&mut out).unwrap_err();
        assert!(out.is_empty());
        assert_eq!(error.kind(), Kind::Argument);
        let text = error.to_string();
        for part in ["2^31", "whole blocks of 32", "twice", "1 to 63 bytes", "1 to 4 lengths", "tensor huge"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_source_delivers_what_the_shape_has() {
        let attempt = |n: usize| {
            let mut b = Builder::new();
            b.tensor_from("w", Type::I8, &[4], move |sink| sink.put(&[0; 8][..n]));
            b.write(&mut Vec::new()).map_err(|e| e.to_string())
        };
        assert_eq!(attempt(3).unwrap_err(), "tensor w: 1 bytes fewer than its shape has");
        assert_eq!(attempt(5).unwrap_err(), "tensor w: 1 bytes more than its shape has");
        assert!(attempt(4).is_ok());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let n = bytes.len().min(self.0);
                self.0 -= n;
                if n == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(n) }
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let data = [7u8; 100];
        let file = || {
            let mut b = Builder::new();
            b.set("k", "v").tensor("w", Type::I8, &[100], &data).tensor("x", Type::I8, &[100], &data);
            b
        };
        let len = file().file_len().unwrap() as usize;
        for room in 0..len {
            assert_eq!(file().write(&mut Full(room)).unwrap_err().kind(), Kind::Io, "{room}");
        }
        assert!(file().write(&mut Full(len)).is_ok());
    }
}
