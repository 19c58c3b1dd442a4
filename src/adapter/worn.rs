//! What a session wears: some adapters at once, each with a weight.
//!
//! # Forward
//! ```text
//! y = y₀ + Σᵢ wᵢ·(yᵢ − y₀)          y₀ the base's product, yᵢ that with adapter i; in the order of the stack
//! ```
//! For LoRA that is `W·x + Σᵢ wᵢ·sᵢ·(x·Aᵢᵀ)·Bᵢᵀ`; gains of outputs (DoRA, (IA)³) add up to `1 + Σᵢ wᵢ·(gᵢ − 1)` once, here,
//! and so do those of inputs; vectors added to outputs to `Σᵢ wᵢ·vᵢ`; what enters a product adds up to `x + Σᵢ wᵢ·(uᵢ − x)`, matrices and vectors that stand in for
//! the base's to `W + Σᵢ wᵢ·(Wᵢ − W)`. Two kinds of these at one product would need a product with the base for each: that is
//! refused. What stands in front of a sequence, or in place of embeddings, is one adapter's, with the weight 1.
//!
//! One adapter of weight 1 is that adapter, bit for bit; nothing worn is no delta at all. The hidden numbers of all
//! adapters lie side by side, so a stack costs what one adapter of the ranks together costs.

use super::effect::Rules;
use super::layer::{Part, turn};
use super::open::Adapter;
use super::pairs::{Stamp, only_pairs};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::Model;
use crate::model::program::{Program, Spot};
use crate::ops::{Delta, Lent, Pairs, Room, Site, VectorId};
use crate::tensor::{Block, Mat, MatMut, Slots};
use onlay_kernels::Level;
use std::ops::Range;
use std::sync::Arc;

/// A weighted stack of adapters of one base.
#[derive(Clone, Debug, Default)]
pub struct Worn {
    stack: Vec<(Arc<Adapter>, f32)>,
    /// Products of the program.
    sites: usize,
    /// For each of them, what the base multiplies.
    entering: Vec<Option<Entering>>,
    /// For each: what W·x is multiplied with, and what the bias is.
    leaving: Vec<Option<Leaving>>,
    /// For each place: what stands in for the base's numbers.
    standing: Vec<Option<Standing>>,
    /// Names its numbers.
    pub(super) stamp: Arc<Stamp>,
}

/// What is done to inputs.
#[derive(Clone, Debug)]
enum Entering {
    /// All adapters have factors: these are they together.
    Gains(Vec<f32>),
    /// What the adapters in the stack say, by their numbers there.
    All,
}

/// What is done to W·x and its bias: `product∘(W·x) + bias_gain∘bias + sum`.
#[derive(Clone, Debug)]
struct Leaving {
    /// Absent: 1.
    product: Option<Vec<f32>>,
    /// Of the bias; absent: 1.
    bias: Option<Vec<f32>>,
    /// Absent: 0.
    sum: Option<Vec<f32>>,
}

/// Numbers in place of the base's.
#[derive(Clone, Debug)]
enum Standing {
    /// Those of one adapter in the stack, whose weight is 1.
    Of(usize),
    /// A weighted sum.
    Sum(Arc<Slots<Vec<f32>>>),
}

const REFUSED: &str = "the adapters cannot be worn";

