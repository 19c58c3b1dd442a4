//! Sessions over one model: what they have said, what they wear, and how the next tokens come.

pub mod bench;
mod generate;
mod sampler;
mod session;

pub use generate::{End, Flow, Generated, Limits};
pub use sampler::{Choice, Sampler};
pub use session::{Engine, EngineOptions, Layer, Session};
