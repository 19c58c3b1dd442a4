//! Choices that make a run fit the memory it may have.
//!
//! ```text
//! first       all registers kept, passes as planned                        no work twice
//! then        layers computed again                                        a third more time
//! then        fewer rows a pass, down to the longest sequence              the weights are read more often
//! then        the same with moments in 8 bits, if no optimiser was named   other numbers, which learn as well
//! ```
//! The first that fits is taken. On a device, all registers are kept only where its memory then still holds all weights. The rows of a step, their order, and what a step learns from them stay as they are: fewer
//! rows a pass are more passes a step. Positions are never divided: rows that are longer than the memory allows are refused,
//! with the length that would fit.

use super::moments::Optimizer;
use super::objective::Goal;
use super::plan::{Data, RunOptions, RunPlan};
use super::{Keep, TrainOptions, Trainer};
use crate::adapter::{Effect, Lora, Part};
use crate::backend::STREAMED;
use crate::error::{Error, Findings, Kind, Result};
use crate::model::Model;
use crate::ops::Delta;

/// Rows of a pass that are tried, below those of a run that has all the memory it wants.
const ROWS: [usize; 8] = [384, 256, 192, 128, 96, 64, 48, 32];

/// What was chosen.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The options with what was chosen; their `memory` is the promise.
    pub options: RunOptions,
    /// The plan of those.
    pub plan: RunPlan,
}

impl Fit {
    /// Chooses for a run that may take `most` bytes besides the mapped base. Without a promise only what is kept for the
    /// backward pass is chosen: so that the run stays below `comfort`, if that is possible. The optimiser is chosen if it is
    /// `free`.
    ///
    /// # Errors
    /// As [`RunPlan::new`]; `Memory` if nothing fits, with what is needed at least and what else would fit.
    pub fn new(
        model: &Model,
        layer: &Lora,
        data: &Data,
        options: &RunOptions,
        most: Option<u64>,
        comfort: u64,
        free: bool,
    ) -> Result<Fit> {
        let tried = |keep, rows, optimizer| -> Result<Fit> {
            let options =
                RunOptions { keep, rows_of_a_pass: rows, optimizer, memory: None, ..options.clone() };
            let plan = RunPlan::new(model, layer, data, &options)?;
            Ok(Fit { options, plan })
        };
        // whether a device has room for it, and for all weights besides; on the host there is nothing to ask
        let on_device = |fit: &Fit| -> Result<(bool, bool)> {
            match Trainer::device_plan(model, layer, &fit.plan.options) {
                Ok(memory) => Ok((true, memory.parts.iter().all(|(name, n)| *name != STREAMED || *n == 0))),
                Err(e) if e.kind() == Kind::Memory => Ok((false, false)),
                Err(e) => Err(e),
            }
        };
        let given = options.rows_of_a_pass;
        let first = tried(Keep::Registers, given, options.optimizer)?;
        let (_, roomy) = on_device(&first)?;
        let (promise, most) = (most, most.unwrap_or(u64::MAX));
        if promise.is_none() {
            if first.plan.memory.total() <= comfort && roomy {
                return Ok(first);
            }
            let second = tried(Keep::Streams, given, options.optimizer)?;
            if on_device(&second)?.0 {
                return Ok(second);
            }
        }
        let longest = longest(model, layer, data, options);
        let usual = first.plan.options.rows;
        let fewer = ROWS.into_iter().filter(|r| given.is_none() && *r > longest && *r < usual);
        let least = (given.is_none() && longest < usual).then_some(longest);
        let rows: Vec<_> = fewer.chain(least).map(Some).collect();
        let mut smallest: Option<Fit> = None;
        for optimizer in Optimizer::ALL.into_iter().filter(|o| *o == options.optimizer || free) {
            let keeps = [(Keep::Registers, given), (Keep::Streams, given)];
            let keeps = keeps.into_iter().skip(usize::from(!roomy));
            for (keep, rows) in keeps.chain(rows.iter().map(|r| (Keep::Streams, *r))) {
                let mut fit = tried(keep, rows, optimizer)?;
                if fit.plan.memory.total() <= most && on_device(&fit)?.0 {
                    fit.options.memory = promise;
                    return Ok(fit);
                }
                if smallest.as_ref().is_none_or(|s| fit.plan.memory.total() < s.plan.memory.total()) {
                    smallest = Some(fit);
                }
            }
        }
        let smallest = smallest.expect("something was tried");
        if smallest.plan.memory.total() <= most {
            // then it was the device
            Trainer::device_plan(model, layer, &smallest.plan.options)?;
        }
        Err(refusal(model, layer, data, &smallest, most))
    }

