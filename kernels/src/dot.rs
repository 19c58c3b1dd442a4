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
//! # Memory
//! A core reads memory fastest in a straight line: the hardware's prefetcher follows a few long streams, and eight rows
//! side by side are eight short ones. So rows are taken two at a time, eight blocks of each at once: eight exact block
//! sums from one tree of additions, then eight fused multiply-adds in order.
//!
//! # Shapes
//! `w`: r rows of `row_bytes`; `x`: at most [`COLUMNS`] rows in the row layout; `y[c·stride + r]`.

use crate::acts::Acts;
use crate::count::{Count, Four, One, Three, Two};
use crate::quant::Blocked;

/// The most rows of activations one call takes.
pub const COLUMNS: usize = 4;

/// Rows of weights taken together: two chains of additions hide each other's latency.
const ROWS: usize = 2;

/// How far ahead memory is asked for.
const AHEAD: usize = 4096;

/// Eight blocks of one row of activations.
#[derive(Clone, Copy)]
struct Eight<'a> {
    d: &'a [f32],
    sums: &'a [i32],
}

/// Up to eight numbers and zeros.
#[inline(always)]
fn eight<T: Copy + Default>(x: &[T]) -> [T; 8] {
    match x.first_chunk::<8>() {
        Some(x) => *x,
        None => core::array::from_fn(|i| x.get(i).copied().unwrap_or_default()),
    }
}

