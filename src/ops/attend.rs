//! Causal attention over cached keys and values; grouped query heads share a key head (GQA, Ainslie et al., 2023).
//!
//! # Forward
//! ```text
//! keys and values of these rows are rounded into the cache, then, for each row at position p and each head,
//! out = Σ_{j ≤ p} softmax_j(scale·q·k_j)·v_j            log_sum = log Σ_j e^{scale·q·k_j}
//! ```
//! tile by tile with a running softmax ([`onlay_kernels::attention`]): few rows over 16-bit keys and values where they lie,
//! others over copies in f32, with the same bits. The first positions may be the layer's own
//! ([`Delta::prefix`](super::Delta::prefix)): its keys and values go into the cache, rounded as all others, when the first
//! rows of a sequence do, which stand behind them. Every row sees them.
//!
//! # Backward
//! as there, over whole sequences (every span begins right behind the prefix); the rounding is taken as the identity. The
//! gradients of the prefix are summed over the sequences in their order, by one member for each key head.
//!
//! # Shapes
//! q, out `[rows][heads·head]`; k, v `[rows][key heads·head]`; log_sum `[rows][heads]`.

use super::kv::{Pool, TILE};
use super::scratch::Attending;
use super::{Host, Operation, Scratch, Span};
use crate::tensor::{Block, Grid, Mat, MatMut, Register};
use onlay_kernels::attention::{self, Cached, Keys, KeysBack, QueryBack, ROWS, Running};
use onlay_kernels::{Level, math};
use std::ops::Range;

/// See the module.
#[derive(Clone, Debug)]
pub struct Attend {
    /// Queries, turned.
    pub q: Register,
    /// Keys, turned.
    pub k: Register,
    /// Values.
    pub v: Register,
    /// Results.
    pub to: Register,
    /// Logarithms of the softmax's sums.
    pub log_sum: Register,
    /// Which layer of the cache.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Columns per head.
    pub head: usize,
    /// What scores are multiplied with.
    pub scale: f32,
}

impl Attend {
    /// Query heads per key head.
    pub fn group(&self) -> usize {
        self.heads / self.key_heads
    }

    /// The most rows of a piece ([`super::Batch::cut`]) so that one kernel call takes them with their grouped heads.
    pub fn longest_piece(group: usize) -> usize {
        (ROWS / group).max(1)
    }

    /// Copies the heads `first..first + group` of some rows side by side: `[rows · group][head]`.
    fn gather(&self, from: Mat<'_>, rows: Range<usize>, key_head: usize, to: &mut [f32]) {
        let (group, head) = (self.group(), self.head);
        for (row, to) in rows.zip(to.chunks_exact_mut(group * head)) {
            to.copy_from_slice(&from.row(row)[key_head * group * head..(key_head + 1) * group * head]);
        }
    }

    /// Keys that rows from `position` on see in tile `t`, each for its `group` heads.
    fn see(&self, position: usize, rows: usize, t: usize, valid: &mut [usize]) {
        for (i, v) in valid[..rows * self.group()].iter_mut().enumerate() {
            *v = (position + i / self.group() + 1).saturating_sub(t * TILE).min(TILE);
        }
    }
}

impl Operation for Attend {
    fn reads(&self) -> Vec<Register> {
        vec![self.q, self.k, self.v]
    }
    fn writes(&self) -> Vec<Register> {
        vec![self.to, self.log_sum]
    }

