//! Qwen2 and Qwen2.5 (Yang et al., "Qwen2 Technical Report", 2024): LLaMA's layer, but the halves of a head turn
//! together, and q, k and v have biases.

use super::{Hyper, parts};
use crate::error::Result;
use crate::model::program::{Builder, Program};
use onlay_kernels::rope::Pairs;

pub(super) fn build(hyper: &Hyper<'_>) -> Result<Program> {
    let (eps, ffn, layers) = (hyper.eps()?, hyper.feed_forward()?, hyper.layers()?);
    let present = |name: &str| hyper.has(name);
    let mut b = Builder::new(hyper.sizes(Pairs::Halves)?, &present);
    for layer in 0..layers {
        b.segment(format!("blk.{layer}"));
        let projected = parts::project(&mut b, eps);
        parts::attend_and_feed(&mut b, projected, ffn, eps);
    }
    b.logits("output_norm", "output", eps)
}
