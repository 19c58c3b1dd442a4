//! AdaLoRA (Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023): triplets in place of a
//! pair, kept near to a singular value decomposition, of which the less important ones are given up while it learns. As
//! PEFT's `AdaLoraConfig`.
//!
//! # Forward
//! ```text
//! y = W·x + bias + s·B·(E∘(A·drop(x)))            s = α/(r + 1e-5), with the r that it began with
//! ```
//! # Backward
//! ```text
//! u = A·drop(x)    h = E∘u    dh = s·dy·B    dB += s·dyᵀ·h    dE += Σ_rows u∘dh
//! dA += (E∘dh)ᵀ·drop(x)       dx += drop′((E∘dh)·A)
//! ```
//! # Orthogonality
//! A term of the loss, once per step, is w times the mean of ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ over all places:
//! ```text
//! dA += 2w/n·(A·Aᵀ − I)·A/‖A·Aᵀ − I‖            n = 2·places; the same of Bᵀ
//! ```
//! # Budget
//! A step t is: gradients, clipping, AdamW, then this, with the new numbers p and the clipped gradients g.
//! ```text
//! I ← β₁·I + (1 − β₁)·|p·g|    U ← β₂·U + (1 − β₂)·||p·g| − I|            while t < steps − tfinal
//! score of a triplet = (I·U of E) + mean (I·U of its row of A) + mean (I·U of its column of B)
//! budget = (r − target)·(1 − (t − tinit)/(steps − tfinal − tinit))³ + target            times the places, rounded down
//! ```
//! and where t > tinit is a multiple of `every`, or is steps − tfinal, all triplets but so many lose their E: those whose
//! score is not above that of the best one to go. Between that AdamW may bring an E back; behind steps − tfinal the last
//! choice stands.
//!
//! # Shapes
//! A `[r][inputs]`, E `[r]`, B `[outputs][r]`, kept transposed; then, only while it learns ([`Part::more`]), I and U of all
//! these, and what is kept, 1 or 0, `[r]`. They are numbers of the layer that do not learn, so checkpoints have them.

use super::effect::{Each, Key, Memory, Rows, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use super::lora::{each_row, fold_pair, low_rank, pair_memory, pair_tensors, rows_times};
use crate::error::{Error, Findings, Kind, Result};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Chunks, Mat, MatMut};
use onlay_kernels::{Level, math};
use std::fmt;
use std::ops::Range;

/// How the ranks of AdaLoRA shrink.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// The mean rank at the end; two thirds of the first one unless told.
    pub target: Option<usize>,
    /// Steps before the first triplet goes; a tenth of all unless told.
    pub tinit: Option<u64>,
    /// Steps behind the last one; three tenths of all unless told.
    pub tfinal: Option<u64>,
    /// Steps from one choice to the next; a hundredth of all unless told.
    pub every: Option<u64>,
    /// How long importance is remembered.
    pub beta1: f64,
    /// The same of its uncertainty.
    pub beta2: f64,
    /// w, the weight of orthogonality in the loss.
    pub orthogonality: f64,
}

/// PEFT's numbers.
impl Default for Budget {
    fn default() -> Self {
        let (target, tinit, tfinal, every) = (None, None, None, None);
        Budget { target, tinit, tfinal, every, beta1: 0.85, beta2: 0.85, orthogonality: 0.5 }
    }
}

/// For the terms of a run.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A budget whose run is known.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Schedule {
    target: usize,
    tinit: u64,
    /// The step of the last choice.
    last: u64,
    every: u64,
}

impl Budget {
    fn schedule(&self, rank: usize, steps: u64) -> Schedule {
        Schedule {
            target: self.target.unwrap_or((2 * rank).div_ceil(3)),
            tinit: self.tinit.unwrap_or(steps / 10),
            last: steps.saturating_sub(self.tfinal.unwrap_or(steps * 3 / 10)),
            every: self.every.unwrap_or(steps / 100).max(1),
        }
    }

    /// Finds what cannot be, for layers of this rank that learn for so many steps.
    fn check(&self, rank: usize, steps: u64, wrong: &mut Findings) {
        let s = self.schedule(rank, steps);
        let mut need = |what: &str, good: bool, expected: String, found: String| {
            if !good {
                wrong.push(Error::expected(Kind::Argument, what, expected, found));
            }
        };
        let range = format!("1 to the first rank, {rank}");
        need("target-rank", (1..=rank).contains(&s.target), range, s.target.to_string());
        let expected = format!("below {}, the step of the last choice, which is {steps} less tfinal", s.last);
        need("tinit", s.tinit < s.last, expected, s.tinit.to_string());
        need("delta-t", self.every != Some(0), "at least 1".into(), "0".into());
        for (what, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            need(what, beta > 0.0 && beta < 1.0, "between 0 and 1".into(), beta.to_string());
        }
        let w = self.orthogonality;
        need("orthogonality", w >= 0.0 && w.is_finite(), "finite, 0 or more".into(), w.to_string());
    }
}

