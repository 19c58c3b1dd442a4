//! Folding adapters into their base: a new model file that needs no adapter.
//!
//! ```text
//! Ŵ = encode( g∘decode(W)∘l + Σᵢ wᵢ·gᵢ∘sᵢ·Bᵢ·Aᵢ )     g, l: gains of outputs and inputs, see worn
//! ```
//! tensor by tensor and some rows at a time, so memory holds a few rows whatever the model's size. Products without an
//! adapter keep their bytes. Encoding rounds again: a merged Q4 base is not the base with its adapter on, and the
//! [`Merged`] of every tensor says how far off it is. What an adapter changes may be smaller than that.
//!
//! # Heads that share the embedding table
//! Folding into the shared table would change the lookup too. The head gets a matrix of its own, `output.weight`, and
//! the table stays as it is: the file grows by that matrix, and computes what the layer computed.

use super::effect::Rows;
use super::names::Names;
use super::open::Adapter;
use super::worn::Worn;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::files::write_atomically;
use crate::format::gguf::{Builder, Sink};
use crate::format::types::Type;
use crate::model::Model;
use crate::ops::{Site, VectorId};
use crate::tensor::{Identity, Matrix, Slots, Storage, Team, TensorRef};
use onlay_kernels::Level;
use onlay_kernels::dense::Dense;
use onlay_kernels::half::{f32_to_bf16, f32_to_f16};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

/// The key under which a merged file says what was folded in.
pub const NOTE: &str = "onlay.merged";

/// Rows that a member of the team takes at a time.
const ROWS: usize = 32;

/// How to merge.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// The type of the new matrices; that of the old ones if absent.
    pub kind: Option<Type>,
    /// Whether a file at the path may be replaced.
    pub overwrite: bool,
    /// Threads.
    pub threads: usize,
    /// Instructions to use.
    pub level: Level,
}

/// What became of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Its name in the new file.
    pub tensor: String,
    /// Its type there.
    pub kind: Type,
    /// ‖W′‖², of the exact sum W′.
    pub squares: f64,
    /// ‖W′ − W‖²: what the adapters changed.
    pub changed: f64,
    /// ‖Ŵ − W′‖²: what encoding lost.
    pub lost: f64,
}

impl Merged {
    /// ‖Ŵ − W′‖ / ‖W′‖
    pub fn error(&self) -> f64 {
        relative(self.lost, self.squares)
    }

    /// ‖W′ − W‖ / ‖W′‖
    pub fn change(&self) -> f64 {
        relative(self.changed, self.squares)
    }
}

fn relative(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { (part / whole).sqrt() }
}

/// What became of a base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergeReport {
    /// The matrices that changed, in the file's order.
    pub tensors: Vec<Merged>,
    /// Bytes of the new file.
    pub bytes: u64,
    /// The head got a matrix of its own.
    pub untied: bool,
}

impl MergeReport {
    /// All of them together as one matrix.
    pub fn total(&self) -> Merged {
        let sum = |f: fn(&Merged) -> f64| self.tensors.iter().map(f).sum();
        Merged {
            tensor: "all".into(),
            kind: self.tensors.first().map_or(Type::F32, |t| t.kind),
            squares: sum(|t| t.squares),
            changed: sum(|t| t.changed),
            lost: sum(|t| t.lost),
        }
    }
}

