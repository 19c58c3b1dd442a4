//! LoHa (Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", 2022;
//! LyCORIS, arXiv 2309.14859): the element-wise product of two low-rank matrices. As PEFT's `LoHaConfig`.
//!
//! # Forward
//! ```text
//! ΔW = s·(A₁·B₁)∘(A₂·B₂)            s = α/r
//! y = W·x + bias + s·Σⱼ A₁[·,j]∘(A₂·hⱼ)            hⱼ = B₂·(B₁[j,·]∘drop(x))
//! ```
//! That is a pair of rank r² whose halves are never made: r products of rank r, with r·(inputs + outputs) numbers per
//! place in memory, where ΔW has inputs·outputs. A row takes (r² + r)·(inputs + outputs) multiplications; the base's takes
//! inputs·outputs.
//!
//! # Backward
//! With the halves A = [A₁ⱼ∘A₂ₖ] and B = [B₁ⱼ∘B₂ₖ] of r² units, made once for all places:
//! ```text
//! dh = s·dy·A    M = s·hᵀ·dy     dA₁ⱼ += Σₖ Mⱼₖ∘A₂ₖ    dA₂ₖ += Σⱼ Mⱼₖ∘A₁ⱼ
//!                N = dhᵀ·drop(x)  dB₁ⱼ += Σₖ Nⱼₖ∘B₂ₖ    dB₂ₖ += Σⱼ Nⱼₖ∘B₁ⱼ    dx += drop′(dh·B)
//! ```
//! # Shapes
//! A₁, A₂ `[outputs][r]`, kept transposed, `[r][outputs]`; B₁, B₂ `[r][inputs]`. In memory A₁, B₁, A₂, B₂.

use super::effect::{Key, Memory, Rows, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use super::lora::{each_row, low_rank, rows_times};
use crate::error::{Error, Kind};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Mat, MatMut};
use onlay_kernels::dense::{Dense, product};
use onlay_kernels::{Level, math};
use std::ops::Range;

/// [`Effect::Hadamard`].
#[derive(Debug)]
pub(super) struct Hadamard;

static KEYS: [Key; 4] = [
    Key { gguf: ".hada_w1_a", peft: ".hada_w1_a", flat: false },
    Key { gguf: ".hada_w1_b", peft: ".hada_w1_b", flat: false },
    Key { gguf: ".hada_w2_a", peft: ".hada_w2_a", flat: false },
    Key { gguf: ".hada_w2_b", peft: ".hada_w2_b", flat: false },
];

/// The largest rank: every row of a batch has r² hidden numbers.
const MOST: usize = 128;

/// Rows that are multiplied together where inputs have a factor.
const ROWS: usize = 4;

/// A₁, B₁, A₂, B₂.
fn factors<'a>(p: &Part, numbers: &'a [f32]) -> [&'a [f32]; 4] {
    let (a, b) = (p.rank * p.outputs, p.rank * p.inputs);
    let (first, second) = numbers.split_at(a + b);
    let ((a1, b1), (a2, b2)) = (first.split_at(a), second.split_at(a));
    [a1, b1, a2, b2]
}

fn factors_mut<'a>(p: &Part, numbers: &'a mut [f32]) -> [&'a mut [f32]; 4] {
    let (a, b) = (p.rank * p.outputs, p.rank * p.inputs);
    let (first, second) = numbers.split_at_mut(a + b);
    let ((a1, b1), (a2, b2)) = (first.split_at_mut(a), second.split_at_mut(a));
    [a1, b1, a2, b2]
}

/// `to[j·r + k] = first[j]∘second[k]`, rows of k numbers.
fn halves(host: &mut Host<'_>, first: &[f32], second: &[f32], k: usize, to: &mut [f32]) {
    let r = first.len() / k;
    each_row(host, to, k, |unit, to| {
        let both = first[unit / r * k..][..k].iter().zip(&second[unit % r * k..][..k]);
        to.iter_mut().zip(both).for_each(|(to, (a, b))| *to = a * b);
    });
}