    fn forward(&self, host: &mut Host<'_>) {
        let (level, batch, scratch) = (host.level, host.batch, host.scratch);
        let (q, k, v) = (host.frame.read(self.q), host.frame.read(self.k), host.frame.read(self.v));
        for span in batch.spans {
            self.lay_prefix(span, host.kv, scratch);
            for row in span.range() {
                let position = span.position + row - span.first;
                host.kv.store(self.layer, span.tiles, position, k.mat().row(row), v.mat().row(row));
            }
        }
        let pool: &Pool = host.kv;
        let (mut to, mut log_sum) = (host.frame.write(self.to), host.frame.write(self.log_sum));
        let (group, head, scale) = (self.group(), self.head, self.scale);
        let grid = Grid::new([to.mat(), log_sum.mat()], batch.pieces, [group * head, group]);
        host.team.run(&|member| {
            let a = &mut scratch.workers.get(member).attend;
            while let Some((piece, [first, _], [mut to, mut log_sum])) = grid.next() {
                let rows = batch.pieces[piece].clone();
                let span = batch.span_of(rows.start);
                let position = span.position + rows.start - span.first;
                let (n, key_head) = (rows.len() * group, first / (group * head));
                self.gather(q.mat(), rows.clone(), key_head, &mut a.q);
                attention::ready(level, head, &a.q[..n * head], &mut a.kernel);
                a.state[..n].fill(Running::START);
                a.o[..n * head].fill(0.0);
                let few = attention::few_enough(level, head, n);
                let half = |tile: u32| pool.half(self.layer, tile, key_head).filter(|_| few);
                for (t, tile) in span.tiles.iter().enumerate().take((position + rows.len()).div_ceil(TILE)) {
                    self.see(position, rows.len(), t, &mut a.valid);
                    let (valid, state, o) = (&a.valid[..n], &mut a.state[..n], &mut a.o[..n * head]);
                    if let Some(now) = half(*tile) {
                        let next = span.tiles.get(t + 1).and_then(|next| half(*next)).unwrap_or(now);
                        let keys = Cached { now, next };
                        attention::forward_cached(level, head, scale, keys, valid, state, o, &mut a.kernel);
                        continue;
                    }
                    pool.keys(level, self.layer, *tile, key_head, &mut a.kt);
                    pool.values(level, self.layer, *tile, key_head, &mut a.v);
                    let keys = Keys { kt: &a.kt, v: &a.v };
                    attention::forward(level, head, scale, keys, valid, state, o, &mut a.kernel);
                }
                attention::finish(level, head, &a.state[..n], &mut a.o[..n * head]);
                for i in 0..rows.len() {
                    to.row(i).copy_from_slice(&a.o[i * group * head..(i + 1) * group * head]);
                    for (to, state) in log_sum.row(i).iter_mut().zip(&a.state[i * group..]) {
                        *to = state.log_sum();
                    }
                }
            }
        });
    }

    fn backward(&self, host: &mut Host<'_>) {
        let (level, batch, scratch) = (host.level, host.batch, host.scratch);
        let (frame, grads) = (host.frame, host.grads());
        let (q, out, log_sum) = (frame.read(self.q), frame.read(self.to), frame.read(self.log_sum));
        let d_out = grads.read(self.to);
        let (mut dq, mut dk, mut dv) = (grads.write(self.q), grads.write(self.k), grads.write(self.v));
        let (group, head) = (self.group(), self.head);
        let pool: &Pool = host.kv;
        let all = [q.mat(), out.mat(), d_out.mat(), log_sum.mat()];
        let mut whole = [const { 0..0 }; 64];
        for some in batch.spans.chunks(whole.len()) {
            for (w, span) in whole.iter_mut().zip(some) {
                assert_eq!(span.position, prefix(span), "gradients are of whole sequences");
                *w = span.range();
            }
            let grid =
                Grid::new([dq.mat(), dk.mat(), dv.mat()], &whole[..some.len()], [group * head, head, head]);
            host.team.run(&|member| {
                let a = &mut scratch.workers.get(member).attend;
                while let Some((s, [first, ..], [mut dq, mut dk, mut dv])) = grid.next() {
                    let (span, key_head) = (&some[s], first / (group * head));
                    for from in (0..span.rows).step_by(Self::longest_piece(group)) {
                        let m = Self::longest_piece(group).min(span.rows - from);
                        let (n, first) = (m * group, span.position);
                        self.ready(level, span.first + from..span.first + from + m, key_head, all, a);
                        let end = first + from + m;
                        for (t, tile) in span.tiles.iter().enumerate().take(end.div_ceil(TILE)) {
                            self.see(first + from, m, t, &mut a.valid);
                            self.tile_back(level, pool, *tile, key_head, n, a);
                            let here = t * TILE..(first + span.rows).min((t + 1) * TILE);
                            let each = here.zip(a.dk.chunks_exact(head).zip(a.dv.chunks_exact(head)));
                            for (position, (k, v)) in each.filter(|(position, _)| *position >= first) {
                                math::add_scaled(level, 1.0, k, dk.row(position - first));
                                math::add_scaled(level, 1.0, v, dv.row(position - first));
                            }
                        }
                        for i in 0..m {
                            let part = &a.dq[i * group * head..(i + 1) * group * head];
                            math::add_scaled(level, 1.0, part, dq.row(from + i));
                        }
                    }
                }
            });
        }
        let prefix = batch.spans.iter().map(prefix).max().unwrap_or(0);
        let Some(learner) = host.learner.filter(|l| prefix > 0 && l.learns_prefix()) else { return };
        let cols = self.key_heads * head;
        let mut lead = scratch.lead.get(0);
        for of in lead.iter_mut() {
            of.resize((prefix * cols).max(of.len()), 0.0);
        }
        let [keys, values] = &mut *lead;
        let (keys, values) = (&mut keys[..prefix * cols], &mut values[..prefix * cols]);
        keys.fill(0.0);
        values.fill(0.0);
        let whole = 0..prefix;
        let mats = [MatMut::new(keys, cols), MatMut::new(values, cols)];
        let grid = Grid::new(mats, std::slice::from_ref(&whole), [head, head]);
        host.team.run(&|member| {
            let a = &mut scratch.workers.get(member).attend;
            while let Some((_, [first, _], [mut dk, mut dv])) = grid.next() {
                self.prefix_back(level, batch.spans, pool, first / head, all, a, [&mut dk, &mut dv]);
            }
        });
        learner.prefix_back(self.layer, keys, values);
    }
}

