//! A new layer, as it is asked for: method, places, ranks, scales, start.
//!
//! # Starts that take from the base
//! PiSSA (Meng et al., 2024) and OLoRA (Büyükakyüz, 2024) begin with a part of W itself, B₀A₀, and train on
//! W − s·B₀A₀. The base is mapped and never changes, so that part is taken off beside it: the layer has twice the rank,
//!
//! ```text
//! A = [A₀; A₀]    B = [B₀, −B₀]    ΔW = s·(B·A − B₀A₀), zero at the start; the second half does not learn
//! PiSSA   W = U·S·Vᵀ, the r largest:   A₀ = √(S/s)·Vᵀ    B₀ = U·√(S/s)
//! OLoRA   W = Q·R:                     A₀ = R[..r]       B₀ = Q[.., ..r]
//! ```
//! which is the plain LoRA that PEFT converts such adapters to: files and serving know nothing of it.
//!
//! # Starts of bottlenecks
//! As LLM-Adapters has them: "bert" unless told otherwise, which changes a little from the first step on, or zero. See
//! [`bottleneck`].

use super::adalora::Budget;
use super::bottleneck;
use super::layer::{Effect, Layer, Part};
use super::methods::Method;
use super::names::Names;
use super::svd;
use super::targets::Targets;
use super::tokens::MOST;
use super::vera::Shared;
use super::whole::half;
use crate::error::{Error, Findings, Kind, Result};
use crate::model::Model;
use crate::model::program::{Program, Spot};
use crate::ops::Site;
use crate::rng::Rng;
use crate::tensor::{Team, Threads};
use onlay_kernels::Level;
use onlay_kernels::activate::Activation;
use std::collections::BTreeSet;

/// The widest encoder; no model's rows are as wide.
const WIDEST: usize = 1 << 20;

/// What A and B begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// A random, B zero.
    #[default]
    Zero,
    /// The largest singular vectors of the base.
    Pissa,
    /// The first columns of the base's QR decomposition.
    Olora,
    /// Both matrices of a bottleneck normal, with a deviation of 0.02.
    Bert,
}

impl Init {
    /// The start of that name.
    ///
    /// # Errors
    /// `Argument` naming all there are.
    pub fn named(name: &str) -> Result<Init> {
        match name {
            "zero" => Ok(Init::Zero),
            "pissa" => Ok(Init::Pissa),
            "olora" => Ok(Init::Olora),
            "bert" => Ok(Init::Bert),
            other => {
                let expected = "zero, pissa, olora or bert";
                Err(Error::expected(Kind::Argument, "init", expected, format!("{other:?}")))
            }
        }
    }

    /// Whether it takes from the base.
    fn takes(self) -> bool {
        matches!(self, Init::Pissa | Init::Olora)
    }
}

/// What a bottleneck's sum is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// This number.
    Fixed(f32),
    /// A number for each place, which begins at 1 and learns.
    Learned,
}

impl Scaling {
    /// Reads a number, or `learned`.
    ///
    /// # Errors
    /// `Argument` for something else, 0 and what is not finite.
    pub fn parse(text: &str) -> Result<Scaling> {
        if text == "learned" {
            return Ok(Scaling::Learned);
        }
        let number = text.parse().ok().filter(|s: &f32| s.is_finite() && *s != 0.0);
        number.map(Scaling::Fixed).ok_or_else(|| {
            let expected = "a finite number other than 0, or learned";
            Error::expected(Kind::Argument, "scale", expected, format!("{text:?}"))
        })
    }
}

/// Numbers for some places: `q=8,blk.2-5.down=32`; the first name that means a place counts.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<(Targets, f64)>);

impl Places {
    /// Reads a list.
    ///
    /// # Errors
    /// `Argument` for an entry without a name or a number above 0.
    pub fn parse(list: &str) -> Result<Places> {
        let one = |entry: &str| {
            let bad = || {
                let expected = "names and numbers above 0 between commas, such as q=8,down=32";
                Error::expected(Kind::Argument, "pattern", expected, format!("{entry:?}"))
            };
            let (name, number) = entry.split_once('=').ok_or_else(bad)?;
            let number: f64 = number.trim().parse().map_err(|_| bad())?;
            let fine = number.is_finite() && number > 0.0;
            if fine { Ok((Targets::parse(name)?, number)) } else { Err(bad()) }
        };
        list.split(',').map(one).collect::<Result<_>>().map(Places)
    }

