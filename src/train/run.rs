//! A run: from rows to a layer, in steps that can be watched, stopped and continued.
//!
//! ```text
//! Started
//! until all steps are taken:   evaluation if due → step → checkpoint if due
//! last evaluation → last checkpoint → Finished
//! ```
//! A run that was stopped or killed, and is continued, computes the same numbers as one that was not: its numbers
//! depend on its [`Terms`] alone, and a checkpoint of other terms is refused. Threads, what is kept for the backward
//! pass, evaluations and checkpoints are not among them.
//!
//! Where a guard ends a run (see [`Baseline`](super::Baseline)) the layer goes back to the last good step. Numbers that
//! gave a loss which is none are not worth keeping: a checkpoint of exactly them is dropped if the one before it is
//! there. If nothing was learned before that, the run ends with an error.

use super::checkpoint::{Arrays, Checkpoint, Evaluation, Progress, SLOTS, Store, Terms};
use super::event::{Ending, Event, Flow, Outcome, Started, Stepped, Summary};
use super::guard;
use super::plan::{Data, RunOptions, RunPlan, Start, terms};
use super::{Example, Order, Set, Signal, StepReport, Trainer};
use crate::adapter::{Adapter, Lora, Manifest};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::Model;
use crate::tensor::Slots;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A run that is ready to go. See the module.
pub struct Run {
    trainer: Trainer,
    data: Arc<Data>,
    order: Order,
    options: RunOptions,
    plan: RunPlan,
    terms: Terms,
    /// Names of the places, for checkpoints.
    names: Vec<String>,
    progress: Progress,
    checkpoints: Option<Checkpoints>,
    /// Log-probabilities without the layer of the sequences of both sets, as far as they were needed; empty without a
    /// reference.
    references: [Vec<f64>; 2],
    /// The layer of the last good step, and that of the best evaluation if it is wanted.
    good: Slots<Vec<f32>>,
    best: Slots<Vec<f32>>,
    /// Weights of the rows that are learned from; none if all count alike.
    weights: Vec<f32>,
    /// Whether a guard has ended it.
    halted: bool,
    /// What the process held before it: what it may take is counted from there.
    before: Option<u64>,
    /// Rows computed by this process, and the seconds that took.
    speed: (u64, f64),
}

/// The slots of a run.
struct Checkpoints {
    store: Box<dyn Store + Send>,
    /// The steps of the checkpoint in each slot that is whole.
    steps: [Option<u64>; SLOTS],
    /// The slot that the run was continued from.
    resumed: Option<usize>,
    /// Why slots could not be used.
    damaged: Vec<Error>,
    last: Instant,
    /// Whether something is not in a checkpoint yet.
    unsaved: bool,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run at step {} of {}", self.progress.steps, self.plan.steps)
    }
}

impl Run {
    /// Checks everything, allocates what is planned and, if asked to, reads the newest checkpoint. `layer` is as it is
    /// before the first step, in a continued run too. Without a `store` there are no checkpoints.
    ///
    /// # Errors
    /// As [`RunPlan::new`] and [`Trainer::new`]; `Argument` if a checkpoint is there and it was not said what to do
    /// about it; `Mismatch` listing every term in which a checkpoint differs; `Format` if no checkpoint is whole.
    pub fn new(
        model: Arc<Model>,
        mut layer: Lora,
        data: Data,
        options: RunOptions,
        store: Option<Box<dyn Store + Send>>,
    ) -> Result<Run> {
        let before = super::held_memory();
        let plan = RunPlan::new(&model, &layer, &data, &options)?;
        let terms = terms(&model, &layer, &data, &options, &plan);
        let o = &options;
        let order = Order::new(data.train.units(), o.batch_size, o.grad_accumulation, o.seed, o.shuffle)?;
        layer.learn(plan.options.rows, o.dropout, o.seed)?;
        let weights = o.balance.weights(&data.train)?;
        let program = model.program();
        let names = (0..layer.parts().len()).map(|i| program.place_name(i).to_owned()).collect();
        let mut trainer = Trainer::new(model, Arc::new(layer), plan.options.clone())?;
        trainer.set_packing(o.pack);
        let objective = plan.goal.objective;
        if objective.signal != Signal::Shown {
            trainer.set_goal(plan.goal.clone(), order.rows_of_window())?;
        }
        let unknown = |set: &Set| vec![f64::NAN; if objective.reference { set.examples.len() } else { 0 }];
        let references = [unknown(&data.train), unknown(&data.eval)];
        let good = guard::room(trainer.layer().params(), true);
        let best = guard::room(trainer.layer().params(), o.keep_best);
        let mut run = Run {
            trainer,
            data: Arc::new(data),
            order,
            options,
            plan,
            terms,
            names,
            progress: Progress::default(),
            checkpoints: None,
            references,
            good,
            best,
            weights,
            halted: false,
            before,
            speed: (0, 0.0),
        };
        if let Some(store) = store {
            run.begin(store)?;
        }
        Ok(run)
    }

