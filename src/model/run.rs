//! Running a model forward: rows of one or many sequences in one step.

use super::open::Model;
use super::program::Program;
use crate::backend::{self, Backend, Device, Ends, Outline, Parting, Plan, Walk};
use crate::error::{Error, Kind, Result};
use crate::ops::kv::{Pool, Precision};
use crate::ops::{Attend, Batch, Delta, MatrixId, Room, Site, Span, Step, Tables, Turns, VectorId};
use crate::tensor::{Matrix, Team, Threads};
use onlay_kernels::Level;
use std::ops::Range;
use std::sync::Arc;

/// The most sequences in one step.
pub const MOST_SEQUENCES: usize = 64;

/// Rows of logits computed at a time.
const LOGIT_ROWS: usize = 16;

/// What a runner is planned for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Instructions to use.
    pub level: Level,
    /// Threads.
    pub threads: Threads,
    /// Positions of all sequences together that the cache holds, at least; those in front of sequences do not count.
    pub positions: usize,
    /// Sequences that may be alive at once.
    pub sequences: usize,
    /// The longest sequence, in tokens. Positions in front of it count only as far as [`Room::lead`] has none for them.
    pub context: usize,
    /// The most rows of a step.
    pub rows: usize,
    /// Rounding of keys and values.
    pub kv: Precision,
    /// For the largest layers that will be worn ([`Program::room`]).
    pub room: Room,
    /// What computes.
    pub device: Device,
}

/// The memory of a runner, in bytes.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Names and bytes.
    pub parts: Vec<(&'static str, u64)>,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|p| p.1).sum()
    }

    /// Asks the system for all of it at once and gives it back. What is planned is then allocated piece by piece, and a
    /// piece that is refused would end the process.
    ///
    /// # Errors
    /// `Memory` if the system does not give it.
    pub(crate) fn ask(&self) -> Result<()> {
        let bytes = self.total();
        let given = usize::try_from(bytes).is_ok_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok());
        match given {
            true => Ok(()),
            false => {
                let largest = self.parts.iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(name, _)| name);
                Err(Error::new(
                    Kind::Memory,
                    format!("no memory for {bytes} bytes, most of it for {largest}"),
                ))
            }
        }
    }
}

/// A sequence's place in the cache. Give it back with [`Runner::forget`].
///
/// What a layer has in front of sequences is computed when the first tokens are, and belongs to this one from then on. Nobody
/// sees it: lengths count tokens.
#[derive(Debug, Default)]
pub struct Sequence {
    tiles: Vec<u32>,
    len: usize,
    /// Positions in front of the first token: of a prefix, of virtual tokens.
    lead: [usize; 2],
}

impl Sequence {
    /// Tokens computed so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was computed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes positions back, so that other tokens can follow the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Positions that a layer has in front of a sequence.
fn lead(layer: Option<&dyn Delta>) -> [usize; 2] {
    layer.map_or([0; 2], |d| [d.prefix(), d.virtual_tokens()])
}

/// Which rows' logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: only the cache is filled.
    Nothing,
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
}

/// The next tokens of one sequence.
pub struct Request<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// The layer it wears.
    pub delta: Option<&'a dyn Delta>,
    /// What comes back.
    pub wanted: Wanted,
}

impl Request<'_> {
    /// Which of its tokens' logits are wanted.
    fn wanted(&self) -> Range<usize> {
        let n = self.tokens.len();
        match self.wanted {
            Wanted::Nothing => n..n,
            Wanted::Last => n.saturating_sub(1)..n,
            Wanted::All => 0..n,
        }
    }
}

/// Bound weights and rotary tables, as operations ask for them.
pub(crate) struct View<'a> {
    pub model: &'a Model,
    pub turns: &'a Turns,
}

impl Tables for View<'_> {
    fn matrix(&self, id: MatrixId) -> Matrix<'_> {
        self.model.bound().matrix(id)
    }
    fn vector(&self, id: VectorId) -> &[f32] {
        self.model.bound().vector(id)
    }
    fn turns(&self) -> &Turns {
        self.turns
    }
}

