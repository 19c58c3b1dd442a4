//! Norm tuning (Zhao et al., "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", 2023): weights of
//! norms in place of the base's. As PEFT's `LNTuningConfig`.
//!
//! # Forward
//! ```text
//! y = w∘x/rms(x)
//! ```
//! # Backward
//! ```text
//! dw += Σ_rows dy∘x/rms(x)
//! ```
//! # Shapes
//! w `[length of the norm]`, beginning with the base's.

use super::effect::{Key, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use crate::model::Model;
use crate::model::program::Spot;
use crate::ops::VectorId;
use crate::rng::Rng;
use onlay_kernels::Level;

/// [`Effect::Norm`].
#[derive(Debug)]
pub(super) struct Norm;

static KEYS: [Key; 1] = [Key { gguf: ".norm", peft: ".ln_tuning_layers.weight", flat: true }];

impl Rules for Norm {
    fn spot(&self) -> Spot {
        Spot::Vector
    }
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        p.outputs
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        vec![Tensor::vector(&KEYS[0], ("length", p.outputs), false)]
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[0])?;
        Some(Part { effect: Effect::Norm, ..part })
    }
    fn describe(&self, _: &Part) -> String {
        "norm".into()
    }
    fn start(&self, layer: &Layer, i: usize, model: &Model, _: Level, _: &mut Rng) {
        layer.params().get(i).copy_from_slice(model.bound().vector(id(model, i)));
    }
    fn stands_for(&self, model: &Model, _: Level, i: usize, _: &[f32]) -> Option<Vec<f32>> {
        Some(model.bound().vector(id(model, i)).to_vec())
    }
    fn replaces(&self) -> bool {
        true
    }
}

/// The vector at a place.
fn id(model: &Model, place: usize) -> VectorId {
    VectorId((place - model.program().sites.len()) as u32)
}
