//! Row views, frozen matrices, mapped weights, frames, the thread team.

mod frame;
mod mat;
mod matrix;
mod slots;
mod team;
mod weights;

pub use frame::{Frame, Reading, Register, Writing};
pub use mat::{Block, Chunks, Grid, Mat, MatMut};
pub use matrix::{Matrix, Storage};
pub use slots::Slots;
pub use team::{Team, Threads};
pub use weights::{Identity, Location, TensorRef, Weights};
