//! A layer: what is fastened where, its numbers, and what it learns with. What the numbers do is in one file per method.
//!
//! ```text
//! effect             numbers of a site, one behind the other                    file
//! Effect::Lora       A [r][inputs]   B transposed [r][outputs]                  lora
//! Effect::Dora       A   B transposed   m [outputs]                             dora
//! Effect::Outputs    l [outputs]                                                ia3
//! Effect::Inputs     l [inputs]                                                 ia3
//! Effect::Vera       λd [r]   λb [outputs]                                      vera
//! ```
//! Dropout draws its mask from a hash of (seed, row, site, column), where a row is named by its step, its place in the
//! step's window and its position ([`Layer::set_rows`]): recomputing a segment draws the same mask, and so does another
//! cut of the window. Without names nothing is dropped: evaluation and serving see the whole layer.

use super::dora::Turned;
use super::methods::Method;
use super::vera::Shared;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::Program;
use crate::ops::{Backward, Base, Delta, Host, Site};
use crate::rng::hash;
use crate::tensor::{Block, Mat, MatMut, Slots};
use onlay_kernels::Level;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::RwLockReadGuard;

/// What the numbers of a part do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
}

/// What a layer is at one site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// What its numbers do.
    pub effect: Effect,
    /// Rank r; 0 where there is no A and B.
    pub rank: usize,
    /// Inputs of the product.
    pub inputs: usize,
    /// Outputs of the product.
    pub outputs: usize,
    /// s, what h·Bᵀ is multiplied with.
    pub scale: f32,
    /// The last so many hidden units do not learn: a start that is taken off again.
    pub frozen: usize,
}

impl Part {
    /// A pair A, B.
    pub fn lora(rank: usize, inputs: usize, outputs: usize, scale: f32) -> Part {
        Part { rank, inputs, outputs, scale, ..Part::default() }
    }

    /// Numbers in A and B of its own.
    pub(super) fn pair(&self) -> usize {
        if self.effect == Effect::Vera { 0 } else { self.rank * (self.inputs + self.outputs) }
    }

    /// All its numbers.
    pub fn len(&self) -> usize {
        match self.effect {
            Effect::Lora => self.pair(),
            Effect::Dora => self.pair() + self.outputs,
            Effect::Outputs => self.outputs,
            Effect::Inputs => self.inputs,
            Effect::Vera => self.rank + self.outputs,
        }
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers that learn, and whether they do so at B's rate (LoRA+: B, and vectors, which PEFT's
    /// `create_loraplus_optimizer` counts with it).
    pub fn learned(&self) -> [(Range<usize>, bool); 3] {
        let (a, pair, units) = (self.rank * self.inputs, self.pair(), self.rank - self.frozen);
        match self.effect {
            Effect::Lora | Effect::Dora => [
                (0..units * self.inputs, false),
                (a..a + units * self.outputs, true),
                (pair..self.len(), true),
            ],
            _ => [(0..self.len(), false), (0..0, false), (0..0, false)],
        }
    }

    /// The scale s of α: α/r, or α/√r with `stabilised` (rsLoRA).
    pub fn scale_of(alpha: f64, rank: usize, stabilised: bool) -> f32 {
        let r = rank as f64;
        (alpha / if stabilised { r.sqrt() } else { r }) as f32
    }

    /// Finds all parts whose shapes are not those of the program's products at their sites.
    pub(super) fn fits(parts: &[Option<Part>], program: &Program, wrong: &mut Findings) {
        if parts.len() != program.sites.len() {
            let (expected, found) = (program.sites.len(), parts.len());
            wrong.push(Error::expected(Kind::Mismatch, "products of the layer's base", expected, found));
        }
        for (part, site) in parts.iter().zip(&program.sites) {
            let Some(p) = part else { continue };
            let (found, expected) = ((p.inputs, p.outputs), (site.inputs, site.outputs));
            if found != expected {
                let text = |(i, o)| format!("{i} inputs and {o} outputs");
                let (expected, found) = (text(expected), text(found));
                let place = Place::Tensor(site.name.clone());
                wrong.push(Error::expected(Kind::Mismatch, "layer", expected, found).at(place));
            }
        }
    }

    /// [`Part::fits`], and ranks that are of use: above 0 and not above what the product itself has.
    pub(super) fn check_all(parts: &[Option<Part>], program: &Program, wrong: &mut Findings) {
        Part::fits(parts, program, wrong);
        for (part, site) in parts.iter().zip(&program.sites) {
            let Some(p) = part else { continue };
            let learned = p.rank - p.frozen;
            let paired = matches!(p.effect, Effect::Lora | Effect::Dora);
            if p.effect == Effect::Vera && p.rank == 0 {
                let place = Place::Tensor(site.name.clone());
                wrong.push(Error::expected(Kind::Argument, "rank", "at least 1", 0).at(place));
            }
            if paired && (learned == 0 || learned > p.inputs.min(p.outputs)) {
                let most = format!("1 to {}", p.inputs.min(p.outputs));
                let place = Place::Tensor(site.name.clone());
                wrong.push(Error::expected(Kind::Argument, "rank", most, learned).at(place));
            }
        }
    }
}

/// What decides its numbers besides the start: `rank 8 scale 2`, and what is not LoRA's.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.effect {
            Effect::Lora => write!(f, "rank {} scale {}", self.rank, self.scale)?,
            Effect::Dora => write!(f, "rank {} scale {} lengths", self.rank, self.scale)?,
            Effect::Outputs => f.write_str("factors of outputs")?,
            Effect::Inputs => f.write_str("factors of inputs")?,
            Effect::Vera => write!(f, "rank {} shared", self.rank)?,
        }
        if self.frozen > 0 { write!(f, " frozen {}", self.frozen) } else { Ok(()) }
    }
}

