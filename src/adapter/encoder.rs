//! A small network whose output is what stands in front of a sequence (reparametrisation): it is easier to train than
//! that itself, and is no longer there once it is trained. As PEFT's `PrefixEncoder` and `PromptEncoder`.
//!
//! # Forward
//! ```text
//! x₀ = embedding [k][s₀]      xₗ = φ(xₗ₋₁·Wₗᵀ + bₗ), the last without φ      φ: tanh, or max(0, ·)
//! ```
//! # Backward
//! The gradient of the output is gathered over a window of passes and goes back once before the update:
//! ```text
//! dWₗ += dyₗᵀ·xₗ₋₁    dbₗ += Σ dyₗ    dyₗ₋₁ = φ′∘(dyₗ·Wₗ)    φ′ = 1 − x², or x > 0
//! ```
//! # Shapes
//! In memory: embedding, then W₁ `[s₁][s₀]`, b₁ `[s₁]`, W₂ … Members take columns of the outputs, or rows of a gradient;
//! every sum has one order.

use super::effect::{Each, Key, Tensor};
use crate::rng::Rng;
use crate::tensor::{Chunks, Grid, MatMut};
use onlay_kernels::{Level, math};
use std::ops::Range;

/// Columns that a member takes at a time.
const WIDTH: usize = 64;
/// The most products one behind the other.
const DEPTH: usize = 3;

/// What bends between two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bend {
    Tanh,
    Relu,
}

/// The sizes of one; the numbers are the caller's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder {
    /// Virtual tokens.
    pub tokens: usize,
    /// Columns of the embedding, then of every product's output.
    pub sizes: [usize; DEPTH + 1],
    /// How many products there are.
    pub products: usize,
    pub bend: Bend,
    /// What PEFT calls its tensors: the embedding, then W and b of every product.
    pub keys: &'static [Key],
}

impl Encoder {
    /// Where W and b of a product lie.
    fn at(&self, product: usize) -> (Range<usize>, Range<usize>) {
        let mut first = self.tokens * self.sizes[0];
        for l in 0..product {
            first += self.sizes[l + 1] * (self.sizes[l] + 1);
        }
        let (inputs, outputs) = (self.sizes[product], self.sizes[product + 1]);
        let bias = first + inputs * outputs;
        (first..bias, bias..bias + outputs)
    }

    /// Numbers that learn.
    pub fn len(&self) -> usize {
        self.at(self.products - 1).1.end
    }

    /// Numbers that come out.
    pub fn outputs(&self) -> usize {
        self.tokens * self.sizes[self.products]
    }

    fn widest(&self) -> usize {
        self.sizes[1..self.products].iter().copied().max().unwrap_or(0)
    }

    /// Numbers that [`Encoder::forward`] writes: the output, then what is between.
    pub fn derived(&self) -> usize {
        self.tokens * self.sizes[1..=self.products].iter().sum::<usize>()
    }

    /// Numbers in each of two pieces of memory that [`Encoder::backward`] needs.
    pub fn memory(&self) -> usize {
        self.tokens * self.widest()
    }

    /// Its tensors, as PEFT's module has them.
    pub fn tensors(&self) -> Vec<Tensor> {
        let matrix = |key, rows, cols| {
            let (rows, cols) = (("outputs of the encoder", rows), ("inputs of the encoder", cols));
            Tensor { key, rows, cols, transposed: false, on_outputs: false }
        };
        let mut all = vec![matrix(&self.keys[0], self.tokens, self.sizes[0])];
        for l in 0..self.products {
            let (inputs, outputs) = (self.sizes[l], self.sizes[l + 1]);
            all.push(matrix(&self.keys[1 + 2 * l], outputs, inputs));
            all.push(Tensor::vector(&self.keys[2 + 2 * l], ("outputs of the encoder", outputs), false));
        }
        all
    }

    /// As torch begins: the embedding normal, W and b uniform in ±1/√inputs.
    pub fn start(&self, numbers: &mut [f32], rng: &mut Rng) {
        let embedding = self.tokens * self.sizes[0];
        numbers[..embedding].iter_mut().for_each(|v| *v = rng.normal());
        for l in 0..self.products {
            let (w, b) = self.at(l);
            let bound = 1.0 / (self.sizes[l] as f32).sqrt();
            numbers[w.start..b.end].iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
        }
    }

    /// Writes the output `[k][outputs]`, and behind it what lies between.
    pub fn forward(&self, level: Level, numbers: &[f32], derived: &mut [f32], each: Each<'_>) {
        let (k, mut done) = (self.tokens, 0);
        let (out, between) = derived.split_at_mut(self.outputs());
        for l in 0..self.products {
            let (inputs, outputs) = (self.sizes[l], self.sizes[l + 1]);
            let (before, here) = between.split_at_mut(done);
            let x = if l == 0 { &numbers[..k * inputs] } else { &before[done - k * inputs..] };
            let last = l + 1 == self.products;
            let y = if last { &mut out[..] } else { &mut here[..k * outputs] };
            let (w, b) = self.at(l);
            let (w, b) = (&numbers[w], &numbers[b]);
            let rows = 0..k;
            let grid = Grid::new([MatMut::new(y, outputs)], std::slice::from_ref(&rows), [WIDTH]);
            each(grid.len(), &|_| {
                let Some((_, [first], [mut block])) = grid.next() else { return };
                for j in 0..block.row(0).len() {
                    let (w, b) = (&w[(first + j) * inputs..][..inputs], b[first + j]);
                    for (t, x) in x.chunks_exact(inputs).enumerate() {
                        let z = math::inner(level, x, w) + b;
                        block.row(t)[j] = match self.bend {
                            _ if last => z,
                            Bend::Tanh => z.tanh(),
                            Bend::Relu => z.max(0.0),
                        };
                    }
                }
            });
            done += if last { 0 } else { k * outputs };
        }
    }

