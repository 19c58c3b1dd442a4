//! Prefix tuning (Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021): keys and values in
//! front of a sequence's own, in every layer. As PEFT's `PrefixTuningConfig`, with and without `prefix_projection`.
//!
//! # Forward
//! ```text
//! the cache of layer l begins with k positions of keys K[l] and values V[l]; a sequence's own begin at position k
//! K, V = P, or encode(embedding)      encode(x) = W₂·tanh(W₁·x + b₁) + b₂        see encoder
//! ```
//! Keys lie in the cache as they are: neither turned nor normed.
//!
//! # Backward
//! ```text
//! dP[l] = (dK, dV), summed over the sequences; through the encoder once before the update
//! ```
//! # Shapes
//! P `[k][layers][key, value][key heads][head]`, with keys in the order of the converted model, as PEFT has them: where
//! GGUF keeps the rows of k in another order (see names), so do the keys in the cache. The encoder: embedding
//! `[k][key heads·head]`, W₁ `[h][key heads·head]`, W₂ `[layers·2·key heads·head][h]`. Only P is in files.

use super::effect::{Each, Key, Memory, Rules, Shapes, Tensor};
use super::encoder::{Bend, Encoder};
use super::front::{self, KEY, baked, baked_grads};
use super::layer::{Effect, Layer, Part};
use super::names::moved;
use crate::model::Model;
use crate::model::program::Spot;
use crate::rng::Rng;
use onlay_kernels::Level;

/// [`Effect::Prefix`]. `Part::more` is k, h and key heads · head; the last two are 0 without an encoder.
#[derive(Debug)]
pub(super) struct Prefix;

static ENCODER: [Key; 5] = [
    Key { gguf: ".embedding", peft: "embedding.weight", flat: false },
    Key { gguf: ".transform.0", peft: "transform.0.weight", flat: false },
    Key { gguf: ".transform.0.bias", peft: "transform.0.bias", flat: true },
    Key { gguf: ".transform.2", peft: "transform.2.weight", flat: false },
    Key { gguf: ".transform.2.bias", peft: "transform.2.bias", flat: true },
];

pub(super) fn encoder(p: &Part) -> Option<Encoder> {
    let [tokens, hidden, width, _] = p.more;
    let sizes = [width, hidden, p.inputs, 0];
    (hidden > 0).then_some(Encoder { tokens, sizes, products: 2, bend: Bend::Tanh, keys: &ENCODER })
}

impl Rules for Prefix {
    fn spot(&self) -> Spot {
        Spot::Front
    }
    fn keys(&self) -> &'static [Key] {
        &KEY
    }
    fn len(&self, p: &Part) -> usize {
        encoder(p).map_or(p.more[0] * p.inputs, |e| e.len())
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let (rows, cols) = (("virtual tokens", p.more[0]), ("keys and values of all layers", p.inputs));
        let own = || vec![Tensor { key: &KEY[0], rows, cols, transposed: false, on_outputs: false }];
        encoder(p).map_or_else(own, |e| e.tensors())
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        let (tokens, _) = shapes(&KEY[0])?;
        Some(Part { effect: Effect::Prefix, more: [tokens, 0, 0, 0], ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        let [k, hidden, width, _] = part.more;
        let more = if hidden > 0 { [k, hidden, width, 0] } else { [k, 0, 0, 0] };
        Part { rank: 0, scale: 0.0, more, ..part }
    }
    fn describe(&self, p: &Part) -> String {
        front::describe(p)
    }
    fn pace(&self, p: &Part) -> Option<f64> {
        encoder(p).map(|_| front::PACE)
    }

    /// All normal, as torch's embeddings; an encoder as its products.
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, rng: &mut Rng) {
        front::start(layer, i, rng);
    }

    fn derived(&self, p: &Part) -> (usize, usize) {
        (front::derived(p), 0)
    }
    fn settle(&self, layer: &Layer, i: usize, _: &Model, level: Level, each: Each<'_>) {
        front::settle(layer, i, level, each);
    }
    fn prefix(&self, part: &Part) -> usize {
        part.more[0]
    }
    fn prefix_row(
        &self,
        layer: &Layer,
        i: usize,
        block: usize,
        position: usize,
        key: &mut [f32],
        value: &mut [f32],
    ) {
        let (n, head) = (key.len(), layer.facts().head);
        baked(layer, i, |part, numbers| {
            let numbers = &numbers[position * part.inputs + 2 * block * n..][..2 * n];
            numbers[..n].iter().enumerate().for_each(|(at, v)| key[moved(head, at)] = *v);
            value.copy_from_slice(&numbers[n..]);
        });
    }
    fn memory(&self, p: &Part, _: usize, _: bool) -> Memory {
        front::memory(p)
    }
    fn gathers(&self, p: &Part) -> usize {
        front::gathers(p)
    }
    fn prefix_back(&self, layer: &Layer, i: usize, block: usize, keys: &[f32], values: &[f32]) {
        let head = layer.facts().head;
        baked_grads(layer, i, |part, grads| {
            let n = keys.len() / part.more[0];
            for (t, (keys, values)) in keys.chunks_exact(n).zip(values.chunks_exact(n)).enumerate() {
                let (dk, dv) = grads[t * part.inputs + 2 * block * n..][..2 * n].split_at_mut(n);
                dk.iter_mut().enumerate().for_each(|(at, g)| *g += keys[moved(head, at)]);
                dv.iter_mut().zip(values).for_each(|(g, v)| *g += v);
            }
        });
    }
    fn before_update(&self, layer: &Layer, i: usize, level: Level, each: Each<'_>) {
        front::encode_back(layer, i, level, each);
    }
    fn published(&self, layer: &Layer, i: usize) -> Option<(Part, Vec<f32>)> {
        front::published(layer, i)
    }
    fn unfoldable(&self) -> Option<&'static str> {
        Some(front::NO_FOLD)
    }
}
