//! LoKr (Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2023): a
//! Kronecker product of two small matrices, each of which may be of low rank. As PEFT's `LoKrConfig`.
//!
//! # Forward
//! ```text
//! ΔW = s·w₁⊗w₂        (w₁⊗w₂)[i·K + p, j·k + q] = w₁[i,j]·w₂[p,q]        s = α/r, also where no factor is of low rank
//! u[p,j] = Σ_q w₂[p,q]·drop(x)[j·k + q]            y[i·K + p] = (W·x + bias)[i·K + p] + s·Σⱼ w₁[i,j]·u[p,j]
//! ```
//! so ΔW is never made: inputs·K + outputs·m multiplications a row, where the base has inputs·outputs.
//!
//! # Backward
//! ```text
//! v[j,p] = s·Σᵢ w₁[i,j]·dy[i·K + p]        dw₁[i,j] += s·Σ_rows Σ_p dy[i·K + p]·u[p,j]
//! dw₂[p,q] += Σ_rows Σⱼ v[j,p]·drop(x)[j·k + q]        dx[j·k + q] += drop′(Σ_p v[j,p]·w₂[p,q])
//! ```
//! and, of a factor w = a·b of low rank, `da += dw·bᵀ`, `db += aᵀ·dw`.
//!
//! # Shapes
//! w₁ `[l][m]`, or a `[l][r]` and b `[r][m]`; w₂ `[K][k]`, or a `[K][r]` and b `[r][k]`; K = outputs/l, k = inputs/m.
//! Outputs are counted in the order of the converted model; where GGUF keeps them in another ([`Names::row`]), so does
//! y. [`Part::more`] is l, m, and whether w₁ and w₂ are of low rank.

use super::effect::{Each, Key, Memory, Rows, Rules, Shapes, Tensor};
use super::layer::{Effect, Layer, Part};
use super::lora::each_row;
use super::names::Names;
use crate::error::{Error, Kind};
use crate::model::Model;
use crate::ops::{Base, Factor, Host, Site, product_back};
use crate::rng::Rng;
use crate::tensor::{Block, Chunks, Mat, MatMut};
use onlay_kernels::dense::{Dense, product};
use onlay_kernels::{Level, gemm, math};
use std::ops::Range;

/// [`Effect::Kronecker`].
#[derive(Debug)]
pub(super) struct Kronecker;

static KEYS: [Key; 6] = [
    Key { gguf: ".lokr_w1", peft: ".lokr_w1", flat: false },
    Key { gguf: ".lokr_w1_a", peft: ".lokr_w1_a", flat: false },
    Key { gguf: ".lokr_w1_b", peft: ".lokr_w1_b", flat: false },
    Key { gguf: ".lokr_w2", peft: ".lokr_w2", flat: false },
    Key { gguf: ".lokr_w2_a", peft: ".lokr_w2_a", flat: false },
    Key { gguf: ".lokr_w2_b", peft: ".lokr_w2_b", flat: false },
];

/// The most hidden numbers of a row, and the most numbers of a factor that is made of a pair.
const MOST: (usize, usize) = (1 << 14, 1 << 22);

/// How the sizes of a product are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factoring {
    /// Rows and columns of w₁.
    pub l: usize,
    pub m: usize,
    /// Rows and columns of w₂.
    pub rows: usize,
    pub cols: usize,
    /// Whether they are of low rank.
    pub low: [bool; 2],
    rank: usize,
}

impl Factoring {
    pub(super) fn of(p: &Part) -> Factoring {
        let [l, m, first, second] = p.more;
        let (rows, cols) = (p.outputs / l.max(1), p.inputs / m.max(1));
        Factoring { l, m, rows, cols, low: [first != 0, second != 0], rank: p.rank }
    }

