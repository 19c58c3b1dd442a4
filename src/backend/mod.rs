//! Who executes the steps of a program. [`Machine`] is the host; a device is another file beside it with the same
//! verbs, its registers, keys and values in its own memory.

mod host;

pub use host::{Machine, Plan};

use crate::ops::{Backward, Batch, MatrixId, Site, Step, Tables};
use crate::tensor::Register;

/// Executes steps over the rows of a batch, in its own planned memory.
pub trait Backend: Send {
    /// For people and `inspect`.
    fn name(&self) -> String;

    /// Says how many rows the next steps work on, and in which of the planned frames.
    fn begin(&mut self, rows: usize, frame: usize);

    /// Walks the list.
    fn forward(&mut self, tables: &dyn Tables, steps: &[Step], batch: Batch<'_>);

    /// Walks the list backward. Gradients are added to what the gradient registers hold. `wanted` says for each
    /// register whether its gradient is of use (all, if absent).
    fn backward(
        &mut self,
        tables: &dyn Tables,
        steps: &[Step],
        batch: Batch<'_>,
        wanted: Option<&[bool]>,
        learner: &dyn Backward,
    );

    /// Copies a register onto another of the same width.
    fn copy(&mut self, from: Register, to: Register);

    /// Fills the rows of a register.
    fn load(&mut self, to: Register, rows: &[f32]);

    /// Some rows of a register, beginning with `first`.
    fn save(&self, from: Register, first: usize, rows: &mut [f32]);

    /// Clears all gradient registers.
    fn clear_grads(&mut self);

    /// Fills the rows of a gradient register.
    fn load_grad(&mut self, to: Register, rows: &[f32]);

    /// The rows of a gradient register.
    fn save_grad(&self, from: Register, rows: &mut [f32]);

    /// `y [rows][outputs] = x [rows][inputs]·Wᵀ` with the layers of the batch's spans: the head.
    fn product(
        &mut self,
        tables: &dyn Tables,
        batch: Batch<'_>,
        at: (Site, MatrixId),
        x: &[f32],
        y: &mut [f32],
    );

    /// `dx += dy·W` and the layer's own gradients, for rows that are in no register: the head.
    #[allow(clippy::too_many_arguments)]
    fn product_back(
        &mut self,
        tables: &dyn Tables,
        batch: Batch<'_>,
        at: (Site, MatrixId),
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        learner: &dyn Backward,
    );

    /// Runs `f(i)` for every i below n, spread over whatever threads there are.
    fn each(&mut self, n: usize, f: &(dyn Fn(usize) + Sync));

    /// A cleared tile for keys and values, if one is left.
    fn take_tile(&mut self) -> Option<u32>;

    /// Takes tiles back.
    fn give_tiles(&mut self, tiles: &mut Vec<u32>);

    /// Tiles nobody owns.
    fn free_tiles(&self) -> usize;
}
