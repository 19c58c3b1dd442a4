//! A small search for a rank and a learning rate: successive halving (Jamieson, Talwalkar, "Non-stochastic Best Arm
//! Identification and Hyperparameter Optimization", arXiv 1502.07943) inside a budget of time.
//!
//! ```text
//! rung 0     every choice for n steps, a whole run with a schedule of its own; loss on held-out rows
//! rung k     the better third, each begun anew, for 3ᵏ·n steps; until one is left
//! n          as many steps as the budget has room for, by the speed of the first choice; at least 4, and no rung is longer
//!            than the run itself
//! ```
//! Begun anew: a choice that goes on would need its moments kept beside all others, and its schedule would end where no run
//! ends. That costs as many steps again as all rungs but the last have.
//!
//! How far a rung gets depends on the machine; what is chosen is written into the terms of the run ([`Chosen`]
//! becomes [`RunOptions::searched`]), so that it can be told, and goes on without another search.

use super::plan::{Data, Length, RunOptions, RunPlan};
use super::{Event, Flow, Outcome, Run, Set};
use crate::adapter::Lora;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use serde_json::{Value, json};
use std::sync::Arc;

/// Held-out rows that a trial is judged by, at most: a trial is short, and so must its evaluation be.
pub const HELD_OUT: usize = 64;

/// The fewest steps of a trial.
pub const LEAST: u64 = 4;

/// A rank, of methods that have one, and a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Rank.
    pub rank: Option<usize>,
    /// Peak learning rate.
    pub rate: f64,
}

/// A choice that was tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// What was tried.
    pub choice: Choice,
    /// The rung, from 0.
    pub rung: u32,
    /// Steps.
    pub steps: u64,
    /// Loss on held-out rows after them; infinite where a guard or an error in numbers ended it.
    pub loss: f64,
}

/// What a search has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The best of the last rung.
    pub best: Choice,
    /// Everything that was tried, in order.
    pub trials: Vec<Trial>,
    /// Whether the time was over before the last rung was.
    pub cut: bool,
}

impl Chosen {
    /// As the terms of a run have it: what was chosen, and what was tried.
    pub fn text(&self) -> String {
        let choice = |c: &Choice| json!({"rank": c.rank, "learning_rate": c.rate});
        let trial = |t: &Trial| {
            let mut line = choice(&t.choice);
            line["rung"] = json!(t.rung);
            line["steps"] = json!(t.steps);
            line["loss"] = json!(t.loss);
            line
        };
        let trials: Vec<Value> = self.trials.iter().map(trial).collect();
        json!({"chosen": choice(&self.best), "cut": self.cut, "trials": trials}).to_string()
    }

    /// What a text of [`Chosen::text`] says was chosen.
    pub fn read(text: &str) -> Option<Choice> {
        let all: Value = serde_json::from_str(text).ok()?;
        let rank = all["chosen"]["rank"].as_u64().map(|r| r as usize);
        Some(Choice { rank, rate: all["chosen"]["learning_rate"].as_f64()? })
    }
}

/// Searches among `choices` for at most `seconds`, which `clock` counts from the start. `make` gives the layer and the
/// options of a choice; `watch` is shown every trial, and asked between steps whether to go on (`None`).
///
/// # Errors
/// `Argument` without choices or held-out rows, and if the time is too short for 4 steps of each choice, with the time
/// that it would take; `Numeric` if no choice was of use; `Cancelled` if `watch` stopped it; as [`Run::new`].
pub fn search(
    model: &Arc<Model>,
    data: &Data,
    choices: &[Choice],
    seconds: f64,
    make: &mut dyn FnMut(Choice) -> Result<(Lora, RunOptions)>,
    clock: &mut dyn FnMut() -> f64,
    watch: &mut dyn FnMut(Option<&Trial>) -> Flow,
) -> Result<Chosen> {
    if choices.is_empty() || data.eval.examples.is_empty() {
        let text = "a search needs choices, and held-out rows to judge them by";
        return Err(Error::new(Kind::Argument, text));
    }
    let mut held = data.eval.clone();
    let most = HELD_OUT * held.signal().arity();
    held.examples.truncate(most);
    held.origins.truncate(most);
    let first = make(choices[0])?;
    let mut trial = |choice: Choice, rung: u32, steps: u64, until: f64, clock: &mut dyn FnMut() -> f64| {
        let (layer, options) = make(choice)?;
        one(model, data, &held, layer, options, (choice, rung, steps), until, clock, watch)
    };

    // The speed, by the first choice: all that a trial of a few steps takes, and what each more would.
    let begin = clock();
    trial(choices[0], 0, 1, f64::INFINITY, clock)?;
    let one_step = clock() - begin;
    trial(choices[0], 0, LEAST, f64::INFINITY, clock)?;
    let four_steps = clock() - begin - one_step;
    // On a busy machine one step may have lasted as long as four. Steps for nothing would give the first trial all the time
    // there is, so a step counts as at least a quarter of its share of the longer trial.
    let least = four_steps / (4 * LEAST) as f64;
    let per_step = ((four_steps - one_step) / (LEAST - 1) as f64).max(least);
    let per_trial = (one_step - per_step).max(0.0);
    let rungs = rungs(choices.len());
    let (mut all_steps, mut all_trials) = (0.0, 0.0);
    for (rung, left) in rungs.iter().enumerate() {
        all_steps += *left as f64 * 3f64.powi(rung as i32);
        all_trials += *left as f64;
    }
    let spent = clock();
    let room = (seconds - spent - all_trials * per_trial) / (all_steps * per_step.max(1e-9));
    if room < LEAST as f64 {
        let needs = spent + all_trials * per_trial + all_steps * per_step * LEAST as f64;
        let expected = format!("at least {:.1} minutes for {LEAST} steps of each choice", needs / 60.0);
        return Err(Error::expected(Kind::Argument, "search", expected, format!("{:.1}", seconds / 60.0)));
    }
    let whole = RunPlan::new(model, &first.0, data, &first.1)?.steps;
    let longest = 3u64.saturating_pow(rungs.len() as u32 - 1);
    let steps = (room as u64).min((whole / longest).max(LEAST));

    let (mut left, mut chosen) =
        (choices.to_vec(), Chosen { best: choices[0], trials: Vec::new(), cut: false });
    let mut best: Option<Trial> = None;
    for (rung, n) in rungs.iter().enumerate() {
        left.truncate(*n);
        let (mut done, steps) = (Vec::new(), steps * 3u64.pow(rung as u32));
        for choice in &left {
            // Not even the speed that was measured is a promise.
            let Some(tried) = trial(*choice, rung as u32, steps, seconds, clock)? else {
                chosen.cut = true;
                break;
            };
            chosen.trials.push(tried);
            done.push(tried);
        }
        if chosen.cut && best.is_some() {
            break; // a rung that is not whole says less than the one before it
        }
        done.sort_by(|a, b| a.loss.total_cmp(&b.loss));
        best = done.first().copied().filter(|t| t.loss.is_finite()).or(best);
        left = done.iter().filter(|t| t.loss.is_finite()).map(|t| t.choice).collect();
        if chosen.cut || left.len() < 2 {
            break;
        }
    }
    let Some(best) = best else {
        return Err(Error::new(Kind::Numeric, "no choice of the search learned anything that has a loss"));
    };
    chosen.best = best.choice;
    Ok(chosen)
}

