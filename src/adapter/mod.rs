//! Layers: one file per method, their files on disk, what a session wears, and folding into a base.
//!
//! ```text
//! lora                what a layer computes, forward and backward          one file per method
//! names, targets      what its places are called, here and elsewhere
//! open, manifest      an adapter: one immutable, identified layer, and where it comes from
//! gguf, peft          its files; gather puts the pairs of either together; contents reads them without a base
//! worn                some adapters on a session
//! merge               adapters folded into a base
//! ```

mod contents;
mod gather;
mod gguf;
mod lora;
pub mod manifest;
mod merge;
mod names;
mod open;
mod pattern;
mod peft;
mod targets;
mod worn;

pub use contents::{Contents, Form, Half};
pub use lora::{Lora, Part};
pub use manifest::Manifest;
pub use merge::{MergeOptions, MergeReport, Merged, NOTE, merge};
pub use names::Names;
pub use open::{Adapter, Warning};
pub use targets::Targets;
pub use worn::Worn;