    /// Numbers of w₁, or of its pair, and the same of w₂.
    fn lens(&self) -> [usize; 2] {
        let len = |low: bool, n: usize, k: usize| if low { self.rank * (n + k) } else { n * k };
        [len(self.low[0], self.l, self.m), len(self.low[1], self.rows, self.cols)]
    }

    /// The least rank for which PEFT leaves w₂, and with `both` w₁, whole.
    pub(super) fn least_rank_of_whole(&self, both: bool) -> usize {
        let (first, second) = (self.l.max(self.m), self.rows.max(self.cols));
        second.max(if both { first } else { 0 }).div_ceil(2).max(1)
    }
}

/// PEFT's factorization: two numbers whose product it is, the smaller first, as near to each other as they can be, or the
/// first near to `factor` unless that is −1.
fn halves(n: usize, factor: i64) -> (usize, usize) {
    let factor = usize::try_from(factor).ok().filter(|f| *f > 0);
    if let Some(factor) = factor.filter(|f| n.is_multiple_of(*f)) {
        return (factor, n / factor);
    }
    let most = factor.unwrap_or(n);
    let (mut first, mut second) = (1, n);
    while first < second {
        let Some(next) = (first + 1..=n).find(|f| n.is_multiple_of(*f)) else { break };
        if next + n / next > 1 + n || next > most {
            break;
        }
        (first, second) = (next, n / next);
    }
    (first.min(second), first.max(second))
}

/// What [`Part::more`] is, as PEFT cuts a product.
pub(super) fn cut(inputs: usize, outputs: usize, rank: usize, factor: i64, both: bool) -> [usize; 4] {
    let ((m, cols), (l, rows)) = (halves(inputs, factor), halves(outputs, factor));
    let low = |n: usize, k: usize| usize::from(2 * rank < n.max(k));
    [l, m, if both { low(l, m) } else { 0 }, low(rows, cols)]
}

/// What follows from the numbers: d, w₁ᵀ, and w₁ and w₂ where they are pairs.
struct Settled<'a> {
    /// Columns of a head whose rows move; 0 where none do.
    head: usize,
    /// `[m][l]`
    turned: &'a [f32],
    /// `[l][m]`
    w1: &'a [f32],
    /// `[K][k]`
    w2: &'a [f32],
}

impl<'a> Settled<'a> {
    fn of(f: &Factoring, params: &'a [f32], derived: &'a [f32]) -> Settled<'a> {
        let [first, _] = f.lens();
        let (turned, rest) = derived[1..].split_at(f.m * f.l);
        let (own, pair) = rest.split_at(if f.low[0] { f.l * f.m } else { 0 });
        let w1 = if f.low[0] { own } else { &params[..first] };
        let w2 = if f.low[1] { pair } else { &params[first..] };
        Settled { head: derived[0] as usize, turned, w1, w2 }
    }

    /// The output, in the converted model's order, that is output `o`.
    fn counted(&self, o: usize) -> usize {
        let d = self.head;
        let Some(head) = o.checked_div(d) else { return o };
        head * d + o % d % 2 * (d / 2) + o % d / 2
    }
}

impl Settled<'_> {
    /// `f(i, p, len, o, step)` for outputs `first..first + n` in pieces of one i: outputs i·K + p, …, len of them, are the
    /// o-th of these and so on, `step` apart.
    fn runs(
        &self,
        f: &Factoring,
        first: usize,
        n: usize,
        mut to: impl FnMut(usize, usize, usize, usize, usize),
    ) {
        let mut one = |first_output: usize, mut len: usize, step: usize| {
            let (mut at, mut o) = (self.counted(first_output), first_output - first);
            while len > 0 {
                let (i, p) = (at / f.rows, at % f.rows);
                let some = len.min(f.rows - p);
                to(i, p, some, o, step);
                (at, o, len) = (at + some, o + some * step, len - some);
            }
        };
        if self.head == 0 {
            return one(first, n, 1);
        }
        // of a head, the even ones are its first half and the odd ones its second
        let mut from = first;
        while from < first + n {
            let end = (from / self.head + 1) * self.head;
            let end = end.min(first + n);
            for parity in 0..2 {
                let start = from + (from + parity) % 2;
                if start < end {
                    one(start, (end - start).div_ceil(2), 2);
                }
            }
            from = end;
        }
    }
}