/// Positions of a sequence that are its layer's.
fn prefix(span: &Span<'_>) -> usize {
    span.delta.map_or(0, |d| d.prefix())
}

/// What a backward pass reads: q, out, d_out, log_sum.
type Reads<'a> = [Mat<'a>; 4];

impl Attend {
    /// Writes the layer's keys and values in front of a sequence that begins with this span.
    fn lay_prefix(&self, span: &Span<'_>, pool: &mut Pool, scratch: &Scratch) {
        let Some(delta) = span.delta.filter(|d| d.prefix() > 0 && d.prefix() == span.position) else {
            return;
        };
        let cols = self.key_heads * self.head;
        scratch.with_spare(0, 2 * cols, |row| {
            let (key, value) = row.split_at_mut(cols);
            for position in 0..span.position {
                delta.prefix_row(self.layer, position, key, value);
                pool.store(self.layer, span.tiles, position, key, value);
            }
        });
    }

    /// Gathers what the backward pass needs of some rows of a span.
    fn ready(&self, level: Level, rows: Range<usize>, key_head: usize, from: Reads<'_>, a: &mut Attending) {
        let (group, head) = (self.group(), self.head);
        let [q, out, d_out, log_sum] = from;
        self.gather(q, rows.clone(), key_head, &mut a.q);
        self.gather(out, rows.clone(), key_head, &mut a.o);
        self.gather(d_out, rows.clone(), key_head, &mut a.d_out);
        let n = rows.len() * group;
        for i in 0..n {
            let part = i * head..(i + 1) * head;
            a.delta[i] = math::inner(level, &a.o[part.clone()], &a.d_out[part]);
            a.log_sum[i] = log_sum.row(rows.start + i / group)[key_head * group + i % group];
        }
        a.dq[..n * head].fill(0.0);
        attention::ready(level, head, &a.q[..n * head], &mut a.kernel);
        attention::ready_back(level, head, &a.d_out[..n * head], &mut a.kernel);
    }

    /// Adds the gradients of one key head of the prefix, sequence by sequence.
    #[allow(clippy::too_many_arguments)]
    fn prefix_back(
        &self,
        level: Level,
        spans: &[Span<'_>],
        pool: &Pool,
        key_head: usize,
        from: Reads<'_>,
        a: &mut Attending,
        [dk, dv]: [&mut Block<'_>; 2],
    ) {
        let (group, head) = (self.group(), self.head);
        let longest = Self::longest_piece(group);
        for span in spans.iter().filter(|s| prefix(s) > 0) {
            for first in span.range().step_by(longest) {
                let rows = first..(first + longest).min(span.range().end);
                let (m, n) = (rows.len(), rows.len() * group);
                let position = span.position + first - span.first;
                self.ready(level, rows, key_head, from, a);
                for (t, tile) in span.tiles.iter().enumerate().take(span.position.div_ceil(TILE)) {
                    self.see(position, m, t, &mut a.valid);
                    self.tile_back(level, pool, *tile, key_head, n, a);
                    let here = t * TILE..span.position.min((t + 1) * TILE);
                    let each = here.zip(a.dk.chunks_exact(head).zip(a.dv.chunks_exact(head)));
                    for (position, (k, v)) in each {
                        math::add_scaled(level, 1.0, k, dk.row(position));
                        math::add_scaled(level, 1.0, v, dv.row(position));
                    }
                }
            }
        }
    }

    /// One tile's gradients for `n` gathered query rows: into dk and dv, added to dq.
    fn tile_back(&self, level: Level, pool: &Pool, tile: u32, key_head: usize, n: usize, a: &mut Attending) {
        let head = self.head;
        pool.keys(level, self.layer, tile, key_head, &mut a.kt);
        pool.values(level, self.layer, tile, key_head, &mut a.v);
        for d in 0..head {
            for j in 0..TILE {
                a.k[j * head + d] = a.kt[d * TILE + j];
                a.vt[d * TILE + j] = a.v[j * head + d];
            }
        }
        a.dk.fill(0.0);
        a.dv.fill(0.0);
        let query = QueryBack {
            q: &a.q[..n * head],
            d_out: &a.d_out[..n * head],
            log_sum: &a.log_sum[..n],
            delta: &a.delta[..n],
            valid: &a.valid[..n],
        };
        let keys = KeysBack { kt: &a.kt, k: &a.k, vt: &a.vt };
        let dq = &mut a.dq[..n * head];
        attention::backward(level, head, self.scale, query, keys, dq, &mut a.dk, &mut a.dv, &mut a.kernel);
    }
}
