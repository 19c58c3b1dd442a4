//! ORPO: Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model" (2024), arXiv 2403.07691,
//! equations 4, 6 and 7.
//!
//! ```text
//! a(y) = s(y)/|y|        log odds(y) = a − log(1 − e^a)
//! o = log odds(chosen) − log odds(rejected)
//! l = −β log σ(o)
//! ∂l/∂s(chosen) = −β σ(−o) / ((1 − e^a) |chosen|);  of the rejected +, with its own a and length
//! L = (1/N) Σ l + (1/T) Σ over the T tokens of all chosen sequences of the window, prompts too, of −log p
//! reward = β a
//! ```
//! β is the paper's λ. As TRL's `ORPOTrainer`, whose supervised part covers prompt and answer. A sequence of
//! probability 1 has infinite odds; a is held below −1e-7, about what f32 logits resolve.

use super::{BETA, Objective, Seen, Verdict, log_sigmoid, sigmoid};
use crate::train::examples::Signal;

pub const ORPO: Objective = Objective {
    name: "orpo",
    signal: Signal::Pairs,
    reference: false,
    mismatched: false,
    text: true,
    numbers: &[BETA],
    judge,
};

fn judge(numbers: &[f64], _: f64, unit: &[Seen]) -> Verdict {
    let beta = numbers[0];
    let mean = |i: usize| (unit[i].sum / unit[i].tokens).min(-1e-7);
    // 1 − e^a by exp_m1: no cancellation near a = 0
    let odds = |a: f64| a - (-a.exp_m1()).ln();
    let o = odds(mean(0)) - odds(mean(1));
    let slope = |i: usize| -beta * sigmoid(-o) / (-mean(i).exp_m1() * unit[i].tokens);
    Verdict::pair(-beta * log_sigmoid(o), [slope(0), -slope(1)], [beta * mean(0), beta * mean(1)])
}
