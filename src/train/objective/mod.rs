//! What a run strives for: one file each, one line in [`OBJECTIVES`].
//!
//! An objective over judged rows sees a sequence y after its prompt x as one number, and says how the loss moves with
//! it; the pass that computes log-probabilities then turns that into gradients, token by token:
//!
//! ```text
//! s(y) = Σ log p(token of y | x, those before)         over the trained tokens, with the layer
//! r(y) = the same without the layer                    the reference: no second model, no second copy
//! L    = (1/N) Σ over the N units of the window of l(s, r)         a unit is a pair, or a row with a label
//! dL/d log p(token of y) = (1/N) · ∂l/∂s(y)
//! ```
//! Everything here is f64 over a few numbers per sequence. Names and defaults are those of TRL 1.16.

mod dpo;
mod ipo;
mod kto;
mod orpo;
mod sft;
mod simpo;

use super::examples::Signal;
use crate::error::{Error, Findings, Kind, Result};

/// Every objective.
pub static OBJECTIVES: &[Objective] = &[sft::SFT, dpo::DPO, ipo::IPO, orpo::ORPO, simpo::SIMPO, kto::KTO];

/// An objective.
#[derive(Debug)]
pub struct Objective {
    /// Its name, as `--objective` takes it.
    pub name: &'static str,
    /// The rows it learns from.
    pub signal: Signal,
    /// Whether it compares with the base.
    pub reference: bool,
    /// Whether it needs the mean log-ratio of completions after prompts of others.
    pub mismatched: bool,
    /// Whether the text of chosen sequences, prompts too, is learned beside.
    pub text: bool,
    /// The numbers it takes.
    pub numbers: &'static [Number],
    /// Loss and slopes of a unit.
    pub judge: fn(numbers: &[f64], kl: f64, unit: &[Seen]) -> Verdict,
}

/// A number that an objective takes.
#[derive(Debug)]
pub struct Number {
    /// Its name, as flags and terms have it.
    pub name: &'static str,
    /// Unless told.
    pub default: f64,
    /// What it may be, in words.
    pub range: &'static str,
    /// And in deed.
    pub fits: fn(f64) -> bool,
}

/// β of most objectives.
const BETA: Number = Number {
    name: "beta",
    default: 0.1,
    range: "a finite number above 0",
    fits: |b| b.is_finite() && b > 0.0,
};

/// ε: the share of pairs that are the wrong way round.
const LABEL_SMOOTHING: Number = Number {
    name: "label-smoothing",
    default: 0.0,
    range: "from 0 and below 0.5",
    fits: |e| (0.0..0.5).contains(&e),
};

/// What is known of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Log-probability of its trained tokens, with the layer.
    pub sum: f64,
    /// The same without the layer; 0 where the objective has no reference.
    pub reference: f64,
    /// How many there are.
    pub tokens: f64,
    /// Whether it is the better one of its pair, or desirable.
    pub good: bool,
}

/// What an objective says of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict {
    /// l
    pub loss: f64,
    /// ∂l/∂s of each sequence.
    pub slopes: [f64; 2],
    /// The reward of each sequence, as it is logged.
    pub rewards: [f64; 2],
    /// Whether the unit is on the right side.
    pub right: bool,
}

impl Verdict {
    /// Of a pair (chosen, rejected).
    fn pair(loss: f64, slopes: [f64; 2], rewards: [f64; 2]) -> Verdict {
        Verdict { loss, slopes, rewards, right: rewards[0] > rewards[1] }
    }
}

/// The objective of that name.
///
/// # Errors
/// `Argument` listing those there are.
pub fn named(name: &str) -> Result<&'static Objective> {
    OBJECTIVES.iter().find(|o| o.name == name).ok_or_else(|| {
        let known: Vec<_> = OBJECTIVES.iter().map(|o| o.name).collect();
        Error::expected(Kind::Argument, "objective", known.join(", "), name)
    })
}

/// An objective and its numbers.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The objective.
    pub objective: &'static Objective,
    /// A value for each of its numbers.
    pub values: Vec<f64>,
}

