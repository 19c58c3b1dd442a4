//! The one place where base weights are multiplied.
//!
//! # Forward
//! ```text
//! y = x·Wᵀ + bias                    W [outputs][inputs], frozen, in any storage
//! ```
//! where each row's layer may change what goes in and what comes out ([`Delta`]). Activations are rounded to 8 bits for block formats; every
//! output is one fixed sequence of operations ([`onlay_kernels::dot`], [`onlay_kernels::dense`]), however many rows
//! are multiplied together and by how many members: the reduction is never split.
//!
//! # Backward
//! is a file of its own, [`super::back`].
//!
//! # Shapes
//! x `[rows][inputs]`; several matrices may share it (q, k, v; gate, up): x is rounded once.

use super::dense::MANY;
use super::scratch::{Group, PANEL, ROWS, Scratch, TASK, Worker};
use super::{Base, Batch, Delta, Gate, Host, Lent, MatrixId, Operation, Site, Span, VectorId};
use crate::tensor::{Block, Chunks, Grid, Mat, MatMut, Matrix, Register, Storage};
use onlay_kernels::acts::{self, ActsMut, Grain};
use onlay_kernels::gate::swiglu;
use onlay_kernels::panel::{self, PanelMut};
use onlay_kernels::{Level, dense, dense_panel};
use std::ops::Range;

/// Up to this many rows are multiplied as rows, without panels.
pub const FEW: usize = onlay_kernels::dot::COLUMNS;

/// Outputs that one task of a few rows takes at most.
pub(super) const FEW_WIDTH: usize = 512;

/// The most matrices that share an input.
pub(crate) const SHARING: usize = 4;

/// One product of a [`Linear`].
#[derive(Clone, Debug)]
pub struct Output {
    /// Where a layer may be fastened.
    pub site: Site,
    /// `[outputs][inputs]`
    pub matrix: MatrixId,
    /// `[outputs]`
    pub bias: Option<VectorId>,
    /// `[rows][outputs]`
    pub to: Register,
}

/// Products that share their input; at most four.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[rows][inputs]`
    pub x: Register,
    /// The products.
    pub outputs: Vec<Output>,
}

impl Operation for Linear {
    fn reads(&self) -> Vec<Register> {
        vec![self.x]
    }
    fn writes(&self) -> Vec<Register> {
        self.outputs.iter().map(|o| o.to).collect()
    }

    fn forward(&self, host: &mut Host<'_>) {
        let x = host.frame.read(self.x);
        let mut to: [_; SHARING] =
            std::array::from_fn(|i| self.outputs.get(i).map(|o| host.frame.write(o.to)));
        let mut products: [Option<Product<'_>>; SHARING] = [const { None }; SHARING];
        for ((slot, o), to) in products.iter_mut().zip(&self.outputs).zip(&mut to) {
            *slot = Some(Product {
                site: o.site,
                matrix: host.tables.matrix(o.matrix),
                bias: o.bias.map(|b| host.tables.vector(b)),
                y: Some(to.as_mut().expect("every output has a register").mat()),
            });
        }
        multiply(host, x.mat(), products);
    }

    fn backward(&self, host: &mut Host<'_>) {
        for o in &self.outputs {
            let (frame, grads) = (host.frame, host.grads());
            let (x, dy) = (frame.read(self.x), grads.read(o.to));
            let mut dx = host.wants(self.x).then(|| grads.write(self.x));
            let tables = host.tables;
            let base = Base { matrix: tables.matrix(o.matrix), bias: o.bias.map(|b| tables.vector(b)) };
            super::back::site_back(host, o.site, base, x.mat(), dy.mat(), dx.as_mut().map(|dx| dx.mat()));
        }
    }
}

impl Linear {
    /// This step and the gate behind it at once, if that is what `gate` is: `to = silu(W₀·x)·(W₁·x)`, whose factors never leave the
    /// member's memory. For walks that nobody walks back. Whether it was done.
    pub(crate) fn forward_gated(&self, host: &mut Host<'_>, gate: &Gate) -> bool {
        let [g, u] = &self.outputs[..] else { return false };
        let batch = host.batch;
        let plain = |site| {
            !says(batch, |d| d.enters(site) || d.leaves(site) || d.follows(site) || d.matrix(site).is_some())
        };
        // a few rows wait for memory, which is fastest in one straight line
        let few = batch.rows() <= FEW;
        if few || (g.to, u.to) != (gate.gate, gate.up) || !plain(g.site) || !plain(u.site) {
            return false;
        }
        let (x, mut to) = (host.frame.read(self.x), host.frame.write(gate.to));
        let product = |o: &Output, y| {
            let bias = o.bias.map(|b| host.tables.vector(b));
            Some(Product { site: o.site, matrix: host.tables.matrix(o.matrix), bias, y })
        };
        let products = [product(g, Some(to.mat())), product(u, None), None, None];
        multiply(host, x.mat(), products);
        true
    }
}

/// One product to be computed.
pub(crate) struct Product<'a> {
    pub site: Site,
    pub matrix: Matrix<'a>,
    pub bias: Option<&'a [f32]>,
    /// Nowhere: it gates the one before it.
    pub y: Option<MatMut<'a>>,
}

