//! The words of a program as launches, forward and backward side by side. The equations are at the heads of
//! `kernels/cuda/*.cu`.

use super::facts::View;
use super::products::Operands;
use super::queue::{Argument, Region};
use super::{Cuda, Dropping};
use crate::error::Result;
use crate::ops::{Attend, Backward, Batch, Embed, Linear, Norm, Rotate, Step, Tables};
use crate::tensor::Register;
use onlay_kernels::rope::Pairs;

/// Pieces of fewer numbers are normalised by a warp each, longer ones by a block.
const WIDE: usize = 512;

/// Lines of queries in a block of attention.
const LINES: usize = 8;

/// Blocks that share the keys of a token alone: with eight key heads they are as many as a large card has
/// multiprocessors.
pub(super) const PARTS: usize = 16;

/// The most rows whose keys are shared so; more keep a card busy by themselves.
pub(super) const PARTED: usize = 64;

/// Shared memory that every card gives without being asked.
const SHARED: usize = 48 << 10;

/// Keys that attention takes at a time: a tile or a part of it, at most as many as a warp has lanes.
pub(super) fn chunk(head: usize) -> usize {
    let fits = |c: &usize| c * head <= 4096 && 4 * (2 * c * (head + 1) + 2 * LINES * (head + 32)) <= SHARED;
    [32, 16].into_iter().find(fits).unwrap_or(8)
}

/// What a backward pass knows besides.
#[derive(Clone, Copy)]
pub(super) struct Back<'a> {
    pub learner: &'a dyn Backward,
    /// Where the learner is.
    pub slot: Option<usize>,
    pub wanted: Option<&'a [bool]>,
}

impl Back<'_> {
    fn wants(&self, r: Register) -> bool {
        self.wanted.is_none_or(|w| w[usize::from(r.0)])
    }
}

impl Cuda {
    fn register(&self, r: Register) -> Region {
        self.frames[self.frame][usize::from(r.0)]
    }

    fn grad(&self, r: Register) -> Region {
        self.grads[usize::from(r.0)]
    }

    fn cols(&self, r: Register) -> usize {
        self.cols[usize::from(r.0)]
    }

    /// A kernel with one thread for each of n numbers.
    fn each_number(&mut self, name: &'static str, n: usize, with: &[Argument]) -> Result<()> {
        self.launch(name, [n.div_ceil(256), 1, 1], 256, 0, with)
    }

    pub(super) fn forward_step(
        &mut self,
        tables: &dyn Tables,
        step: &Step,
        batch: Batch<'_>,
        view: View,
        drop: Dropping,
    ) -> Result<()> {
        let rows = view.rows;
        match step {
            Step::Embed(s) => self.embed(tables, s, batch),
            Step::Norm(s) => self.norm(tables, s, rows),
            Step::Linear(s) => self.linear(tables, s, view, drop),
            Step::Rotate(s) => self.rotate(tables, s, self.register(s.x), view, 1.0),
            Step::Attend(s) => self.attend(s, view),
            Step::Gate(s) => {
                let n = rows * self.cols(s.to);
                let [g, u, to] = [s.gate, s.up, s.to].map(|r| self.register(r));
                self.each_number("gate", n, arguments![g, u, n as u64, to])
            }
            Step::Add(s) => {
                let n = rows * self.cols(s.to);
                let [a, b, to] = [s.a, s.b, s.to].map(|r| self.register(r));
                self.each_number("add", n, arguments![a, b, n as u64, to])
            }
        }
    }

    pub(super) fn backward_step(
        &mut self,
        tables: &dyn Tables,
        step: &Step,
        view: View,
        drop: Dropping,
        back: Back<'_>,
    ) -> Result<()> {
        let rows = view.rows;
        match step {
            // frozen, and layers that learn embeddings are not let in
            Step::Embed(_) => Ok(()),
            Step::Norm(s) if !back.wants(s.x) => Ok(()),
            Step::Norm(s) => self.norm_grad(tables, s, rows),
            Step::Linear(s) => self.linear_grad(tables, s, view, drop, back),
            Step::Rotate(s) => self.rotate(tables, s, self.grad(s.x), view, -1.0),
            Step::Attend(s) => self.attend_grad(s, view),
            Step::Gate(s) => {
                let n = rows * self.cols(s.to);
                let [g, u] = [s.gate, s.up].map(|r| self.register(r));
                let [dg, du, dy] = [s.gate, s.up, s.to].map(|r| self.grad(r));
                self.each_number("gate_grad", n, arguments![g, u, dy, n as u64, dg, du])
            }
            Step::Add(s) => {
                let n = rows * self.cols(s.to);
                let dy = self.grad(s.to);
                for r in [s.a, s.b] {
                    let dx = self.grad(r);
                    self.each_number("accumulate", n, arguments![dy, n as u64, dx])?;
                }
                Ok(())
            }
        }
    }