/// `to [n][k] = a [n][r]·b [r][k]`
fn multiply(level: Level, a: &[f32], b: &[f32], r: usize, k: usize, to: &mut [f32]) {
    to.fill(0.0);
    for (a, to) in a.chunks_exact(r).zip(to.chunks_exact_mut(k)) {
        a.iter().zip(b.chunks_exact(k)).for_each(|(a, b)| math::add_scaled(level, *a, b, to));
    }
}

/// Adds the gradient of `w = a·b` to those of both; or to that of w where it is no pair.
fn pair_back(level: Level, low: bool, numbers: &[f32], grads: &mut [f32], dw: &[f32], n: usize, k: usize) {
    if !low {
        return grads.iter_mut().zip(dw).for_each(|(to, g)| *to += g);
    }
    let r = numbers.len() / (n + k);
    let ((a, b), (da, db)) = (numbers.split_at(n * r), grads.split_at_mut(n * r));
    for ((dw, a), da) in dw.chunks_exact(k).zip(a.chunks_exact(r)).zip(da.chunks_exact_mut(r)) {
        for (((a, da), b), db) in a.iter().zip(da).zip(b.chunks_exact(k)).zip(db.chunks_exact_mut(k)) {
            *da += math::inner(level, dw, b);
            math::add_scaled(level, *a, dw, db);
        }
    }
}

/// `C [n][w] += scale·A [n][k]·B [k][w]`, spread over the team by rows of C, which has few columns.
fn add_by_rows(host: &mut Host<'_>, scale: f32, a: Factor<'_>, k: usize, b: &[f32], w: usize, c: &mut [f32]) {
    const DEPTH: usize = 256;
    let (level, scratch) = (host.level, host.scratch);
    let per = gemm::rows(level);
    let pieces = Chunks::new([c], per * w);
    host.team.run(&|member| {
        while let Some((i, [c])) = pieces.next() {
            scratch.with_spare(member, per * DEPTH, |packed| {
                let m = c.len() / w;
                for from in (0..k).step_by(DEPTH) {
                    let cut = DEPTH.min(k - from);
                    let a_part = &a.data[i * per * a.row + from * a.step..];
                    gemm::pack(level, a_part, a.row, a.step, m, cut, scale, packed);
                    gemm::add(level, m, w, &packed[..cut * per], &b[from * w..], w, c, w);
                }
            });
        }
    });
}

