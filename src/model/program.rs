//! A model family as a program: a straight list of steps over named registers, built once at load.
//!
//! The list is cut into segments, one for each layer. A segment begins with the residual stream in its register
//! `residual` and ends with the next one in `result`; nothing else crosses. Serving walks the list forward; training
//! walks it backward segment by segment, with only the residual streams kept between. The memory plan, the binder,
//! the sites of adapters and `inspect` read the same list.

use crate::backend::End;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::ops::kv::Precision;
use crate::ops::{
    Add, Attend, Batch, Delta, Embed, Gate, Linear, MatrixId, Needs, Norm, Output, Room, Rotate, Site, Step,
    VectorId,
};
use crate::tensor::{Register, Storage};
use onlay_kernels::acts::Grain;
use onlay_kernels::rope::Pairs;

/// A register: a name and a width.
#[derive(Clone, Debug)]
pub struct RegisterInfo {
    /// For people.
    pub name: &'static str,
    /// Columns.
    pub cols: usize,
}

/// A matrix that the program multiplies with or looks rows up in.
#[derive(Clone, Debug)]
pub struct MatrixInfo {
    /// Tensor name.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// A vector: a norm's weight or a bias.
#[derive(Clone, Debug)]
pub struct VectorInfo {
    /// Tensor name.
    pub name: String,
    /// Length.
    pub len: usize,
}

/// A base product: where a layer may be fastened.
#[derive(Clone, Debug)]
pub struct SiteInfo {
    /// The tensor's name, which names the site.
    pub name: String,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// The segment it lies in; the head is the one behind the last.
    pub segment: usize,
}

/// A run of steps between two residual streams.
#[derive(Clone, Debug)]
pub struct Segment {
    /// For people, for example `blk.3`.
    pub name: String,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// The end of the program: final norm and logits, computed only for the rows somebody asks for.
#[derive(Clone, Debug)]
pub struct Head {
    /// Weight of the final norm.
    pub norm: VectorId,
    /// Its epsilon.
    pub eps: f32,
    /// `[vocabulary][width]`; may be the embedding table.
    pub matrix: MatrixId,
    /// Where a layer may be fastened to it.
    pub site: Site,
}

/// Shape of attention, the same in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Columns per head.
    pub head: usize,
}

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Turning {
    /// Which columns turn together.
    pub pairs: Pairs,
    /// Radians per position, one for each pair.
    pub frequencies: Vec<f64>,
}

/// Kinds of places where a layer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spot {
    /// Around a product.
    Product,
    /// In place of a vector.
    Vector,
    /// In place of rows of the embedding table.
    Table,
    /// In front of a sequence.
    Front,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Program {
    /// Registers of a frame.
    pub registers: Vec<RegisterInfo>,
    /// Matrices to bind.
    pub matrices: Vec<MatrixInfo>,
    /// Vectors to bind.
    pub vectors: Vec<VectorInfo>,
    /// Sites of layers.
    pub sites: Vec<SiteInfo>,
    /// The first step: tokens to residual stream.
    pub embed: Step,
    /// Layers.
    pub segments: Vec<Segment>,
    /// The last.
    pub head: Head,
    /// The residual stream at the start of a segment.
    pub residual: Register,
    /// The residual stream at the end of a segment.
    pub result: Register,
    /// Attention's shape.
    pub attention: Attention,
    /// Rotary positions.
    pub turning: Turning,
    /// Columns of the residual stream.
    pub width: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Positions the model was made for.
    pub context: usize,
}

impl Program {
    /// Widths of a frame's registers.
    pub fn columns(&self) -> Vec<usize> {
        self.registers.iter().map(|r| r.cols).collect()
    }

    /// What its operations need for batches of `rows` on `members` threads. `head_back`: how many rows of the head get
    /// gradients at a time, 0 without a backward pass. `room`: what layers will want.
    pub fn needs(
        &self,
        rows: usize,
        members: usize,
        head_back: usize,
        room: Room,
        storage: &[Storage],
    ) -> Needs {
        let has = |g| storage.iter().any(|s| s.grain() == Some(g));
        let inner = self.sites.iter().filter(|s| s.segment < self.segments.len());
        Needs {
            rows,
            inputs: self.sites.iter().map(|s| s.inputs).max().unwrap_or(0),
            outputs: if head_back > 0 { inner.map(|s| s.outputs).max().unwrap_or(0) } else { 0 },
            head_back: (head_back, if head_back > 0 { self.vocabulary } else { 0 }),
            room,
            head: self.attention.head,
            group: self.attention.heads / self.attention.key_heads,
            lead_back: if head_back > 0 {
                room.lead * self.attention.key_heads * self.attention.head
            } else {
                0
            },
            members,
            small: has(Grain::Small),
            large: has(Grain::Large),
            dense: storage.iter().any(|s| s.grain().is_none()),
        }
    }

