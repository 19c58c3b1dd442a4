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
//! A `[r][inputs]`; B `[outputs][r]`, kept transposed, `[r][outputs]`, so that both halves stream along rows.
//!
//! Dropout draws its mask from a hash of (seed, row, site, column), where a row is named by its step, its place in the
//! step's window and its position ([`Lora::set_rows`]): recomputing a segment draws the same mask, and so does another
//! cut of the window. Without names nothing is dropped: evaluation and serving see the whole layer.

use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::Program;
use crate::ops::{Backward, Delta, Factor, Host, Site, add_product};
use crate::rng::{Rng, hash};
use crate::tensor::{Block, Grid, Mat, MatMut, Slots};
use onlay_kernels::dense::{Dense, product};
use onlay_kernels::{Level, gemm};
use std::ops::Range;
use std::sync::RwLockReadGuard;

/// What a LoRA at one site is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Rank r.
    pub rank: usize,
    /// Inputs of the product.
    pub inputs: usize,
    /// Outputs of the product.
    pub outputs: usize,
    /// s, what h·Bᵀ is multiplied with.
    pub scale: f32,
}

impl Part {
    /// Numbers in A and B.
    pub fn len(&self) -> usize {
        self.rank * (self.inputs + self.outputs)
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale s of α: α/r, or α/√r with `stabilised` (rsLoRA).
    pub fn scale_of(alpha: f64, rank: usize, stabilised: bool) -> f32 {
        let r = rank as f64;
        (alpha / if stabilised { r.sqrt() } else { r }) as f32
    }

    /// Finds all parts whose shapes are not those of the program's products at their sites.
    pub(super) fn fits(parts: &[Option<Part>], program: &Program, wrong: &mut Findings) {
        if parts.len() != program.sites.len() {
            let (expected, found) = (program.sites.len(), parts.len());
            wrong.push(Error::expected(Kind::Mismatch, "products of the layer's base", expected, found));
        }
        for (part, site) in parts.iter().zip(&program.sites) {
            let Some(p) = part else { continue };
            let (found, expected) = ((p.inputs, p.outputs), (site.inputs, site.outputs));
            if found != expected {
                let text = |(i, o)| format!("{i} inputs and {o} outputs");
                let (expected, found) = (text(expected), text(found));
                let place = Place::Tensor(site.name.clone());
                wrong.push(Error::expected(Kind::Mismatch, "layer", expected, found).at(place));
            }
        }
    }

    /// [`Part::fits`], and ranks that are of use: above 0 and not above what the product itself has.
    pub(super) fn check_all(parts: &[Option<Part>], program: &Program, wrong: &mut Findings) {
        Part::fits(parts, program, wrong);
        for (part, site) in parts.iter().zip(&program.sites) {
            let Some(p) = part else { continue };
            if p.rank == 0 || p.rank > p.inputs.min(p.outputs) {
                let most = format!("1 to {}", p.inputs.min(p.outputs));
                let place = Place::Tensor(site.name.clone());
                wrong.push(Error::expected(Kind::Argument, "rank", most, p.rank).at(place));
            }
        }
    }
}

/// How inputs are dropped while training.
#[derive(Debug, Default)]
struct Dropout {
    /// Of 65,536 inputs, how many are dropped.
    rate: u64,
    seed: u64,
    /// The name of each row of the batch at hand; empty while nothing is dropped.
    rows: Slots<Vec<u64>>,
}

/// Low-rank layers at some sites of one program.
#[derive(Debug)]
pub struct Lora {
    parts: Vec<Option<Part>>,
    /// For each site: A, then B transposed.
    params: Slots<Vec<f32>>,
    grads: Option<Slots<Vec<f32>>>,
    dropout: Dropout,
    /// Memory of the backward pass: h, dh, and dropped inputs.
    memory: Slots<Vec<f32>>,
}

impl Lora {
    /// The layer with the given parts (one entry per site of the program), all numbers zero.
    pub fn new(parts: Vec<Option<Part>>) -> Self {
        let params = Slots::new(parts.len(), |i| vec![0.0; parts[i].map_or(0, |p: Part| p.len())]);
        Lora { parts, params, grads: None, dropout: Dropout::default(), memory: Slots::default() }
    }

    /// PEFT's start: A uniform in ±1/√inputs, B zero; so the layer changes nothing yet.
    pub fn start(&mut self, rng: &mut Rng) {
        for (i, part) in self.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            let mut numbers = self.params.get(i);
            let (a, b) = numbers.split_at_mut(part.rank * part.inputs);
            let bound = 1.0 / (part.inputs as f32).sqrt();
            a.iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
            b.fill(0.0);
        }
    }