impl Schedule {
    /// How many triplets of `all`, of so many places, step `t` leaves.
    fn budget(&self, t: u64, all: usize, places: usize) -> usize {
        let target = self.target * places;
        match t {
            t if t <= self.tinit => all,
            t if t > self.last => target,
            t => {
                let share = 1.0 - (t - self.tinit) as f64 / (self.last - self.tinit) as f64;
                ((all as f64 - target as f64) * share.powi(3) + target as f64) as usize
            }
        }
    }

    /// Whether step `t` chooses.
    fn chooses(&self, t: u64) -> bool {
        t == self.last || (t > self.tinit && t < self.last && t.is_multiple_of(self.every))
    }
}

/// [`Effect::Triplets`].
#[derive(Debug)]
pub(super) struct Triplets;

pub(super) static KEYS: [Key; 3] = [
    Key { gguf: ".adalora_a", peft: ".lora_A", flat: false },
    Key { gguf: ".adalora_e", peft: ".lora_E", flat: false },
    Key { gguf: ".adalora_b", peft: ".lora_B", flat: false },
];

/// The numbers that learn.
fn learning(p: &Part) -> usize {
    p.pair() + p.rank
}

/// Whether it has what it needs to give up ranks.
fn has_state(p: &Part) -> bool {
    p.effect == Effect::Triplets && p.more[0] != 0
}

/// A, E and B.
fn triplets<'a>(p: &Part, numbers: &'a [f32]) -> [&'a [f32]; 3] {
    let (a, rest) = numbers.split_at(p.rank * p.inputs);
    let (e, rest) = rest.split_at(p.rank);
    [a, e, &rest[..p.rank * p.outputs]]
}

fn triplets_mut<'a>(p: &Part, numbers: &'a mut [f32]) -> [&'a mut [f32]; 3] {
    let (a, rest) = numbers.split_at_mut(p.rank * p.inputs);
    let (e, rest) = rest.split_at_mut(p.rank);
    [a, e, &mut rest[..p.rank * p.outputs]]
}