    /// What was chosen, in words.
    pub fn chosen(&self) -> String {
        let keeps = match self.options.keep {
            Keep::Registers => "everything kept for the backward pass",
            Keep::Streams => "layers computed again for the backward pass",
        };
        let rows = self.plan.options.rows;
        format!("{rows} rows a pass, {keeps}, {}", self.options.optimizer.name())
    }
}

/// Rows of the longest unit, below which no pass goes.
fn longest(model: &Model, layer: &Lora, data: &Data, options: &RunOptions) -> usize {
    // A goal that cannot be had is refused by the plan, with everything else.
    let goal = Goal::choose(options.objective, data.train.signal(), &options.numbers);
    goal.map_or(1, |goal| data.longest(goal.objective, model.program().context, layer.virtual_tokens()).1)
}

/// Why nothing fits, and what would.
fn refusal(model: &Model, layer: &Lora, data: &Data, smallest: &Fit, most: u64) -> Error {
    let Fit { options, plan } = smallest;
    let least = plan.memory.total();
    let mut wrong = Findings::default();
    let bytes = |n: u64| format!("{n} bytes ({:.1} MiB)", n as f64 / f64::from(1 << 20));
    let expected = format!("at least {} for this model, layer and rows", bytes(least));
    wrong.push(Error::expected(Kind::Memory, "--memory", expected, bytes(most)));
    let mut would = |text: String| wrong.push(Error::new(Kind::Memory, format!("{text} would fit")));
    let tried = |layer: &Lora, options: &RunOptions| {
        RunPlan::new(model, layer, data, options).is_ok_and(|plan| plan.memory.total() <= most)
    };
    let eight = RunOptions { optimizer: Optimizer::AdamW8bit, ..options.clone() };
    if options.optimizer != Optimizer::AdamW8bit && tried(layer, &eight) {
        would(format!("--optimizer {}", eight.optimizer.name()));
    }
    // shorter rows, whose data, layer and all else stay
    let dropout = options.dropout > 0.0;
    let of_rows = |rows: usize| {
        let with = TrainOptions { rows, context: rows.min(plan.options.context), ..plan.options.clone() };
        Trainer::plan(model, layer, dropout, &with).total()
    };
    let rest = least - of_rows(plan.options.rows).min(least);
    let fits = |rows: usize| rest + of_rows(rows) <= most;
    if fits(1) {
        let (mut low, mut high) = (1, plan.options.rows);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        would(format!("rows of at most {low} tokens (--ctx {low})"));
    }
    let mut rank = layer.parts().iter().flatten().map(|p| p.rank).max().unwrap_or(0);
    let plain = |p: &Part| matches!(p.effect, Effect::Lora | Effect::Dora) && p.frozen == 0;
    while rank > 1 && layer.parts().iter().flatten().all(plain) {
        rank /= 2;
        let part = |p: &Option<Part>| p.map(|p| Part { rank: p.rank.min(rank), ..p });
        if tried(&Lora::new(layer.parts().iter().map(part).collect()), options) {
            would(format!("a layer of rank {rank} (--rank {rank})"));
            break;
        }
    }
    wrong.refuse("nothing fits the memory").expect_err("there is a finding")
}
