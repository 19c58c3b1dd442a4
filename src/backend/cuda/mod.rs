//! One of NVIDIA's GPUs: the same steps as launches of hand-written kernels, with registers, keys and values in the card's
//! memory. Nothing but its driver is needed.
//!
//! ```text
//! driver      the driver's functions, and the card
//! queue       memory, streams, kernels: what is made with them
//! kernels     kernels by name, compiled when they are first wanted
//! plan, open  what the card will hold, in bytes; a card with that memory
//! weights     base weights: those that stay, and those that come when they are wanted
//! facts       what kernels must know of a batch
//! layers      low-rank pairs and their gradients
//! products    products with base weights and pairs
//! steps       everything else of a program
//! ends        its end: logits, losses and what they send down
//! ```
//! Calls queue work and come back; results are waited for where the host reads them. The first failure is kept, nothing is
//! queued after it, and [`Backend::check`] gives it.

/// Numbers and addresses in the order in which a kernel takes them.
macro_rules! arguments {
    ($($x:expr),* $(,)?) => { &[$(Argument::from($x)),*] };
}

mod driver;
mod ends;
mod facts;
mod kernels;
mod layers;
mod open;
mod plan;
mod products;
mod queue;
mod steps;
mod weights;

pub use self::open::{copied, parts};

use self::driver::Card;
use self::facts::{Facts, View};
use self::kernels::Kernels;
use self::layers::Layers;
use self::queue::{Argument, Graph, Memory, Region, Shape, Stream};
use self::steps::{Back, chunk};
use self::weights::Weights;
use super::{Backend, End, Walk};
use crate::error::{Error, Result};
use crate::ops::kv::{Precision, Shape as Cached};
use crate::ops::{Backward, Batch, Delta, Pairs, Step, Tables};
use crate::tensor::{Register, Team};
use onlay_kernels::Level;
use std::sync::Arc;

/// Repeated steps of so many kinds are kept.
const GRAPHS: usize = 4;

/// What decides which launches a step of single rows is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repeated {
    rows: usize,
    /// Whether some row wears a layer, and which layers there are.
    any: bool,
    layers: u64,
}

/// How inputs of pairs are dropped.
#[derive(Clone, Copy, Default)]
struct Dropping {
    rate: u64,
    seed: u64,
}

/// Memory of the program's end; see [`plan::end`].
#[derive(Debug)]
struct Ends {
    stream: Region,
    x: Region,
    z: Region,
    dx: Region,
    down: Region,
    rows: Region,
    targets: Region,
    scales: Region,
    losses: Region,
    /// Logits on the host.
    logits: Vec<f32>,
    vocabulary: usize,
    /// Losses on the host.
    found: Vec<f32>,
}

/// A card, with all the memory that was planned.
#[derive(Debug)]
pub struct Cuda {
    level: Level,
    team: Team,
    weights: Weights,
    layers: Layers,
    frames: Vec<Vec<Region>>,
    grads: Vec<Region>,
    cols: Vec<usize>,
    frame: usize,
    /// On the way back through the segments.
    down: bool,
    rows_at_hand: usize,
    back: bool,
    kv: Memory,
    shape: Cached,
    free: Vec<u32>,
    /// `h`, `dh`, dropped inputs.
    beside: [Region; 3],
    /// From one row of hidden numbers to the next.
    stride: usize,
    /// Inputs and outputs of every site.
    sites: Vec<[usize; 2]>,
    /// Of attention's backward pass, `[rows][heads]`.
    delta: Region,
    /// What blocks find out that share a token's keys.
    parts: Region,
    streams: Vec<Region>,
    end: Ends,
    turns: [Region; 2],
    vectors: Vec<Region>,
    facts: Facts,
    head_facts: Facts,
    /// Rows of the table on their way.
    rows: Vec<f32>,
    failed: Option<Error>,
    graphs: Vec<(Repeated, Option<Graph>)>,
    kernels: Kernels,
    _memory: Vec<Memory>,
    stream: Arc<Stream>,
    card: Arc<Card>,
}

impl Cuda {
    /// How keys and values are kept, as kernels name it.
    fn kind(&self) -> i32 {
        match self.shape.precision {
            Precision::F16 => 0,
            Precision::F32 => 1,
            Precision::Q8 => 2,
        }
    }

    fn launch(
        &mut self,
        name: &'static str,
        grid: [usize; 3],
        block: usize,
        shared: usize,
        with: &[Argument],
    ) -> Result<()> {
        let kernel = self.kernels.get(name)?;
        self.stream.launch(kernel, Shape { grid, block, shared }, [with, &[]])
    }

    /// The same in blocks of 256, with arguments in two parts.
    fn launch_both(
        &mut self,
        name: &'static str,
        grid: [usize; 3],
        shared: usize,
        first: &[Argument],
        rest: &[Argument],
    ) -> Result<()> {
        let kernel = self.kernels.get(name)?;
        self.stream.launch(kernel, Shape { grid, block: 256, shared }, [first, rest])
    }

