//! DoRA (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024): a low-rank change of direction, and a length
//! of its own for every row. As PEFT's `use_dora`.
//!
//! # Forward
//! ```text
//! y = g∘(W·x + s·B·(A·drop(x))) + bias         gᵢ = mᵢ/‖Wᵢ + s·BᵢA‖
//! ```
//! # Backward
//! ```text
//! dm = Σ_rows dy∘(W·x + s·B·A·x)/‖·‖           the length ‖·‖ counts as a constant (the paper's §4.3)
//! ```
//! and that of LoRA and the base with g∘dy for dy.
//!
//! # Lengths without the sum
//! ```text
//! ‖Wᵢ + s·BᵢA‖² = ‖Wᵢ‖² + 2s·Bᵢ·(A·Wᵢᵀ) + s²·Bᵢ·(A·Aᵀ)·Bᵢᵀ
//! ```
//! once after every optimiser step: W is decoded in pieces of a row, and no matrix of its size is made. A row whose sum
//! is zero keeps a gain of 1.
//!
//! Dropout reaches only the low-rank half; PEFT also drops inputs of (g − 1)∘W·x.

use super::layer::{Effect, Layer, Part};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, output_products};
use crate::tensor::{Chunks, Mat, MatMut, Matrix};
use onlay_kernels::{Level, math};

/// Rows of the base that a task takes.
const ROWS: usize = 16;

/// Numbers of a row decoded at a time: whole blocks of every format.
const PIECE: usize = 256;

/// What follows from m, A, B and the base.
#[derive(Clone, Debug, Default)]
pub(super) struct Turned {
    /// g
    pub gains: Vec<f32>,
    /// ‖Wᵢ + s·BᵢA‖
    pub lengths: Vec<f32>,
    /// ‖Wᵢ‖², once known: 0 before.
    squares: Vec<f64>,
    /// A·Aᵀ `[r][r]`
    gram: Vec<f32>,
}

impl Turned {
    pub(super) fn new(part: Option<&Part>) -> Turned {
        let Some(p) = part.filter(|p| p.effect == Effect::Dora) else { return Turned::default() };
        Turned {
            gains: vec![f32::NAN; p.outputs],
            lengths: vec![f32::NAN; p.outputs],
            squares: vec![f64::NAN; p.outputs],
            gram: vec![0.0; p.rank * p.rank],
        }
    }

    /// Bytes of [`Turned::new`].
    pub(super) fn bytes(part: &Part) -> u64 {
        if part.effect == Effect::Dora { (16 * part.outputs + 4 * part.rank * part.rank) as u64 } else { 0 }
    }
}

/// How a caller spreads `f(i)` over its threads, for every i below n.
pub type Each<'a> = &'a mut dyn FnMut(usize, &(dyn Fn(usize) + Sync));

impl Layer {
    /// Sets every length m to that of the base's row: the layer changes nothing then.
    pub fn start_lengths(&mut self, model: &Model, level: Level) {
        for i in 0..self.parts().len() {
            let Some(part) = self.parts()[i].filter(|p| p.effect == Effect::Dora) else { continue };
            let matrix = model.bound().matrix(model.program().matrix_at(Site(i as u32)));
            let mut numbers = self.params().get(i);
            for (row, m) in numbers[part.pair()..].iter_mut().enumerate() {
                *m = squares(level, matrix, row).sqrt() as f32;
            }
        }
    }