impl View<'_> {
    /// What a device must know, where layers take so many bytes.
    pub fn outline(&self, layers: u64) -> Outline<'_> {
        let program = self.model.program();
        let matrices = |steps: &[Step]| {
            let linears = steps.iter().filter_map(|s| if let Step::Linear(l) = s { Some(l) } else { None });
            linears.flat_map(|l| l.outputs.iter().map(|o| o.matrix)).collect()
        };
        Outline {
            tables: self,
            matrices: program.matrices.len(),
            vectors: program.vectors.len(),
            segments: program.segments.iter().map(|s| matrices(&s.steps)).collect(),
            head: program.head.matrix,
            sites: program.sites.iter().map(|s| [s.inputs, s.outputs]).collect(),
            layers,
        }
    }
}

/// Computes a batch, from its tokens to the end of the program.
/// See [`Backend::walk`].
fn walk(
    backend: &mut dyn Backend,
    view: &View<'_>,
    parting: &Parting,
    batch: Batch<'_>,
    ends: Option<Ends<'_>>,
) -> bool {
    let program = view.model.program();
    let steps = |i: usize| &program.segments[i].steps[..];
    let walk = Walk {
        parting,
        ends,
        embed: &program.embed,
        segments: program.segments.len(),
        steps: &steps,
        residual: program.residual,
        result: program.result,
    };
    backend.walk(view, &walk, batch)
}

/// A model with the memory to run it.
pub struct Runner {
    model: Arc<Model>,
    options: Options,
    backend: Box<dyn Backend>,
    turns: Turns,
    tokens: Vec<u32>,
    pieces: Vec<Range<usize>>,
    /// Where the last segment's rows part.
    parting: Parting,
    /// Rows that somebody wants, and the pieces that they are.
    ends: Vec<u32>,
    end_pieces: Vec<Range<usize>>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Runner on {}", self.backend.name())
    }
}

impl Options {
    /// Positions of the longest sequence, with those in front of it.
    fn longest(&self) -> usize {
        self.context + self.room.lead
    }

    /// The most tokens of a sequence that wears this layer.
    pub fn most_tokens(&self, layer: Option<&dyn Delta>) -> usize {
        let lead: usize = lead(layer).iter().sum();
        self.context.min(self.longest().saturating_sub(lead))
    }

    /// About as many bytes as one of the largest layers takes on a device.
    fn layer_bytes(&self, program: &Program) -> u64 {
        let steps = program.segments.iter().flat_map(|s| &s.steps);
        let linears = steps.filter_map(|s| if let Step::Linear(l) = s { Some(l) } else { None });
        let sites = linears.flat_map(|l| l.outputs.iter().map(|o| (o.site, l.outputs.len())));
        let numbers = sites.map(|(site, shared)| {
            let site = &program.sites[usize::from(site)];
            self.room.hidden.div_ceil(shared) * (site.inputs + site.outputs)
        });
        4 * numbers.sum::<usize>() as u64
    }

    fn plan(&self, program: &Program, model: &Model) -> Plan {
        let storage = model.bound().storage();
        Plan {
            level: self.level,
            columns: program.columns(),
            frames: 1,
            back: false,
            needs: program.needs(self.rows, self.threads.count, 0, self.room, &storage),
            kv: program.kv_shape(self.kv, program.segments.len()),
            // every sequence may leave most of its last tile empty
            tiles: Pool::tiles_for(self.positions + self.sequences * self.room.lead) + self.sequences,
            streams: 0,
            ends: LOGIT_ROWS.min(self.rows),
            vocabulary: program.vocabulary,
        }
    }
}

impl Runner {
    /// The bytes [`Runner::new`] will hold, besides the map.
    pub fn plan(model: &Model, options: &Options) -> Memory {
        let program = model.program();
        let plan = options.plan(program, model);
        let here = |bytes| if options.device == Device::Host { bytes } else { 0 };
        Memory {
            parts: vec![
                ("keys and values", here(plan.kv_bytes())),
                ("activations", here(plan.frame_bytes())),
                ("inside operations", here(plan.scratch_bytes())),
                ("on the way to the device", options.device.host_bytes(&plan)),
                ("rotary tables", Turns::bytes(program.turning.frequencies.len(), options.longest())),
                ("logits", options.device.end_bytes(&plan)),
                ("norms and biases", model.bound().vector_bytes()),
            ],
        }
    }

