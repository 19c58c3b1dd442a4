//! What a run is asked to do, and what it will take: known, and checked, before anything is allocated.

use super::balance::Balance;
use super::checkpoint::Terms;
use super::compare::Comparing;
use super::moments::Optimizer;
use super::objective::{Goal, OBJECTIVES, Objective};
use super::{Example, Keep, MOST_SEQUENCES, Order, Recipe, Set, Shape, Signal, TrainOptions, Trainer};
use crate::adapter::{Lora, Part};
use crate::backend::Device;
use crate::error::{Error, Findings, Kind, Result};
use crate::model::{Memory, Model};
use crate::ops::Delta;
use crate::ops::kv::Precision;
use crate::tensor::{Identity, Threads};
use onlay_kernels::Level;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The longest row unless told, in positions, if the model has as many.
pub const CONTEXT: usize = 1024;

/// Rows of a pass unless told: enough that weights are read for many rows at once.
const ROWS_OF_A_PASS: usize = 512;

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// So many times all rows; parts of an epoch are rounded up to a whole step.
    Epochs(f64),
    /// So many optimiser steps.
    Steps(u64),
}

/// How a run begins where a checkpoint may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the beginning; a checkpoint of an earlier run is an error.
    #[default]
    New,
    /// From the newest checkpoint, or at the beginning if there is none: a run may be killed before its first.
    Resume,
    /// At the beginning; checkpoints of an earlier run are removed.
    Over,
}

/// Everything about a run but its model, layer and rows.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// How long it is.
    pub length: Length,
    /// Rows of a step are `batch_size · grad_accumulation`; only the product counts.
    pub batch_size: usize,
    /// See `batch_size`.
    pub grad_accumulation: usize,
    /// What it strives for; `None` for what the rows are for ([`Goal::choose`]).
    pub objective: Option<&'static Objective>,
    /// Numbers of the objective that are not its defaults.
    pub numbers: Vec<(&'static str, f64)>,
    /// How much rows of rare answers count.
    pub balance: Balance,
    /// How fast to learn.
    pub recipe: Recipe,
    /// How the moments are kept.
    pub optimizer: Optimizer,
    /// Share of the layer's inputs that is dropped while learning.
    pub dropout: f64,
    /// Of the order of rows and of dropout.
    pub seed: u64,
    /// Whether every epoch has another order.
    pub shuffle: bool,
    /// Whether short rows fill passes up (see [`Trainer::set_packing`]).
    pub pack: bool,
    /// Steps between evaluations; there is always one before the first step and one after the last, if there are
    /// evaluation rows.
    pub eval_every: Option<u64>,
    /// Steps between checkpoints.
    pub checkpoint_every: Option<u64>,
    /// Time between checkpoints. There is always one when a run stops and at its end.
    pub checkpoint_after: Option<Duration>,
    /// Whether a loss that stays far above its mean ends the run; see [`Baseline`](super::Baseline).
    pub guard: bool,
    /// Ends the run after so many evaluations without a better one.
    pub early_stop: Option<u64>,
    /// Whether the layer of the best evaluation is what is left at the end, instead of the last.
    pub keep_best: bool,
    /// What to do about a checkpoint that is there.
    pub start: Start,
    /// Instructions to use.
    pub level: Level,
    /// Threads.
    pub threads: Threads,
    /// What a search has chosen and tried ([`Chosen::text`](super::Chosen::text)), for the terms of the run.
    pub searched: Option<String>,
    /// The layer that this one continues, for its manifest.
    pub parent: Option<[u8; 32]>,
    /// Rounding of keys and values: that of serving.
    pub kv: Precision,
    /// What computes.
    pub device: Device,
    /// What is kept for the backward pass.
    pub keep: Keep,
    /// The most rows of a pass; `None` for 512, or the longest sequence if that is more.
    pub rows_of_a_pass: Option<usize>,
    /// The most bytes that the run may take, besides what the process held before: a plan of more is refused, and a run
    /// that takes more is stopped. See [`Fit`](super::Fit).
    pub memory: Option<u64>,
}

