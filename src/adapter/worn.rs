//! What a session wears: some adapters at once, each with a weight.
//!
//! # Forward
//! ```text
//! y = y₀ + Σᵢ wᵢ·(yᵢ − y₀)          y₀ the base's product, yᵢ that with adapter i; in the order of the stack
//! ```
//! For LoRA that is `W·x + Σᵢ wᵢ·sᵢ·(x·Aᵢᵀ)·Bᵢᵀ`; gains of outputs (DoRA, (IA)³) add up to `1 + Σᵢ wᵢ·(gᵢ − 1)` once, here,
//! and so do those of inputs. Both at one product would need a product with the base for each: that is refused.
//!
//! One adapter of weight 1 is that adapter, bit for bit; nothing worn is no delta at all. The hidden numbers of all
//! adapters lie side by side, so a stack costs what one adapter of the ranks together costs.

use super::layer::{Effect, turn};
use super::open::Adapter;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::Program;
use crate::ops::{Delta, Site};
use crate::tensor::{Block, Mat};
use onlay_kernels::Level;
use std::ops::Range;
use std::sync::Arc;

/// A weighted stack of adapters of one base.
#[derive(Clone, Debug, Default)]
pub struct Worn {
    stack: Vec<(Arc<Adapter>, f32)>,
    /// For each site: what x is multiplied with.
    entering: Vec<Option<Vec<f32>>>,
    /// For each site: what W·x is multiplied with, and what the bias is.
    leaving: Vec<Option<Leaving>>,
}

/// Gains of outputs.
#[derive(Clone, Debug)]
struct Leaving {
    product: Vec<f32>,
    /// Of the bias; absent: 1.
    bias: Option<Vec<f32>>,
}

impl Worn {
    /// A stack for this program; adapters of weight 0 are left out.
    ///
    /// # Errors
    /// Everything that does not fit: `Mismatch` for adapters of another program, `Argument` for weights that are not
    /// finite.
    pub fn new(program: &Program, mut stack: Vec<(Arc<Adapter>, f32)>) -> Result<Worn> {
        let mut wrong = Findings::default();
        for (adapter, weight) in &stack {
            let weighted = adapter.parts().iter().flatten().map(|p| p.scale * weight);
            if !weighted.chain([*weight]).all(f32::is_finite) {
                let what = format!("weight of {}", adapter.name());
                wrong.push(Error::expected(Kind::Argument, &what, "a finite number", weight));
            }
            wrong.keep(adapter.fits(program));
        }
        wrong.refuse("the adapters cannot be worn")?;
        let mut wrong = Findings::default();
        stack.retain(|(_, weight)| *weight != 0.0);
        let mut worn = Worn { stack, entering: Vec::new(), leaving: Vec::new() };
        for (i, site) in program.sites.iter().enumerate() {
            let inputs = worn.gains(i, site.inputs, |effect| effect == Effect::Inputs);
            let outputs =
                worn.gains(i, site.outputs, |effect| matches!(effect, Effect::Dora | Effect::Outputs));
            let of_bias = worn.gains(i, site.outputs, |effect| effect == Effect::Outputs);
            if inputs.is_some() && outputs.is_some() {
                let text = "gains of its inputs and of its outputs cannot be worn together";
                wrong.push(Error::new(Kind::Unsupported, text).at(Place::Tensor(site.name.clone())));
            }
            worn.entering.push(inputs);
            worn.leaving.push(outputs.map(|product| Leaving { product, bias: of_bias }));
        }
        wrong.refuse("the adapters cannot be worn").map(|()| worn)
    }

    /// `1 + Σ w·(g − 1)` over the adapters whose effect at a site is asked for; the gains themselves of one of weight 1.
    fn gains(&self, site: usize, n: usize, asked: fn(Effect) -> bool) -> Option<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        for (adapter, weight) in &self.stack {
            let layer = adapter.lora();
            let Some(gains) = layer.gains(Site(site as u32), asked) else { continue };
            match &mut sum {
                None if *weight == 1.0 => sum = Some(gains),
                sum => {
                    let sum = sum.get_or_insert_with(|| vec![1.0; n]);
                    sum.iter_mut().zip(gains).for_each(|(s, g)| *s += weight * (g - 1.0));
                }
            }
        }
        sum
    }

    /// Whether the bias of a site is changed.
    pub(super) fn scales_bias(&self, site: Site) -> bool {
        self.leaving[site.0 as usize].as_ref().is_some_and(|l| l.bias.is_some())
    }

    /// What x is multiplied with at a site, and what W·x is.
    pub(super) fn gains_at(&self, site: Site) -> (Option<&[f32]>, Option<&[f32]>) {
        let i = site.0 as usize;
        (self.entering[i].as_deref(), self.leaving[i].as_ref().map(|l| &l.product[..]))
    }

    /// What the model's products are told; `None` if nothing is worn.
    pub fn delta(&self) -> Option<&dyn Delta> {
        (!self.stack.is_empty()).then_some(self)
    }

    /// The adapters and their weights.
    pub fn stack(&self) -> &[(Arc<Adapter>, f32)] {
        &self.stack
    }

    /// Hidden numbers per row that it needs of a runner's plan (`Options::hidden`).
    pub fn hidden(&self, program: &Program) -> usize {
        program.widest(|site| self.width(site))
    }

    /// The adapters with a part at a site, each with its weight and the place of its hidden numbers.
    fn at(&self, site: Site) -> impl Iterator<Item = (&Adapter, f32, usize, usize)> {
        self.stack
            .iter()
            .map(move |(a, weight)| (&**a, *weight, a.lora().width(site)))
            .filter(|(.., width)| *width > 0)
            .scan(0, |next, (a, weight, width)| {
                let first = *next;
                *next += width;
                Some((a, weight, first, width))
            })
    }
}

impl Delta for Worn {
    fn enters(&self, site: Site) -> bool {
        self.entering.get(site.0 as usize).is_some_and(Option::is_some)
    }

    fn enter(&self, _: Level, site: Site, _: usize, x: Mat<'_>, u: &mut [f32], _: &mut Vec<f32>) {
        let gains = self.entering[site.0 as usize].as_deref();
        super::ia3::scale(gains.expect("asked only where it enters"), x.data(), u);
    }

    fn leaves(&self, site: Site) -> bool {
        self.leaving.get(site.0 as usize).is_some_and(Option::is_some)
    }

    fn leave(&self, site: Site, first: usize, bias: Option<&[f32]>, y: &mut Block<'_>, rows: Range<usize>) {
        let gains = self.leaving[site.0 as usize].as_ref();
        let gains = gains.expect("asked only where it leaves");
        turn(&gains.product, gains.bias.as_deref(), first, bias, y, rows);
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
        _: &mut Vec<f32>,
    ) {
        for (adapter, _, first, width) in self.at(site) {
            let (from, to) = (units.start.max(first), units.end.min(first + width));
            if from < to {
                let h = &mut h[from - units.start..];
                adapter.lora().hidden(level, site, x, from - first..to - first, h, units.len());
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
        for (adapter, weight, at, _) in self.at(site) {
            adapter.lora().low_rank(level, site, weight, &h[at..], stride, first, y, rows.clone(), spare);
        }
    }
}