    /// Adds the gradients of its numbers, from that of the output; `derived` is what [`Encoder::forward`] wrote.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        level: Level,
        numbers: &[f32],
        derived: &[f32],
        grads: &mut [f32],
        d_out: &[f32],
        memory: [&mut [f32]; 2],
        each: Each<'_>,
    ) {
        let k = self.tokens;
        let mut end = self.derived();
        let [mut dy, mut dx] = memory;
        for l in (0..self.products).rev() {
            let (inputs, outputs) = (self.sizes[l], self.sizes[l + 1]);
            let last = l + 1 == self.products;
            let from = if last { d_out } else { &dy[..k * outputs] };
            let x = if l == 0 { &numbers[..k * inputs] } else { &derived[end - k * inputs..end] };
            let (w, b) = self.at(l);
            for from in from.chunks_exact(outputs) {
                grads[b.clone()].iter_mut().zip(from).for_each(|(g, dy)| *g += dy);
            }
            let pieces = Chunks::new([&mut grads[w.clone()]], WIDTH * inputs);
            each(outputs.div_ceil(WIDTH), &|_| {
                let Some((piece, [rows])) = pieces.next() else { return };
                for (o, row) in (piece * WIDTH..).zip(rows.chunks_exact_mut(inputs)) {
                    for (from, x) in from.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
                        math::add_scaled(level, from[o], x, row);
                    }
                }
            });
            let to = match l {
                0 => &mut grads[..k * inputs],
                _ => {
                    dx[..k * inputs].fill(0.0);
                    &mut dx[..k * inputs]
                }
            };
            let (w, rows) = (&numbers[w], 0..k);
            let grid = Grid::new([MatMut::new(to, inputs)], std::slice::from_ref(&rows), [WIDTH]);
            each(grid.len(), &|_| {
                let Some((_, [first], [mut block])) = grid.next() else { return };
                let width = block.row(0).len();
                for (o, w) in w.chunks_exact(inputs).enumerate() {
                    for (t, from) in from.chunks_exact(outputs).enumerate() {
                        math::add_scaled(level, from[o], &w[first..first + width], block.row(t));
                    }
                }
            });
            if l > 0 {
                let slope = |x: f32| match self.bend {
                    Bend::Tanh => 1.0 - x * x,
                    Bend::Relu => f32::from(x > 0.0),
                };
                dx[..k * inputs].iter_mut().zip(x).for_each(|(d, x)| *d *= slope(*x));
                end -= k * inputs;
                std::mem::swap(&mut dy, &mut dx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NAMES: [Key; 7] = [const { Key { gguf: "", peft: "", flat: false } }; 7];

    /// The slope of Σ c∘output along the gradient, by central difference in f64's sums.
    #[test]
    fn gradients_are_slopes_at_any_number_of_members() {
        let level = Level::chosen().unwrap();
        for (sizes, products, bend) in
            [([5, 7, 130, 0], 2, Bend::Tanh), ([65, 3, 9, 4], 3, Bend::Relu), ([1, 1, 1, 1], 3, Bend::Tanh)]
        {
            let e = Encoder { tokens: 3, sizes, products, bend, keys: &NAMES };
            let mut rng = Rng::new(4);
            let mut numbers = vec![0.0; e.len()];
            e.start(&mut numbers, &mut rng);
            let c: Vec<f32> = (0..e.outputs()).map(|_| rng.normal()).collect();
            let one = &mut |n: usize, f: &(dyn Fn(usize) + Sync)| (0..n).for_each(f);
            let many = &mut |n: usize, f: &(dyn Fn(usize) + Sync)| {
                std::thread::scope(|s| (0..n).for_each(|i| drop(s.spawn(move || f(i)))))
            };
            let back = |each: Each<'_>| {
                let (mut derived, mut grads) = (vec![0.0; e.derived()], vec![0.0; e.len()]);
                let [mut a, mut b] = [vec![0.0; e.memory()], vec![0.0; e.memory()]];
                e.forward(level, &numbers, &mut derived, each);
                e.backward(level, &numbers, &derived, &mut grads, &c, [&mut a, &mut b], each);
                (derived, grads)
            };
            let (derived, grads) = back(one);
            assert_eq!((derived, grads.clone()), back(many));
            let squares: f64 = grads.iter().map(|g| f64::from(*g).powi(2)).sum();
            let mut value = |sign: f64| {
                let step = sign * 1e-2 / squares.sqrt();
                let moved = numbers.iter().zip(&grads);
                let moved: Vec<f32> =
                    moved.map(|(n, g)| (f64::from(*n) + step * f64::from(*g)) as f32).collect();
                let mut derived = vec![0.0; e.derived()];
                e.forward(level, &moved, &mut derived, one);
                let both = derived[..e.outputs()].iter().zip(&c);
                both.map(|(d, c)| f64::from(*d) * f64::from(*c)).sum::<f64>()
            };
            let slope = (value(1.0) - value(-1.0)) / (2.0 * 1e-2) * squares.sqrt();
            assert!((slope / squares - 1.0).abs() < 2e-3, "{sizes:?}: {slope} against {squares}");
        }
    }
}
