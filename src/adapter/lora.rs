//! LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021), with the scale of rsLoRA
//! (Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
//!
//! # Forward
//! ```text
//! h = drop(x)·Aᵀ            y = W·x + s·h·Bᵀ            s = α/r, or α/√r
//! ```
//! # Backward
//! ```text
//! dh = s·dy·B    dB += s·dyᵀ·h    dA += dhᵀ·drop(x)    dx += drop′(dh·A)
//! ```
//! # Shapes
//! A `[r][inputs]`; B `[outputs][r]`, kept transposed, `[r][outputs]`, so that both halves stream along rows. Frozen
//! units are the last: forward they are units like others, backward they only pass gradients on.
//!
//! LoRA+ (Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", 2024) is this with a learning rate of
//! its own for B: [`Part::learned`].

use super::dora::Turned;
use super::effect::{Key, Memory, Rows, Rules, Shapes, Tensor};
use super::layer::{Layer, Part};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Grid, Mat, MatMut};
use onlay_kernels::dense::{Dense, product};
use onlay_kernels::{Level, gemm, math};
use std::ops::Range;

/// [`Effect::Lora`](super::Effect::Lora).
#[derive(Debug)]
pub(super) struct Pair;

/// The keys of A and B, and of DoRA's m, which may come with them.
pub(super) static KEYS: [Key; 3] = [
    Key { gguf: ".lora_a", peft: ".lora_A.weight", flat: false },
    Key { gguf: ".lora_b", peft: ".lora_B.weight", flat: false },
    Key { gguf: ".lora_m", peft: ".lora_magnitude_vector", flat: true },
];
const A: &Key = &KEYS[0];
const B: &Key = &KEYS[1];

/// A and B.
pub(super) fn pair_tensors(p: &Part) -> [Tensor; 2] {
    let Part { rank, inputs, outputs, .. } = *p;
    let a = Tensor {
        key: A,
        rows: ("rank", rank),
        cols: ("inputs", inputs),
        transposed: false,
        on_outputs: false,
    };
    let b = Tensor {
        key: B,
        rows: ("outputs", outputs),
        cols: ("rank, as in the other half", rank),
        transposed: true,
        on_outputs: true,
    };
    [a, b]
}

/// PEFT's start of a pair: A uniform in ±1/√inputs, B zero.
pub(super) fn start_pair(part: &Part, numbers: &mut [f32], rng: &mut Rng) {
    let (a, b) = numbers.split_at_mut(part.rank * part.inputs);
    let bound = 1.0 / (part.inputs as f32).sqrt();
    a.iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
    b.fill(0.0);
}

/// Memory of [`Layer::pair_back`].
pub(super) fn pair_memory(p: &Part, rows: usize, dropping: bool) -> Memory {
    [rows * p.rank, rows * p.rank, if dropping { rows * p.inputs } else { 0 }, 0, 0, 0]
}

/// What learns of a pair: frozen units do not.
pub(super) fn pair_learned(p: &Part) -> [(Range<usize>, bool); 3] {
    let (a, units) = (p.rank * p.inputs, p.rank - p.frozen);
    [(0..units * p.inputs, false), (a..a + units * p.outputs, true), (p.pair()..p.pair(), true)]
}

