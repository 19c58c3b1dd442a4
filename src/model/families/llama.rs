//! LLaMA (Touvron et al., 2023) and what shares its shape: Llama 1 to 3.x, Mistral, TinyLlama, SmolLM.
//!
//! ```text
//! n = norm(x)    q, k, v = n·W    turn q, k    x₁ = x + attend(q, k, v)·Wₒ
//! m = norm(x₁)   x′ = x₁ + (silu(m·W_gate) ∘ m·W_up)·W_down
//! ```
//! GGUF keeps q and k so that neighbouring columns turn together. Biases are taken where the file has them.

use super::{Hyper, parts};
use crate::error::Result;
use crate::model::program::{Builder, Program};
use onlay_kernels::rope::Pairs;

pub(super) fn build(hyper: &Hyper<'_>) -> Result<Program> {
    let (eps, ffn, layers) = (hyper.eps()?, hyper.feed_forward()?, hyper.layers()?);
    let present = |name: &str| hyper.has(name);
    let mut b = Builder::new(hyper.sizes(Pairs::Adjacent)?, &present);
    for layer in 0..layers {
        b.segment(format!("blk.{layer}"));
        let projected = parts::project(&mut b, eps);
        parts::attend_and_feed(&mut b, projected, ffn, eps);
    }
    b.logits("output_norm", "output", eps)
}
