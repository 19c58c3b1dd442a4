//! Unquantized weights times many rows of activations: prompts, batches, training.
//!
//! # Forward
//! The sums of [`crate::dense`], operation for operation, the other way about. There the lanes of a register are the
//! L sums a_0 … a_{L−1} of one output; here they are as many outputs, whose sums a_j are made one j after the other, so that
//! weights are converted once for all columns and a tile of two registers of rows by [`columns`] columns loads little. The
//! tree is that of `simd::wide::sum`, which adds halves: with j in the order of its reversed bits, neighbours are added as
//! soon as both are there, and no more than log₂ L tiles wait.
//!
//! # Shapes
//! Of a cut of at most [`PIECE`] elements, with L lanes and s = ⌈cut/L⌉ steps, element i·L + j lies at `[j][i]`; zeros
//! behind the last. A step that nobody reads follows each part j: parts that lie a power of two apart share cache sets.
//! ```text
//! panel [L][s + 1][rows]       rows of weights, as f32
//! x     [L][s + 1][columns]    rows of activations, for every cut
//! y[c·stride + r]              rows × columns; written for the first cut, added to for later ones, in order
//! ```

use crate::dense::{Dense, PIECE, padded};
use core::ops::Range;

levels! {
    {
        /// Elements i·L … of L rows, turned: register j holds element i·L + j of every row.
        fn turn[T: bytemuck::Pod, F: Fn(&[T; simd::wide::LANES]) -> simd::wide::Floats](
            rows: &[&[T]; simd::wide::LANES], i: usize, load: F) -> [simd::wide::Ints; simd::wide::LANES] {
            const L: usize = simd::wide::LANES;
            const P: usize = simd::wide::PIECES;
            let mut block = [[[0u8; 16]; P]; L];
            for (to, row) in block.iter_mut().zip(rows) {
                let row = &row[i * L..];
                *to = bytemuck::must_cast(match row.first_chunk() {
                    Some(whole) => load(whole),
                    None => load(&padded(row)),
                });
            }
            let mut turned = [simd::wide::zero_ints(); L];
            for (q, turned) in turned.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *turned = simd::wide::turn_pieces(core::array::from_fn(|i| {
                    simd::wide::pieces(core::array::from_fn(|p| &block[4 * p + i][q]))
                }));
            }
            turned
        }

        fn lay_rows[T: bytemuck::Pod, F: Fn(&[T; simd::wide::LANES]) -> simd::wide::Floats](
            w: &[u8], row_bytes: usize, cut: Range<usize>, to: &mut [f32], load: F) {
            const L: usize = simd::wide::LANES;
            let (n, steps) = (w.len() / row_bytes, cut.len().div_ceil(L));
            let lines = (L * cut.len() * size_of::<T>()).div_ceil(64 * steps);
            let (to, _) = bytemuck::cast_slice_mut::<f32, i32>(to).as_chunks_mut::<L>();
            let (to, _) = to.as_chunks_mut::<2>();
            for g in 0..2 {
                let here = &w[..w.len().min((g + 1) * L * row_bytes)];
                let rows = core::array::from_fn(|r| {
                    &bytemuck::cast_slice::<u8, T>(&w[(g * L + r).min(n - 1) * row_bytes..])[cut.clone()]
                });
                for i in 0..steps {
                    at::quads::ask(here, i * lines, lines);
                    for (j, lanes) in turn(&rows, i, |v| load(v)).into_iter().enumerate() {
                        simd::wide::store_ints(&mut to[j * (steps + 1) + i][g], lanes);
                    }
                }
            }
        }

        /// The sums a_j of one tile.
        fn part(x: &[[f32; simd::wide::ROWS]], w: &[[[f32; simd::wide::LANES]; 2]])
            -> [[simd::wide::Floats; 2]; simd::wide::ROWS] {
            let mut acc = [[simd::wide::zero(); 2]; simd::wide::ROWS];
            for (x, w) in x.iter().zip(w) {
                let w = [simd::wide::load(&w[0]), simd::wide::load(&w[1])];
                for (acc, x) in acc.iter_mut().zip(x) {
                    let x = simd::wide::splat(*x);
                    acc[0] = simd::wide::fma(x, w[0], acc[0]);
                    acc[1] = simd::wide::fma(x, w[1], acc[1]);
                }
            }
            acc
        }
    }

    /// Rows of weights of a panel at this level.
    pub fn rows() -> usize {
        2 * simd::wide::LANES
    }

    /// Rows of activations of a group at this level.
    pub fn columns() -> usize {
        simd::wide::ROWS
    }

    /// Numbers that k elements of a row take in panels or groups.
    pub fn length(k: usize) -> usize {
        k.next_multiple_of(simd::wide::LANES) + k.div_ceil(PIECE) * simd::wide::LANES
    }

    /// Lays a cut of at most [`rows`] rows of `dense` weights into a panel; behind them the last one again.
    pub fn lay(dense: Dense, w: &[u8], row_bytes: usize, cut: Range<usize>, to: &mut [f32]) {
        match dense {
            Dense::F32 => lay_rows::<f32, _>(w, row_bytes, cut, to, |v| simd::wide::load(v)),
            Dense::F16 => lay_rows::<u16, _>(w, row_bytes, cut, to, |v| simd::wide::load_f16(v)),
            Dense::Bf16 => lay_rows::<u16, _>(w, row_bytes, cut, to, |v| simd::wide::load_bf16(v)),
        }
    }

    /// Packs at most [`columns`] rows of k elements, cut by cut; behind them the last one again.
    pub fn pack(x: &[f32], k: usize, to: &mut [f32]) {
        const L: usize = simd::wide::LANES;
        const R: usize = simd::wide::ROWS;
        let n = x.len() / k;
        for (cut, to) in (0..k).step_by(PIECE).zip(to.chunks_mut((PIECE + L) * R)) {
            let (to, _) = to.as_chunks_mut::<R>();
            let rows = core::array::from_fn(|r| &x[r.min(n - 1) * k..][cut..k.min(cut + PIECE)]);
            let steps = rows[0].len().div_ceil(L);
            for i in 0..steps {
                for (j, lanes) in turn(&rows, i, |v| simd::wide::load(v)).into_iter().enumerate() {
                    let lanes: [f32; L] = bytemuck::must_cast(lanes);
                    to[j * (steps + 1) + i].copy_from_slice(&lanes[..R]);
                }
            }
        }
    }

    /// The products of one panel with one packed group: the elements from `from` on, `cut` of them.
    pub fn tile(panel: &[f32], x: &[f32], from: usize, cut: usize, y: &mut [f32], stride: usize) {
        const L: usize = simd::wide::LANES;
        const R: usize = simd::wide::ROWS;
        const DEPTH: usize = L.ilog2() as usize;
        let (w, _) = panel.as_chunks::<L>();
        let (w, _) = w.as_chunks::<2>();
        let (x, _) = x[from / PIECE * (PIECE + L) * R..].as_chunks::<R>();
        let (apart, mut waiting) = (cut.div_ceil(L) + 1, [[[[0f32; L]; 2]; R]; DEPTH]);
        for t in 0..L {
            let j = t.reverse_bits() >> (usize::BITS as usize - DEPTH);
            let steps = j * apart..(j + 1) * apart - 1;
            let mut sum = part(&x[steps.clone()], &w[steps]);
            // as many wait as t has ones; its last ones are neighbours of this sum, of 1, 2, 4 … parts
            let (all, left) = (t.count_ones() as usize, (t.count_ones() - t.trailing_ones()) as usize);
            for other in waiting[left..all].iter().rev() {
                for (sum, other) in sum.iter_mut().zip(other) {
                    *sum = [0, 1].map(|g| simd::wide::add(sum[g], simd::wide::load(&other[g])));
                }
            }
            for (to, sum) in waiting[left].iter_mut().zip(sum) {
                simd::wide::store(&mut to[0], sum[0]);
                simd::wide::store(&mut to[1], sum[1]);
            }
        }
        for (c, sum) in waiting[0].iter().enumerate() {
            let y = &mut y[c * stride..][..2 * L];
            if from == 0 {
                y.copy_from_slice(sum.as_flattened());
            } else {
                y.iter_mut().zip(sum.as_flattened()).for_each(|(y, s)| *y += s);
            }
        }
    }
}
