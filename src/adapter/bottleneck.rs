//! Bottleneck adapters as LLM-Adapters lays them (Hu et al., "LLM-Adapters", 2023, arXiv 2304.01933; its file
//! `bottleneck.py`): down to a few numbers, through an activation, and up again. Without biases.
//!
//! # Forward
//! ```text
//! a(z) = s·U·φ(D·drop(z))                  φ: tanh unless said otherwise; s fixed, or a number that learns
//!
//! beside   y = W·x + bias + a(x)           `parallel`: He et al. 2022, here at single products
//! before   y = W·(x + a(x)) + bias         `series` at gate and up
//! behind   h = W·x + bias    y = h + a(h)  `series` at all others: Houlsby et al. 2019 at o and down, Pfeiffer et al. 2021
//!                                          at down
//! ```
//! # Backward
//! ```text
//! of a, from dv, the gradient of its sum:
//!          z′ = D·drop(z)    g = dv·U    ds += Σ φ(z′)∘g    dU += s·dvᵀ·φ(z′)    d = s·φ′(z′)∘g    dD += dᵀ·drop(z)
//!          back(dv) = drop′(d·D)
//!
//! beside   dv = dy                   dx += back(dv) + dy·W
//! before   dv = dy·W                 dx += back(dv) + dv
//! behind   dv = dy, h once more      dx += (dy + back(dv))·W
//! ```
//! # Shapes
//! D `[r][n]`, U `[m][r]`, kept transposed; n inputs, behind: outputs; m outputs, before: inputs. s one number behind them,
//! where it learns. [`Part::more`]: φ's place in [`ACTIVATIONS`], and 1 where s learns; [`Part::scale`] is multiplied with it.

use super::effect::{Key, Memory, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use super::lora::{low_rank, rows_times};
use crate::error::{Error, Findings, Kind, Place};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, add_product, base_product, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Chunks, Mat, MatMut};
use onlay_kernels::activate::{ACTIVATIONS, Activation};
use onlay_kernels::dense::{Dense, product};
use onlay_kernels::{Level, gemm};
use std::ops::Range;

/// Where a bottleneck is at its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Beside,
    Before,
    Behind,
}

/// [`Effect::Beside`], [`Effect::Before`] or [`Effect::Behind`].
#[derive(Debug)]
pub(super) struct Bottleneck(pub At);

static KEYS: [Key; 3] = [
    Key { gguf: ".adapter_down", peft: ".adapter_down.weight", flat: false },
    Key { gguf: ".adapter_up", peft: ".adapter_up.weight", flat: false },
    Key { gguf: ".adapter_scaling", peft: ".adapter_scaling", flat: true },
];

/// Deviation of LLM-Adapters' usual start ("bert").
const DEVIATION: f32 = 0.02;

/// What is said of a bottleneck besides its sizes, as [`Part::more`].
pub(super) fn more(activation: Activation, learned: bool) -> [usize; 4] {
    [activation as usize, usize::from(learned), 0, 0]
}

/// Its activation. Panics for a part that is none.
pub(super) fn activation(part: &Part) -> Activation {
    ACTIVATIONS[part.more[0]].0
}

/// Whether its scale learns.
pub(super) fn scale_learns(part: &Part) -> bool {
    part.more[1] == 1
}

/// The activation of all parts, where they have one; parts that differ are wrong, for files name one.
pub(super) fn one_activation(parts: &[Option<Part>], wrong: &mut Findings) -> Option<Activation> {
    let mut with = parts.iter().flatten().filter(|p| p.rules().activated()).map(activation);
    let first = with.next()?;
    if let Some(other) = with.find(|a| *a != first) {
        let place = Place::Key("activation".into());
        wrong.push(Error::expected(Kind::Unsupported, "all of one", first.name(), other.name()).at(place));
    }
    Some(first)
}

/// Sets all bottlenecks of a layer to LLM-Adapters' other start ("mam_adapter"): D uniform in ±1/√n, U zero, so that
/// nothing is changed.
pub(super) fn start_at_zero(layer: &Layer, rng: &mut Rng) {
    for (i, part) in layer.parts().iter().enumerate() {
        let Some(part) = part.filter(|p| p.rules().activated()) else { continue };
        let mut numbers = layer.params().get(i);
        let Some(Bottleneck(at)) = ALL.iter().find(|b| b.effect() == part.effect) else { continue };
        let (n, m) = at.sides(&part);
        let (d, rest) = numbers.split_at_mut(part.rank * n);
        let bound = 1.0 / (n as f32).sqrt();
        d.iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
        rest[..part.rank * m].fill(0.0);
    }
}

