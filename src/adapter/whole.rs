//! Whole matrices in place of the base's: full fine-tuning, and half fine-tuning (Hui et al., "HFT: Half Fine-Tuning for
//! Large Language Models", 2024, arXiv 2404.18466), which trains half of every block's matrices in a round and leaves the
//! others as they are.
//!
//! # Forward
//! ```text
//! y = W′·x + bias
//! ```
//! # Backward
//! ```text
//! dW′ += dyᵀ·x          dx += dy·W′
//! ```
//! # Shapes
//! W′ `[outputs][inputs]` in f32, outside the map, beginning with the base's. So off is still the base, bit for bit.
//!
//! A part whose `frozen` is not 0 does not learn: it was trained in an earlier round.

use super::effect::{Key, Rows, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, product_back};
use crate::rng::{Rng, hash};
use crate::tensor::{Mat, MatMut, Matrix, Storage};
use onlay_kernels::Level;
use onlay_kernels::dense::Dense;
use std::ops::Range;

/// [`Effect::Whole`].
#[derive(Debug)]
pub(super) struct Whole;

static KEYS: [Key; 1] = [Key { gguf: ".whole", peft: ".weight", flat: false }];

impl Rules for Whole {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        p.inputs * p.outputs
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let (rows, cols) = (("outputs", p.outputs), ("inputs", p.inputs));
        vec![Tensor { key: &KEYS[0], rows, cols, transposed: false, on_outputs: true }]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[0])?;
        Some(Part { effect: Effect::Whole, ..part })
    }
    fn describe(&self, p: &Part) -> String {
        if p.frozen > 0 { "whole, as it was".into() } else { "whole".into() }
    }
    fn learned(&self, p: &Part) -> [(Range<usize>, bool); 3] {
        let all = if p.frozen > 0 { 0 } else { p.len() };
        [(0..all, false), (0..0, false), (0..0, false)]
    }
    fn start(&self, layer: &Layer, i: usize, model: &Model, level: Level, _: &mut Rng) {
        base_rows(model, level, i, &mut layer.params().get(i));
    }
    fn stands_for(&self, model: &Model, level: Level, i: usize, numbers: &[f32]) -> Option<Vec<f32>> {
        let mut base = vec![0.0; numbers.len()];
        base_rows(model, level, i, &mut base);
        Some(base)
    }
    fn replaces(&self) -> bool {
        true
    }
    fn backward(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        _: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let part = layer.part(site).expect("a part");
        let Part { inputs, outputs, .. } = *part;
        if part.frozen == 0 {
            let mut grads = layer.grads().get(site.into());
            let transposed = Factor { data: dy.data(), row: 1, step: outputs };
            let dw = MatMut::new(&mut grads, inputs);
            add_product(host, 1.0, transposed, x.rows(), x.data(), inputs, dw);
        }
        let Some(dx) = dx else { return };
        let params = layer.params().read(site.into());
        let own = Matrix {
            storage: Storage::Dense(Dense::F32),
            rows: outputs,
            cols: inputs,
            row_bytes: 4 * inputs,
            bytes: bytemuck::cast_slice(&params),
        };
        product_back(host, own, None, dy, dx);
    }
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let Rows { first, sum, base, .. } = rows;
        let params = layer.params().read(site.into());
        let k = layer.part(site).expect("a part").inputs;
        let own = &params[first * k..];
        sum.iter_mut().zip(own).zip(base).for_each(|((sum, w), base)| *sum += weight * (w - base));
    }
}

/// The base's matrix at a site, decoded.
fn base_rows(model: &Model, level: Level, i: usize, to: &mut [f32]) {
    let matrix = model.bound().matrix(model.program().matrix_at(Site(i as u32)));
    to.chunks_exact_mut(matrix.cols).enumerate().for_each(|(row, to)| matrix.decode(level, row, 0, to));
}

/// Which of the selected places learn in a round: half of every group (a layer's attention, a layer's MLP), drawn from the
/// seed. Where a group is odd, one more learns in every other layer, so that half do in all.
pub(super) fn half(
    selected: &[bool],
    group: impl Fn(usize) -> Option<(usize, bool)>,
    seed: u64,
) -> Vec<bool> {
    let mut learns = vec![false; selected.len()];
    let mut groups: std::collections::BTreeMap<(usize, bool), Vec<usize>> = Default::default();
    for i in (0..selected.len()).filter(|i| selected[*i]) {
        // what is in no layer is a group by itself
        let key = group(i).map_or((usize::MAX - i, false), |(layer, attention)| (layer, attention));
        groups.entry(key).or_default().push(i);
    }
    for ((layer, kind), mut members) in groups {
        members.sort_by_key(|i| hash(seed, &[*i as u64, 0x4846_5400]));
        let more = usize::from(members.len() % 2 == 1 && (layer % 2 == 0) == kind);
        members[..members.len() / 2 + more].iter().for_each(|i| learns[*i] = true);
    }
    learns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_every_block_learns_and_another_half_for_another_seed() {
        // four of attention, three of the MLP, in six layers
        let group = |i: usize| Some((i / 7, i % 7 < 4));
        let all = vec![true; 42];
        let one = half(&all, group, 1);
        assert_eq!(one.iter().filter(|l| **l).count(), 21);
        for layer in 0..6 {
            assert_eq!((0..4).filter(|j| one[7 * layer + j]).count(), 2);
            assert!([1, 2].contains(&(4..7).filter(|j| one[7 * layer + j]).count()));
        }
        assert_eq!(one, half(&all, group, 1));
        assert_ne!(one, half(&all, group, 2));
        let mut some = all.clone();
        some[3] = false;
        assert!(!half(&some, group, 1)[3]);
    }
}