    /// Does something unless something has failed, and keeps what fails.
    fn attempt(&mut self, f: impl FnOnce(&mut Self) -> Result<()>) {
        if self.failed.is_some() {
            return;
        }
        let card = Arc::clone(&self.card);
        let done = card.bind().and_then(|_bound| f(self));
        self.failed = done.err();
    }

    /// Tells the card of a batch: of the frame's rows, or of the head's.
    fn tell(&mut self, batch: Batch<'_>, head: bool) -> Result<(View, Dropping)> {
        let Cuda { facts, head_facts, layers, stream, .. } = self;
        let facts = if head { head_facts } else { facts };
        let first = batch.spans.iter().find_map(|s| s.delta).and_then(|d| d.pairs());
        let dropped = first.and_then(Pairs::dropped);
        let names = dropped.as_ref().map_or(&[][..], |d| &d.names[..]);
        let names = if names.len() == batch.rows() { names } else { &[] };
        let drop = dropped.as_ref().map_or(Dropping::default(), |d| Dropping { rate: d.rate, seed: d.seed });
        let slot = |i: usize| match batch.spans[i].delta {
            Some(delta) => layers.slot(delta).map(|slot| slot as i32),
            None => Ok(-1),
        };
        Ok((facts.set(stream, batch, names, chunk(self.shape.head), &slot)?, drop))
    }

    /// All segments of a forward pass.
    fn segments(
        &mut self,
        tables: &dyn Tables,
        walk: &Walk<'_>,
        batch: Batch<'_>,
        view: View,
        drop: Dropping,
    ) -> Result<()> {
        for i in 0..walk.segments {
            if i > 0 {
                self.stream.copy(self.register_rows(walk.result), self.register_rows(walk.residual))?;
            }
            let steps = (walk.steps)(i);
            self.with_weights(
                tables,
                steps,
                |i| Some(i + 1),
                |s| steps.iter().try_for_each(|step| s.forward_step(tables, step, batch, view, drop)),
            )?;
        }
        Ok(())
    }

    /// Queues `f`: the first time as it is, for kernels are compiled when they are first wanted; then it is kept.
    fn graph(&mut self, what: Repeated, f: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let Some(i) = self.graphs.iter().position(|(known, _)| *known == what) else {
            if self.graphs.len() == GRAPHS {
                self.stream.wait()?; // it may still be running
                self.graphs.remove(0);
            }
            self.graphs.push((what, None));
            return f(self);
        };
        if self.graphs[i].1.is_none() {
            let stream = Arc::clone(&self.stream);
            self.graphs[i].1 = Some(stream.capture(|| f(self))?);
        }
        match &self.graphs[i].1 {
            Some(graph) => self.stream.replay(graph),
            None => Ok(()),
        }
    }

    /// The segment of some steps, if its weights are streamed.
    fn streamed(&self, steps: &[Step]) -> Option<usize> {
        steps.iter().find_map(|step| match step {
            Step::Linear(l) => l.outputs.first().and_then(|o| self.weights.streamed(o.matrix)),
            _ => None,
        })
    }

    /// Runs `f` over the steps of a segment with its weights at hand, and sends for those that `next` says.
    fn with_weights(
        &mut self,
        tables: &dyn Tables,
        steps: &[Step],
        next: impl FnOnce(usize) -> Option<usize>,
        f: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let Some(segment) = self.streamed(steps) else { return f(self) };
        self.weights.enter(tables, &self.stream, segment)?;
        f(self)?;
        self.weights.leave(tables, &self.stream, next(segment))
    }

    fn register_rows(&self, r: Register) -> Region {
        self.frames[self.frame][usize::from(r.0)].floats(self.cols[usize::from(r.0)] * self.rows_at_hand)
    }

    fn grad_rows(&self, r: Register) -> Region {
        self.grads[usize::from(r.0)].floats(self.cols[usize::from(r.0)] * self.rows_at_hand)
    }
}

impl Drop for Cuda {
    /// Nothing is taken away that is still worked with.
    fn drop(&mut self) {
        let _bound = self.card.bind();
        let _ = self.stream.wait();
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        format!("cuda, {}", self.card.name())
    }

    fn admit(&mut self, delta: &dyn Delta) -> Result<()> {
        let card = Arc::clone(&self.card);
        let _bound = card.bind()?;
        let admitted = self.layers.admit(&self.stream, delta, self.back);
        if admitted.is_err() {
            self.layers.done(); // the step will not be: those that were let in for it may go
        }
        admitted
    }

    fn check(&mut self) -> Result<()> {
        self.layers.done();
        match &self.failed {
            None => Ok(()),
            Some(e) => Err(Error::new(e.kind(), e.text())),
        }
    }

    fn begin(&mut self, rows: usize, frame: usize) {
        self.frame = frame;
        self.rows_at_hand = rows;
    }

