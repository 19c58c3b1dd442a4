//! What an adapter's files say by themselves, before there is a base to hold them against.
//!
//! Enough to list and look at adapters. Nothing here is checked beyond what it takes to read it: whether a layer can be
//! worn is for [`Adapter::open`](super::Adapter::open).

use super::effect::Key;
use super::gather::key_of;
use super::manifest::Manifest;
use super::{gguf, peft};
use crate::error::{Error, Kind, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// What kind of files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One GGUF file.
    Gguf,
    /// A PEFT directory.
    Peft,
}

impl Form {
    /// `gguf` or `peft`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Gguf => "gguf",
            Form::Peft => "peft",
        }
    }
}

/// One matrix of a layer, as its file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// The name.
    pub name: String,
    /// The type of its numbers.
    pub kind: String,
    /// Rows, then columns.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// What was read.
    pub form: Form,
    /// Its name, for people.
    pub name: String,
    /// What it says of where it comes from; empty lines in a file of another program.
    pub manifest: Manifest,
    /// Its method: one of [`METHODS`](super::METHODS) by name, or what the files call another.
    pub method: String,
    /// The ranks there are.
    pub ranks: BTreeSet<usize>,
    /// Its α, where it says one.
    pub alpha: Option<f64>,
    /// Its matrices, in the file's order.
    pub halves: Vec<Half>,
    /// A PEFT directory's configuration.
    pub config: Option<Value>,
}

impl Contents {
    /// Reads a GGUF adapter file or a PEFT directory.
    ///
    /// # Errors
    /// `Io`, `Format`; `Argument` for a file that is no adapter; what is wrong with the manifest.
    pub fn read(path: impl AsRef<Path>) -> Result<Contents> {
        let path = path.as_ref();
        if path.is_dir() && !path.join("adapter_config.json").exists() {
            let (expected, found) =
                ("a GGUF file or a PEFT directory", "a directory without adapter_config.json");
            return Err(Error::expected(Kind::Argument, "path", expected, found).in_file(path));
        }
        let found = if path.is_dir() { peft::contents(path) } else { gguf::contents(path) };
        found.map_err(|e| e.in_file(path))
    }

    /// How many places it reaches.
    pub fn parts(&self) -> usize {
        let spelling: fn(&'static Key) -> &'static str = match self.form {
            Form::Gguf => |key| key.gguf,
            Form::Peft => |key| key.peft,
        };
        let places = self.halves.iter().filter_map(|h| Some(key_of(&h.name, spelling)?.0));
        places.collect::<BTreeSet<_>>().len()
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> u64 {
        self.halves.iter().map(|h| h.bytes).sum()
    }
}
