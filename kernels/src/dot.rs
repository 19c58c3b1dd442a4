//! Rows of block-quantized weights times a few rows of activations: the decode step.
//!
//! # Forward
//! ```text
//! y[c][r] = Σ_blocks in order, one fused multiply-add each:
//!     blocks of 32:    (d·dx) · Σ (q − offset)·qx              then, with a minimum,  + (m) · (dx·Σ qx)
//!     super-blocks:    (d·dx) · Σ_sub s·Σ (q − offset)·qx      then, with a minimum,  − (m·dx) · Σ_sub b·Σ qx
//! ```
//! The inner sums are exact integers. [`crate::panel`] computes the same numbers in the same order for many rows of
//! activations.
//!
//! # Order of work
//! As many rows of weights as a register has lanes go together, block by block, laid in quads (`quads`): each
//! weight is unpacked once for all columns, and the f32 sums of all rows are one vector. A core reads memory fastest in a
//! straight line, which so many rows side by side are not: while a group of rows is multiplied, the next one is asked for,
//! line after line.
//!
//! # Shapes
//! `w`: r rows of `row_bytes`; `x`: at most [`COLUMNS`] rows in the row layout; `y[c·stride + r]`.

use crate::acts::{Acts, both};
use crate::count::{Count, Eight, Five, Four, One, Seven, Six, Three, Two};
use crate::quant::Blocked;

/// The most rows of activations one call takes.
pub const COLUMNS: usize = 8;

/// Columns whose sums stay in registers, at every level.
const TOGETHER: usize = 8;

