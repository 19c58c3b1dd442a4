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

use super::effect::{Each, Key, Memory, Rows, Rules, Shapes, Tensor};
use super::layer::{Derived, Effect, Layer, Part, turn};
use super::lora::{self, KEYS, fold_pair, low_rank, pair_learned, pair_memory, pair_tensors, start_pair};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, output_products};
use crate::rng::Rng;
use crate::tensor::{Block, Chunks, Mat, MatMut, Matrix};
use onlay_kernels::{Level, math};
use std::ops::Range;

/// Rows of the base that a task takes.
const ROWS: usize = 16;

/// Numbers of a row decoded at a time: whole blocks of every format.
const PIECE: usize = 256;

/// What follows from m, A, B and the base: gains, lengths and A·Aᵀ one after the other, and the squares of the base's rows
/// (`Derived::exact`).
#[derive(Debug)]
pub(super) struct Turned<'a> {
    /// g
    pub gains: &'a [f32],
    /// ‖Wᵢ + s·BᵢA‖
    pub lengths: &'a [f32],
}

impl Turned<'_> {
    fn of<'a>(part: &Part, derived: &'a Derived) -> Turned<'a> {
        let (gains, rest) = derived.numbers.split_at(part.outputs);
        Turned { gains, lengths: &rest[..part.outputs] }
    }
}

/// [`Effect::Dora`].
#[derive(Debug)]
pub(super) struct Turning;

const M: &Key = &KEYS[2];

impl Rules for Turning {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        p.pair() + p.outputs
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let [a, b] = pair_tensors(p);
        vec![a, b, Tensor::vector(M, ("lengths", p.outputs), true)]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(M)?;
        Some(Part { effect: Effect::Dora, ..lora::Pair.recognise(shapes, part)? })
    }
    fn shaped(&self, part: Part) -> Part {
        part
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        format!("rank {} scale {} lengths", p.rank, p.scale)
    }
    fn scaled(&self) -> bool {
        true
    }
    fn most_rank(&self, p: &Part) -> usize {
        p.inputs.min(p.outputs)
    }
    fn learned(&self, p: &Part) -> [(Range<usize>, bool); 3] {
        let [a, b, _] = pair_learned(p);
        [a, b, (p.pair()..p.len(), true)]
    }

    /// PEFT's pair, and every length that of the base's row.
    fn start(&self, layer: &Layer, i: usize, model: &Model, level: Level, rng: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        let matrix = model.bound().matrix(model.program().matrix_at(Site(i as u32)));
        let mut numbers = layer.params().get(i);
        start_pair(&part, &mut numbers, rng);
        for (row, m) in numbers[part.pair()..].iter_mut().enumerate() {
            *m = squares(level, matrix, row).sqrt() as f32;
        }
    }

    /// A share of a change of direction is no change of direction.
    fn times(&self, _: &mut Part, _: &mut [f32], _: f32) -> bool {
        false
    }

    fn derived(&self, p: &Part) -> (usize, usize) {
        (2 * p.outputs + p.rank * p.rank, p.outputs)
    }

    fn settle(&self, layer: &Layer, i: usize, model: &Model, level: Level, each: Each<'_>) {
        let part = layer.parts()[i].expect("a part");
        let matrix = model.bound().matrix(model.program().matrix_at(Site(i as u32)));
        let (params, mut derived) = (layer.params().read(i), layer.derived.get(i));
        let Derived { numbers, exact: squares } = &mut *derived;
        let (gains, rest) = numbers.split_at_mut(part.outputs);
        let (lengths, gram) = rest.split_at_mut(part.outputs);
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

    fn output_gain(&self, layer: &Layer, site: Site) -> Option<(Vec<f32>, bool)> {
        let part = layer.part(site)?;
        Some((layer.derived.read(site.into()).numbers[..part.outputs].to_vec(), false))
    }
    fn leaves(&self) -> bool {
        true
    }
    fn leave(
        &self,
        layer: &Layer,
        site: Site,
        first: usize,
        bias: Option<&[f32]>,
        y: &mut Block<'_>,
        rows: Range<usize>,
    ) {
        let (part, derived) = (layer.part(site).expect("a part"), layer.derived.read(site.into()));
        turn(Turned::of(part, &derived).gains, None, first, bias, y, rows);
    }
    fn width(&self, p: &Part) -> usize {
        p.rank
    }
    fn prepare(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        first_row: Option<usize>,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        stride: usize,
        spare: &mut Vec<f32>,
    ) {
        lora::Pair.prepare(layer, level, site, first_row, x, units, h, stride, spare);
    }
    fn finish(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        weight: f32,
        h: &[f32],
        stride: usize,
        first: usize,
        y: &mut Block<'_>,
        rows: Range<usize>,
        spare: &mut Vec<f32>,
    ) {
        let i = site.into();
        let (part, params, derived) =
            (layer.part(site).expect("a part"), layer.params().read(i), layer.derived.read(i));
        let gains = Turned::of(part, &derived).gains;
        let (h, b) = ((h, stride, part.rank), (&params[part.rank * part.inputs..], part.outputs));
        low_rank(level, part.scale * weight, h, b, Some(gains), first, y, rows, spare);
    }
    fn memory(&self, p: &Part, rows: usize, dropping: bool) -> Memory {
        let mut memory = pair_memory(p, rows, dropping);
        (memory[3], memory[4]) = (p.rank * p.outputs, p.outputs);
        memory
    }
    fn backward(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let (part, derived) = (layer.part(site).expect("a part"), layer.derived.read(site.into()));
        let turned = Turned::of(part, &derived);
        layer.pair_back(host, site, base, Some(&turned), x, dy, dx);
    }
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let i = site.into();
        let (part, params, derived) =
            (layer.part(site).expect("a part"), layer.params().read(i), layer.derived.read(i));
        let gains = Turned::of(part, &derived).gains;
        let (a, b) = params.split_at(part.rank * part.inputs);
        let (a, b) = ((a, part.inputs), (b, part.outputs));
        fold_pair(rows, part.scale * weight, part.rank, a, b, Some(gains), None);
    }
}

impl Layer {
    /// The gradients of B and m, given hᵀ.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn turned_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        turned: &Turned<'_>,
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
                db.iter_mut().zip(t).zip(turned.gains).for_each(|((db, t), g)| *db += g * t);
            }
        }
        for ((dm, sum), length) in dm.iter_mut().zip(sums).zip(turned.lengths) {
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