    /// The same numbers without gradients: what is published, or learned from anew.
    pub fn copy(&self) -> Lora {
        let params = Slots::new(self.parts.len(), |i| self.params.read(i).clone());
        let parts = self.parts.clone();
        Lora { parts, params, grads: None, dropout: Dropout::default(), memory: Slots::default() }
    }

    /// Makes it learn: gradients, and the memory of a backward pass over up to `rows` rows. A share `dropout` of the
    /// inputs is dropped, drawn from `seed`.
    ///
    /// # Errors
    /// `Argument` for a share outside 0..1.
    pub fn learn(&mut self, rows: usize, dropout: f64, seed: u64) -> Result<()> {
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::expected(Kind::Argument, "dropout", "at least 0 and below 1", dropout));
        }
        let rate = ((dropout * 65_536.0).round() as u64).min(65_535);
        let names = if rate > 0 { rows } else { 0 };
        self.dropout = Dropout { rate, seed, rows: Slots::new(1, |_| Vec::with_capacity(names)) };
        let sizes = self.memory_sizes(rows);
        self.memory = Slots::new(3, |i| vec![0.0; sizes[i]]);
        self.grads = Some(Slots::new(self.parts.len(), |i| vec![0.0; self.parts[i].map_or(0, |p| p.len())]));
        Ok(())
    }

    fn memory_sizes(&self, rows: usize) -> [usize; 3] {
        let most = |f: fn(&Part) -> usize| self.parts.iter().flatten().map(f).max().unwrap_or(0);
        let (rank, inputs) = (most(|p| p.rank), most(|p| p.inputs));
        [rows * rank, rows * rank, if self.dropout.rate > 0 { rows * inputs } else { 0 }]
    }

    /// Bytes of the parameters, and of what training adds to them: gradients, two moments, the backward pass.
    pub fn bytes(&self, rows: usize, dropout: bool) -> (u64, u64) {
        let params = 4 * self.len() as u64;
        let [h, dh, _] = self.memory_sizes(rows);
        let inputs = self.parts.iter().flatten().map(|p| p.inputs).max().unwrap_or(0);
        let dropped = if dropout { rows * inputs } else { 0 };
        (params, 3 * params + 4 * (h + dh + dropped) as u64)
    }

    /// What is at each site.
    pub fn parts(&self) -> &[Option<Part>] {
        &self.parts
    }

    /// All numbers together.
    pub fn len(&self) -> usize {
        self.parts.iter().flatten().map(Part::len).sum()
    }

    /// Whether it has no part.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A `[r][inputs]` and B transposed `[r][outputs]` of a site, side by side; empty where there is no part.
    pub fn params(&self) -> &Slots<Vec<f32>> {
        &self.params
    }

    /// Gradients, laid out as the parameters. Panics before [`Lora::learn`].
    pub fn grads(&self) -> &Slots<Vec<f32>> {
        self.grads.as_ref().expect("a layer that learns has gradients")
    }

    /// Names the rows of the next batches, at most as many as it was told to learn: dropout draws by these names. With
    /// no names nothing is dropped.
    pub fn set_rows(&self, names: impl Iterator<Item = u64>) {
        if self.dropout.rate > 0 {
            let mut rows = self.dropout.rows.get(0);
            rows.clear();
            rows.extend(names);
        }
    }

    /// Rows of A at a site, one by one.
    pub fn a_row(&self, site: Site, i: usize, out: &mut [f32]) {
        let part = self.part(site).expect("a part");
        out.copy_from_slice(&self.params.read(site.0 as usize)[i * part.inputs..(i + 1) * part.inputs]);
    }

    /// Checks that every part fits the program's product at its site.
    ///
    /// # Errors
    /// All that do not.
    pub fn check(&self, program: &Program) -> Result<()> {
        let mut wrong = Findings::default();
        Part::check_all(&self.parts, program, &mut wrong);
        wrong.refuse("the layer does not fit this base")
    }

    /// Whether it was told to learn.
    pub(super) fn learning(&self) -> bool {
        self.grads.is_some()
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
        let params = self.params.read(site.0 as usize);
        let a = bytemuck::cast_slice(&params[units.start * k..units.end * k]);
        product(level, Dense::F32, a, 4 * k, x.data(), k, h, stride);
    }

    pub(super) fn part(&self, site: Site) -> Option<&Part> {
        self.parts.get(site.0 as usize)?.as_ref()
    }

    /// The names of the rows at hand, if inputs are dropped.
    fn names(&self) -> Option<RwLockReadGuard<'_, Vec<u64>>> {
        (self.dropout.rate > 0).then(|| self.dropout.rows.read(0))
    }

    /// Writes `x`, the columns from `at` (a multiple of 4) on of the row called `row`, with dropped inputs set to 0
    /// and the others raised to keep the mean. Linear, so gradients go through it too.
    fn drop_into(&self, site: Site, row: u64, at: usize, x: &[f32], to: &mut [f32]) {
        let d = &self.dropout;
        let keep = 65_536.0 / (65_536 - d.rate) as f32;
        for (i, (x, to)) in x.chunks(4).zip(to.chunks_mut(4)).enumerate() {
            let mut draw = hash(d.seed, &[row, u64::from(site.0), (at / 4 + i) as u64]);
            for (x, to) in x.iter().zip(to) {
                *to = if draw & 0xffff < d.rate { 0.0 } else { keep * x };
                draw >>= 16;
            }
        }
    }
}