impl Rules for Triplets {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        if has_state(p) { 3 * learning(p) + p.rank } else { learning(p) }
    }
    fn remembers(&self, p: &Part) -> usize {
        self.len(p) - learning(p)
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let [a, b] = pair_tensors(p);
        let e = Tensor {
            key: &KEYS[1],
            rows: ("rank, as of A", p.rank),
            cols: ("columns", 1),
            transposed: false,
            on_outputs: false,
        };
        vec![Tensor { key: &KEYS[0], ..a }, e, Tensor { key: &KEYS[2], ..b }]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[1])?;
        Some(Part { effect: Effect::Triplets, rank: shapes(&KEYS[0])?.0, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        let divisor = part.rank as f64;
        Part { scale: (f64::from(part.scale) * divisor / (divisor + 1e-5)) as f32, ..part }
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        format!("triplets {} scale {}", p.rank, p.scale)
    }
    fn scaled(&self) -> bool {
        true
    }
    fn most_rank(&self, p: &Part) -> usize {
        p.inputs.min(p.outputs)
    }
    fn learned(&self, p: &Part) -> [(Range<usize>, bool); 3] {
        [(0..learning(p), false), (0..0, false), (0..0, false)]
    }

    /// PEFT's: A and B normal with a deviation of 0.02, E zero.
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, rng: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        let mut numbers = layer.params().get(i);
        let [a, e, b] = triplets_mut(&part, &mut numbers);
        a.iter_mut().chain(b).for_each(|v| *v = 0.02 * rng.normal());
        e.fill(0.0);
    }
    fn times(&self, part: &mut Part, _: &mut [f32], by: f32) -> bool {
        part.scale *= by;
        true
    }

    /// Without what only learning needs, and without the triplets that were given up.
    fn published(&self, layer: &Layer, i: usize) -> Option<(Part, Vec<f32>)> {
        let (p, numbers) = (&layer.parts()[i].filter(has_state)?, &layer.params().read(i));
        let [a, e, b] = triplets(p, numbers);
        let kept = &numbers[3 * learning(p)..];
        let stay: Vec<usize> = (0..p.rank).filter(|j| kept[*j] != 0.0 || e[*j] != 0.0).collect();
        let rows = |all: &[f32], k: usize| -> Vec<f32> {
            stay.iter().flat_map(|j| all[j * k..(j + 1) * k].iter().copied()).collect()
        };
        let part = Part { rank: stay.len(), more: [0; 4], ..*p };
        let numbers = [rows(a, p.inputs), rows(e, 1), rows(b, p.outputs)].concat();
        Some((part, numbers))
    }

    /// A·Aᵀ, Bᵀ·B and the scores.
    fn derived(&self, p: &Part) -> (usize, usize) {
        (if has_state(p) { 2 * p.rank * p.rank + p.rank } else { 0 }, 0)
    }
    fn settle(&self, layer: &Layer, i: usize, _: &Model, level: Level, _: Each<'_>) {
        let part = layer.parts()[i].expect("a part");
        if !has_state(&part) {
            return;
        }
        let (params, mut derived) = (layer.params().read(i), layer.derived.get(i));
        let ([a, _, b], r) = (triplets(&part, &params), part.rank);
        let (grams, scores) = derived.numbers.split_at_mut(2 * r * r);
        for (gram, (m, k)) in grams.chunks_exact_mut(r * r).zip([(a, part.inputs), (b, part.outputs)]) {
            for j in 0..r {
                for l in 0..=j {
                    let inner = math::inner(level, &m[j * k..(j + 1) * k], &m[l * k..(l + 1) * k]);
                    (gram[j * r + l], gram[l * r + j]) = (inner, inner);
                }
            }
        }
        scores.fill(0.0);
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
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let [a, e, _] = triplets(part, &params);
        let a = &a[units.start * part.inputs..units.end * part.inputs];
        layer.hidden(level, site, first_row, x, (a, part.inputs), h, stride, spare);
        for h in h.chunks_mut(stride) {
            h.iter_mut().zip(&e[units.clone()]).for_each(|(h, e)| *h *= e);
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
        let [_, _, b] = triplets(part, &params);
        let h = (h, stride, part.rank);
        low_rank(level, part.scale * weight, h, (b, part.outputs), None, first, y, rows, spare);
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
        let part = *layer.part(site).expect("asked only where it learns");
        let Part { rank: r, inputs, outputs, scale, .. } = part;
        let (n, i) = (x.rows(), site.into());
        let (params, mut grads) = (layer.params().read(i), layer.grads().get(i));
        let [a, e, b] = triplets(&part, &params);
        let [da, de, db] = triplets_mut(&part, &mut grads);
        let (mut h, mut dh, mut dropped) = (layer.memory.get(0), layer.memory.get(1), layer.memory.get(2));
        let (h, dh) = (&mut h[..n * r], &mut dh[..n * r]);
        let names = layer.names();
        let names = names.as_deref().map_or(&[][..], |n| n);
        let dropped = &mut dropped[..if names.is_empty() { 0 } else { n * inputs }];
        if !names.is_empty() {
            each_row(host, dropped, inputs, |row, to| layer.drop_into(site, names[row], 0, x.row(row), to));
        }
        let input = if names.is_empty() { x } else { Mat::new(dropped, inputs) };
        rows_times(host, input, a, inputs, h, r);
        rows_times(host, dy, b, outputs, dh, r);
        for (u, dh) in h.chunks_exact_mut(r).zip(dh.chunks_exact_mut(r)) {
            for (((u, dh), e), de) in u.iter_mut().zip(dh).zip(e).zip(&mut *de) {
                *dh *= scale;
                *de += *u * *dh;
                *u *= e; // h
                *dh *= e; // the gradient of u
            }
        }
        let transposed = Factor { data: h, row: 1, step: r };
        add_product(host, scale, transposed, n, dy.data(), outputs, MatMut::new(db, outputs));
        let transposed = Factor { data: dh, row: 1, step: r };
        add_product(host, 1.0, transposed, n, input.data(), inputs, MatMut::new(da, inputs));
        let Some(mut dx) = dx else { return };
        layer.input_back(host, site, names, dropped, dh, a, inputs, dx.again());
        product_back(host, base.matrix, None, dy, dx);
    }

    /// The gradients of orthogonality.
    fn before_update(&self, layer: &Layer, i: usize, level: Level, each: Each<'_>) {
        let (part, budget) = (layer.parts()[i].filter(has_state), layer.budget());
        let (Some(part), Some(budget)) = (part, budget.filter(|b| b.orthogonality > 0.0)) else { return };
        let weight = budget.orthogonality / (2 * layer.parts().iter().flatten().count()) as f64;
        let (params, derived, mut grads) =
            (layer.params().read(i), layer.derived.read(i), layer.grads().get(i));
        let ([a, _, b], [da, _, db], r) =
            (triplets(&part, &params), triplets_mut(&part, &mut grads), part.rank);
        let both = [(a, da, part.inputs), (b, db, part.outputs)];
        for (gram, (m, dm, k)) in derived.numbers.chunks_exact(r * r).zip(both) {
            let off = |j: usize, l: usize| gram[j * r + l] - if j == l { 1.0 } else { 0.0 };
            let squares = (0..r * r).map(|at| f64::from(off(at / r, at % r)).powi(2)).sum::<f64>();
            if squares == 0.0 {
                continue; // it is orthogonal; there is no slope at the bottom
            }
            let by = (2.0 * weight / squares.sqrt()) as f32;
            let rows = Chunks::new([dm], k);
            each(r, &|_| {
                let Some((j, [dm])) = rows.next() else { return };
                m.chunks_exact(k).enumerate().for_each(|(l, m)| {
                    math::add_scaled(level, by * off(j, l), m, dm);
                });
            });
        }
    }
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let [a, e, b] = triplets(part, &params);
        let (a, b) = ((a, part.inputs), (b, part.outputs));
        fold_pair(rows, part.scale * weight, part.rank, a, b, None, Some(e));
    }
}