/// How many choices each rung has.
fn rungs(choices: usize) -> Vec<usize> {
    let mut all = vec![choices];
    while let Some(next) = all.last().map(|n| n.div_ceil(3)).filter(|n| *n > 1) {
        all.push(next);
    }
    all
}

/// One trial; `None` if its time was over.
fn one(
    model: &Arc<Model>,
    data: &Data,
    held: &Set,
    layer: Lora,
    options: RunOptions,
    (choice, rung, steps): (Choice, u32, u64),
    until: f64,
    clock: &mut dyn FnMut() -> f64,
    watch: &mut dyn FnMut(Option<&Trial>) -> Flow,
) -> Result<Option<Trial>> {
    let options = RunOptions {
        length: Length::Steps(steps),
        eval_every: None,
        early_stop: None,
        keep_best: false,
        recipe: super::Recipe {
            // a warm-up as long, in parts of the run, as it can be
            warmup: options.recipe.warmup.min(steps / 4),
            ..options.recipe
        },
        ..options
    };
    let rows = Data { train: data.train.clone(), eval: held.clone() };
    let mut run = Run::new(Arc::clone(model), layer, rows, options, None)?;
    let (mut over, mut stopped) = (false, false);
    let done = run.go(&mut |event| {
        over |= clock() > until && !matches!(event, Event::Finished(_));
        stopped |= watch(None) == Flow::Stop;
        if over || stopped { Flow::Stop } else { Flow::Go }
    });
    let of = |loss| Trial { choice, rung, steps, loss };
    let tried = match done {
        Ok(Outcome::Finished(s)) => of(s.evaluations.last().map_or(f64::INFINITY, |e| e.loss)),
        Ok(Outcome::Halted { .. }) => of(f64::INFINITY),
        Err(e) if e.kind() == Kind::Numeric => of(f64::INFINITY),
        Ok(Outcome::Stopped { .. }) if stopped => {
            return Err(Error::new(Kind::Cancelled, "stopped while choices were tried"));
        }
        Ok(Outcome::Stopped { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    match watch(Some(&tried)) {
        Flow::Go => Ok(Some(tried)),
        Flow::Stop => Err(Error::new(Kind::Cancelled, "stopped while choices were tried")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_goes_on_until_one_is_left() {
        assert_eq!(rungs(9), [9, 3]);
        assert_eq!(rungs(10), [10, 4, 2]);
        assert_eq!((rungs(3), rungs(2), rungs(1)), (vec![3], vec![2], vec![1]));
    }

    #[test]
    fn what_was_chosen_can_be_read_again() {
        for rank in [None, Some(8)] {
            let best = Choice { rank, rate: 0.1 + 0.2 };
            let trial = Trial { choice: best, rung: 0, steps: 5, loss: f64::INFINITY };
            let chosen = Chosen { best, trials: vec![trial], cut: false };
            assert_eq!(Chosen::read(&chosen.text()), Some(best));
        }
        assert_eq!(Chosen::read("{}"), None);
        assert_eq!(Chosen::read("?"), None);
    }
}
