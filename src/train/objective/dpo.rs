//! DPO: Rafailov et al., "Direct Preference Optimization" (2023), arXiv 2305.18290, equation 7; with label smoothing
//! Robust DPO: Chowdhury et al. (2024), arXiv 2403.00409.
//!
//! ```text
//! Δ = (s(chosen) − r(chosen)) − (s(rejected) − r(rejected))        z = βΔ
//! l = −((1 − ε) log σ(z) − ε log σ(−z)) / (1 − 2ε)                  ε = 0: −log σ(βΔ)
//! ∂l/∂s(chosen) = −β ((1 − ε) σ(−z) + ε σ(z)) / (1 − 2ε) = −∂l/∂s(rejected)
//! reward = β (s − r)
//! ```
//! TRL's `loss_type="sigmoid"`, and `"robust"` with ε = `label_smoothing`. (Its `"sigmoid"` ignores `label_smoothing`.)

use super::{BETA, LABEL_SMOOTHING, Objective, Seen, Verdict, log_sigmoid, sigmoid};
use crate::train::examples::Signal;

pub const DPO: Objective = Objective {
    name: "dpo",
    signal: Signal::Pairs,
    reference: true,
    mismatched: false,
    text: false,
    numbers: &[BETA, LABEL_SMOOTHING],
    judge,
};

fn judge(numbers: &[f64], _: f64, unit: &[Seen]) -> Verdict {
    let &[beta, e] = numbers else { unreachable!("two numbers") };
    let ratio = |i: usize| unit[i].sum - unit[i].reference;
    let z = beta * (ratio(0) - ratio(1));
    let loss = -((1.0 - e) * log_sigmoid(z) - e * log_sigmoid(-z)) / (1.0 - 2.0 * e);
    let slope = -beta * ((1.0 - e) * sigmoid(-z) + e * sigmoid(z)) / (1.0 - 2.0 * e);
    Verdict::pair(loss, [slope, -slope], [beta * ratio(0), beta * ratio(1)])
}
