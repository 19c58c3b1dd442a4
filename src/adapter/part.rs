//! What a layer is at one place: the sizes and the kind of its numbers, which the layer keeps.

use super::effect::{Effect, Rules};
use crate::error::{Error, Findings, Kind, Place};
use crate::model::program::Program;
use std::fmt;
use std::ops::Range;

/// What a layer is at one place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// What its numbers do.
    pub effect: Effect,
    /// Rank r; 0 where there is none.
    pub rank: usize,
    /// Inputs of the product.
    pub inputs: usize,
    /// Outputs of the product.
    pub outputs: usize,
    /// s, what h·Bᵀ is multiplied with.
    pub scale: f32,
    /// The last so many hidden units do not learn: a start that is taken off again.
    pub frozen: usize,
    /// What else its effect must know: see there.
    pub more: [usize; 4],
}

impl Part {
    /// A pair A, B.
    pub fn lora(rank: usize, inputs: usize, outputs: usize, scale: f32) -> Part {
        Part { rank, inputs, outputs, scale, ..Part::default() }
    }

    pub(super) fn rules(&self) -> &'static dyn Rules {
        self.effect.rules()
    }

    /// Numbers in a pair A and B.
    pub(super) fn pair(&self) -> usize {
        self.rank * (self.inputs + self.outputs)
    }

    /// All its numbers.
    pub fn len(&self) -> usize {
        self.rules().len(self)
    }

    /// Those that gradients and moments are laid out as: all but what is only remembered, which is behind them.
    pub fn learning_len(&self) -> usize {
        self.len() - self.rules().remembers(self)
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers that learn, and whether they do so at B's rate (LoRA+).
    pub fn learned(&self) -> [(Range<usize>, bool); 3] {
        self.rules().learned(self)
    }

    /// Positions that it takes in front of a sequence, with rows or without.
    pub fn virtual_tokens(&self) -> usize {
        let rules = self.rules();
        rules.virtual_tokens(self).max(rules.prefix(self))
    }

    /// The scale s of α: α/r, or α/√r with `stabilised` (rsLoRA).
    pub fn scale_of(alpha: f64, rank: usize, stabilised: bool) -> f32 {
        let r = rank as f64;
        (alpha / if stabilised { r.sqrt() } else { r }) as f32
    }

    /// Finds all parts whose shapes are not those of the program at their places.
    pub(super) fn fit(parts: &[Option<Part>], program: &Program, wrong: &mut Findings) {
        if parts.len() != program.sites.len() && parts.len() != program.places() {
            let (expected, found) = (program.places(), parts.len());
            wrong.push(Error::expected(Kind::Mismatch, "places of the layer's base", expected, found));
        }
        for (i, part) in parts.iter().enumerate().take(program.places()) {
            let Some(p) = part else { continue };
            let (found, expected) = ((p.inputs, p.outputs), program.place_shape(i));
            if p.rules().spot() != program.spot(i) {
                let text = format!("a layer of this kind ({:?}) cannot be here", p.effect);
                wrong.push(Error::new(Kind::Mismatch, text).at(Place::Tensor(program.place_name(i).into())));
            } else if found != expected {
                let text = |(i, o)| format!("{i} inputs and {o} outputs");
                let (expected, found) = (text(expected), text(found));
                let place = Place::Tensor(program.place_name(i).into());
                wrong.push(Error::expected(Kind::Mismatch, "layer", expected, found).at(place));
            } else if let Some(error) = p.rules().unfit(p) {
                wrong.push(error.at(Place::Tensor(program.place_name(i).into())));
            }
        }
    }

    /// [`Part::fit`], and ranks that are of use: above 0 and not above what the product itself has.
    pub(super) fn check_all(parts: &[Option<Part>], program: &Program, wrong: &mut Findings) {
        Part::fit(parts, program, wrong);
        for (i, part) in parts.iter().enumerate().take(program.places()) {
            let Some(p) = part else { continue };
            let (learned, most) = (p.rank.saturating_sub(p.frozen), p.rules().most_rank(p));
            if most > 0 && !(1..=most).contains(&learned) {
                let place = Place::Tensor(program.place_name(i).into());
                let range = if most == usize::MAX { "at least 1".into() } else { format!("1 to {most}") };
                wrong.push(Error::expected(Kind::Argument, "rank", range, learned).at(place));
            }
        }
    }
}

/// What decides its numbers besides the start: `rank 8 scale 2`, and what is not LoRA's.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rules().describe(self))?;
        if self.frozen > 0 { write!(f, " frozen {}", self.frozen) } else { Ok(()) }
    }
}
