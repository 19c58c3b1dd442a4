//! What the numbers of a part do. Each effect is one file with its [`Rules`] and one line in [`EFFECTS`]; files on disk,
//! stacks, merging, training and checkpoints ask the rules and know no effect by name.

use super::bottleneck::{At, Bottleneck};
use super::layer::{Layer, Part};
use super::{adalora, bias, dora, ia3, loha, lokr, lora, norms, prefix, prompt, tokens, vera, whole};
use crate::error::Error;
use crate::model::Model;
use crate::model::program::{Program, Spot};
use crate::ops::{Base, Host, Site};
use crate::rng::Rng;
use crate::tensor::{Block, Mat, MatMut};
use onlay_kernels::Level;
use std::ops::Range;

/// What the numbers of a part do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effect {
    /// `y + s·B·A·x`
    #[default]
    Lora,
    /// The same, each row of the sum scaled to a length of its own.
    Dora,
    /// `l∘y`
    Outputs,
    /// `W·(l∘x)`
    Inputs,
    /// `y + λb∘B·(λd∘(A·x))`, with A and B that all sites share
    Vera,
    /// `W′·x`
    Whole,
    /// A norm's weight
    Norm,
    /// Rows of the embedding table
    Rows,
    /// Keys and values in front of a sequence's own
    Prefix,
    /// Rows in front of a sequence's embeddings
    Prompt,
    /// The same; while they learn they may be what a small network makes of other numbers
    Ptuning,
    /// `y + s·((A₁·B₁)∘(A₂·B₂))·x`
    Hadamard,
    /// `y + s·(w₁⊗w₂)·x`
    Kronecker,
    /// `y + s·U·φ(D·x)`
    Beside,
    /// `W·(x + s·U·φ(D·x))`
    Before,
    /// `y + s·U·φ(D·y)`
    Behind,
    /// `y + v`
    Bias,
    /// `y + s·B·(E∘(A·x))`
    Triplets,
}

/// All of them, each with its rules.
pub(super) static EFFECTS: &[(Effect, &dyn Rules)] = &[
    (Effect::Lora, &lora::Pair),
    (Effect::Dora, &dora::Turning),
    (Effect::Outputs, &ia3::Factors { outputs: true }),
    (Effect::Inputs, &ia3::Factors { outputs: false }),
    (Effect::Vera, &vera::Vectors),
    (Effect::Whole, &whole::Whole),
    (Effect::Norm, &norms::Norm),
    (Effect::Rows, &tokens::Embeddings),
    (Effect::Prefix, &prefix::Prefix),
    (Effect::Prompt, &prompt::Virtual(Effect::Prompt)),
    (Effect::Ptuning, &prompt::Virtual(Effect::Ptuning)),
    (Effect::Hadamard, &loha::Hadamard),
    (Effect::Kronecker, &lokr::Kronecker),
    (Effect::Beside, &Bottleneck(At::Beside)),
    (Effect::Before, &Bottleneck(At::Before)),
    (Effect::Behind, &Bottleneck(At::Behind)),
    (Effect::Bias, &bias::Added),
    (Effect::Triplets, &adalora::Triplets),
];

impl Effect {
    pub(super) fn rules(self) -> &'static dyn Rules {
        let (_, rules) = EFFECTS.iter().find(|(e, _)| *e == self).expect("every effect has rules");
        *rules
    }
}

/// What a tensor is called in files, behind the name of its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// In GGUF.
    pub gguf: &'static str,
    /// In PEFT's files.
    pub peft: &'static str,
    /// One dimension there.
    pub flat: bool,
}

/// One tensor of a part, as files have it: `[rows][cols]`.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub key: &'static Key,
    /// What lies along the rows, and how many there are.
    pub rows: (&'static str, usize),
    /// The same of the columns; those called [`Tensor::OUTPUTS`] move as rows of outputs do.
    pub cols: (&'static str, usize),
    /// In memory it lies `[cols][rows]`.
    pub transposed: bool,
    /// Its rows are outputs of the product, so they move where the product's rows do ([`Names::row`](super::Names::row)).
    pub on_outputs: bool,
}

impl Tensor {
    /// What numbers along a side are called that are outputs of the product.
    pub const OUTPUTS: &'static str = "outputs";

    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.rows.1 * self.cols.1
    }

    /// Its numbers as files have them, from how they lie in memory; row i of a file is row `moved(i)` of memory.
    pub fn filed(&self, numbers: &[f32], moved: impl Fn(usize) -> usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.len());
        self.indices(moved, |_, here| out.push(numbers[here]));
        out
    }

    /// The opposite.
    pub fn fetched(&self, filed: &[f32], numbers: &mut [f32], moved: impl Fn(usize) -> usize) {
        self.indices(moved, |i, here| numbers[here] = filed[i]);
    }

    /// `f(index in the file, index in memory)` for all its numbers, in the order of the file.
    fn indices(&self, moved: impl Fn(usize) -> usize, mut f: impl FnMut(usize, usize)) {
        let (n, k) = (self.rows.1, self.cols.1);
        let across = self.cols.0 == Tensor::OUTPUTS;
        for row in 0..n {
            let to = if self.on_outputs { moved(row) } else { row };
            for col in 0..k {
                let col_to = if across { moved(col) } else { col };
                f(row * k + col, if self.transposed { col_to * n + to } else { to * k + col_to });
            }
        }
    }

    /// What GGUF says of its size: the length of a row first, a last 1 left out.
    pub fn dims(&self) -> Vec<usize> {
        match (self.rows.1, self.cols.1) {
            (n, k) if self.key.flat => vec![n * k],
            (1, k) => vec![k],
            (n, k) => vec![k, n],
        }
    }

    /// What PEFT's files say of its size.
    pub fn shape(&self) -> Vec<usize> {
        let (n, k) = (self.rows.1, self.cols.1);
        if self.key.flat { vec![n * k] } else { vec![n, k] }
    }

    /// Numbers of one per row.
    pub fn vector(key: &'static Key, rows: (&'static str, usize), on_outputs: bool) -> Tensor {
        Tensor { key, rows, cols: ("columns", 1), transposed: false, on_outputs }
    }
}

