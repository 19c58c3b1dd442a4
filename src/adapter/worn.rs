//! What a session wears: some adapters at once, each with a weight.
//!
//! # Forward
//! ```text
//! y = W·x + Σᵢ wᵢ·sᵢ·(x·Aᵢᵀ)·Bᵢᵀ          adapters in the order of the stack
//! ```
//! One adapter of weight 1 is that adapter, bit for bit; nothing worn is no delta at all. The hidden numbers of all
//! adapters lie side by side, so a stack costs what one adapter of the ranks together costs.

use super::lora::low_rank;
use super::open::Adapter;
use crate::error::{Error, Findings, Kind, Result};
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
        stack.retain(|(_, weight)| *weight != 0.0);
        Ok(Worn { stack })
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
            let lora = adapter.lora();
            let part = lora.part(site).expect("a width comes from a part");
            let params = lora.params().read(site.0 as usize);
            low_rank(
                level,
                part,
                part.scale * weight,
                &params,
                &h[at..],
                stride,
                first,
                y,
                rows.clone(),
                spare,
            );
        }
    }
}
