//! Model families: one file each, one line in [`FAMILIES`].

mod hyper;
mod llama;
mod parts;
mod qwen2;
mod qwen3;

use super::program::Program;
use crate::error::{Error, Kind, Place, Result};
pub use hyper::Hyper;

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture` in the file.
    pub name: &'static str,
    /// Builds the program for a file.
    pub build: fn(&Hyper<'_>) -> Result<Program>,
}

/// Every family.
pub static FAMILIES: &[Family] = &[
    Family { name: "llama", build: llama::build },
    Family { name: "qwen2", build: qwen2::build },
    Family { name: "qwen3", build: qwen3::build },
];

/// The family of that name.
///
/// # Errors
/// `Unsupported`, with the list of those there are.
pub fn named(name: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
        Error::expected(Kind::Unsupported, "architecture", known.join(", "), format!("{name:?}"))
            .at(Place::Key("general.architecture".into()))
    })
}
