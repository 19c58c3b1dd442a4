//! What prefix tuning, prompt tuning and P-tuning share: numbers in front of a sequence, learned as they are or as what an
//! [`Encoder`] makes of others, and published as they are.

use super::effect::{Each, Key, Memory};
use super::encoder::Encoder;
use super::layer::{Effect, Layer, Part};
use super::{prefix, prompt};
use crate::rng::Rng;
use onlay_kernels::Level;

/// What prefix tuning, prompt tuning and P-tuning call their numbers: which of them they are, the file says elsewhere.
pub(super) static KEY: [Key; 1] =
    [Key { gguf: ".prompt_embeddings", peft: "prompt_embeddings", flat: false }];

/// Why they are no part of a base.
pub(super) const NO_FOLD: &str =
    "what stands in front of a sequence is no part of a matrix: it cannot be folded in";

/// The encoder of a part that has one.
pub(super) fn encoder(part: &Part) -> Option<Encoder> {
    match part.effect {
        Effect::Prefix => prefix::encoder(part),
        _ => prompt::encoder(part),
    }
}

/// By how much an encoder learns faster than LoRA, to begin with: between what 40 steps on models/parrot.jsonl liked best of
/// a prefix's (5 times) and of P-tuning's (2 times, the least tried).
pub(super) const PACE: f64 = 3.0;

pub(super) fn describe(p: &Part) -> String {
    let [k, hidden, ..] = p.more;
    let encoder = if hidden > 0 { format!(" encoder {hidden}") } else { String::new() };
    format!("{k} virtual tokens{encoder}")
}

pub(super) fn start(layer: &Layer, i: usize, rng: &mut Rng) {
    let part = layer.parts()[i].expect("a part");
    let mut numbers = layer.params().get(i);
    match encoder(&part) {
        Some(encoder) => encoder.start(&mut numbers, rng),
        None => numbers.iter_mut().for_each(|v| *v = rng.normal()),
    }
}

pub(super) fn memory(p: &Part) -> Memory {
    let n = encoder(p).map_or(0, |e| e.memory());
    [n, n, 0, 0, 0, 0]
}

/// What stands in front: the numbers themselves, or what the encoder makes of them.
pub(super) fn baked<T>(layer: &Layer, i: usize, f: impl FnOnce(&Part, &[f32]) -> T) -> T {
    let part = layer.parts()[i].as_ref().expect("a part");
    match encoder(part) {
        None => f(part, &layer.params().read(i)),
        Some(encoder) => f(part, &layer.derived.read(i).numbers[..encoder.outputs()]),
    }
}

/// The gradient of what stands in front: with an encoder it is gathered behind that of the encoder's numbers.
pub(super) fn baked_grads(layer: &Layer, i: usize, f: impl FnOnce(&Part, &mut [f32])) {
    let part = layer.parts()[i].as_ref().expect("a part");
    let first = encoder(part).map_or(0, |e| e.len());
    f(part, &mut layer.grads().get(i)[first..]);
}

/// What the encoder makes of its numbers.
pub(super) fn settle(layer: &Layer, i: usize, level: Level, each: Each<'_>) {
    let part = layer.parts()[i].expect("a part");
    let Some(encoder) = encoder(&part) else { return };
    encoder.forward(level, &layer.params().read(i), &mut layer.derived.get(i).numbers, each);
}

/// The gathered gradient through the encoder; then there is none.
pub(super) fn encode_back(layer: &Layer, i: usize, level: Level, each: Each<'_>) {
    let part = layer.parts()[i].expect("a part");
    let Some(encoder) = encoder(&part) else { return };
    let (numbers, derived, mut grads) = (layer.params().read(i), layer.derived.read(i), layer.grads().get(i));
    let (mut a, mut b) = (layer.memory.get(0), layer.memory.get(1));
    let (grads, gathered) = grads.split_at_mut(encoder.len());
    encoder.backward(level, &numbers, &derived.numbers, grads, gathered, [&mut a[..], &mut b[..]], each);
    gathered.fill(0.0);
}

/// The part without its encoder.
pub(super) fn published(layer: &Layer, i: usize) -> Option<(Part, Vec<f32>)> {
    let part = layer.parts()[i]?;
    encoder(&part)?;
    let numbers = baked(layer, i, |_, numbers| numbers.to_vec());
    Some((Part { more: [part.more[0], 0, 0, 0], ..part }, numbers))
}

/// Numbers that an encoder writes.
pub(super) fn derived(p: &Part) -> usize {
    encoder(p).map_or(0, |e| e.derived())
}

/// Numbers of the gradient that is gathered for it.
pub(super) fn gathers(p: &Part) -> usize {
    encoder(p).map_or(0, |e| e.outputs())
}
