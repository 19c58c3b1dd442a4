//! Where layers are fastened: around a product with a base matrix.
//!
//! The floors above implement these traits (one file per adapter method); the product calls them.

use super::Host;
use crate::tensor::{Block, Mat, MatMut};
use onlay_kernels::Level;
use std::ops::Range;

/// Names a place where a layer may be fastened: one base product of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(pub u32);

/// A layer around base products, in two phases so that the members of a team can share the work.
///
/// # Forward
/// ```text
/// h = prepare(x)                     [rows, width]
/// y = finish(W·x + bias, h)          [rows, outputs]
/// ```
pub trait Delta: Send + Sync {
    /// How many hidden numbers per row the layer wants at this site; 0 where it has nothing to say.
    fn width(&self, site: Site) -> usize;

    /// Writes hidden units `units` of each row of `x` (rows `first_row..` of the batch) into `h`, `[rows][units]`.
    /// `spare` is memory of the calling member.
    #[allow(clippy::too_many_arguments)]
    fn prepare(
        &self,
        level: Level,
        site: Site,
        first_row: usize,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        spare: &mut Vec<f32>,
    );

    /// Changes rows `rows` of `y`, which hold the base's outputs `first..`. Row i of the block has the hidden numbers
    /// `h[i · stride ..]`. `spare` is memory of the calling member.
    #[allow(clippy::too_many_arguments)]
    fn finish(
        &self,
        level: Level,
        site: Site,
        h: &[f32],
        stride: usize,
        first: usize,
        y: &mut Block<'_>,
        rows: Range<usize>,
        spare: &mut Vec<f32>,
    );
}

/// The training side of a layer. Its gradients lie behind locks of its own, so that the layer can be worn meanwhile.
pub trait Backward {
    /// Whether the layer learns anything at this site.
    fn learns(&self, site: Site) -> bool;

    /// Adds the layer's gradients at `site`, from its input and the gradient of its output, and its share of the
    /// gradient of the input if that is wanted.
    fn backward(&self, host: &mut Host<'_>, site: Site, x: Mat<'_>, dy: Mat<'_>, dx: Option<MatMut<'_>>);
}
