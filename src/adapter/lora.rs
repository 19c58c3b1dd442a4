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
        let k = self.part(site).expect("asked only where it has a width").inputs;
        let params = self.params().read(site.0 as usize);
        let a = bytemuck::cast_slice(&params[units.start * k..units.end * k]);
        product(level, Dense::F32, a, 4 * k, x.data(), k, h, stride);
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
        let a = bytemuck::cast_slice(&params[units.start * k..units.end * k]);
        spare.resize(k.max(spare.len()), 0.0);
        for ((i, h), name) in h.chunks_exact_mut(units.len()).enumerate().zip(names) {
            self.drop_into(site, *name, 0, x.row(i), &mut spare[..k]);
            product(level, Dense::F32, a, 4 * k, &spare[..k], k, h, units.len());
        }
    }

    /// `y += weight·s·h·Bᵀ` for some rows and the outputs from `first` on; with [`Effect::Dora`] `gain∘` that.
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
        let b = &params[part.rank * part.inputs..];
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
            gemm::add(level, m, width, packed, &b[first..], part.outputs, tile, width);
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
        let (level, n, i) = (host.level, x.rows(), site.0 as usize);
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
        rows_times(host, input, a, h, rank);
        match &turned {
            None => rows_times(host, dy, b, dh, rank),
            Some(turned) => {
                // gain∘dy meets B: the gain may as well be on B
                let mut turned_b = self.memory.get(3);
                let turned_b = &mut turned_b[..rank * outputs];
                for (to, b) in turned_b.chunks_exact_mut(outputs).zip(b.chunks_exact(outputs)) {
                    to.iter_mut().zip(b).zip(&turned.gains).for_each(|((to, b), g)| *to = g * b);
                }
                rows_times(host, dy, turned_b, dh, rank);
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
        let straight = Factor { data: dh, row: rank, step: 1 };
        if dropping {
            dropped.fill(0.0);
            add_product(host, 1.0, straight, rank, a, inputs, MatMut::new(dropped, inputs));
            let through = Mat::new(dropped, inputs);
            each_row(host, dx.again().data(), inputs, |row, dx| {
                let mut piece = [0.0; 256];
                for (i, (dx, from)) in dx.chunks_mut(256).zip(through.row(row).chunks(256)).enumerate() {
                    let piece = &mut piece[..dx.len()];
                    self.drop_into(site, names[row], 256 * i, from, piece);
                    math::add_scaled(level, 1.0, piece, dx);
                }
            });
        } else {
            add_product(host, 1.0, straight, rank, a, inputs, dx.again());
        }
        product_back(host, base.matrix, turned.as_ref().map(|t| &t.gains[..]), dy, dx);
    }
}

/// `f(row, numbers)` for every row, spread over the team.
fn each_row(host: &mut Host<'_>, rows: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let pieces = crate::tensor::Chunks::new([rows], width);
    host.team.run(&|_| {
        while let Some((i, [row])) = pieces.next() {
            f(i, row);
        }
    });
}

/// `out [n][r] = x [n][k]·Wᵀ` for a small W `[r][k]` of f32, spread over the team by rows of x.
fn rows_times(host: &mut Host<'_>, x: Mat<'_>, w: &[f32], out: &mut [f32], r: usize) {
    let (level, k, pieces) = (host.level, x.cols(), host.batch.pieces);
    let (grid, scratch) = (Grid::new([MatMut::new(out, r)], pieces, [r]), host.scratch);
    host.team.run(&|member| {
        while let Some((piece, _, [mut block])) = grid.next() {
            let rows = pieces[piece].clone();
            scratch.with_spare(member, rows.len() * r, |tile| {
                let (x, w) = (x.part(rows.clone()).data(), bytemuck::cast_slice(w));
                product(level, Dense::F32, w, 4 * k, x, k, tile, r);
                for (i, row) in tile.chunks_exact(r).enumerate() {
                    block.row(i).copy_from_slice(row);
                }
            });
        }
    });
}