impl RunOptions {
    /// Three epochs in steps of 8 rows.
    pub fn new(level: Level, threads: impl Into<Threads>) -> Self {
        RunOptions {
            length: Length::Epochs(3.0),
            batch_size: 8,
            grad_accumulation: 1,
            objective: None,
            numbers: Vec::new(),
            balance: Balance::None,
            recipe: Recipe::default(),
            optimizer: Optimizer::default(),
            dropout: 0.0,
            seed: 0,
            shuffle: true,
            pack: true,
            eval_every: None,
            checkpoint_every: None,
            checkpoint_after: Some(Duration::from_secs(300)),
            guard: true,
            early_stop: None,
            keep_best: false,
            start: Start::New,
            searched: None,
            parent: None,
            level,
            threads: threads.into(),
            kv: Precision::default(),
            device: Device::Host,
            keep: Keep::Streams,
            rows_of_a_pass: None,
            memory: None,
        }
    }
}

/// What is learned from and what is only evaluated.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// Learned from.
    pub train: Set,
    /// Evaluated; may be empty.
    pub eval: Set,
}

impl Data {
    /// Rows of the longest sequence, and of the longest unit with `front` rows in front of each of its sequences: what a pass
    /// must have room for. `most` bounds sequences that are made of two rows.
    pub fn longest(&self, objective: &Objective, most: usize, front: usize) -> (usize, usize) {
        let (mut sequence, mut unit) = (1, 1);
        for set in [&self.train, &self.eval] {
            let rows = |i: usize| set.unit(i).iter().map(Example::rows);
            for i in 0..set.units() {
                sequence = sequence.max(rows(i).max().unwrap_or(0));
                unit = unit.max(rows(i).map(|n| n + front).sum());
            }
            if objective.mismatched {
                let prompt = |e: &Example| e.trained.iter().position(|t| *t).unwrap_or(e.tokens.len());
                let longest = |f: &dyn Fn(&Example) -> usize| set.examples.iter().map(f).max().unwrap_or(0);
                let both = longest(&prompt) + longest(&|e| e.tokens.len() - prompt(e));
                sequence = sequence.max((both.max(1) - 1).min(most));
                unit = unit.max(sequence + front);
            }
        }
        (sequence, unit.max(1 + front))
    }
}

/// What a run will take, known before anything is allocated.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// What it strives for.
    pub goal: Goal,
    /// What the trainer is planned for.
    pub options: TrainOptions,
    /// Memory besides the mapped file.
    pub memory: Memory,
}