impl Rules for Kronecker {
    fn keys(&self) -> &'static [Key] {
        &KEYS
    }
    fn len(&self, p: &Part) -> usize {
        Factoring::of(p).lens().iter().sum()
    }
    fn tensors(&self, p: &Part) -> Vec<Tensor> {
        let f = Factoring::of(p);
        let tensor = |key, rows, cols| Tensor { key, rows, cols, transposed: false, on_outputs: false };
        let one = |low: bool, keys: &'static [Key], rows, cols| {
            let (a, b) = (("rank, as in the other half", f.rank), ("rank", f.rank));
            match low {
                true => vec![tensor(&keys[1], rows, a), tensor(&keys[2], b, cols)],
                false => vec![tensor(&keys[0], rows, cols)],
            }
        };
        let mut all = one(f.low[0], &KEYS[..3], ("rows of w1", f.l), ("columns of w1", f.m));
        let (rows, cols) =
            (("outputs, over the rows of w1", f.rows), ("inputs, over the columns of w1", f.cols));
        all.extend(one(f.low[1], &KEYS[3..], rows, cols));
        all
    }
    fn recognise(&self, shapes: Shapes<'_>, part: Part) -> Option<Part> {
        let pair = |keys: &'static [Key]| match shapes(&keys[0]) {
            Some((n, k)) => Some((n, k, None)),
            None => Some((shapes(&keys[1])?.0, shapes(&keys[2])?.1, Some(shapes(&keys[2])?.0))),
        };
        let ((l, m, first), (_, _, second)) = (pair(&KEYS[..3])?, pair(&KEYS[3..])?);
        let more = [l, m, usize::from(first.is_some()), usize::from(second.is_some())];
        Some(Part { effect: Effect::Kronecker, rank: first.or(second).unwrap_or(0), more, ..part })
    }
    fn shaped(&self, part: Part) -> Part {
        let more = cut(part.inputs, part.outputs, part.rank, -1, false);
        Part { rank: if more[3] != 0 { part.rank } else { 0 }, more, ..part }
    }
    fn unfit(&self, p: &Part) -> Option<Error> {
        let f = Factoring::of(p);
        let cut = f.l > 0 && f.m > 0 && p.outputs.is_multiple_of(f.l) && p.inputs.is_multiple_of(f.m);
        if !cut {
            let (expected, found) = (format!("divisors of {} and {}", p.outputs, p.inputs), (f.l, f.m));
            let what = "rows and columns of w1";
            return Some(Error::expected(Kind::Mismatch, what, expected, format!("{found:?}")));
        }
        let made = |low: bool, n: usize, k: usize| if low { n.saturating_mul(k) } else { 0 };
        let made = made(f.low[0], f.l, f.m).max(made(f.low[1], f.rows, f.cols));
        let width = f.m.saturating_mul(f.rows);
        let text = |what: &str, most: usize, found: usize| {
            Some(Error::expected(Kind::Unsupported, what, format!("at most {most}"), found))
        };
        match () {
            () if width > MOST.0 => text("columns of w1 times rows of w2", MOST.0, width),
            () if made > MOST.1 => text("numbers of a factor of low rank", MOST.1, made),
            () => None,
        }
    }
    fn drops(&self) -> bool {
        true
    }
    fn describe(&self, p: &Part) -> String {
        let Factoring { l, m, rows, cols, .. } = Factoring::of(p);
        format!("{l}x{m} times {rows}x{cols} rank {} scale {}", p.rank, p.scale)
    }
    fn scaled(&self) -> bool {
        true
    }

    /// PEFT's: w₁ zero, or its a; what else there is uniform in ±1/√columns.
    fn start(&self, layer: &Layer, i: usize, _: &Model, _: Level, rng: &mut Rng) {
        let part = layer.parts()[i].expect("a part");
        let mut numbers = layer.params().get(i);
        let mut rest = &mut numbers[..];
        for (at, tensor) in self.tensors(&part).iter().enumerate() {
            let (here, behind) = rest.split_at_mut(tensor.len());
            rest = behind;
            let bound = if at == 0 { 0.0 } else { 1.0 / (tensor.cols.1 as f32).sqrt() };
            here.iter_mut().for_each(|v| *v = (2.0 * rng.uniform() - 1.0) * bound);
        }
    }
    fn times(&self, part: &mut Part, _: &mut [f32], by: f32) -> bool {
        part.scale *= by;
        true
    }
    fn derived(&self, p: &Part) -> (usize, usize) {
        let f = Factoring::of(p);
        let made = |low: bool, n: usize| if low { n } else { 0 };
        (1 + f.l * f.m + made(f.low[0], f.l * f.m) + made(f.low[1], f.rows * f.cols), 0)
    }
    fn settle(&self, layer: &Layer, i: usize, model: &Model, level: Level, _: Each<'_>) {
        let f = Factoring::of(&layer.parts()[i].expect("a part"));
        let (params, mut derived) = (layer.params().read(i), layer.derived.get(i));
        let numbers = &mut derived.numbers;
        if numbers[0].is_nan() {
            let moves = Names::of(model.program()).moves(i);
            numbers[0] = if moves { model.program().attention.head as f32 } else { 0.0 };
        }
        let (turned, rest) = numbers[1..].split_at_mut(f.m * f.l);
        let (first, second) = rest.split_at_mut(if f.low[0] { f.l * f.m } else { 0 });
        let (one, other) = params.split_at(f.lens()[0]);
        if f.low[0] {
            let (a, b) = one.split_at(f.l * f.rank);
            multiply(level, a, b, f.rank, f.m, first);
        }
        if f.low[1] {
            let (a, b) = other.split_at(f.rows * f.rank);
            multiply(level, a, b, f.rank, f.cols, second);
        }
        let w1 = if f.low[0] { &*first } else { one };
        for (i, row) in w1.chunks_exact(f.m).enumerate() {
            row.iter().enumerate().for_each(|(j, v)| turned[j * f.l + i] = *v);
        }
    }
    fn width(&self, p: &Part) -> usize {
        let f = Factoring::of(p);
        f.m * f.rows
    }

    /// Unit j·K + p is u[p,j].
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
        let i = site.into();
        let (params, derived) = (layer.params().read(i), layer.derived.read(i));
        let f = Factoring::of(layer.part(site).expect("a part"));
        let w2 = Settled::of(&f, &params, &derived.numbers).w2;
        let names = layer.names();
        let names = first_row.zip(names.as_deref()).and_then(|(first, n)| n.get(first..first + x.rows()));
        let n = x.rows();
        let mut unit = units.start;
        while unit < units.end {
            let (j, p) = (unit / f.rows, unit % f.rows);
            let run = (f.rows - p).min(units.end - unit);
            // side by side, and dropped from a multiple of 4 on
            let (to, all) = ((j + 1) * f.cols, names.is_none());
            let from = if all { j * f.cols } else { j * f.cols / 4 * 4 };
            let (wide, ahead) = (to - from, j * f.cols - from);
            spare.resize((n * (wide + run) + ahead).max(spare.len()), 0.0);
            let (own, tile) = spare[..n * (wide + run) + ahead].split_at_mut(n * wide + ahead);
            for (row, own) in own.chunks_exact_mut(wide).enumerate().take(n) {
                let x = &x.row(row)[from..to];
                match names {
                    None => own.copy_from_slice(x),
                    Some(names) => layer.drop_into(site, names[row], from, x, own),
                }
            }
            let x = bytemuck::cast_slice(&own[ahead..]);
            let w2 = &w2[p * f.cols..(p + run) * f.cols];
            product(level, Dense::F32, x, 4 * wide, w2, f.cols, tile, n);
            for (at, tile) in (unit - units.start..).zip(tile.chunks_exact(n)) {
                tile.iter().enumerate().for_each(|(row, u)| h[row * stride + at] = *u);
            }
            unit += run;
        }
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
        let i = site.into();
        let (part, params, derived) =
            (layer.part(site).expect("a part"), layer.params().read(i), layer.derived.read(i));
        let f = Factoring::of(part);
        let (settled, scale) = (Settled::of(&f, &params, &derived.numbers), part.scale * weight);
        let (per, width) = (gemm::rows(level), y.row(rows.start).len());
        spare.resize((per * f.m + width).max(spare.len()), 0.0);
        let (packed, tile) = spare[..per * f.m + width].split_at_mut(per * f.m);
        settled.runs(&f, first, width, |i, p, len, o, step| {
            gemm::pack(level, &settled.w1[i * f.m..(i + 1) * f.m], f.m, 1, 1, f.m, scale, packed);
            for row in rows.clone() {
                let (u, y) = (&h[(row - rows.start) * stride + p..], &mut y.row(row)[o..]);
                if step == 1 {
                    gemm::add(level, 1, len, packed, u, f.rows, &mut y[..len], len);
                    continue;
                }
                let tile = &mut tile[..len];
                tile.iter_mut().zip(y.iter().step_by(step)).for_each(|(t, y)| *t = *y);
                gemm::add(level, 1, len, packed, u, f.rows, tile, len);
                y.iter_mut().step_by(step).zip(tile).for_each(|(y, t)| *y = *t);
            }
        });
    }
    fn memory(&self, p: &Part, rows: usize, dropping: bool) -> Memory {
        let f = Factoring::of(p);
        let units = rows * f.m * f.rows;
        let dropped = if dropping { rows * p.inputs } else { 0 };
        [units, units, dropped, rows * p.outputs, (f.l * f.m).max(f.rows * f.cols), 0]
    }
    fn backward(
        &self,
        layer: &Layer,
        host: &mut Host<'_>,
        site: Site,
        base: Base<'_>,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<MatMut<'_>>,
    ) {
        let part = *layer.part(site).expect("asked only where it learns");
        let (f, i, level) = (Factoring::of(&part), site.into(), host.level);
        let Part { inputs, outputs, scale, .. } = part;
        let (n, units) = (x.rows(), f.m * f.rows);
        let (params, derived) = (layer.params().read(i), layer.derived.read(i));
        let settled = Settled::of(&f, &params, &derived.numbers);
        let mut grads = layer.grads().get(i);
        let (d1, d2) = grads.split_at_mut(f.lens()[0]);
        let (one, other) = params.split_at(f.lens()[0]);
        let (mut u, mut v, mut dropped) = (layer.memory.get(0), layer.memory.get(1), layer.memory.get(2));
        let (u, v) = (&mut u[..n * units], &mut v[..n * units]);
        let names = layer.names();
        let names = names.as_deref().map_or(&[][..], |n| n);
        let dropped = &mut dropped[..if names.is_empty() { 0 } else { n * inputs }];
        if !names.is_empty() {
            each_row(host, dropped, inputs, |row, to| layer.drop_into(site, names[row], 0, x.row(row), to));
        }
        let input = if names.is_empty() { x } else { Mat::new(dropped, inputs) };
        each_row(host, u, units, |row, u| {
            let x = bytemuck::cast_slice(input.row(row));
            product(level, Dense::F32, x, 4 * f.cols, settled.w2, f.cols, u, f.m);
        });
        // dy [K][l] of every row
        let mut turned = layer.memory.get(3);
        let turned = &mut turned[..n * outputs];
        each_row(host, turned, outputs, |row, to| {
            for (o, dy) in dy.row(row).iter().enumerate() {
                let at = settled.counted(o);
                to[at % f.rows * f.l + at / f.rows] = scale * dy;
            }
        });
        let turned = &*turned;
        each_row(host, v, units, |row, v| {
            let dy = bytemuck::cast_slice(&turned[row * outputs..][..outputs]);
            product(level, Dense::F32, dy, 4 * f.l, settled.turned, f.l, v, f.rows);
        });
        let mut whole = layer.memory.get(4);
        let dw = &mut whole[..f.l * f.m];
        dw.fill(0.0);
        add_by_rows(host, 1.0, Factor { data: turned, row: 1, step: f.l }, n * f.rows, u, f.m, dw);
        pair_back(level, f.low[0], one, d1, dw, f.l, f.m);
        let dw = &mut whole[..f.rows * f.cols];
        dw.fill(0.0);
        let transposed = Factor { data: v, row: 1, step: f.rows };
        add_by_rows(host, 1.0, transposed, n * f.m, input.data(), f.cols, dw);
        pair_back(level, f.low[1], other, d2, dw, f.rows, f.cols);
        let Some(mut dx) = dx else { return };
        let straight = Factor { data: v, row: f.rows, step: 1 };
        if names.is_empty() {
            add_by_rows(host, 1.0, straight, f.rows, settled.w2, f.cols, dx.again().data());
        } else {
            dropped.fill(0.0);
            add_by_rows(host, 1.0, straight, f.rows, settled.w2, f.cols, dropped);
            layer.undrop(host, site, names, dropped, dx.again());
        }
        product_back(host, base.matrix, None, dy, dx);
    }
    fn fold(&self, layer: &Layer, site: Site, weight: f32, rows: Rows<'_>) {
        let i = site.into();
        let (part, params, derived) =
            (layer.part(site).expect("a part"), layer.params().read(i), layer.derived.read(i));
        let f = Factoring::of(part);
        let settled = Settled::of(&f, &params, &derived.numbers);
        let Rows { level, first, n, sum, .. } = rows;
        for (row, sum) in (first..first + n).zip(sum.chunks_exact_mut(part.inputs)) {
            let at = settled.counted(row);
            let w2 = &settled.w2[at % f.rows * f.cols..][..f.cols];
            for (w1, sum) in settled.w1[at / f.rows * f.m..].iter().zip(sum.chunks_exact_mut(f.cols)) {
                math::add_scaled(level, part.scale * weight * w1, w2, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Delta;

    /// Hidden numbers of dropped inputs are those of inputs that were dropped before, whatever units are asked for.
    #[test]
    fn products_of_factors_drop_what_every_layer_drops() {
        let (inputs, outputs, n, level) = (45, 35, 5, Level::PORTABLE);
        let site = Site(0);
        let bare = Part { inputs, outputs, rank: 3, scale: 1.0, ..Part::default() };
        let mut rng = Rng::new(4);
        for effect in [Effect::Hadamard, Effect::Kronecker, Effect::Triplets] {
            let part = effect.rules().shaped(Part { effect, ..bare });
            let mut layer = Layer::new(vec![Some(part)]);
            layer.params().get(0).iter_mut().for_each(|v| *v = rng.normal());
            layer.derived.get(0).numbers.fill(0.0);
            layer.learn(n, 0.3, 7).unwrap();
            let width = layer.width(site);
            let x: Vec<f32> = (0..n * inputs).map(|_| rng.normal()).collect();
            let (x, mut spare) = (Mat::new(&x, inputs), Vec::new());
            let mut hidden = |layer: &Layer, x: Mat<'_>, step: usize| {
                let mut all = vec![0.0; n * width];
                for from in (0..width).step_by(step) {
                    let units = from..width.min(from + step);
                    let mut h = vec![0.0; n * units.len()];
                    layer.prepare(level, site, 0, x, units.clone(), &mut h, &mut spare);
                    for (row, h) in h.chunks_exact(units.len()).enumerate() {
                        all[row * width..][units.clone()].copy_from_slice(h);
                    }
                }
                all
            };
            let names: Vec<u64> = (10..10 + n as u64).collect();
            let mut dropped = vec![0.0; n * inputs];
            for (row, to) in dropped.chunks_exact_mut(inputs).enumerate() {
                layer.drop_into(site, names[row], 0, x.row(row), to);
            }
            assert!(dropped.contains(&0.0));
            let want = hidden(&layer, Mat::new(&dropped, inputs), width);
            layer.set_rows(names.iter().copied());
            for step in [width, 8, 1] {
                assert_eq!(hidden(&layer, x, step), want, "{effect:?}, {step} units");
            }
        }
    }

    #[test]
    fn sizes_are_cut_as_peft_cuts_them() {
        for (n, factor, want) in [
            (256, -1, (16, 16)),
            (128, -1, (8, 16)),
            (127, -1, (1, 127)),
            (128, 4, (4, 32)),
            (64, 16, (16, 4)),
            (30, 4, (3, 10)),
            (1, -1, (1, 1)),
        ] {
            assert_eq!(halves(n, factor), want, "{n} {factor}");
        }
        assert_eq!(cut(64, 128, 2, -1, true), [8, 8, 1, 1]);
        assert_eq!(cut(64, 128, 8, -1, true), [8, 8, 0, 0]);
    }
}
