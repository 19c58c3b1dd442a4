//! VeRA (Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2024): one random pair A, B for all products,
//! and two small vectors for each. As PEFT's `VeraConfig`.
//!
//! # Forward
//! ```text
//! y = W·x + bias + λb∘(B·(λd∘(A·drop(x))))
//! ```
//! # Backward
//! ```text
//! u = A·x    h = λd∘u    dh = (λb∘dy)·B    dλd += Σ_rows u∘dh    dλb += Σ_rows dy∘(B·h)    dx += drop′((λd∘dh)·A)
//! ```
//! # Shapes
//! A `[r][most inputs]`, B `[most outputs][r]`, kept transposed: a product takes the first columns of both. λd `[r]`, λb
//! `[outputs]`.
//!
//! B's rows are in the order of the converted model. Where GGUF keeps the outputs of a product in another order
//! ([`Names::row`]), a copy with its rows moved likewise stands in for it.

use super::effect::{Key, Memory, Rows, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use super::lora::{each_row, fold_pair, low_rank, pair_memory, rows_times};
use super::names::Names;
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Mat, MatMut};
use onlay_kernels::Level;
use std::ops::Range;

/// The pair that all products share; it never learns.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub rank: usize,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// `[r][inputs]`
    pub a: Vec<f32>,
    /// `[r][outputs]`
    pub b: Vec<f32>,
    /// The same for products whose outputs move; empty if there are none.
    moved: Vec<f32>,
    /// For each site, whether they do.
    moves: Vec<bool>,
}

impl Shared {
    /// The pair of these numbers, A `[r][inputs]` and B transposed `[r][outputs]`, for the sites of a program.
    pub(super) fn new(names: &Names, rank: usize, a: Vec<f32>, b: Vec<f32>) -> Shared {
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        let moves: Vec<bool> = names.sites().map(|s| names.moves(s)).collect();
        let moved = names.sites().find(|s| names.moves(*s)).map(|site| {
            let mut moved = b.clone();
            for (to, from) in moved.chunks_exact_mut(outputs).zip(b.chunks_exact(outputs)) {
                let rows = from.iter().enumerate().map(|(i, v)| (names.row(site, i), v));
                rows.filter(|(row, _)| *row < outputs).for_each(|(row, v)| to[row] = *v);
            }
            moved
        });
        Shared { rank, inputs, outputs, a, b, moved: moved.unwrap_or_default(), moves }
    }

    /// PEFT's start: both uniform with a variance of 2 over what a row multiplies.
    pub(super) fn random(names: &Names, parts: &[Option<Part>], rank: usize, rng: &mut Rng) -> Shared {
        let most = |f: fn(&Part) -> usize| parts.iter().flatten().map(f).max().unwrap_or(0);
        let (inputs, outputs) = (most(|p| p.inputs), most(|p| p.outputs));
        let mut draw = |n: usize, fan: usize| -> Vec<f32> {
            let bound = (6.0 / fan as f32).sqrt();
            (0..n).map(|_| (2.0 * rng.uniform() - 1.0) * bound).collect()
        };
        let (a, b) = (draw(rank * inputs, inputs), draw(rank * outputs, rank));
        Shared::new(names, rank, a, b)
    }

    /// B transposed as a site's outputs lie.
    pub(super) fn b_at(&self, site: Site) -> &[f32] {
        if self.moves[site.0 as usize] { &self.moved } else { &self.b }
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> u64 {
        4 * (self.a.len() + self.b.len() + self.moved.len()) as u64
    }
}

/// [`Effect::Vera`].
#[derive(Debug)]
pub(super) struct Vectors;

static KEYS: [Key; 2] = [
    Key { gguf: ".vera_d", peft: ".vera_lambda_d", flat: true },
    Key { gguf: ".vera_b", peft: ".vera_lambda_b", flat: true },
];

impl Rules for Vectors {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        p.rank + p.outputs
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let d = Tensor::vector(&KEYS[0], ("λd", p.rank), false);
        vec![d, Tensor::vector(&KEYS[1], ("λb", p.outputs), true)]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[1])?;
        let (rows, cols) = shapes(&KEYS[0])?;
        Some(Part { effect: Effect::Vera, rank: rows * cols, scale: 1.0, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        Part { scale: 1.0, ..part }
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        format!("rank {} shared", p.rank)
    }
    fn most_rank(&self, _: &Part) -> usize {
        usize::MAX
    }

    /// λd 0.1 and λb 0.
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, _: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        let mut numbers = layer.params().get(i);
        numbers[..part.rank].fill(0.1);
        numbers[part.rank..].fill(0.0);
    }