levels! {
    {
        fn blocks[F: Blocked, Q: Fn([&F::Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2]](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, pieces: Q) {
            match x.q.len() / x.k {
                1 => blocks_of::<F, Q, One>(w, row_bytes, x, y, stride, pieces),
                2 => blocks_of::<F, Q, Two>(w, row_bytes, x, y, stride, pieces),
                3 => blocks_of::<F, Q, Three>(w, row_bytes, x, y, stride, pieces),
                4 => blocks_of::<F, Q, Four>(w, row_bytes, x, y, stride, pieces),
                5 => blocks_of::<F, Q, Five>(w, row_bytes, x, y, stride, pieces),
                6 => blocks_of::<F, Q, Six>(w, row_bytes, x, y, stride, pieces),
                7 => blocks_of::<F, Q, Seven>(w, row_bytes, x, y, stride, pieces),
                8 => blocks_of::<F, Q, Eight>(w, row_bytes, x, y, stride, pieces),
                n => unreachable!("dot takes 1 to 8 columns, not {n}"),
            }
        }

        fn blocks_of[F: Blocked, Q: Fn([&F::Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2], N: Count](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, pieces: Q) {
            const L: usize = simd::wide::LANES;
            let len = x.k / 32;
            let (q, _) = x.q.as_chunks::<16>();
            let (q, _) = q.as_chunks::<2>();
            let (q, xd, xs) = (&q[..N::N * len], &x.d[..N::N * len], &x.sums[..N::N * len]);
            let offset = if F::SIGNED { simd::wide::SIGNED_OFFSET } else { F::OFFSET };
            let steps = const { simd::wide::steps(F::MAX) };
            let lines = (L * row_bytes / 64).div_ceil(len);
            for (g, rows) in w.chunks(L * row_bytes).enumerate() {
                let n = rows.len() / row_bytes;
                let all: &[F::Block] = bytemuck::cast_slice(rows);
                // rows that are not there are the last one again
                let first: [usize; L] = core::array::from_fn(|r| r.min(n - 1) * len);
                let mut acc = [simd::wide::zero(); TOGETHER];
                for b in 0..len {
                    at::quads::ask(rows, b * lines, lines);
                    let row: [&F::Block; L] = core::array::from_fn(|r| &all[first[r] + b]);
                    let quad: [[simd::wide::Bytes; 2]; 4] = core::array::from_fn(|i| {
                        let q = pieces(core::array::from_fn(|p| row[4 * p + i]));
                        [at::quads::offset::<F>(q[0]), at::quads::offset::<F>(q[1])]
                    });
                    let d = simd::wide::load_f16(&core::array::from_fn(|r| F::d(row[r])));
                    let m = if F::MIN {
                        simd::wide::load_f16(&core::array::from_fn(|r| F::m(row[r])))
                    } else {
                        simd::wide::zero()
                    };
                    for c in 0..N::N {
                        let at = c * len + b;
                        let x = [simd::wide::splat_piece(&q[at][0]), simd::wide::splat_piece(&q[at][1])];
                        let sums: [simd::wide::Ints; 4] = core::array::from_fn(|i| {
                            let step = |acc, h: usize| {
                                if F::SIGNED {
                                    simd::wide::step_ss(acc, quad[i][h], x[h])
                                } else {
                                    simd::wide::step_us(acc, quad[i][h], x[h])
                                }
                            };
                            let none = simd::wide::zero_partial();
                            let zero = simd::wide::zero_ints();
                            if steps == 1 {
                                let first = simd::wide::widen_plain(zero, step(none, 0));
                                return simd::wide::widen_plain(first, step(none, 1));
                            }
                            simd::wide::widen_plain(zero, step(step(none, 0), 1))
                        });
                        let t = simd::wide::sum_pieces(sums);
                        let sum = if F::MIN || offset != 0 { both(xs[at]) } else { 0 };
                        let t = if offset == 0 {
                            t
                        } else {
                            simd::wide::sub_ints(t, simd::wide::splat_int(offset * sum))
                        };
                        let dx = simd::wide::splat(xd[at]);
                        acc[c] = simd::wide::fma(simd::wide::mul(d, dx), simd::wide::from_ints(t), acc[c]);
                        if F::MIN {
                            acc[c] = simd::wide::fma(m, simd::wide::splat(xd[at] * sum as f32), acc[c]);
                        }
                    }
                }
                for c in 0..N::N {
                    give(acc[c], &mut y[c * stride + g * L..][..n]);
                }
            }
        }

        /// The first lanes.
        fn give(acc: simd::wide::Floats, y: &mut [f32]) {
            match y.first_chunk_mut() {
                Some(y) => simd::wide::store(y, acc),
                None => at::math::store_part(y, acc),
            }
        }

        fn supers[F: Blocked, Q: Fn([&F::Block; simd::wide::PIECES], usize) -> [simd::wide::Bytes; 8],
                  S: Fn([&F::Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2])](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, pieces: Q, factors: S) {
            match x.q.len() / x.k {
                1 => supers_of::<F, Q, S, One>(w, row_bytes, x, y, stride, pieces, factors),
                2 => supers_of::<F, Q, S, Two>(w, row_bytes, x, y, stride, pieces, factors),
                3 => supers_of::<F, Q, S, Three>(w, row_bytes, x, y, stride, pieces, factors),
                4 => supers_of::<F, Q, S, Four>(w, row_bytes, x, y, stride, pieces, factors),
                5 => supers_of::<F, Q, S, Five>(w, row_bytes, x, y, stride, pieces, factors),
                6 => supers_of::<F, Q, S, Six>(w, row_bytes, x, y, stride, pieces, factors),
                7 => supers_of::<F, Q, S, Seven>(w, row_bytes, x, y, stride, pieces, factors),
                8 => supers_of::<F, Q, S, Eight>(w, row_bytes, x, y, stride, pieces, factors),
                n => unreachable!("dot takes 1 to 8 columns, not {n}"),
            }
        }

        fn supers_of[F: Blocked, Q: Fn([&F::Block; simd::wide::PIECES], usize) -> [simd::wide::Bytes; 8],
                     S: Fn([&F::Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]),
                     N: Count](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, pieces: Q, factors: S) {
            const L: usize = simd::wide::LANES;
            let len = x.k / 256;
            let (q, _) = x.q.as_chunks::<16>();
            let (q, _) = q.as_chunks::<8>();
            let (q, _) = q.as_chunks::<2>();
            let (xs, _) = x.sums.as_chunks::<4>();
            let (xs, _) = xs.as_chunks::<2>();
            let (q, xd, xs) = (&q[..N::N * len], &x.d[..N::N * len], &xs[..N::N * len]);
            let biased = F::MIN || F::OFFSET != 0 || (F::SIGNED && simd::wide::SIGNED_OFFSET != 0);
            let steps = const { simd::wide::steps(F::MAX) };
            // four products of unsigned quants in each lane, for as many pieces as share a scale
            let small = const { !F::SIGNED && F::MAX * 127 * 4 * (F::SUB as u32 / 16) < 1 << 15 };
            let lines = (L * row_bytes / 64).div_ceil(8 * len);
            for (g, rows) in w.chunks(L * row_bytes).enumerate() {
                let n = rows.len() / row_bytes;
                let all: &[F::Block] = bytemuck::cast_slice(rows);
                let first: [usize; L] = core::array::from_fn(|r| r.min(n - 1) * len);
                let mut acc = [simd::wide::zero(); TOGETHER];
                for b in 0..len {
                    let row: [&F::Block; L] = core::array::from_fn(|r| &all[first[r] + b]);
                    let mut sums = [[simd::wide::zero_ints(); 4]; TOGETHER];
                    let mut lows = [[simd::wide::zero_ints(); 4]; TOGETHER];
                    for i in 0..4 {
                        let block: [&F::Block; simd::wide::PIECES] = core::array::from_fn(|p| row[4 * p + i]);
                        let (s, m) = factors(block);
                        let bias = at::quads::bias::<F>(s, m);
                        let mut total = [simd::wide::zero_ints(); TOGETHER];
                        if biased {
                            for c in 0..N::N {
                                let xs = &xs[c * len + b];
                                let low = simd::wide::madd(
                                    simd::wide::zero_ints(), bias[0], simd::wide::splat_sums(&xs[0]));
                                let low = simd::wide::madd(low, bias[1], simd::wide::splat_sums(&xs[1]));
                                if F::MIN {
                                    lows[c][i] = low;
                                } else {
                                    total[c] = low;
                                }
                            }
                        }
                        for h in 0..2 {
                            at::quads::ask(rows, (8 * b + 2 * i + h) * lines, lines);
                            let quads = pieces(block, h);
                            for j in 0..4 {
                                let w = [at::quads::offset::<F>(quads[2 * j]), at::quads::offset::<F>(quads[2 * j + 1])];
                                let scale = simd::wide::pick(s[h], 2 * j);
                                let second = if F::SUB == 16 { simd::wide::pick(s[h], 2 * j + 1) } else { scale };
                                for c in 0..N::N {
                                    let x = &q[c * len + b][h];
                                    let step = |acc, k: usize| {
                                        let x = simd::wide::splat_piece(&x[2 * j + k]);
                                        if F::SIGNED {
                                            simd::wide::step_ss(acc, w[k], x)
                                        } else {
                                            simd::wide::step_us(acc, w[k], x)
                                        }
                                    };
                                    let none = simd::wide::zero_partial();
                                    total[c] = if F::SUB == 16 || steps == 1 {
                                        let t = simd::wide::widen_piece(small, total[c], step(none, 0), scale);
                                        simd::wide::widen_piece(small, t, step(none, 1), second)
                                    } else {
                                        simd::wide::widen_piece(small, total[c], step(step(none, 0), 1), scale)
                                    };
                                }
                            }
                        }
                        for c in 0..N::N {
                            sums[c][i] = total[c];
                        }
                    }
                    let d = simd::wide::load_f16(&core::array::from_fn(|r| F::d(row[r])));
                    let m = if F::MIN {
                        simd::wide::load_f16(&core::array::from_fn(|r| F::m(row[r])))
                    } else {
                        simd::wide::zero()
                    };
                    for c in 0..N::N {
                        let dx = simd::wide::splat(xd[c * len + b]);
                        let t = simd::wide::from_ints(simd::wide::sum_pieces(sums[c]));
                        acc[c] = simd::wide::fma(simd::wide::mul(d, dx), t, acc[c]);
                        if F::MIN {
                            let low = simd::wide::from_ints(simd::wide::sum_pieces(lows[c]));
                            acc[c] = simd::wide::fnma(simd::wide::mul(m, dx), low, acc[c]);
                        }
                    }
                }
                for c in 0..N::N {
                    give(acc[c], &mut y[c * stride + g * L..][..n]);
                }
            }
        }
    }
}