/// Writes `model` with `worn` folded in to `path`. `watch(done, all)` is told how many bytes of the file are written,
/// and may stop it with an error.
///
/// # Errors
/// `Argument` for nothing to fold in, a path that is the base itself, a type that the new rows do not allow;
/// `Unsupported` for a type without encoder; `Numeric` if a sum is not finite; `Io`; what `watch` returns.
pub fn merge(
    model: &Model,
    worn: &Worn,
    path: &Path,
    options: &MergeOptions,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<MergeReport> {
    let (weights, names) = (model.weights(), Names::of(model.program()));
    if worn.stack().is_empty() {
        return Err(Error::expected(Kind::Argument, "adapters to fold in", "at least 1", 0));
    }
    let same = |other: &Path| path.canonicalize().is_ok_and(|p| other.canonicalize().is_ok_and(|o| o == p));
    if weights.paths().any(same) {
        return Err(Error::new(Kind::Argument, "is the base that is being read").in_file(path));
    }
    let mut wrong = Findings::default();
    for (adapter, _) in worn.stack() {
        wrong.keep(adapter.fits(model.program()));
    }
    wrong.refuse("the adapters do not fit this base")?;
    let mut wrong = Findings::default();
    let program = model.program();
    for i in program.sites.len()..program.places() {
        for part in worn.stack().iter().filter_map(|(a, _)| a.parts().get(i)?.as_ref()) {
            let why = part.rules().unfoldable().unwrap_or("what is here cannot be folded in");
            let error = Error::new(Kind::Unsupported, why);
            wrong.push(error.at(Place::Tensor(program.place_name(i).into())));
        }
    }
    let work = RefCell::new(Work {
        team: Team::new(options.threads)?,
        level: options.level,
        report: MergeReport::default(),
        written: 0,
        all: 0,
        watch,
    });

    let mut builder = Builder::new();
    builder.copy(weights.metadata()).set(NOTE, note(worn, model));
    if options.kind.is_some() {
        builder.unset("general.file_type"); // readers count the types themselves
    }
    let shared = &work;
    for tensor in weights.tensors() {
        if let Some(bias) = new_bias(model, worn, tensor.name()) {
            if let Some(i) = bias.iter().position(|v| !v.is_finite()) {
                let text = format!("number {i} is not finite with the adapters folded in");
                wrong.push(Error::new(Kind::Numeric, text).at(Place::Tensor(tensor.name().into())));
            }
            builder.tensor_from(tensor.name(), Type::F32, tensor.dims(), move |sink| sink.put_f32s(&bias));
            continue;
        }
        let site = site_of(model, tensor.name());
        let changed = site.filter(|s| changes_matrix(worn, *s));
        let tied = changed.is_some_and(|s| names.tied(s));
        if changed.is_none() || tied {
            builder.tensor_from(tensor.name(), tensor.kind(), tensor.dims(), move |sink| {
                shared.borrow_mut().copy(tensor, sink)
            });
        }
        if let Some(site) = site
            && worn.of_bias(site).1.is_some()
            && bias_of(model, tensor.name()).is_none()
        {
            let text = "a vector is added to this product, and the base has no bias here to fold it into";
            wrong.push(Error::new(Kind::Unsupported, text).at(Place::Tensor(tensor.name().into())));
        }
        let Some(site) = changed else { continue };
        if let Some(why) = unfoldable(worn.stack(), site) {
            wrong.push(Error::new(Kind::Unsupported, why).at(Place::Tensor(tensor.name().into())));
        }
        shared.borrow_mut().report.untied |= tied;
        let kind = options.kind.unwrap_or(tensor.kind());
        let Some(fold) = wrong.keep(Fold::new(names.gguf(site), tensor, kind, worn, site)) else { continue };
        builder.tensor_from(names.gguf(site), kind, tensor.dims(), move |sink| {
            shared.borrow_mut().fold(&fold, sink)
        });
    }
    wrong.refuse("the adapters cannot be folded into this base").map_err(|e| e.in_file(weights.path()))?;
    work.borrow_mut().all = builder.file_len()?;
    let bytes = write_atomically(path, options.overwrite, |out| builder.write(out))?;
    Ok(MergeReport { bytes, ..work.into_inner().report })
}

/// The product of a matrix.
fn site_of(model: &Model, matrix: &str) -> Option<Site> {
    model.program().sites.iter().position(|s| s.name == matrix).map(|i| Site(i as u32))
}

/// Whether the adapters change the matrix of a product, and not only what is added to it.
fn changes_matrix(worn: &Worn, site: Site) -> bool {
    let with = worn.stack().iter().map(|(a, _)| a.lora());
    with.filter_map(|layer| Some((layer, layer.part(site)?)))
        .any(|(layer, part)| part.rules().output_sum(layer, site).is_none())
}

/// The bias beside a matrix, by the matrix's name.
pub(super) fn bias_of<'m>(model: &'m Model, matrix: &str) -> Option<&'m [f32]> {
    let name = format!("{}.bias", matrix.strip_suffix(".weight")?);
    let id = model.program().vectors.iter().position(|v| v.name == name)?;
    Some(model.bound().vector(VectorId(id as u32)))
}

/// What becomes of the bias of that name, if the adapters reach it: `gain∘bias + v`.
fn new_bias(model: &Model, worn: &Worn, name: &str) -> Option<Vec<f32>> {
    let matrix = format!("{}.weight", name.strip_suffix(".bias")?);
    let (gain, sum) = worn.of_bias(site_of(model, &matrix)?);
    if (gain, sum) == (None, None) {
        return None;
    }
    let mut bias = bias_of(model, &matrix)?.to_vec();
    let by = |to: &mut [f32], with: Option<&[f32]>, f: fn(&mut f32, f32)| {
        to.iter_mut().zip(with.into_iter().flatten()).for_each(|(to, v)| f(to, *v));
    };
    by(&mut bias, gain, |b, g| *b *= g);
    by(&mut bias, sum, |b, v| *b += v);
    Some(bias)
}

