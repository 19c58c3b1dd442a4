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
//! # Shapes
//! `w`: r rows of `row_bytes`; `x`: at most [`COLUMNS`] rows in the row layout; `y[c·stride + r]`.

use crate::acts::{Acts, both};
use crate::count::{Count, Four, One, Three, Two};
use crate::quant::Blocked;

/// The most rows of activations one call takes.
pub const COLUMNS: usize = 4;

levels! {
    {
        /// Asks for the bytes that this place of the next eight rows will be read from.
        fn ask(rows: &[u8], eight: usize, block: usize, bytes: usize) {
            let from = rows.as_ptr().wrapping_add(eight + block * 8 * bytes);
            for line in 0..(8 * bytes).div_ceil(64) {
                simd::prefetch(from.wrapping_add(64 * line));
            }
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
            let d: [&[f32]; 4] = core::array::from_fn(|c| &x.d[c.min(N::N - 1) * len..][..len]);
            let sums: [&[i32]; 4] = core::array::from_fn(|c| &x.sums[c.min(N::N - 1) * len..][..len]);
            for (group, rows) in w.chunks(8 * row_bytes).enumerate() {
                let n = rows.len() / row_bytes;
                let row: [&[F::Block]; 8] = core::array::from_fn(|i| {
                    &bytemuck::cast_slice(&rows[i.min(n - 1) * row_bytes..][..row_bytes])[..len]
                });
                let mut acc = [simd::zero(); 4];
                for b in 0..len {
                    ask(rows, 8 * row_bytes, b, size_of::<F::Block>());
                    let wd = simd::load_f16(&core::array::from_fn(|i| F::d(&row[i][b])));
                    let product = |c: usize, w: simd::Bytes| {
                        let x = simd::load_signed(&q[c][b]);
                        if F::SIGNED { simd::dot_ss(w, x) } else { simd::dot_us(w, x) }
                    };
                    let mut sum = [simd::zero_ints(); 4];
                    if N::N == 1 {
                        sum[0] = simd::sum_each(core::array::from_fn(|i| product(0, chunk(&row[i][b]))));
                    } else {
                        let w: [simd::Bytes; 8] = core::array::from_fn(|i| chunk(&row[i][b]));
                        for c in 0..N::N {
                            sum[c] = simd::sum_each(core::array::from_fn(|i| product(c, w[i])));
                        }
                    }
                    for c in 0..N::N {
                        let total = both(sums[c][b]);
                        let s = if F::OFFSET == 0 {
                            sum[c]
                        } else {
                            simd::sub_ints(sum[c], simd::splat_int(F::OFFSET * total))
                        };
                        acc[c] = simd::fma(simd::mul(wd, simd::splat(d[c][b])), simd::from_ints(s), acc[c]);
                        if F::MIN {
                            let m = simd::load_f16(&core::array::from_fn(|i| F::m(&row[i][b])));
                            acc[c] = simd::fma(m, simd::splat(d[c][b] * total as f32), acc[c]);
                        }
                    }
                }
                for c in 0..N::N {
                    let out: [f32; 8] = bytemuck::must_cast(acc[c]);
                    y[c * stride + 8 * group..][..n].copy_from_slice(&out[..n]);
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
            for (group, rows) in w.chunks(8 * row_bytes).enumerate() {
                let n = rows.len() / row_bytes;
                let row: [&[F::Block]; 8] = core::array::from_fn(|i| {
                    &bytemuck::cast_slice(&rows[i.min(n - 1) * row_bytes..][..row_bytes])[..len]
                });
                let mut acc = [simd::zero(); 4];
                for b in 0..len {
                    ask(rows, 8 * row_bytes, b, size_of::<F::Block>());
                    let mut sum = [[simd::zero_ints(); 8]; 4];
                    let mut low = [[simd::zero_ints(); 8]; 4];
                    for i in 0..8 {
                        let block = &row[i][b];
                        let (s, m) = scales(block);
                        let mut pair = [0; 16];
                        simd::store_scale_pairs(&mut pair, s);
                        let mut total = [simd::zero_ints(); 4];
                        for j in 0..8 {
                            let w = chunk(block, j);
                            let scale = simd::scales_of(pair[2 * j], pair[2 * j + 1]);
                            for c in 0..N::N {
                                let x = simd::load_signed(&q[c][b][j]);
                                let p = if F::SIGNED {
                                    simd::dot_ss_scaled(w, x, scale)
                                } else {
                                    simd::dot_us_scaled(w, x, scale)
                                };
                                total[c] = simd::add_ints(total[c], p);
                            }
                        }
                        for c in 0..N::N {
                            let x: simd::Words = simd::load_words(bytemuck::must_cast_ref(&sums[c][b]));
                            if F::MIN {
                                low[c][i] = simd::madd(m, x);
                            } else if F::OFFSET != 0 {
                                let off = simd::mul_words(s, simd::splat_word(-F::OFFSET as i16));
                                total[c] = simd::add_ints(total[c], simd::madd(off, x));
                            }
                            sum[c][i] = total[c];
                        }
                    }
                    let wd = simd::load_f16(&core::array::from_fn(|i| F::d(&row[i][b])));
                    for c in 0..N::N {
                        let dx = simd::splat(d[c][b]);
                        let s = simd::from_ints(simd::sum_each(sum[c]));
                        acc[c] = simd::fma(simd::mul(wd, dx), s, acc[c]);
                        if F::MIN {
                            let wm = simd::load_f16(&core::array::from_fn(|i| F::m(&row[i][b])));
                            let s = simd::from_ints(simd::sum_each(low[c]));
                            acc[c] = simd::fnma(simd::mul(wm, dx), s, acc[c]);
                        }
                    }
                }
                for c in 0..N::N {
                    let out: [f32; 8] = bytemuck::must_cast(acc[c]);
                    y[c * stride + 8 * group..][..n].copy_from_slice(&out[..n]);
                }
            }
        }
    }
}