    /// Computes what follows from its numbers and the base; must be called when numbers have changed, and costs nothing
    /// without [`Effect::Dora`].
    pub fn settle(&self, model: &Model, level: Level, each: Each<'_>) {
        for i in 0..self.parts().len() {
            let Some(part) = self.parts()[i].filter(|p| p.effect == Effect::Dora) else { continue };
            let matrix = model.bound().matrix(model.program().matrix_at(Site(i as u32)));
            let (params, mut turned) = (self.params().read(i), self.turned.get(i));
            let Turned { gains, lengths, squares, gram } = &mut *turned;
            let (r, k) = (part.rank, part.inputs);
            for (j, to) in gram.chunks_exact_mut(r).enumerate() {
                for (l, to) in to.iter_mut().enumerate() {
                    *to = math::inner(level, &params[j * k..(j + 1) * k], &params[l * k..(l + 1) * k]);
                }
            }
            if squares.first().is_some_and(|s| s.is_nan()) {
                let pieces = Chunks::new([&mut squares[..]], ROWS);
                each(part.outputs.div_ceil(ROWS), &|_| {
                    let Some((piece, [squares])) = pieces.next() else { return };
                    for (row, to) in (piece * ROWS..).zip(squares) {
                        *to = self::squares(level, matrix, row);
                    }
                });
            }
            let (squares, gram, m) = (&*squares, &*gram, &params[part.pair()..]);
            let pieces = Chunks::new([gains, lengths], ROWS);
            each(part.outputs.div_ceil(ROWS), &|_| {
                let Some((piece, [gains, lengths])) = pieces.next() else { return };
                for (row, (gain, length)) in (piece * ROWS..).zip(gains.iter_mut().zip(lengths)) {
                    let square = squares[row] + grown(level, &part, &params, gram, matrix, row);
                    *length = square.max(0.0).sqrt() as f32;
                    *gain = if *length > 0.0 { m[row] / *length } else { 1.0 };
                }
            });
        }
    }

    /// The gradients of B and m, given hᵀ.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn turned_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        turned: &Turned,
        x: Mat<'_>,
        dy: Mat<'_>,
        transposed: Factor<'_>,
        grads: &mut [f32],
    ) {
        let part = *self.part(site).expect("asked only where it learns");
        let (r, outputs) = (part.rank, part.outputs);
        let params = self.params().read(site.0 as usize);
        let b = &params[r * part.inputs..part.pair()];
        let (db, dm) = grads.split_at_mut(r * outputs);
        // s·hᵀ·dy [r][outputs]: g∘ that is dB, and its product with B what the low-rank half adds to dm
        let mut memory = self.memory.get(3);
        let through = &mut memory[..r * outputs];
        through.fill(0.0);
        add_product(
            host,
            part.scale,
            transposed,
            x.rows(),
            dy.data(),
            outputs,
            MatMut::new(through, outputs),
        );
        let mut sums = self.memory.get(4);
        let sums = &mut sums[..outputs];
        output_products(host, base.matrix, x, dy, sums);
        for ((t, b), j) in through.chunks_exact(outputs).zip(b.chunks_exact(outputs)).zip(0..) {
            sums.iter_mut().zip(t).zip(b).for_each(|((sum, t), b)| *sum += t * b);
            if j < r - part.frozen {
                let db = &mut db[j * outputs..(j + 1) * outputs];
                db.iter_mut().zip(t).zip(&turned.gains).for_each(|((db, t), g)| *db += g * t);
            }
        }
        for ((dm, sum), length) in dm.iter_mut().zip(sums).zip(&turned.lengths) {
            if *length > 0.0 {
                *dm += *sum / length;
            }
        }
    }
}

/// ‖Wᵢ‖²
fn squares(level: Level, w: Matrix<'_>, row: usize) -> f64 {
    let mut piece = [0.0; PIECE];
    let mut sum = 0.0;
    for from in (0..w.cols).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(w.cols - from)];
        w.decode(level, row, from, piece);
        sum += math::squares(level, piece);
    }
    sum
}

/// `2s·Bᵢ·(A·Wᵢᵀ) + s²·Bᵢ·(A·Aᵀ)·Bᵢᵀ`
fn grown(level: Level, part: &Part, params: &[f32], gram: &[f32], w: Matrix<'_>, row: usize) -> f64 {
    let (r, k, s) = (part.rank, part.inputs, f64::from(part.scale));
    let (a, b) = params.split_at(r * k);
    let b = |j: usize| f64::from(b[j * part.outputs + row]);
    if (0..r).all(|j| b(j) == 0.0) {
        return 0.0;
    }
    let mut piece = [0.0; PIECE];
    let mut cross = 0.0;
    for from in (0..k).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(k - from)];
        w.decode(level, row, from, piece);
        for j in 0..r {
            cross += b(j) * f64::from(math::inner(level, &a[j * k + from..][..piece.len()], piece));
        }
    }
    let each = gram.chunks_exact(r).enumerate();
    let own: f64 =
        each.map(|(j, g)| b(j) * g.iter().enumerate().map(|(l, g)| f64::from(*g) * b(l)).sum::<f64>()).sum();
    2.0 * s * cross + s * s * own
}
