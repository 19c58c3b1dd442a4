//! What a step means: every operation's forward and backward, side by side.
//!
//! A program is a list of [`Step`]s over named registers. A step is one of a dozen words; each is a file here, with its
//! equations at the head, and implements [`Operation`], whose two halves are both required.
//!
//! Gradients are added: before a segment's backward pass its gradient registers are cleared, and every operation adds
//! into the gradients of what it read.

mod add;
mod attend;
pub(crate) mod back;
mod dense;
mod embed;
mod gate;
mod hook;
mod host;
pub mod kv;
pub(crate) mod linear;
mod norm;
mod product;
mod rotate;
mod scratch;
mod step;

pub use add::Add;
pub use attend::Attend;
pub use back::{output_products, product_back};
pub use embed::Embed;
pub use gate::Gate;
pub use hook::{Backward, Base, Delta, Dropped, Lent, Pair, Pairs, Site};
pub use host::{Batch, Host, Span, Tables};
pub use linear::{FEW, Linear, Output, base_product};
pub use norm::Norm;
pub(crate) use norm::add_weight_back;
pub use product::{Factor, add_product};
pub use rotate::{Rotate, Turns};
pub use scratch::{Needs, Room, Scratch};
pub use step::{MatrixId, Operation, Step, VectorId};