/// Adds the gradients of [`halves`] to those of both.
fn halves_back(
    host: &mut Host<'_>,
    [first, second]: [&[f32]; 2],
    [d_first, d_second]: [&mut [f32]; 2],
    k: usize,
    grad: &[f32],
) {
    let r = first.len() / k;
    let add = |unit: usize, by: &[f32], to: &mut [f32]| {
        let grad = &grad[unit * k..][..k];
        to.iter_mut().zip(grad).zip(by).for_each(|((to, g), by)| *to += g * by);
    };
    each_row(host, d_first, k, |j, to| (0..r).for_each(|i| add(j * r + i, &second[i * k..][..k], to)));
    each_row(host, d_second, k, |i, to| (0..r).for_each(|j| add(j * r + i, &first[j * k..][..k], to)));
}

impl Rules for Hadamard {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        2 * p.pair()
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let a = |key| Tensor {
            key,
            rows: ("outputs", p.outputs),
            cols: ("rank, as in the other factors", p.rank),
            transposed: true,
            on_outputs: true,
        };
        let b = |key| Tensor {
            key,
            rows: ("rank", p.rank),
            cols: ("inputs", p.inputs),
            transposed: false,
            on_outputs: false,
        };
        vec![a(&KEYS[0]), b(&KEYS[1]), a(&KEYS[2]), b(&KEYS[3])]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[0])?;
        Some(Part { effect: Effect::Hadamard, rank: shapes(&KEYS[1])?.0, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        part
    }
    fn unfit(&self, p: &Part) -> Option<Error> {
        let range = format!("at most {MOST}: every row has r² hidden numbers");
        (p.rank > MOST).then(|| Error::expected(Kind::Unsupported, "rank", range, p.rank))
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        format!("rank {}² scale {}", p.rank, p.scale)
    }
    fn scaled(&self) -> bool {
        true
    }
    fn most_rank(&self, p: &Part) -> usize {
        p.inputs.min(p.outputs).min(MOST)
    }

    /// PEFT's: A₁ and A₂ uniform in ±1/√r, B₁ in ±1/√inputs, B₂ zero.
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, rng: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        let mut numbers = layer.params().get(i);
        let [a1, b1, a2, b2] = factors_mut(&part, &mut numbers);
        for (to, fan) in [(a1, part.rank), (b1, part.inputs), (a2, part.rank)] {
            let bound = 1.0 / (fan as f32).sqrt();
            to.iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
        }
        b2.fill(0.0);
    }
    fn times(&self, part: &mut Part, _: &mut [f32], by: f32) -> bool {
        part.scale *= by;
        true
    }
    fn width(&self, p: &Part) -> usize {
        p.rank * p.rank
    }

    /// Unit j·r + k is `B₂[k]·(B₁[j]∘x)`.
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
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let (r, inputs) = (part.rank, part.inputs);
        let [_, b1, _, b2] = factors(part, &params);
        let names = layer.names();
        let names = first_row.zip(names.as_deref()).and_then(|(first, n)| n.get(first..first + x.rows()));
        spare.resize((2 * ROWS * inputs).max(spare.len()), 0.0);
        let (dropped, scaled) = spare[..2 * ROWS * inputs].split_at_mut(ROWS * inputs);
        for from in (0..x.rows()).step_by(ROWS) {
            let n = ROWS.min(x.rows() - from);
            let (dropped, scaled) = (&mut dropped[..n * inputs], &mut scaled[..n * inputs]);
            match names {
                None => dropped.copy_from_slice(x.part(from..from + n).data()),
                Some(names) => {
                    for (i, to) in dropped.chunks_exact_mut(inputs).enumerate() {
                        layer.drop_into(site, names[from + i], 0, x.row(from + i), to);
                    }
                }
            }
            let mut unit = units.start;
            while unit < units.end {
                let (j, k) = (unit / r, unit % r);
                let next = units.end.min((j + 1) * r);
                let by = &b1[j * inputs..][..inputs];
                for (to, x) in scaled.chunks_exact_mut(inputs).zip(dropped.chunks_exact(inputs)) {
                    to.iter_mut().zip(x).zip(by).for_each(|((to, x), b)| *to = x * b);
                }
                let w = bytemuck::cast_slice(&b2[k * inputs..(k + next - unit) * inputs]);
                let h = &mut h[from * stride + unit - units.start..];
                product(level, Dense::F32, w, 4 * inputs, scaled, inputs, h, stride);
                unit = next;
            }
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
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let (r, outputs) = (part.rank, part.outputs);
        let [a1, _, a2, _] = factors(part, &params);
        for (j, gains) in a1.chunks_exact(outputs).enumerate() {
            let (h, a2, rows) = ((&h[j * r..], stride, r), (a2, outputs), rows.clone());
            low_rank(level, part.scale * weight, h, a2, Some(gains), first, y, rows, spare);
        }
    }
    fn memory(&self, p: &Part, rows: usize, dropping: bool) -> Memory {
        let (r2, most) = (p.rank * p.rank, p.inputs.max(p.outputs));
        let dropped = if dropping { rows * p.inputs } else { 0 };
        [rows * r2, rows * r2, dropped, r2 * p.inputs, r2 * most, 0]
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
        let Part { rank, inputs, outputs, scale, .. } = part;
        let (n, units, i) = (x.rows(), rank * rank, site.into());
        let (params, mut grads) = (layer.params().read(i), layer.grads().get(i));
        let [a1, b1, a2, b2] = factors(&part, &params);
        let [da1, db1, da2, db2] = factors_mut(&part, &mut grads);
        let (mut h, mut dh, mut dropped) = (layer.memory.get(0), layer.memory.get(1), layer.memory.get(2));
        let (h, dh) = (&mut h[..n * units], &mut dh[..n * units]);
        let names = layer.names();
        let names = names.as_deref().map_or(&[][..], |n| n);
        let dropped = &mut dropped[..if names.is_empty() { 0 } else { n * inputs }];
        if !names.is_empty() {
            each_row(host, dropped, inputs, |row, to| layer.drop_into(site, names[row], 0, x.row(row), to));
        }
        let input = if names.is_empty() { x } else { Mat::new(dropped, inputs) };
        let (mut b, mut wide) = (layer.memory.get(3), layer.memory.get(4));
        let b = &mut b[..units * inputs];
        halves(host, b1, b2, inputs, b);
        rows_times(host, input, b, inputs, h, units);
        {
            let a = &mut wide[..units * outputs];
            halves(host, a1, a2, outputs, a);
            rows_times(host, dy, a, outputs, dh, units);
            dh.iter_mut().for_each(|v| *v *= scale);
            a.fill(0.0);
            let transposed = Factor { data: h, row: 1, step: units };
            add_product(host, scale, transposed, n, dy.data(), outputs, MatMut::new(a, outputs));
            halves_back(host, [a1, a2], [da1, da2], outputs, a);
        }
        let through = &mut wide[..units * inputs];
        through.fill(0.0);
        let transposed = Factor { data: dh, row: 1, step: units };
        add_product(host, 1.0, transposed, n, input.data(), inputs, MatMut::new(through, inputs));
        halves_back(host, [b1, b2], [db1, db2], inputs, through);
        let Some(mut dx) = dx else { return };
        layer.input_back(host, site, names, dropped, dh, b, inputs, dx.again());
        product_back(host, base.matrix, None, dy, dx);
    }

    /// A row of ΔW is the product of two sums of r rows.
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let [a1, b1, a2, b2] = factors(part, &params);
        let Rows { level, first, n, sum, spare, .. } = rows;
        let (k, scale) = (part.inputs, part.scale * weight);
        spare.resize((2 * k).max(spare.len()), 0.0);
        let (one, other) = spare[..2 * k].split_at_mut(k);
        for (row, sum) in (first..first + n).zip(sum.chunks_exact_mut(k)) {
            for (to, a, b) in [(&mut *one, a1, b1), (&mut *other, a2, b2)] {
                to.fill(0.0);
                for (a, b) in a.chunks_exact(part.outputs).zip(b.chunks_exact(k)) {
                    math::add_scaled(level, a[row], b, to);
                }
            }
            let both = one.iter().zip(&*other);
            sum.iter_mut().zip(both).for_each(|(sum, (a, b))| *sum += scale * a * b);
        }
    }
}
