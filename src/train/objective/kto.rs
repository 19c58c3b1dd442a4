//! KTO: Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (2024), arXiv 2402.01306,
//! equations 7 and 8.
//!
//! ```text
//! z₀ = max(0, mean over the window of s(y′) − r(y′))        y′: the completion of the row before, after this row's prompt
//! l(desirable)   = λ_D (1 − σ(β (s − r − z₀)))        ∂l/∂s = −λ_D β σ(1 − σ)
//! l(undesirable) = λ_U (1 − σ(β (z₀ − s + r)))        ∂l/∂s = +λ_U β σ(1 − σ)
//! reward = β (s − r)
//! ```
//! z₀ estimates the divergence from the base and has no gradient; the first row of a window gets the completion of the
//! last. As TRL's `KTOTrainer`, which pairs rows within its batches; here the batch is the whole window. Right is a
//! desirable row with s − r above z₀, or an undesirable one below (TRL logs no such share).

use super::{BETA, Number, Objective, Seen, Verdict, sigmoid};
use crate::train::examples::Signal;

const WEIGHT: Number = Number {
    name: "desirable-weight",
    default: 1.0,
    range: "a finite number from 0",
    fits: |w| w.is_finite() && w >= 0.0,
};

pub const KTO: Objective = Objective {
    name: "kto",
    signal: Signal::Labels,
    reference: true,
    mismatched: true,
    text: false,
    numbers: &[BETA, WEIGHT, Number { name: "undesirable-weight", ..WEIGHT }],
    judge,
};

fn judge(numbers: &[f64], kl: f64, unit: &[Seen]) -> Verdict {
    let &[beta, desirable, undesirable] = numbers else { unreachable!("three numbers") };
    let ratio = unit[0].sum - unit[0].reference;
    let (weight, sign) = if unit[0].good { (desirable, 1.0) } else { (undesirable, -1.0) };
    let z = sign * beta * (ratio - kl);
    Verdict {
        loss: weight * sigmoid(-z), // 1 − σ(z)
        slopes: [-sign * weight * beta * sigmoid(z) * sigmoid(-z), 0.0],
        rewards: [beta * ratio, 0.0],
        right: z > 0.0,
    }
}
