//! Steps over judged rows: pairs, or rows with a label.
//!
//! ```text
//! reference   Σ log p of sequences without the layer: the same passes with the layer off, once per sequence and then
//!             remembered; its bits do not depend on the pass, so a run that is continued finds the same
//! z₀          for KTO: the completions of the window moved on by one row, with and without the layer
//! passes      whole units: forward → log p → verdict → gradients, in one go (see `head`)
//! ```
//! A pair is never divided between passes, so nothing is computed forward twice for its verdict; the price is that a
//! pass has room for the longest pair, not only the longest sequence, and that the head's product is taken twice where a
//! pass has more rows than the head takes at a time. CPU time of a step against supervised rows of the same tokens (fable-15m,
//! 16 sequences): SimPO 1.0, ORPO 1.05, DPO 1.25 while references are found and 0.95 after, KTO 1.85 and then 1.45.

use super::head::{Pass, Sum};
use super::objective::{Goal, Seen, Verdict};
use super::order::{Limits, Passes};
use super::{Example, Recipe, Set, StepReport, Trainer};
use crate::error::{Error, Findings, Kind, Result};

/// What was made of judged rows; the names are TRL's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rewards {
    /// `rewards/chosen`: mean reward of chosen or desirable sequences, if there were any.
    pub chosen: Option<f64>,
    /// `rewards/rejected`: of rejected or undesirable ones.
    pub rejected: Option<f64>,
    /// `rewards/accuracies`: share of units on the right side.
    pub accuracies: f64,
    /// `logps/chosen`: mean log-probability of sequences, a sum over their tokens.
    pub chosen_logps: Option<f64>,
    /// `logps/rejected`
    pub rejected_logps: Option<f64>,
    /// `kl`: KTO's z₀.
    pub kl: Option<f64>,
}

impl Rewards {
    /// `rewards/margins`
    pub fn margins(&self) -> Option<f64> {
        Some(self.chosen? - self.rejected?)
    }

    /// Names and values of those there are.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("rewards/chosen", self.chosen),
            ("rewards/rejected", self.rejected),
            ("rewards/margins", self.margins()),
            ("rewards/accuracies", Some(self.accuracies)),
            ("logps/chosen", self.chosen_logps),
            ("logps/rejected", self.rejected_logps),
            ("kl", self.kl),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}

/// Sums that become [`Rewards`].
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    loss: f64,
    units: f64,
    right: f64,
    kl: f64,
    /// Of chosen, of rejected: sequences, rewards, log-probabilities.
    sides: [(f64, f64, f64); 2],
}

impl Tally {
    fn add(&mut self, verdict: &Verdict, unit: &[Seen]) {
        self.units += 1.0;
        self.right += f64::from(u8::from(verdict.right));
        for (seen, reward) in unit.iter().zip(verdict.rewards) {
            let (n, rewards, sums) = &mut self.sides[usize::from(!seen.good)];
            *n += 1.0;
            *rewards += reward;
            *sums += seen.sum;
        }
    }

    /// Takes a window's tally in.
    fn merge(&mut self, other: &Tally) {
        self.loss += other.loss * other.units;
        self.kl += other.kl * other.units;
        self.units += other.units;
        self.right += other.right;
        for (to, from) in self.sides.iter_mut().zip(other.sides) {
            *to = (to.0 + from.0, to.1 + from.1, to.2 + from.2);
        }
    }

    fn rewards(&self, goal: &Goal) -> Rewards {
        let [chosen, rejected] = self.sides;
        let mean = |sum: f64, n: f64| (n > 0.0).then(|| sum / n);
        Rewards {
            chosen: mean(chosen.1, chosen.0),
            rejected: mean(rejected.1, rejected.0),
            accuracies: self.right / self.units.max(1.0),
            chosen_logps: mean(chosen.2, chosen.0),
            rejected_logps: mean(rejected.2, rejected.0),
            kl: goal.objective.mismatched.then_some(self.kl),
        }
    }
}

/// Memory of steps over judged rows.
#[derive(Debug)]
pub(super) struct Comparing {
    goal: Goal,
    /// For the sequences of a pass.
    sums: Vec<Sum>,
    /// Sequences whose reference is not known yet.
    missing: Vec<u32>,
    /// Completions after prompts of others.
    mismatched: Vec<Example>,
}