static ALL: [Bottleneck; 3] = [Bottleneck(At::Beside), Bottleneck(At::Before), Bottleneck(At::Behind)];

impl At {
    /// What it multiplies first, and what it adds to: n and m.
    fn sides(self, p: &Part) -> (usize, usize) {
        match self {
            At::Beside => (p.inputs, p.outputs),
            At::Before => (p.inputs, p.inputs),
            At::Behind => (p.outputs, p.outputs),
        }
    }
}

/// The numbers of one, read.
struct Branch<'a> {
    rank: usize,
    n: usize,
    m: usize,
    /// `[r][n]`
    down: &'a [f32],
    /// `[r][m]`
    up: &'a [f32],
    scale: f32,
    activation: Activation,
}

impl Bottleneck {
    fn effect(&self) -> Effect {
        match self.0 {
            At::Beside => Effect::Beside,
            At::Before => Effect::Before,
            At::Behind => Effect::Behind,
        }
    }

    fn branch<'a>(&self, part: &Part, numbers: &'a [f32]) -> Branch<'a> {
        let (n, m) = self.0.sides(part);
        let (down, rest) = numbers.split_at(part.rank * n);
        let (up, learned) = rest.split_at(part.rank * m);
        let scale = learned.first().map_or(part.scale, |s| part.scale * s);
        Branch { rank: part.rank, n, m, down, up, scale, activation: activation(part) }
    }
}

impl Branch<'_> {
    /// `y += weight·a(y)`, row by row, `[rows][n]`; `spare` is memory of the calling member.
    #[allow(clippy::too_many_arguments)]
    fn add_to(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        weight: f32,
        first_row: Option<usize>,
        y: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        let (per, r, n) = (gemm::rows(level), self.rank, self.n);
        let names = layer.names();
        let names = first_row.zip(names.as_deref()).and_then(|(at, all)| all.get(at..at + y.len() / n));
        let len = 2 * per * r + if names.is_some() { n } else { 0 };
        spare.resize(len.max(spare.len()), 0.0);
        let (h, rest) = spare.split_at_mut(per * r);
        let (packed, dropped) = rest.split_at_mut(per * r);
        let down = bytemuck::cast_slice(self.down);
        for (group, y) in y.chunks_mut(per * n).enumerate() {
            let (m, h) = (y.len() / n, &mut h[..y.len() / n * r]);
            match names {
                None => product(level, Dense::F32, down, 4 * n, y, n, h, r),
                Some(names) => {
                    let rows = y.chunks_exact(n).zip(h.chunks_exact_mut(r)).zip(&names[group * per..]);
                    for ((y, h), name) in rows {
                        layer.drop_into(site, *name, 0, y, &mut dropped[..n]);
                        product(level, Dense::F32, down, 4 * n, &dropped[..n], n, h, r);
                    }
                }
            }
            self.activation.apply(h);
            gemm::pack(level, h, r, 1, m, r, weight * self.scale, packed);
            gemm::add(level, m, n, packed, self.up, n, y, n);
        }
    }

    /// Adds the gradients of a, and `back(dv)` to dx if that is wanted.
    #[allow(clippy::too_many_arguments)]
    fn back(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        grads: &mut [f32],
        fixed: f32,
        x: Mat<'_>,
        dv: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let (r, n, m, rows) = (self.rank, self.n, self.m, x.rows());
        let (dd, rest) = grads.split_at_mut(r * n);
        let (du, ds) = rest.split_at_mut(r * m);
        let (mut z, mut g, mut dropped) = (layer.memory.get(0), layer.memory.get(1), layer.memory.get(2));
        let (z, g) = (&mut z[..rows * r], &mut g[..rows * r]);
        let names = layer.names();
        let names = names.as_deref().map_or(&[][..], |n| n);
        let dropping = !names.is_empty();
        let dropped = &mut dropped[..if dropping { rows * n } else { 0 }];
        if dropping {
            super::lora::each_row(host, dropped, n, |row, to| {
                layer.drop_into(site, names[row], 0, x.row(row), to)
            });
        }
        let input = if dropping { Mat::new(dropped, n) } else { x };
        rows_times(host, input, self.down, n, z, r);
        rows_times(host, dv, self.up, m, g, r);
        // one after the other, in f64: the same whoever computes the rest
        if let [ds] = ds {
            let mut sum = 0f64;
            let mut piece = [0.0; 64];
            for (z, g) in z.chunks(64).zip(g.chunks(64)) {
                let h = &mut piece[..z.len()];
                h.copy_from_slice(z);
                self.activation.apply(h);
                sum += h.iter().zip(g).map(|(h, g)| f64::from(*h) * f64::from(*g)).sum::<f64>();
            }
            *ds += (f64::from(fixed) * sum) as f32;
        }
        {
            let pieces = Chunks::new([&mut *z, &mut *g], 16 * r);
            host.team.run(&|_| {
                while let Some((_, [z, g])) = pieces.next() {
                    self.activation.apply_back(self.scale, z, g);
                }
            });
        }
        let of = |data| Factor { data, row: 1, step: r };
        add_product(host, self.scale, of(z), rows, dv.data(), m, MatMut::new(du, m));
        add_product(host, 1.0, of(g), rows, input.data(), n, MatMut::new(dd, n));
        if let Some(dx) = dx {
            layer.input_back(host, site, names, dropped, g, self.down, n, dx);
        }
    }
}