/// How inputs are dropped while training.
#[derive(Debug, Default)]
struct Dropout {
    /// Of 65,536 inputs, how many are dropped.
    rate: u64,
    seed: u64,
    /// The name of each row of the batch at hand; empty while nothing is dropped.
    rows: Slots<Vec<u64>>,
}

/// Parts at some sites of one program. See the module.
#[derive(Debug)]
pub struct Layer {
    parts: Vec<Option<Part>>,
    /// For each site, as in the table of the module.
    params: Slots<Vec<f32>>,
    grads: Option<Slots<Vec<f32>>>,
    dropout: Dropout,
    /// What follows from the numbers and the base: of [`Effect::Dora`].
    pub(super) turned: Slots<Turned>,
    /// The pair of [`Effect::Vera`].
    shared: Option<Arc<Shared>>,
    /// Memory of the backward pass: h, dh, dropped inputs or gradients of inputs, and two for what is as wide as the outputs.
    pub(super) memory: Slots<Vec<f32>>,
}

impl Layer {
    /// The layer with the given parts (one entry per site of the program), all numbers zero.
    pub fn new(parts: Vec<Option<Part>>) -> Self {
        let params = Slots::new(parts.len(), |i| vec![0.0; parts[i].map_or(0, |p: Part| p.len())]);
        let turned = Slots::new(parts.len(), |i| Turned::new(parts[i].as_ref()));
        Layer {
            parts,
            params,
            grads: None,
            dropout: Dropout::default(),
            turned,
            shared: None,
            memory: Slots::default(),
        }
    }

    /// Gives it the pair of [`Effect::Vera`].
    pub(super) fn sharing(mut self, shared: Shared) -> Layer {
        self.shared = Some(Arc::new(shared));
        self
    }

    /// The pair of [`Effect::Vera`].
    pub(super) fn shared(&self) -> Option<&Shared> {
        self.shared.as_deref()
    }

    /// Numbers that it is made with and that never learn.
    pub fn fixed(&self) -> [&[f32]; 2] {
        self.shared().map_or([&[], &[]], |s| [&s.a, &s.b])
    }

    /// The same numbers without gradients: what is published, or learned from anew.
    pub fn copy(&self) -> Layer {
        let params = Slots::new(self.parts.len(), |i| self.params.read(i).clone());
        let (parts, shared) = (self.parts.clone(), self.shared.clone());
        let turned = Slots::new(self.parts.len(), |i| self.turned.read(i).clone());
        Layer {
            parts,
            params,
            grads: None,
            dropout: Dropout::default(),
            turned,
            shared,
            memory: Slots::default(),
        }
    }

