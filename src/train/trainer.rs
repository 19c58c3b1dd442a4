//! Learning: forward as the server does it, loss, backward segment by segment, one optimiser step per window.
//!
//! ```text
//! window    whole sequences, computed in as many passes as they need
//! loss      L = (1/N) Σ over the N trained tokens of the window of −log p(token | those before)
//! forward   residual streams between segments are kept, or with `Keep::Registers` every register
//! head      only rows that are trained reach it, some at a time: logits, loss, gradient, gone
//! backward  segment by segment from the end: recomputed from its stream unless kept; stops below the lowest site
//! ```
//! In front of every example stand the layer's keys and values, or its virtual tokens, whose rows are computed with the
//! others: they count for `rows`, not for `context`. The last of them predicts the example's first token, which counts
//! where it is trained; without one nothing predicts it.

use super::compare::Comparing;
use super::event::StepReport;
use super::examples::Example;
use super::head::{Ends, HEAD_ROWS, Pass, Scale, Target};
use super::moments::{Moments, Optimizer};
use super::order::{Limits, Passes};
use super::pass::{counted, reach};
use super::schedule::Recipe;
use crate::adapter::Lora;
use crate::backend::{self, Backend, Device, Plan};
use crate::error::{Error, Kind, Place, Result};
use crate::model::{Memory, Model, View};
use crate::ops::kv::{Pool, Precision};
use crate::ops::{Delta, Needs, Turns};
use crate::tensor::{Team, Threads};
use onlay_kernels::{Level, math};
use std::borrow::Borrow;
use std::ops::Range;
use std::sync::Arc;

/// The most sequences in one micro-batch.
pub const MOST_SEQUENCES: usize = 256;

/// What is kept between forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The residual stream before every segment; the rest is computed again.
    Streams,
    /// Every register of every segment that has a backward pass: a third less time, several times the memory.
    Registers,
}

/// What a trainer is planned for.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Instructions to use.
    pub level: Level,
    /// Threads.
    pub threads: Threads,
    /// The most rows of a micro-batch, with those of virtual tokens.
    pub rows: usize,
    /// The longest sequence, without what stands in front of it.
    pub context: usize,
    /// The most sequences of a micro-batch.
    pub sequences: usize,
    /// Rounding of keys and values: that of serving.
    pub kv: Precision,
    /// What is kept for the backward pass.
    pub keep: Keep,
    /// How the moments are kept.
    pub optimizer: Optimizer,
    /// What computes.
    pub device: Device,
}

/// A layer that learns over a frozen base.
pub struct Trainer {
    pub(super) model: Arc<Model>,
    pub(super) options: TrainOptions,
    pub(super) backend: Box<dyn Backend>,
    pub(super) turns: Turns,
    pub(super) layer: Arc<Lora>,
    moments: Moments,
    pub(super) steps: u64,
    pub(super) pack: bool,
    /// The first segment that has a backward pass.
    pub(super) lowest: usize,
    /// Registers of that segment whose gradients are of use.
    pub(super) wanted: Vec<bool>,
    pub(super) memory: Buffers,
    /// What judged rows need; see [`Trainer::compare`].
    pub(super) comparing: Option<Comparing>,
}

/// Memory between the backend's steps.
pub(super) struct Buffers {
    pub(super) tokens: Vec<u32>,
    pub(super) pieces: Vec<Range<usize>>,
    pub(super) tiles: Vec<Vec<u32>>,
    /// Rows of the batch whose next token counts.
    pub(super) targets: Vec<Target>,
    /// The name of each row, by which dropout draws.
    pub(super) names: Vec<u64>,
    pub(super) ends: Ends,
    pub(super) passes: Passes,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer on {} after {} steps", self.backend.name(), self.steps)
    }
}

impl TrainOptions {
    fn needs(&self, model: &Model, layer: &Lora) -> Needs {
        let room = model.program().room(layer);
        let head = HEAD_ROWS.min(self.rows);
        model.program().needs(self.rows, self.threads.count, head, room, &model.bound().storage())
    }