    /// Rows of the table, decoded where it lies.
    fn embed(&mut self, tables: &dyn Tables, s: &Embed, batch: Batch<'_>) -> Result<()> {
        let (table, level) = (tables.matrix(s.table), self.level);
        let rows = &mut self.rows[..batch.rows() * table.cols];
        let pieces = crate::tensor::Chunks::new([rows], table.cols);
        self.team.each(batch.rows(), |_, _| {
            if let Some((i, [row])) = pieces.next() {
                table.decode(level, batch.tokens[i] as usize, 0, row);
            }
        });
        let to = self.register(s.to);
        self.stream.upload(bytemuck::cast_slice(&self.rows[..batch.rows() * table.cols]), to)
    }

    /// Grid of a norm over pieces of n numbers, and whether a piece has a block of its own.
    fn norm_grid(n: usize, pieces: usize) -> ([usize; 3], i32) {
        if n >= WIDE { ([pieces, 1, 1], 1) } else { ([pieces.div_ceil(8), 1, 1], 0) }
    }

    fn norm(&mut self, tables: &dyn Tables, s: &Norm, rows: usize) -> Result<()> {
        let (w, n) = (self.vectors[s.weight.0 as usize], tables.vector(s.weight).len());
        let pieces = rows * self.cols(s.x) / n;
        let (grid, wide) = Self::norm_grid(n, pieces);
        let (x, to) = (self.register(s.x), self.register(s.to));
        self.launch("rms_norm", grid, 256, 0, arguments![x, w, s.eps, n, pieces, wide, to])
    }

    fn norm_grad(&mut self, tables: &dyn Tables, s: &Norm, rows: usize) -> Result<()> {
        let (w, n) = (self.vectors[s.weight.0 as usize], tables.vector(s.weight).len());
        let pieces = rows * self.cols(s.x) / n;
        let (grid, wide) = Self::norm_grid(n, pieces);
        let (x, dy, dx) = (self.register(s.x), self.grad(s.to), self.grad(s.x));
        self.launch("rms_norm_grad", grid, 256, 0, arguments![x, w, s.eps, n, pieces, wide, dy, dx])
    }

    fn linear(&mut self, tables: &dyn Tables, s: &Linear, view: View, drop: Dropping) -> Result<()> {
        for o in &s.outputs {
            let bias = o.bias.map_or(Region::NONE, |b| self.vectors[b.0 as usize]);
            let of = Operands { rows: view.rows, x: self.register(s.x), y: self.register(o.to) };
            self.multiply(tables, o.matrix, bias, of)?;
            self.pairs(view, drop, o.site, of)?;
        }
        Ok(())
    }

    fn linear_grad(
        &mut self,
        tables: &dyn Tables,
        s: &Linear,
        view: View,
        drop: Dropping,
        back: Back<'_>,
    ) -> Result<()> {
        let dx = back.wants(s.x).then(|| self.grad(s.x));
        for o in &s.outputs {
            let of = Operands { rows: view.rows, x: self.register(s.x), y: self.grad(o.to) };
            let learner = (drop, back.slot, back.learner);
            self.site_back(tables, (o.site, o.matrix), view, learner, of, dx)?;
        }
        Ok(())
    }

    /// Turns x by the angles of the rows' positions, or by the opposite ones.
    fn rotate(&mut self, tables: &dyn Tables, s: &Rotate, x: Region, view: View, sign: f32) -> Result<()> {
        let turns = tables.turns();
        let (half, heads) = (turns.half(), self.cols(s.x) / s.head);
        let adjacent = i32::from(turns.pairs == Pairs::Adjacent);
        let n = view.rows * heads * half;
        let [cos, sin] = self.turns;
        let with = arguments![x, view.positions, cos, sin, view.rows, heads, s.head, half, adjacent, sign];
        self.each_number("rotate", n, with)
    }

