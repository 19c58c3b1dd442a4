//! Layers: one file per method, and their files on disk.

mod lora;

pub use lora::{Lora, Part};
