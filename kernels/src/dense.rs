//! Unquantized weights (F32, F16, BF16) times rows of f32 activations.
//!
//! # Forward
//! ```text
//! y[c][r] = Σ over cuts of PIECE elements, in order, of tree( a_0 … a_{L−1} )
//! a_j = Σ over the cut's k ≡ j (mod L), in order, fused, of w[r][k]·x[c][k]
//! ```
//! with L the level's lanes and the tree of `simd::wide::sum`: one sequence of operations per output, however many
//! rows and columns are computed together, here or through panels ([`crate::dense_panel`]). Conversions to f32 are exact.
//!
//! # Shapes
//! `w`: r rows of k elements, `row_bytes` apart; `x [n][k]`; `y[c·stride + r]`, overwritten.

use crate::count::{Count, Four, One, Six, Three, Two};
use crate::half::{f32_to_bf16, f32_to_f16};

/// Elements whose products are summed by themselves: panels of so many stay close.
pub const PIECE: usize = 2048;

/// How an unquantized weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dense {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dense {
    /// Bytes per weight.
    pub const fn bytes(self) -> usize {
        match self {
            Dense::F32 => 4,
            Dense::F16 | Dense::Bf16 => 2,
        }
    }
}

/// f32 to dense weights, rounded to nearest, ties to even. `out` has `x.len()` weights.
pub fn encode(dense: Dense, x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), x.len() * dense.bytes());
    match dense {
        Dense::F32 => out.copy_from_slice(bytemuck::cast_slice(x)),
        Dense::F16 | Dense::Bf16 => {
            let narrow = if dense == Dense::F16 { f32_to_f16 } else { f32_to_bf16 };
            for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
                *out = narrow(*x).to_le_bytes();
            }
        }
    }
}

/// The last `x.len()` < N elements and zeros.
pub(crate) fn padded<T: bytemuck::Pod, const N: usize>(x: &[T]) -> [T; N] {
    let mut full = [T::zeroed(); N];
    full[..x.len()].copy_from_slice(x);
    full
}