/// What the members need to know of a product besides its grid of outputs.
struct Task<'a> {
    site: Site,
    matrix: Matrix<'a>,
    bias: Option<&'a [f32]>,
    /// Whether some row's layer changes the base's own product.
    leaves: bool,
    /// Whether some row's layer has a matrix of its own, and whether some has not.
    stands: bool,
    base: bool,
    /// Where its hidden numbers begin in a row.
    hidden: usize,
}

/// `y = x·Wᵀ + bias` and the layers of the batch's spans, for matrices that share `x`.
pub(crate) fn multiply(host: &mut Host<'_>, x: Mat<'_>, products: [Option<Product<'_>>; SHARING]) {
    let batch = host.batch;
    multiply_batch(host, batch, x, products);
}

/// `y = W·x + bias` of a base product, without any layer.
pub fn base_product(host: &mut Host<'_>, base: Base<'_>, x: Mat<'_>, y: MatMut<'_>) {
    let n = x.rows();
    let (whole, spans) = (0..n, [Span { rows: n, ..Span::NONE }]);
    let batch = Batch { tokens: &[], spans: &spans, pieces: std::slice::from_ref(&whole) };
    let mut products = [const { None }; SHARING];
    products[0] = Some(Product { site: Site(u32::MAX), matrix: base.matrix, bias: base.bias, y: Some(y) });
    multiply_batch(host, batch, x, products);
}

/// Rows that one task of hidden numbers takes.
const HIDDEN_ROWS: usize = 24;

/// Neighbouring spans that wear one layer, as one piece of rows.
fn runs<'a>(spans: &'a [Span<'a>]) -> impl Iterator<Item = (Range<usize>, &'a dyn Delta)> {
    let worn = |s: &Span<'a>| s.delta.map(std::ptr::from_ref);
    let same = move |a: &Span<'a>, b: &Span<'a>| match (worn(a), worn(b)) {
        (Some(a), Some(b)) => std::ptr::addr_eq(a, b),
        _ => false,
    };
    spans.chunk_by(same).filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some((first.range().start..last.range().end, first.delta?))
    })
}

/// Whether the layer of some span says yes.
fn says(batch: Batch<'_>, word: impl Fn(&dyn Delta) -> bool) -> bool {
    batch.spans.iter().filter_map(|s| s.delta).any(word)
}

/// What the layers of a batch let into a site: x, where they change nothing.
fn enter(host: &mut Host<'_>, batch: Batch<'_>, site: Site, x: Mat<'_>, u: &mut [f32]) {
    let (level, scratch, k) = (host.level, host.scratch, x.cols());
    let rows = (x.rows() / (4 * host.team.len())).clamp(1, 16);
    let pieces = Chunks::new([u], rows * k);
    host.team.run(&|member| {
        while let Some((i, [u])) = pieces.next() {
            let first = i * rows;
            for span in batch.spans {
                let part = span.range().start.max(first)..span.range().end.min(first + u.len() / k);
                if part.is_empty() {
                    continue;
                }
                let x = x.part(part.clone());
                let u = &mut u[(part.start - first) * k..(part.end - first) * k];
                match span.delta.filter(|d| d.enters(site)) {
                    None => u.copy_from_slice(x.data()),
                    Some(delta) => {
                        let mut worker = scratch.workers.get(member);
                        delta.enter(level, site, part.start, x, u, &mut worker.spare);
                    }
                }
            }
        }
    });
}

