//! A vector added to what a product gives: BEFT (Huang et al., "BEFT: Bias-Efficient Fine-Tuning of Language Models in
//! Low-Data Regimes", 2025), whose paper has it at the values. As PEFT's `BeftConfig`.
//!
//! # Forward
//! ```text
//! y = W·x + bias + v
//! ```
//! # Backward
//! ```text
//! dv += Σ_rows dy    dx += dy·W
//! ```
//! # Shapes
//! v `[outputs]`; it begins at 0.

use super::effect::{Key, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use crate::model::Model;
use crate::ops::{Base, Host, Site, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Mat, MatMut};
use onlay_kernels::Level;
use std::ops::Range;

/// [`Effect::Bias`].
#[derive(Debug)]
pub(super) struct Added;

static KEYS: [Key; 1] = [Key { gguf: ".beft_bias", peft: ".beft_bias", flat: false }];

/// `y += bias`, if there is one, for some rows and the outputs from `first` on.
pub(super) fn add(bias: Option<&[f32]>, first: usize, y: &mut Block<'_>, rows: Range<usize>) {
    let Some(bias) = bias else { return };
    for i in rows {
        y.row(i).iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
    }
}

impl Rules for Added {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        p.outputs
    }

    /// One row: its columns are the outputs.
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let (rows, cols) = (("rows", 1), (Tensor::OUTPUTS, p.outputs));
        vec![Tensor { key: &KEYS[0], rows, cols, transposed: false, on_outputs: false }]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[0])?;
        Some(Part { effect: Effect::Bias, ..part })
    }
    fn describe(&self, _: &Part) -> String {
        "vector".into()
    }
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, _: &mut Rng) {
        layer.params().get(i).fill(0.0);
    }
    fn times(&self, _: &mut Part, numbers: &mut [f32], by: f32) -> bool {
        numbers.iter_mut().for_each(|v| *v *= by);
        true
    }
    fn output_sum(&self, layer: &Layer, site: Site) -> Option<Vec<f32>> {
        Some(layer.params().read(site.into()).clone())
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
        add(bias, first, y, rows.clone());
        add(Some(&layer.params().read(site.into())), first, y, rows);
    }
    fn backward(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        _: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let mut grads = layer.grads().get(site.into());
        for dy in dy.data().chunks_exact(dy.cols()) {
            grads.iter_mut().zip(dy).for_each(|(g, dy)| *g += dy);
        }
        if let Some(dx) = dx {
            product_back(host, base.matrix, None, dy, dx);
        }
    }
}
