//! (IA)³ (Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022):
//! one factor for every output of a product, or for every input. PEFT scales the outputs of k and v and the inputs of
//! down; its bias is an output's too.
//!
//! # Forward
//! ```text
//! outputs:  y = l∘(W·x + bias)             inputs:  y = W·(l∘x) + bias
//! ```
//! # Backward
//! ```text
//! outputs:  dl += Σ_rows dy∘(W·x + bias)   dx += (l∘dy)·W
//! inputs:   du = dy·W    dl += Σ_rows x∘du    dx += l∘du
//! ```
//! # Shapes
//! l `[outputs]` or `[inputs]`; it begins at 1, where the layer changes no bit.

use super::effect::{Key, Memory, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part, turn};
use crate::model::Model;
use crate::ops::{Base, Host, Site, output_products, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Mat, MatMut};
use onlay_kernels::Level;
use std::ops::Range;

/// [`Effect::Outputs`] or [`Effect::Inputs`].
#[derive(Debug)]
pub(super) struct Factors {
    pub outputs: bool,
}

static KEYS: [Key; 1] = [Key { gguf: ".ia3_l", peft: ".ia3_l", flat: false }];

/// `u = l∘x` for some rows.
pub(super) fn scale(l: &[f32], x: &[f32], u: &mut [f32]) {
    for (x, u) in x.chunks_exact(l.len()).zip(u.chunks_exact_mut(l.len())) {
        u.iter_mut().zip(x).zip(l).for_each(|((u, x), l)| *u = l * x);
    }
}

impl Rules for Factors {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        if self.outputs { p.outputs } else { p.inputs }
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let key = &KEYS[0];
        if self.outputs {
            return vec![Tensor::vector(key, ("outputs", p.outputs), true)];
        }
        let (rows, cols) = (("rows", 1), ("inputs", p.inputs));
        vec![Tensor { key, rows, cols, transposed: false, on_outputs: false }]
    }

    /// Of the outputs as a column, of the inputs as a row.
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        let (rows, cols) = shapes(&KEYS[0])?;
        let effect = if self.outputs { Effect::Outputs } else { Effect::Inputs };
        (self.outputs == (cols == 1 && rows > 1)).then_some(Part { effect, ..part })
    }
    fn describe(&self, _: &Part) -> String {
        format!("factors of {}", self.tag())
    }
    fn tag(&self) -> &'static str {
        if self.outputs { "outputs" } else { "inputs" }
    }
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, _: &mut Rng) {
        layer.params().get(i).fill(1.0);
    }

    /// Factors of 1 do nothing.
    fn times(&self, _: &mut Part, numbers: &mut [f32], by: f32) -> bool {
        numbers.iter_mut().for_each(|l| *l = 1.0 + by * (*l - 1.0));
        true
    }
    fn input_gain(&self, layer: &Layer, site: Site) -> Option<Vec<f32>> {
        (!self.outputs).then(|| layer.params().read(site.into()).clone())
    }
    fn output_gain(&self, layer: &Layer, site: Site) -> Option<(Vec<f32>, bool)> {
        self.outputs.then(|| (layer.params().read(site.into()).clone(), true))
    }
    fn enters(&self) -> bool {
        !self.outputs
    }
    fn enter(
        &self,
        layer: &Layer,
        _: Level,
        site: Site,
        _: Option<usize>,
        x: Mat<'_>,
        u: &mut [f32],
        _: &mut Vec<f32>,
    ) {
        scale(&layer.params().read(site.into()), x.data(), u);
    }
    fn leaves(&self) -> bool {
        self.outputs
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
        let l = layer.params().read(site.into());
        turn(&l, Some(&l), first, bias, y, rows);
    }
    fn memory(&self, p: &Part, rows: usize, _: bool) -> Memory {
        let mut memory = Memory::default();
        if self.outputs {
            memory[4] = p.outputs
        } else {
            memory[2] = rows * p.inputs
        }
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
        let i = site.into();
        let (l, mut grads) = (layer.params().read(i), layer.grads().get(i));
        if self.outputs {
            let mut sums = layer.memory.get(4);
            outputs_back(host, base, (&l, &mut grads), &mut sums[..l.len()], x, dy, dx)
        } else {
            let mut du = layer.memory.get(2);
            inputs_back(host, base, (&l, &mut grads), &mut du[..x.rows() * l.len()], x, dy, dx)
        }
    }
}

fn outputs_back(
    host: &mut Host<'_>,
    base: Base<'_>,
    (l, grads): (&[f32], &mut [f32]),
    sums: &mut [f32],
    x: Mat<'_>,
    dy: Mat<'_>,
    dx: Option<MatMut<'_>>,
) {
    output_products(host, base.matrix, x, dy, sums);
    grads.iter_mut().zip(&*sums).for_each(|(g, sum)| *g += sum);
    if let Some(bias) = base.bias {
        for dy in dy.data().chunks_exact(l.len()) {
            grads.iter_mut().zip(dy).zip(bias).for_each(|((g, dy), b)| *g += dy * b);
        }
    }
    if let Some(dx) = dx {
        product_back(host, base.matrix, Some(l), dy, dx);
    }
}

fn inputs_back(
    host: &mut Host<'_>,
    base: Base<'_>,
    (l, grads): (&[f32], &mut [f32]),
    du: &mut [f32],
    x: Mat<'_>,
    dy: Mat<'_>,
    dx: Option<MatMut<'_>>,
) {
    let k = l.len();
    du.fill(0.0);
    product_back(host, base.matrix, None, dy, MatMut::new(du, k));
    for (x, du) in x.data().chunks_exact(k).zip(du.chunks_exact(k)) {
        grads.iter_mut().zip(x).zip(du).for_each(|((g, x), du)| *g += x * du);
    }
    if let Some(dx) = dx {
        for (dx, du) in dx.data().chunks_exact_mut(k).zip(du.chunks_exact(k)) {
            dx.iter_mut().zip(du).zip(l).for_each(|((dx, du), l)| *dx += l * du);
        }
    }
}