impl Rules for Bottleneck {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        let (n, m) = self.0.sides(p);
        p.rank * (n + m) + usize::from(scale_learns(p))
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let (n, m) = self.0.sides(p);
        let down = Tensor {
            key: &KEYS[0],
            rows: ("bottleneck", p.rank),
            cols: (if self.0 == At::Behind { Tensor::OUTPUTS } else { "inputs" }, n),
            transposed: false,
            on_outputs: false,
        };
        let up = Tensor {
            key: &KEYS[1],
            rows: (if self.0 == At::Before { "inputs" } else { Tensor::OUTPUTS }, m),
            cols: ("bottleneck, as in the other half", p.rank),
            transposed: true,
            on_outputs: self.0 != At::Before,
        };
        let mut all = vec![down, up];
        if scale_learns(p) {
            all.push(Tensor::vector(&KEYS[2], ("scales", 1), false));
        }
        all
    }

    /// By its keys: shapes do not tell where it is at a square product, the method does.
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        shapes(&KEYS[1])?;
        let (rank, _) = shapes(&KEYS[0])?;
        let more = more(Activation::default(), shapes(&KEYS[2]).is_some());
        Some(Part { effect: self.effect(), rank, scale: 1.0, more, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        part
    }
    fn unfit(&self, p: &Part) -> Option<Error> {
        let fine = p.more[0] < ACTIVATIONS.len() && p.more[1] <= 1;
        let expected = format!("an activation below {}, and 0 or 1", ACTIVATIONS.len());
        (!fine).then(|| Error::expected(Kind::Argument, "bottleneck", expected, format!("{:?}", p.more)))
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        let scale = if scale_learns(p) { "learned".into() } else { p.scale.to_string() };
        let place = self.tag();
        format!("bottleneck {} {place} {} scale {scale}", p.rank, activation(p).name())
    }
    fn tag(&self) -> &'static str {
        match self.0 {
            At::Beside => "beside",
            At::Before => "before",
            At::Behind => "behind",
        }
    }
    fn scaled(&self) -> bool {
        true
    }
    fn activated(&self) -> bool {
        true
    }
    fn most_rank(&self, _: &Part) -> usize {
        usize::MAX
    }

    /// D at A's rate, U and s at B's.
    fn learned(&self, p: &Part) -> [(Range<usize>, bool); 3] {
        let (n, m) = self.0.sides(p);
        let (d, u) = (p.rank * n, p.rank * (n + m));
        [(0..d, false), (d..u, true), (u..self.len(p), true)]
    }

    /// LLM-Adapters' usual start: D and U normal with a deviation of 0.02, s = 1. So a new one is not quite nothing;
    /// [`start_at_zero`] is.
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, rng: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        let mut numbers = layer.params().get(i);
        numbers.iter_mut().for_each(|v| *v = DEVIATION * rng.normal());
        if scale_learns(&part) {
            *numbers.last_mut().expect("has a scale") = 1.0;
        }
    }
    fn times(&self, part: &mut Part, numbers: &mut [f32], by: f32) -> bool {
        match numbers.last_mut().filter(|_| scale_learns(part)) {
            Some(s) => *s *= by,
            None => part.scale *= by,
        }
        true
    }

    fn enters(&self) -> bool {
        self.0 == At::Before
    }
    fn enter(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        first_row: Option<usize>,
        x: Mat<'_>,
        u: &mut [f32],
        spare: &mut Vec<f32>,
    ) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        u.copy_from_slice(x.data());
        self.branch(part, &params).add_to(layer, level, site, 1.0, first_row, u, spare);
    }

    fn width(&self, p: &Part) -> usize {
        if self.0 == At::Beside { p.rank } else { 0 }
    }
    fn prepare(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        first_row: Option<usize>,
        x: Mat<'_>,
        units: Range<usize>,
        h: &mut [f32],
        stride: usize,
        spare: &mut Vec<f32>,
    ) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let down = &params[units.start * part.inputs..units.end * part.inputs];
        layer.hidden(level, site, first_row, x, (down, part.inputs), h, stride, spare);
        // of a row only these units: those of another adapter may lie beside them
        let activation = activation(part);
        h.chunks_mut(stride).for_each(|h| activation.apply(&mut h[..units.len()]));
    }
    fn finish(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        weight: f32,
        h: &[f32],
        stride: usize,
        first: usize,
        y: &mut Block<'_>,
        rows: Range<usize>,
        spare: &mut Vec<f32>,
    ) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        let branch = self.branch(part, &params);
        let (h, up) = ((h, stride, branch.rank), (branch.up, branch.m));
        low_rank(level, branch.scale * weight, h, up, None, first, y, rows, spare);
    }

    fn follows(&self) -> bool {
        self.0 == At::Behind
    }
    fn follow(
        &self,
        layer: &Layer,
        level: Level,
        site: Site,
        weight: f32,
        first_row: Option<usize>,
        y: MatMut<'_>,
        spare: &mut Vec<f32>,
    ) {
        let (part, params) = (layer.part(site).expect("a part"), layer.params().read(site.into()));
        self.branch(part, &params).add_to(layer, level, site, weight, first_row, y.data(), spare);
    }

    /// z and its gradient, dropped inputs; before: dv; behind: h and the gradient of it.
    fn memory(&self, p: &Part, rows: usize, dropping: bool) -> Memory {
        let (n, m) = self.0.sides(p);
        let dv = if self.0 == At::Beside { 0 } else { rows * m };
        let of_h = if self.0 == At::Behind { rows * m } else { 0 };
        [rows * p.rank, rows * p.rank, if dropping { rows * n } else { 0 }, dv, of_h, 0]
    }
    fn backward(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        mut dx: Option<MatMut<'_>>,
    ) {
        let part = *layer.part(site).expect("asked only where it learns");
        let (i, rows) = (usize::from(site), x.rows());
        let params = layer.params().read(i);
        let branch = self.branch(&part, &params);
        let mut grads = layer.grads().get(i);
        let (mut first, mut second) = (layer.memory.get(3), layer.memory.get(4));
        match self.0 {
            At::Beside => {
                let again = dx.as_mut().map(MatMut::again);
                branch.back(layer, host, site, &mut grads, part.scale, x, dy, again);
                if let Some(dx) = dx {
                    product_back(host, base.matrix, None, dy, dx);
                }
            }
            At::Before => {
                let dv = &mut first[..rows * branch.m];
                dv.fill(0.0);
                product_back(host, base.matrix, None, dy, MatMut::new(dv, branch.m));
                if let Some(dx) = &mut dx {
                    dx.again().data().iter_mut().zip(&*dv).for_each(|(dx, dv)| *dx += dv);
                }
                let dv = Mat::new(dv, branch.m);
                branch.back(layer, host, site, &mut grads, part.scale, x, dv, dx);
            }
            At::Behind => {
                let (h, dh) = (&mut first[..rows * branch.m], &mut second[..rows * branch.m]);
                base_product(host, base, x, MatMut::new(h, branch.m));
                let h = Mat::new(h, branch.m);
                let Some(dx) = dx else {
                    return branch.back(layer, host, site, &mut grads, part.scale, h, dy, None);
                };
                dh.copy_from_slice(dy.data());
                let dh_mut = Some(MatMut::new(dh, branch.m));
                branch.back(layer, host, site, &mut grads, part.scale, h, dy, dh_mut);
                product_back(host, base.matrix, None, Mat::new(dh, branch.m), dx);
            }
        }
    }

    fn unfoldable(&self) -> Option<&'static str> {
        Some(
            "an activation lies between the two matrices of a bottleneck: no sum with the base's matrix does the same",
        )
    }
}
