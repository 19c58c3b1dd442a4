//! What a step has at hand while the host executes it.

use super::kv::Pool;
use super::{Backward, Delta, MatrixId, Needs, Scratch, Turns, VectorId};
use crate::tensor::{Chunks, Frame, MatMut, Matrix, Register, Team};
use onlay_kernels::Level;
use std::ops::Range;

/// Rows of one sequence inside a batch.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    /// First row.
    pub first: usize,
    /// How many rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// The sequence's tiles of keys and values, in order; enough for its last position.
    pub tiles: &'a [u32],
    /// The layer this sequence wears.
    pub delta: Option<&'a dyn Delta>,
}

impl Span<'_> {
    /// Nothing.
    pub const NONE: Span<'static> = Span { first: 0, rows: 0, position: 0, tiles: &[], delta: None };

    /// Its rows in the batch.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.rows
    }
}

impl std::fmt::Debug for Span<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rows {:?} from position {}", self.range(), self.position)
    }
}

/// Tokens cut into spans; everything is rows, there is no padding.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// One token per row.
    pub tokens: &'a [u32],
    /// Their sequences, in order, covering all rows.
    pub spans: &'a [Span<'a>],
    /// The rows in pieces that lie inside one span: what members take at a time. See [`Batch::cut`].
    pub pieces: &'a [Range<usize>],
}

impl Batch<'_> {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Cuts spans into pieces of at most `longest` rows.
    pub fn cut(spans: &[Span<'_>], longest: usize, pieces: &mut Vec<Range<usize>>) {
        pieces.clear();
        for span in spans {
            for first in span.range().step_by(longest) {
                pieces.push(first..(first + longest).min(span.range().end));
            }
        }
    }

    /// The span of a row.
    pub fn span_of(&self, row: usize) -> &Span<'_> {
        // Few spans; the rows ascend.
        self.spans.iter().find(|s| s.range().contains(&row)).expect("spans cover the rows")
    }
}

/// Bound weights by name, as the model floor holds them.
pub trait Tables: Sync {
    /// A base matrix.
    fn matrix(&self, id: MatrixId) -> Matrix<'_>;
    /// A vector.
    fn vector(&self, id: VectorId) -> &[f32];
    /// Cosines and sines.
    fn turns(&self) -> &Turns;
}

/// Below this many numbers a member's waking costs more than its work.
const WORTH: usize = 16_384;

/// Everything a step touches.
pub struct Host<'a> {
    /// Instructions to use.
    pub level: Level,
    /// The threads.
    pub team: &'a mut Team,
    /// Bound weights.
    pub tables: &'a dyn Tables,
    /// The rows.
    pub batch: Batch<'a>,
    /// Forward registers.
    pub frame: &'a Frame,
    /// Their gradients, in a backward pass.
    pub grads: Option<&'a Frame>,
    /// Keys and values.
    pub kv: &'a mut Pool,
    /// Planned memory for the inside of operations.
    pub scratch: &'a Scratch,
    /// Registers whose gradient something below will use, in a backward pass; all if absent.
    pub wanted: Option<&'a [bool]>,
    /// The layer being trained, in a backward pass.
    pub learner: Option<&'a dyn Backward>,
}

impl<'a> Host<'a> {
    /// The gradient registers. Panics in a forward pass.
    pub fn grads(&self) -> &'a Frame {
        self.grads.expect("a backward pass has gradient registers")
    }

    /// Whether anything will use the gradient of a register.
    pub fn wants(&self, r: Register) -> bool {
        self.wanted.is_none_or(|w| w[usize::from(r.0)])
    }

    /// Runs `f` on row pieces of `to`, spread over the team if there is enough to do. `f(first row, rows)`.
    pub(super) fn over_rows(&mut self, to: MatMut<'_>, f: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = to.cols();
        let data = to.data();
        if data.len() < WORTH || self.team.is_alone() {
            return f(0, data);
        }
        let rows = (WORTH / 4 / cols).max(1);
        let pieces = Chunks::new([data], rows * cols);
        self.team.run(&|_| {
            while let Some((i, [part])) = pieces.next() {
                f(i * rows, part);
            }
        });
    }

    /// As `over_rows`, for two matrices of the same shape.
    pub(super) fn over_rows_of_two(
        &mut self,
        a: MatMut<'_>,
        b: MatMut<'_>,
        f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        let cols = a.cols();
        assert_eq!(cols, b.cols(), "two matrices of one shape");
        let (a, b) = (a.data(), b.data());
        if a.len() < WORTH || self.team.is_alone() {
            return f(0, a, b);
        }
        let rows = (WORTH / 4 / cols).max(1);
        let pieces = Chunks::new([a, b], rows * cols);
        self.team.run(&|_| {
            while let Some((i, [a, b])) = pieces.next() {
                f(i * rows, a, b);
            }
        });
    }

    /// What this host's scratch was planned for.
    pub fn needs(&self) -> &Needs {
        self.scratch.needs()
    }
}
