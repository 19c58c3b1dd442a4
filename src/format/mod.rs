//! Bytes on disk: GGUF files, and writing files so that nothing is ever half there.

pub mod files;
pub mod gguf;
pub mod types;