impl Goal {
    /// What is wanted, or what such rows are for: supervised rows for `sft`, preferences for `dpo`, feedback for `kto`.
    ///
    /// # Errors
    /// `Argument` listing rows that do not fit, numbers that the objective does not take or that are out of range.
    pub fn choose(
        wanted: Option<&'static Objective>,
        signal: Signal,
        given: &[(&'static str, f64)],
    ) -> Result<Goal> {
        let fits = |o: &&Objective| o.signal == signal;
        let objective =
            wanted.or_else(|| OBJECTIVES.iter().find(fits)).expect("every signal has an objective");
        let mut wrong = Findings::default();
        if objective.signal != signal {
            let what = format!("rows for {}", objective.name);
            wrong.push(Error::expected(Kind::Argument, &what, objective.signal.rows(), signal.rows()));
        }
        for (name, _) in given {
            if !objective.numbers.iter().any(|n| n.name == *name) {
                let text = format!("{name} is no number of {}", objective.name);
                wrong.push(Error::new(Kind::Argument, text));
            }
        }
        let mut value = |n: &Number| {
            let value = given.iter().find(|(name, _)| *name == n.name).map_or(n.default, |(_, v)| *v);
            if !(n.fits)(value) {
                wrong.push(Error::expected(Kind::Argument, n.name, n.range, value));
            }
            value
        };
        let values = objective.numbers.iter().map(&mut value).collect();
        wrong.refuse("the objective cannot be used")?;
        Ok(Goal { objective, values })
    }

    /// Names and values, as terms and manifests have them.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.objective.numbers.iter().map(|n| n.name).zip(self.values.iter().copied())
    }

    /// Loss and slopes of a unit.
    pub fn judge(&self, kl: f64, unit: &[Seen]) -> Verdict {
        (self.objective.judge)(&self.values, kl, unit)
    }
}

/// log σ(z), without overflow.
fn log_sigmoid(z: f64) -> f64 {
    z.min(0.0) - (-z.abs()).exp().ln_1p()
}

/// σ(z)
fn sigmoid(z: f64) -> f64 {
    log_sigmoid(z).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Vec<[Seen; 2]> {
        let seen = |sum: f64, reference: f64, tokens: f64, good| Seen { sum, reference, tokens, good };
        vec![
            [seen(-20.0, -22.0, 10.0, true), seen(-31.0, -30.5, 17.0, false)],
            [seen(-3.0, -1.0, 4.0, true), seen(-2.5, -4.0, 1.0, false)],
            [seen(-0.4, -0.5, 8.0, true), seen(-400.0, -300.0, 50.0, false)],
            [seen(-400.0, -300.0, 50.0, true), seen(-0.4, -0.5, 8.0, false)],
        ]
    }

    #[test]
    fn slopes_are_those_of_the_loss() {
        let mut worst = 0f64;
        for objective in OBJECTIVES.iter().filter(|o| o.signal != Signal::Shown) {
            let arity = objective.signal.arity();
            for (beta, smoothing) in [(0.1, 0.0), (0.1, 0.3), (2.0, 0.1), (0.01, 0.0)] {
                let given = [("beta", beta), ("label-smoothing", smoothing)];
                let given: Vec<_> = given
                    .into_iter()
                    .filter(|(name, _)| objective.numbers.iter().any(|n| n.name == *name))
                    .collect();
                let goal = Goal::choose(Some(objective), objective.signal, &given).unwrap();
                for unit in pairs().iter().flat_map(|p| p.chunks(arity)) {
                    for kl in [0.0, 1.5] {
                        let at = goal.judge(kl, unit);
                        for i in 0..arity {
                            let moved = |by: f64| {
                                let mut unit = unit.to_vec();
                                unit[i].sum += by;
                                goal.judge(kl, &unit).loss
                            };
                            // fourth order: the error of the quotient is far below the bound
                            let h = 1e-3;
                            let slope = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h)))
                                / (12.0 * h);
                            let off = (slope - at.slopes[i]).abs() / at.slopes[i].abs().max(1e-3);
                            assert!(
                                off < 1e-7,
                                "{} {beta} {smoothing} {unit:?} {i}: {off:e}",
                                objective.name
                            );
                            worst = worst.max(off);
                        }
                    }
                }
            }
        }
        println!("worst slope off by {worst:.1e}");
    }

    #[test]
    fn rows_choose_their_objective_and_everything_wrong_is_listed() {
        for (signal, name) in [(Signal::Shown, "sft"), (Signal::Pairs, "dpo"), (Signal::Labels, "kto")] {
            let goal = Goal::choose(None, signal, &[]).unwrap();
            assert_eq!(goal.objective.name, name);
            assert!(goal.numbers().all(|(name, v)| v == if name == "beta" { 0.1 } else { v }));
        }
        for o in OBJECTIVES {
            assert_eq!(named(o.name).unwrap().name, o.name);
        }
        assert!(named("ppo").unwrap_err().to_string().contains("sft, dpo, ipo, orpo, simpo, kto"));
        let given = [("beta", 0.0), ("simpo-gamma", 1.0), ("label-smoothing", 0.5)];
        let error = Goal::choose(Some(named("dpo").unwrap()), Signal::Labels, &given).unwrap_err();
        assert_eq!(error.findings().len(), 4, "{error}");
        assert!(Goal::choose(None, Signal::Shown, &[("beta", 0.1)]).is_err());
        assert!(Goal::choose(None, Signal::Pairs, &[("beta", f64::NAN)]).is_err());
    }

    #[test]
    fn nothing_overflows() {
        assert_eq!(log_sigmoid(1e6), 0.0);
        assert_eq!(log_sigmoid(-1e6), -1e6);
        assert_eq!((sigmoid(-1e6), sigmoid(1e6), sigmoid(0.0)), (0.0, 1.0, 0.5));
        let sure = Seen { sum: 0.0, reference: 0.0, tokens: 3.0, good: true };
        for objective in OBJECTIVES {
            let goal = Goal::choose(Some(objective), objective.signal, &[]).unwrap();
            let verdict = goal.judge(0.0, &[sure, Seen { good: false, ..sure }][..objective.signal.arity()]);
            assert!(
                verdict.loss.is_finite() && verdict.slopes.iter().all(|s| s.is_finite()),
                "{objective:?}"
            );
        }
    }
}
