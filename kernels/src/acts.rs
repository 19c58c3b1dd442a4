//! Activations rounded to 8 bits, once per row, for products with block formats.
//!
//! For a block of `G` activations (32 or 256, the [`Grain`] of the weight's format):
//!
//! ```text
//! d = max|x| / 127        q = round(x / d) in −127..=127        x ≈ d·q
//! ```
//!
//! and for each 16 of them the sum of q, which pays for a weight's offset or minimum once per block. (ggml's Q8_0 and
//! Q8_K do the same; they round d to 16 bits or choose its sign by the largest value; we keep f32.)
//!
//! # Layouts
//! *Rows*: `q [n][k]`, `d [n][k/G]`, `sums [n][k/32]`, each i32 holding two 16-bit sums.
//! *Packed*, for [`crate::panel`]: the same, interleaved over `COLUMNS` rows: `q [n/C][k/4][C][4]`,
//! `d [n/C][k/G][C]`, `sums [n/C][k/32][C]`; a last incomplete group is filled up with zeros. Super-blocks also get
//! `wide [n/C][k/64][C]`, two 16-bit sums of 32 each: half the work for formats whose weights share a minimum by 32.

/// How many activations share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// 32: the formats with a float scale per 32 weights.
    Small,
    /// 256: the k-quants.
    Large,
}

impl Grain {
    /// Activations per scale.
    pub const fn len(self) -> usize {
        match self {
            Grain::Small => 32,
            Grain::Large => 256,
        }
    }

    /// Never: a block has elements.
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// Quantized activations, `n` rows of `k`, in either layout (see the module).
#[derive(Clone, Copy, Debug)]
pub struct Acts<'a> {
    /// Elements per row; a multiple of the grain.
    pub k: usize,
    /// The rounded values.
    pub q: &'a [i8],
    /// One scale per block.
    pub d: &'a [f32],
    /// Two 16-bit sums of 16 values each.
    pub sums: &'a [i32],
    /// Packed super-blocks: two 16-bit sums of 32 values each.
    pub wide: &'a [i32],
}

/// The places where quantized activations are written; see [`Acts`].
#[derive(Debug)]
pub struct ActsMut<'a> {
    /// The rounded values.
    pub q: &'a mut [i8],
    /// One scale per block.
    pub d: &'a mut [f32],
    /// Two 16-bit sums of 16 values each.
    pub sums: &'a mut [i32],
    /// Packed super-blocks: two 16-bit sums of 32 values each.
    pub wide: &'a mut [i32],
}

/// A pair of 16-bit sums added up.
#[inline(always)]
pub(crate) fn both(pair: i32) -> i32 {
    i32::from(pair as i16) + (pair >> 16)
}