impl Comparing {
    /// The bytes for windows of so many units, sequences of a pass and positions.
    pub fn bytes(goal: &Goal, units: usize, sequences: usize, context: usize) -> u64 {
        let arity = goal.objective.signal.arity();
        let mismatched = if goal.objective.mismatched { units * (5 * (context + 1) + 48) } else { 0 };
        (sequences * size_of::<Sum>() + 4 * units * arity + mismatched) as u64
    }
}

impl Trainer {
    /// Readies it for windows of up to `units` judged units.
    ///
    /// # Errors
    /// `Argument` if a pass has no room for a unit.
    pub fn set_goal(&mut self, goal: Goal, units: usize) -> Result<()> {
        let (arity, limits) = (goal.objective.signal.arity(), self.limits());
        if limits.sequences < arity {
            let what = "sequences of a micro-batch";
            return Err(Error::expected(Kind::Argument, what, format!("at least {arity}"), limits.sequences));
        }
        let room = limits.context + 1;
        let example = || Example { tokens: Vec::with_capacity(room), trained: Vec::with_capacity(room) };
        let mismatched = if goal.objective.mismatched { units } else { 0 };
        self.comparing = Some(Comparing {
            sums: vec![Sum::default(); limits.sequences],
            missing: Vec::with_capacity(units * arity),
            mismatched: (0..mismatched).map(|_| example()).collect(),
            goal,
        });
        Ok(())
    }

    /// One optimiser step from the units of a window: units are numbers of pairs or of labelled rows in `set`, and
    /// `references` remembers, for each sequence of the set, its log-probability without the layer (NaN: not known yet).
    /// Without `recipe` and the steps of the run nothing is learned and nothing dropped.
    ///
    /// # Errors
    /// As [`Trainer::step`]; `Argument` without a goal ([`Trainer::set_goal`]).
    pub fn compare(
        &mut self,
        set: &Set,
        units: &[u32],
        references: &mut [f64],
        recipe: Option<(&Recipe, u64)>,
    ) -> Result<(StepReport, Rewards)> {
        let done = self.compare_if(set, units, references, recipe, &mut |_| true)?;
        Ok(done.expect("nobody prevents it"))
    }