impl Layer {
    /// The same, giving up ranks while it learns (AdaLoRA).
    ///
    /// # Errors
    /// `Argument` for a layer of another method.
    pub fn allocating(&self, budget: Budget) -> Result<Layer> {
        if self.is_empty() || self.parts().iter().flatten().any(|p| p.effect != Effect::Triplets) {
            let found = self.method().name;
            return Err(Error::expected(Kind::Argument, "layer that gives up ranks", "adalora", found));
        }
        let mut layer = self.copy();
        for i in 0..self.parts().len() {
            let Some(part) = self.parts()[i].filter(|p| !has_state(p)) else { continue };
            let (n, part) = (learning(&part), Part { more: [1, 0, 0, 0], ..part });
            let mut all = self.params().read(i).clone();
            all.resize(3 * n, 0.0);
            all.resize(part.len(), 1.0);
            layer.put(i, part, all);
        }
        layer.budget = Some(budget);
        Ok(layer)
    }

    /// How it gives up ranks.
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// Of a place that may give up ranks, the triplets that the last choice has left.
    pub fn kept(&self, place: usize) -> Option<Vec<bool>> {
        let part = self.parts()[place].filter(has_state)?;
        Some(self.params().read(place)[3 * learning(&part)..].iter().map(|k| *k != 0.0).collect())
    }

    /// Finds what its budget cannot do in so many steps.
    pub fn check_budget(&self, steps: u64, wrong: &mut Findings) {
        let ranks = self.parts().iter().flatten().map(|p| p.rank);
        if let (Some(budget), Some(rank)) = (self.budget, ranks.max()) {
            budget.check(rank, steps, wrong);
        }
    }

    /// Behind AdamW of step `t` of so many: judges triplets, and gives up those beyond the budget. Gradients count `clip`
    /// times.
    pub fn allocate(&self, t: u64, steps: u64, clip: f32, each: Each<'_>) {
        let Some(budget) = self.budget else { return };
        let with = || self.parts().iter().flatten();
        let Some(first) = with().map(|p| p.rank).max() else { return };
        let s = budget.schedule(first, steps);
        if t < s.last {
            each(self.parts().len(), &|i| self.judge(i, &budget, clip));
        }
        let (all, places) = (with().map(|p| p.rank).sum::<usize>(), with().count());
        let go = all.saturating_sub(s.budget(t, all, places));
        if s.chooses(t) && go > 0 {
            each(self.parts().len(), &|i| self.score(i));
            let last = self.worst(go);
            for (i, part) in self.parts().iter().enumerate() {
                let Some(part) = part else { continue };
                let (mut params, derived) = (self.params().get(i), self.derived.read(i));
                let kept = &mut params[3 * learning(part)..];
                let scores = &derived.numbers[2 * part.rank * part.rank..];
                kept.iter_mut().zip(scores).for_each(|(kept, s)| *kept = if *s > last { 1.0 } else { 0.0 });
            }
        }
        if s.chooses(t) || t > s.last {
            for (i, part) in self.parts().iter().enumerate() {
                let Some(part) = part else { continue };
                let mut params = self.params().get(i);
                let (numbers, kept) = params.split_at_mut(3 * learning(part));
                let [_, e, _] = triplets_mut(part, numbers);
                e.iter_mut().zip(kept).filter(|(_, kept)| **kept == 0.0).for_each(|(e, _)| *e = 0.0);
            }
        }
    }

