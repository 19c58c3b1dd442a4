//! Prompt tuning (Lester, Al-Rfou and Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021) and
//! P-tuning (Liu et al., "GPT Understands, Too", 2021): rows in front of a sequence's embeddings. As PEFT's
//! `PromptTuningConfig` with a random start, and its `PromptEncoderConfig` with an MLP.
//!
//! # Forward
//! ```text
//! tokens vocabulary … vocabulary + k − 1 stand at positions 0 … k − 1 and go through every layer as others do
//! embedding of vocabulary + t = P[t], or encode(embedding)[t]
//! encode(x) = W₃·φ(W₂·φ(W₁·x + b₁) + b₂) + b₃,  φ = max(0, ·)        see encoder; of P-tuning while it learns
//! ```
//! # Backward
//! ```text
//! dP[t] = Σ over the sequences of the gradient of that row; through the encoder once before the update
//! ```
//! # Shapes
//! P `[k][width]`; the encoder: embedding `[k][width]`, W₁ `[h][width]`, W₂ `[h][h]`, W₃ `[width][h]`. Only P is in files.

use super::effect::{Each, Key, Memory, Rules, Shapes, Tensor};
use super::encoder::{Bend, Encoder};
use super::front::{self, KEY, baked, baked_grads};
use super::layer::{Effect, Layer, Part};
use crate::model::Model;
use crate::model::program::Spot;
use crate::rng::Rng;
use crate::tensor::Mat;
use onlay_kernels::Level;

/// [`Effect::Prompt`] or [`Effect::Ptuning`]. `Part::more` is k and, of one that has an encoder, h.
#[derive(Debug)]
pub(super) struct Virtual(pub Effect);

static ENCODER: [Key; 7] = [
    Key { gguf: ".embedding", peft: "embedding.weight", flat: false },
    Key { gguf: ".mlp_head.0", peft: "mlp_head.0.weight", flat: false },
    Key { gguf: ".mlp_head.0.bias", peft: "mlp_head.0.bias", flat: true },
    Key { gguf: ".mlp_head.2", peft: "mlp_head.2.weight", flat: false },
    Key { gguf: ".mlp_head.2.bias", peft: "mlp_head.2.bias", flat: true },
    Key { gguf: ".mlp_head.4", peft: "mlp_head.4.weight", flat: false },
    Key { gguf: ".mlp_head.4.bias", peft: "mlp_head.4.bias", flat: true },
];

pub(super) fn encoder(p: &Part) -> Option<Encoder> {
    let [tokens, hidden, ..] = p.more;
    let sizes = [p.outputs, hidden, hidden, p.outputs];
    (hidden > 0).then_some(Encoder { tokens, sizes, products: 3, bend: Bend::Relu, keys: &ENCODER })
}

impl Rules for Virtual {
    fn spot(&self) -> Spot {
        Spot::Front
    }
    fn keys(&self) -> &'static [Key] {
        &KEY
    }
    fn len(&self, p: &Part) -> usize {
        encoder(p).map_or(p.more[0] * p.outputs, |e| e.len())
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let (rows, cols) = (("virtual tokens", p.more[0]), ("width", p.outputs));
        let own = || vec![Tensor { key: &KEY[0], rows, cols, transposed: false, on_outputs: false }];
        encoder(p).map_or_else(own, |e| e.tensors())
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        let (tokens, _) = shapes(&KEY[0])?;
        Some(Part { effect: self.0, more: [tokens, 0, 0, 0], ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        let hidden = if self.0 == Effect::Ptuning { part.more[1] } else { 0 };
        Part { rank: 0, scale: 0.0, more: [part.more[0], hidden, 0, 0], ..part }
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
    fn virtual_tokens(&self, part: &Part) -> usize {
        part.more[0]
    }
    fn embedding(&self, layer: &Layer, i: usize, token: u32, row: &mut [f32]) -> bool {
        baked(layer, i, |part, numbers| {
            let Some(t) = number(layer, part, token) else { return false };
            row.copy_from_slice(&numbers[t * part.outputs..][..part.outputs]);
            true
        })
    }
    fn memory(&self, p: &Part, _: usize, _: bool) -> Memory {
        front::memory(p)
    }
    fn gathers(&self, p: &Part) -> usize {
        front::gathers(p)
    }
    fn embedding_back(&self, layer: &Layer, i: usize, tokens: &[u32], dy: Mat<'_>) {
        baked_grads(layer, i, |part, grads| {
            for (row, token) in tokens.iter().enumerate() {
                let Some(t) = number(layer, part, *token) else { continue };
                let to = &mut grads[t * part.outputs..][..part.outputs];
                to.iter_mut().zip(dy.row(row)).for_each(|(g, dy)| *g += dy);
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

/// Which of the virtual tokens a token is.
fn number(layer: &Layer, part: &Part, token: u32) -> Option<usize> {
    (token as usize).checked_sub(layer.facts().vocabulary).filter(|t| *t < part.more[0])
}