/// Rows and columns of a tensor that a file has for a place.
pub(super) type Shapes<'a> = &'a dyn Fn(&Key) -> Option<(usize, usize)>;

/// How much memory a backward pass wants: numbers in each of the pieces that all effects share.
pub(super) type Memory = [usize; 6];

/// How a caller spreads `f(i)` over its threads, for every i below n.
pub type Each<'a> = &'a mut dyn FnMut(usize, &(dyn Fn(usize) + Sync));

/// Rows of a base matrix while an adapter is folded in.
pub(super) struct Rows<'a> {
    pub level: Level,
    /// The first.
    pub first: usize,
    /// How many.
    pub n: usize,
    /// `[n][inputs]`
    pub sum: &'a mut [f32],
    /// The base's own.
    pub base: &'a [f32],
    /// Memory, whatever it holds.
    pub spare: &'a mut Vec<f32>,
}

/// See the module. Words without a body here are those that every effect must have; the others say "not this one".
#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) trait Rules: Sync {
    // What it consists of.

    /// Where it may be fastened.
    fn spot(&self) -> Spot {
        Spot::Product
    }

    /// All keys that its tensors may have.
    fn keys(&self) -> &'static [Key];

    /// All its numbers.
    fn len(&self, part: &Part) -> usize;

    /// Its tensors, in the order in which their numbers lie in memory.
    fn tensors(&self, part: &Part) -> Vec<Tensor>;

    /// The part that a file with tensors of these shapes means, if they are those of this effect: sizes only, which are
    /// then held against [`Rules::tensors`]. `part` has the place's inputs and outputs.
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part>;

    /// The part of this kind that is asked for with a rank and a scale: what it has no use for is taken away.
    fn shaped(&self, part: Part) -> Part {
        Part { rank: 0, scale: 0.0, ..part }
    }

    /// Why a part of these sizes cannot be, if so; asked before any memory is taken for it.
    fn unfit(&self, part: &Part) -> Option<Error> {
        None
    }

    /// What decides its numbers besides the start, for the terms of a run.
    fn describe(&self, part: &Part) -> String;

    /// What the id of an adapter must know besides sizes and numbers.
    fn tag(&self) -> &'static str {
        ""
    }

    /// Whether inputs of its own are dropped while it learns.
    fn drops(&self) -> bool {
        false
    }

    /// What is wrong with its numbers, which are finite, if something is.
    fn unsound(&self, program: &Program, part: &Part, numbers: &[f32]) -> Option<Error> {
        None
    }

    /// Whether a scale s belongs to it, which files keep as α.
    fn scaled(&self) -> bool {
        false
    }

    /// Whether an activation belongs to it, which files name.
    fn activated(&self) -> bool {
        false
    }

    /// The largest rank that is of use; 0 where there is none.
    fn most_rank(&self, part: &Part) -> usize {
        0
    }

    /// The numbers that learn, and whether they do so at B's rate (LoRA+: B, and vectors, which PEFT's
    /// `create_loraplus_optimizer` counts with it).
    fn learned(&self, part: &Part) -> [(Range<usize>, bool); 3] {
        [(0..part.len(), false), (0..0, false), (0..0, false)]
    }

    /// Numbers behind all others that only remember something while it learns: they have neither gradients nor moments.
    fn remembers(&self, part: &Part) -> usize {
        0
    }

    /// Sets the numbers of a new part: the layer changes nothing yet, unless its paper wants it so.
    fn start(&self, layer: &Layer, i: usize, model: &Model, level: Level, rng: &mut Rng);

    /// Numbers of the base's, laid out as its own, that its own stand in for.
    fn stands_for(&self, model: &Model, level: Level, i: usize, numbers: &[f32]) -> Option<Vec<f32>> {
        None
    }

    /// Makes it do `by` times what it did, if there is a part of its kind that does. Not asked of what stands in for numbers
    /// of the base's.
    fn times(&self, part: &mut Part, numbers: &mut [f32], by: f32) -> bool {
        false
    }

    /// By how much to learn faster than LoRA, to begin with, if not by its method's pace.
    fn pace(&self, part: &Part) -> Option<f64> {
        None
    }

    /// The part, and its numbers, that it is once it has learned, if that is another one.
    fn published(&self, layer: &Layer, i: usize) -> Option<(Part, Vec<f32>)> {
        None
    }

    // What follows from its numbers and the base.

    /// Numbers in f32 and in f64 that follow.
    fn derived(&self, part: &Part) -> (usize, usize) {
        (0, 0)
    }

    /// Computes them, when numbers have changed.
    fn settle(&self, layer: &Layer, i: usize, model: &Model, level: Level, each: Each<'_>) {}

    // What it does to a product; see [`Delta`](crate::ops::Delta).

    /// What x is multiplied with, if that is what it does.
    fn input_gain(&self, layer: &Layer, site: Site) -> Option<Vec<f32>> {
        None
    }

    /// What W·x is multiplied with, and whether its bias is too, if that is what it does.
    fn output_gain(&self, layer: &Layer, site: Site) -> Option<(Vec<f32>, bool)> {
        None
    }

    /// What is added to W·x + bias, if that is what it does.
    fn output_sum(&self, layer: &Layer, site: Site) -> Option<Vec<f32>> {
        None
    }

    /// Whether it changes what the base multiplies.
    fn enters(&self) -> bool {
        false
    }

    fn enter(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        first_row: Option<usize>,
        x: Mat<'_>,
        u: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
    }

    /// Whether it changes the base's own product.
    fn leaves(&self) -> bool {
        false
    }

    fn leave(
        &self,
        layer: &Layer,
        site: Site,
        first: usize,
        bias: Option<&[f32]>,
        y: &mut Block<'_>,
        rows: Range<usize>,
    ) {
    }

    /// Hidden numbers per row.
    fn width(&self, part: &Part) -> usize {
        0
    }

    /// `h`, row i at `h[i·stride ..]`; rows are `first_row..` of the batch, or of no batch in which anything is dropped.
    fn prepare(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        first_row: Option<usize>,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        stride: usize,
        spare: &mut Vec<f32>,
    ) {
    }

    /// Asks memory for what `finish` will need for the outputs `first..first + width`.
    fn soon(&self, layer: &Layer, level: Level, site: Site, first: usize, width: usize) {}

    /// Adds `weight` times what it does.
    fn finish(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        weight: f32,
        h: &[f32],
        stride: usize,
        first: usize,
        y: &mut Block<'_>,
        rows: Range<usize>,
        spare: &mut Vec<f32>,
    ) {
    }

    /// Whether it changes whole rows of the result.
    fn follows(&self) -> bool {
        false
    }

    fn follow(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        weight: f32,
        first_row: Option<usize>,
        y: MatMut<'_>,
        spare: &mut Vec<f32>,
    ) {
    }

    /// Whether its numbers are a matrix, or a vector, in place of the base's.
    fn replaces(&self) -> bool {
        false
    }

    // What it does elsewhere; `i` is its place.

    /// Writes the embedding of a token, if it has one.
    fn embedding(&self, layer: &Layer, i: usize, token: u32, row: &mut [f32]) -> bool {
        false
    }

    /// Adds to logits what its embeddings differ by.
    fn head(&self, layer: &Layer, i: usize, level: Level, x: &[f32], logits: &mut [f32]) {}

    /// Rows in front of a sequence.
    fn virtual_tokens(&self, part: &Part) -> usize {
        0
    }

    /// Positions in front of a sequence that only have keys and values.
    fn prefix(&self, part: &Part) -> usize {
        0
    }

    fn prefix_row(
        &self,
        layer: &Layer,
        i: usize,
        block: usize,
        position: usize,
        key: &mut [f32],
        value: &mut [f32],
    ) {
    }

    // Learning.

    /// The memory of a backward pass over `rows` rows, with inputs dropped or not.
    fn memory(&self, part: &Part, rows: usize, dropping: bool) -> Memory {
        [0; 6]
    }

    /// The whole backward pass of a product; see [`Backward`](crate::ops::Backward).
    fn backward(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        unreachable!("not around a product");
    }

    /// Numbers behind its gradients in which a step gathers what [`Rules::before_update`] makes gradients of.
    fn gathers(&self, part: &Part) -> usize {
        0
    }

    /// Last changes to the gradients of a step, once all its passes are done; what is gathered is cleared by it.
    fn before_update(&self, layer: &Layer, i: usize, level: Level, each: Each<'_>) {}

    fn head_back(&self, layer: &Layer, i: usize, level: Level, x: &[f32], dlogits: &[f32], dx: &mut [f32]) {}

    fn embedding_back(&self, layer: &Layer, i: usize, tokens: &[u32], dy: Mat<'_>) {}

    fn prefix_back(&self, layer: &Layer, i: usize, block: usize, keys: &[f32], values: &[f32]) {}

    // Merging.

    /// Why it cannot be folded into the base, if so.
    fn unfoldable(&self) -> Option<&'static str> {
        None
    }

    /// Adds `weight` times what it adds to the base's rows. Gains are not its business.
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {}
}