    /// I and U of a place.
    fn judge(&self, i: usize, budget: &Budget, clip: f32) {
        let Some(part) = self.parts()[i] else { return };
        let (n, mut params, grads) = (learning(&part), self.params().get(i), self.grads().read(i));
        let (p, state) = params.split_at_mut(n);
        let (sums, rest) = state.split_at_mut(n);
        let (b1, b2) = (budget.beta1 as f32, budget.beta2 as f32);
        let (c1, c2) = ((1.0 - budget.beta1) as f32, (1.0 - budget.beta2) as f32);
        for (((p, g), i), u) in p.iter().zip(&*grads).zip(sums).zip(rest) {
            let now = (p * (clip * g)).abs();
            *i = b1 * *i + c1 * now;
            *u = b2 * *u + c2 * (now - *i).abs();
        }
    }

    /// The scores of a place.
    fn score(&self, i: usize) {
        let Some(part) = self.parts()[i] else { return };
        let (n, params, mut derived) = (learning(&part), self.params().read(i), self.derived.get(i));
        let (sums, spreads) = (triplets(&part, &params[n..]), triplets(&part, &params[2 * n..]));
        let mean = |which: usize, j: usize, k: usize| {
            let both = sums[which][j * k..(j + 1) * k].iter().zip(&spreads[which][j * k..(j + 1) * k]);
            both.map(|(i, u)| f64::from(i * u)).sum::<f64>() / k as f64
        };
        for (j, to) in derived.numbers[2 * part.rank * part.rank..].iter_mut().enumerate() {
            *to = (mean(1, j, 1) + mean(0, j, part.inputs) + mean(2, j, part.outputs)) as f32;
        }
    }

    /// The score of the best of the `go` worst triplets.
    fn worst(&self, go: usize) -> f32 {
        let places = || self.parts().iter().enumerate().filter_map(|(i, p)| Some((i, p.as_ref()?)));
        let count = |of: f32| {
            let each = places().map(|(i, p)| {
                let derived = self.derived.read(i);
                derived.numbers[2 * p.rank * p.rank..].iter().filter(|s| **s < of).count()
            });
            each.sum::<usize>()
        };
        // the largest score with fewer than `go` below it
        let best = places().map(|(i, p)| {
            let derived = self.derived.read(i);
            let scores = derived.numbers[2 * p.rank * p.rank..].iter().copied();
            scores.filter(|s| count(*s) < go).fold(f32::NEG_INFINITY, f32::max)
        });
        best.fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_shrink_as_peft_has_them() {
        let b =
            Budget { target: Some(3), tinit: Some(3), tfinal: Some(5), every: Some(2), ..Budget::default() };
        let s = b.schedule(6, 20);
        let found: Vec<usize> = (1..=20).map(|t| s.budget(t, 48, 8)).collect();
        let want = [48, 48, 48, 42, 37, 34, 31, 28, 27, 25, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24];
        assert_eq!(found, want);
        let chosen: Vec<u64> = (1..=20).filter(|t| s.chooses(*t)).collect();
        assert_eq!(chosen, [4, 6, 8, 10, 12, 14, 15]);
    }

    #[test]
    fn budgets_that_cannot_be() {
        let refused = |b: Budget, steps| {
            let mut wrong = Findings::default();
            b.check(6, steps, &mut wrong);
            wrong.refuse("budget").err().map_or(0, |e| e.findings().len().max(1))
        };
        for steps in [2, 3, 6, 10, 1000] {
            assert_eq!(refused(Budget::default(), steps), 0, "{steps}");
        }
        let bad = Budget {
            target: Some(7),
            tinit: Some(5),
            tfinal: Some(5),
            every: Some(0),
            beta1: 1.0,
            beta2: 0.0,
            orthogonality: -1.0,
        };
        assert_eq!(refused(bad, 10), 6);
    }
}
