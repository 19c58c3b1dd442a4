//! `adapter_model.safetensors`: one matrix at a time, from where it lies in the file.
//!
//! ```text
//! u64 length, then so many bytes of JSON: NAME → { dtype, shape, data_offsets }, "__metadata__" → texts; then the data
//! ```
//! The crate `safetensors` reads and checks the header. Writing is here: the crate would put the texts into the file in
//! a different order each time.

use super::super::contents::Half;
use crate::error::{Error, Kind, Place, Result};
use onlay_kernels::half::{bf16_to_f32, f16_to_f32};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The longest header, as in the crate; an adapter's has some tens of kilobytes.
const LONGEST: u64 = 100_000_000;

/// An open file.
pub(super) struct Tensors {
    file: RefCell<File>,
    metadata: Metadata,
    /// Where the data begins.
    start: u64,
}

impl Tensors {
    /// Reads the header of a file and holds it against the file's length.
    pub(super) fn open(path: &Path) -> Result<Tensors> {
        Self::from_file(path).map_err(|e| e.in_file(path))
    }

    fn from_file(path: &Path) -> Result<Tensors> {
        let io = |e| Error::io("read", path, e);
        let found = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if !found.is_file() {
            return Err(Error::expected(Kind::Argument, "path", "a file", "something else"));
        }
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file.metadata().map_err(io)?.len();
        let bad = |text: String| Error::new(Kind::Format, text);
        let mut head = [0; 8];
        if len < 8 {
            return Err(bad(format!("{len} bytes are no safetensors file")));
        }
        file.read_exact(&mut head).map_err(io)?;
        let header = u64::from_le_bytes(head);
        if header > (len - 8).min(LONGEST) {
            let most = format!("at most {}", (len - 8).min(LONGEST));
            return Err(Error::expected(Kind::Format, "bytes of the header", most, header));
        }
        let mut text = vec![0; header as usize]; // at most 100 MB
        file.read_exact(&mut text).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|e| bad(format!("the header cannot be read: {e}")))?;
        let data = len - 8 - header;
        if metadata.data_len() as u64 != data {
            return Err(Error::expected(Kind::Format, "bytes of data", metadata.data_len(), data));
        }
        Ok(Tensors { file: RefCell::new(file), metadata, start: 8 + header })
    }

    /// Names, in the order of their data.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// What the header says of each, in the order of their data.
    pub(super) fn all(&self) -> impl Iterator<Item = Half> + '_ {
        self.names().into_iter().filter_map(|name| {
            let info = self.metadata.info(&name)?;
            let (first, end) = info.data_offsets;
            let (kind, bytes) = (format!("{:?}", info.dtype), (end - first) as u64);
            Some(Half { kind, shape: info.shape.clone(), bytes, name })
        })
    }

    /// One of the texts beside the tensors.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.metadata.metadata().as_ref()?.get(key).cloned()
    }

    /// Rows and columns of a tensor of floating-point numbers; a `vector` may have only the latter.
    pub(super) fn shape(&self, name: &str, vector: bool) -> Result<(usize, usize)> {
        let info = self.metadata.info(name).ok_or_else(|| Error::new(Kind::Format, "missing"))?;
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::expected(Kind::Unsupported, "type", "F32, F16 or BF16", info.dtype));
        }
        match info.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
            [cols] if vector && cols > 0 => Ok((1, cols)),
            _ => Err(Error::expected(Kind::Format, "shape", "rows and columns", format!("{:?}", info.shape))),
        }
    }

    /// Whether a tensor has no number.
    pub(super) fn is_empty(&self, name: &str) -> bool {
        self.metadata.info(name).is_some_and(|info| info.shape.contains(&0))
    }

    /// The numbers of a tensor that [`Tensors::shape`] has found good.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        let unreadable = |e: std::io::Error| {
            Error::new(Kind::Io, format!("cannot read: {e}")).at(Place::Tensor(name.into()))
        };
        let info = self.metadata.info(name).ok_or_else(|| Error::new(Kind::Internal, "no such tensor"))?;
        let (first, end) = info.data_offsets;
        let mut bytes = vec![0; end - first]; // checked against the file's length by open()
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.start + first as u64)).map_err(unreadable)?;
        file.read_exact(&mut bytes).map_err(unreadable)?;
        let halves = |one: fn(u16) -> f32| {
            bytes.as_chunks::<2>().0.iter().map(|b| one(u16::from_le_bytes(*b))).collect::<Vec<f32>>()
        };
        Ok(match info.dtype {
            Dtype::F16 => halves(f16_to_f32),
            Dtype::BF16 => halves(bf16_to_f32),
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        })
    }
}

/// An F32 matrix to be written.
pub(super) struct Matrix<'a> {
    pub name: String,
    /// Rows and columns, or only columns.
    pub shape: Vec<usize>,
    /// Gives its numbers, row after row, when its turn comes.
    pub numbers: Box<dyn FnOnce() -> Vec<f32> + 'a>,
}

/// Writes matrices, and texts beside them.
pub(super) fn write(out: &mut dyn Write, texts: &[(&str, String)], matrices: Vec<Matrix<'_>>) -> Result<()> {
    let mut header = Map::new();
    let texts: Map<_, _> = texts.iter().map(|(k, v)| ((*k).to_owned(), Value::from(v.as_str()))).collect();
    header.insert("__metadata__".into(), texts.into());
    let mut at = 0;
    for Matrix { name, shape, .. } in &matrices {
        let end = at + 4 * shape.iter().product::<usize>();
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), info);
        at = end;
    }
    let mut header = Value::from(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let unwritten = |e: std::io::Error| Error::new(Kind::Io, format!("cannot write: {e}"));
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(unwritten)?;
    out.write_all(header.as_bytes()).map_err(unwritten)?;
    for matrix in matrices {
        for v in (matrix.numbers)() {
            out.write_all(&v.to_le_bytes()).map_err(unwritten)?;
        }
    }
    Ok(())
}