    /// The part of the cache that is a layer's.
    fn cache(&self, layer: usize) -> Region {
        let bytes = self.kv.whole().bytes() / self.shape.layers as u64;
        self.kv.whole().part(bytes * (layer % self.shape.layers) as u64, bytes)
    }

    /// What the kernels of attention take first that go through a line's keys.
    fn lines(&self, s: &Attend, view: View) -> [Argument; 13] {
        let View { positions, tiles, first_tile, pieces, .. } = view;
        let [q, cache, tiles, first_tile, positions, pieces] =
            [self.register(s.q), self.cache(s.layer), tiles, first_tile, positions, pieces]
                .map(Argument::from);
        let [heads, key_heads, head, chunk] =
            [s.heads, s.key_heads, s.head, chunk(s.head)].map(Argument::from);
        let [kind, no_window] = [self.kind(), 0].map(Argument::from);
        let scale = Argument::from(s.scale);
        [
            q, cache, kind, tiles, first_tile, positions, pieces, heads, key_heads, head, chunk, scale,
            no_window,
        ]
    }

    /// Shared memory for keys and values of a chunk, and so many numbers for each line.
    fn room(s: &Attend, of_line: usize) -> usize {
        4 * (2 * chunk(s.head) * (s.head + 1) + LINES * of_line)
    }

    fn attend(&mut self, s: &Attend, view: View) -> Result<()> {
        let [k, v, out, log_sum] = [s.k, s.v, s.to, s.log_sum].map(|r| self.register(r));
        let (cache, kind, View { positions, tiles, first_tile, .. }) =
            (self.cache(s.layer), self.kind(), view);
        let keep = arguments![k, v, positions, tiles, first_tile, s.key_heads, s.head, kind, cache];
        self.launch("keep", [view.rows, 1, 1], 256, 0, keep)?;
        let (first, shared) = (self.lines(s, view), Self::room(s, s.head));
        if view.longest_piece == 1 && s.group() <= LINES && view.rows <= PARTED {
            let (parts, lines) = (self.parts, view.rows * s.heads);
            let grid = [view.piece_count, s.key_heads, PARTS];
            self.launch_both("attend_parts", grid, shared, &first, arguments![parts])?;
            let with = arguments![parts, PARTS, lines, s.head, out, log_sum];
            return self.launch("attend_join", [lines.div_ceil(LINES), 1, 1], 256, 0, with);
        }
        let grid = [view.piece_count, s.key_heads, (view.longest_piece * s.group()).div_ceil(LINES)];
        self.launch_both("attend", grid, shared, &first, arguments![out, log_sum])
    }

    fn attend_grad(&mut self, s: &Attend, view: View) -> Result<()> {
        let [q, out, log_sum] = [s.q, s.to, s.log_sum].map(|r| self.register(r));
        let [dq, dk, dv, d_out] = [s.q, s.k, s.v, s.to].map(|r| self.grad(r));
        let (lines, delta) = (view.rows * s.heads, self.delta);
        let with = arguments![out, d_out, lines, s.head, delta];
        self.launch("attend_delta", [lines.div_ceil(LINES), 1, 1], 256, 0, with)?;
        let grid = [view.piece_count, s.key_heads, (view.longest_piece * s.group()).div_ceil(LINES)];
        let (first, back) = (self.lines(s, view), arguments![d_out, log_sum, delta, dq]);
        self.launch_both("attend_grad_queries", grid, Self::room(s, 2 * s.head), &first, back)?;
        let (cache, kind, View { tiles, first_tile, chunks, .. }) = (self.cache(s.layer), self.kind(), view);
        let first = arguments![q, cache, kind, tiles, first_tile, chunks, s.heads, s.key_heads, s.head];
        let back = arguments![chunk(s.head), s.scale, 0, d_out, log_sum, delta, dk, dv];
        let grid = [view.chunk_count, s.key_heads, 1];
        self.launch_both("attend_grad_keys", grid, Self::room(s, 2 * s.head + 2 * 32), first, back)
    }
}
