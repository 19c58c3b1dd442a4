//! Guards: when a run is going nowhere, and what is kept of it.
//!
//! ```text
//! not a number   a loss or a gradient that is not finite ends the run at once
//! divergence     so does the 8th high step in a row. A loss is high if it is above, in nats per token,
//!                    mean + max(1, 6·deviation)    where there were 20 steps that were not high
//!                    the highest of them + 2       before that
//!                mean and mean absolute deviation run over the last 50 or so steps that were not high
//! ```
//! What is kept is the layer of the last good step: the numbers with which the last loss that was finite and not high
//! was computed, from before the update that followed it. Both the rule's state and these numbers are part of a
//! checkpoint, so that a run that is continued ends where it would have ended.

use crate::tensor::Slots;

/// High steps in a row that end a run.
pub const PATIENCE: u64 = 8;

/// Steps until there is a mean to be far above of.
const WARM: u64 = 20;

/// Steps that the running mean looks back.
const WINDOW: u64 = 50;

/// The losses of a run as the guard sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Baseline {
    /// Steps that were not high.
    pub steps: u64,
    /// Running mean of their losses.
    pub mean: f64,
    /// Running mean of their distances from it.
    pub deviation: f64,
    /// The highest of their losses.
    pub highest: f64,
    /// High steps in a row, up to now.
    pub high: u64,
}

impl Baseline {
    /// What a loss must not be above.
    pub fn limit(&self) -> f64 {
        match self.steps {
            0 => f64::INFINITY,
            1..WARM => self.highest + 2.0,
            _ => self.mean + (6.0 * self.deviation).max(1.0),
        }
    }

    /// Takes the loss of a step; whether it is high.
    pub fn take(&mut self, loss: f64) -> bool {
        if loss > self.limit() {
            self.high += 1;
            return true;
        }
        self.high = 0;
        self.steps += 1;
        if self.steps == 1 {
            (self.mean, self.highest) = (loss, loss);
            return false;
        }
        let share = 1.0 / self.steps.min(WINDOW) as f64;
        self.deviation += share * ((loss - self.mean).abs() - self.deviation);
        self.mean += share * (loss - self.mean);
        self.highest = self.highest.max(loss);
        false
    }

    /// Whether the run is to end.
    pub fn diverged(&self) -> bool {
        self.high >= PATIENCE
    }
}

/// Copies all numbers of a layer over those of another of the same shapes. Allocates nothing.
pub(super) fn copy(from: &Slots<Vec<f32>>, to: &Slots<Vec<f32>>) {
    (0..from.len()).for_each(|i| to.get(i).copy_from_slice(&from.read(i)));
}

/// Room for the numbers of such a layer; none if it is not `wanted`.
pub(super) fn room(like: &Slots<Vec<f32>>, wanted: bool) -> Slots<Vec<f32>> {
    Slots::new(like.len(), |i| vec![0.0; if wanted { like.read(i).len() } else { 0 }])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step at which these losses end a run.
    fn ends(losses: impl IntoIterator<Item = f64>) -> Option<usize> {
        let mut b = Baseline::default();
        losses.into_iter().position(|l| {
            b.take(l);
            b.diverged()
        })
    }

    #[test]
    fn noise_and_spikes_go_on_and_what_stays_high_ends() {
        let mut rng = crate::rng::Rng::new(1);
        // single rows of very different difficulty
        let noise: Vec<f64> = (0..5000).map(|_| 0.01 + 5.0 * f64::from(rng.uniform())).collect();
        assert_eq!(ends(noise.iter().copied()), None);
        let spiky = noise.iter().enumerate().map(|(i, l)| if i % 40 > 33 { 50.0 } else { l / 3.0 });
        assert_eq!(ends(spiky), None);
        // learned well, then off: eight steps later
        let off =
            |at: usize, to: f64| (0..400).map(move |i| if i < at { 1.0 + 0.1 * (i % 2) as f64 } else { to });
        assert_eq!(ends(off(100, 4.0)), Some(107));
        assert_eq!(ends(off(100, 2.0)), None, "less than a nat above");
        assert_eq!(ends(off(1, 4.0)), Some(8), "from the first update on");
        assert_eq!(ends(off(3, 2.9)), None);
        // a loss that rises slowly is learning badly, not diverging
        assert_eq!(ends((0..300).map(|i| 1.0 + 0.01 * f64::from(i))), None);
    }
}
