//! Layers: one file per method, their files on disk, what a session wears, and folding into a base.
//!
//! ```text
//! layer, part         what is fastened where, and its numbers; dropout: its inputs while it learns
//! effect              what numbers can do, as rules that all other files ask
//! lora, dora, ia3,
//!   vera, whole,
//!   norms, tokens,
//!   prefix, prompt,
//!   loha, lokr,
//!   adalora, bias,
//!   bottleneck        what a layer computes, forward and backward          one file per effect
//! front, encoder      what stands in front of a sequence, and what makes it while it learns
//! methods, new        all of them, and a layer made as asked; svd for starts that take from the base
//! names, targets      what its places are called, here and elsewhere
//! open, manifest      an adapter: one immutable, identified layer, and where it comes from
//! gguf, peft          its files; gather puts the tensors of either together; contents reads them without a base
//! worn                some adapters on a session; pairs: what of it a device can wear
//! merge, combine      adapters folded into a base, or into one LoRA
//! ```

mod adalora;
mod bias;
mod bottleneck;
mod combine;
mod contents;
mod dora;
mod dropout;
mod effect;
mod encoder;
mod front;
mod gather;
mod gguf;
mod ia3;
mod layer;
mod loha;
mod lokr;
mod lora;
pub mod manifest;
mod merge;
mod methods;
mod names;
mod new;
mod norms;
mod open;
mod pairs;
mod part;
mod pattern;
mod peft;
mod prefix;
mod prompt;
mod svd;
mod targets;
mod tokens;
mod vera;
mod whole;
mod worn;

pub use adalora::Budget;
pub use combine::{Combined, combine};
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