levels! {
    {
        /// Asks for the j-th of eight shares of what the same place will be read `ahead` bytes further on: evenly, since
        /// a core has few places for lines on their way.
        fn ask[T: bytemuck::Pod](blocks: &[T], ahead: usize, j: usize) {
            let lines = (8 * size_of::<T>()).div_ceil(64);
            for line in j * lines / 8..(j + 1) * lines / 8 {
                simd::prefetch(blocks.as_ptr().cast::<u8>().wrapping_add(ahead + 64 * line));
            }
        }

        /// The chain of one row and column over up to eight blocks: exact sums `t` (and `u` of the minima).
        fn chain[F: Blocked](acc: f32, n: usize, p: simd::Floats, t: simd::Floats, m: simd::Floats, u: simd::Floats) -> f32 {
            let (p, t): ([f32; 8], [f32; 8]) = (bytemuck::must_cast(p), bytemuck::must_cast(t));
            let (m, u): ([f32; 8], [f32; 8]) = (bytemuck::must_cast(m), bytemuck::must_cast(u));
            let mut acc = acc;
            for j in 0..n {
                acc = simd::fma1(p[j], t[j], acc);
                if F::MIN {
                    acc = simd::fma1(m[j], u[j], acc);
                }
            }
            acc
        }

        fn blocks[F: Blocked, C: Fn(&F::Block) -> simd::Bytes](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, chunk: C) {
            match x.q.len() / x.k {
                1 => blocks_of::<F, C, One>(w, row_bytes, x, y, stride, chunk),
                2 => blocks_of::<F, C, Two>(w, row_bytes, x, y, stride, chunk),
                3 => blocks_of::<F, C, Three>(w, row_bytes, x, y, stride, chunk),
                4 => blocks_of::<F, C, Four>(w, row_bytes, x, y, stride, chunk),
                n => unreachable!("dot takes 1 to 4 columns, not {n}"),
            }
        }

        fn blocks_of[F: Blocked, C: Fn(&F::Block) -> simd::Bytes, N: Count](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, chunk: C) {
            let len = x.k / 32;
            let q: [&[[i8; 32]]; 4] = core::array::from_fn(|c| {
                let c = c.min(N::N - 1);
                &x.q[c * x.k..(c + 1) * x.k].as_chunks::<32>().0[..len]
            });
            let per: [Eight<'_>; 4] = core::array::from_fn(|c| {
                let c = c.min(N::N - 1) * len;
                Eight { d: &x.d[c..c + len], sums: &x.sums[c..c + len] }
            });
            let ahead = AHEAD.next_multiple_of(ROWS * row_bytes);
            for (pair, rows) in w.chunks(ROWS * row_bytes).enumerate() {
                let n = rows.len() / row_bytes;
                let row: [&[F::Block]; ROWS] = core::array::from_fn(|i| {
                    &bytemuck::cast_slice(&rows[i.min(n - 1) * row_bytes..][..row_bytes])[..len]
                });
                let mut acc = [[0f32; 4]; ROWS];
                let mut b = 0;
                while b < len {
                    let count = (len - b).min(8);
                    for i in 0..ROWS {
                        let block = &row[i][b..b + count];
                        let whole = block.len() == 8;
                        let d = simd::load_f16(&core::array::from_fn(|j| block.get(j).map_or(0, |b| F::d(b))));
                        let m = if F::MIN {
                            simd::load_f16(&core::array::from_fn(|j| block.get(j).map_or(0, |b| F::m(b))))
                        } else {
                            simd::zero()
                        };
                        let mut kept = [simd::zero_ints(); 8];
                        for c in 0..N::N {
                            let x = &q[c][b..b + count];
                            let product = |w: simd::Bytes, j: usize| {
                                let x = simd::load_signed(&x[j]);
                                if F::SIGNED { simd::dot_ss(w, x) } else { simd::dot_us(w, x) }
                            };
                            let mut parts = [simd::zero_ints(); 8];
                            if whole {
                                for j in 0..8 {
                                    if c == 0 {
                                        ask(block, ahead, j);
                                    }
                                    let w = if c == 0 { chunk(&block[j]) } else { simd::as_bytes(kept[j]) };
                                    if N::N > 1 && c == 0 {
                                        kept[j] = simd::as_ints(w);
                                    }
                                    parts[j] = product(w, j);
                                }
                            } else {
                                for j in 0..count {
                                    parts[j] = product(chunk(&block[j]), j);
                                }
                            }
                            let total = simd::sum_pairs(eight(&per[c].sums[b..b + count]));
                            let sum = simd::sum_each(parts);
                            let sum = if F::OFFSET == 0 {
                                sum
                            } else {
                                simd::sub_ints(sum, simd::mul_ints(total, simd::splat_int(F::OFFSET)))
                            };
                            let dx = simd::load(&eight(&per[c].d[b..b + count]));
                            let (p, t) = (simd::mul(d, dx), simd::from_ints(sum));
                            let u = simd::mul(dx, simd::from_ints(total));
                            // eight is what the loop is unrolled for
                            acc[i][c] = chain::<F>(acc[i][c], if whole { 8 } else { count }, p, t, m, u);
                        }
                    }
                    b += 8;
                }
                for c in 0..N::N {
                    for i in 0..n {
                        y[c * stride + ROWS * pair + i] = acc[i][c];
                    }
                }
            }
        }

        fn supers[F: Blocked, C: Fn(&F::Block, usize) -> simd::Bytes,
                  S: Fn(&F::Block) -> (simd::Words, simd::Words)](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, chunk: C, scales: S) {
            match x.q.len() / x.k {
                1 => supers_of::<F, C, S, One>(w, row_bytes, x, y, stride, chunk, scales),
                2 => supers_of::<F, C, S, Two>(w, row_bytes, x, y, stride, chunk, scales),
                3 => supers_of::<F, C, S, Three>(w, row_bytes, x, y, stride, chunk, scales),
                4 => supers_of::<F, C, S, Four>(w, row_bytes, x, y, stride, chunk, scales),
                n => unreachable!("dot takes 1 to 4 columns, not {n}"),
            }
        }

        fn supers_of[F: Blocked, C: Fn(&F::Block, usize) -> simd::Bytes,
                     S: Fn(&F::Block) -> (simd::Words, simd::Words), N: Count](
            w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize, chunk: C, scales: S) {
            let len = x.k / 256;
            let q: [&[[[i8; 32]; 8]]; 4] = core::array::from_fn(|c| {
                let c = c.min(N::N - 1);
                &x.q[c * x.k..(c + 1) * x.k].as_chunks::<32>().0.as_chunks::<8>().0[..len]
            });
            let d: [&[f32]; 4] = core::array::from_fn(|c| &x.d[c.min(N::N - 1) * len..][..len]);
            let sums: [&[[i32; 8]]; 4] =
                core::array::from_fn(|c| &x.sums[c.min(N::N - 1) * 8 * len..].as_chunks::<8>().0[..len]);
            for (r, row) in w.chunks_exact(row_bytes).enumerate() {
                let row = &bytemuck::cast_slice::<u8, F::Block>(row)[..len];
                let mut acc = [0f32; 4];
                let mut b = 0;
                while b < len {
                    let count = (len - b).min(8);
                    let blocks = &row[b..b + count];
                    let mut sum = [[simd::zero_ints(); 8]; 4];
                    let mut low = [[simd::zero_ints(); 8]; 4];
                    for (i, block) in blocks.iter().enumerate() {
                        let (s, m) = scales(block);
                        let mut pair = [0; 16];
                        if F::SUB == 16 {
                            simd::store_scale_pairs(&mut pair, s);
                        } else {
                            pair[..8].copy_from_slice(&bytemuck::must_cast::<_, [u32; 8]>(s));
                        }
                        let mut total = [simd::zero_ints(); 4];
                        ask(blocks, AHEAD, i);
                        for j in 0..8 {
                            let w = chunk(block, j);
                            let scale = if F::SUB == 16 {
                                simd::scales_of(pair[2 * j], pair[2 * j + 1])
                            } else {
                                simd::splat_pair(pair[j])
                            };
                            for c in 0..N::N {
                                let x = simd::load_signed(&q[c][b + i][j]);
                                let p = if F::SIGNED {
                                    simd::dot_ss_scaled(w, x, scale)
                                } else {
                                    simd::dot_us_scaled(w, x, scale)
                                };
                                total[c] = simd::add_ints(total[c], p);
                            }
                        }
                        for c in 0..N::N {
                            let x: simd::Words = simd::load_words(bytemuck::must_cast_ref(&sums[c][b + i]));
                            if F::MIN {
                                low[c][i] = simd::madd(m, x);
                            } else if F::OFFSET != 0 {
                                let off = simd::mul_words(s, simd::splat_word(-F::OFFSET as i16));
                                total[c] = simd::add_ints(total[c], simd::madd(off, x));
                            }
                            sum[c][i] = total[c];
                        }
                    }
                    let wd = simd::load_f16(&core::array::from_fn(|i| blocks.get(i).map_or(0, |b| F::d(b))));
                    let wm = if F::MIN {
                        simd::load_f16(&core::array::from_fn(|i| blocks.get(i).map_or(0, |b| F::m(b))))
                    } else {
                        simd::zero()
                    };
                    for c in 0..N::N {
                        let dx = simd::load(&eight(&d[c][b..b + count]));
                        let t = simd::from_ints(simd::sum_each(sum[c]));
                        let (m, u) = if F::MIN {
                            let m = simd::mul(wm, dx);
                            (simd::sub(simd::zero(), m), simd::from_ints(simd::sum_each(low[c])))
                        } else {
                            (simd::zero(), simd::zero())
                        };
                        acc[c] = chain::<F>(acc[c], count, simd::mul(wd, dx), t, m, u);
                    }
                    b += 8;
                }
                for c in 0..N::N {
                    y[c * stride + r] = acc[c];
                }
            }
        }
    }
}
