//! A layer: what is fastened where, its numbers, and what it learns with. What the numbers do is in one file per effect
//! ([`Effect`]).
//!
//! A layer has one part at most at each *place* of a program: its products ([`Site`]s), its vectors, the embedding table,
//! and what stands in front of a sequence ([`Program::places`]).

use super::adalora::Budget;
use super::dropout::Dropout;
pub use super::effect::Effect;
use super::effect::{Each, Memory, Rules};
use super::lora::start_pair;
use super::methods::Method;
use super::names::{Names, moving_head};
use super::pairs::{Stamp, only_pairs};
pub use super::part::Part;
use super::vera::Shared;
use crate::error::{Error, Findings, Kind, Result};
use crate::model::Model;
use crate::model::program::{Program, Spot};
use crate::ops::{Backward, Base, Delta, Host, Lent, Pairs, Site, VectorId};
use crate::rng::Rng;
use crate::tensor::{Block, Mat, MatMut, Slots};
use onlay_kernels::Level;
use std::ops::Range;
use std::sync::Arc;
use std::sync::RwLockReadGuard;

/// What follows from the numbers of a part and the base; not yet known while there is one that is no number.
#[derive(Clone, Debug, Default)]
pub(super) struct Derived {
    pub numbers: Vec<f32>,
    pub exact: Vec<f64>,
}

impl Derived {
    fn new(part: Option<&Part>) -> Derived {
        let (n, exact) = part.map_or((0, 0), |p| p.rules().derived(p));
        Derived { numbers: vec![f32::NAN; n], exact: vec![f64::NAN; exact] }
    }
}

/// What parts must know of the program.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Tokens: virtual ones follow.
    pub vocabulary: usize,
    /// See [`moving_head`].
    pub head: usize,
}

/// Parts at some places of one program. See the module.
#[derive(Debug)]
pub struct Layer {
    parts: Vec<Option<Part>>,
    facts: Facts,
    /// How many of the places are products.
    sites: usize,
    /// For each place, tensor by tensor as its effect says, in the order of its files.
    params: Slots<Vec<f32>>,
    grads: Option<Slots<Vec<f32>>>,
    dropout: Dropout,
    pub(super) derived: Slots<Derived>,
    /// The pair of [`Effect::Vera`].
    shared: Option<Arc<Shared>>,
    /// How [`Effect::Triplets`] gives up ranks while it learns.
    pub(super) budget: Option<Budget>,
    /// Memory of the backward pass, as [`Rules::memory`] asks for it.
    pub(super) memory: Slots<Vec<f32>>,
    /// Names its numbers.
    pub(super) stamp: Stamp,
}

impl Layer {
    /// The layer with the given parts at the sites of a program, one entry for each; all numbers zero.
    pub fn new(parts: Vec<Option<Part>>) -> Self {
        let sites = parts.len();
        Layer::with(parts, sites, Facts::default())
    }

    /// The layer with the given parts at the places of a program, one entry for each; all numbers zero.
    pub fn over(program: &Program, parts: Vec<Option<Part>>) -> Self {
        let facts = Facts { vocabulary: program.vocabulary, head: moving_head(program) };
        Layer::with(parts, program.sites.len(), facts)
    }

