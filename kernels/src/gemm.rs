//! f32 products whose reduction runs over rows of the second factor: the backward pass, attention, adapters.
//!
//! # Forward
//! ```text
//! C[i][j] ← C[i][j] + Σ_k in order, fused, of A[i][k]·B[k][j]
//! ```
//! One accumulator per output, started from C itself, so cutting the reduction into pieces (in order) changes no bit,
//! and neither does the number of rows or columns computed together.
//!
//! # Shapes
//! `A` packed `[k][ROWS]` by [`pack`] (a group of at most [`rows`] rows; the rest are zeros); `B` rows of
//! `b_stride` floats, of which [`columns`] are taken at a time; `C` rows of `c_stride`.

use crate::count::{Count, Eight, Eleven, Five, Four, Nine, One, Seven, Six, Ten, Three, Twelve, Two};

levels! {
    {
        fn micro[M: Count](a: &[f32], b: &[f32], b_stride: usize, c: &mut [f32], c_stride: usize) {
            const L: usize = simd::wide::LANES;
            const R: usize = simd::wide::ROWS;
            let mut acc = [[simd::wide::zero(); 2]; R];
            for i in 0..M::N {
                let (c, _) = c[i * c_stride..][..2 * L].as_chunks::<L>();
                acc[i] = [simd::wide::load(&c[0]), simd::wide::load(&c[1])];
            }
            let (a, _) = a.as_chunks::<R>();
            for (a, b) in a.iter().zip(b.chunks(b_stride)) {
                let (b, _) = b[..2 * L].as_chunks::<L>();
                let b = [simd::wide::load(&b[0]), simd::wide::load(&b[1])];
                for i in 0..M::N {
                    let x = simd::wide::splat(a[i]);
                    acc[i][0] = simd::wide::fma(x, b[0], acc[i][0]);
                    acc[i][1] = simd::wide::fma(x, b[1], acc[i][1]);
                }
            }
            for i in 0..M::N {
                let (c, _) = c[i * c_stride..][..2 * L].as_chunks_mut::<L>();
                simd::wide::store(&mut c[0], acc[i][0]);
                simd::wide::store(&mut c[1], acc[i][1]);
            }
        }

        /// One register tile; a group of a few rows does not pay for a full one.
        fn tile(m: usize, a: &[f32], b: &[f32], b_stride: usize, c: &mut [f32], c_stride: usize) {
            match m {
                1 => micro::<One>(a, b, b_stride, c, c_stride),
                2 => micro::<Two>(a, b, b_stride, c, c_stride),
                3 => micro::<Three>(a, b, b_stride, c, c_stride),
                4 => micro::<Four>(a, b, b_stride, c, c_stride),
                5 => micro::<Five>(a, b, b_stride, c, c_stride),
                6 => micro::<Six>(a, b, b_stride, c, c_stride),
                7 => micro::<Seven>(a, b, b_stride, c, c_stride),
                8 => micro::<Eight>(a, b, b_stride, c, c_stride),
                9 => micro::<Nine>(a, b, b_stride, c, c_stride),
                10 => micro::<Ten>(a, b, b_stride, c, c_stride),
                11 => micro::<Eleven>(a, b, b_stride, c, c_stride),
                _ => micro::<Twelve>(a, b, b_stride, c, c_stride),
            }
        }
    }

    /// Rows of a packed group at this level.
    pub fn rows() -> usize {
        simd::wide::ROWS
    }

    /// Columns of a register tile at this level.
    pub fn columns() -> usize {
        2 * simd::wide::LANES
    }

    /// Packs `m` ≤ ROWS rows of k elements, `A[i][p] = scale·a[i·row + p·step]`, as `[k][ROWS]` with zeros behind m.
    pub fn pack(a: &[f32], row: usize, step: usize, m: usize, k: usize, scale: f32, to: &mut [f32]) {
        const R: usize = simd::wide::ROWS;
        let (to, _) = to[..k * R].as_chunks_mut::<R>();
        for i in 0..R {
            if i < m && k > 0 {
                let a = &a[i * row..][..(k - 1) * step + 1];
                if step == 1 {
                    for (to, a) in to.iter_mut().zip(a) {
                        to[i] = scale * a;
                    }
                } else {
                    for (p, to) in to.iter_mut().enumerate() {
                        to[i] = scale * a[p * step];
                    }
                }
            } else {
                for to in to.iter_mut() {
                    to[i] = 0.0;
                }
            }
        }
    }

    /// `C[m][n] += A·B` for one packed group; `k = a.len() / ROWS`.
    pub fn add(m: usize, n: usize, a: &[f32], b: &[f32], b_stride: usize, c: &mut [f32], c_stride: usize) {
        const W: usize = 2 * simd::wide::LANES;
        const R: usize = simd::wide::ROWS;
        let k = a.len() / R;
        if m == 0 || k == 0 {
            return;
        }
        let whole = n / W * W;
        for j in (0..whole).step_by(W) {
            tile(m, a, &b[j..], b_stride, &mut c[j..], c_stride);
        }
        if whole < n {
            // The last columns through copies: B's rows may end there, and C's neighbours must not be touched.
            const PIECE: usize = 32;
            let rest = n - whole;
            let mut tail = [0f32; W * R];
            for i in 0..m {
                tail[i * W..i * W + rest].copy_from_slice(&c[i * c_stride + whole..][..rest]);
            }
            let mut piece = [0f32; W * PIECE];
            for first in (0..k).step_by(PIECE) {
                let len = PIECE.min(k - first);
                for p in 0..len {
                    piece[p * W..p * W + rest].copy_from_slice(&b[(first + p) * b_stride + whole..][..rest]);
                }
                tile(m, &a[first * R..(first + len) * R], &piece, W, &mut tail, W);
            }
            for i in 0..m {
                c[i * c_stride + whole..][..rest].copy_from_slice(&tail[i * W..i * W + rest]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn equals_f64_and_keeps_its_bits_when_cut() {
        for level in Level::available() {
            let (r, w) = (rows(level), columns(level));
            for (m, k, n) in [(1, 1, 1), (r, 33, w), (r - 1, 64, 2 * w + 3), (2, 7, 31), (r, 128, 63)] {
                let (bs, cs) = (n + 2, n + 5);
                let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 23) as f32 / 11.0 - 1.0).collect();
                let b: Vec<f32> = (0..k * bs).map(|i| (i * 5 % 19) as f32 / 9.0 - 1.0).collect();
                let start: Vec<f32> = (0..m * cs).map(|i| (i % 3) as f32).collect();
                let mut packed = vec![f32::NAN; k * r];
                pack(level, &a, k, 1, m, k, 0.5, &mut packed);
                let mut c = start.clone();
                add(level, m, n, &packed, &b, bs, &mut c, cs);
                for i in 0..m {
                    for j in 0..cs {
                        let mut want = f64::from(start[i * cs + j]);
                        if j < n {
                            want += (0..k)
                                .map(|p| 0.5 * f64::from(a[i * k + p]) * f64::from(b[p * bs + j]))
                                .sum::<f64>();
                        }
                        assert!((f64::from(c[i * cs + j]) - want).abs() < 1e-4, "{level:?} {m} {k} {n}");
                    }
                }
                // the same in two pieces of the reduction, and one row at a time
                let cut = k / 2;
                let mut d = start.clone();
                add(level, m, n, &packed[..cut * r], &b, bs, &mut d, cs);
                add(level, m, n, &packed[cut * r..], &b[cut * bs..], bs, &mut d, cs);
                assert_eq!(c, d);
                let mut e = start.clone();
                for i in 0..m {
                    let mut one = vec![0.0; k * r];
                    pack(level, &a[i * k..], k, 1, 1, k, 0.5, &mut one);
                    add(level, 1, n, &one, &b, bs, &mut e[i * cs..], cs);
                }
                assert_eq!(c, e);
                // and from the transposed A
                let t: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
                let mut again = vec![f32::NAN; k * r];
                pack(level, &t, 1, m, m, k, 0.5, &mut again);
                assert_eq!(packed, again);
            }
        }
    }
}
