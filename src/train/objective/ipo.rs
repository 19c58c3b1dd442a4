//! IPO: Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences" (2023), arXiv
//! 2310.12036, equation 17, with log-ratios per token (as its authors ran it, says TRL).
//!
//! ```text
//! h = (s − r)(chosen)/|chosen| − (s − r)(rejected)/|rejected|
//! l = (h − 1/2β)²
//! ∂l/∂s(chosen) = 2 (h − 1/2β)/|chosen|        ∂l/∂s(rejected) = −2 (h − 1/2β)/|rejected|
//! reward = β (s − r)
//! ```
//! β is the paper's τ. TRL's `loss_type="ipo"` of `DPOTrainer`.

use super::{BETA, Objective, Seen, Verdict};
use crate::train::examples::Signal;

pub const IPO: Objective = Objective {
    name: "ipo",
    signal: Signal::Pairs,
    reference: true,
    mismatched: false,
    text: false,
    numbers: &[BETA],
    judge,
};

fn judge(numbers: &[f64], _: f64, unit: &[Seen]) -> Verdict {
    let beta = numbers[0];
    let ratio = |i: usize| unit[i].sum - unit[i].reference;
    let off = ratio(0) / unit[0].tokens - ratio(1) / unit[1].tokens - 0.5 / beta;
    let slopes = [2.0 * off / unit[0].tokens, -2.0 * off / unit[1].tokens];
    Verdict::pair(off * off, slopes, [beta * ratio(0), beta * ratio(1)])
}
