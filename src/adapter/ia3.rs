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

use super::layer::{Effect, Layer};
use crate::ops::{Base, Host, Site, output_products, product_back};
use crate::tensor::{Mat, MatMut};

/// `u = l∘x` for some rows.
pub(super) fn scale(l: &[f32], x: &[f32], u: &mut [f32]) {
    for (x, u) in x.chunks_exact(l.len()).zip(u.chunks_exact_mut(l.len())) {
        u.iter_mut().zip(x).zip(l).for_each(|((u, x), l)| *u = l * x);
    }
}

impl Layer {
    /// Sets every factor to 1.
    pub fn start_factors(&mut self) {
        for (i, part) in self.parts().iter().enumerate() {
            if part.is_some_and(|p| matches!(p.effect, Effect::Outputs | Effect::Inputs)) {
                self.params().get(i).fill(1.0);
            }
        }
    }

    pub(super) fn outputs_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let i = site.0 as usize;
        let (l, mut grads) = (self.params().read(i), self.grads().get(i));
        let mut sums = self.memory.get(4);
        let sums = &mut sums[..l.len()];
        output_products(host, base.matrix, x, dy, sums);
        grads.iter_mut().zip(&*sums).for_each(|(g, sum)| *g += sum);
        if let Some(bias) = base.bias {
            for dy in dy.data().chunks_exact(l.len()) {
                grads.iter_mut().zip(dy).zip(bias).for_each(|((g, dy), b)| *g += dy * b);
            }
        }
        if let Some(dx) = dx {
            product_back(host, base.matrix, Some(&l), dy, dx);
        }
    }

    pub(super) fn inputs_back(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let i = site.0 as usize;
        let (l, mut grads) = (self.params().read(i), self.grads().get(i));
        let (n, k) = (x.rows(), l.len());
        let mut du = self.memory.get(2);
        let du = &mut du[..n * k];
        du.fill(0.0);
        product_back(host, base.matrix, None, dy, MatMut::new(du, k));
        for (x, du) in x.data().chunks_exact(k).zip(du.chunks_exact(k)) {
            grads.iter_mut().zip(x).zip(du).for_each(|((g, x), du)| *g += x * du);
        }
        if let Some(dx) = dx {
            for (dx, du) in dx.data().chunks_exact_mut(k).zip(du.chunks_exact(k)) {
                dx.iter_mut().zip(du).zip(&*l).for_each(|((dx, du), l)| *dx += l * du);
            }
        }
    }
}