    /// The number of every place that is meant.
    fn of(
        &self,
        select: &dyn Fn(&Targets) -> Result<Vec<bool>>,
        places: usize,
        wrong: &mut Findings,
    ) -> Vec<Option<f64>> {
        let mut all = vec![None; places];
        for (name, number) in &self.0 {
            let Some(selected) = wrong.keep(select(name)) else { continue };
            let meant = all.iter_mut().zip(selected).filter(|(_, on)| *on);
            meant.for_each(|(to, _)| *to = to.or(Some(*number)));
        }
        all
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct New {
    /// The kind of layer.
    pub method: &'static Method,
    /// Where; unless told, where the method is fastened.
    pub targets: Option<Targets>,
    /// Rank, where no other is given.
    pub rank: usize,
    /// α, where no other is given; twice the rank of each place if absent.
    pub alpha: Option<f64>,
    /// α/√r instead of α/r.
    pub stabilised: bool,
    /// Ranks of some places.
    pub ranks: Places,
    /// αs of some places.
    pub alphas: Places,
    /// What A and B begin with.
    pub init: Init,
    /// The tokens whose embeddings learn.
    pub tokens: Vec<u32>,
    /// How ranks are given up, by a method that does so; its defaults if absent.
    pub budget: Option<Budget>,
    /// Virtual tokens, of methods in front of a sequence; unless told, 20.
    pub virtual_tokens: Option<usize>,
    /// Hidden numbers of the network through which prefix and ptuning learn; unless told, none for prefix, and as many as the
    /// model is wide for ptuning. 0: none.
    pub encoder: Option<usize>,
    /// Of a bottleneck: tanh unless told.
    pub activation: Option<Activation>,
    /// Of a bottleneck: 1 unless told.
    pub scaling: Option<Scaling>,
    /// Of what is random.
    pub seed: u64,
}

impl New {
    /// Rank 16, α twice the rank, on all products.
    pub fn of(method: &'static Method) -> New {
        New {
            method,
            targets: None,
            rank: 16,
            alpha: None,
            stabilised: false,
            ranks: Places::default(),
            alphas: Places::default(),
            init: if method.activated() { Init::Bert } else { Init::Zero },
            tokens: Vec::new(),
            budget: None,
            virtual_tokens: None,
            encoder: None,
            activation: None,
            scaling: None,
            seed: 0,
        }
    }

    /// The layer before its first step. PiSSA and OLoRA look at every matrix; `threads` share that.
    ///
    /// # Errors
    /// `Argument`: everything that cannot be.
    pub fn layer(&self, model: &Model, level: Level, threads: impl Into<Threads>) -> Result<Layer> {
        let (program, names) = (model.program(), Names::of(model.program()));
        let mut wrong = Findings::default();
        let targets =
            self.targets.as_ref().map_or_else(|| Targets::parse(self.method.targets), |t| Ok(t.clone()));
        let spot = self.method.spot();
        let what = match spot {
            Spot::Product => "a product of this model",
            Spot::Vector => "a norm of this model",
            Spot::Table => "tokens, the embedding table",
            Spot::Front => "front, what stands before a sequence",
        };
        let select = |t: &Targets| t.select_where(program, what, |i| program.spot(i) == spot);
        let selected = wrong.keep(targets.and_then(|t| select(&t))).unwrap_or_default();
        let of = |places: &Places, wrong: &mut Findings| places.of(&select, program.places(), wrong);
        let (ranks, alphas) = (of(&self.ranks, &mut wrong), of(&self.alphas, &mut wrong));
        if let Some(rank) = ranks.iter().flatten().find(|r| r.fract() != 0.0) {
            wrong.push(Error::expected(Kind::Argument, "rank of a pattern", "a whole number", rank));
        }
        let activated = self.method.activated();
        if self.init.takes() && self.method.name != "lora" {
            let text = format!("init: pissa and olora are starts of lora, not of {}", self.method.name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        if self.init == Init::Bert && !activated {
            let text = format!("init: bert is a start of parallel and series, not of {}", self.method.name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        if !activated {
            let given = [("activation", self.activation.is_some()), ("scale", self.scaling.is_some())];
            for (what, _) in given.iter().filter(|(_, given)| *given) {
                let text = format!("{what}: {} has none; parallel and series have", self.method.name);
                wrong.push(Error::new(Kind::Argument, text));
            }
        }
        let patterns = !(self.ranks.0.is_empty() && self.alphas.0.is_empty());
        if patterns && !self.method.patterned() {
            let text = format!("{} has no ranks and alphas of places", self.method.name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        if (self.alpha.is_some() || self.stabilised) && !self.method.scaled() {
            wrong.push(Error::new(Kind::Argument, format!("{} has no alpha", self.method.name)));
        } else if self.stabilised && !self.method.paired {
            let text = format!("{} counts alpha/rank, never alpha/√rank", self.method.name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        let more = self.lead(program, &mut wrong);
        let part = |(i, on): (usize, &bool)| {
            let (inputs, outputs) = program.place_shape(i);
            let rank = ranks[i].map_or(self.rank, |r| r as usize);
            let alpha = alphas[i].or(self.alpha).unwrap_or(2.0 * rank as f64);
            let scale = Part::scale_of(alpha, rank, self.stabilised);
            let mut bare = Part { more, ..Part::lora(rank, inputs, outputs, scale) };
            if activated {
                let learned = self.scaling == Some(Scaling::Learned);
                bare.scale = if let Some(Scaling::Fixed(s)) = self.scaling { s } else { 1.0 };
                bare.more = bottleneck::more(self.activation.unwrap_or_default(), learned);
            }
            on.then(|| self.method.part(&names, i, bare))
        };
        let mut parts: Vec<Option<Part>> = selected.iter().enumerate().map(part).collect();
        if (self.method.scaled() || activated)
            && let Some(p) = parts.iter().flatten().find(|p| !(p.scale.is_finite() && p.scale != 0.0))
        {
            wrong.push(Error::expected(Kind::Argument, "scale", "a finite number other than 0", p.scale));
        }
        if self.method.name == "hft" {
            let learns = half_of(&names, &selected, self.seed);
            parts.iter_mut().zip(learns).filter(|(_, l)| !l).for_each(|(p, _)| *p = None);
        }
        self.check_tokens(program.vocabulary, &mut wrong);
        if self.budget.is_some() && !self.method.allocates() {
            let text = format!("{} gives up no ranks: there is no budget of them", self.method.name);
            wrong.push(Error::new(Kind::Argument, text));
        }
        if self.method.has(Effect::Rows) {
            parts.iter_mut().flatten().for_each(|p| p.rank = self.tokens.len());
        }
        if wrong.is_empty() {
            Part::check_all(&parts, program, &mut wrong);
        }
        wrong.refuse("the layer cannot be made")?;
        if self.init.takes() {
            for part in parts.iter_mut().flatten() {
                (part.rank, part.frozen) = (2 * part.rank, part.rank);
            }
        }
        let mut layer = Layer::over(program, parts);
        if self.method.name == "vera" {
            let shared = Shared::random(&names, layer.parts(), self.rank, &mut Rng::new(self.seed));
            layer = layer.sharing(shared);
        }
        for (i, part) in layer.parts().iter().enumerate().filter(|(i, _)| *i == program.table_place()) {
            let Some(part) = part else { continue };
            let mut numbers = layer.params().get(i);
            numbers[..part.rank].iter_mut().zip(&self.tokens).for_each(|(to, t)| *to = *t as f32);
        }
        if !self.init.takes() {
            layer.begin(model, level, &mut Rng::new(self.seed));
            if self.init == Init::Zero {
                bottleneck::start_at_zero(&layer, &mut Rng::new(self.seed));
            }
            let allocates = self.method.allocates();
            return if allocates { layer.allocating(self.budget.unwrap_or_default()) } else { Ok(layer) };
        }
        let here: Vec<usize> = (0..layer.parts().len()).filter(|i| layer.parts()[*i].is_some()).collect();
        let mut team = Team::new(threads)?;
        team.each(here.len(), |_, at| layer.take_from(model, level, self.init, here[at], self.seed));
        Ok(layer)
    }
}

impl New {
    /// `Part::more` of what is in front of a sequence; nothing of others.
    fn lead(&self, program: &Program, wrong: &mut Findings) -> [usize; 4] {
        let name = self.method.name;
        if self.virtual_tokens.is_some() && !self.method.leads() {
            wrong.push(Error::new(Kind::Argument, format!("{name} has no virtual tokens")));
        }
        if self.encoder.is_some() && !self.method.encodes() {
            wrong.push(Error::new(Kind::Argument, format!("{name} has no encoder")));
        }
        if !self.method.leads() {
            return [0; 4];
        }
        let (tokens, most) = (self.virtual_tokens.unwrap_or(20), program.context.max(2) - 1);
        if !(1..=most).contains(&tokens) {
            let range = format!("1 to {most}");
            wrong.push(Error::expected(Kind::Argument, "virtual tokens", range, tokens));
        }
        let otherwise = if name == "ptuning" { program.width } else { 0 };
        let (hidden, most) = (self.encoder.unwrap_or(otherwise), WIDEST);
        if hidden > most {
            wrong.push(Error::expected(Kind::Argument, "encoder", format!("at most {most}"), hidden));
        }
        [tokens, hidden, program.attention.key_heads * program.attention.head, 0]
    }

    fn check_tokens(&self, vocabulary: usize, wrong: &mut Findings) {
        if !self.method.has(Effect::Rows) {
            if !self.tokens.is_empty() {
                let text = format!("{} has no tokens of its own", self.method.name);
                wrong.push(Error::new(Kind::Argument, text));
            }
            return;
        }
        if self.tokens.is_empty() {
            wrong.push(Error::expected(Kind::Argument, "tokens to learn", "at least one", "none"));
        }
        let most = vocabulary.min(MOST as usize);
        let mut seen = BTreeSet::new();
        for token in &self.tokens {
            if *token as usize >= most {
                wrong.push(Error::expected(Kind::Argument, "token", format!("below {most}"), token));
            }
            if !seen.insert(token) {
                wrong.push(Error::new(Kind::Argument, format!("token {token} is there twice")));
            }
        }
    }
}

/// Which of the selected products learn in a round of half fine-tuning.
fn half_of(names: &Names, selected: &[bool], seed: u64) -> Vec<bool> {
    let attention = |i| names.module(i).is_some_and(|m| m.contains("self_attn"));
    half(selected, |i| Some((names.layer(i)?, attention(i))), seed)
}

impl Layer {
    /// Another round of half fine-tuning (`hft`): the half of the blocks' matrices that `seed` draws learns, what was
    /// trained before stays as it is, and both are the new layer.
    ///
    /// # Errors
    /// `Argument` for a layer that is not of whole matrices.
    pub fn next_half(&self, model: &Model, level: Level, seed: u64) -> Result<Layer> {
        if self.parts().iter().flatten().any(|p| p.effect != Effect::Whole) {
            let found = self.method().name;
            return Err(Error::expected(Kind::Argument, "layer of another round", "hft or full", found));
        }
        let (program, names) = (model.program(), Names::of(model.program()));
        let blocks = Targets::parse(self.method().targets)?.select(program)?;
        let learns = half_of(&names, &blocks, seed);
        let part = |(i, learns): (usize, bool)| {
            let (inputs, outputs) = program.place_shape(i);
            let new = Part { effect: Effect::Whole, inputs, outputs, ..Part::default() };
            let old = self.parts().get(i).copied().flatten().map(|p| Part { frozen: outputs, ..p });
            if learns { Some(new) } else { old }
        };
        let layer = Layer::over(program, learns.into_iter().enumerate().map(part).collect());
        layer.begin(model, level, &mut Rng::new(seed));
        for (i, _) in self.parts().iter().enumerate().filter(|(_, p)| p.is_some()) {
            layer.params().get(i).copy_from_slice(&self.params().read(i));
        }
        Ok(layer)
    }

    /// Begins a pair with a part of the base, and takes that part off.
    fn take_from(&self, model: &Model, level: Level, init: Init, i: usize, seed: u64) {
        let part =
            self.parts()[i].filter(|p| p.effect == Effect::Lora).expect("asked only where it is a pair");
        let (r, k, n) = (part.frozen, part.inputs, part.outputs);
        let matrix = model.bound().matrix(model.program().matrix_at(Site(i as u32)));
        let mut w = vec![0.0; k * n];
        w.chunks_exact_mut(k).enumerate().for_each(|(row, to)| matrix.decode(level, row, 0, to));
        let (mut b, mut a) = match init {
            Init::Olora => svd::first_of_qr(&w, n, k, r),
            _ => {
                let top = svd::largest(&w, n, k, r, seed);
                let root = |v: &f64| (v / f64::from(part.scale).abs()).sqrt();
                let by = |vectors: Vec<Vec<f64>>| {
                    let each = vectors.into_iter().zip(&top.values);
                    each.map(|(v, s)| v.iter().map(|v| v * root(s)).collect()).collect::<Vec<Vec<f64>>>()
                };
                (by(top.left), by(top.right))
            }
        };
        // The sign of a pair is free; this one does not depend on how it was computed.
        for (b, a) in b.iter_mut().zip(&mut a) {
            let largest = a.iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs()));
            if largest.is_some_and(|v| v < 0.0) {
                b.iter_mut().chain(a).for_each(|v| *v = -*v);
            }
        }
        let mut numbers = self.params().get(i);
        let (to_a, to_b) = numbers.split_at_mut(2 * r * k);
        for j in 0..r {
            for half in [j, r + j] {
                let sign = if half < r { 1.0 } else { -1.0 };
                to_a[half * k..(half + 1) * k].iter_mut().zip(&a[j]).for_each(|(to, v)| *to = *v as f32);
                to_b[half * n..(half + 1) * n]
                    .iter_mut()
                    .zip(&b[j])
                    .for_each(|(to, v)| *to = (sign * v) as f32);
            }
        }
    }
}
