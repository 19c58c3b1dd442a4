//! Which learning rate to begin with, by trying all of them (Smith, "Cyclical Learning Rates for Training Neural Networks",
//! arXiv 1506.01186, section 3.3: the range test).
//!
//! ```text
//! rate of step t     low · (high/low)^((t − 1)/(T − 1))            t = 1..=T
//! gain of step t     the loss of its window at this point − that of the same window before the first step
//! smooth             s ← 0.7·s + 0.3·gain, divided by 1 − 0.7^t
//! ends               once smooth lies max(½, half the first loss) above its lowest, or a loss is no number
//! suggested          a third of the rate at which smooth was lowest
//! ```
//! Windows differ more than a few steps change, so losses by themselves would show which rows came when. A step near the
//! lowest point is as large as one step may be; a run of many keeps below it. Nothing is written, and the same seed gives
//! the same table at any number of threads.

use super::plan::{Data, RunOptions, RunPlan};
use super::{Example, Flow, Order, Recipe, Shape, Signal, StepReport, Trainer};
use crate::adapter::Lora;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use std::sync::Arc;

/// One step of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Learning rate.
    pub rate: f64,
    /// Loss of its window before the update.
    pub loss: f64,
    /// What the steps so far have changed in it.
    pub gain: f64,
    /// A running mean of that.
    pub smooth: f64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// All steps, of rising rate.
    pub probes: Vec<Probe>,
    /// The rate at which the running mean was lowest; `None` if nothing was ever gained.
    pub lowest: Option<f64>,
    /// A rate to begin with.
    pub suggested: Option<f64>,
    /// Whether a rate was reached that is too much.
    pub diverged: bool,
}

/// How much of the running mean stays at each step.
const STAYS: f64 = 0.7;

/// Runs the test over the rows of `data` in steps as `options` has them, from rate `low` to `high`. `watch` is shown every
/// step and may end the test.
///
/// # Errors
/// As [`RunPlan::new`] and [`Trainer::new`]; `Argument` for rates that do not rise, or fewer than 8 steps; `Cancelled` if
/// `watch` stopped it.
pub fn find_rate(
    model: &Arc<Model>,
    mut layer: Lora,
    data: &Data,
    options: &RunOptions,
    (low, high): (f64, f64),
    steps: usize,
    watch: &mut dyn FnMut(&Probe) -> Flow,
) -> Result<Found> {
    if !(low > 0.0 && low < high && high.is_finite()) {
        let found = format!("{low} to {high}");
        return Err(Error::expected(Kind::Argument, "rates", "above 0 and rising", found));
    }
    if steps < 8 {
        return Err(Error::expected(Kind::Argument, "steps of the test", "at least 8", steps));
    }
    let o = options;
    let plan = RunPlan::new(model, &layer, data, o)?;
    let mut order = Order::new(data.train.units(), o.batch_size, o.grad_accumulation, o.seed, o.shuffle)?;
    let weights = o.balance.weights(&data.train)?;
    layer.learn(plan.options.rows, o.dropout, o.seed)?;
    let mut trainer = Trainer::new(Arc::clone(model), Arc::new(layer), plan.options.clone())?;
    trainer.set_packing(o.pack);
    let judged = plan.goal.objective.signal != Signal::Shown;
    if judged {
        trainer.set_goal(plan.goal.clone(), order.rows_of_window())?;
    }
    let mut references = vec![f64::NAN; if judged { data.train.examples.len() } else { 0 }];
    // The loss of the window of step t, from 0; the step is taken if it has a rate.
    let mut step = |t: usize, rate: Option<f64>| -> Result<f64> {
        let units = order.window(order.cursor(t as u64));
        let recipe = Recipe { rate: rate.unwrap_or(low), shape: Shape::Constant, warmup: 0, ..o.recipe };
        let mut loss = f64::NAN;
        let take = &mut |report: &StepReport| {
            loss = report.loss;
            rate.is_some()
        };
        if judged {
            let with = Some((&recipe, steps as u64));
            trainer.compare_if(&data.train, units, &mut references, with, take)?;
        } else {
            let window: Vec<&Example> = units.iter().map(|u| &data.train.examples[*u as usize]).collect();
            let weights: Vec<f32> = units.iter().filter_map(|u| weights.get(*u as usize)).copied().collect();
            trainer.step_weighted(&window, &weights, &recipe, steps as u64, take)?;
        }
        Ok(loss)
    };
    let before = (0..steps).map(|t| step(t, None)).collect::<Result<Vec<f64>>>()?;
    let mut found =
        Found { probes: Vec::with_capacity(steps), lowest: None, suggested: None, diverged: false };
    let (mut mean, mut least) = (0.0, 0.0);
    for (t, before) in before.iter().enumerate() {
        let rate = low * (high / low).powf(t as f64 / (steps - 1) as f64);
        let loss = match step(t, Some(rate)) {
            Err(e) if e.kind() == Kind::Numeric => {
                found.diverged = true;
                break;
            }
            other => other?,
        };
        let gain = loss - before;
        mean = STAYS * mean + (1.0 - STAYS) * gain;
        let smooth = mean / (1.0 - STAYS.powi(t as i32 + 1));
        let probe = Probe { rate, loss, gain, smooth };
        found.probes.push(probe);
        if watch(&probe) == Flow::Stop {
            return Err(Error::new(Kind::Cancelled, "stopped while rates were tried"));
        }
        if smooth < least {
            least = smooth;
            found.lowest = Some(rate);
        }
        if smooth > least + (0.5 * found.probes[0].loss).max(0.5) {
            found.diverged = true;
            break;
        }
    }
    found.suggested = found.lowest.map(|rate| rate / 3.0);
    Ok(found)
}
