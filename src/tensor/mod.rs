//! Row views, frozen matrices, mapped weights, frames, the thread team.

mod frame;
mod mat;
mod slots;
mod team;

pub use frame::{Frame, Reading, Register, Writing};
pub use mat::{Block, Grid, Mat, MatMut};
pub use slots::Slots;
pub use team::Team;
