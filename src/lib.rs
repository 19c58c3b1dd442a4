//! Onlay: an embedded engine that serves and trains over one memory-mapped, quantized GGUF base.
//!
//! An *onlay* is a thin layer fastened on top of a solid piece. The solid piece is a base model in a GGUF file, mapped
//! and never written; the layer is a small set of trained parameters (LoRA and its relatives). One process, one copy of
//! the weights, one definition of the model: it serves, it learns, it publishes what it learned, and it can take the
//! layer off again, after which every output is bit for bit the base's.
//!
//! # Which room to enter
//! Each floor uses only what is below it (`tests/layering.rs` holds them to it):
//!
//! ```text
//! 11 faces     capi  cli      the C interface, the command line
//! 10 engine    engine         sessions, sampling, batching, adapter slots
//!  9 eval      eval           scoring, perplexity
//!  8 train     train          data, schedules, the optimiser, checkpoints, the plan of a run
//!  7 adapter   adapter        one file per method; adapter files (PEFT, GGUF); merging
//!  6 model     model          families as programs, binding, execution, keys and values
//!  5 backend   backend        who executes a step: the host, a GPU
//!  4 ops       ops            what a step means: forward and backward side by side
//!  3 tensor    tensor         row views, frozen matrices, mapped weights, frames, the thread team
//!  2 format    format  text   bytes on disk; tokens and chat text
//!  1 base      error  rng     leaves
//!  0 kernels   onlay-kernels  block formats and SIMD, the crate beside this one
//! ```

pub mod error;
pub mod rng;

pub mod format;
pub mod text;

pub mod tensor;

pub mod ops;

pub mod backend;

pub mod model;

pub mod adapter;

pub mod train;

pub mod eval;

pub mod engine;

#[cfg(feature = "capi")]
mod capi;

pub use error::{Error, Kind, Result};

// The README's example is compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