    /// Looks at the checkpoints that are there.
    fn begin(&mut self, mut store: Box<dyn Store + Send>) -> Result<()> {
        let most = self.arrays().most_bytes(&self.terms);
        let mut checkpoints = Checkpoints {
            steps: [None; SLOTS],
            resumed: None,
            damaged: Vec::new(),
            last: Instant::now(),
            unsaved: true,
            store: {
                if self.options.start == Start::Over {
                    (0..SLOTS).try_for_each(|slot| store.remove(slot))?;
                }
                store
            },
        };
        // One at a time is in memory, where the run's own is still untouched.
        let mut newest: Option<(usize, Checkpoint)> = None;
        for slot in 0..SLOTS {
            let place = checkpoints.store.place(slot).to_path_buf();
            let before = newest.take().map(|(slot, n)| (slot, n.progress().steps));
            let read = checkpoints.store.read(slot, most);
            match read.and_then(|bytes| bytes.map(Checkpoint::read).transpose()) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    let steps = found.progress().steps;
                    checkpoints.steps[slot] = Some(steps);
                    newest = Some((slot, found)).filter(|_| before.is_none_or(|(_, n)| n < steps));
                }
                Err(e) if e.kind() == Kind::Io => return Err(e),
                Err(e) => checkpoints.damaged.push(e.in_file(&place)),
            }
            if let (None, Some((slot, _))) = (&newest, before) {
                let again = checkpoints.store.read(slot, most)?.map(Checkpoint::read).transpose();
                newest = again.map_err(|e| e.in_file(checkpoints.store.place(slot)))?.map(|n| (slot, n));
            }
        }
        match (self.options.start, newest) {
            (Start::Resume, Some((slot, found))) => {
                let place = checkpoints.store.place(slot).to_path_buf();
                self.restore(&found).map_err(|e| e.in_file(&place))?;
                checkpoints.resumed = Some(slot);
                checkpoints.unsaved = false;
            }
            (Start::New, Some((slot, found))) => {
                let text = format!(
                    "there is a checkpoint of an earlier run, at step {}: resume it, or start over",
                    found.progress().steps
                );
                let place = Place::Path(checkpoints.store.place(slot).into());
                return Err(Error::new(Kind::Argument, text).at(place));
            }
            (Start::Over, _) => {}
            (Start::New | Start::Resume, None) => {
                let mut wrong = Findings::default();
                if !checkpoints.damaged.is_empty() {
                    checkpoints.damaged.drain(..).for_each(|e| wrong.push(e));
                    wrong
                        .push(Error::new(Kind::Format, "no checkpoint is whole; only starting over is left"));
                }
                wrong.refuse("checkpoints cannot be used")?;
            }
        }
        self.checkpoints = Some(checkpoints);
        Ok(())
    }

    fn restore(&mut self, from: &Checkpoint) -> Result<()> {
        let progress = from.restore(&self.terms, &self.arrays())?;
        let mut wrong = Findings::default();
        if progress.steps > self.plan.steps {
            let most = format!("at most {}, the steps of the run", self.plan.steps);
            wrong.push(Error::expected(Kind::Mismatch, "steps", most, progress.steps));
        }
        let cursor = self.order.cursor(progress.steps);
        if cursor != progress.cursor {
            let (expected, found) = (format!("{cursor:?}"), format!("{:?}", progress.cursor));
            wrong.push(Error::expected(Kind::Mismatch, "place in the data", expected, found));
        }
        wrong.refuse("the checkpoint is of another run")?;
        self.trainer.set_steps(progress.steps);
        self.progress = progress;
        Ok(())
    }

    fn arrays(&self) -> Arrays<'_> {
        let moments = self.trainer.moments();
        let ([first, second], [first_codes, second_codes]) = (moments.floats(), moments.codes());
        let layer = self.trainer.layer().params();
        let mut sets = vec![("layer", layer), ("first", first), ("second", second), ("good", &self.good)];
        if self.options.keep_best {
            sets.push(("best", &self.best));
        }
        let codes = vec![("first.codes", first_codes), ("second.codes", second_codes)];
        Arrays { names: &self.names, sets, codes }
    }

    /// The layer, as far as it has learned; at the end the one that is left.
    pub fn layer(&self) -> &Arc<Lora> {
        self.trainer.layer()
    }

    /// The layer as an adapter that says where it comes from, to be written or worn.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub fn adapter(&self, name: &str, summary: &Summary) -> Result<Adapter> {
        let model = self.trainer.model();
        let manifest = Manifest { parent: self.options.parent, ..summary.manifest(model) };
        Adapter::new(name, self.layer().copy(), manifest, model.program())
    }

    /// As [`Run::adapter`], when the run is over: its memory goes before the adapter takes any.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub fn into_adapter(self, name: &str, summary: &Summary) -> Result<Adapter> {
        let model = Arc::clone(self.trainer.model());
        let (layer, parent) = (Arc::clone(self.layer()), self.options.parent);
        drop(self);
        let manifest = Manifest { parent, ..summary.manifest(&model) };
        Adapter::new(name, layer.copy(), manifest, model.program())
    }

    /// The plan.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// Everything that decides the numbers.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The newest checkpoint on the disk: its steps and where it is.
    pub fn checkpoint(&self) -> Option<(u64, &Path)> {
        let c = self.checkpoints.as_ref()?;
        let newest = (0..SLOTS).filter(|s| c.steps[*s].is_some()).max_by_key(|s| c.steps[*s])?;
        Some((c.steps[newest]?, c.store.place(newest)))
    }

    /// Removes the checkpoints, once the layer has been written to where it belongs.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove_checkpoints(&mut self) -> Result<()> {
        let Some(c) = &mut self.checkpoints else { return Ok(()) };
        c.steps = [None; SLOTS];
        (0..SLOTS).try_for_each(|slot| c.store.remove(slot))
    }

    /// Goes on until all steps are taken or the observer stops it: after the step at hand, with a checkpoint.
    /// Steps allocate nothing.
    ///
    /// # Errors
    /// `Numeric` if a loss or a gradient is not a number before anything was learned, naming the step and what else is
    /// known; `Io` if a checkpoint cannot be written: the one before it is then still whole, and the run may be
    /// continued from [`Run::checkpoint`]; `Memory` if it takes more than it was promised ([`RunOptions::memory`]), with
    /// a checkpoint; `Argument` if a guard has ended it before.
    pub fn go(&mut self, observer: &mut dyn FnMut(&Event<'_>) -> Flow) -> Result<Outcome> {
        if self.halted {
            return Err(Error::new(Kind::Argument, "the run was ended by a guard; it cannot go on"));
        }
        let start = Instant::now();
        let data = Arc::clone(&self.data);
        let mut window: Vec<&Example> = Vec::with_capacity(self.order.rows_of_window());
        let mut weights: Vec<f32> = Vec::with_capacity(self.order.rows_of_window());
        let rows: usize = data.train.examples.iter().map(Example::rows).sum();
        let rows_per_step = rows as f64 / self.plan.steps_per_epoch as f64;
        if self.say_started(observer) == Flow::Stop {
            return self.stop(observer);
        }
        let layer = Arc::clone(self.trainer.layer());
        loop {
            match self.evaluate(observer) {
                Ok(Flow::Go) => {}
                Ok(Flow::Stop) => break,
                Err(e) => {
                    let at = format!("evaluation after step {}", self.progress.steps);
                    return self.failed(e, at, start, observer);
                }
            }
            let early = self.exhausted();
            if self.progress.steps == self.plan.steps || early {
                self.save(observer)?;
                let all = self.progress.steps == self.plan.steps;
                let ending = if all { Ending::Done } else { Ending::EarlyStop };
                let left = self.leave_best().unwrap_or(self.progress.steps);
                let summary = self.summary(start.elapsed().as_secs_f64(), left, ending);
                observer(&Event::Finished(&summary));
                return Ok(Outcome::Finished(summary));
            }
            let cursor = self.order.cursor(self.progress.steps);
            let units = self.order.window(cursor);
            let rows = units.iter().flat_map(|u| data.train.unit(*u as usize)).map(|e| e.rows() as u64).sum();
            let begun = Instant::now();
            let (progress, good, guarded) = (&mut self.progress, &self.good, self.options.guard);
            let take = &mut |report: &StepReport| {
                let high = guarded && progress.baseline.take(report.loss);
                if !high {
                    guard::copy(layer.params(), good);
                    progress.good = Some(progress.steps);
                }
                !progress.baseline.diverged()
            };
            let (recipe, of) = (&self.options.recipe, self.plan.steps);
            let done = if self.plan.goal.objective.signal == Signal::Shown {
                window.clear();
                window.extend(units.iter().map(|i| &data.train.examples[*i as usize]));
                weights.clear();
                if !self.weights.is_empty() {
                    weights.extend(units.iter().map(|i| self.weights[*i as usize]));
                }
                let done = self.trainer.step_weighted(&window, &weights, recipe, of, take);
                done.map(|done| done.map(|report| (report, None)))
            } else {
                let (trainer, references) = (&mut self.trainer, &mut self.references[0]);
                let done = trainer.compare_if(&data.train, units, references, Some((recipe, of)), take);
                done.map(|done| done.map(|(report, rewards)| (report, Some(rewards))))
            };
            let at = || format!("step {}", self.progress.steps + 1);
            let (report, rewards) = match done {
                Ok(Some(done)) => done,
                Ok(None) => return self.diverged(at(), start),
                Err(e) => return self.failed(e, at(), start, observer),
            };
            self.count(report, rows, begun.elapsed().as_secs_f64());
            let speed = self.speed.0 as f64 / self.speed.1.max(1e-9);
            let left = (self.plan.steps - self.progress.steps) as f64;
            let flow = observer(&Event::Step(Stepped {
                step: self.progress.steps,
                of: self.plan.steps,
                epoch: cursor.epoch + 1,
                report,
                rewards,
                tokens_per_second: speed,
                seconds_left: left * rows_per_step / speed.max(1e-9),
                peak_memory: super::peak_memory(),
            }));
            if flow == Flow::Stop {
                break;
            }
            self.within(observer)?;
            if self.checkpoint_due() && self.save(observer)? == Flow::Stop {
                break;
            }
        }
        self.stop(observer)
    }

    /// Ends the run, with a checkpoint, if the process has taken more memory since its start than was promised.
    fn within(&mut self, observer: &mut dyn FnMut(&Event<'_>) -> Flow) -> Result<()> {
        let taken = self.before.and_then(|before| Some(super::held_memory()?.saturating_sub(before)));
        let (Some(most), Some(taken)) = (self.options.memory, taken) else { return Ok(()) };
        if taken <= most {
            return Ok(());
        }
        self.save(observer)?;
        let (most, found) = (format!("at most {most} bytes"), format!("{taken} bytes"));
        let at = Place::Key(format!("step {}", self.progress.steps));
        Err(Error::expected(Kind::Memory, "memory of the run", most, found).at(at))
    }

    fn say_started(&mut self, observer: &mut dyn FnMut(&Event<'_>) -> Flow) -> Flow {
        let c = self.checkpoints.as_ref();
        observer(&Event::Started(Started {
            done: self.progress.steps,
            steps: self.plan.steps,
            steps_per_epoch: self.plan.steps_per_epoch,
            parameters: self.layer().learning_len(),
            memory: &self.plan.memory,
            train: self.data.train.facts(),
            eval: (!self.data.eval.examples.is_empty()).then(|| self.data.eval.facts()),
            overlap: self.data.eval.overlap(&self.data.train),
            resumed: c.and_then(|c| Some(c.store.place(c.resumed?))),
            damaged: c.map_or(&[], |c| &c.damaged),
            goal: &self.plan.goal,
            terms: &self.terms,
        }))
    }

    /// Takes a step into the books.
    fn count(&mut self, report: StepReport, rows: u64, seconds: f64) {
        let p = &mut self.progress;
        p.steps = self.trainer.steps();
        p.cursor = self.order.cursor(p.steps);
        p.trained += report.tokens as u64;
        p.rows += rows;
        p.losses = Some((p.losses.map_or(report.loss, |l| l.0), report.loss));
        self.speed.0 += rows;
        self.speed.1 += seconds;
        self.checkpoints.iter_mut().for_each(|c| c.unsaved = true);
    }

    /// Computes the evaluation rows, if it is time to.
    fn evaluate(&mut self, observer: &mut dyn FnMut(&Event<'_>) -> Flow) -> Result<Flow> {
        let (step, rows) = (self.progress.steps, &self.data.eval.examples);
        let ends = step == 0 || step == self.plan.steps;
        let due = ends || self.options.eval_every.is_some_and(|n| step % n == 0);
        let done = self.progress.evaluations.last().is_some_and(|e| e.step == step);
        if rows.is_empty() || !due || done {
            return Ok(Flow::Go);
        }
        let of = rows.len();
        let go_on = &mut |done| observer(&Event::Evaluating { done, of }) == Flow::Go;
        let done = if self.plan.goal.objective.signal == Signal::Shown {
            self.trainer.evaluate_while(rows, go_on)?.map(|(loss, n)| (loss, n, None))
        } else {
            let (window, references) = (self.order.rows_of_window(), &mut self.references[1]);
            let done = self.trainer.evaluate_compared(&self.data.eval, window, references, go_on)?;
            done.map(|(report, r)| (report.loss, report.tokens, Some(r.accuracies)))
        };
        let Some((loss, tokens, accuracy)) = done else { return Ok(Flow::Stop) };
        let evaluation = Evaluation { step, loss, tokens: tokens as u64, accuracy };
        self.progress.evaluations.push(evaluation);
        if self.options.keep_best && self.progress.best() == Some(self.progress.evaluations.len() - 1) {
            guard::copy(self.trainer.layer().params(), &self.best);
        }
        self.checkpoints.iter_mut().for_each(|c| c.unsaved = true);
        Ok(observer(&Event::Evaluated(evaluation)))
    }

    /// Whether the last evaluations brought nothing better, so many that the run is to end.
    fn exhausted(&self) -> bool {
        let since = self.progress.best().map_or(0, |best| self.progress.evaluations.len() - 1 - best);
        self.options.early_stop.is_some_and(|n| since as u64 >= n)
    }

    /// Takes the layer of the best evaluation back, if it was kept; the steps behind it.
    fn leave_best(&mut self) -> Option<u64> {
        let best = self.progress.best().filter(|_| self.options.keep_best)?;
        guard::copy(&self.best, self.trainer.layer().params());
        self.trainer.settle();
        Some(self.progress.evaluations[best].step)
    }

    fn checkpoint_due(&self) -> bool {
        let Some(c) = &self.checkpoints else { return false };
        self.options.checkpoint_every.is_some_and(|n| self.progress.steps % n == 0)
            || self.options.checkpoint_after.is_some_and(|time| c.last.elapsed() >= time)
    }

    /// Writes a checkpoint, if there is anything new: over one of the same step, otherwise over the older one.
    fn save(&mut self, observer: &mut dyn FnMut(&Event<'_>) -> Flow) -> Result<Flow> {
        let Some(mut c) = self.checkpoints.take_if(|c| c.unsaved) else { return Ok(Flow::Go) };
        let same = (0..SLOTS).find(|s| c.steps[*s] == Some(self.progress.steps));
        let slot = same.or((0..SLOTS).min_by_key(|s| c.steps[*s])).unwrap_or(0); // an empty one before all
        let arrays = self.arrays();
        let done =
            c.store.write(slot, &mut |out| Checkpoint::write(out, &self.terms, &self.progress, &arrays));
        let flow = done.map(|()| {
            c.steps[slot] = Some(self.progress.steps);
            (c.last, c.unsaved) = (Instant::now(), false);
            observer(&Event::Checkpointed { step: self.progress.steps, place: c.store.place(slot) })
        });
        self.checkpoints = Some(c);
        flow
    }

    fn stop(&mut self, observer: &mut dyn FnMut(&Event<'_>) -> Flow) -> Result<Outcome> {
        self.save(observer)?;
        let checkpoint = self.checkpoint().map(|(_, place)| place.to_path_buf());
        Ok(Outcome::Stopped { step: self.progress.steps, of: self.plan.steps, checkpoint })
    }

    /// Ends the run with what is known, and keeps what is good, when a step or an evaluation has failed.
    fn failed(
        &mut self,
        error: Error,
        at: String,
        start: Instant,
        observer: &mut dyn FnMut(&Event<'_>) -> Flow,
    ) -> Result<Outcome> {
        let numeric = error.kind() == Kind::Numeric;
        // A gradient that is not finite came after a loss that was: the parameters are good, unless they are on
        // their way to no good.
        let finite = error.places().iter().any(|p| matches!(p, Place::Tensor(_)));
        let error = error.at(Place::Key(at));
        if !numeric {
            return Err(error);
        }
        let mut wrong = Findings::default();
        wrong.push(error);
        if finite {
            wrong.keep(self.save(observer));
        } else {
            let name = self.names.iter().zip(0..).find_map(|(name, i)| {
                let finite = self.layer().params().read(i).iter().all(|v| v.is_finite());
                (!finite).then_some(name)
            });
            let name = name.cloned();
            wrong.keep(self.drop_newest(name.is_some()));
            let model = self.trainer.model();
            let cause = match name {
                Some(name) => {
                    let text = "the layer's numbers are no longer finite";
                    Some(Error::new(Kind::Numeric, text).at(Place::Tensor(name)))
                }
                None => model.bound().first_not_finite(model.program()),
            };
            cause.into_iter().for_each(|e| wrong.push(e));
        }
        let why = wrong.refuse("the run cannot go on").expect_err("there is a finding");
        let here = finite && self.progress.baseline.high == 0;
        self.halt(why, if here { Some(self.progress.steps) } else { None }, start)
    }

    /// Ends the run because its loss stays far above what it was.
    fn diverged(&mut self, at: String, start: Instant) -> Result<Outcome> {
        let text = format!(
            "the loss has stayed far above its mean of {:.4} for {} steps",
            self.progress.baseline.mean,
            guard::PATIENCE
        );
        self.halt(Error::new(Kind::Numeric, text).at(Place::Key(at)), None, start)
    }

    /// Goes back to the best layer, to the one at hand if it is good (`here`, the steps behind it), or to the last good
    /// one. Where that has learned nothing, there is only the error.
    fn halt(&mut self, why: Error, here: Option<u64>, start: Instant) -> Result<Outcome> {
        self.halted = true;
        let left = match (self.leave_best(), here, self.progress.good) {
            (Some(best), ..) => best,
            (None, Some(here), _) => here,
            (None, None, Some(good)) => {
                guard::copy(&self.good, self.trainer.layer().params());
                self.trainer.settle();
                good
            }
            (None, None, None) => 0,
        };
        if left == 0 {
            return Err(why);
        }
        let ending = Ending::Halted(why.to_string());
        let summary = self.summary(start.elapsed().as_secs_f64(), left, ending);
        Ok(Outcome::Halted { summary, why })
    }

    /// Forgets a checkpoint of exactly these parameters, if there is one before it or they are `broken`.
    fn drop_newest(&mut self, broken: bool) -> Result<()> {
        let Some(c) = &mut self.checkpoints else { return Ok(()) };
        let here = (0..SLOTS).find(|s| c.steps[*s] == Some(self.progress.steps));
        match here {
            Some(slot) if broken || c.steps.iter().flatten().count() > 1 => {
                c.steps[slot] = None;
                c.store.remove(slot)
            }
            _ => Ok(()),
        }
    }

    fn summary(&self, seconds: f64, layer: u64, ending: Ending) -> Summary {
        let p = &self.progress;
        let (first_loss, last_loss) = p.losses.unwrap_or((f64::NAN, f64::NAN));
        Summary {
            steps: p.steps,
            layer,
            ending,
            epochs: p.steps as f64 / self.plan.steps_per_epoch as f64,
            trained: p.trained,
            rows: p.rows,
            first_loss,
            last_loss,
            evaluations: p.evaluations.clone(),
            seed: self.options.seed,
            data: self.data.train.hash(),
            terms: self.terms.clone(),
            seconds,
            peak_memory: super::peak_memory(),
        }
    }
}
