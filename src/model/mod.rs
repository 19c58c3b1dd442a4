//! Families as programs, binding, execution.

mod bind;
pub mod families;
mod open;
pub mod program;
mod quantize;
mod run;

pub use bind::Bound;
pub use open::Model;
pub use quantize::{MIXTURES, Mixture, Quantized, quantize};
pub(crate) use run::View;
pub use run::{MOST_SEQUENCES, Memory, Options, Request, Runner, Sequence, Wanted};
