//! Putting the pairs of an adapter file together into a layer, whatever kind of file they come from.
//!
//! Shapes first, all of them, then numbers: nothing is allocated for a file that will be refused for its shapes, and
//! what is allocated is the file's own numbers as f32.

use super::lora::{Lora, Part};
use super::names::Names;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::{Program, SiteInfo};
use crate::ops::Site;

/// Reads all numbers of a matrix, row after row.
type Numbers<'a> = Box<dyn Fn() -> Result<Vec<f32>> + 'a>;

/// One matrix of a pair, as a file has it: A `[r][inputs]` or B `[outputs][r]`.
pub(super) struct Half<'a> {
    /// The tensor's name there.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Numbers of a row.
    pub cols: usize,
    /// The numbers.
    pub numbers: Numbers<'a>,
}

/// Which matrix of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// `[r][inputs]`
    A,
    /// `[outputs][r]`
    B,
}

/// What a reader says about a pair once its rank is known.
pub(super) struct Terms {
    /// [`Part::scale`]
    pub scale: f32,
    /// Rows of B are in the order of the converted model, not GGUF's.
    pub moved: bool,
}

type Pair<'a> = [Option<Half<'a>>; 2];

/// The pairs found so far, and everything found wrong.
pub(super) struct Gather<'a> {
    program: &'a Program,
    names: &'a Names,
    pairs: Vec<Pair<'a>>,
    /// Pairs of which a half was wrong: nothing more is said about them.
    spoilt: Vec<bool>,
    /// What is wrong with the file.
    pub wrong: Findings,
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    pub(super) fn new(program: &'a Program, names: &'a Names, wrong: Findings) -> Self {
        let n = program.sites.len();
        let pairs = (0..n).map(|_| [None, None]).collect();
        Gather { program, names, pairs, spoilt: vec![false; n], wrong }
    }

    /// Takes a matrix, or what is wrong with it; `tensor` is its name in the file.
    pub(super) fn put(&mut self, site: Site, which: Which, tensor: Place, half: Result<Half<'a>>) {
        let i = site.0 as usize;
        match (half, &mut self.pairs[i][which as usize]) {
            (Err(e), _) => {
                self.spoilt[i] = true;
                self.wrong.push(e.at(tensor));
            }
            (Ok(_), Some(first)) => {
                let text = format!("belongs to the same product as {}", first.name);
                self.wrong.push(Error::new(Kind::Format, text).at(tensor));
            }
            (Ok(half), slot) => *slot = Some(half),
        }
    }

    /// The layer. `terms` is asked once for every pair, with its rank; `mend` may change the numbers of B.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
    pub(super) fn finish(
        mut self,
        terms: impl Fn(Site, usize) -> Result<Terms>,
        mend: impl Fn(Site, &mut [f32]) -> Result<()>,
    ) -> Result<Lora> {
        const REFUSED: &str = "the adapter does not fit this base";
        let mut parts = vec![None; self.pairs.len()];
        let mut moved = vec![false; self.pairs.len()];
        for (i, pair) in self.pairs.iter().enumerate().filter(|(i, _)| !self.spoilt[*i]) {
            let info = &self.program.sites[i];
            let Some(rank) = rank_of(info, pair, &mut self.wrong) else { continue };
            let Some(terms) = self.wrong.keep(terms(Site(i as u32), rank)) else { continue };
            moved[i] = terms.moved;
            parts[i] = Some(Part { rank, inputs: info.inputs, outputs: info.outputs, scale: terms.scale });
        }
        if self.wrong.is_empty() && self.pairs.iter().all(|p| p[0].is_none()) {
            self.wrong.push(Error::expected(
                Kind::Format,
                "matrices of the layer",
                "at least one pair",
                "none",
            ));
        }
        self.wrong.refuse(REFUSED)?;
        let mut wrong = Findings::default();
        let lora = Lora::new(parts);
        for (i, pair) in self.pairs.iter().enumerate() {
            let (Some(part), [Some(a), Some(b)]) = (lora.parts()[i], pair) else { continue };
            let site = Site(i as u32);
            let mut params = lora.params().get(i);
            let (to_a, to_b) = params.split_at_mut(part.rank * part.inputs);
            if let Some(numbers) = wrong.keep(finite(a)) {
                to_a.copy_from_slice(&numbers);
            }
            let mended = finite(b).and_then(|mut numbers| mend(site, &mut numbers).map(|()| numbers));
            let Some(numbers) = wrong.keep(mended) else { continue };
            for (row, numbers) in numbers.chunks_exact(part.rank).enumerate() {
                let row = if moved[i] { self.names.row(site, row) } else { row };
                numbers.iter().enumerate().for_each(|(j, v)| to_b[j * part.outputs + row] = *v);
            }
        }
        wrong.refuse(REFUSED).map(|()| lora)
    }
}

/// The rank of a pair whose shapes fit; `None` where there is no pair, or a wrong one.
fn rank_of(info: &SiteInfo, pair: &Pair<'_>, wrong: &mut Findings) -> Option<usize> {
    let (a, b) = match pair {
        [None, None] => return None,
        [Some(half), None] | [None, Some(half)] => {
            let other = if pair[0].is_some() { "B" } else { "A" };
            let error = Error::new(Kind::Format, format!("the other half of the pair, {other}, is missing"));
            wrong.push(error.at(Place::Tensor(half.name.clone())));
            return None;
        }
        [Some(a), Some(b)] => (a, b),
    };
    let mut fits = true;
    let mut want = |half: &Half<'_>, what: &str, expected: usize, found: usize| {
        if expected != found {
            let error = Error::expected(Kind::Mismatch, what, expected, found);
            wrong.push(error.at(Place::Tensor(half.name.clone())));
            fits = false;
        }
    };
    want(a, "inputs", info.inputs, a.cols);
    want(b, "outputs", info.outputs, b.rows);
    want(b, "rank, as in the other half", a.rows, b.cols);
    if a.rows == 0 {
        let error = Error::expected(Kind::Format, "rank", "at least 1", 0);
        wrong.push(error.at(Place::Tensor(a.name.clone())));
        fits = false;
    }
    fits.then_some(a.rows)
}

/// The numbers of a half, none of them infinite or undefined.
fn finite(half: &Half<'_>) -> Result<Vec<f32>> {
    let numbers = (half.numbers)()?;
    match numbers.iter().position(|v| !v.is_finite()) {
        None => Ok(numbers),
        Some(i) => {
            let what = format!("number at row {}, column {}", i / half.cols, i % half.cols);
            let error = Error::expected(Kind::Numeric, &what, "finite", numbers[i]);
            Err(error.at(Place::Tensor(half.name.clone())))
        }
    }
}
