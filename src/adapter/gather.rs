//! Putting the tensors of an adapter file together into a layer, whatever kind of file they come from.
//!
//! Shapes first, all of them, then numbers: nothing is allocated for a file that will be refused for its shapes, and
//! what is allocated is the file's own numbers as f32.

use super::effect::{EFFECTS, Key, Rules, Shapes};
use super::layer::{Effect, Layer, Part};
use super::methods::Method;
use super::names::Names;
use super::vera::Shared;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::Program;

/// Reads all numbers of a matrix, row after row.
type Numbers<'a> = Box<dyn Fn() -> Result<Vec<f32>> + 'a>;

/// One tensor of a place, as a file has it.
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

/// What a reader says about a part once its sizes are known.
pub(super) struct Terms {
    /// [`Part::scale`], of effects that have one.
    pub scale: f32,
    /// Rows are in the order of the converted model, not GGUF's.
    pub moved: bool,
}

/// The tensors found so far, and everything found wrong.
pub(super) struct Gather<'a> {
    program: &'a Program,
    names: &'a Names,
    /// The method that the file names.
    method: Option<&'static Method>,
    found: Vec<Vec<(&'static Key, Half<'a>)>>,
    /// Places of which a tensor was wrong: nothing more is said about them.
    spoilt: Vec<bool>,
    /// A `[r][inputs]` and B `[outputs][r]` of VeRA.
    shared: [Option<Half<'a>>; 2],
    /// What is wrong with the file.
    pub wrong: Findings,
}