    fn with(parts: Vec<Option<Part>>, sites: usize, facts: Facts) -> Self {
        let params = Slots::new(parts.len(), |i| vec![0.0; parts[i].map_or(0, |p: Part| p.len())]);
        let derived = Slots::new(parts.len(), |i| Derived::new(parts[i].as_ref()));
        Layer {
            parts,
            facts,
            sites,
            params,
            grads: None,
            dropout: Dropout::default(),
            derived,
            shared: None,
            budget: None,
            memory: Slots::default(),
            stamp: Stamp::default(),
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
        let derived = Slots::new(self.parts.len(), |i| self.derived.read(i).clone());
        Layer {
            parts: self.parts.clone(),
            facts: self.facts,
            sites: self.sites,
            params,
            grads: None,
            dropout: Dropout::default(),
            derived,
            shared: self.shared.clone(),
            budget: self.budget,
            memory: Slots::default(),
            stamp: Stamp::default(),
        }
    }

    /// What is published of it: the same without gradients, with every part as it is once it has learned.
    pub(super) fn published(self) -> Layer {
        let mut layer = if self.learning() { self.copy() } else { self };
        for i in 0..layer.parts.len() {
            let Some((part, numbers)) = layer.parts[i].and_then(|p| p.rules().published(&layer, i)) else {
                continue;
            };
            layer.put(i, part, numbers);
        }
        layer.budget = None;
        layer
    }

    /// Puts another part in the place of one; none where it has no numbers.
    pub(super) fn put(&mut self, i: usize, part: Part, numbers: Vec<f32>) {
        self.parts[i] = (!numbers.is_empty()).then_some(part);
        *self.params.get(i) = numbers;
        *self.derived.get(i) = Derived::new(self.parts[i].as_ref());
    }

    /// What its parts must know of the program.
    pub(super) fn facts(&self) -> Facts {
        self.facts
    }

    /// The same, doing `by` times what it did: as if it were worn with that weight. `None` where no such numbers exist
    /// (DoRA). What follows from the numbers must be computed anew ([`Layer::settle`]).
    pub fn times(&self, model: &Model, level: Level, by: f32) -> Option<Layer> {
        let mut layer = self.copy();
        for (i, part) in layer.parts.iter_mut().enumerate() {
            let Some(part) = part else { continue };
            let (rules, mut numbers) = (part.rules(), layer.params.get(i));
            if let Some(base) = rules.stands_for(model, level, i, &numbers) {
                numbers.iter_mut().zip(base).for_each(|(v, base)| *v = base + by * (*v - base));
            } else if !rules.times(part, &mut numbers, by) {
                return None;
            }
            *layer.derived.get(i) = Derived::new(Some(part));
        }
        Some(layer)
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
        let sizes = self.memory_sizes(rows, rate > 0);
        self.memory = Slots::new(sizes.len(), |i| vec![0.0; sizes[i]]);
        let numbers = |p: Part| p.learning_len() + p.rules().gathers(&p);
        self.grads = Some(Slots::new(self.parts.len(), |i| vec![0.0; self.parts[i].map_or(0, numbers)]));
        Ok(())
    }

    fn memory_sizes(&self, rows: usize, dropping: bool) -> Memory {
        let mut most = Memory::default();
        for part in self.parts.iter().flatten() {
            let sizes = part.rules().memory(part, rows, dropping);
            most.iter_mut().zip(sizes).for_each(|(most, n)| *most = n.max(*most));
        }
        most
    }

    /// Bytes of the parameters and what follows from them, and of what training adds to them: gradients, two moments,
    /// the backward pass.
    pub fn bytes(&self, rows: usize, dropout: bool) -> (u64, u64) {
        let params = 4 * self.len() as u64;
        let derived = self.parts.iter().flatten().map(|p| p.rules().derived(p));
        let derived: u64 = derived.map(|(n, exact)| (4 * n + 8 * exact) as u64).sum();
        let derived = derived + self.shared().map_or(0, Shared::bytes);
        let sizes = self.memory_sizes(rows, dropout || self.dropout.rate > 0);
        let gathered: usize = self.parts.iter().flatten().map(|p| p.rules().gathers(p)).sum();
        let learning = 4 * self.learning_len() as u64;
        (params + derived, 3 * learning + 4 * (gathered + sizes.iter().sum::<usize>()) as u64)
    }

    /// What is at each place.
    pub fn parts(&self) -> &[Option<Part>] {
        &self.parts
    }

    /// Whether all that follows from its numbers is known ([`Layer::settle`]).
    pub(super) fn settled(&self) -> bool {
        (0..self.derived.len()).all(|i| self.derived.read(i).numbers.iter().all(|g| !g.is_nan()))
    }

    /// Computes what follows from its numbers and the base; must be called when numbers have changed, and costs nothing
    /// where nothing follows.
    pub fn settle(&self, model: &Model, level: Level, each: Each<'_>) {
        self.stamp.renew();
        for (i, part) in self.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            part.rules().settle(self, i, model, level, each);
        }
    }