    /// The shape of a pool for keys and values.
    pub fn kv_shape(&self, precision: Precision, layers: usize) -> crate::ops::kv::Shape {
        crate::ops::kv::Shape {
            precision,
            layers,
            heads: self.attention.key_heads,
            head: self.attention.head,
        }
    }

    /// The matrix of a site's product.
    pub fn matrix_at(&self, site: Site) -> MatrixId {
        let name = &self.sites[site.0 as usize].name;
        let at = self.matrices.iter().position(|m| m.name == *name).expect("a site is named by its matrix");
        MatrixId(at as u32)
    }

    /// What a layer wants around the products and in front of sequences.
    pub fn room(&self, layer: &dyn Delta) -> Room {
        let with = self.sites.iter().enumerate().filter(|(i, _)| layer.enters(Site(*i as u32)));
        let entered = with.map(|(_, s)| s.inputs).max().unwrap_or(0);
        Room { hidden: self.widest(|site| layer.width(site)), entered, lead: layer.lead() }
    }

    /// The most hidden numbers per row that products of one input ask for, if a layer asks for `width(site)`.
    pub fn widest(&self, width: impl Fn(Site) -> usize) -> usize {
        let steps = self.segments.iter().flat_map(|s| &s.steps);
        let linears = steps.filter_map(|s| if let Step::Linear(l) = s { Some(l) } else { None });
        let sums = linears.map(|l| l.outputs.iter().map(|o| width(o.site)).sum());
        sums.chain([width(self.head.site)]).max().unwrap_or(0)
    }

    /// Its end over some rows of the frame at hand, which are also a batch of their own.
    pub fn end<'a>(&self, rows: &'a [u32], batch: Batch<'a>) -> End<'a> {
        let Head { norm, eps, matrix, site } = self.head;
        End { norm, eps, site, matrix, shares: matrix == self.table(), from: self.result, rows, batch }
    }

    /// The embedding table.
    pub fn table(&self) -> MatrixId {
        MatrixId(0)
    }

    /// What kind of place it is.
    pub fn spot(&self, i: usize) -> Spot {
        match i {
            _ if i < self.sites.len() => Spot::Product,
            _ if i < self.table_place() => Spot::Vector,
            _ if i == self.table_place() => Spot::Table,
            _ => Spot::Front,
        }
    }

    /// Places where a layer may be: the sites, the vectors, the embedding table, and the front of a sequence, in this order.
    pub fn places(&self) -> usize {
        self.sites.len() + self.vectors.len() + 2
    }

    /// The place of a vector.
    pub fn vector_place(&self, id: VectorId) -> usize {
        self.sites.len() + id.0 as usize
    }

    /// The place of the embedding table.
    pub fn table_place(&self) -> usize {
        self.sites.len() + self.vectors.len()
    }

    /// The place in front of a sequence.
    pub fn front_place(&self) -> usize {
        self.table_place() + 1
    }

    /// What a place is called: the tensor's name where there is one.
    pub fn place_name(&self, i: usize) -> &str {
        let vectors = self.sites.len();
        match i {
            _ if i < vectors => &self.sites[i].name,
            _ if i < self.table_place() => &self.vectors[i - vectors].name,
            _ if i == self.table_place() => &self.matrices[self.table().0 as usize].name,
            _ => "front",
        }
    }

    /// Inputs and outputs of a place: a vector has only outputs; a row of the table is as long as the residual stream. In
    /// front of a sequence: the keys and values of all layers at one position, and a row of the residual stream.
    pub fn place_shape(&self, i: usize) -> (usize, usize) {
        let vectors = self.sites.len();
        match i {
            _ if i < vectors => (self.sites[i].inputs, self.sites[i].outputs),
            _ if i < self.table_place() => (0, self.vectors[i - vectors].len),
            _ if i == self.table_place() => (0, self.width),
            _ => (2 * self.segments.len() * self.attention.key_heads * self.attention.head, self.width),
        }
    }

