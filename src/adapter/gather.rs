//! Putting the matrices of an adapter file together into a layer, whatever kind of file they come from.
//!
//! Shapes first, all of them, then numbers: nothing is allocated for a file that will be refused for its shapes, and
//! what is allocated is the file's own numbers as f32.

use super::layer::{Effect, Layer, Part};
use super::methods::Method;
use super::names::Names;
use super::vera::Shared;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::{Program, SiteInfo};
use crate::ops::Site;

/// Reads all numbers of a matrix, row after row.
type Numbers<'a> = Box<dyn Fn() -> Result<Vec<f32>> + 'a>;

/// One matrix of a site, as a file has it; see [`Which`].
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

/// Which matrix of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// `[r][inputs]`
    A,
    /// `[outputs][r]`
    B,
    /// The lengths of DoRA, `[1][outputs]`.
    M,
    /// The factors of (IA)³, `[outputs][1]` or `[1][inputs]`.
    L,
    /// λd of VeRA, `[1][r]`.
    D,
    /// λb of VeRA, `[1][outputs]`.
    V,
}

/// What a reader says about a pair once its rank is known.
pub(super) struct Terms {
    /// [`Part::scale`]
    pub scale: f32,
    /// Rows of B are in the order of the converted model, not GGUF's.
    pub moved: bool,
}

/// What there is of a site, in the order of [`Which`].
type Pair<'a> = [Option<Half<'a>>; 6];