levels! {
    {
        fn step[R: Count, C: Count](
            w: simd::wide::Floats, r: usize, x: [simd::wide::Floats; 6], acc: &mut [[simd::wide::Floats; 6]; 4]) {
            if r < R::N {
                for c in 0..C::N {
                    acc[r][c] = simd::wide::fma(w, x[c], acc[r][c]);
                }
            }
        }

        /// At most four rows of weights with at most six of activations at a time.
        fn rows_of[T: bytemuck::Pod, L: Fn(&[T; simd::wide::LANES]) -> simd::wide::Floats, R: Count, C: Count](
            w: &[u8], row_bytes: usize, x: &[f32], k: usize, y: &mut [f32], stride: usize, load: L) {
            const LANES: usize = simd::wide::LANES;
            for (group, w) in w.chunks_exact(R::N * row_bytes).enumerate() {
                for first in (0..k).step_by(PIECE) {
                    let cut = first..k.min(first + PIECE);
                    let row: [(&[[T; LANES]], &[T]); 4] = core::array::from_fn(|i| {
                        bytemuck::cast_slice::<u8, T>(&w[i.min(R::N - 1) * row_bytes..])[cut.clone()].as_chunks()
                    });
                    let column: [(&[[f32; LANES]], &[f32]); 6] =
                        core::array::from_fn(|c| x[c.min(C::N - 1) * k..][cut.clone()].as_chunks());
                    let [w0, w1, w2, w3] = row.map(|(body, _)| body);
                    let [x0, x1, x2, x3, x4, x5] = column.map(|(body, _)| body);
                    let mut acc = [[simd::wide::zero(); 6]; 4];
                    let lines = (R::N * row_bytes / 64).div_ceil((k / LANES).max(1));
                    let rows = w0.iter().zip(w1).zip(w2).zip(w3);
                    let columns = x0.iter().zip(x1).zip(x2).zip(x3).zip(x4).zip(x5);
                    for (i, ((((w0, w1), w2), w3), (((((x0, x1), x2), x3), x4), x5))) in rows.zip(columns).enumerate() {
                        if C::N == 1 {
                            at::quads::ask(w, (first / LANES + i) * lines, lines);
                        }
                        let x = [x0, x1, x2, x3, x4, x5];
                        let x: [simd::wide::Floats; 6] =
                            core::array::from_fn(|c| if c < C::N { simd::wide::load(x[c]) } else { simd::wide::zero() });
                        step::<R, C>(load(w0), 0, x, &mut acc);
                        step::<R, C>(load(w1), 1, x, &mut acc);
                        step::<R, C>(load(w2), 2, x, &mut acc);
                        step::<R, C>(load(w3), 3, x, &mut acc);
                    }
                    if cut.len() % LANES != 0 {
                        let x = core::array::from_fn(|c| simd::wide::load(&padded(column[c].1)));
                        for r in 0..R::N {
                            step::<R, C>(load(&padded(row[r].1)), r, x, &mut acc);
                        }
                    }
                    for r in 0..R::N {
                        for c in 0..C::N {
                            let (y, sum) = (&mut y[c * stride + group * R::N + r], simd::wide::sum(acc[r][c]));
                            *y = if first == 0 { sum } else { *y + sum };
                        }
                    }
                }
            }
        }

        /// All rows for C columns: in groups of four, then what is left.
        fn columns_of[T: bytemuck::Pod, L: Fn(&[T; simd::wide::LANES]) -> simd::wide::Floats, C: Count](
            w: &[u8], row_bytes: usize, x: &[f32], k: usize, y: &mut [f32], stride: usize, load: L) {
            let rows = w.len() / row_bytes;
            let whole = rows / 4 * 4;
            let (most, rest) = w.split_at(whole * row_bytes);
            rows_of::<T, _, Four, C>(most, row_bytes, x, k, y, stride, |v| load(v));
            let y = &mut y[whole..];
            match rows - whole {
                0 => {}
                1 => rows_of::<T, _, One, C>(rest, row_bytes, x, k, y, stride, load),
                2 => rows_of::<T, _, Two, C>(rest, row_bytes, x, k, y, stride, load),
                _ => rows_of::<T, _, Three, C>(rest, row_bytes, x, k, y, stride, load),
            }
        }

        fn of[T: bytemuck::Pod, L: Fn(&[T; simd::wide::LANES]) -> simd::wide::Floats](
            w: &[u8], row_bytes: usize, x: &[f32], k: usize, y: &mut [f32], stride: usize, load: L) {
            let n = x.len() / k;
            let mut c = 0;
            while c < n {
                let (x, y) = (&x[c * k..], &mut y[c * stride..]);
                // as many columns as leave room for their sums
                c += match n - c {
                    6.. if simd::wide::LANES == 16 => {
                        columns_of::<T, _, Six>(w, row_bytes, x, k, y, stride, |v| load(v));
                        6
                    }
                    4.. if simd::wide::LANES == 16 => {
                        columns_of::<T, _, Four>(w, row_bytes, x, k, y, stride, |v| load(v));
                        4
                    }
                    2.. => {
                        columns_of::<T, _, Two>(w, row_bytes, x, k, y, stride, |v| load(v));
                        2
                    }
                    _ => {
                        columns_of::<T, _, One>(w, row_bytes, x, k, y, stride, |v| load(v));
                        1
                    }
                };
            }
        }
    }

    /// `y = x·Wᵀ` for rows of `dense` weights.
    pub fn product(dense: Dense, w: &[u8], row_bytes: usize, x: &[f32], k: usize, y: &mut [f32], stride: usize) {
        match dense {
            Dense::F32 => of::<f32, _>(w, row_bytes, x, k, y, stride, |v| simd::wide::load(v)),
            Dense::F16 => of::<u16, _>(w, row_bytes, x, k, y, stride, |v| simd::wide::load_f16(v)),
            Dense::Bf16 => of::<u16, _>(w, row_bytes, x, k, y, stride, |v| simd::wide::load_bf16(v)),
        }
    }

    /// Dense weights to f32; exact.
    pub fn decode(dense: Dense, w: &[u8], out: &mut [f32]) {
        const LANES: usize = simd::wide::LANES;
        match dense {
            Dense::F32 => out.copy_from_slice(bytemuck::cast_slice(&w[..4 * out.len()])),
            Dense::F16 | Dense::Bf16 => {
                let wide = |v: &[u16; LANES]| {
                    if dense == Dense::F16 { simd::wide::load_f16(v) } else { simd::wide::load_bf16(v) }
                };
                let (w, rest) = bytemuck::cast_slice::<u8, u16>(w).as_chunks::<LANES>();
                let (out, tail) = out.as_chunks_mut::<LANES>();
                for (w, out) in w.iter().zip(out) {
                    simd::wide::store(out, wide(w));
                }
                if !tail.is_empty() {
                    let full: [f32; LANES] = bytemuck::must_cast(wide(&padded(rest)));
                    tail.copy_from_slice(&full[..tail.len()]);
                }
            }
        }
    }
}