    fn plan(&self, model: &Model, layer: &Lora) -> Plan {
        let (lowest, _) = reach(model, layer);
        let program = model.program();
        let segments = program.segments.len();
        let back = segments - lowest;
        // the registers of the last segment are still there when it goes back
        let (frames, layers, streams) = match self.keep {
            Keep::Streams => (1, 1, back.saturating_sub(1)),
            Keep::Registers => (back.max(1), segments, 0),
        };
        Plan {
            level: self.level,
            columns: program.columns(),
            frames,
            back: true,
            needs: self.needs(model, layer),
            kv: program.kv_shape(self.kv, layers),
            tiles: Pool::tiles_for(self.rows + self.sequences * layer.prefix()) + self.sequences,
            streams,
            ends: HEAD_ROWS.min(self.rows),
            vocabulary: program.vocabulary,
        }
    }

    /// Positions of the longest sequence, with those in front of it.
    fn longest(&self, layer: &dyn Delta) -> usize {
        self.context + layer.lead()
    }
}

impl Trainer {
    /// The bytes [`Trainer::new`] will hold, besides the map and the layer's own parameters.
    pub fn plan(model: &Model, layer: &Lora, dropout: bool, options: &TrainOptions) -> Memory {
        let program = model.program();
        let plan = options.plan(model, layer);
        let here = |bytes| if options.device == Device::Host { bytes } else { 0 };
        let there = |bytes| bytes - here(bytes);
        let (params, learning) = layer.bytes(options.rows, dropout);
        Memory {
            parts: vec![
                ("layer", params),
                // which counts two moments in f32
                ("gradients", learning - Moments::bytes(Optimizer::AdamW, layer)),
                ("moments", Moments::bytes(options.optimizer, layer)),
                ("keys and values", here(plan.kv_bytes())),
                ("activations and their gradients", here(plan.frame_bytes())),
                ("residual streams", here(plan.stream_bytes())),
                ("inside operations", here(plan.scratch_bytes())),
                ("on the way to the device", options.device.host_bytes(&plan)),
                ("gradients from the device", there(4 * layer.learning_len() as u64)),
                ("logits", options.device.end_bytes(&plan)),
                ("rotary tables", Turns::bytes(program.turning.frequencies.len(), options.longest(layer))),
                ("rows of a pass", 80 * options.rows as u64),
                ("norms and biases", model.bound().vector_bytes()),
            ],
        }
    }

    /// Allocates what the plan says; later steps allocate nothing. `layer` must have been told to learn, for at least
    /// as many rows ([`Lora::learn`]).
    ///
    /// # Errors
    /// `Argument` for options out of range, `Mismatch` if the layer does not fit, `Memory` if the system does not give
    /// what is planned.
    pub fn new(model: Arc<Model>, layer: Arc<Lora>, options: TrainOptions) -> Result<Self> {
        for (name, value) in
            [("rows", options.rows), ("context", options.context), ("sequences", options.sequences)]
        {
            if value == 0 {
                return Err(Error::expected(Kind::Argument, name, "at least 1", 0));
            }
        }
        if options.sequences > MOST_SEQUENCES {
            let most = format!("at most {MOST_SEQUENCES}");
            let what = "sequences of a micro-batch";
            return Err(Error::expected(Kind::Argument, what, most, options.sequences));
        }
        layer.check(model.program())?;
        let program = model.program();
        // the layer, first in the plan with what it learns by, has its memory already
        Memory { parts: Self::plan(&model, &layer, false, &options).parts.split_off(2) }.ask()?;
        let turns =
            Turns::new(program.turning.pairs, &program.turning.frequencies, options.longest(&*layer))?;
        let view = View { model: &model, turns: &turns };
        let outline = view.outline(Self::layer_bytes(&layer));
        let (plan, team) = (options.plan(&model, &layer), Team::new(options.threads)?);
        let mut backend = backend::open(options.device, &plan, &outline, team)?;
        backend.admit(&*layer)?;
        let (lowest, wanted) = reach(&model, &*layer);
        let memory = Buffers {
            tokens: Vec::with_capacity(options.rows),
            pieces: Vec::with_capacity(options.rows),
            tiles: (0..options.sequences)
                .map(|_| Vec::with_capacity(Pool::tiles_for(options.longest(&*layer))))
                .collect(),
            targets: Vec::with_capacity(options.rows),
            names: Vec::with_capacity(options.rows),
            ends: Ends::new(HEAD_ROWS.min(options.rows)),
            passes: Passes::default(),
        };
        let mut trainer = Trainer {
            backend,
            turns,
            moments: Moments::new(options.optimizer, &layer),
            steps: 0,
            pack: false,
            lowest,
            wanted,
            memory,
            comparing: None,
            model,
            layer,
            options,
        };
        trainer.settle();
        Ok(trainer)
    }

