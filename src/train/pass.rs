//! One pass: forward, head, backward over some examples at once, for a layer of any make.
//!
//! What stands in front of a sequence is computed with it; see [`super::trainer`].

use super::examples::Example;
use super::head::{Head, Pass, Scale, Target};
use super::trainer::{Buffers, Keep, MOST_SEQUENCES, Trainer};
use crate::adapter::Lora;
use crate::error::{Error, Findings, Kind, Result};
use crate::model::{Model, View};
use crate::ops::kv::Pool;
use crate::ops::{Attend, Backward, Batch, Delta, Room, Site, Span, Step};
use crate::rng::hash;
use crate::tensor::Register;
use std::borrow::Borrow;
use std::sync::Arc;

/// The layer of a pass.
#[derive(Clone, Copy)]
struct Learner<'a> {
    delta: &'a dyn Delta,
    back: &'a dyn Backward,
    /// The first segment that has a backward pass.
    lowest: usize,
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
pub(super) fn reach(model: &Model, layer: &dyn Backward) -> (usize, Vec<bool>) {
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
pub(super) fn counted(e: &Example, layer: &dyn Delta) -> usize {
    e.count() + usize::from(first_counts(e, Some(layer)))
}

/// Whether the first token is predicted and counted.
fn first_counts(e: &Example, worn: Option<&dyn Delta>) -> bool {
    e.trained.first() == Some(&true) && worn.is_some_and(|d| d.virtual_tokens() > 0)
}

impl Trainer {
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
        let Buffers { tokens, pieces, targets, names, ends, .. } = memory;
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
        let (n, segments) = (batch.rows(), program.segments.len());
        let frame = |segment: usize| match options.keep {
            Keep::Streams => 0,
            Keep::Registers => segment.saturating_sub(lowest),
        };

        layer.set_rows(names.iter().copied());
        if let Some(worn) = worn {
            backend.admit(worn)?;
        }

        // Forward.
        let streams = options.keep == Keep::Streams;
        backend.begin(n, 0);
        backend.forward(&view, std::slice::from_ref(&program.embed), batch);
        for (i, segment) in program.segments.iter().enumerate() {
            if i > 0 {
                backend.advance(program.result, program.residual, frame(i));
            }
            if streams && i >= lowest && i + 1 < segments {
                backend.keep(program.residual, i - lowest);
            }
            backend.forward(&view, &segment.steps, batch);
        }

        // Head, over the rows that count.
        if learns {
            backend.clear_grads();
        }
        let mut head = Head {
            backend: &mut **backend,
            view: View { model, turns },
            layer,
            learner: back,
            worn,
            names,
            tokens,
            ends,
        };
        let loss = head.run(targets, pass)?;
        if !learns {
            backend.check()?;
            return Ok(loss);
        }

        // Backward, from the end to the lowest part of the layer.
        layer.set_rows(names.iter().copied());
        for i in (lowest..segments).rev() {
            let steps = &program.segments[i].steps;
            backend.begin(n, frame(i));
            if i + 1 < segments {
                if streams {
                    backend.recall(i - lowest, program.residual);
                    backend.forward(&view, steps, batch);
                }
                backend.descend(program.residual, program.result);
            }
            let of_use = (i == lowest).then_some(wanted);
            backend.backward(&view, steps, batch, of_use, back);
        }
        if back.learns_embeddings() {
            // the gradients of the lowest segment are still there
            backend.backward(&view, std::slice::from_ref(&program.embed), batch, None, back);
        }
        backend.collect(back, delta);
        backend.check()?;
        Ok(loss)
    }
}
