//! Embeddings of some tokens in place of the table's rows. As PEFT's `TrainableTokensConfig`.
//!
//! # Forward
//! ```text
//! x[i] = e[j] where token i is the one of row j; the table's row elsewhere
//! logit += (e[j] − table's row)·x, where the head shares the table
//! ```
//! # Backward
//! ```text
//! de[j] += Σ dx[i] over the rows i of that token     de[j] += Σ_rows dlogit·x     dx += dlogit·(e[j] − table's row)
//! ```
//! # Shapes
//! The tokens' numbers `[n]`, which do not learn, then e `[n][width]`, beginning with the table's.

use super::effect::{Each, Key, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use crate::error::{Error, Kind};
use crate::model::Model;
use crate::model::program::{Program, Spot};
use crate::rng::Rng;
use crate::tensor::Mat;
use onlay_kernels::{Level, math};
use std::ops::Range;

/// [`Effect::Rows`].
#[derive(Debug)]
pub(super) struct Embeddings;

/// The tokens, which PEFT keeps in the configuration, and their rows.
pub(super) static KEYS: [Key; 2] = [
    Key { gguf: ".token_ids", peft: ".token_indices", flat: true },
    Key { gguf: ".token_rows", peft: ".trainable_tokens_delta", flat: false },
];

/// The largest number of a token that f32 holds exactly.
pub(super) const MOST: u32 = 1 << 24;

impl Rules for Embeddings {
    fn spot(&self) -> Spot {
        Spot::Table
    }
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        p.rank * (1 + p.outputs)
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let (rows, cols) = (("tokens", p.rank), ("width", p.outputs));
        let e = Tensor { key: &KEYS[1], rows, cols, transposed: false, on_outputs: false };
        vec![Tensor::vector(&KEYS[0], rows, false), e]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        let (rows, cols) = shapes(&KEYS[0])?;
        shapes(&KEYS[1])?;
        Some(Part { effect: Effect::Rows, rank: rows * cols, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        Part { scale: 0.0, ..part }
    }
    fn most_rank(&self, _: &Part) -> usize {
        MOST as usize
    }
    fn describe(&self, p: &Part) -> String {
        format!("{} tokens", p.rank)
    }
    fn learned(&self, p: &Part) -> [(Range<usize>, bool); 3] {
        [(p.rank..p.len(), false), (0..0, false), (0..0, false)]
    }

    /// Tokens are whole numbers of the vocabulary, each there once.
    fn unsound(&self, program: &Program, p: &Part, numbers: &[f32]) -> Option<Error> {
        let (tokens, most) = (&numbers[..p.rank], program.vocabulary.min(MOST as usize));
        let fine = |t: &f32| t.fract() == 0.0 && *t >= 0.0 && (*t as usize) < most;
        if let Some(bad) = tokens.iter().find(|t| !fine(t)) {
            let expected = format!("a whole number from 0 and below {most}");
            return Some(Error::expected(Kind::Mismatch, "token", expected, bad));
        }
        let mut sorted: Vec<u32> = tokens.iter().map(|t| *t as u32).collect();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1])?;
        Some(Error::new(Kind::Format, format!("token {} is there twice", twice[0])))
    }

    /// The table's rows; the tokens are there already.
    fn start(&self, layer: &Layer, i: usize, model: &Model, level: Level, _: &mut Rng) {
        let mut numbers = layer.params().get(i);
        if let Some(base) = self.stands_for(model, level, i, &numbers) {
            numbers.copy_from_slice(&base);
        }
    }
    fn stands_for(&self, model: &Model, level: Level, _: usize, numbers: &[f32]) -> Option<Vec<f32>> {
        let table = model.bound().matrix(model.program().table());
        let (n, mut base) = (numbers.len() / (1 + table.cols), numbers.to_vec());
        let (tokens, rows) = base.split_at_mut(n);
        for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(table.cols)) {
            table.decode(level, *token as usize, 0, row);
        }
        Some(base)
    }
    fn derived(&self, p: &Part) -> (usize, usize) {
        (p.rank * p.outputs, 0)
    }

    /// What the rows differ by from the table's.
    fn settle(&self, layer: &Layer, i: usize, model: &Model, level: Level, _: Each<'_>) {
        let (numbers, mut derived) = (layer.params().read(i), layer.derived.get(i));
        let n = layer.parts()[i].map_or(0, |p| p.rank);
        let table = model.bound().matrix(model.program().table());
        let rows = derived.numbers.chunks_exact_mut(table.cols).zip(numbers[n..].chunks_exact(table.cols));
        for ((to, e), token) in rows.zip(&numbers[..n]) {
            table.decode(level, *token as usize, 0, to);
            to.iter_mut().zip(e).for_each(|(to, e)| *to = e - *to);
        }
    }
    fn head(&self, layer: &Layer, i: usize, level: Level, x: &[f32], logits: &mut [f32]) {
        let (numbers, derived) = (layer.params().read(i), layer.derived.read(i));
        for (token, by) in numbers.iter().zip(derived.numbers.chunks_exact(x.len())) {
            logits[*token as usize] += math::inner(level, by, x);
        }
    }
    fn head_back(&self, layer: &Layer, i: usize, level: Level, x: &[f32], dlogits: &[f32], dx: &mut [f32]) {
        let (numbers, derived, mut grads) =
            (layer.params().read(i), layer.derived.read(i), layer.grads().get(i));
        let n = derived.numbers.len() / x.len();
        let rows = derived.numbers.chunks_exact(x.len()).zip(grads[n..].chunks_exact_mut(x.len()));
        for ((by, de), token) in rows.zip(&*numbers) {
            let d = dlogits[*token as usize];
            math::add_scaled(level, d, x, de);
            math::add_scaled(level, d, by, dx);
        }
    }
    fn embedding(&self, layer: &Layer, i: usize, token: u32, row: &mut [f32]) -> bool {
        let numbers = layer.params().read(i);
        let n = layer.parts()[i].map_or(0, |p| p.rank);
        let Some(at) = numbers[..n].iter().position(|t| *t as u32 == token) else { return false };
        row.copy_from_slice(&numbers[n + at * row.len()..][..row.len()]);
        true
    }
    fn embedding_back(&self, layer: &Layer, i: usize, tokens: &[u32], dy: Mat<'_>) {
        let numbers = layer.params().read(i);
        let n = layer.parts()[i].map_or(0, |p| p.rank);
        let (mut grads, width) = (layer.grads().get(i), dy.cols());
        let level = Level::chosen().unwrap_or(Level::PORTABLE);
        for (row, token) in tokens.iter().enumerate() {
            let Some(at) = numbers[..n].iter().position(|t| *t as u32 == *token) else { continue };
            math::add_scaled(level, 1.0, dy.row(row), &mut grads[n + at * width..][..width]);
        }
    }
}