std::thread_local! {
    /// A row that one of several adapters lets into a product.
    static ENTERED: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Worn {
    /// A stack for this model; adapters of weight 0 are left out.
    ///
    /// # Errors
    /// Everything that does not fit: `Mismatch` for adapters of another program, `Argument` for weights that are not
    /// finite, `Unsupported` for layers that cannot be worn together.
    pub fn new(model: &Model, mut stack: Vec<(Arc<Adapter>, f32)>) -> Result<Worn> {
        let program = model.program();
        let mut wrong = Findings::default();
        for (adapter, weight) in &stack {
            let weighted = adapter.parts().iter().flatten().map(|p| p.scale * weight);
            if !weighted.chain([*weight]).all(f32::is_finite) {
                let what = format!("weight of {}", adapter.name());
                wrong.push(Error::expected(Kind::Argument, &what, "a finite number", weight));
            }
            wrong.keep(adapter.fits(program));
        }
        wrong.refuse(REFUSED)?;
        stack.retain(|(_, weight)| *weight != 0.0);
        let mut worn = Worn { stack, sites: program.sites.len(), ..Worn::default() };
        worn.judge(program)?;
        for (i, site) in program.sites.iter().enumerate() {
            let at = Site(i as u32);
            worn.entering.push(worn.entering(at, site.inputs));
            let gains = |layer: &super::Layer, rules: &dyn Rules| rules.output_gain(layer, at).map(|g| g.0);
            let product = worn.gains(i, site.outputs, gains);
            let of_bias = |layer: &super::Layer, rules: &dyn Rules| {
                rules.output_gain(layer, at).filter(|(_, too)| *too).map(|g| g.0)
            };
            let bias = worn.gains(i, site.outputs, of_bias);
            let sum = worn.sum(at);
            let some = product.is_some() || sum.is_some();
            worn.leaving.push(some.then_some(Leaving { product, bias, sum }));
        }
        for i in 0..program.places() {
            worn.standing.push(worn.standing(model, i)?);
        }
        Ok(worn)
    }

    /// Finds what cannot be worn together.
    fn judge(&self, program: &Program) -> Result<()> {
        let mut wrong = Findings::default();
        for i in 0..program.places() {
            let mut refuse = |text: &str| {
                wrong
                    .push(Error::new(Kind::Unsupported, text).at(Place::Tensor(program.place_name(i).into())))
            };
            let here = || self.here(i).map(|(_, part, _)| (part, part.rules()));
            match program.spot(i) {
                Spot::Vector => {}
                Spot::Table | Spot::Front => {
                    if here().count() > 1 || self.here(i).any(|(_, _, weight)| weight != 1.0) {
                        refuse("only one adapter can be here, with a weight of 1");
                    }
                }
                Spot::Product => {
                    let site = Site(i as u32);
                    let has = |f: &dyn Fn(&dyn Rules) -> bool| here().any(|(_, rules)| f(rules));
                    let turned = self
                        .here(i)
                        .any(|(k, p, _)| p.rules().output_gain(self.stack[k].0.lora(), site).is_some());
                    let kinds = [has(&|r| r.enters()), turned, has(&|r| r.replaces())];
                    if kinds.iter().filter(|k| **k).count() > 1 {
                        refuse(
                            "gains of its inputs and of its outputs, or another matrix, cannot be worn together",
                        );
                    }
                    if has(&|r| r.follows()) && here().count() > 1 {
                        refuse("a layer behind a product cannot be worn together with another at it");
                    }
                }
            }
        }
        wrong.refuse(REFUSED)
    }

    /// The adapters with a part at a place: the number in the stack, the part, the weight.
    fn here(&self, i: usize) -> impl Iterator<Item = (usize, &Part, f32)> {
        let all = self.stack.iter().enumerate();
        all.filter_map(move |(k, (a, weight))| Some((k, a.parts().get(i)?.as_ref()?, *weight)))
    }

    /// `1 + Σ w·(g − 1)` over the adapters that have gains at a site; the gains themselves of one of weight 1.
    fn gains(
        &self,
        site: usize,
        n: usize,
        gains: impl Fn(&super::Layer, &dyn Rules) -> Option<Vec<f32>>,
    ) -> Option<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        for (k, part, weight) in self.here(site) {
            let Some(gains) = gains(self.stack[k].0.lora(), part.rules()) else { continue };
            match &mut sum {
                None if weight == 1.0 => sum = Some(gains),
                sum => {
                    let sum = sum.get_or_insert_with(|| vec![1.0; n]);
                    sum.iter_mut().zip(gains).for_each(|(s, g)| *s += weight * (g - 1.0));
                }
            }
        }
        sum
    }

    /// `Σ w·v` over the adapters that add a vector at a site; the vector itself of one of weight 1.
    fn sum(&self, site: Site) -> Option<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        for (k, part, weight) in self.here(site.into()) {
            let Some(mut vector) = part.rules().output_sum(self.stack[k].0.lora(), site) else { continue };
            vector.iter_mut().for_each(|v| *v *= weight);
            match &mut sum {
                None => sum = Some(vector),
                Some(sum) => sum.iter_mut().zip(vector).for_each(|(s, v)| *s += v),
            }
        }
        sum
    }

    fn entering(&self, site: Site, inputs: usize) -> Option<Entering> {
        let i = site.into();
        let mut with = self.here(i).filter(|(_, p, _)| p.rules().enters()).peekable();
        with.peek()?;
        let all = with.all(|(k, p, _)| p.rules().input_gain(self.stack[k].0.lora(), site).is_some());
        if !all {
            return Some(Entering::All);
        }
        self.gains(i, inputs, |layer, rules| rules.input_gain(layer, site)).map(Entering::Gains)
    }

    fn standing(&self, model: &Model, i: usize) -> Result<Option<Standing>> {
        let with: Vec<_> = self.here(i).filter(|(_, p, _)| p.rules().replaces()).collect();
        let Some((&(k, _, weight), rest)) = with.split_first() else { return Ok(None) };
        if rest.is_empty() && weight == 1.0 {
            return Ok(Some(Standing::Of(k)));
        }
        let numbers = self.stack[k].0.lora().params().read(i).clone();
        let level = Level::chosen().map_err(|e| Error::new(Kind::Argument, e))?;
        let Some(base) = with[0].1.rules().stands_for(model, level, i, &numbers) else { return Ok(None) };
        let mut sum = base.clone();
        for (k, _, weight) in with {
            let numbers = self.stack[k].0.lora().params().read(i);
            let each = sum.iter_mut().zip(&base).zip(&*numbers);
            each.for_each(|((sum, base), v)| *sum += weight * (v - base));
        }
        let mut sum = Some(sum);
        Ok(Some(Standing::Sum(Arc::new(Slots::new(1, |_| sum.take().unwrap_or_default())))))
    }

    /// What stands in for the base's numbers at a place.
    fn lent(&self, i: usize) -> Option<Lent<'_>> {
        Some(match self.standing.get(i)?.as_ref()? {
            Standing::Of(k) => self.stack[*k].0.lora().params().read(i),
            Standing::Sum(sum) => sum.read(0),
        })
    }

    /// What the bias of a site is multiplied with, and what is added to it.
    pub(super) fn of_bias(&self, site: Site) -> (Option<&[f32]>, Option<&[f32]>) {
        let leaving = self.leaving[site.0 as usize].as_ref();
        leaving.map_or((None, None), |l| (l.bias.as_deref(), l.sum.as_deref()))
    }

    /// What x is multiplied with at a site, and what W·x is.
    pub(super) fn gains_at(&self, site: Site) -> (Option<&[f32]>, Option<&[f32]>) {
        let i = site.0 as usize;
        let entering = match &self.entering[i] {
            Some(Entering::Gains(gains)) => Some(&gains[..]),
            _ => None,
        };
        (entering, self.leaving[i].as_ref().and_then(|l| l.product.as_deref()))
    }

    /// The one adapter that is in front of sequences or in the table: what `ask` says of it.
    fn first<'a, T>(&'a self, mut ask: impl FnMut(&'a super::Layer) -> Option<T>) -> Option<T> {
        self.stack.iter().find_map(|(a, _)| ask(a.lora()))
    }

    /// What the model's products are told; `None` if nothing is worn.
    pub fn delta(&self) -> Option<&dyn Delta> {
        (!self.stack.is_empty()).then_some(self)
    }

    /// The adapters and their weights.
    pub fn stack(&self) -> &[(Arc<Adapter>, f32)] {
        &self.stack
    }

    /// What it needs of a runner's plan (`Options::room`).
    pub fn room(&self, program: &Program) -> Room {
        program.room(self)
    }

    /// The adapters with hidden numbers at a site, each with its weight and the place of its hidden numbers.
    fn at(&self, site: Site) -> impl Iterator<Item = (&super::Layer, &Part, f32, usize)> {
        self.here(site.into()).filter(|(_, p, _)| p.rules().width(p) > 0).scan(
            0,
            |next, (k, part, weight)| {
                let first = *next;
                *next += part.rules().width(part);
                Some((self.stack[k].0.lora(), part, weight, first))
            },
        )
    }
}