    /// Last changes to the gradients of a step, before anything is made of them.
    pub fn before_update(&self, level: Level, each: Each<'_>) {
        for (i, part) in self.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            part.rules().before_update(self, i, level, each);
        }
    }

    /// By how much to learn faster than LoRA, to begin with.
    pub fn pace(&self) -> f64 {
        let own = self.parts.iter().flatten().find_map(|p| p.rules().pace(p));
        own.unwrap_or(self.method().pace)
    }

    /// Sets all pairs to what LoRA begins with: A random, B zero.
    pub fn start(&mut self, rng: &mut Rng) {
        for (i, part) in self.parts.iter().enumerate() {
            let Some(part) = part.filter(|p| p.effect == Effect::Lora) else { continue };
            start_pair(&part, &mut self.params.get(i), rng);
        }
    }

    /// Sets all numbers to what its effects begin with.
    pub(super) fn begin(&self, model: &Model, level: Level, rng: &mut Rng) {
        for (i, part) in self.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            part.rules().start(self, i, model, level, rng);
        }
    }

    /// The method that all parts together are.
    pub fn method(&self) -> &'static Method {
        Method::of(self.parts.iter().flatten())
    }

    /// All numbers together.
    pub fn len(&self) -> usize {
        self.parts.iter().flatten().map(Part::len).sum()
    }

    /// Those that may learn: all but what is only remembered.
    pub fn learning_len(&self) -> usize {
        self.parts.iter().flatten().map(Part::learning_len).sum()
    }

    /// Whether it has no part.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of a place; empty where there is no part.
    pub fn params(&self) -> &Slots<Vec<f32>> {
        &self.params
    }

    /// Numbers of a place that are laid out as its parameters, such as its gradients, tensor by tensor as PEFT's files have
    /// them, behind the names that these have there.
    pub fn named(&self, names: &Names, place: usize, numbers: &[f32]) -> Vec<(String, Vec<f32>)> {
        let Some(part) = self.parts[place].filter(|_| names.module(place).is_some()) else { return vec![] };
        let mut rest = numbers;
        let each = part.rules().tensors(&part).into_iter().map(|tensor| {
            let (here, behind) = rest.split_at(tensor.len());
            rest = behind;
            (
                names.peft(place, tensor.key).unwrap_or_default(),
                tensor.filed(here, |row| names.row(place, row)),
            )
        });
        each.collect()
    }

    /// Gradients, laid out as the parameters, with what else a step gathers behind them. Panics before [`Layer::learn`].
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

    /// Checks that every part fits the program at its place.
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

    /// The part at a product.
    pub(super) fn part(&self, site: Site) -> Option<&Part> {
        self.parts[..self.sites].get(site.0 as usize)?.as_ref()
    }

    /// Places that are no products, each with its part: all of a kind.
    fn elsewhere(&self, spot: Spot) -> impl Iterator<Item = (usize, &Part, &'static dyn Rules)> {
        let parts = self.parts.iter().enumerate().skip(self.sites);
        parts
            .filter_map(|(i, p)| Some((i, p.as_ref()?, p.as_ref()?.rules())))
            .filter(move |p| p.2.spot() == spot)
    }

    /// The place of a vector, if there is a part.
    fn vector_part(&self, id: VectorId) -> Option<usize> {
        let i = self.sites + id.0 as usize;
        self.parts.get(i)?.is_some_and(|p| p.rules().spot() == Spot::Vector).then_some(i)
    }

    /// The part at a product, and its rules.
    fn at(&self, site: Site) -> Option<(&Part, &'static dyn Rules)> {
        self.part(site).map(|p| (p, p.rules()))
    }

    /// Of 65,536 inputs how many are dropped, and the seed of that.
    pub(super) fn dropping(&self) -> (u64, u64) {
        (self.dropout.rate, self.dropout.seed)
    }

    /// The names of the rows at hand, if inputs are dropped.
    pub(super) fn names(&self) -> Option<RwLockReadGuard<'_, Vec<u64>>> {
        (self.dropout.rate > 0).then(|| self.dropout.rows.read(0))
    }

    /// See [`Dropout::drop_into`].
    pub(super) fn drop_into(&self, site: Site, row: u64, at: usize, x: &[f32], to: &mut [f32]) {
        self.dropout.drop_into(site, row, at, x, to);
    }
}

impl Delta for Layer {
    fn enters(&self, site: Site) -> bool {
        self.at(site).is_some_and(|(_, rules)| rules.enters())
    }

    fn enter(
        &self,
        level: Level,
        site: Site,
        first_row: usize,
        x: Mat<'_>,
        u: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        let (_, rules) = self.at(site).expect("asked only where it enters");
        rules.enter(self, level, site, Some(first_row), x, u, spare);
    }

