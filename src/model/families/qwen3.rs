//! Qwen3, dense (Yang et al., "Qwen3 Technical Report", 2025): as Qwen2 without biases, with a norm over each head of
//! q and k before they turn, and a head size of its own.

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
        let [q, k, v] = parts::project(&mut b, eps);
        let q = b.head_norm(q, "attn_q_norm", eps, "qn");
        let k = b.head_norm(k, "attn_k_norm", eps, "kn");
        parts::attend_and_feed(&mut b, [q, k, v], ffn, eps);
    }
    b.logits("output_norm", "output", eps)
}