impl Delta for Worn {
    fn enters(&self, site: Site) -> bool {
        self.entering.get(site.0 as usize).is_some_and(Option::is_some)
    }

    fn enter(&self, level: Level, site: Site, _: usize, x: Mat<'_>, u: &mut [f32], spare: &mut Vec<f32>) {
        let i = site.0 as usize;
        if let Some(Entering::Gains(gains)) = &self.entering[i] {
            return super::ia3::scale(gains, x.data(), u);
        }
        let with = || self.here(i).filter(|(_, p, _)| p.rules().enters());
        if let (Some((k, part, 1.0)), None) = (with().next(), with().nth(1)) {
            return part.rules().enter(self.stack[k].0.lora(), level, site, None, x, u, spare);
        }
        u.copy_from_slice(x.data());
        let (rows, k) = (x.rows(), x.cols());
        // `spare` is what each adapter needs; a member keeps a row besides, which grows in the first step
        ENTERED.with_borrow_mut(|own| {
            own.resize(k.max(own.len()), 0.0);
            for (at, part, weight) in with() {
                for row in 0..rows {
                    let (one, to) = (x.part(row..row + 1), &mut own[..k]);
                    part.rules().enter(self.stack[at].0.lora(), level, site, None, one, to, spare);
                    let u = &mut u[row * k..(row + 1) * k];
                    u.iter_mut().zip(&*to).zip(one.data()).for_each(|((u, v), x)| *u += weight * (v - x));
                }
            }
        });
    }

