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

use super::layer::{Effect, Layer, Part};
use crate::ops::{Base, Factor, Host, Site, add_product, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Grid, Mat, MatMut};
use onlay_kernels::dense::{Dense, product};
use onlay_kernels::{Level, gemm, math};
use std::ops::Range;

impl Layer {
    /// PEFT's start: A uniform in ±1/√inputs, B zero; so the layer changes nothing yet.
    pub fn start(&mut self, rng: &mut Rng) {
        for (i, part) in self.parts().iter().enumerate() {
            let Some(part) = part else { continue };
            let mut numbers = self.params().get(i);
            let (a, b) = numbers.split_at_mut(part.rank * part.inputs);
            let bound = 1.0 / (part.inputs as f32).sqrt();
            a.iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
            b.fill(0.0);
        }
    }

    /// `h = x·Aᵀ` for some hidden units: row i of x to `h[i·stride..]`, nothing dropped.
    pub(super) fn hidden(
        &self,
        level: Level,
        site: Site,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        stride: usize,
    ) {
        let params = self.params().read(site.0 as usize);
        self.times_a(level, site, &params, x.data(), units, h, stride);
    }

    /// `A·x` for rows of x and some hidden units; with [`Effect::Vera`] λd∘ that.
    #[allow(clippy::too_many_arguments)]
    fn times_a(
        &self,
        level: Level,
        site: Site,
        params: &[f32],
        x: &[f32],
        units: Range<usize>,
        h: &mut [f32],
        stride: usize,
    ) {
        let part = self.part(site).expect("asked only where it has a width");
        let k = part.inputs;
        let shared = self.shared().filter(|_| part.effect == Effect::Vera);
        let (a, row) = shared.map_or((params, k), |s| (&s.a, s.inputs));
        let rows = bytemuck::cast_slice(&a[units.start * row..units.end * row]);
        product(level, Dense::F32, rows, 4 * row, x, k, h, stride);
        if shared.is_some() {
            for h in h.chunks_mut(stride).take(x.len() / k) {
                h.iter_mut().zip(&params[units.clone()]).for_each(|(h, d)| *h *= d);
            }
        }
    }

    /// [`Layer::hidden`] with inputs dropped, of rows `first_row..` of the batch.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn dropped_hidden(
        &self,
        level: Level,
        site: Site,
        first_row: usize,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        let names = self.names();
        let Some(names) = names.as_deref().and_then(|n| n.get(first_row..first_row + x.rows())) else {
            return self.hidden(level, site, x, units.clone(), h, units.len());
        };
        let k = self.part(site).expect("asked only where it has a width").inputs;
        let params = self.params().read(site.0 as usize);
        spare.resize(k.max(spare.len()), 0.0);
        for ((i, h), name) in h.chunks_exact_mut(units.len()).enumerate().zip(names) {
            self.drop_into(site, *name, 0, x.row(i), &mut spare[..k]);
            self.times_a(level, site, &params, &spare[..k], units.clone(), h, units.len());
        }
    }

    /// `y += weight·s·h·Bᵀ` for some rows and the outputs from `first` on; with [`Effect::Dora`] and [`Effect::Vera`]
    /// `gain∘` that.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn low_rank(
        &self,
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
        let part = self.part(site).expect("asked only where it has a width");
        let params = self.params().read(site.0 as usize);
        let turned = (part.effect == Effect::Dora).then(|| self.turned.read(site.0 as usize));
        let gains = turned.as_ref().map(|t| &t.gains[first..]);
        let shared = self.shared().filter(|_| part.effect == Effect::Vera);
        let gains = gains.or(shared.map(|_| &params[part.rank + first..]));
        let (b, b_stride) = match shared {
            Some(s) => (s.b_at(site), s.outputs),
            None => (&params[part.rank * part.inputs..], part.outputs),
        };
        let (per, width) = (gemm::rows(level), y.row(rows.start).len());
        let len = per * (part.rank + width);
        spare.resize(len.max(spare.len()), 0.0);
        let (packed, tile) = spare.split_at_mut(per * part.rank);
        for group in rows.clone().step_by(per) {
            let m = per.min(rows.end - group);
            let h = &h[(group - rows.start) * stride..];
            gemm::pack(level, h, stride, 1, m, part.rank, part.scale * weight, packed);
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

    /// The backward pass of a pair, with or without a length of its own.
    pub(super) fn pair_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
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
        let turned = (part.effect == Effect::Dora).then(|| self.turned.read(i));
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
        match &turned {
            None => rows_times(host, dy, b, outputs, dh, rank),
            Some(turned) => {
                // gain∘dy meets B: the gain may as well be on B
                let mut turned_b = self.memory.get(3);
                let turned_b = &mut turned_b[..rank * outputs];
                for (to, b) in turned_b.chunks_exact_mut(outputs).zip(b.chunks_exact(outputs)) {
                    to.iter_mut().zip(b).zip(&turned.gains).for_each(|((to, b), g)| *to = g * b);
                }
                rows_times(host, dy, turned_b, outputs, dh, rank);
            }
        }
        dh.iter_mut().for_each(|v| *v *= scale);
        // dB (transposed) [r][outputs] += s·hᵀ·dy
        let transposed = Factor { data: h, row: 1, step: rank };
        match &turned {
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
        product_back(host, base.matrix, turned.as_ref().map(|t| &t.gains[..]), dy, dx);
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
        mut dx: MatMut<'_>,
    ) {
        let (level, inputs) = (host.level, dx.cols());
        let rank = dh.len() / dx.rows();
        let straight = Factor { data: dh, row: rank, step: 1 };
        if names.is_empty() {
            return add_product(host, 1.0, straight, rank, a, stride, dx);
        }
        dropped.fill(0.0);
        add_product(host, 1.0, straight, rank, a, stride, MatMut::new(dropped, inputs));
        let through = Mat::new(dropped, inputs);
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
