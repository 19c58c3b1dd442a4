//! The end of a program: the final norm and the logits, only of rows that somebody wants.
//!
//! ```text
//! x = rms_norm(stream[rows])         z = x·Wᵀ with the layers of the rows' spans
//! loss = log Σ eᶻ − z[target]        dz = scale·(softmax(z) − [target]), in the place of z
//! dx = dz·W                          dstream[rows] += rms_norm′(dx)
//! ```

use crate::ops::{Batch, MatrixId, Site, VectorId};
use crate::tensor::Register;

/// The end of a program over some rows.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Weight of the norm.
    pub norm: VectorId,
    /// Its epsilon.
    pub eps: f32,
    /// Where layers are fastened to the head.
    pub site: Site,
    /// `[vocabulary][width]`
    pub matrix: MatrixId,
    /// Whether that is the embedding table, in which layers may have rows of their own.
    pub shares: bool,
    /// The residual stream, in the frame at hand.
    pub from: Register,
    /// Its rows that are wanted.
    pub rows: &'a [u32],
    /// They as a batch of their own, with the layers they wear.
    pub batch: Batch<'a>,
}
