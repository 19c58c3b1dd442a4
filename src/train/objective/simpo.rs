//! SimPO: Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward" (2024), arXiv 2405.14734,
//! equation 6.
//!
//! ```text
//! a(y) = s(y)/|y|        z = β (a(chosen) − a(rejected)) − γ
//! l = −(1 − ε) log σ(z) − ε log σ(−z)
//! ∂l/∂s(chosen) = −β ((1 − ε) σ(−z) − ε σ(z)) / |chosen|;  of the rejected +, / |rejected|
//! reward = β a
//! ```
//! TRL's `CPOTrainer` with `loss_type="simpo"` and `cpo_alpha=0`, whose defaults (β 0.1, γ 0.5) these are. The paper's own
//! runs have β 2 … 10 and γ/β 0.3 … 1.6: with β = 0.1 the margin hardly counts.

use super::{BETA, LABEL_SMOOTHING, Number, Objective, Seen, Verdict, log_sigmoid, sigmoid};
use crate::train::examples::Signal;

pub const SIMPO: Objective = Objective {
    name: "simpo",
    signal: Signal::Pairs,
    reference: false,
    mismatched: false,
    text: false,
    numbers: &[
        BETA,
        Number {
            name: "simpo-gamma",
            default: 0.5,
            range: "a finite number from 0",
            fits: |g| g.is_finite() && g >= 0.0,
        },
        LABEL_SMOOTHING,
    ],
    judge,
};

fn judge(numbers: &[f64], _: f64, unit: &[Seen]) -> Verdict {
    let &[beta, gamma, e] = numbers else { unreachable!("three numbers") };
    let mean = |i: usize| unit[i].sum / unit[i].tokens;
    let z = beta * (mean(0) - mean(1)) - gamma;
    let loss = -(1.0 - e) * log_sigmoid(z) - e * log_sigmoid(-z);
    let slope = -beta * ((1.0 - e) * sigmoid(-z) - e * sigmoid(z));
    let slopes = [slope / unit[0].tokens, -slope / unit[1].tokens];
    Verdict::pair(loss, slopes, [beta * mean(0), beta * mean(1)])
}