impl Rules for Pair {
    fn keys(&self) -> &'static [Key] {
        &KEYS[..2]
    }
    fn len(&self, p: &Part) -> usize {
        p.pair()
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        pair_tensors(p).into()
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(B)?;
        Some(Part { rank: shapes(A)?.0, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        part
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        format!("rank {} scale {}", p.rank, p.scale)
    }
    fn scaled(&self) -> bool {
        true
    }
    fn most_rank(&self, p: &Part) -> usize {
        p.inputs.min(p.outputs)
    }
    fn learned(&self, p: &Part) -> [(Range<usize>, bool); 3] {
        pair_learned(p)
    }
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, rng: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        start_pair(&part, &mut layer.params().get(i), rng);
    }
    fn times(&self, part: &mut Part, _: &mut [f32], by: f32) -> bool {
        part.scale *= by;
        true
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
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.0 as usize));
        let a = &params[units.start * part.inputs..units.end * part.inputs];
        layer.hidden(level, site, first_row, x, (a, part.inputs), h, stride, spare);
    }
    fn soon(&self, layer: &Layer, level: Level, site: Site, first: usize, width: usize) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.0 as usize));
        for b in params[part.rank * part.inputs..].chunks_exact(part.outputs) {
            onlay_kernels::decode::ask(level, bytemuck::cast_slice(&b[first..first + width]));
        }
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
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.0 as usize));
        let b = (&params[part.rank * part.inputs..], part.outputs);
        let h = (h, stride, part.rank);
        low_rank(level, part.scale * weight, h, b, None, first, y, rows, spare);
    }
    fn memory(&self, p: &Part, rows: usize, dropping: bool) -> Memory {
        pair_memory(p, rows, dropping)
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
        layer.pair_back(host, site, base, None, x, dy, dx);
    }
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.0 as usize));
        let (a, b) = params.split_at(part.rank * part.inputs);
        fold_pair(rows, part.scale * weight, part.rank, (a, part.inputs), (b, part.outputs), None, None);
    }
}

/// `W += scale·gain∘(B∘columns)·A` for some rows of W; A `[r][inputs]` and Bᵀ `[r][outputs]` with their strides.
pub(super) fn fold_pair(
    rows: Rows<'_>,
    scale: f32,
    rank: usize,
    (a, a_row): (&[f32], usize),
    (b, b_row): (&[f32], usize),
    gain: Option<&[f32]>,
    columns: Option<&[f32]>,
) {
    let Rows { level, first, n, sum, spare, .. } = rows;
    let (per, k) = (gemm::rows(level), sum.len() / n);
    spare.resize((per * rank).max(spare.len()), 0.0);
    let packed = &mut spare[..per * rank];
    for group in (0..n).step_by(per) {
        let m = per.min(n - group);
        gemm::pack(level, &b[first + group..], 1, b_row, m, rank, scale, packed);
        if let Some(gain) = gain {
            let gain = &gain[first + group..][..m];
            for b in packed.chunks_exact_mut(per) {
                b.iter_mut().zip(gain).for_each(|(b, g)| *b *= g);
            }
        }
        if let Some(columns) = columns {
            let each = packed.chunks_exact_mut(per).zip(columns);
            each.for_each(|(b, d)| b.iter_mut().for_each(|b| *b *= d));
        }
        gemm::add(level, m, k, packed, a, a_row, &mut sum[group * k..], k);
    }
}

/// `y += scale·h·Bᵀ`, or `y += gain∘(scale·h·Bᵀ)`, for some rows and the outputs from `first` on. `h` is its numbers, what
/// its rows lie apart, and r; `b` is Bᵀ `[r][outputs]` and what its rows lie apart.
#[allow(clippy::too_many_arguments)]
pub(super) fn low_rank(
    level: Level,
    scale: f32,
    (h, stride, rank): (&[f32], usize, usize),
    (b, b_stride): (&[f32], usize),
    gain: Option<&[f32]>,
    first: usize,
    y: &mut Block<'_>,
    rows: Range<usize>,
    spare: &mut Vec<f32>,
) {
    let gains = gain.map(|g| &g[first..]);
    let (per, width) = (gemm::rows(level), y.row(rows.start).len());
    let len = per * (rank + width);
    spare.resize(len.max(spare.len()), 0.0);
    let (packed, tile) = spare.split_at_mut(per * rank);
    for group in rows.clone().step_by(per) {
        let m = per.min(rows.end - group);
        let h = &h[(group - rows.start) * stride..];
        gemm::pack(level, h, stride, 1, m, rank, scale, packed);
        if let Some((y, apart)) = y.flat().filter(|_| gains.is_none()) {
            gemm::add(level, m, width, packed, &b[first..], b_stride, &mut y[group * apart..], apart);
            continue;
        }
        for i in 0..m {
            let tile = &mut tile[i * width..(i + 1) * width];
            if gains.is_some() { tile.fill(0.0) } else { tile.copy_from_slice(y.row(group + i)) }
        }
        gemm::add(level, m, width, packed, &b[first..], b_stride, tile, width);
        for i in 0..m {
            let (tile, y) = (&tile[i * width..(i + 1) * width], y.row(group + i));
            match gains {
                None => y.copy_from_slice(tile),
                Some(gains) => y.iter_mut().zip(tile).zip(gains).for_each(|((y, t), g)| *y += g * t),
            }
        }
    }
}