    /// Makes it learn: gradients, and the memory of a backward pass over up to `rows` rows. A share `dropout` of the
    /// inputs is dropped, drawn from `seed`.
    ///
    /// # Errors
    /// `Argument` for a share outside 0..1.
    pub fn learn(&mut self, rows: usize, dropout: f64, seed: u64) -> Result<()> {
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::expected(Kind::Argument, "dropout", "at least 0 and below 1", dropout));
        }
        let rate = ((dropout * 65_536.0).round() as u64).min(65_535);
        let names = if rate > 0 { rows } else { 0 };
        self.dropout = Dropout { rate, seed, rows: Slots::new(1, |_| Vec::with_capacity(names)) };
        let sizes = self.memory_sizes(rows);
        self.memory = Slots::new(sizes.len(), |i| vec![0.0; sizes[i]]);
        self.grads = Some(Slots::new(self.parts.len(), |i| vec![0.0; self.parts[i].map_or(0, |p| p.len())]));
        Ok(())
    }

    fn memory_sizes(&self, rows: usize) -> [usize; 5] {
        let most = |f: &dyn Fn(&Part) -> usize| self.parts.iter().flatten().map(f).max().unwrap_or(0);
        let paired = |p: &Part| p.rank > 0;
        let with = |p: &Part| matches!(p.effect, Effect::Dora);
        [
            rows * most(&|p| p.rank),
            rows * most(&|p| p.rank),
            rows * most(&|p| match p.effect {
                Effect::Inputs => p.inputs,
                _ if paired(p) && self.dropout.rate > 0 => p.inputs,
                _ => 0,
            }),
            most(&|p| if with(p) || p.effect == Effect::Vera { p.rank * p.outputs } else { 0 }),
            most(&|p| if with(p) || p.effect == Effect::Outputs { p.outputs } else { 0 }),
        ]
    }

    /// Bytes of the parameters and what follows from them, and of what training adds to them: gradients, two moments,
    /// the backward pass.
    pub fn bytes(&self, rows: usize, dropout: bool) -> (u64, u64) {
        let params = 4 * self.len() as u64;
        let turned: u64 = self.parts.iter().flatten().map(Turned::bytes).sum();
        let turned = turned + self.shared().map_or(0, Shared::bytes);
        let mut sizes = self.memory_sizes(rows);
        if dropout && self.dropout.rate == 0 {
            let inputs = self.parts.iter().flatten().map(|p| p.inputs).max().unwrap_or(0);
            sizes[2] = sizes[2].max(rows * inputs);
        }
        (params + turned, 3 * params + 4 * sizes.iter().sum::<usize>() as u64)
    }

    /// What is at each site.
    pub fn parts(&self) -> &[Option<Part>] {
        &self.parts
    }

    /// Whether all that follows from its numbers is known ([`Layer::settle`]).
    pub(super) fn settled(&self) -> bool {
        (0..self.turned.len()).all(|i| self.turned.read(i).gains.iter().all(|g| !g.is_nan()))
    }

    /// The method that all parts together are.
    pub fn method(&self) -> &'static Method {
        Method::of(self.parts.iter().flatten())
    }

    /// All numbers together.
    pub fn len(&self) -> usize {
        self.parts.iter().flatten().map(Part::len).sum()
    }

    /// Whether it has no part.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of a site, as in the table of the module; empty where there is no part.
    pub fn params(&self) -> &Slots<Vec<f32>> {
        &self.params
    }

    /// Gradients, laid out as the parameters. Panics before [`Layer::learn`].
    pub fn grads(&self) -> &Slots<Vec<f32>> {
        self.grads.as_ref().expect("a layer that learns has gradients")
    }

    /// Names the rows of the next batches, at most as many as it was told to learn: dropout draws by these names. With
    /// no names nothing is dropped.
    pub fn set_rows(&self, names: impl Iterator<Item = u64>) {
        if self.dropout.rate > 0 {
            let mut rows = self.dropout.rows.get(0);
            rows.clear();
            rows.extend(names);
        }
    }

    /// Rows of A at a site, one by one.
    pub fn a_row(&self, site: Site, i: usize, out: &mut [f32]) {
        let part = self.part(site).expect("a part");
        out.copy_from_slice(&self.params.read(site.0 as usize)[i * part.inputs..(i + 1) * part.inputs]);
    }

    /// Checks that every part fits the program's product at its site.
    ///
    /// # Errors
    /// All that do not.
    pub fn check(&self, program: &Program) -> Result<()> {
        let mut wrong = Findings::default();
        Part::check_all(&self.parts, program, &mut wrong);
        wrong.refuse("the layer does not fit this base")
    }

    /// Whether it was told to learn.
    pub(super) fn learning(&self) -> bool {
        self.grads.is_some()
    }

    /// What it multiplies the inputs or outputs of a product with, if its effect there is asked for.
    pub(super) fn gains(&self, site: Site, asked: fn(Effect) -> bool) -> Option<Vec<f32>> {
        let i = site.0 as usize;
        Some(match self.part(site).filter(|p| asked(p.effect))?.effect {
            Effect::Lora | Effect::Vera => return None,
            Effect::Dora => self.turned.read(i).gains.clone(),
            Effect::Outputs | Effect::Inputs => self.params.read(i).clone(),
        })
    }

    pub(super) fn part(&self, site: Site) -> Option<&Part> {
        self.parts.get(site.0 as usize)?.as_ref()
    }

    /// The names of the rows at hand, if inputs are dropped.
    pub(super) fn names(&self) -> Option<RwLockReadGuard<'_, Vec<u64>>> {
        (self.dropout.rate > 0).then(|| self.dropout.rows.read(0))
    }

    /// Writes `x`, the columns from `at` (a multiple of 4) on of the row called `row`, with dropped inputs set to 0
    /// and the others raised to keep the mean. Linear, so gradients go through it too.
    pub(super) fn drop_into(&self, site: Site, row: u64, at: usize, x: &[f32], to: &mut [f32]) {
        let d = &self.dropout;
        let keep = 65_536.0 / (65_536 - d.rate) as f32;
        for (i, (x, to)) in x.chunks(4).zip(to.chunks_mut(4)).enumerate() {
            let mut draw = hash(d.seed, &[row, u64::from(site.0), (at / 4 + i) as u64]);
            for (x, to) in x.iter().zip(to) {
                *to = if draw & 0xffff < d.rate { 0.0 } else { keep * x };
                draw >>= 16;
            }
        }
    }
}

