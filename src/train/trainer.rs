//! Learning: forward as the server does it, loss, backward segment by segment, one optimiser step per window.
//!
//! ```text
//! window    whole sequences, computed in as many passes as they need
//! loss      L = (1/N) Σ over the N trained tokens of the window of −log p(token | those before)
//! forward   residual streams between segments are kept; with `Keep::Registers` also every register
//! head      only rows that are trained reach it, some at a time: logits, loss, gradient, gone
//! backward  segment by segment from the end: recomputed from its stream unless kept; stops below the lowest site
//! ```
//! In front of every example stand the layer's keys and values, or its virtual tokens, whose rows are computed with the
//! others: they count for `rows`, not for `context`. The last of them predicts the example's first token, which counts
//! where it is trained; without one nothing predicts it.

use super::compare::Comparing;
use super::event::StepReport;
use super::examples::Example;
use super::head::{HEAD_ROWS, Head, Pass, Scale, Target};
use super::moments::{Moments, Optimizer};
use super::order::{Limits, Passes};
use super::schedule::Recipe;
use crate::adapter::Lora;
use crate::backend::{Backend, Machine, Plan};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::{Memory, Model, View};
use crate::ops::kv::{Pool, Precision};
use crate::ops::{Attend, Backward, Batch, Delta, Needs, Room, Site, Span, Step, Turns};
use crate::rng::hash;
use crate::tensor::{Register, Slots, Team};
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
    pub threads: usize,
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
}

/// A layer that learns over a frozen base.
pub struct Trainer {
    model: Arc<Model>,
    options: TrainOptions,
    backend: Box<dyn Backend>,
    turns: Turns,
    layer: Arc<Lora>,
    moments: Moments,
    steps: u64,
    pub(super) pack: bool,
    /// The first segment that has a backward pass.
    lowest: usize,
    /// Registers of that segment whose gradients are of use.
    wanted: Vec<bool>,
    pub(super) memory: Buffers,
    /// What judged rows need; see [`Trainer::compare`].
    pub(super) comparing: Option<Comparing>,
}

/// The layer of a pass.
#[derive(Clone, Copy)]
struct Learner<'a> {
    delta: &'a dyn Delta,
    back: &'a dyn Backward,
    /// The first segment that has a backward pass.
    lowest: usize,
}

/// Memory between the backend's steps.
pub(super) struct Buffers {
    tokens: Vec<u32>,
    pieces: Vec<Range<usize>>,
    tiles: Vec<Vec<u32>>,
    /// Residual streams: before each segment from the lowest on, then the last.
    streams: Vec<Vec<f32>>,
    /// The gradient of the stream.
    d_stream: Vec<f32>,
    /// Rows of the batch whose next token counts.
    targets: Vec<Target>,
    /// The name of each row, by which dropout draws.
    names: Vec<u64>,
    head_x: Vec<f32>,
    head_dx: Vec<f32>,
    logits: Vec<f32>,
    losses: Slots<f64>,
    pub(super) passes: Passes,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer on {} after {} steps", self.backend.name(), self.steps)
    }
}

/// Whether the layer learns something of this step besides products.
fn learns_at(layer: &dyn Backward, step: &Step) -> bool {
    match step {
        Step::Norm(norm) => layer.learns_vector(norm.weight),
        Step::Attend(_) => layer.learns_prefix(),
        _ => false,
    }
}

/// The first segment with a backward pass, and the registers in it whose gradients lead to a part of the layer.
fn reach(model: &Model, layer: &dyn Backward) -> (usize, Vec<bool>) {
    let program = model.program();
    let learned: Vec<bool> = (0..program.sites.len()).map(|i| layer.learns(Site(i as u32))).collect();
    let steps = |s: &crate::model::program::Segment| s.steps.iter().any(|step| learns_at(layer, step));
    let others = program.segments.iter().position(steps);
    let below = layer.learns_embeddings().then_some(0);
    let segments = program.sites.iter().zip(&learned).filter(|(_, l)| **l).map(|(s, _)| s.segment);
    let lowest = segments.chain(others).chain(below).min().unwrap_or(program.segments.len());
    let mut wanted = vec![false; program.registers.len()];
    wanted[usize::from(program.residual.0)] = layer.learns_embeddings();
    if let Some(segment) = program.segments.get(lowest) {
        for step in &segment.steps {
            let from_below = step.operation().reads().iter().any(|r| wanted[usize::from(r.0)]);
            let writes: Vec<Register> = match step {
                Step::Linear(l) => {
                    let here = |o: &&crate::ops::Output| from_below || learned[o.site.0 as usize];
                    l.outputs.iter().filter(here).map(|o| o.to).collect()
                }
                other if from_below || learns_at(layer, other) => other.operation().writes(),
                _ => vec![],
            };
            for r in writes {
                wanted[usize::from(r.0)] = true;
            }
        }
    }
    (lowest, wanted)
}

