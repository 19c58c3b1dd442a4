//! Where layers are fastened.
//!
//! The floors above implement these traits (one file per adapter method); the operations call them.

use super::{Host, VectorId};
use crate::tensor::{Block, Mat, MatMut, Matrix};
use onlay_kernels::Level;
use std::ops::Range;
use std::sync::RwLockReadGuard;

/// Names a place where a layer may be fastened: one base product of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(pub u32);

/// Its number.
impl From<Site> for usize {
    fn from(site: Site) -> usize {
        site.0 as usize
    }
}

/// Numbers that a layer lends while they are used.
pub type Lent<'a> = RwLockReadGuard<'a, Vec<f32>>;

/// A layer on a sequence: around base products, in place of vectors and embeddings, in front of the cached keys. A layer
/// without a word for a place leaves it as it is.
///
/// # Around a product
/// ```text
/// u = enter(x)                         [rows, inputs]      what the base multiplies
/// h = prepare(x)                       [rows, width]
/// z = finish(leave(W'·u, bias), h)     [rows, outputs]     W' = matrix, or W; leave is the sum unless the layer says otherwise
/// y = follow(z)                        [rows, outputs]
/// ```
/// in phases that the members of a team share: `enter` and `follow` by rows, `prepare` by hidden units, `finish` and
/// `leave` by outputs. Each row is computed alike whatever rows it is computed with.
///
/// # Elsewhere
/// ```text
/// vector     stands in for a norm's weight
/// head       what that row differs by, in a head that shares the table
/// embedding  the row of a token: of another one than the table's, or of one that is in no vocabulary
/// virtual    rows in front of a sequence, tokens vocabulary, vocabulary + 1 … (prompt tuning)
/// prefix     keys and values in front of a sequence's own, in every layer (prefix tuning)
/// ```
pub trait Delta: Send + Sync {
    /// Whether the layer changes what the base multiplies at this site.
    fn enters(&self, _: Site) -> bool {
        false
    }

    /// `u = enter(x)` for rows `first_row..` of the batch, both `[rows][inputs]`. `spare` is memory of the calling member.
    fn enter(&self, _: Level, _: Site, _first_row: usize, x: Mat<'_>, u: &mut [f32], _spare: &mut Vec<f32>) {
        u.copy_from_slice(x.data());
    }

    /// The matrix `[outputs][inputs]` that stands in for the base's at this site.
    fn matrix(&self, _: Site) -> Option<Lent<'_>> {
        None
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

    /// Asks memory for what `finish` will need for the outputs `first..first + width`.
    fn soon(&self, _level: Level, _site: Site, _first: usize, _width: usize) {}

    /// How many hidden numbers per row the layer wants at this site; 0 where it has none.
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

    /// Changes rows `rows` of `y`, which hold the base's outputs `first..`, at a site with hidden numbers. Row i of the
    /// block has them at `h[i · stride ..]`. `spare` is memory of the calling member.
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

    /// Whether the layer changes whole rows of the product's result at this site.
    fn follows(&self, _: Site) -> bool {
        false
    }

    /// `y = follow(y)` for rows `first_row..` of the batch, `[rows][outputs]`, in place.
    fn follow(&self, _: Level, _: Site, _first_row: usize, _y: MatMut<'_>, _spare: &mut Vec<f32>) {}

    /// The vector that stands in for one of the base's norms.
    fn vector(&self, _: VectorId) -> Option<Lent<'_>> {
        None
    }

    /// Whether some tokens have embeddings of the layer's.
    fn embeds(&self) -> bool {
        false
    }

    /// Writes the embedding of a token, if it is the layer's.
    fn embedding(&self, _token: u32, _row: &mut [f32]) -> bool {
        false
    }

    /// Adds to the logits of a row x at the end of the program what the layer's embeddings differ by, where the head shares
    /// the table.
    fn head(&self, _: Level, _x: &[f32], _logits: &mut [f32]) {}

    /// Rows in front of a sequence, whose tokens are those behind the vocabulary.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Positions in front of a sequence that have keys and values of the layer's, and no rows.
    fn prefix(&self) -> usize {
        0
    }

    /// Positions in front of a sequence's own tokens: first those of [`Delta::prefix`], which every row sees, then the rows of
    /// [`Delta::virtual_tokens`], which are causal among themselves. The sequence's first token stands at this position.
    fn lead(&self) -> usize {
        self.prefix() + self.virtual_tokens()
    }

    /// Keys and values `[key heads · head]` of a position below [`Delta::prefix`], as the cache keeps them: keys are
    /// turned already.
    fn prefix_row(&self, _layer: usize, _position: usize, _key: &mut [f32], _value: &mut [f32]) {}

    /// The layer as low-rank pairs, if it is nothing else: what a device can wear.
    fn pairs(&self) -> Option<&dyn Pairs> {
        None
    }
}

/// A low-rank pair beside a product: `y += scale·(x·Aᵀ)·B`.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// A `[rank][inputs]`
    pub a: &'a [f32],
    /// B `[rank][outputs]`
    pub b: &'a [f32],
    /// Hidden numbers.
    pub rank: usize,
    /// The first so many of them learn.
    pub learned: usize,
    /// What the product is multiplied with.
    pub scale: f32,
}

/// How inputs of pairs are dropped: of 65,536 so many, drawn by a seed and the names of the batch's rows.
#[derive(Debug)]
pub struct Dropped<'a> {
    /// How many.
    pub rate: u64,
    /// The seed.
    pub seed: u64,
    /// One for each row; none while nothing is dropped.
    pub names: RwLockReadGuard<'a, Vec<u64>>,
}

/// A layer that is low-rank pairs at products and nothing else.
pub trait Pairs {
    /// Names its numbers: which layer, and how often they have changed.
    fn stamp(&self) -> [u64; 2];

    /// Gives `take` the pairs at a site.
    fn pairs_at(&self, site: Site, take: &mut dyn FnMut(Pair<'_>));

    /// How their inputs are dropped, if they are.
    fn dropped(&self) -> Option<Dropped<'_>>;
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
    /// Whether the layer is at this site: it then has the backward pass there.
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

    /// Adds what a device computed in place of [`Backward::backward`] to the gradients of the pair at `site`: of the units
    /// that learn, `[learned][inputs]` and `[learned][outputs]`.
    fn pair_back(&self, _: Site, _da: &[f32], _db: &[f32]) {}

    /// Whether the layer learns a vector in place of this one.
    fn learns_vector(&self, _: VectorId) -> bool {
        false
    }

    /// Adds to the gradient of that vector.
    fn vector_back(&self, _: VectorId, _grad: &[f32]) {}

    /// Whether the layer learns embeddings.
    fn learns_embeddings(&self) -> bool {
        false
    }

    /// Adds to the gradients of its embeddings, from those of a batch's rows, its virtual tokens among them: once a pass.
    fn embedding_back(&self, _tokens: &[u32], _dy: Mat<'_>) {}

    /// Adds to the gradients of its embeddings, and to that of a row x, from those of [`Delta::head`]'s logits.
    fn head_back(&self, _: Level, _x: &[f32], _dlogits: &[f32], _dx: &mut [f32]) {}

    /// Whether the layer learns keys and values in front of sequences.
    fn learns_prefix(&self) -> bool {
        false
    }

    /// Adds to the gradients of the prefix of one layer: keys, then values, `[positions][key heads · head]` each, summed over
    /// the sequences of a pass in their order. Called once a pass and layer, from the last layer to the first.
    fn prefix_back(&self, _layer: usize, _keys: &[f32], _values: &[f32]) {}
}
