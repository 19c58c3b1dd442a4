//! What a run tells while it goes, and at its end.

use super::checkpoint::{Evaluation, Terms};
use super::objective::Goal;
use super::{Facts, Rewards};
use crate::adapter::Manifest;
use crate::error::Error;
use crate::model::{Memory, Model};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What an observer of long work answers: whether it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// On.
    Go,
    /// Not further than what was begun.
    Stop,
}

/// What happens in a run, as it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Everything is checked, planned and allocated; nothing has been computed yet.
    Started(Started<'a>),
    /// An optimiser step was taken.
    Step(Stepped),
    /// Evaluation rows are being computed; `done` of `of`.
    Evaluating {
        /// Sequences done.
        done: usize,
        /// Sequences.
        of: usize,
    },
    /// The evaluation rows were computed.
    Evaluated(Evaluation),
    /// A checkpoint is on the disk.
    Checkpointed {
        /// Steps taken before it.
        step: u64,
        /// Where.
        place: &'a Path,
    },
    /// All steps are taken and evaluated, and a last checkpoint is written.
    Finished(&'a Summary),
}

/// The plan of a run.
#[derive(Debug)]
pub struct Started<'a> {
    /// Steps already taken: above 0 in a run that is continued.
    pub done: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Numbers that are learned.
    pub parameters: usize,
    /// Memory besides the mapped file.
    pub memory: &'a Memory,
    /// The rows that are learned from.
    pub train: Facts,
    /// The rows that are evaluated.
    pub eval: Option<Facts>,
    /// Evaluation rows that are also learned from.
    pub overlap: usize,
    /// The checkpoint that is continued.
    pub resumed: Option<&'a Path>,
    /// Checkpoints that could not be used.
    pub damaged: &'a [Error],
    /// What it strives for.
    pub goal: &'a Goal,
    /// The terms of the run.
    pub terms: &'a Terms,
}

/// What one window of micro-batches gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss over the trained tokens, before the update.
    pub loss: f64,
    /// Trained tokens.
    pub tokens: usize,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub rate: f64,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stepped {
    /// Its number, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub of: u64,
    /// The epoch it lies in, from 1.
    pub epoch: u64,
    /// Loss, tokens, rate, norm.
    pub report: StepReport,
    /// What judged rows were worth, before the update.
    pub rewards: Option<Rewards>,
    /// Rows computed per second, over all steps since the start.
    pub tokens_per_second: f64,
    /// Seconds until the last step, at that speed.
    pub seconds_left: f64,
    /// The most memory that the process has used, where the system tells.
    pub peak_memory: Option<u64>,
}

impl Event<'_> {
    /// The line of a log, if the event belongs in one:
    /// `{"step","loss","tokens","lr","grad_norm"}`, or `{"step","eval_loss","eval_tokens"}`; of judged rows also TRL's
    /// `"rewards/chosen"` and its kin ([`Rewards::iter`]), and `"eval_rewards/accuracies"`.
    pub fn log_line(&self) -> Option<Value> {
        match self {
            Event::Step(Stepped { step, report: r, rewards, .. }) => {
                let mut line = json!({
                    "step": step, "loss": r.loss, "tokens": r.tokens, "lr": r.rate, "grad_norm": r.grad_norm,
                });
                for (name, value) in rewards.iter().flat_map(Rewards::iter) {
                    line[name] = json!(value);
                }
                Some(line)
            }
            Event::Evaluated(e) => Some(evaluation(e)),
            _ => None,
        }
    }
}

fn evaluation(e: &Evaluation) -> Value {
    let mut line = json!({"step": e.step, "eval_loss": e.loss, "eval_tokens": e.tokens});
    if let Some(accuracy) = e.accuracy {
        line["eval_rewards/accuracies"] = json!(accuracy);
    }
    line
}

/// Why a run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are taken.
    Done,
    /// The last evaluations brought nothing better.
    EarlyStop,
    /// A guard ended it; what it found.
    Halted(String),
}

impl Ending {
    /// In one word or two.
    pub fn name(&self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::EarlyStop => "early stop",
            Ending::Halted(_) => "guard",
        }
    }
}

/// What a run has done.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps taken.
    pub steps: u64,
    /// Steps behind the layer that is left: fewer where the best or the last good one was kept.
    pub layer: u64,
    /// Why it is over.
    pub ending: Ending,
    /// How often every row was seen.
    pub epochs: f64,
    /// Trained tokens learned from.
    pub trained: u64,
    /// Rows computed.
    pub rows: u64,
    /// Loss of the first step, before its update.
    pub first_loss: f64,
    /// Loss of the last step, before its update.
    pub last_loss: f64,
    /// Losses over the evaluation rows; the first before any step, the last after all.
    pub evaluations: Vec<Evaluation>,
    /// Where randomness began.
    pub seed: u64,
    /// SHA-256 of the rows that were learned from.
    pub data: [u8; 32],
    /// Everything that decided the numbers.
    pub terms: Terms,
    /// Seconds since this process started or continued the run. Not part of [`Summary::manifest`].
    pub seconds: f64,
    /// The most memory that the process has used. Not part of [`Summary::manifest`].
    pub peak_memory: Option<u64>,
}

impl Summary {
    /// Loss over the evaluation rows before any step, and with the layer that is left.
    pub fn before_and_after(&self) -> Option<(f64, f64)> {
        let after = self.evaluations.iter().find(|e| e.step == self.layer)?;
        Some((self.evaluations.first()?.loss, after.loss))
    }

    /// Share of judged evaluation rows on the right side, before any step and after the last.
    pub fn accuracies(&self) -> Option<(f64, f64)> {
        self.evaluations.first()?.accuracy.zip(self.evaluations.last()?.accuracy)
    }

    /// The manifest of the layer: the same for the same run, however often it was interrupted.
    pub fn manifest(&self, model: &Model) -> Manifest {
        // What the manifest says in lines of its own, or the layer itself.
        let apart = |name: &str| {
            ["onlay", "base", "data", "seed", "initial-layer", "method"].contains(&name)
                || name.starts_with("layer.")
        };
        let terms = self.terms.iter().filter(|(name, _)| !apart(name));
        let recipe: Map<String, Value> = terms.map(|(name, value)| (name.to_owned(), value.into())).collect();
        Manifest {
            data: Some(self.data),
            recipe: Some(Value::Object(recipe)),
            seed: Some(self.seed),
            steps: Some(self.layer),
            metrics: Some(json!({
                "steps_taken": self.steps,
                "ended": self.ending.name(),
                "guard": if let Ending::Halted(why) = &self.ending { Some(why) } else { None },
                "epochs": self.epochs,
                "trained_tokens": self.trained,
                "first_loss": self.first_loss,
                "last_loss": self.last_loss,
                "evaluations": self.evaluations.iter().map(evaluation).collect::<Vec<_>>(),
            })),
            ..Manifest::of(model)
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// With its last step, or early because evaluations no longer became better.
    Finished(Summary),
    /// A guard ended it. The layer is the best, or that of the last good step; going on would end the same way.
    Halted {
        /// What was done until then.
        summary: Summary,
        /// `Numeric`: what was found, and at which step.
        why: Error,
    },
    /// Because the observer said so. The same run with [`Start::Resume`](super::Start::Resume) goes on from there.
    Stopped {
        /// Steps taken.
        step: u64,
        /// Steps of the whole run.
        of: u64,
        /// The checkpoint to go on from; `None` in a run without checkpoints, whose work lies in the layer alone.
        checkpoint: Option<PathBuf>,
    },
}