/// The key that a tensor's name ends in, and what stands before it.
pub(super) fn key_of(name: &str, spelling: fn(&'static Key) -> &'static str) -> Option<(&str, &'static Key)> {
    let keys = EFFECTS.iter().flat_map(|(_, rules)| rules.keys());
    let all = keys.filter_map(|key| Some((name.strip_suffix(spelling(key))?, key)));
    all.min_by_key(|(rest, _)| rest.len())
}

/// All keys there are, for a message.
pub(super) fn all_keys(spelling: fn(&'static Key) -> &'static str) -> String {
    let mut all: Vec<_> = EFFECTS.iter().flat_map(|(_, rules)| rules.keys()).map(spelling).collect();
    all.sort_unstable();
    all.dedup();
    all.join(", ")
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    pub(super) fn new(program: &'a Program, names: &'a Names, wrong: Findings) -> Self {
        let n = program.places();
        let found = (0..n).map(|_| Vec::new()).collect();
        Gather { program, names, found, spoilt: vec![false; n], shared: [None, None], method: None, wrong }
    }

    /// The method that the file names: what tensors mean where their shapes leave it open.
    pub(super) fn of(mut self, method: Option<&'static Method>) -> Self {
        self.method = method;
        self
    }

    /// Takes a tensor of a place, or what is wrong with it; `tensor` is its name in the file.
    pub(super) fn put(&mut self, place: usize, key: &'static Key, tensor: Place, half: Result<Half<'a>>) {
        let here = &mut self.found[place];
        let first = here.iter().find(|(k, _)| *k == key).map(|(_, first)| first);
        match (half, first) {
            (Err(e), _) => {
                self.spoilt[place] = true;
                self.wrong.push(e.at(tensor));
            }
            (Ok(_), Some(first)) => {
                let text = format!("belongs to the same place as {}", first.name);
                self.wrong.push(Error::new(Kind::Format, text).at(tensor));
            }
            (Ok(half), None) => here.push((key, half)),
        }
    }

    /// Takes A (0) or B (1) that all products share, or what is wrong with it.
    pub(super) fn put_shared(&mut self, which: usize, tensor: Place, half: Result<Half<'a>>) {
        if let Some(half) = self.wrong.keep(half.map_err(|e| e.at(tensor))) {
            self.shared[which] = Some(half);
        }
    }

    /// The layer. `terms` is asked once for every place, and may complete the part; `mend` may change the numbers of a tensor.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
    pub(super) fn finish(
        mut self,
        terms: impl Fn(usize, &mut Part) -> Result<Terms>,
        mend: impl Fn(usize, &'static Key, &mut [f32]) -> Result<()>,
    ) -> Result<Layer> {
        const REFUSED: &str = "the adapter does not fit this base";
        let mut parts = vec![None; self.found.len()];
        let mut moved = vec![false; self.found.len()];
        for i in 0..self.found.len() {
            if self.spoilt[i] || self.found[i].is_empty() {
                continue;
            }
            let Some(mut part) = self.part(i) else { continue };
            let Some(terms) = self.wrong.keep(terms(i, &mut part)) else { continue };
            moved[i] = terms.moved;
            let scale = if part.rules().scaled() { terms.scale } else { part.scale };
            parts[i] = Some(Part { scale, ..part });
        }
        if self.wrong.is_empty() && parts.iter().all(Option::is_none) {
            let error = Error::expected(Kind::Format, "matrices of the layer", "at least one pair", "none");
            self.wrong.push(error);
        }
        let method = Method::of(parts.iter().flatten());
        for (i, part) in parts.iter().enumerate() {
            let Some(part) = part.as_ref().filter(|p| !method.has(p.effect)) else { continue };
            let (expected, found) = (method.name, Method::of([part].into_iter()).name);
            let error = Error::expected(Kind::Format, "method of all places", expected, found);
            self.wrong.push(error.at(Place::Tensor(self.program.place_name(i).into())));
        }
        let shared = self.shared_pair(&parts);
        self.wrong.refuse(REFUSED)?;
        let mut wrong = Findings::default();
        let mut layer = Layer::over(self.program, parts);
        if let Some((rank, a, b)) = shared {
            layer = layer.sharing(Shared::new(self.names, rank, a, b));
        }
        for (i, found) in self.found.iter().enumerate() {
            let Some(part) = layer.parts()[i] else { continue };
            let mut params = layer.params().get(i);
            let mut rest = &mut params[..];
            for tensor in part.rules().tensors(&part) {
                let (to, behind) = rest.split_at_mut(tensor.len());
                rest = behind;
                let Some((key, half)) = found.iter().find(|(k, _)| *k == tensor.key) else { continue };
                let numbers = finite(half).and_then(|mut all| mend(i, key, &mut all).map(|()| all));
                let Some(numbers) = wrong.keep(numbers) else { continue };
                tensor.fetched(&numbers, to, |row| if moved[i] { self.names.row(i, row) } else { row });
            }
        }
        for (i, part) in layer.parts().iter().enumerate() {
            let Some(part) = part else { continue };
            if wrong.is_empty()
                && let Some(error) = part.rules().unsound(self.program, part, &layer.params().read(i))
            {
                wrong.push(error.at(Place::Tensor(self.program.place_name(i).into())));
            }
        }
        wrong.refuse(REFUSED).map(|()| layer)
    }

    /// The part that the tensors of a place are, all of their shapes right.
    fn part(&mut self, i: usize) -> Option<Part> {
        let found = &self.found[i];
        let (inputs, outputs) = self.program.place_shape(i);
        let shapes = |key: &Key| found.iter().find(|(k, _)| *k == key).map(|(_, h)| (h.rows, h.cols));
        let bare = Part { inputs, outputs, ..Part::default() };
        let at = |half: &Half<'_>| Place::Tensor(half.name.clone());
        let whole = |(effect, rules): &(Effect, &'static dyn Rules)| {
            let part = Part { effect: *effect, ..rules.recognise(&shapes, bare)? };
            let tensors = rules.tensors(&part);
            (found.iter().all(|(key, _)| tensors.iter().any(|t| t.key == *key))).then_some((part, tensors))
        };
        let named = self.method.map(|m| m.effect(self.names, i));
        let exact = EFFECTS.iter().filter(|(effect, _)| Some(*effect) == named);
        let said = EFFECTS.iter().filter(|(effect, _)| self.method.is_some_and(|m| m.has(*effect)));
        let Some((part, tensors)) = exact.chain(said).chain(EFFECTS).find_map(whole) else {
            let error = incomplete(found, &shapes, bare).at(at(&found[0].1));
            self.wrong.push(error);
            return None;
        };
        let mut wrong = Vec::new();
        if part.rules().spot() != self.program.spot(i) {
            let text = format!("{:?} cannot be here", part.effect);
            wrong.push(Error::new(Kind::Mismatch, text).at(at(&found[0].1)));
        }
        if part.rank == 0 && part.rules().most_rank(&part) > 0 {
            wrong.push(Error::expected(Kind::Format, "rank", "at least 1", 0).at(at(&found[0].1)));
        }
        if let Some(error) = part.rules().unfit(&part) {
            let error = error.at(at(&found[0].1));
            self.wrong.push(error);
            return None;
        }
        for tensor in tensors {
            let Some((_, half)) = found.iter().find(|(k, _)| *k == tensor.key) else {
                let text = format!("the other half of the pair, {}, is missing", tensor.key.gguf);
                wrong.push(Error::new(Kind::Format, text).at(at(&found[0].1)));
                continue;
            };
            let mut want = |(what, expected): (&str, usize), found: usize| {
                if expected != found {
                    wrong.push(Error::expected(Kind::Mismatch, what, expected, found).at(at(half)));
                }
            };
            if tensor.cols.1 == 1 || tensor.rows.1 == 1 {
                let what = if tensor.cols.1 == 1 { tensor.rows.0 } else { tensor.cols.0 };
                want((what, tensor.len()), half.rows * half.cols);
                // a row or a column, whichever way it was written down
                if tensor.len() == half.rows * half.cols && half.rows.min(half.cols) > 1 {
                    want(("rows, or columns,", 1), half.rows.min(half.cols));
                }
            } else {
                want(tensor.rows, half.rows);
                want(tensor.cols, half.cols);
            }
        }
        let fine = wrong.is_empty();
        wrong.into_iter().for_each(|e| self.wrong.push(e));
        fine.then_some(part)
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

/// Why the tensors of a place are no part.
fn incomplete(found: &[(&'static Key, Half<'_>)], shapes: Shapes<'_>, bare: Part) -> Error {
    let words = |keys: &mut dyn Iterator<Item = &'static Key>| {
        keys.map(|k| k.gguf.trim_start_matches('.')).collect::<Vec<_>>().join(" and ")
    };
    let missing = EFFECTS.iter().filter_map(|(_, rules)| {
        let keys = rules.keys();
        // what would be whole without some of these lacks nothing
        let within = found.iter().all(|(key, _)| keys.contains(key));
        let within = within && rules.recognise(shapes, bare).is_none();
        let rest = || keys.iter().filter(|key| found.iter().all(|(k, _)| k != key));
        within.then(|| (rest().count(), words(&mut rest())))
    });
    match missing.min_by_key(|(n, _)| *n) {
        Some((n, what)) if n > 0 => Error::new(Kind::Format, format!("is not complete: {what} is missing")),
        _ => {
            let here = words(&mut found.iter().map(|(k, _)| *k));
            Error::new(Kind::Format, format!("{here} do not go together at one place"))
        }
    }
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