    /// What comes out is scaled last.
    fn times(&self, part: &mut Part, numbers: &mut [f32], by: f32) -> bool {
        numbers[part.rank..].iter_mut().for_each(|l| *l *= by);
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
        let (shared, params) =
            (layer.shared().expect("made with its pair"), layer.params().read(site.into()));
        let (a, d) = (&shared.a[units.start * shared.inputs..], &params[units.clone()]);
        let a = &a[..(units.len() * shared.inputs).min(a.len())];
        layer.hidden(level, site, first_row, x, (a, shared.inputs), h, stride, spare);
        for h in h.chunks_mut(stride) {
            h.iter_mut().zip(d).for_each(|(h, d)| *h *= d);
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
        let (shared, params) =
            (layer.shared().expect("made with its pair"), layer.params().read(site.into()));
        let (rank, b) = (shared.rank, (shared.b_at(site), shared.outputs));
        let gains = Some(&params[rank..]);
        low_rank(level, weight, (h, stride, rank), b, gains, first, y, rows, spare);
    }
    fn memory(&self, p: &Part, rows: usize, dropping: bool) -> Memory {
        let mut memory = pair_memory(p, rows, dropping);
        memory[3] = p.rank * p.outputs;
        memory
    }
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let (shared, params) =
            (layer.shared().expect("made with its pair"), layer.params().read(site.into()));
        let (d, b) = params.split_at(shared.rank);
        let (a, wide) = ((&shared.a[..], shared.inputs), (shared.b_at(site), shared.outputs));
        fold_pair(rows, weight, shared.rank, a, wide, Some(b), Some(d));
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
        let part = *layer.part(site).expect("asked only where it learns");
        let Part { rank: r, inputs, outputs, .. } = part;
        let shared = layer.shared().expect("made with its pair");
        let (n, i) = (x.rows(), site.0 as usize);
        let params = layer.params().read(i);
        let (d, lb) = params.split_at(r);
        let mut grads = layer.grads().get(i);
        let (dd, db) = grads.split_at_mut(r);
        let (mut h, mut dh, mut dropped) = (layer.memory.get(0), layer.memory.get(1), layer.memory.get(2));
        let (h, dh) = (&mut h[..n * r], &mut dh[..n * r]);
        let names = layer.names();
        let names = names.as_deref().map_or(&[][..], |n| n);
        let dropped = &mut dropped[..if names.is_empty() { 0 } else { n * inputs }];
        if !names.is_empty() {
            each_row(host, dropped, inputs, |row, to| layer.drop_into(site, names[row], 0, x.row(row), to));
        }
        let input = if names.is_empty() { x } else { Mat::new(dropped, inputs) };
        rows_times(host, input, &shared.a, shared.inputs, h, r);
        let mut memory = layer.memory.get(3);
        let wide = &mut memory[..r * outputs];
        let b = shared.b_at(site);
        for (to, b) in wide.chunks_exact_mut(outputs).zip(b.chunks_exact(shared.outputs)) {
            to.iter_mut().zip(b).zip(lb).for_each(|((to, b), l)| *to = l * b);
        }
        rows_times(host, dy, wide, outputs, dh, r);
        for (u, dh) in h.chunks_exact_mut(r).zip(dh.chunks_exact_mut(r)) {
            for (((u, dh), d), dd) in u.iter_mut().zip(dh).zip(d).zip(&mut *dd) {
                *dd += *u * *dh;
                *u *= d; // h
                *dh *= d; // the gradient of u
            }
        }
        // hᵀ·dy [r][outputs], and its product with B
        wide.fill(0.0);
        let transposed = Factor { data: h, row: 1, step: r };
        add_product(host, 1.0, transposed, n, dy.data(), outputs, MatMut::new(wide, outputs));
        for (through, b) in wide.chunks_exact(outputs).zip(b.chunks_exact(shared.outputs)) {
            db.iter_mut().zip(through).zip(b).for_each(|((db, t), b)| *db += t * b);
        }
        let Some(mut dx) = dx else { return };
        layer.input_back(host, site, names, dropped, dh, &shared.a, shared.inputs, dx.again());
        product_back(host, base.matrix, None, dy, dx);
    }
}