/// What was folded in, as JSON.
fn note(worn: &Worn, model: &Model) -> String {
    let each = worn.stack().iter().map(|(adapter, weight)| {
        serde_json::json!({"id": Identity::hex(adapter.id()), "name": adapter.name(), "weight": weight})
    });
    serde_json::json!({
        "base": model.weights().identity().to_string(),
        "adapters": each.collect::<Vec<_>>(),
    })
    .to_string()
}

/// What a stack of adapters makes of the matrix at a site.
pub(super) struct Changed<'a> {
    pub site: Site,
    pub from: Matrix<'a>,
    /// l and g.
    pub gains: (Option<&'a [f32]>, Option<&'a [f32]>),
    pub stack: &'a [(Arc<Adapter>, f32)],
}

impl Changed<'_> {
    /// Some rows from `first` on: as they become, and as the base has them.
    pub(super) fn rows(
        &self,
        level: Level,
        first: usize,
        (sum, base): (&mut [f32], &mut [f32]),
        spare: &mut Vec<f32>,
    ) {
        let k = self.from.cols;
        sum.chunks_exact_mut(k).enumerate().for_each(|(i, row)| self.from.decode(level, first + i, 0, row));
        base.copy_from_slice(sum);
        if let (Some(l), _) = self.gains {
            sum.chunks_exact_mut(k).for_each(|row| row.iter_mut().zip(l).for_each(|(w, l)| *w *= l));
        }
        if let (_, Some(g)) = self.gains {
            let rows = sum.chunks_exact_mut(k).zip(&g[first..]);
            rows.for_each(|(row, g)| row.iter_mut().for_each(|w| *w *= g));
        }
        for (adapter, weight) in self.stack {
            let Some(part) = adapter.lora().part(self.site) else { continue };
            let rows = Rows { level, first, n: sum.len() / k, sum, base, spare };
            part.rules().fold(adapter.lora(), self.site, *weight, rows);
        }
    }
}

/// Why the adapters of a stack cannot be folded into a matrix, if so.
pub(super) fn unfoldable(stack: &[(Arc<Adapter>, f32)], site: Site) -> Option<&'static str> {
    stack.iter().find_map(|(a, _)| a.lora().part(site)?.rules().unfoldable())
}

/// One matrix to be changed.
struct Fold<'a> {
    name: String,
    from: Matrix<'a>,
    to: Storage,
    /// Bytes of a new row.
    row_bytes: usize,
    site: Site,
    stack: &'a [(Arc<Adapter>, f32)],
    /// l and g.
    gains: (Option<&'a [f32]>, Option<&'a [f32]>),
}

impl<'a> Fold<'a> {
    fn new(name: &str, tensor: TensorRef<'a>, kind: Type, worn: &'a Worn, site: Site) -> Result<Fold<'a>> {
        let from = Matrix::new(tensor)?;
        let at = |e: Error| e.at(Place::Tensor(name.into()));
        let to = Storage::of(kind).ok_or_else(|| {
            at(Error::new(Kind::Unsupported, format!("there is no encoder for type {kind} yet")))
        })?;
        let row_bytes = kind.row_bytes(from.cols).ok_or_else(|| {
            let expected = format!("whole blocks of {}", kind.block_len());
            at(Error::expected(Kind::Argument, &format!("columns of a {kind} matrix"), expected, from.cols))
        })?;
        Ok(Fold {
            name: name.into(),
            from,
            to,
            row_bytes,
            site,
            stack: worn.stack(),
            gains: worn.gains_at(site),
        })
    }

    /// Up to [`ROWS`] rows from `first` on: decoded, changed, encoded into the piece, and measured.
    fn rows(&self, level: Level, first: usize, piece: &mut Piece) {
        let (n, k) = (ROWS.min(self.from.rows - first), self.from.cols);
        let Piece { sum, other, packed, bytes, sums } = piece;
        let sum = &mut sum[..n * k];
        let (gains, stack) = (self.gains, self.stack);
        let changed = Changed { site: self.site, from: self.from, gains, stack };
        changed.rows(level, first, (sum, &mut other[..n * k]), packed);
        let difference =
            |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
        let changed = difference(sum, &other[..n * k]);
        let bytes = &mut bytes[..n * self.row_bytes];
        for (row, bytes) in sum.chunks_exact(k).zip(bytes.chunks_exact_mut(self.row_bytes)) {
            encode(self.to, row, bytes);
        }
        for (bytes, row) in bytes.chunks_exact(self.row_bytes).zip(other.chunks_exact_mut(k)) {
            decode(self.to, level, bytes, row);
        }
        let squares = sum.iter().map(|v| f64::from(*v).powi(2)).sum();
        *sums = [squares, changed, difference(sum, &other[..n * k])];
    }
}