    /// The site called `name`.
    pub fn site(&self, name: &str) -> Option<Site> {
        self.sites.iter().position(|s| s.name == name).map(|i| Site(i as u32))
    }
}

/// Builds a program word by word; a family file is written with it.
///
/// Names given to words are tensor names inside the current segment without `.weight`: `attn_q` in `blk.0`. Whether a
/// bias exists is asked of the file through `present`.
pub struct Builder<'a> {
    program: Program,
    present: &'a dyn Fn(&str) -> bool,
    prefix: String,
    steps: Vec<Step>,
    wrong: Findings,
}

/// The numbers a program starts from.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Columns of the residual stream.
    pub width: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Positions.
    pub context: usize,
    /// Attention.
    pub attention: Attention,
    /// Rotary positions.
    pub turning: Turning,
}

impl<'a> Builder<'a> {
    /// Begins with the residual stream from `token_embd`.
    pub fn new(sizes: Sizes, present: &'a dyn Fn(&str) -> bool) -> Self {
        let residual = Register(0);
        let result = Register(1);
        let register = |name| RegisterInfo { name, cols: sizes.width };
        let table =
            MatrixInfo { name: "token_embd.weight".into(), rows: sizes.vocabulary, cols: sizes.width };
        let embed = Step::Embed(Embed { table: MatrixId(0), to: residual });
        Builder {
            program: Program {
                registers: vec![register("residual"), register("result")],
                matrices: vec![table],
                vectors: vec![],
                sites: vec![],
                embed,
                segments: vec![],
                head: Head { norm: VectorId(0), eps: 0.0, matrix: MatrixId(0), site: Site(0) },
                residual,
                result,
                attention: sizes.attention,
                turning: sizes.turning,
                width: sizes.width,
                vocabulary: sizes.vocabulary,
                context: sizes.context,
            },
            present,
            prefix: String::new(),
            steps: vec![],
            wrong: Findings::default(),
        }
    }

    /// The residual stream at the start of the segment.
    pub fn residual(&self) -> Register {
        self.program.residual
    }

    /// Attention's shape.
    pub fn attention(&self) -> Attention {
        self.program.attention
    }

    /// Columns of the residual stream.
    pub fn width(&self) -> usize {
        self.program.width
    }

    /// Begins a segment.
    pub fn segment(&mut self, name: impl Into<String>) {
        self.prefix = name.into();
    }

    /// Ends the segment with `a + b` as the next residual stream.
    pub fn end(&mut self, a: Register, b: Register) {
        self.steps.push(Step::Add(Add { a, b, to: self.program.result }));
        let (name, steps) = (self.prefix.clone(), std::mem::take(&mut self.steps));
        self.program.segments.push(Segment { name, steps });
    }

    /// The register called `name`, the same in every segment.
    fn register(&mut self, name: &'static str, cols: usize) -> Register {
        let registers = &mut self.program.registers;
        let i = registers.iter().position(|r| r.name == name).unwrap_or_else(|| {
            registers.push(RegisterInfo { name, cols });
            registers.len() - 1
        });
        if registers[i].cols != cols {
            let what = format!("columns of register {name} in {}", self.prefix);
            self.wrong.push(Error::expected(Kind::Mismatch, &what, registers[i].cols, cols));
        }
        Register(i as u16)
    }