    fn matrix(&self, site: Site) -> Option<Lent<'_>> {
        self.lent(site.into())
    }

    fn leaves(&self, site: Site) -> bool {
        self.leaving.get(site.0 as usize).is_some_and(Option::is_some)
    }

    fn leave(&self, site: Site, first: usize, bias: Option<&[f32]>, y: &mut Block<'_>, rows: Range<usize>) {
        let leaving = self.leaving[site.0 as usize].as_ref();
        let Leaving { product, bias: of_bias, sum } = leaving.expect("asked only where it leaves");
        match product {
            Some(product) => turn(product, of_bias.as_deref(), first, bias, y, rows.clone()),
            None => super::bias::add(bias, first, y, rows.clone()),
        }
        super::bias::add(sum.as_deref(), first, y, rows);
    }

    fn width(&self, site: Site) -> usize {
        self.stack.iter().map(|(a, _)| a.lora().width(site)).sum()
    }

    fn prepare(
        &self,
        level: Level,
        site: Site,
        _: usize,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        for (layer, part, _, first) in self.at(site) {
            let (from, to) = (units.start.max(first), units.end.min(first + part.rules().width(part)));
            if from < to {
                let (h, own) = (&mut h[from - units.start..], from - first..to - first);
                part.rules().prepare(layer, level, site, None, x, own, h, units.len(), spare);
            }
        }
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
        for (layer, part, weight, at) in self.at(site) {
            let (h, rows) = (&h[at..], rows.clone());
            part.rules().finish(layer, level, site, weight, h, stride, first, y, rows, spare);
        }
    }

    fn soon(&self, level: Level, site: Site, first: usize, width: usize) {
        for (layer, part, _, _) in self.at(site) {
            part.rules().soon(layer, level, site, first, width);
        }
    }

    fn follows(&self, site: Site) -> bool {
        self.here(site.into()).any(|(_, p, _)| p.rules().follows())
    }

    fn follow(&self, level: Level, site: Site, _: usize, mut y: MatMut<'_>, spare: &mut Vec<f32>) {
        for (k, part, weight) in self.here(site.into()).filter(|(_, p, _)| p.rules().follows()) {
            part.rules().follow(self.stack[k].0.lora(), level, site, weight, None, y.again(), spare);
        }
    }

    fn vector(&self, id: VectorId) -> Option<Lent<'_>> {
        self.lent(self.sites + id.0 as usize)
    }

    fn embeds(&self) -> bool {
        self.stack.iter().any(|(a, _)| a.lora().embeds())
    }

    fn embedding(&self, token: u32, row: &mut [f32]) -> bool {
        self.first(|layer| layer.embedding(token, row).then_some(())).is_some()
    }

    fn head(&self, level: Level, x: &[f32], logits: &mut [f32]) {
        self.stack.iter().for_each(|(a, _)| a.lora().head(level, x, logits));
    }

    fn virtual_tokens(&self) -> usize {
        self.first(|layer| Some(layer.virtual_tokens()).filter(|n| *n > 0)).unwrap_or(0)
    }

    fn prefix(&self) -> usize {
        self.first(|layer| Some(layer.prefix()).filter(|n| *n > 0)).unwrap_or(0)
    }

    fn prefix_row(&self, layer: usize, position: usize, key: &mut [f32], value: &mut [f32]) {
        if let Some(with) = self.first(|layer| (layer.prefix() > 0).then_some(layer)) {
            with.prefix_row(layer, position, key, value);
        }
    }

    fn pairs(&self) -> Option<&dyn Pairs> {
        self.stack.iter().all(|(adapter, _)| only_pairs(adapter.lora())).then_some(self)
    }
}