impl RunPlan {
    /// The plan of a run.
    ///
    /// # Errors
    /// Everything that is wrong with options, rows and layer.
    pub fn new(model: &Model, layer: &Lora, data: &Data, options: &RunOptions) -> Result<RunPlan> {
        let mut wrong = Findings::default();
        wrong.keep(options.recipe.check());
        if !(0.0..1.0).contains(&options.dropout) {
            let range = "at least 0 and below 1";
            wrong.push(Error::expected(Kind::Argument, "dropout", range, options.dropout));
        }
        if layer.is_empty() {
            wrong.push(Error::new(Kind::Argument, "the layer has no part that could learn"));
        }
        let fast = |p: &Part| p.learned().iter().any(|(at, fast)| *fast && !at.is_empty());
        if options.recipe.plus != 1.0 && !layer.parts().iter().flatten().any(fast) {
            let text = format!("lora-plus-ratio: {} has no B that could learn faster", layer.method().name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        if options.dropout > 0.0 && !layer.method().drops() {
            let text = format!("dropout: {} has no inputs that could be dropped", layer.method().name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        wrong.keep(layer.check(model.program()));
        let weights = wrong.keep(options.balance.weights(&data.train)).unwrap_or_default().len();
        let order = wrong.keep(Order::new(
            data.train.units(),
            options.batch_size,
            options.grad_accumulation,
            options.seed,
            false,
        ));
        let steps = match options.length {
            Length::Steps(steps) => steps as f64,
            Length::Epochs(epochs) => (epochs * order.as_ref().map_or(1, Order::windows) as f64).ceil(),
        };
        if !(1.0..=1e15).contains(&steps) {
            let what = if matches!(options.length, Length::Steps(_)) { "max-steps" } else { "epochs" };
            wrong.push(Error::expected(Kind::Argument, what, "at least one step, and an end", steps));
        } else {
            layer.check_budget(steps as u64, &mut wrong);
        }
        for (name, every) in [
            ("eval-every", options.eval_every),
            ("checkpoint-every", options.checkpoint_every),
            ("early-stop", options.early_stop),
        ] {
            if every == Some(0) {
                wrong.push(Error::expected(Kind::Argument, name, "at least 1", 0));
            }
        }
        for (name, asked) in [("early-stop", options.early_stop.is_some()), ("keep-best", options.keep_best)]
        {
            if asked && (data.eval.examples.is_empty() || options.eval_every.is_none()) {
                let needs = "evaluation rows, and steps between evaluations (eval-every)";
                let found = match data.eval.examples.is_empty() {
                    true => "no evaluation rows",
                    false => "evaluations before the first step and after the last only",
                };
                wrong.push(Error::expected(Kind::Argument, name, needs, found));
            }
        }
        for (i, e) in data.train.examples.iter().chain(&data.eval.examples).enumerate() {
            if e.count() == 0 || e.trained.len() != e.tokens.len() {
                wrong.push(Error::new(Kind::Data, format!("nothing of sequence {i} is learned")));
            }
            wrong.keep(model.check_tokens(&e.tokens));
        }
        let window = order.as_ref().map_or(1, Order::rows_of_window);
        let signal = data.train.signal();
        let goal = wrong.keep(Goal::choose(options.objective, signal, &options.numbers));
        judged(data, goal.as_ref(), window, &mut wrong);
        let objective = goal.as_ref().map_or(&OBJECTIVES[0], |g| g.objective);
        let (longest, unit) = data.longest(objective, model.program().context, layer.virtual_tokens());
        let rows = match options.rows_of_a_pass {
            None => ROWS_OF_A_PASS.min(unit.saturating_mul(window)).max(unit),
            Some(rows) if rows < unit => {
                let what = if signal == Signal::Pairs { "pair" } else { "sequence" };
                let least = format!("at least {unit}, the longest {what}");
                wrong.push(Error::expected(Kind::Argument, "rows of a pass", least, rows));
                unit
            }
            Some(rows) => rows,
        };
        wrong.refuse("the run cannot start")?;
        let goal = goal.expect("nothing is wrong");
        let (dropout, keep_best, most) = (options.dropout > 0.0, options.keep_best, options.memory);
        let options = TrainOptions {
            level: options.level,
            threads: options.threads,
            rows,
            context: longest,
            sequences: window.saturating_mul(signal.arity()).max(8).min(rows).min(MOST_SEQUENCES),
            kv: options.kv,
            keep: options.keep,
            optimizer: options.optimizer,
            device: options.device,
        };
        let mut memory = Trainer::plan(model, layer, dropout, &options);
        if signal != Signal::Shown {
            let examples = data.train.examples.len() + data.eval.examples.len();
            let remembered = if goal.objective.reference { 8 * examples as u64 } else { 0 };
            let bytes = Comparing::bytes(&goal, window, options.sequences, options.context) + remembered;
            memory.parts.push(("judged rows", bytes));
        }
        let copy = 4 * layer.len() as u64;
        let rows = data.train.examples.iter().chain(&data.eval.examples);
        // tokens and marks, and what holds them
        memory.parts.push(("data rows", rows.map(|e| 5 * e.tokens.len() as u64 + 112).sum()));
        memory.parts.push(("row weights", 4 * weights as u64));
        memory.parts.push(("the layer of the last good step", copy));
        if keep_best {
            memory.parts.push(("the layer of the best evaluation", copy));
        }
        memory.parts.push(("the process", process(model, layer, &options)));
        if let Some(most) = most.filter(|most| memory.total() > *most) {
            let (expected, found) = (format!("at most {most} bytes"), format!("{} bytes", memory.total()));
            return Err(Error::expected(Kind::Memory, "planned memory", expected, found));
        }
        Ok(RunPlan {
            steps: steps as u64,
            steps_per_epoch: order.map_or(1, |o| o.windows()),
            goal,
            memory,
            options,
        })
    }
}

/// What the process holds besides: its code's own data and stacks, the tokenizer (50 to 80 bytes a token, measured on five
/// vocabularies), and the pages that arrays use in part. `tests/memory.rs` holds the whole plan to what is used.
fn process(model: &Model, layer: &Lora, options: &TrainOptions) -> u64 {
    let program = model.program();
    let tokenizer = if model.has_tokenizer() { 80 * program.vocabulary } else { 0 };
    let frames = if options.keep == Keep::Registers { program.segments.len() } else { 1 };
    // numbers, gradients, two moments and two copies of each place
    let arrays = 6 * layer.parts().iter().flatten().count() + (frames + 1) * program.columns().len();
    ((768 << 10) + (64 << 10) * options.threads.count + tokenizer + 4096 * arrays) as u64
}

/// What is wrong with judged rows as a whole.
fn judged(data: &Data, goal: Option<&Goal>, window: usize, wrong: &mut Findings) {
    let (here, there) = (data.train.signal(), data.eval.signal());
    if !data.eval.examples.is_empty() && here != there {
        wrong.push(Error::expected(Kind::Data, "evaluation rows", here.rows(), there.rows()));
    }
    if here == Signal::Labels && !data.train.examples.is_empty() {
        let good = data.train.origins.iter().filter(|o| o.role.is_good()).count();
        if good == 0 || good == data.train.origins.len() {
            let text = "all labels of the rows to learn from are the same; expected rows of both kinds";
            wrong.push(Error::new(Kind::Data, text));
        }
    }
    if goal.is_some_and(|g| g.objective.mismatched) && window < 2 {
        let why = "at least 2: completions change their prompts";
        wrong.push(Error::expected(Kind::Argument, "batch-size · grad-accumulation", why, window));
    }
}

/// Everything that decides the numbers of a run. `layer` is as it is before the first step.
pub(super) fn terms(model: &Model, layer: &Lora, data: &Data, options: &RunOptions, plan: &RunPlan) -> Terms {
    let (o, r) = (options, &options.recipe);
    let mut terms = Terms::default();
    terms.set("onlay", env!("CARGO_PKG_VERSION"));
    terms.set("base", model.weights().identity());
    terms.set("data", Identity::hex(&data.train.hash()));
    terms.set("eval-data", Identity::hex(&data.eval.hash()));
    terms.set("objective", plan.goal.objective.name);
    for (name, value) in plan.goal.numbers() {
        terms.set(name, value);
    }
    terms.set("method", layer.method().name);
    terms.set("initial-layer", Identity::hex(&numbers(layer)));
    for (i, part) in layer.parts().iter().enumerate() {
        if let Some(p) = part {
            terms.set(format!("layer.{}", model.program().place_name(i)), p.to_string());
        }
    }
    terms.set("dropout", o.dropout);
    terms.set("seed", o.seed);
    terms.set("shuffle", o.shuffle);
    terms.set("balance", o.balance.name());
    terms.set("rows-of-a-step", o.batch_size * o.grad_accumulation);
    terms.set("learning-rate", r.rate);
    terms.set("lora-plus-ratio", r.plus);
    terms.set("lr-schedule", r.shape.name());
    terms.set("warmup-steps", r.warmup);
    if let Some(budget) = layer.budget() {
        terms.set("budget", budget);
    }
    if r.shape != Shape::Constant || layer.budget().is_some() {
        terms.set("steps", plan.steps); // the rate of every step depends on the last, and so do budgets
    }
    terms.set("weight-decay", r.decay);
    terms.set("max-grad-norm", r.max_norm);
    terms.set("optimizer", o.optimizer.name());
    terms.set("beta1", r.beta1);
    terms.set("beta2", r.beta2);
    terms.set("epsilon", r.epsilon);
    // When it ends, and with which of its layers.
    terms.set("divergence-guard", o.guard);
    if let Some(n) = o.early_stop {
        terms.set("early-stop", n);
    }
    if o.keep_best {
        terms.set("keep-best", true);
    }
    if let Some(n) = o.eval_every.filter(|_| o.keep_best || o.early_stop.is_some()) {
        terms.set("eval-every", n);
    }
    if let Some(text) = &o.searched {
        terms.set("searched", text);
    }
    terms.set("kv", o.kv.name());
    // The order of floating-point sums.
    terms.set("level", o.level.name());
    terms.set("pack", o.pack);
    terms.set("rows-of-a-pass", plan.options.rows);
    terms.set("sequences-of-a-pass", plan.options.sequences);
    terms
}

/// SHA-256 over the numbers of a layer.
fn numbers(layer: &Lora) -> [u8; 32] {
    let mut hash = Sha256::new();
    for i in 0..layer.params().len() {
        let part = layer.params().read(i);
        hash.update((part.len() as u64).to_le_bytes());
        part.iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    layer.fixed().into_iter().flatten().for_each(|v| hash.update(v.to_le_bytes()));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let o = RunOptions::new(Level::PORTABLE, 1);
        assert_eq!((o.length, o.batch_size, o.grad_accumulation), (Length::Epochs(3.0), 8, 1));
        assert_eq!((o.start, o.checkpoint_after), (Start::New, Some(Duration::from_secs(300))));
        assert!(o.shuffle && o.pack && o.recipe.check().is_ok());
    }
}