    fn matrix(&self, site: Site) -> Option<Lent<'_>> {
        self.at(site).filter(|(_, rules)| rules.replaces())?;
        Some(self.params.read(site.0 as usize))
    }

    fn leaves(&self, site: Site) -> bool {
        self.at(site).is_some_and(|(_, rules)| rules.leaves())
    }

    fn leave(&self, site: Site, first: usize, bias: Option<&[f32]>, y: &mut Block<'_>, rows: Range<usize>) {
        let (_, rules) = self.at(site).expect("asked only where it leaves");
        rules.leave(self, site, first, bias, y, rows);
    }

    fn soon(&self, level: Level, site: Site, first: usize, width: usize) {
        if let Some((_, rules)) = self.at(site) {
            rules.soon(self, level, site, first, width);
        }
    }

    fn width(&self, site: Site) -> usize {
        self.at(site).map_or(0, |(part, rules)| rules.width(part))
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
        let (_, rules) = self.at(site).expect("asked only where it has a width");
        rules.prepare(self, level, site, Some(first_row), x, units.clone(), h, units.len(), spare);
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
        let (_, rules) = self.at(site).expect("asked only where it has a width");
        rules.finish(self, level, site, 1.0, h, stride, first, y, rows, spare);
    }

    fn follows(&self, site: Site) -> bool {
        self.at(site).is_some_and(|(_, rules)| rules.follows())
    }

    fn follow(&self, level: Level, site: Site, first_row: usize, y: MatMut<'_>, spare: &mut Vec<f32>) {
        let (_, rules) = self.at(site).expect("asked only where it follows");
        rules.follow(self, level, site, 1.0, Some(first_row), y, spare);
    }

    fn vector(&self, id: VectorId) -> Option<Lent<'_>> {
        self.vector_part(id).map(|i| self.params.read(i))
    }

    fn embeds(&self) -> bool {
        self.elsewhere(Spot::Table).next().is_some() || self.virtual_tokens() > 0
    }

    fn embedding(&self, token: u32, row: &mut [f32]) -> bool {
        let all = self.elsewhere(Spot::Table).chain(self.elsewhere(Spot::Front));
        all.fold(false, |done, (i, _, rules)| done || rules.embedding(self, i, token, row))
    }

    fn head(&self, level: Level, x: &[f32], logits: &mut [f32]) {
        for (i, _, rules) in self.elsewhere(Spot::Table) {
            rules.head(self, i, level, x, logits);
        }
    }

    fn virtual_tokens(&self) -> usize {
        self.elsewhere(Spot::Front).map(|(_, part, rules)| rules.virtual_tokens(part)).sum()
    }

    fn prefix(&self) -> usize {
        self.elsewhere(Spot::Front).map(|(_, part, rules)| rules.prefix(part)).sum()
    }

    fn prefix_row(&self, layer: usize, position: usize, key: &mut [f32], value: &mut [f32]) {
        for (i, _, rules) in self.elsewhere(Spot::Front) {
            rules.prefix_row(self, i, layer, position, key, value);
        }
    }

    fn pairs(&self) -> Option<&dyn Pairs> {
        only_pairs(self).then_some(self)
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
        let (_, rules) = self.at(site).expect("asked only where it learns");
        rules.backward(self, host, site, base, x, dy, dx);
    }

    fn pair_back(&self, site: Site, da: &[f32], db: &[f32]) {
        let part = self.part(site).expect("asked only where it learns");
        let mut grads = self.grads().get(site.into());
        let (a, b) = grads.split_at_mut(part.rank * part.inputs);
        a.iter_mut().zip(da).chain(b.iter_mut().zip(db)).for_each(|(to, g)| *to += g);
    }

    fn learns_vector(&self, id: VectorId) -> bool {
        self.vector_part(id).is_some()
    }

    fn vector_back(&self, id: VectorId, grad: &[f32]) {
        let Some(i) = self.vector_part(id) else { return };
        self.grads().get(i).iter_mut().zip(grad).for_each(|(to, g)| *to += g);
    }

    fn learns_embeddings(&self) -> bool {
        self.embeds()
    }

    fn embedding_back(&self, tokens: &[u32], dy: Mat<'_>) {
        for (i, _, rules) in self.elsewhere(Spot::Table).chain(self.elsewhere(Spot::Front)) {
            rules.embedding_back(self, i, tokens, dy);
        }
    }

    fn head_back(&self, level: Level, x: &[f32], dlogits: &[f32], dx: &mut [f32]) {
        for (i, _, rules) in self.elsewhere(Spot::Table) {
            rules.head_back(self, i, level, x, dlogits, dx);
        }
    }

    fn learns_prefix(&self) -> bool {
        self.prefix() > 0
    }

    fn prefix_back(&self, layer: usize, keys: &[f32], values: &[f32]) {
        for (i, _, rules) in self.elsewhere(Spot::Front) {
            rules.prefix_back(self, i, layer, keys, values);
        }
    }
}
