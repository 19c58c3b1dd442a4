//! Layers: one file per method, their files on disk, what a session wears, and folding into a base.
//!
//! ```text
//! layer               what is fastened where, and its numbers
//! effect              what numbers can do, as rules that all other files ask
//! lora, dora, ia3,
//!   vera, whole,
//!   norms, tokens,
//!   bottleneck, bias  what a layer computes, forward and backward          one file per effect
//! methods, new        all of them, and a layer made as asked; svd for starts that take from the base
//! names, targets      what its places are called, here and elsewhere
//! open, manifest      an adapter: one immutable, identified layer, and where it comes from
//! gguf, peft          its files; gather puts the tensors of either together; contents reads them without a base
//! worn                some adapters on a session
//! merge               adapters folded into a base
//! ```

mod bias;
mod bottleneck;
mod contents;
mod dora;
mod effect;
mod gather;
mod gguf;
mod ia3;
mod layer;
mod lora;
pub mod manifest;
mod merge;
mod methods;
mod names;
mod new;
mod norms;
mod open;
mod pattern;
mod peft;
mod svd;
mod targets;
mod tokens;
mod vera;
mod whole;
mod worn;

pub use contents::{Contents, Form, Half};
pub use layer::{Effect, Layer, Layer as Lora, Part};
pub use manifest::Manifest;
pub use merge::{MergeOptions, MergeReport, Merged, NOTE, merge};
pub use methods::{METHODS, Method};
pub use names::Names;
pub use new::{Init, New, Places, Scaling};
pub use onlay_kernels::activate::{ACTIVATIONS, Activation};
pub use open::{Adapter, Warning};
pub use targets::Targets;
pub use worn::Worn;
