//! Causal attention over cached keys and values; grouped query heads share a key head (GQA, Ainslie et al., 2023).
//!
//! # Forward
//! ```text
//! keys and values of these rows are rounded into the cache, then, for each row at position p and each head,
//! out = Σ_{j ≤ p} softmax_j(scale·q·k_j)·v_j            log_sum = log Σ_j e^{scale·q·k_j}
//! ```
//! tile by tile with a running softmax ([`onlay_kernels::attention`]).
//!
//! # Backward
//! as there, over whole sequences (every span begins at position 0); the rounding is taken as the identity.
//!
//! # Shapes
//! q, out `[rows][heads·head]`; k, v `[rows][key heads·head]`; log_sum `[rows][heads]`.

use super::kv::{Pool, TILE};
use super::scratch::Attending;
use super::{Host, Operation};
use crate::tensor::{Grid, Mat, Register};
use onlay_kernels::Level;
use onlay_kernels::attention::{self, Keys, KeysBack, QueryBack, ROWS, Running};

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
    fn gather(&self, from: Mat<'_>, rows: std::ops::Range<usize>, key_head: usize, to: &mut [f32]) {
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
            for row in span.range() {
                let position = span.position + row - span.first;
                host.kv.store(self.layer, span.tiles, position, k.mat().row(row), v.mat().row(row));
            }
        }
        let pool: &Pool = host.kv;
        let (mut to, mut log_sum) = (host.frame.write(self.to), host.frame.write(self.log_sum));
        let (group, head) = (self.group(), self.head);
        let grid = Grid::new([to.mat(), log_sum.mat()], batch.pieces, [group * head, group]);
        host.team.run(&|member| {
            let a = &mut scratch.workers.get(member).attend;
            while let Some((piece, [first, _], [mut to, mut log_sum])) = grid.next() {
                let rows = batch.pieces[piece].clone();
                let span = batch.span_of(rows.start);
                let position = span.position + rows.start - span.first;
                let (n, key_head) = (rows.len() * group, first / (group * head));
                self.gather(q.mat(), rows.clone(), key_head, &mut a.q);
                a.state[..n].fill(Running::START);
                a.o[..n * head].fill(0.0);
                for (t, tile) in span.tiles.iter().enumerate().take((position + rows.len()).div_ceil(TILE)) {
                    pool.keys(level, self.layer, *tile, key_head, &mut a.kt);
                    pool.values(level, self.layer, *tile, key_head, &mut a.v);
                    self.see(position, rows.len(), t, &mut a.valid);
                    let keys = Keys { kt: &a.kt, v: &a.v };
                    let (q, o) = (&a.q[..n * head], &mut a.o[..n * head]);
                    let (valid, state) = (&a.valid[..n], &mut a.state[..n]);
                    attention::forward(level, head, self.scale, q, keys, valid, state, o, &mut a.kernel);
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
        let mut whole = [const { 0..0 }; 64];
        for some in batch.spans.chunks(whole.len()) {
            for (w, span) in whole.iter_mut().zip(some) {
                assert_eq!(span.position, 0, "gradients are of whole sequences");
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
                        let (n, rows) = (m * group, span.first + from..span.first + from + m);
                        self.gather(q.mat(), rows.clone(), key_head, &mut a.q);
                        self.gather(out.mat(), rows.clone(), key_head, &mut a.o);
                        self.gather(d_out.mat(), rows.clone(), key_head, &mut a.d_out);
                        for i in 0..n {
                            let part = i * head..(i + 1) * head;
                            a.delta[i] =
                                onlay_kernels::math::inner(level, &a.o[part.clone()], &a.d_out[part]);
                            a.log_sum[i] =
                                log_sum.mat().row(rows.start + i / group)[key_head * group + i % group];
                        }
                        a.dq[..n * head].fill(0.0);
                        for (t, tile) in span.tiles.iter().enumerate().take((from + m).div_ceil(TILE)) {
                            self.see(from, m, t, &mut a.valid);
                            self.tile_back(level, pool, *tile, key_head, n, a);
                            let last = TILE.min(span.rows - t * TILE);
                            for (j, (k, v)) in
                                a.dk.chunks_exact(head).zip(a.dv.chunks_exact(head)).enumerate().take(last)
                            {
                                onlay_kernels::math::add_scaled(level, 1.0, k, dk.row(t * TILE + j));
                                onlay_kernels::math::add_scaled(level, 1.0, v, dv.row(t * TILE + j));
                            }
                        }
                        for i in 0..m {
                            let part = &a.dq[i * group * head..(i + 1) * group * head];
                            onlay_kernels::math::add_scaled(level, 1.0, part, dq.row(from + i));
                        }
                    }
                }
            });
        }
    }
}

impl Attend {
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