impl Delta for Layer {
    fn enters(&self, site: Site) -> bool {
        self.part(site).is_some_and(|p| p.effect == Effect::Inputs)
    }

    fn enter(&self, _: Level, site: Site, _: usize, x: Mat<'_>, u: &mut [f32], _: &mut Vec<f32>) {
        super::ia3::scale(&self.params.read(site.0 as usize), x.data(), u);
    }

    fn leaves(&self, site: Site) -> bool {
        self.part(site).is_some_and(|p| matches!(p.effect, Effect::Dora | Effect::Outputs))
    }

    fn leave(&self, site: Site, first: usize, bias: Option<&[f32]>, y: &mut Block<'_>, rows: Range<usize>) {
        let i = site.0 as usize;
        match self.part(site).map(|p| p.effect) {
            Some(Effect::Dora) => turn(&self.turned.read(i).gains, None, first, bias, y, rows),
            Some(Effect::Outputs) => {
                let l = &*self.params.read(i);
                turn(l, Some(l), first, bias, y, rows);
            }
            _ => unreachable!("asked only where it leaves"),
        }
    }

    fn width(&self, site: Site) -> usize {
        self.part(site).map_or(0, |p| p.rank)
    }

    fn prepare(
        &self,
        level: Level,
        site: Site,
        first_row: usize,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        self.dropped_hidden(level, site, first_row, x, units, h, spare);
    }

    fn finish(
        &self,
        level: Level,
        site: Site,
        h: &[f32],
        stride: usize,
        first: usize,
        y: &mut Block<'_>,
        rows: Range<usize>,
        spare: &mut Vec<f32>,
    ) {
        self.low_rank(level, site, 1.0, h, stride, first, y, rows, spare);
    }
}

/// `y = gain∘y + bias_gain∘bias` for some rows and the outputs from `first` on; without `bias_gain` the bias as it is.
pub(super) fn turn(
    gain: &[f32],
    bias_gain: Option<&[f32]>,
    first: usize,
    bias: Option<&[f32]>,
    y: &mut Block<'_>,
    rows: Range<usize>,
) {
    for i in rows {
        let y = y.row(i);
        y.iter_mut().zip(&gain[first..]).for_each(|(y, g)| *y *= g);
        match (bias, bias_gain) {
            (None, _) => {}
            (Some(bias), None) => y.iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b),
            (Some(bias), Some(gain)) => {
                let bias = bias[first..].iter().zip(&gain[first..]);
                y.iter_mut().zip(bias).for_each(|(y, (b, g))| *y += g * b);
            }
        }
    }
}

impl Backward for Layer {
    fn learns(&self, site: Site) -> bool {
        self.part(site).is_some()
    }

    fn backward(
        &self,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        match self.part(site).expect("asked only where it learns").effect {
            Effect::Lora | Effect::Dora => self.pair_back(host, site, base, x, dy, dx),
            Effect::Outputs => self.outputs_back(host, site, base, x, dy, dx),
            Effect::Inputs => self.inputs_back(host, site, base, x, dy, dx),
            Effect::Vera => self.vectors_back(host, site, base, x, dy, dx),
        }
    }
}
