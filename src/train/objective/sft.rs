//! Supervised learning: every trained token is shown, none is judged.
//!
//! ```text
//! L = (1/T) Σ over the T trained tokens of the window of −log p(token | those before)
//! ```
//! The mean is over tokens, not over rows; the trainer computes it in one go with its gradient
//! ([`Trainer::step`](crate::train::Trainer::step)). As a verdict it is the mean over one sequence.

use super::{Objective, Verdict};
use crate::train::examples::Signal;

pub const SFT: Objective = Objective {
    name: "sft",
    signal: Signal::Shown,
    reference: false,
    mismatched: false,
    text: false,
    numbers: &[],
    judge: |_, _, unit| {
        let tokens = unit[0].tokens.max(1.0);
        Verdict { loss: -unit[0].sum / tokens, slopes: [-1.0 / tokens, 0.0], ..Verdict::default() }
    },
};