    fn cols(&self, r: Register) -> usize {
        self.program.registers[usize::from(r.0)].cols
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.into() } else { format!("{}.{name}", self.prefix) }
    }

    fn vector(&mut self, name: String, len: usize) -> VectorId {
        self.program.vectors.push(VectorInfo { name, len });
        VectorId(self.program.vectors.len() as u32 - 1)
    }

    fn matrix(&mut self, name: String, rows: usize, cols: usize) -> MatrixId {
        self.program.matrices.push(MatrixInfo { name, rows, cols });
        MatrixId(self.program.matrices.len() as u32 - 1)
    }

    fn site(&mut self, name: String, inputs: usize, outputs: usize) -> Site {
        let segment = self.program.segments.len();
        self.program.sites.push(SiteInfo { name, inputs, outputs, segment });
        Site(self.program.sites.len() as u32 - 1)
    }

    /// `to = rms_norm(x)` with weight `name`.
    pub fn rms_norm(&mut self, x: Register, name: &str, eps: f32, to: &'static str) -> Register {
        let cols = self.cols(x);
        let weight = self.vector(format!("{}.weight", self.full(name)), cols);
        let to = self.register(to, cols);
        self.steps.push(Step::Norm(Norm { x, weight, eps, to }));
        to
    }

    /// `to = rms_norm` of every head of x, with one weight for all heads.
    pub fn head_norm(&mut self, x: Register, name: &str, eps: f32, to: &'static str) -> Register {
        let cols = self.cols(x);
        let weight = self.vector(format!("{}.weight", self.full(name)), self.program.attention.head);
        let to = self.register(to, cols);
        self.steps.push(Step::Norm(Norm { x, weight, eps, to }));
        to
    }

    /// `to[i] = x·Wᵢᵀ (+ biasᵢ, if the file has one)`, all from one input. (name, columns, register) each.
    pub fn linears<const N: usize>(
        &mut self,
        x: Register,
        each: [(&str, usize, &'static str); N],
    ) -> [Register; N] {
        let inputs = self.cols(x);
        let mut outputs = Vec::with_capacity(N);
        let registers = each.map(|(name, cols, to)| {
            let name = self.full(name);
            let weight = format!("{name}.weight");
            let bias = format!("{name}.bias");
            let to = self.register(to, cols);
            let bias = (self.present)(&bias).then(|| self.vector(bias, cols));
            let matrix = self.matrix(weight.clone(), cols, inputs);
            let site = self.site(weight, inputs, cols);
            outputs.push(Output { site, matrix, bias, to });
            to
        });
        self.steps.push(Step::Linear(Linear { x, outputs }));
        registers
    }

    /// One product.
    pub fn linear(&mut self, x: Register, name: &str, cols: usize, to: &'static str) -> Register {
        self.linears(x, [(name, cols, to)])[0]
    }

    /// Turns the heads of x by their positions, in place.
    pub fn rotate(&mut self, x: Register) {
        let head = self.program.attention.head;
        self.steps.push(Step::Rotate(Rotate { x, head }));
    }

    /// Causal attention.
    pub fn attend(&mut self, q: Register, k: Register, v: Register, to: &'static str) -> Register {
        let Attention { heads, key_heads, head } = self.program.attention;
        let to = self.register(to, heads * head);
        let log_sum = self.register("log_sum", heads);
        let layer = self.program.segments.len();
        let scale = 1.0 / (head as f32).sqrt();
        self.steps.push(Step::Attend(Attend { q, k, v, to, log_sum, layer, heads, key_heads, head, scale }));
        to
    }

    /// `to = silu(gate)·up`
    pub fn gate(&mut self, gate: Register, up: Register, to: &'static str) -> Register {
        let cols = self.cols(gate);
        let to = self.register(to, cols);
        self.steps.push(Step::Gate(Gate { gate, up, to }));
        to
    }

    /// `to = a + b`
    pub fn add(&mut self, a: Register, b: Register, to: &'static str) -> Register {
        let cols = self.cols(a);
        let to = self.register(to, cols);
        self.steps.push(Step::Add(Add { a, b, to }));
        to
    }

    /// Ends the program with the final norm and the logits; without an `output` matrix the embedding table is used.
    ///
    /// # Errors
    /// Everything about the sizes that does not fit together.
    pub fn logits(mut self, norm: &str, output: &str, eps: f32) -> Result<Program> {
        self.prefix.clear();
        let (width, vocabulary) = (self.program.width, self.program.vocabulary);
        let norm = self.vector(format!("{norm}.weight"), width);
        let name = format!("{output}.weight");
        let tied = !(self.present)(&name);
        let site = self.site(if tied { "token_embd.weight".into() } else { name.clone() }, width, vocabulary);
        let matrix = if tied { MatrixId(0) } else { self.matrix(name, vocabulary, width) };
        self.program.head = Head { norm, eps, matrix, site };
        if self.program.segments.is_empty() {
            let key = Place::Key("block_count".into());
            self.wrong.push(Error::expected(Kind::Format, "layers", "at least 1", 0).at(key));
        }
        self.wrong.refuse("the model's sizes do not fit together")?;
        Ok(self.program)
    }
}