levels! {
    {
        fn block(x: &[f32], q: &mut [i8], sums: &mut [i32]) -> f32 {
            let (x, _) = x.as_chunks::<8>();
            let mut top = simd::zero();
            for v in x {
                top = simd::max(top, simd::abs(simd::load(v)));
            }
            let top = simd::largest(top);
            let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
            let (q, _) = q.as_chunks_mut::<32>();
            let (x, _) = x.as_chunks::<4>();
            for ((q, x), pair) in q.iter_mut().zip(x).zip(sums) {
                let mut both = [0i32; 2];
                for (i, v) in x.iter().enumerate() {
                    let r = simd::round_ints(simd::mul(simd::load(v), simd::splat(inverse)));
                    let r: [i32; 8] = bytemuck::must_cast(r);
                    for (to, v) in q[8 * i..8 * i + 8].iter_mut().zip(r) {
                        *to = v.clamp(-127, 127) as i8;
                        both[i / 2] += v.clamp(-127, 127);
                    }
                }
                *pair = (both[0] & 0xffff) | both[1] << 16;
            }
            top / 127.0
        }
    }

    /// Quantizes one row in the row layout. `x.len()` is a multiple of the grain.
    pub fn quantize(grain: Grain, x: &[f32], to: ActsMut<'_>) {
        let g = grain.len();
        let blocks = x.chunks_exact(g).zip(to.q.chunks_exact_mut(g)).zip(to.sums.chunks_exact_mut(g / 32));
        for (((x, q), sums), d) in blocks.zip(to.d) {
            *d = block(x, q, sums);
        }
    }

    /// Interleaves `rows.q.len() / k` rows (at most `COLUMNS`) of the row layout into one packed group.
    pub fn pack(grain: Grain, rows: Acts<'_>, to: ActsMut<'_>) {
        let columns = simd::wide::COLUMNS;
        let (k, n) = (rows.k, rows.q.len() / rows.k);
        for c in 0..columns {
            if c < n {
                let (from, _) = rows.q[c * k..(c + 1) * k].as_chunks::<4>();
                let (q, _) = to.q.as_chunks_mut::<4>();
                for (i, four) in from.iter().enumerate() {
                    q[i * columns + c] = *four;
                }
                let kd = k / grain.len();
                for i in 0..kd {
                    to.d[i * columns + c] = rows.d[c * kd + i];
                }
                let sums = &rows.sums[c * (k / 32)..(c + 1) * (k / 32)];
                for (i, sum) in sums.iter().enumerate() {
                    to.sums[i * columns + c] = *sum;
                }
                if grain == Grain::Large {
                    for (i, [a, b]) in sums.as_chunks::<2>().0.iter().enumerate() {
                        to.wide[i * columns + c] = (crate::acts::both(*a) & 0xffff) | crate::acts::both(*b) << 16;
                    }
                }
            } else {
                for i in 0..k / 4 {
                    to.q[(i * columns + c) * 4..][..4].fill(0);
                }
                for i in 0..k / grain.len() {
                    to.d[i * columns + c] = 0.0;
                }
                for i in 0..k / 32 {
                    to.sums[i * columns + c] = 0;
                }
                if grain == Grain::Large {
                    for i in 0..k / 64 {
                        to.wide[i * columns + c] = 0;
                    }
                }
            }
        }
    }

    /// How many rows of activations a packed group holds at this level.
    pub fn columns() -> usize {
        simd::wide::COLUMNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn rounds_to_nearest_and_sums() {
        for level in Level::available() {
            for grain in [Grain::Small, Grain::Large] {
                let x: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
                let (mut q, mut sums) = (vec![0i8; 512], vec![0i32; 16]);
                let mut d = vec![0f32; 512 / grain.len()];
                quantize(level, grain, &x, ActsMut { q: &mut q, d: &mut d, sums: &mut sums, wide: &mut [] });
                for i in 0..512 {
                    let back = f32::from(q[i]) * d[i / grain.len()];
                    assert!((back - x[i]).abs() <= 0.5001 * d[i / grain.len()], "{level:?} {i}");
                }
                for (i, pair) in sums.iter().enumerate() {
                    let sum = |r: &[i8]| r.iter().map(|&v| i32::from(v)).sum::<i32>();
                    assert_eq!(i32::from(*pair as i16), sum(&q[32 * i..32 * i + 16]));
                    assert_eq!(pair >> 16, sum(&q[32 * i + 16..32 * i + 32]));
                }
            }
        }
    }

    #[test]
    fn zeros_and_wild_numbers_stay_in_range() {
        for level in Level::available() {
            for fill in [0.0, f32::NAN, f32::INFINITY, 1e-40, f32::MAX] {
                let (mut q, mut sums, mut d) = (vec![1i8; 32], vec![1i32; 1], vec![1f32; 1]);
                quantize(
                    level,
                    Grain::Small,
                    &[fill; 32],
                    ActsMut { q: &mut q, d: &mut d, sums: &mut sums, wide: &mut [] },
                );
                assert!(q.iter().all(|&v| v >= -127), "{level:?} {fill}");
                if fill == 0.0 {
                    assert_eq!((q[0], sums[0], d[0]), (0, 0, 0.0));
                }
            }
        }
    }
}