    /// A step in which every sequence has one row is the same launches for every token: they are kept and queued at once.
    /// All rows go to the end.
    fn walk(&mut self, tables: &dyn Tables, walk: &Walk<'_>, batch: Batch<'_>) -> bool {
        self.begin(batch.rows(), 0);
        self.attempt(|s| {
            let (view, drop) = s.tell(batch, false)?;
            s.forward_step(tables, walk.embed, batch, view, drop)?;
            let all = |s: &mut Self| s.segments(tables, walk, batch, view, drop);
            if !s.weights.stay() || batch.spans.iter().any(|span| span.rows != 1) {
                return all(s);
            }
            s.graph(Repeated { rows: view.rows, any: view.any, layers: s.layers.changes() }, all)
        });
        false
    }

    fn forward(&mut self, tables: &dyn Tables, steps: &[Step], batch: Batch<'_>) {
        self.attempt(|s| {
            let (view, drop) = s.tell(batch, false)?;
            s.down &= !matches!(steps, [Step::Embed(_)]);
            let up = !s.down;
            s.with_weights(
                tables,
                steps,
                // one that is computed again on the way down has its turn next too
                |i| up.then_some(i + 1),
                |s| steps.iter().try_for_each(|step| s.forward_step(tables, step, batch, view, drop)),
            )
        });
    }

    fn backward(
        &mut self,
        tables: &dyn Tables,
        steps: &[Step],
        batch: Batch<'_>,
        wanted: Option<&[bool]>,
        learner: &dyn Backward,
    ) {
        self.attempt(|s| {
            let (view, drop) = s.tell(batch, false)?;
            let worn = batch.spans.iter().find_map(|span| span.delta);
            let slot = worn.map(|d| s.layers.slot(d)).transpose()?;
            let back = Back { learner, slot, wanted };
            s.with_weights(
                tables,
                steps,
                |i| i.checked_sub(1),
                |s| steps.iter().rev().try_for_each(|step| s.backward_step(tables, step, view, drop, back)),
            )
        });
    }

    fn collect(&mut self, learner: &dyn Backward, worn: &dyn Delta) {
        self.attempt(|s| {
            let slot = s.layers.slot(worn)?;
            s.layers.collect(&s.stream, slot, learner)
        });
    }

    fn advance(&mut self, from: Register, to: Register, frame: usize) {
        self.attempt(|s| {
            let from = s.register_rows(from);
            s.frame = frame;
            s.stream.copy(from, s.register_rows(to))
        });
    }

    fn keep(&mut self, from: Register, stream: usize) {
        self.attempt(|s| s.stream.copy(s.register_rows(from), s.streams[stream]));
    }

    fn recall(&mut self, stream: usize, to: Register) {
        self.attempt(|s| {
            s.down = true;
            let to = s.register_rows(to);
            s.stream.copy(s.streams[stream].part(0, to.bytes()), to)
        });
    }

    fn clear_grads(&mut self) {
        self.attempt(|s| {
            // also those of a pass that ended before they were collected
            s.layers.clear(&s.stream)?;
            (0..s.grads.len()).try_for_each(|i| s.stream.clear(s.grad_rows(Register(i as u16))))
        });
    }

    fn descend(&mut self, from: Register, to: Register) {
        self.attempt(|s| {
            s.stream.copy(s.grad_rows(from), s.grad_rows(to))?;
            let mut others = (0..s.grads.len()).map(|i| Register(i as u16)).filter(|r| *r != to);
            others.try_for_each(|r| s.stream.clear(s.grad_rows(r)))
        });
    }

    fn end(&mut self, tables: &dyn Tables, end: &End<'_>) {
        self.attempt(|s| {
            let (view, drop) = s.tell(end.batch, true)?;
            s.end_rows(tables, end, view, drop)
        });
    }

    fn logits(&mut self, rows: usize) -> Result<&mut [f32]> {
        let n = rows * self.end.vocabulary;
        self.attempt(|s| {
            let to = bytemuck::cast_slice_mut(&mut s.end.logits[..n]);
            s.stream.download(s.end.z.floats(n), to)
        });
        self.check()?;
        Ok(&mut self.end.logits[..n])
    }

    fn losses(&mut self, targets: &[u32], scales: Option<&[f32]>, losses: &mut [f64]) -> Result<()> {
        self.attempt(|s| s.end_losses(targets, scales));
        self.check()?;
        losses.iter_mut().zip(&self.end.found).for_each(|(to, loss)| *to = f64::from(*loss));
        Ok(())
    }

    fn end_back(&mut self, tables: &dyn Tables, end: &End<'_>, learner: &dyn Backward) {
        self.attempt(|s| {
            let (view, drop) = s.tell(end.batch, true)?;
            let worn = end.batch.spans.iter().find_map(|span| span.delta);
            let slot = worn.map(|d| s.layers.slot(d)).transpose()?;
            s.end_rows_back(tables, end, view, (drop, slot, learner))
        });
    }

    fn each(&mut self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        self.team.each(n, |_, i| f(i));
    }

    fn take_tile(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn give_tiles(&mut self, tiles: &mut Vec<u32>) {
        self.free.append(tiles);
    }

    fn free_tiles(&self) -> usize {
        self.free.len()
    }
}
