//! GGUF: the container of bases and of adapters.
//!
//! ```text
//! "GGUF"  u32 version (2 or 3)  u64 tensors  u64 keys
//! keys    × { string key, u32 type, value }                                          values: see value.rs
//! tensors × { string name, u32 n, u64 dims[n], u32 type, u64 offset }
//! padding to general.alignment (default 32)
//! data    each tensor at its offset from here, a multiple of the alignment
//! ```
//!
//! Everything is little-endian. `dims[0]` is the length of a row, the one that lies contiguously; a matrix of `rows`
//! rows and `cols` columns has the dims `[cols, rows]`. The specification is `docs/gguf.md` of the ggml project.
//!
//! # What is promised about a parsed file
//! [`parse`] trusts nothing. After it returned a [`Directory`], every string, array and tensor lies inside the bytes it
//! was given, every tensor is aligned and holds whole blocks, no two overlap, and no key or name occurs twice or
//! carries control characters. The directory keeps places in the file, no copies: at most about three times the bytes
//! of the table it read.
//!
//! Files written before August 2023 (version 1), big-endian files and the older `ggml` containers are refused by name.

mod cursor;
mod encode;
mod metadata;
mod reader;
pub mod split;
mod value;
mod writer;

pub use encode::{Element, Encoded};
pub use metadata::Metadata;
pub use reader::parse;
pub use value::{Array, Elements, Texts, TextsIter, Value, ValueType};
pub use writer::{Builder, Sink};

use crate::format::types::Type;
use std::path::{Path, PathBuf};

/// The first four bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub const VERSION: u32 = 3;
/// The alignment of tensors in a file that does not say.
pub const ALIGNMENT: u64 = 32;
/// The key that says otherwise.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The longest key, in bytes (the specification's limit; tensor names are held to it too).
pub const MAX_KEY: u64 = 65_535;
/// The most keys a file may have; real ones have tens.
pub const MAX_KEYS: u64 = 1 << 16;
/// The most tensors a file may have; the largest real ones have some tens of thousands.
pub const MAX_TENSORS: u64 = 1 << 20;

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    at: usize,
    len: usize,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.at..).and_then(|rest| rest.get(..self.len)).unwrap_or_default()
    }

    /// A stretch that was UTF-8 when the file was parsed.
    fn text(self, bytes: &[u8]) -> &str {
        std::str::from_utf8(self.of(bytes)).unwrap_or_default()
    }
}

/// A key and where its value lies.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    key: Span,
    kind: ValueType,
    value: Span,
}

/// One line of a file's tensor table.
///
/// The methods that take `bytes` want those the table was parsed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    name: Span,
    kind: Type,
    dims: [usize; 4],
    n_dims: usize,
    data: Span,
}

impl Tensor {
    /// The name.
    pub fn name<'a>(&self, bytes: &'a [u8]) -> &'a str {
        self.name.text(bytes)
    }

    /// The type of the weights.
    pub fn kind(&self) -> Type {
        self.kind
    }

    /// 1 to 4 lengths, none of them 0; the first is that of a row.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.n_dims]
    }

    /// How many weights.
    pub fn elements(&self) -> usize {
        self.dims().iter().product() // checked to fit when it was parsed
    }

    /// Where the weights begin, in bytes from the start of the file.
    pub fn offset(&self) -> usize {
        self.data.at
    }

    /// How many bytes the weights take.
    pub fn byte_len(&self) -> usize {
        self.data.len
    }

    /// The weights: whole blocks, row after row.
    pub fn data<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.data.of(bytes)
    }
}

/// What is where in one file.
#[derive(Clone, Debug, PartialEq)]
pub struct Directory {
    version: u32,
    alignment: u64,
    data_start: usize,
    file_len: usize,
    entries: Vec<Entry>,
    /// Indices into `entries` in the order of their keys.
    by_key: Vec<u32>,
    tensors: Vec<Tensor>,
    /// Indices into `tensors` in the order of their names.
    by_name: Vec<u32>,
    path: Option<PathBuf>,
}

impl Directory {
    /// The file's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensors are aligned to, in bytes; a power of two, at least 8.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensors' data begins, in bytes from the start; may lie past the end of a file without tensors.
    pub fn data_start(&self) -> usize {
        self.data_start
    }

    /// The length of the bytes that were parsed.
    pub fn file_len(&self) -> usize {
        self.file_len
    }

    /// Names the file in every error about its metadata.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The metadata; `bytes` are those that were parsed.
    pub fn metadata<'a>(&'a self, bytes: &'a [u8]) -> Metadata<'a> {
        Metadata::new(self, bytes)
    }

    /// The tensor table, in the file's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor called `name`; `bytes` are those that were parsed.
    pub fn tensor(&self, name: &str, bytes: &[u8]) -> Option<&Tensor> {
        let at = |&i: &u32| self.tensors[i as usize].name.of(bytes).cmp(name.as_bytes());
        let found = self.by_name.binary_search_by(at).ok()?;
        Some(&self.tensors[self.by_name[found] as usize])
    }

    fn entry(&self, key: &str, bytes: &[u8]) -> Option<&Entry> {
        let at = |&i: &u32| self.entries[i as usize].key.of(bytes).cmp(key.as_bytes());
        let found = self.by_key.binary_search_by(at).ok()?;
        Some(&self.entries[self.by_key[found] as usize])
    }
}