impl Layer {
    /// `h = drop(x)·Aᵀ` for some rows of A `[units][inputs]`, `a` with what they lie apart: row i of x to `h[i·stride..]`.
    /// Rows are `first_row..` of the batch, by whose names inputs are dropped.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn hidden(
        &self,
        level: Level,
        site: Site,
        first_row: Option<usize>,
        x: Mat<'_>,
        (a, apart): (&[f32], usize),
        h: &mut [f32],
        stride: usize,
        spare: &mut Vec<f32>,
    ) {
        let (k, rows) = (x.cols(), bytemuck::cast_slice(a));
        let names = self.names();
        let names = first_row.zip(names.as_deref()).and_then(|(first, n)| n.get(first..first + x.rows()));
        let Some(names) = names else {
            return product(level, Dense::F32, rows, 4 * apart, x.data(), k, h, stride);
        };
        spare.resize(k.max(spare.len()), 0.0);
        for ((i, h), name) in h.chunks_mut(stride).enumerate().zip(names) {
            self.drop_into(site, *name, 0, x.row(i), &mut spare[..k]);
            product(level, Dense::F32, rows, 4 * apart, &spare[..k], k, h, stride);
        }
    }

    /// The backward pass of a pair, with or without lengths of its own.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn pair_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        turned: Option<&Turned<'_>>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let part = *self.part(site).expect("asked only where it learns");
        let Part { rank, inputs, outputs, scale, frozen, .. } = part;
        let learned = rank - frozen;
        let (n, i) = (x.rows(), site.0 as usize);
        let params = self.params().read(i);
        let (a, b) = params.split_at(rank * inputs);
        let mut grads = self.grads().get(i);
        let (da, db) = grads.split_at_mut(rank * inputs);
        let (mut h, mut dh, mut dropped) = (self.memory.get(0), self.memory.get(1), self.memory.get(2));
        let (h, dh) = (&mut h[..n * rank], &mut dh[..n * rank]);
        let names = self.names();
        let names = names.as_deref().map_or(&[][..], |n| n);
        let dropping = !names.is_empty();
        let dropped = &mut dropped[..if dropping { n * inputs } else { 0 }];
        if dropping {
            each_row(host, dropped, inputs, |row, to| self.drop_into(site, names[row], 0, x.row(row), to));
        }
        let input = if dropping { Mat::new(dropped, inputs) } else { x };
        rows_times(host, input, a, inputs, h, rank);
        match turned {
            None => rows_times(host, dy, b, outputs, dh, rank),
            Some(turned) => {
                // gain∘dy meets B: the gain may as well be on B
                let mut turned_b = self.memory.get(3);
                let turned_b = &mut turned_b[..rank * outputs];
                for (to, b) in turned_b.chunks_exact_mut(outputs).zip(b.chunks_exact(outputs)) {
                    to.iter_mut().zip(b).zip(turned.gains).for_each(|((to, b), g)| *to = g * b);
                }
                rows_times(host, dy, turned_b, outputs, dh, rank);
            }
        }
        dh.iter_mut().for_each(|v| *v *= scale);
        // dB (transposed) [r][outputs] += s·hᵀ·dy
        let transposed = Factor { data: h, row: 1, step: rank };
        match turned {
            None => {
                let db = MatMut::new(&mut db[..learned * outputs], outputs);
                add_product(host, scale, transposed, n, dy.data(), outputs, db);
            }
            Some(turned) => self.turned_back(host, site, base, turned, x, dy, transposed, db),
        }
        let transposed = Factor { data: dh, row: 1, step: rank };
        add_product(
            host,
            1.0,
            transposed,
            n,
            input.data(),
            inputs,
            MatMut::new(&mut da[..learned * inputs], inputs),
        );
        let Some(mut dx) = dx else { return };
        self.input_back(host, site, names, dropped, dh, a, inputs, dx.again());
        product_back(host, base.matrix, turned.map(|t| t.gains), dy, dx);
    }

    /// `dx += drop′(dh·A)` with rows of A `stride` apart; `dropped` is memory for that, `names` are those of the rows, both
    /// empty if nothing is dropped.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn input_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        names: &[u64],
        dropped: &mut [f32],
        dh: &[f32],
        a: &[f32],
        stride: usize,
        dx: MatMut<'_>,
    ) {
        let inputs = dx.cols();
        let rank = dh.len() / dx.rows();
        let straight = Factor { data: dh, row: rank, step: 1 };
        if names.is_empty() {
            return add_product(host, 1.0, straight, rank, a, stride, dx);
        }
        dropped.fill(0.0);
        add_product(host, 1.0, straight, rank, a, stride, MatMut::new(dropped, inputs));
        self.undrop(host, site, names, dropped, dx);
    }

    /// `dx += drop′(through)`, both `[rows][inputs]`.
    pub(super) fn undrop(
        &self,
        host: &mut Host<'_>,
        site: Site,
        names: &[u64],
        through: &[f32],
        mut dx: MatMut<'_>,
    ) {
        let (level, inputs) = (host.level, dx.cols());
        let through = Mat::new(through, inputs);
        each_row(host, dx.again().data(), inputs, |row, dx| {
            let mut piece = [0.0; 256];
            for (i, (dx, from)) in dx.chunks_mut(256).zip(through.row(row).chunks(256)).enumerate() {
                let piece = &mut piece[..dx.len()];
                self.drop_into(site, names[row], 256 * i, from, piece);
                math::add_scaled(level, 1.0, piece, dx);
            }
        });
    }
}