    /// As [`Trainer::compare`], but asks, once the gradients are there, whether to use them; `None` if not, and then no
    /// parameter has changed.
    ///
    /// # Errors
    /// As [`Trainer::compare`].
    pub fn compare_if(
        &mut self,
        set: &Set,
        units: &[u32],
        references: &mut [f64],
        recipe: Option<(&Recipe, u64)>,
        go_on: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<Option<(StepReport, Rewards)>> {
        let mut comparing = self.take_comparing()?;
        let done = self.window(&mut comparing, set, units, references, recipe.is_some());
        let done = done.map(|(tally, tokens)| (tally.loss, tokens, tally.rewards(&comparing.goal)));
        self.comparing = Some(comparing);
        let (loss, tokens, rewards) = done?;
        let report = match recipe {
            Some((recipe, of_steps)) => self.update(recipe, of_steps, loss, tokens, go_on)?,
            None => Some(StepReport { loss, tokens, grad_norm: 0.0, rate: 0.0 }),
        };
        Ok(report.map(|report| (report, rewards)))
    }

    /// The mean loss and the rewards of a whole set, in windows of `window` units and without learning, asking before
    /// every window, with the number of sequences done, whether to go on; `None` if not.
    ///
    /// # Errors
    /// As [`Trainer::compare`].
    pub fn evaluate_compared(
        &mut self,
        set: &Set,
        window: usize,
        references: &mut [f64],
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<(StepReport, Rewards)>> {
        let mut comparing = self.take_comparing()?;
        let all: Vec<u32> = (0..set.units() as u32).collect();
        let (mut tally, mut tokens, mut done) = (Tally::default(), 0, Ok(true));
        for units in all.chunks(window.max(1)) {
            if !go_on(units[0] as usize * set.signal().arity()) {
                done = Ok(false);
                break;
            }
            match self.window(&mut comparing, set, units, references, false) {
                Ok((one, n)) => {
                    tally.merge(&one);
                    tokens += n;
                }
                Err(e) => {
                    done = Err(e);
                    break;
                }
            }
        }
        let n = tally.units.max(1.0);
        (tally.loss, tally.kl) = (tally.loss / n, tally.kl / n);
        let rewards = tally.rewards(&comparing.goal);
        self.comparing = Some(comparing);
        let report = StepReport { loss: tally.loss, tokens, grad_norm: 0.0, rate: 0.0 };
        Ok(done?.then_some((report, rewards)))
    }

    fn take_comparing(&mut self) -> Result<Comparing> {
        let text = "the trainer was given no objective over judged rows";
        self.comparing.take().ok_or_else(|| Error::new(Kind::Argument, text))
    }

    /// What a window is worth; its gradients, if it is learned from.
    fn window(
        &mut self,
        comparing: &mut Comparing,
        set: &Set,
        units: &[u32],
        references: &mut [f64],
        learns: bool,
    ) -> Result<(Tally, usize)> {
        let goal = &comparing.goal;
        let (objective, arity) = (goal.objective, goal.objective.signal.arity());
        let sequences = || units.iter().flat_map(|u| (0..arity).map(|k| *u as usize * arity + k));
        self.check_sequences(set, sequences())?;
        if objective.reference {
            comparing.missing.clear();
            comparing.missing.extend(sequences().filter(|i| references[*i].is_nan()).map(|i| i as u32));
            self.refer(&comparing.missing, set, &mut comparing.sums, references)?;
        }
        let mut tally = Tally::default();
        if objective.mismatched {
            for (i, to) in comparing.mismatched.iter_mut().take(units.len()).enumerate() {
                let before = units[(i + units.len() - 1) % units.len()] as usize;
                let this = &set.examples[units[i] as usize];
                mismatch(this, &set.examples[before], self.limits().context + 1, to);
            }
            let mismatched = &comparing.mismatched[..units.len()];
            tally.kl = self.divergence(mismatched, &mut comparing.sums)?;
        }
        if learns {
            self.clear_grads();
        }

        let chosen = || units.iter().map(|u| &set.examples[*u as usize * arity]);
        let share = 1.0 / units.len() as f64;
        let text = if objective.text { 1.0 / chosen().map(Example::rows).sum::<usize>() as f64 } else { 0.0 };
        let Limits { rows, sequences: most, front, .. } = self.limits();
        let rows_of = |u: usize| (0..arity).map(|k| set.examples[units[u] as usize * arity + k].rows()).sum();
        let limits = Limits { rows, sequences: most / arity, context: rows, front: arity * front };
        let mut passes = std::mem::take(&mut self.memory.passes);
        let cut = passes.cut(units.len(), rows_of, self.pack, limits);
        let pass = |i: usize| -> Result<()> {
            let which = passes.get(i);
            let example = |k: usize| {
                let unit = which[k / arity] as usize;
                ((unit * arity + k % arity) as u64, &set.examples[units[unit] as usize * arity + k % arity])
            };
            let sums = &mut comparing.sums[..which.len() * arity];
            for (k, sum) in sums.iter_mut().enumerate() {
                *sum = Sum { whole: objective.text && k % arity == 0, ..Sum::default() };
            }
            let judge = &mut |sums: &mut [Sum]| {
                for (unit, sums) in which.iter().zip(sums.chunks_exact_mut(arity)) {
                    let first = units[*unit as usize] as usize * arity;
                    let mut seen = [Seen::default(); 2];
                    for (k, (seen, sum)) in seen.iter_mut().zip(&*sums).enumerate() {
                        let reference = if objective.reference { references[first + k] } else { 0.0 };
                        let tokens = set.examples[first + k].count() as f64;
                        let good = set.origins[first + k].role.is_good();
                        *seen = Seen { sum: sum.trained, reference, tokens, good };
                    }
                    let verdict = goal.judge(tally.kl, &seen[..arity]);
                    tally.add(&verdict, &seen[..arity]);
                    tally.loss += share * verdict.loss;
                    for (sum, slope) in sums.iter_mut().zip(verdict.slopes) {
                        let text = if sum.whole { text } else { 0.0 };
                        tally.loss -= text * sum.text;
                        sum.slopes = [share * slope, -text];
                    }
                }
            };
            let count = sums.len();
            if learns {
                self.pass(count, &example, Pass::Sequences { sums, layer: true, judge: Some(judge) })?;
            } else {
                self.pass(count, &example, Pass::Sequences { sums, layer: true, judge: None })?;
                judge(sums);
            }
            Ok(())
        };
        let done = cut.and_then(|()| (0..passes.len()).try_for_each(pass));
        self.memory.passes = passes;
        done?;
        if !tally.loss.is_finite() {
            return Err(Error::expected(Kind::Numeric, "loss", "a finite number", tally.loss));
        }
        Ok((tally, sequences().map(|i| set.examples[i].count()).sum()))
    }

    /// The longest sequence bounds the positions, whatever a pass has room for.
    fn check_sequences(&self, set: &Set, sequences: impl Iterator<Item = usize>) -> Result<()> {
        let (mut wrong, most) = (Findings::default(), self.limits().context);
        for i in sequences {
            let e = &set.examples[i];
            if e.count() == 0 {
                wrong.push(Error::new(Kind::Data, format!("nothing of sequence {i} is judged")));
            }
            if e.rows() > most {
                let what = format!("length of sequence {i}");
                let most = format!("at most {} tokens", most + 1);
                wrong.push(Error::expected(Kind::Data, &what, most, e.rows() + 1));
            }
        }
        wrong.refuse("sequences that cannot be judged")
    }

    /// Finds the references of some sequences of the set.
    fn refer(&mut self, which: &[u32], set: &Set, sums: &mut [Sum], references: &mut [f64]) -> Result<()> {
        let sequence = |i: usize| &set.examples[which[i] as usize];
        self.sum(which.len(), &sequence, false, sums, &mut |i, sum| references[which[i] as usize] = sum)
    }

    /// max(0, mean log-ratio) of sequences.
    fn divergence(&mut self, sequences: &[Example], sums: &mut [Sum]) -> Result<f64> {
        let (mut total, sequence) = (0.0, |i: usize| &sequences[i]);
        for (layer, sign) in [(true, 1.0), (false, -1.0)] {
            self.sum(sequences.len(), &sequence, layer, sums, &mut |_, sum| total += sign * sum)?;
        }
        Ok((total / sequences.len() as f64).max(0.0))
    }

    /// Σ log p of each of `n` sequences, without gradients.
    fn sum<'e>(
        &mut self,
        n: usize,
        sequence: &dyn Fn(usize) -> &'e Example,
        layer: bool,
        sums: &mut [Sum],
        found: &mut dyn FnMut(usize, f64),
    ) -> Result<()> {
        let mut passes: Passes = std::mem::take(&mut self.memory.passes);
        let cut = passes.cut(n, |i| sequence(i).rows(), true, self.limits());
        let done = cut.and_then(|()| {
            (0..passes.len()).try_for_each(|i| {
                let which = passes.get(i);
                let sums = &mut sums[..which.len()];
                sums.fill(Sum::default());
                let example = |k: usize| (u64::from(which[k]), sequence(which[k] as usize));
                self.pass(which.len(), &example, Pass::Sequences { sums, layer, judge: None })?;
                which.iter().zip(sums).for_each(|(i, sum)| found(*i as usize, sum.trained));
                Ok(())
            })
        });
        self.memory.passes = passes;
        done
    }
}

/// The prompt of one row and the completion of another, up to `most` tokens.
fn mismatch(prompt: &Example, completion: &Example, most: usize, to: &mut Example) {
    let first = |e: &Example| e.trained.iter().position(|t| *t).unwrap_or(e.tokens.len());
    let (p, c) = (first(prompt).min(most), first(completion));
    let end = completion.tokens.len().min(c + most - p);
    to.tokens.clear();
    to.tokens.extend_from_slice(&prompt.tokens[..p]);
    to.tokens.extend_from_slice(&completion.tokens[c..end]);
    to.trained.clear();
    to.trained.resize(p, false);
    to.trained.extend_from_slice(&completion.trained[c..end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_moves_behind_another_prompt() {
        let example = |tokens: &[u32], prompt: usize| Example {
            tokens: tokens.to_vec(),
            trained: (0..tokens.len()).map(|i| i >= prompt).collect(),
        };
        let (a, b) = (example(&[1, 2, 3, 4, 5], 3), example(&[6, 7, 8, 9], 1));
        let mut to = Example { tokens: vec![], trained: vec![] };
        for (most, tokens) in [(9, &[1, 2, 3, 7, 8, 9][..]), (4, &[1, 2, 3, 7]), (2, &[1, 2])] {
            mismatch(&a, &b, most, &mut to);
            assert_eq!((&to.tokens[..], to.trained.iter().filter(|t| !**t).count()), (tokens, most.min(3)));
            assert_eq!(to.trained.len(), tokens.len());
        }
    }
}