    /// Bytes of a layer's numbers and gradients on a device.
    fn layer_bytes(layer: &Lora) -> u64 {
        4 * (layer.len() + layer.learning_len()) as u64
    }

    /// The bytes that a device will hold besides; nothing for the host.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn device_plan(model: &Model, layer: &Lora, options: &TrainOptions) -> Result<Memory> {
        if options.device == Device::Host {
            return Ok(Memory { parts: vec![] });
        }
        let turning = &model.program().turning;
        let turns = Turns::new(turning.pairs, &turning.frequencies, options.longest(layer))?;
        let view = View { model, turns: &turns };
        let outline = view.outline(Self::layer_bytes(layer));
        Ok(Memory { parts: backend::device_parts(options.device, &options.plan(model, layer), &outline)? })
    }

    /// What computes, for people.
    pub fn device(&self) -> String {
        self.backend.name()
    }

    /// The layer.
    pub fn layer(&self) -> &Arc<Lora> {
        &self.layer
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Optimiser steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moments of the optimiser.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// Continues from a checkpoint, whose numbers the layer has already: how many steps were taken.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
        self.settle();
    }

    /// What follows from the layer's new numbers.
    pub(super) fn settle(&mut self) {
        let Trainer { backend, layer, model, options, .. } = self;
        layer.settle(model, options.level, &mut |n, f| backend.each(n, f));
    }

    /// Whether the sequences of a step are packed: each goes into the first pass with room for it. Otherwise passes
    /// take them in order. Beyond the order of floating-point sums it changes nothing.
    pub fn set_packing(&mut self, pack: bool) {
        self.pack = pack;
    }

    /// Mean loss over the trained tokens of `examples`, without learning and without dropout, and how many there are.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn evaluate<E: Borrow<Example>>(&mut self, examples: &[E]) -> Result<(f64, usize)> {
        let all = self.evaluate_while(examples, &mut |_| true)?;
        Ok(all.expect("nobody stops it"))
    }

    /// As [`Trainer::evaluate`], asking before every pass, with the number of examples done, whether to go on; `None`
    /// if not.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn evaluate_while<E: Borrow<Example>>(
        &mut self,
        examples: &[E],
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<(f64, usize)>> {
        let passes = self.cut(examples, false)?;
        let (mut loss, mut tokens, mut done) = (Ok(0.0), 0, 0);
        for i in 0..passes.len() {
            if !go_on(done) {
                self.memory.passes = passes;
                return Ok(None);
            }
            let which = passes.get(i);
            let example = |k: usize| (u64::from(which[k]), examples[which[k] as usize].borrow());
            let sum = self.pass(which.len(), &example, Pass::Loss);
            loss = loss.and_then(|loss| Ok(loss + sum?));
            if loss.is_err() {
                break;
            }
            tokens += which.iter().map(|i| self.counted(examples[*i as usize].borrow())).sum::<usize>();
            done += which.len();
        }
        self.memory.passes = passes;
        Ok(Some((loss? / tokens.max(1) as f64, tokens)))
    }

    /// Cuts examples into passes. The memory of the cut is lent out and goes back when it was used.
    fn cut<E: Borrow<Example>>(&mut self, examples: &[E], pack: bool) -> Result<Passes> {
        let limits = self.limits();
        let mut passes = std::mem::take(&mut self.memory.passes);
        passes.cut(examples.len(), |i| examples[i].borrow().rows(), pack, limits)?;
        Ok(passes)
    }

    /// The most that one pass takes.
    pub fn limits(&self) -> Limits {
        let TrainOptions { rows, sequences, context, .. } = self.options;
        Limits { rows, sequences, context, front: self.layer.virtual_tokens() }
    }

    /// Tokens of an example that are predicted and counted.
    fn counted(&self, e: &Example) -> usize {
        counted(e, &*self.layer)
    }

    /// One optimiser step from a window of examples, in as many passes as they need.
    ///
    /// # Errors
    /// `Data` if no token is trained or a sequence does not fit; `Numeric` if the loss or a gradient is not finite
    /// (the parameters have not changed then).
    pub fn step<E: Borrow<Example>>(
        &mut self,
        examples: &[E],
        recipe: &Recipe,
        of_steps: u64,
    ) -> Result<StepReport> {
        let done = self.step_if(examples, recipe, of_steps, &mut |_| true)?;
        Ok(done.expect("nobody prevents it"))
    }

    /// As [`Trainer::step`], but asks, once the gradients are there, whether to use them; `None` if not, and then
    /// nothing has changed.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_if<E: Borrow<Example>>(
        &mut self,
        examples: &[E],
        recipe: &Recipe,
        of_steps: u64,
        go_on: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<Option<StepReport>> {
        self.step_weighted(examples, &[], recipe, of_steps, go_on)
    }

    /// As [`Trainer::step_if`], with a weight for each example, by which its losses are multiplied; none: all count alike.
    ///
    /// # Errors
    /// As [`Trainer::step`]; `Argument` if there is a weight for some examples only.
    pub fn step_weighted<E: Borrow<Example>>(
        &mut self,
        examples: &[E],
        weights: &[f32],
        recipe: &Recipe,
        of_steps: u64,
        go_on: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<Option<StepReport>> {
        if !weights.is_empty() && weights.len() != examples.len() {
            return Err(Error::expected(Kind::Argument, "weights", examples.len(), weights.len()));
        }
        let tokens: usize = examples.iter().map(|e| self.counted(e.borrow())).sum();
        if tokens == 0 {
            return Err(Error::expected(Kind::Data, "trained tokens of a step", "at least 1", 0));
        }
        self.clear_grads();
        let passes = self.cut(examples, self.pack)?;
        let scale = 1.0 / tokens as f32;
        let sums = (0..passes.len()).map(|i| {
            let which = passes.get(i);
            let example = |k: usize| (u64::from(which[k]), examples[which[k] as usize].borrow());
            self.pass(which.len(), &example, Pass::Learn(Scale { all: scale, weights, which }))
        });
        let loss = sums.sum::<Result<f64>>();
        self.memory.passes = passes;
        let loss = loss?;
        self.update(recipe, of_steps, loss / tokens as f64, tokens, go_on)
    }

    pub(super) fn clear_grads(&self) {
        for (i, _) in self.layer.parts().iter().enumerate().filter(|(_, p)| p.is_some()) {
            self.layer.grads().get(i).fill(0.0);
        }
    }

    /// Moves the parameters by the gradients of a window of this loss, unless `go_on` is against it.
    pub(super) fn update(
        &mut self,
        recipe: &Recipe,
        of_steps: u64,
        loss: f64,
        tokens: usize,
        go_on: &mut dyn FnMut(&StepReport) -> bool,
    ) -> Result<Option<StepReport>> {
        let Trainer { backend, layer, options, .. } = self;
        layer.before_update(options.level, &mut |n, f| backend.each(n, f));
        let grad_norm = self.grad_norm()?;
        let t = self.steps + 1;
        let rate = recipe.rate_at(t, of_steps);
        let report = StepReport { loss, tokens, grad_norm, rate };
        if !go_on(&report) {
            return Ok(None);
        }
        let with = [rate, rate * recipe.plus].map(|rate| recipe.adamw(t, rate, grad_norm));
        let (level, layer, moments) = (self.options.level, &self.layer, &self.moments);
        self.backend.each(layer.parts().len(), &|i| {
            if let Some(part) = &layer.parts()[i] {
                moments.step(level, i, part, with, &mut layer.params().get(i), &layer.grads().read(i));
            }
        });
        let Trainer { backend, layer, .. } = &mut *self;
        layer.allocate(t, of_steps, with[0].clip, &mut |n, f| backend.each(n, f));
        self.settle();
        self.steps = t;
        Ok(Some(report))
    }

    fn grad_norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for i in 0..self.layer.parts().len() {
            let squares = math::squares(self.options.level, &self.layer.grads().read(i));
            if !squares.is_finite() {
                let place = Place::Tensor(self.model.program().place_name(i).into());
                return Err(
                    Error::expected(Kind::Numeric, "gradient of the layer", "finite", squares).at(place)
                );
            }
            sum += squares;
        }
        Ok(sum.sqrt())
    }
}