/// Tokens that are predicted and counted with this layer: the first one too, where a virtual token stands before it.
fn counted(e: &Example, layer: &dyn Delta) -> usize {
    e.count() + usize::from(first_counts(e, Some(layer)))
}

/// Whether the first token is predicted and counted.
fn first_counts(e: &Example, worn: Option<&dyn Delta>) -> bool {
    e.trained.first() == Some(&true) && worn.is_some_and(|d| d.virtual_tokens() > 0)
}

impl TrainOptions {
    fn needs(&self, model: &Model, layer: &Lora) -> Needs {
        let room = model.program().room(layer);
        let head = HEAD_ROWS.min(self.rows);
        model.program().needs(self.rows, self.threads, head, room, &model.bound().storage())
    }

    fn plan(&self, model: &Model, layer: &Lora) -> Plan {
        let (lowest, _) = reach(model, layer);
        let program = model.program();
        let segments = program.segments.len();
        let back = segments - lowest;
        let (frames, layers) = match self.keep {
            Keep::Streams => (1, 1),
            Keep::Registers => (back.max(1), segments),
        };
        Plan {
            level: self.level,
            columns: program.columns(),
            frames,
            back: true,
            needs: self.needs(model, layer),
            kv: program.kv_shape(self.kv, layers),
            tiles: Pool::tiles_for(self.rows + self.sequences * layer.prefix()) + self.sequences,
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
        let (lowest, _) = reach(model, layer);
        let stream = 4 * (options.rows * program.width) as u64;
        let head = HEAD_ROWS.min(options.rows) as u64;
        let (params, learning) = layer.bytes(options.rows, dropout);
        Memory {
            parts: vec![
                ("layer", params),
                // which counts two moments in f32
                ("gradients", learning - Moments::bytes(Optimizer::AdamW, layer)),
                ("moments", Moments::bytes(options.optimizer, layer)),
                ("keys and values", plan.kv_bytes()),
                ("activations and their gradients", plan.frame_bytes()),
                ("residual streams", stream * (program.segments.len() - lowest + 2) as u64),
                ("inside operations", plan.scratch_bytes()),
                ("logits", 4 * head * (program.vocabulary + 2 * program.width) as u64),
                ("rotary tables", Turns::bytes(program.turning.frequencies.len(), options.longest(layer))),
                ("rows of a pass", 60 * options.rows as u64),
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
        let machine = Machine::new(&options.plan(&model, &layer), Team::new(options.threads)?)?;
        let turns =
            Turns::new(program.turning.pairs, &program.turning.frequencies, options.longest(&*layer))?;
        let (lowest, wanted) = reach(&model, &*layer);
        let head = HEAD_ROWS.min(options.rows);
        let stream = options.rows * program.width;
        let memory = Buffers {
            tokens: Vec::with_capacity(options.rows),
            pieces: Vec::with_capacity(options.rows),
            tiles: (0..options.sequences)
                .map(|_| Vec::with_capacity(Pool::tiles_for(options.longest(&*layer))))
                .collect(),
            streams: (lowest..=program.segments.len()).map(|_| vec![0.0; stream]).collect(),
            d_stream: vec![0.0; stream],
            targets: Vec::with_capacity(options.rows),
            names: Vec::with_capacity(options.rows),
            head_x: vec![0.0; head * program.width],
            head_dx: vec![0.0; head * program.width],
            logits: vec![0.0; head * program.vocabulary],
            losses: Slots::new(head, |_| 0.0),
            passes: Passes::default(),
        };
        let mut trainer = Trainer {
            backend: Box::new(machine),
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
    fn settle(&mut self) {
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

    /// One pass over `count` examples, which `example` gives with the numbers that dropout names them by: the sum of
    /// its losses, and what `pass` is for.
    pub(super) fn pass<'e>(
        &mut self,
        count: usize,
        example: &dyn Fn(usize) -> (u64, &'e Example),
        pass: Pass<'_>,
    ) -> Result<f64> {
        let layer = Arc::clone(&self.layer);
        let learner = Learner { delta: &*layer, back: &*layer, lowest: self.lowest };
        let wanted = std::mem::take(&mut self.wanted);
        let result = self.pass_with(learner, &wanted, count, example, pass);
        self.wanted = wanted;
        result
    }

    /// The sum of the losses of some examples, in one pass, and the gradients of `scale` times that, for a layer of any
    /// make instead of the trainer's own, whose memory it takes.
    ///
    /// # Errors
    /// As [`Trainer::step`]; `Argument` if the examples do not fit one pass, or the layer reaches further down than the
    /// trainer's own or wants more memory.
    pub fn differentiate<L: Delta + Backward, E: Borrow<Example>>(
        &mut self,
        layer: &L,
        examples: &[E],
        scale: f32,
    ) -> Result<f64> {
        let program = self.model.program();
        let (lowest, wanted) = reach(&self.model, layer);
        if lowest < self.lowest {
            let least = format!("segment {} or above", self.lowest);
            return Err(Error::expected(Kind::Argument, "lowest part of the layer", least, lowest));
        }
        let wanted = if lowest == self.lowest { wanted } else { vec![true; wanted.len()] };
        let (planned, room) = (program.room(&*self.layer), program.room(layer));
        if !planned.holds(Room { lead: 0, ..room }) {
            return Err(Error::expected(
                Kind::Argument,
                "size of a layer",
                format!("at most {planned}"),
                room,
            ));
        }
        let (limits, front) = (self.limits(), layer.virtual_tokens());
        let rows = || examples.iter().map(|e| e.borrow().rows());
        let (sum, longest) = (rows().map(|n| n + front).sum::<usize>(), rows().max().unwrap_or(0));
        let (positions, most) = (longest + layer.lead(), self.turns.positions());
        let tiles = rows().map(|n| Pool::tiles_for(n + layer.lead())).sum::<usize>();
        let mut wrong = Findings::default();
        for (what, most, found) in [
            ("rows of a pass", limits.rows, sum),
            ("sequences of a pass", limits.sequences, examples.len()),
            ("positions of a sequence", most, positions),
            ("tiles of keys and values", self.backend.free_tiles(), tiles),
        ] {
            if found > most {
                wrong.push(Error::expected(Kind::Argument, what, format!("at most {most}"), found));
            }
        }
        wrong.refuse("the examples do not fit a pass with this layer")?;
        let learner = Learner { delta: layer, back: layer, lowest: self.lowest };
        let example = |k: usize| (k as u64, examples[k].borrow());
        self.pass_with(
            learner,
            &wanted,
            examples.len(),
            &example,
            Pass::Learn(Scale { all: scale, weights: &[], which: &[] }),
        )
    }

    /// See [`Trainer::pass`].
    fn pass_with<'e>(
        &mut self,
        learner: Learner<'_>,
        wanted: &[bool],
        count: usize,
        example: &dyn Fn(usize) -> (u64, &'e Example),
        pass: Pass<'_>,
    ) -> Result<f64> {
        for (_, e) in (0..count).map(example) {
            self.model.check_tokens(&e.tokens)?;
        }
        let mut tiles = std::mem::take(&mut self.memory.tiles);
        for (tiles, (_, e)) in tiles.iter_mut().zip((0..count).map(example)) {
            for _ in 0..Pool::tiles_for(e.rows() + learner.delta.lead()) {
                tiles.push(self.backend.take_tile().expect("tiles for all rows and sequences were planned"));
            }
        }
        let result = self.pass_over(learner, wanted, (0..count).map(example), &tiles, pass);
        self.layer.set_rows(std::iter::empty());
        for tiles in &mut tiles {
            self.backend.give_tiles(tiles);
        }
        self.memory.tiles = tiles;
        result
    }

    /// See [`Trainer::pass`]; `examples` come with their numbers.
    fn pass_over<'e>(
        &mut self,
        learner: Learner<'_>,
        wanted: &[bool],
        examples: impl ExactSizeIterator<Item = (u64, &'e Example)>,
        tiles: &[Vec<u32>],
        pass: Pass<'_>,
    ) -> Result<f64> {
        let (sequences, step, learns) = (examples.len(), self.steps, pass.learns());
        let Trainer { model, options, backend, turns, layer, memory, .. } = self;
        let program = model.program();
        let Learner { delta, back, lowest } = learner;
        let layer: &Lora = layer;
        let worn = pass.layer().then_some(delta);
        let (prefix, front) = worn.map_or((0, 0), |d| (d.prefix(), d.virtual_tokens()));
        let Buffers {
            tokens,
            pieces,
            streams,
            d_stream,
            targets,
            names,
            head_x,
            head_dx,
            logits,
            losses,
            ..
        } = memory;
        tokens.clear();
        targets.clear();
        names.clear();
        let mut spans = [Span::NONE; MOST_SEQUENCES];
        for (sequence, ((span, (number, e)), tiles)) in spans.iter_mut().zip(examples).zip(tiles).enumerate()
        {
            let first = tokens.len();
            *span = Span { first, rows: front + e.rows(), position: prefix, tiles, delta: worn };
            tokens.extend((program.vocabulary..).map(|t| t as u32).take(front));
            tokens.extend_from_slice(&e.tokens[..e.rows()]);
            if learns {
                names.extend((0..(front + e.rows()) as u64).map(|position| hash(step, &[number, position])));
            }
            let whole = pass.whole(sequence);
            // with the layer off nothing predicts the first token: what is compared with that leaves it out
            let begin = usize::from(pass.compares() || !first_counts(e, worn));
            for (i, trained) in e.trained.iter().enumerate().skip(begin) {
                if *trained || whole {
                    let (row, token, sequence) =
                        ((first + front + i - 1) as u32, e.tokens[i], sequence as u16);
                    targets.push(Target { row, token, sequence, trained: *trained });
                }
            }
        }
        let spans = &spans[..sequences];
        Batch::cut(
            spans,
            Attend::longest_piece(program.attention.heads / program.attention.key_heads),
            pieces,
        );
        let batch = Batch { tokens, spans, pieces };
        let view = View { model, turns };
        let (n, width, segments) = (batch.rows(), program.width, program.segments.len());
        let frame = |segment: usize| match options.keep {
            Keep::Streams => 0,
            Keep::Registers => segment.saturating_sub(lowest),
        };

        layer.set_rows(names.iter().copied());

        // Forward. streams[i] is the stream before segment lowest + i; the last is the end of the program.
        backend.begin(n, 0);
        backend.forward(&view, std::slice::from_ref(&program.embed), batch);
        if lowest == 0 {
            backend.save(program.residual, 0, &mut streams[0][..n * width]);
        }
        for (i, segment) in program.segments.iter().enumerate() {
            if i > 0 && i <= lowest {
                backend.copy(program.result, program.residual);
            } else if i > lowest {
                backend.begin(n, frame(i));
                backend.load(program.residual, &streams[i - lowest][..n * width]);
            }
            backend.forward(&view, &segment.steps, batch);
            if i + 1 >= lowest {
                backend.save(program.result, 0, &mut streams[i + 1 - lowest][..n * width]);
            }
        }

        // Head, over the rows that count.
        d_stream[..n * width].fill(0.0);
        let mut head = Head {
            level: options.level,
            backend: &mut **backend,
            view: View { model, turns },
            layer,
            learner: back,
            worn,
            last: streams.last().expect("the end of the program is kept"),
            d_last: d_stream,
            names,
            tokens: batch.tokens,
            x: head_x,
            dx: head_dx,
            logits,
            losses,
        };
        let loss = head.run(targets, pass)?;
        if !learns {
            return Ok(loss);
        }

        // Backward, from the end to the lowest part of the layer.
        layer.set_rows(names.iter().copied());
        for i in (lowest..segments).rev() {
            let steps = &program.segments[i].steps;
            backend.begin(n, frame(i));
            if options.keep == Keep::Streams && i + 1 < segments {
                backend.load(program.residual, &streams[i - lowest][..n * width]);
                backend.forward(&view, steps, batch);
            }
            backend.clear_grads();
            backend.load_grad(program.result, &d_stream[..n * width]);
            let of_use = (i == lowest).then_some(wanted);
            backend.backward(&view, steps, batch, of_use, back);
            if i > lowest {
                backend.save_grad(program.residual, &mut d_stream[..n * width]);
            }
        }
        if back.learns_embeddings() {
            // the gradients of the lowest segment are still there
            backend.backward(&view, std::slice::from_ref(&program.embed), batch, None, back);
        }
        Ok(loss)
    }
}