/// `f(row, numbers)` for every row, spread over the team.
pub(super) fn each_row(
    host: &mut Host<'_>,
    rows: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    let pieces = crate::tensor::Chunks::new([rows], width);
    host.team.run(&|_| {
        while let Some((i, [row])) = pieces.next() {
            f(i, row);
        }
    });
}

/// `out [n][r] = x [n][k]·Wᵀ` for a small W `[r][k]` of f32, its rows `stride` apart, spread over the team by rows of x.
pub(super) fn rows_times(
    host: &mut Host<'_>,
    x: Mat<'_>,
    w: &[f32],
    stride: usize,
    out: &mut [f32],
    r: usize,
) {
    let (level, k, pieces) = (host.level, x.cols(), host.batch.pieces);
    let (grid, scratch) = (Grid::new([MatMut::new(out, r)], pieces, [r]), host.scratch);
    host.team.run(&|member| {
        while let Some((piece, _, [mut block])) = grid.next() {
            let rows = pieces[piece].clone();
            scratch.with_spare(member, rows.len() * r, |tile| {
                let (x, w) = (x.part(rows.clone()).data(), bytemuck::cast_slice(w));
                product(level, Dense::F32, w, 4 * stride, x, k, tile, r);
                for (i, row) in tile.chunks_exact(r).enumerate() {
                    block.row(i).copy_from_slice(row);
                }
            });
        }
    });
}
