//! Where layers are fastened: around a product with a base matrix.
//!
//! The floors above implement these traits (one file per adapter method); the product calls them.

use super::Host;
use crate::tensor::{Block, Mat, MatMut, Matrix};
use onlay_kernels::Level;
use std::ops::Range;

/// Names a place where a layer may be fastened: one base product of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(pub u32);

/// A layer around base products, in two phases so that the members of a team can share the work.
///
/// # Forward
/// ```text
/// u = enter(x)                       [rows, inputs]      what the base multiplies; x unless the layer says otherwise
/// h = prepare(x)                     [rows, width]
/// y = finish(leave(W·u, bias), h)    [rows, outputs]     leave is the sum unless the layer says otherwise
/// ```
/// A layer without a word for a site leaves it as it is: `enter` and `leave` are asked for only where
/// [`Delta::enters`] and [`Delta::leaves`] say so.
pub trait Delta: Send + Sync {
    /// Whether the layer changes what the base multiplies at this site.
    fn enters(&self, _: Site) -> bool {
        false
    }

    /// `u = enter(x)`, one row.
    fn enter(&self, _: Site, x: &[f32], u: &mut [f32]) {
        u.copy_from_slice(x);
    }

    /// Whether the layer changes the base's own product at this site.
    fn leaves(&self, _: Site) -> bool {
        false
    }

    /// `y = leave(y, bias)` for rows `rows` of `y`, which hold W·u for the outputs `first..`; `bias` is that of all
    /// outputs.
    fn leave(&self, _: Site, first: usize, bias: Option<&[f32]>, y: &mut Block<'_>, rows: Range<usize>) {
        let Some(bias) = bias else { return };
        for i in rows {
            y.row(i).iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
        }
    }

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

/// What the base does at a site.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// W `[outputs][inputs]`
    pub matrix: Matrix<'a>,
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
}

/// The training side of a layer. Its gradients lie behind locks of its own, so that the layer can be worn meanwhile.
pub trait Backward {
    /// Whether the layer learns anything at this site.
    fn learns(&self, site: Site) -> bool;

    /// The whole backward pass of the product at `site`, which the layer has changed: adds the layer's gradients, from
    /// its input and the gradient of its output, and the gradient of the input if that is wanted, the base's share
    /// included ([`product_back`](super::product_back)).
    fn backward(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    );
}