/// The pairs found so far, and everything found wrong.
pub(super) struct Gather<'a> {
    program: &'a Program,
    names: &'a Names,
    pairs: Vec<Pair<'a>>,
    /// Pairs of which a half was wrong: nothing more is said about them.
    spoilt: Vec<bool>,
    /// A `[r][inputs]` and B `[outputs][r]` of VeRA.
    shared: [Option<Half<'a>>; 2],
    /// What is wrong with the file.
    pub wrong: Findings,
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    pub(super) fn new(program: &'a Program, names: &'a Names, wrong: Findings) -> Self {
        let n = program.sites.len();
        let pairs = (0..n).map(|_| [const { None }; 6]).collect();
        Gather { program, names, pairs, spoilt: vec![false; n], shared: [None, None], wrong }
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

    /// Takes a matrix that all products share, or what is wrong with it.
    pub(super) fn put_shared(&mut self, which: Which, tensor: Place, half: Result<Half<'a>>) {
        if let Some(half) = self.wrong.keep(half.map_err(|e| e.at(tensor))) {
            self.shared[which as usize] = Some(half);
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
    ) -> Result<Layer> {
        const REFUSED: &str = "the adapter does not fit this base";
        let mut parts = vec![None; self.pairs.len()];
        let mut moved = vec![false; self.pairs.len()];
        for (i, pair) in self.pairs.iter().enumerate().filter(|(i, _)| !self.spoilt[*i]) {
            let info = &self.program.sites[i];
            let Some((effect, rank)) = effect_of(info, pair, &mut self.wrong) else { continue };
            let own = if effect == Effect::Vera { 0 } else { rank };
            let Some(terms) = self.wrong.keep(terms(Site(i as u32), own)) else { continue };
            moved[i] = terms.moved;
            parts[i] = Some(match rank {
                _ if effect == Effect::Vera => {
                    Part { effect, ..Part::lora(rank, info.inputs, info.outputs, 1.0) }
                }
                0 => Part { effect, inputs: info.inputs, outputs: info.outputs, ..Part::default() },
                _ => Part { effect, ..Part::lora(rank, info.inputs, info.outputs, terms.scale) },
            });
        }
        if self.wrong.is_empty() && parts.iter().all(Option::is_none) {
            let error = Error::expected(Kind::Format, "matrices of the layer", "at least one pair", "none");
            self.wrong.push(error);
        }
        let method = Method::of(parts.iter().flatten());
        for (part, info) in parts.iter().zip(&self.program.sites) {
            let Some(other) = part.as_ref().map(|p| Method::of([p].into_iter())) else { continue };
            if other.name != method.name {
                let error = Error::expected(Kind::Format, "method of all products", method.name, other.name);
                self.wrong.push(error.at(Place::Tensor(info.name.clone())));
            }
        }
        let shared = self.shared_pair(&parts);
        self.wrong.refuse(REFUSED)?;
        let mut wrong = Findings::default();
        let mut lora = Layer::new(parts);
        if let Some((rank, a, b)) = shared {
            lora = lora.sharing(Shared::new(self.names, rank, a, b));
        }
        for (i, pair) in self.pairs.iter().enumerate() {
            let Some(part) = lora.parts()[i] else { continue };
            let site = Site(i as u32);
            let mut params = lora.params().get(i);
            let (pair_of, vector) = params.split_at_mut(part.pair());
            // after the pair: λd as it is, then what lies on inputs or outputs
            let (plain, vector) =
                vector.split_at_mut(if part.effect == Effect::Vera { part.rank } else { 0 });
            if let Some(d) = pair[Which::D as usize].as_ref().and_then(|d| wrong.keep(finite(d))) {
                plain.copy_from_slice(&d);
            }
            let on = [Which::M, Which::L, Which::V].iter().find_map(|w| pair[*w as usize].as_ref());
            if let Some(numbers) = on.and_then(|v| wrong.keep(finite(v))) {
                let rows = moved[i] && part.effect != Effect::Inputs;
                for (row, v) in numbers.into_iter().enumerate() {
                    vector[if rows { self.names.row(site, row) } else { row }] = v;
                }
            }
            let [Some(a), Some(b), ..] = pair else { continue };
            let (to_a, to_b) = pair_of.split_at_mut(part.rank * part.inputs);
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

impl Gather<'_> {
    /// The pair of VeRA, B transposed, if there are parts that share one.
    fn shared_pair(&mut self, parts: &[Option<Part>]) -> Option<(usize, Vec<f32>, Vec<f32>)> {
        let with: Vec<&Part> = parts.iter().flatten().filter(|p| p.effect == Effect::Vera).collect();
        let (a, b) = match &self.shared {
            [None, None] if with.is_empty() => return None,
            [Some(a), Some(b)] if !with.is_empty() => (a, b),
            _ => {
                let text = "the shared pair and the vectors of VeRA come together (PEFT keeps the pair with \
                            save_projection)";
                self.wrong.push(Error::new(Kind::Format, text));
                return None;
            }
        };
        let mut fits = true;
        let mut want = |half: &Half<'_>, what: &str, fine: bool, expected: String, found: usize| {
            if !fine {
                let error = Error::expected(Kind::Mismatch, what, expected, found);
                self.wrong.push(error.at(Place::Tensor(half.name.clone())));
                fits = false;
            }
        };
        let most = |f: fn(&Part) -> usize| with.iter().map(|p| f(p)).max().unwrap_or(0);
        let (inputs, outputs) = (most(|p| p.inputs), most(|p| p.outputs));
        want(a, "inputs", a.cols >= inputs, format!("at least {inputs}"), a.cols);
        want(b, "outputs", b.rows >= outputs, format!("at least {outputs}"), b.rows);
        want(b, "rank, as in the other half", b.cols == a.rows, a.rows.to_string(), b.cols);
        for part in &with {
            want(a, "rank, as of λd", part.rank == a.rows, part.rank.to_string(), a.rows);
        }
        if !fits {
            return None;
        }
        let (rank, rows) = (a.rows, b.rows);
        let (a, b) = (self.wrong.keep(finite(a)), self.wrong.keep(finite(b)));
        let (a, b) = (a?, b?);
        Some((
            rank,
            a,
            (0..rank).flat_map(|j| (0..rows).map(move |o| (o, j))).map(|(o, j)| b[o * rank + j]).collect(),
        ))
    }
}

/// What matrices whose shapes fit do, and the rank of a pair (0: none); `None` where there is nothing, or it is wrong.
fn effect_of(info: &SiteInfo, pair: &Pair<'_>, wrong: &mut Findings) -> Option<(Effect, usize)> {
    let (a, b) = match pair {
        [None, None, None, None, None, None] => return None,
        [None, None, None, None, Some(d), Some(b)] => {
            if b.rows * b.cols != info.outputs {
                let error = Error::expected(Kind::Mismatch, "λb", info.outputs, b.rows * b.cols);
                wrong.push(error.at(Place::Tensor(b.name.clone())));
                return None;
            }
            return Some((Effect::Vera, d.rows * d.cols));
        }
        [.., Some(half), None] | [.., None, Some(half)] | [.., Some(half), Some(_)] => {
            let error = Error::new(Kind::Format, "λd and λb of VeRA come together, and with nothing else");
            wrong.push(error.at(Place::Tensor(half.name.clone())));
            return None;
        }
        [None, None, None, Some(l), None, None] => {
            let effect = match (l.rows, l.cols) {
                (rows, 1) if rows == info.outputs => Effect::Outputs,
                (1, cols) if cols == info.inputs => Effect::Inputs,
                (rows, cols) => {
                    let expected = format!("{} × 1, or 1 × {}", info.outputs, info.inputs);
                    let error =
                        Error::expected(Kind::Mismatch, "shape", expected, format!("{rows} × {cols}"));
                    wrong.push(error.at(Place::Tensor(l.name.clone())));
                    return None;
                }
            };
            return Some((effect, 0));
        }
        [.., Some(l), None, None] => {
            let text = "factors and a pair at one product";
            wrong.push(Error::new(Kind::Format, text).at(Place::Tensor(l.name.clone())));
            return None;
        }
        [None, None, Some(m), ..] => {
            let text = "lengths without a pair";
            wrong.push(Error::new(Kind::Format, text).at(Place::Tensor(m.name.clone())));
            return None;
        }
        [Some(half), None, ..] | [None, Some(half), ..] => {
            let other = if pair[0].is_some() { "B" } else { "A" };
            let error = Error::new(Kind::Format, format!("the other half of the pair, {other}, is missing"));
            wrong.push(error.at(Place::Tensor(half.name.clone())));
            return None;
        }
        [Some(a), Some(b), ..] => (a, b),
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
    if let Some(m) = &pair[2] {
        want(m, "lengths", info.outputs, m.rows * m.cols);
    }
    if a.rows == 0 {
        let error = Error::expected(Kind::Format, "rank", "at least 1", 0);
        wrong.push(error.at(Place::Tensor(a.name.clone())));
        fits = false;
    }
    let effect = if pair[2].is_some() { Effect::Dora } else { Effect::Lora };
    fits.then_some((effect, a.rows))
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