impl Delta for Lora {
    fn width(&self, site: Site) -> usize {
        self.part(site).map_or(0, |p| p.rank)
    }

    fn prepare(
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
        let params = self.params.read(site.0 as usize);
        let a = bytemuck::cast_slice(&params[units.start * k..units.end * k]);
        spare.resize(k.max(spare.len()), 0.0);
        for ((i, h), name) in h.chunks_exact_mut(units.len()).enumerate().zip(names) {
            self.drop_into(site, *name, 0, x.row(i), &mut spare[..k]);
            product(level, Dense::F32, a, 4 * k, &spare[..k], k, h, units.len());
        }
    }

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
    ) {
        let part = self.part(site).expect("asked only where it has a width");
        low_rank(
            level,
            part,
            part.scale,
            &self.params.read(site.0 as usize),
            h,
            stride,
            first,
            y,
            rows,
            spare,
        );
    }
}

/// `y += scale·h·Bᵀ` for some rows and the outputs from `first` on.
#[allow(clippy::too_many_arguments)]
pub(super) fn low_rank(
    level: Level,
    part: &Part,
    scale: f32,
    params: &[f32],
    h: &[f32],
    stride: usize,
    first: usize,
    y: &mut Block<'_>,
    rows: Range<usize>,
    spare: &mut Vec<f32>,
) {
    let b = &params[part.rank * part.inputs..];
    let (per, width) = (gemm::rows(level), y.row(rows.start).len());
    let len = per * (part.rank + width);
    spare.resize(len.max(spare.len()), 0.0);
    let (packed, tile) = spare.split_at_mut(per * part.rank);
    for group in rows.clone().step_by(per) {
        let m = per.min(rows.end - group);
        let h = &h[(group - rows.start) * stride..];
        gemm::pack(level, h, stride, 1, m, part.rank, scale, packed);
        for i in 0..m {
            tile[i * width..(i + 1) * width].copy_from_slice(y.row(group + i));
        }
        gemm::add(level, m, width, packed, &b[first..], part.outputs, tile, width);
        for i in 0..m {
            y.row(group + i).copy_from_slice(&tile[i * width..(i + 1) * width]);
        }
    }
}

impl Backward for Lora {
    fn learns(&self, site: Site) -> bool {
        self.grads.is_some() && self.part(site).is_some()
    }

    fn backward(&self, host: &mut Host<'_>, site: Site, x: Mat<'_>, dy: Mat<'_>, dx: Option<MatMut<'_>>) {
        let part = *self.part(site).expect("asked only where it learns");
        let Part { rank, inputs, outputs, scale } = part;
        let (level, n, i) = (host.level, x.rows(), site.0 as usize);
        let params = self.params.read(i);
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
        rows_times(host, input, a, h, rank);
        rows_times(host, dy, b, dh, rank);
        dh.iter_mut().for_each(|v| *v *= scale);
        // dB (transposed) [r][outputs] += s·hᵀ·dy
        let transposed = Factor { data: h, row: 1, step: rank };
        add_product(host, scale, transposed, n, dy.data(), outputs, MatMut::new(db, outputs));
        let transposed = Factor { data: dh, row: 1, step: rank };
        add_product(host, 1.0, transposed, n, input.data(), inputs, MatMut::new(da, inputs));
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
                    onlay_kernels::math::add_scaled(level, 1.0, piece, dx);
                }
            });
        } else {
            add_product(host, 1.0, straight, rank, a, inputs, dx);
        }
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