/// What the layers of a batch make of whole rows behind a site.
fn follow(host: &mut Host<'_>, batch: Batch<'_>, site: Site, y: MatMut<'_>) {
    let (level, scratch, width) = (host.level, host.scratch, y.cols());
    let rows = (y.rows() / (4 * host.team.len())).clamp(1, 16);
    let pieces = Chunks::new([y.data()], rows * width);
    host.team.run(&|member| {
        while let Some((i, [y])) = pieces.next() {
            let first = i * rows;
            for span in batch.spans {
                let part = span.range().start.max(first)..span.range().end.min(first + y.len() / width);
                let Some(delta) = span.delta.filter(|d| !part.is_empty() && d.follows(site)) else {
                    continue;
                };
                let y = &mut y[(part.start - first) * width..(part.end - first) * width];
                let mut worker = scratch.workers.get(member);
                delta.follow(level, site, part.start, MatMut::new(y, width), &mut worker.spare);
            }
        }
    });
}

fn multiply_batch(
    host: &mut Host<'_>,
    batch: Batch<'_>,
    x: Mat<'_>,
    mut products: [Option<Product<'_>>; SHARING],
) {
    let (level, scratch, n) = (host.level, host.scratch, x.rows());
    if n == 0 {
        return;
    }
    let entering = products.iter().flatten().find(|p| says(batch, |d| d.enters(p.site))).map(|p| p.site);
    if entering.is_some() && products[1].is_some() {
        // they share x, but not what the layer makes of it
        for p in products.into_iter().flatten() {
            let mut one = [const { None }; SHARING];
            one[0] = Some(p);
            multiply_batch(host, batch, x, one);
        }
        return;
    }
    let mut entered = scratch.entered.get(0);
    let u = match entering {
        None => x,
        Some(site) => {
            let u = &mut entered[..n * x.cols()];
            enter(host, batch, site, x, u);
            Mat::new(u, x.cols())
        }
    };
    let k = x.cols();
    let few = n <= FEW;
    let mut tasks: [Option<Task<'_>>; SHARING] = [const { None }; SHARING];
    let mut grids: [Option<Grid<'_, 1>>; SHARING] = [const { None }; SHARING];
    let mut hidden = 0;
    let (mut grains, mut packs) = ([false; 2], false);
    let mut blocks = [const { 0..0 }; 64];
    let count = n.div_ceil(ROWS);
    assert!(count <= blocks.len(), "{n} rows in one product");
    for (i, b) in blocks.iter_mut().enumerate().take(count) {
        *b = i * ROWS..((i + 1) * ROWS).min(n);
    }
    let members = host.team.len();
    for ((slot, grid), p) in tasks.iter_mut().zip(&mut grids).zip(&mut products) {
        let Some(p) = p else { break };
        assert_eq!(p.matrix.cols, k, "a product's inputs");
        let site = p.site;
        let stands = says(batch, |d| d.matrix(site).is_some());
        let base = !stands || batch.spans.iter().any(|s| s.delta.is_none_or(|d| d.matrix(site).is_none()));
        match p.matrix.storage.grain().filter(|_| base) {
            Some(Grain::Small) => grains[0] = true,
            Some(Grain::Large) => grains[1] = true,
            None => {}
        }
        let width = if few {
            // some eight pieces for each member, so that a late one does not hold up the others
            (p.matrix.rows / (8 * members)).next_multiple_of(16).clamp(16, FEW_WIDTH)
        } else {
            TASK
        };
        packs |= base && n >= MANY && matches!(p.matrix.storage, Storage::Dense(_));
        let leaves = says(batch, |d| d.leaves(site));
        *slot = Some(Task { site, matrix: p.matrix, bias: p.bias, leaves, base, stands, hidden });
        hidden += batch.spans.iter().filter_map(|s| s.delta).map(|d| d.width(site)).max().unwrap_or(0);
        *grid = p.y.as_mut().map(|y| Grid::new([y.again()], &blocks[..count], [width]));
    }
    let mut all_hidden = scratch.hidden.get(0);
    let all_hidden = &mut all_hidden[..n * hidden];
    let per = if few { n } else { acts::columns(level) };
    let groups = n.div_ceil(per);

    // Phase one: round the activations; the layers' hidden numbers.
    {
        let mut pieces = [const { 0..0 }; 2 * 64];
        let mut count = 0;
        let longest = HIDDEN_ROWS.max(n.div_ceil(64));
        for (rows, _) in runs(batch.spans).filter(|_| hidden > 0) {
            for first in rows.clone().step_by(longest) {
                pieces[count] = first..(first + longest).min(rows.end);
                count += 1;
            }
        }
        let pieces = &pieces[..count];
        // longer stretches of memory where there are pieces enough for everybody
        let units = if count < 2 * members { 8 } else { 16 };
        let layers = (hidden > 0).then(|| Grid::new([MatMut::new(all_hidden, hidden)], pieces, [units]));
        let next = std::sync::atomic::AtomicUsize::new(0);
        let next_packed = std::sync::atomic::AtomicUsize::new(0);
        let round = |member: usize| {
            if packs {
                super::dense::pack(level, scratch, u, &next_packed);
            }
            loop {
                let g = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if g >= groups {
                    return;
                }
                let rows = g * per..((g + 1) * per).min(n);
                for (grain, slots) in [(Grain::Small, &scratch.small), (Grain::Large, &scratch.large)] {
                    if grains[usize::from(grain == Grain::Large)] {
                        let mut worker = scratch.workers.get(member);
                        quantize(level, grain, few, u, rows.clone(), &mut slots.get(g), &mut worker);
                    }
                }
            }
        };
        let prepare = |member: usize| {
            let Some(layers) = &layers else { return };
            while let Some((piece, [first], [mut block])) = layers.next() {
                let rows = &pieces[piece];
                let Some(delta) = batch.span_of(rows.start).delta else { continue };
                let mut worker = scratch.workers.get(member);
                let worker = &mut *worker;
                let (x, memory) = (x.part(rows.clone()), (&mut worker.tile[..], &mut worker.spare));
                hidden_part(level, delta, &tasks, x, rows.start, first, &mut block, memory);
            }
        };
        if grains == [false; 2] && !packs && layers.is_none() {
        } else if n == 1 && layers.is_none() {
            round(0); // two microseconds of work: not worth waking anyone
        } else {
            host.team.run(&|member| {
                round(member);
                prepare(member);
            });
        }
    }

    // Phase two: the outputs, each member taking some rows of some matrix at a time.
    let all_hidden = &*all_hidden;
    host.team.run(&|member| {
        let mut worker = scratch.workers.get(member);
        for (i, (task, grid)) in tasks.iter().zip(&grids).enumerate() {
            let (Some(task), Some(grid)) = (task, grid) else { break };
            // the product that gates this one
            let other = tasks.get(i + 1).and_then(Option::as_ref).filter(|_| grids[i + 1].is_none());
            // few rows wait for memory, many share panels
            let next = || if few { grid.next_for(member, members) } else { grid.next() };
            while let Some((b, [first], [mut block])) = next() {
                let rows = blocks[b].clone();
                let width = block.row(0).len();
                if few && hidden > 0 {
                    let deltas = batch.spans.iter().filter_map(|s| s.delta);
                    deltas.for_each(|d| d.soon(level, task.site, first, width));
                }
                if task.base {
                    let Worker { tile, panel, spare, .. } = &mut *worker;
                    let whole = if other.is_some() { tile.len() / 2 } else { tile.len() };
                    let (tile, second) = tile.split_at_mut(whole);
                    // what layers add, they add while the outputs are close
                    let alone = !task.stands && !task.leaves;
                    let mut product = |task: &Task<'_>, tile: &mut [f32]| {
                        let stride =
                            outputs(level, scratch, task, u, rows.clone(), first, width, few, tile, panel);
                        if alone && hidden > 0 {
                            let mut y =
                                Block::alone(MatMut::new(&mut tile[..rows.len() * stride], stride), width);
                            add_hidden(level, batch, task, (all_hidden, hidden), first, &mut y, &rows, spare);
                        }
                        stride
                    };
                    let stride = product(task, tile);
                    if let Some(other) = other {
                        let apart = product(other, second);
                        for i in 0..rows.len() {
                            let (g, u) = (&tile[i * stride..][..width], &second[i * apart..][..width]);
                            swiglu(level, g, u, block.row(i));
                        }
                        continue;
                    }
                    publish(Mat::new(&tile[..rows.len() * stride], stride), &mut block);
                    if alone {
                        continue;
                    }
                }
                for span in batch.spans {
                    let part = span.range().start.max(rows.start)..span.range().end.min(rows.end);
                    if task.stands && !part.is_empty() {
                        let at = part.start - rows.start;
                        let own = span.delta.and_then(|d| d.matrix(task.site));
                        stand_in(level, task, own, u.part(part.clone()), first, &mut block, at, &mut worker);
                    }
                    if task.leaves && !part.is_empty() {
                        let part = part.start - rows.start..part.end - rows.start;
                        leave(span.delta, task, first, &mut block, part);
                    }
                }
                add_hidden(
                    level,
                    batch,
                    task,
                    (all_hidden, hidden),
                    first,
                    &mut block,
                    &rows,
                    &mut worker.spare,
                );
            }
        }
    });
    for p in products.iter_mut().flatten() {
        if let Some(y) = p.y.as_mut().filter(|_| says(batch, |d| d.follows(p.site))) {
            follow(host, batch, p.site, y.again());
        }
    }
}

/// What the layers of a batch add to the outputs `first..` of `rows` by their hidden numbers, `[rows][hidden]`.
#[allow(clippy::too_many_arguments)]
fn add_hidden(
    level: Level,
    batch: Batch<'_>,
    task: &Task<'_>,
    (h, hidden): (&[f32], usize),
    first: usize,
    y: &mut Block<'_>,
    rows: &Range<usize>,
    spare: &mut Vec<f32>,
) {
    for (run, delta) in runs(batch.spans) {
        let part = run.start.max(rows.start)..run.end.min(rows.end);
        if part.is_empty() || delta.width(task.site) == 0 {
            continue;
        }
        let h = &h[part.start * hidden + task.hidden..];
        let part = part.start - rows.start..part.end - rows.start;
        delta.finish(level, task.site, h, hidden, first, y, part, spare);
    }
}

/// Copies a member's outputs to where they belong.
fn publish(y: Mat<'_>, block: &mut Block<'_>) {
    for i in 0..y.rows() {
        let (from, to) = (y.row(i), block.row(i));
        // a task's usual width is known here: moves in place of a call for each row
        match (to.as_chunks_mut::<TASK>(), from.as_chunks::<TASK>()) {
            (([to], []), ([from], [])) => *to = *from,
            _ => to.copy_from_slice(&from[..to.len()]),
        }
    }
}

/// The product with a matrix of the layer's, for some rows: `block`'s from `at` on.
#[allow(clippy::too_many_arguments)]
fn stand_in(
    level: Level,
    task: &Task<'_>,
    own: Option<Lent<'_>>,
    x: Mat<'_>,
    first: usize,
    block: &mut Block<'_>,
    at: usize,
    worker: &mut Worker,
) {
    let Some(own) = own else { return };
    let (width, k) = (block.row(0).len(), x.cols());
    let w = bytemuck::cast_slice(&own[first * k..(first + width) * k]);
    let tile = &mut worker.tile[..x.rows() * width];
    dense::product(level, dense::Dense::F32, w, 4 * k, x.data(), k, tile, width);
    for (i, tile) in tile.chunks_exact(width).enumerate() {
        let y = block.row(at + i);
        match task.bias.filter(|_| !task.leaves) {
            None => y.copy_from_slice(tile),
            Some(bias) => y.iter_mut().zip(tile).zip(&bias[first..]).for_each(|((y, t), b)| *y = t + b),
        }
    }
}

/// Rounds one group of rows; packs it if the rows are many.
fn quantize(
    level: Level,
    grain: Grain,
    few: bool,
    x: Mat<'_>,
    rows: Range<usize>,
    group: &mut Group,
    worker: &mut Worker,
) {
    let (n, k) = (rows.len(), x.cols());
    if few {
        return round(level, grain, x.part(rows), group.write(grain, n, k));
    }
    let (small, large) = worker.staged.as_mut().expect("many rows were planned for");
    let staged = if grain == Grain::Small { small } else { large };
    round(level, grain, x.part(rows), staged.write(grain, n, k));
    acts::pack(level, grain, staged.read(grain, n, k), group.write(grain, acts::columns(level), k));
}

fn round(level: Level, grain: Grain, x: Mat<'_>, to: ActsMut<'_>) {
    let k = x.cols();
    let (blocks, pairs) = (k / grain.len(), k / 32);
    for i in 0..x.rows() {
        let to = ActsMut {
            q: &mut to.q[i * k..(i + 1) * k],
            d: &mut to.d[i * blocks..(i + 1) * blocks],
            sums: &mut to.sums[i * pairs..(i + 1) * pairs],
            wide: &mut [],
        };
        acts::quantize(level, grain, x.row(i), to);
    }
}

/// What a span's layer makes of the base's product and its bias.
fn leave(delta: Option<&dyn Delta>, task: &Task<'_>, first: usize, y: &mut Block<'_>, rows: Range<usize>) {
    match (delta.filter(|d| d.leaves(task.site)), task.bias) {
        (Some(delta), bias) => delta.leave(task.site, first, bias, y, rows),
        (None, Some(bias)) => {
            for i in rows {
                y.row(i).iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
            }
        }
        (None, None) => {}
    }
}

/// The hidden numbers `first..first + block.cols` of the rows of one piece, whichever sites they belong to.
#[allow(clippy::too_many_arguments)]
fn hidden_part(
    level: Level,
    delta: &dyn Delta,
    tasks: &[Option<Task<'_>>],
    x: Mat<'_>,
    first_row: usize,
    first: usize,
    block: &mut Block<'_>,
    (tile, spare): (&mut [f32], &mut Vec<f32>),
) {
    let end = first + block.row(0).len();
    for task in tasks.iter().flatten() {
        let width = delta.width(task.site);
        let (from, to) = (first.max(task.hidden), end.min(task.hidden + width));
        if from >= to {
            continue;
        }
        let units = from - task.hidden..to - task.hidden;
        let part = &mut tile[..x.rows() * units.len()];
        delta.prepare(level, task.site, first_row, x, units.clone(), part, spare);
        for (i, h) in part.chunks_exact(units.len()).enumerate() {
            block.row(i)[from - first..to - first].copy_from_slice(h);
        }
    }
}

/// Outputs `first..first + width` of the base for rows `rows`, into the member's tile; gives what its rows lie apart.
#[allow(clippy::too_many_arguments)]
fn outputs(
    level: Level,
    scratch: &Scratch,
    task: &Task<'_>,
    x: Mat<'_>,
    rows: Range<usize>,
    first: usize,
    width: usize,
    few: bool,
    tile: &mut [f32],
    panel: &mut [u32],
) -> usize {
    let (m, n) = (&task.matrix, rows.len());
    let w = m.part(first, width);
    // packed rows come in whole groups; their outputs lie TASK apart
    let (stride, columns) = match m.storage {
        Storage::Block(_) if !few => (TASK, acts::columns(level)),
        Storage::Dense(_) if x.rows() >= MANY => (TASK, dense_panel::columns(level)),
        _ => (width, 1),
    };
    let tile = &mut tile[..n.next_multiple_of(columns) * stride];
    let groups = m.storage.grain().map(|g| if g == Grain::Small { &scratch.small } else { &scratch.large });
    match (m.storage, groups) {
        (Storage::Dense(d), _) if x.rows() >= MANY => {
            let panel = bytemuck::cast_slice_mut(panel);
            super::dense::outputs(level, d, (w, m.row_bytes, m.cols), &scratch.packed, rows, panel, tile);
        }
        (Storage::Dense(d), _) => {
            dense::product(level, d, w, m.row_bytes, x.part(rows).data(), m.cols, tile, stride);
        }
        (Storage::Block(f), Some(groups)) if few => {
            let x = groups.read(0);
            (f.dot)(level, w, m.row_bytes, x.read(f.grain, n, m.cols), tile, stride);
        }
        (Storage::Block(f), Some(groups)) => {
            let (lanes, columns) = (panel::lanes(level), acts::columns(level));
            for from in (0..m.cols).step_by(PANEL) {
                let cut = PANEL.min(m.cols - from);
                let words = PanelMut::words(lanes, cut);
                for (p, scratch) in panel.chunks_mut(words).enumerate().take(width.div_ceil(lanes)) {
                    let rows = lanes.min(width - p * lanes);
                    let w = &w[p * lanes * m.row_bytes..(p * lanes + rows) * m.row_bytes];
                    (f.fill)(level, w, m.row_bytes, from, PanelMut::carve(scratch, lanes, cut));
                }
                // a panel stays close while the activations run down it
                for (p, scratch) in panel.chunks_mut(words).enumerate().take(width.div_ceil(lanes)) {
                    let panel = PanelMut::carve(scratch, lanes, cut);
                    for (i, g) in (rows.start / columns..rows.end.div_ceil(columns)).enumerate() {
                        let x = groups.read(g);
                        let x = x.read(f.grain, columns, m.cols);
                        let y = &mut tile[i * columns * TASK + p * lanes..];
                        (f.tile)(level, panel.view(), x, from, y, TASK);
                    }
                }
            }
        }
        (Storage::Block(f), None) => unreachable!("activations of {f:?} were rounded"),
    }
    if let Some(bias) = task.bias.filter(|_| !task.leaves) {
        for y in tile.chunks_exact_mut(stride).take(n) {
            y.iter_mut().zip(&bias[first..first + width]).for_each(|(y, b)| *y += b);
        }
    }
    stride
}