fn encode(to: Storage, row: &[f32], bytes: &mut [u8]) {
    let halves = |bytes: &mut [u8], one: fn(f32) -> u16| {
        bytes.as_chunks_mut::<2>().0.iter_mut().zip(row).for_each(|(b, v)| *b = one(*v).to_le_bytes());
    };
    match to {
        Storage::Dense(Dense::F32) => {
            bytes.as_chunks_mut::<4>().0.iter_mut().zip(row).for_each(|(b, v)| *b = v.to_le_bytes());
        }
        Storage::Dense(Dense::F16) => halves(bytes, f32_to_f16),
        Storage::Dense(Dense::Bf16) => halves(bytes, f32_to_bf16),
        Storage::Block(format) => (format.encode)(row, bytes),
    }
}

/// The opposite, from bytes at any address.
fn decode(from: Storage, level: Level, bytes: &[u8], row: &mut [f32]) {
    let halves = |row: &mut [f32], one: fn(u16) -> f32| {
        row.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(v, b)| *v = one(u16::from_le_bytes(*b)));
    };
    match from {
        Storage::Dense(Dense::F32) => {
            row.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
        Storage::Dense(Dense::F16) => halves(row, onlay_kernels::half::f16_to_f32),
        Storage::Dense(Dense::Bf16) => halves(row, onlay_kernels::half::bf16_to_f32),
        Storage::Block(format) => (format.decode_fast)(level, bytes, row),
    }
}

/// Memory for some rows.
#[derive(Default)]
struct Piece {
    sum: Vec<f32>,
    other: Vec<f32>,
    packed: Vec<f32>,
    bytes: Vec<u8>,
    /// Squares, changed, lost.
    sums: [f64; 3],
}

/// What all tensors share while the file is written.
struct Work<'w> {
    team: Team,
    level: Level,
    report: MergeReport,
    written: u64,
    all: u64,
    watch: &'w mut dyn FnMut(u64, u64) -> Result<()>,
}

impl Work<'_> {
    fn put(&mut self, sink: &mut Sink<'_>, bytes: &[u8]) -> Result<()> {
        sink.put(bytes)?;
        self.written += bytes.len() as u64;
        (self.watch)(self.written.min(self.all), self.all)
    }

    fn copy(&mut self, tensor: TensorRef<'_>, sink: &mut Sink<'_>) -> Result<()> {
        tensor.bytes().chunks(4 << 20).try_for_each(|some| self.put(sink, some))
    }

    fn fold(&mut self, fold: &Fold<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let (level, k) = (self.level, fold.from.cols);
        let pieces = Slots::new(2 * self.team.len(), |_| Piece {
            sum: vec![0.0; ROWS * k],
            other: vec![0.0; ROWS * k],
            bytes: vec![0; ROWS * fold.row_bytes],
            ..Piece::default()
        });
        let mut sums = [0.0; 3];
        for first in (0..fold.from.rows).step_by(ROWS * pieces.len()) {
            let n = (fold.from.rows - first).div_ceil(ROWS).min(pieces.len());
            self.team.each(n, |_, i| fold.rows(level, first + i * ROWS, &mut pieces.get(i)));
            for i in 0..n {
                let piece = pieces.read(i);
                let rows = ROWS.min(fold.from.rows - first - i * ROWS);
                sums.iter_mut().zip(piece.sums).for_each(|(sum, more)| *sum += more);
                if !sums.iter().all(|s| s.is_finite()) {
                    let text = format!("rows from {} on are not finite numbers", first + i * ROWS);
                    return Err(Error::new(Kind::Numeric, text));
                }
                self.put(sink, &piece.bytes[..rows * fold.row_bytes])?;
            }
        }
        let [squares, changed, lost] = sums;
        let (tensor, kind) = (fold.name.clone(), fold.to.kind());
        self.report.tensors.push(Merged { tensor, kind, squares, changed, lost });
        Ok(())
    }
}