    /// Allocates what the plan says; later steps allocate nothing.
    ///
    /// # Errors
    /// `Argument` for options out of range, `Memory` if the system does not give it.
    pub fn new(model: Arc<Model>, options: Options) -> Result<Self> {
        let program = model.program();
        for (name, value) in
            [("rows", options.rows), ("context", options.context), ("sequences", options.sequences)]
        {
            if value == 0 {
                return Err(Error::expected(Kind::Argument, name, "at least 1", 0));
            }
        }
        Self::plan(&model, &options).ask()?;
        let turns = Turns::new(program.turning.pairs, &program.turning.frequencies, options.longest())?;
        let view = View { model: &model, turns: &turns };
        let outline = view.outline(options.layer_bytes(program));
        let plan = options.plan(program, &model);
        let backend = backend::open(options.device, &plan, &outline, Team::new(options.threads)?)?;
        Ok(Runner {
            turns,
            backend,
            tokens: Vec::with_capacity(options.rows),
            pieces: Vec::with_capacity(options.rows),
            parting: Parting::of(program.segments.last().map_or(&[], |s| &s.steps[..])),
            ends: Vec::with_capacity(options.rows),
            end_pieces: Vec::with_capacity(options.rows),
            model,
            options,
        })
    }

    /// The bytes that a device will hold besides; nothing for the host.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub fn device_plan(model: &Model, options: &Options) -> Result<Memory> {
        if options.device == Device::Host {
            return Ok(Memory { parts: vec![] });
        }
        let program = model.program();
        let turns = Turns::new(program.turning.pairs, &program.turning.frequencies, options.longest())?;
        let view = View { model, turns: &turns };
        let outline = view.outline(options.layer_bytes(program));
        let parts = backend::device_parts(options.device, &options.plan(program, model), &outline)?;
        Ok(Memory { parts })
    }

    /// What computes, for people.
    pub fn device(&self) -> String {
        self.backend.name()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What it was planned for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Runs the requests' tokens, all in one step, and gives the wanted logits to
    /// `take(request, token of the request, logits)`, requests in order, tokens in order.
    ///
    /// # Errors
    /// `Argument` if a sequence would outgrow the context, there are more rows than planned, or a token is not in the
    /// vocabulary; `Mismatch` if a sequence that has begun wears another layer whose front has other positions; `Memory` if
    /// the cache is full; `Unsupported` if the device cannot wear a layer. Nothing has changed then. `Device` if a device
    /// fails; it then does nothing more.
    pub fn step(
        &mut self,
        requests: &mut [Request<'_>],
        take: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> Result<()> {
        self.admit(requests)?;
        for r in requests.iter_mut().filter(|r| r.sequence.len == 0) {
            r.sequence.lead = lead(r.delta);
            if let Some(delta) = r.delta {
                self.lay_virtual(r.sequence, delta);
            }
        }
        let program = self.model.program();
        let mut spans = [Span::NONE; MOST_SEQUENCES];
        self.tokens.clear();
        for (span, r) in spans.iter_mut().zip(requests.iter()) {
            *span = Span {
                first: self.tokens.len(),
                rows: r.tokens.len(),
                position: r.sequence.lead.iter().sum::<usize>() + r.sequence.len,
                tiles: &r.sequence.tiles,
                delta: r.delta,
            };
            self.tokens.extend_from_slice(r.tokens);
        }
        let spans = &spans[..requests.len()];
        let group = program.attention.heads / program.attention.key_heads;
        Batch::cut(spans, Attend::longest_piece(group), &mut self.pieces);
        let batch = Batch { tokens: &self.tokens, spans, pieces: &self.pieces };
        let mut end_spans = [Span::NONE; MOST_SEQUENCES];
        let mut count = 0;
        self.ends.clear();
        for (r, span) in requests.iter().zip(spans) {
            let wanted = r.wanted();
            if !wanted.is_empty() {
                let (first, position) = (self.ends.len(), span.position + wanted.start);
                end_spans[count] = Span { first, rows: wanted.len(), position, ..*span };
                count += 1;
            }
            self.ends.extend(wanted.map(|t| (span.first + t) as u32));
        }
        let end_spans = &end_spans[..count];
        Batch::cut(end_spans, Attend::longest_piece(group), &mut self.end_pieces);
        // their tokens have been looked up by then
        let tokens = &self.tokens[..self.ends.len()];
        let ends =
            Ends { rows: &self.ends, batch: Batch { tokens, spans: end_spans, pieces: &self.end_pieces } };
        let some = (self.ends.len() < self.tokens.len()).then_some(ends);
        let view = View { model: &self.model, turns: &self.turns };
        let narrow = walk(&mut *self.backend, &view, &self.parting, batch, some);
        self.give_logits(requests, narrow, take)?;
        self.backend.check()?;
        for r in requests {
            r.sequence.len += r.tokens.len();
        }
        Ok(())
    }

    /// Computes the rows in front of a sequence that a layer has there, in steps of their own.
    fn lay_virtual(&mut self, sequence: &Sequence, delta: &dyn Delta) {
        let program = self.model.program();
        let [prefix, n] = sequence.lead;
        let group = program.attention.heads / program.attention.key_heads;
        for first in (0..n).step_by(self.options.rows) {
            let rows = self.options.rows.min(n - first);
            self.tokens.clear();
            self.tokens.extend((program.vocabulary + first..).map(|t| t as u32).take(rows));
            let (position, tiles) = (prefix + first, &sequence.tiles[..]);
            let spans = [Span { first: 0, rows, position, tiles, delta: Some(delta) }];
            Batch::cut(&spans, Attend::longest_piece(group), &mut self.pieces);
            let batch = Batch { tokens: &self.tokens, spans: &spans, pieces: &self.pieces };
            let nobody = Ends { rows: &[], batch: Batch { tokens: &[], spans: &[], pieces: &[] } };
            let view = View { model: &self.model, turns: &self.turns };
            walk(&mut *self.backend, &view, &self.parting, batch, Some(nobody));
        }
    }

    /// Checks everything, and takes the tiles the requests will need.
    fn admit(&mut self, requests: &mut [Request<'_>]) -> Result<()> {
        let rows: usize = requests.iter().map(|r| r.tokens.len()).sum();
        if rows > self.options.rows || requests.len() > MOST_SEQUENCES {
            let most = format!("at most {} of {MOST_SEQUENCES} sequences", self.options.rows);
            return Err(Error::expected(
                Kind::Argument,
                "rows of a step",
                most,
                format!("{rows} of {}", requests.len()),
            ));
        }
        let mut missing = 0;
        for r in requests.iter() {
            self.model.check_tokens(r.tokens)?;
            let (end, lead) = (r.sequence.len + r.tokens.len(), lead(r.delta));
            if r.sequence.len > 0 && lead != r.sequence.lead {
                let text =
                    |[prefix, rows]: [usize; 2]| format!("{prefix} of a prefix and {rows} virtual tokens");
                let what = "positions in front of a sequence that has begun";
                return Err(Error::expected(Kind::Mismatch, what, text(r.sequence.lead), text(lead)));
            }
            let most = self.options.most_tokens(r.delta);
            if end > most {
                let at_most = format!("at most {most}");
                return Err(Error::expected(Kind::Argument, "length of a sequence", at_most, end));
            }
            if let Some(delta) = r.delta {
                // positions in front that were not planned for are taken from the context, see above
                let room = Room { lead: 0, ..self.model.program().room(delta) };
                if !self.options.room.holds(room) {
                    let most = format!("at most {}", self.options.room);
                    return Err(Error::expected(Kind::Argument, "size of a layer", most, room));
                }
            }
            missing +=
                Pool::tiles_for(lead.iter().sum::<usize>() + end).saturating_sub(r.sequence.tiles.len());
        }
        if missing > self.backend.free_tiles() {
            return Err(Error::expected(
                Kind::Memory,
                "keys and values",
                format!("{missing} free tiles"),
                self.backend.free_tiles(),
            ));
        }
        for delta in requests.iter().filter_map(|r| r.delta) {
            self.backend.admit(delta)?;
        }
        for r in requests {
            let end = lead(r.delta).iter().sum::<usize>() + r.sequence.len + r.tokens.len();
            while r.sequence.tiles.len() < Pool::tiles_for(end) {
                r.sequence.tiles.push(self.backend.take_tile().expect("counted above"));
            }
        }
        Ok(())
    }

    /// The end, over the rows that somebody wants, some at a time. They may be all that there are.
    fn give_logits(
        &mut self,
        requests: &[Request<'_>],
        narrow: bool,
        take: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> Result<()> {
        let mut waiting = [(0, 0); LOGIT_ROWS];
        let mut rows = [0; LOGIT_ROWS];
        let capacity = LOGIT_ROWS.min(self.options.rows);
        let (mut n, mut first, mut before) = (0, 0, 0);
        for (i, r) in requests.iter().enumerate() {
            for t in r.wanted() {
                (waiting[n], rows[n]) = ((i, t), if narrow { before } else { (first + t) as u32 });
                (n, before) = (n + 1, before + 1);
                if n == capacity {
                    self.give_some(requests, &waiting[..n], &rows[..n], take)?;
                    n = 0;
                }
            }
            first += r.tokens.len();
        }
        if n > 0 { self.give_some(requests, &waiting[..n], &rows[..n], take) } else { Ok(()) }
    }

    /// Logits of some rows, which are tokens of requests.
    fn give_some(
        &mut self,
        requests: &[Request<'_>],
        waiting: &[(usize, usize)],
        rows: &[u32],
        take: &mut dyn FnMut(usize, usize, &mut [f32]),
    ) -> Result<()> {
        let program = self.model.program();
        let mut spans = [Span::NONE; LOGIT_ROWS];
        let mut pieces = [const { 0..0 }; LOGIT_ROWS];
        let mut n = 0;
        for (row, (i, _)) in waiting.iter().enumerate() {
            if n > 0 && waiting[row - 1].0 == *i {
                spans[n - 1].rows += 1;
                pieces[n - 1].end += 1;
            } else {
                spans[n] = Span { first: row, rows: 1, delta: requests[*i].delta, ..Span::NONE };
                pieces[n] = row..row + 1;
                n += 1;
            }
        }
        let batch = Batch { tokens: &self.tokens[..rows.len()], spans: &spans[..n], pieces: &pieces[..n] };
        let view = View { model: &self.model, turns: &self.turns };
        self.backend.end(&view, &program.end(rows, batch));
        let logits = self.backend.logits(rows.len())?;
        for ((i, t), z) in waiting.iter().zip(logits.chunks_exact_mut(program.vocabulary)) {
            take(*i, *t, z);
        }
        Ok(())
    }

    /// Runs all tokens of one sequence in steps of as many rows as planned; `take` as in [`Runner::step`].
    ///
    /// # Errors
    /// As [`Runner::step`].
    pub fn feed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        delta: Option<&dyn Delta>,
        wanted: Wanted,
        take: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<()> {
        let rows = self.options.rows;
        for (i, part) in tokens.chunks(rows).enumerate() {
            let last = (i + 1) * rows >= tokens.len();
            let wanted = if wanted == Wanted::Last && !last { Wanted::Nothing } else { wanted };
            let request = Request { sequence: &mut *sequence, tokens: part, delta, wanted };
            self.step(&mut [request], &mut |_, t, z| take(i * rows + t, z))?;
        }
        Ok(())
    }

    /// A sequence with room for its list of tiles, so that growing allocates nothing.
    pub fn sequence(&self) -> Sequence {
        let tiles = Vec::with_capacity(Pool::tiles_for(self.options.longest()));
        Sequence { tiles, ..Sequence::default() }
    }

    /// Gives a sequence's place in the cache back; it can begin again from nothing.
    pub fn forget(&mut self, sequence: &mut Sequence) {
        self.backend.give_tiles(&mut sequence.tiles);
        sequence.len = 0;
    }

    /// The site of the head.
    pub fn head_site(&self) -> Site {
        self.model.program().head.site
    }
}
