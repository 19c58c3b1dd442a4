//! Products of the backward pass whose factors are rounded to bf16, twice as many a second as of f32.
//!
//! # Forward
//! ```text
//! C[i][j] ← C[i][j] + Σ_p in order of  bf16(A[i][2p])·bf16(B[2p][j]) + bf16(A[i][2p+1])·bf16(B[2p+1][j])
//! ```
//! Rounded to nearest, ties to even; products are exact and sums are f32, as the instruction VDPBF16PS defines them (no
//! subnormals). As in [`crate::gemm`] there is one accumulator per output, started from C itself, so cutting the reduction
//! at an even place changes no bit, and neither does the number of rows or columns computed together.
//!
//! # Shapes
//! As in [`crate::gemm`], with two elements of the reduction in one u32, the first in its lower half: `A` packed
//! `[⌈k/2⌉][rows]` by [`pack`], `B` rows of pairs by [`lay`]. An odd last element has zero beside it.
//!
//! There is one level that has it: [`has`] says whether a level does, and nothing here may be called for another.

use crate::Level;

/// Whether this level multiplies bf16.
pub fn has(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    return level.0 == crate::level::Isa::Avx512Bf16;
    #[cfg(not(target_arch = "x86_64"))]
    matches!(level, Level(_) if false)
}

/// Stamps functions for the one level that has them.
macro_rules! narrow {
    ($( $(#[$m:meta])* pub fn $name:ident($($a:ident : $t:ty),* $(,)?) $body:block )*) => { $(
        $(#[$m])*
        #[allow(unsafe_code)]
        pub fn $name(level: Level, $($a : $t),*) {
            assert!(has(level), "{} does not multiply bf16", level.name());
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Level of this value exists only after its instructions were detected.
            unsafe {
                at::$name($($a),*)
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = ($($a),*);
        }
    )*
        #[cfg(target_arch = "x86_64")]
        mod at {
            use super::x86::*;
            $( #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
               pub(super) fn $name($($a : $t),*) $body )*
        }
    };
}

/// Rows of a packed group.
pub const ROWS: usize = 12;

/// Columns of a register tile.
pub const COLUMNS: usize = 32;

/// Multiply-adds of one round of [`peak`].
pub const PEAK: usize = 12 * 32;

narrow! {
    /// Packs `m` ≤ ROWS rows of k elements, `a[i·row + p]` times `gain[p]` where there is one, with zeros behind m.
    pub fn pack(a: &[f32], row: usize, m: usize, k: usize, gain: Option<&[f32]>, to: &mut [u32]) {
        let (to, _) = to[..k.div_ceil(2) * ROWS].as_chunks_mut::<ROWS>();
        for i in 0..ROWS {
            if i >= m {
                to.iter_mut().for_each(|to| to[i] = 0);
                continue;
            }
            let a = &a[i * row..][..k];
            for (p, to) in to.chunks_mut(16).enumerate() {
                let part = 32 * p..(32 * p + 32).min(k);
                let (mut x, mut g) = ([0f32; 32], [1f32; 32]);
                x[..part.len()].copy_from_slice(&a[part.clone()]);
                if let Some(gain) = gain {
                    g[..part.len()].copy_from_slice(&gain[part]);
                }
                for (to, pair) in to.iter_mut().zip(adjacent(&x, &g)) {
                    to[i] = pair;
                }
            }
        }
    }

    /// Two rows of B as pairs; without the second, zeros stand beside the first.
    pub fn lay(first: &[f32], second: Option<&[f32]>, to: &mut [u32]) {
        let (first, _) = first.as_chunks::<16>();
        let second = second.map(|s| s.as_chunks::<16>().0);
        let (to, _) = to.as_chunks_mut::<16>();
        for (i, (to, a)) in to.iter_mut().zip(first).enumerate() {
            *to = pairs(a, second.map_or(&[0.0; 16], |s| &s[i]));
        }
    }

    /// `rounds` times [`PEAK`] multiply-adds, for the ceiling beside which figures are printed; `out` only keeps them from being
    /// left out.
    pub fn peak(rounds: usize, out: &mut f32) {
        *out = chains(rounds);
    }

    /// `C[m][n] += A·B` for one packed group; n is a multiple of COLUMNS, B's rows are `b_stride` pairs apart.
    pub fn add(m: usize, n: usize, a: &[u32], b: &[u32], b_stride: usize, c: &mut [f32], c_stride: usize) {
        assert!(n.is_multiple_of(COLUMNS) && m <= ROWS, "{m} rows, {n} columns");
        for j in (0..n).step_by(COLUMNS) {
            let (b, c) = (&b[j..], &mut c[j..]);
            match m {
                0 => {}
                1 => tile::<1>(a, b, b_stride, c, c_stride),
                2 => tile::<2>(a, b, b_stride, c, c_stride),
                3 => tile::<3>(a, b, b_stride, c, c_stride),
                4 => tile::<4>(a, b, b_stride, c, c_stride),
                5 => tile::<5>(a, b, b_stride, c, c_stride),
                6 => tile::<6>(a, b, b_stride, c, c_stride),
                7 => tile::<7>(a, b, b_stride, c, c_stride),
                8 => tile::<8>(a, b, b_stride, c, c_stride),
                9 => tile::<9>(a, b, b_stride, c, c_stride),
                10 => tile::<10>(a, b, b_stride, c, c_stride),
                11 => tile::<11>(a, b, b_stride, c, c_stride),
                _ => tile::<12>(a, b, b_stride, c, c_stride),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    pub(super) use super::{COLUMNS, ROWS};
    use bytemuck::must_cast;
    use core::arch::x86_64::*;

    macro_rules! words {
        ($($(#[$m:meta])* fn $name:ident $(<const $n:ident : usize>)? ($($a:ident : $t:ty),*) $(-> $r:ty)? $body:block)*) => {
            $( $(#[$m])* #[inline] #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
               pub(super) fn $name $(<const $n: usize>)? ($($a: $t),*) $(-> $r)? $body )*
        };
    }

    words! {
        /// x∘g in bf16, neighbours as pairs.
        fn adjacent(x: &[f32; 32], g: &[f32; 32]) -> [u32; 16] {
            let part = |x: &[f32; 32], from: usize| -> __m512 {
                must_cast::<[f32; 16], _>(x[from..from + 16].try_into().expect("half of 32"))
            };
            let (low, high) = (_mm512_mul_ps(part(x, 0), part(g, 0)), _mm512_mul_ps(part(x, 16), part(g, 16)));
            bits(_mm512_cvtne2ps_pbh(high, low))
        }

        /// Element i of a in the lower half of pair i, of b in the upper.
        fn pairs(a: &[f32; 16], b: &[f32; 16]) -> [u32; 16] {
            let both: __m512i = must_cast(bits(_mm512_cvtne2ps_pbh(must_cast(*b), must_cast(*a))));
            const ORDER: [u16; 32] = {
                let mut order = [0; 32];
                let mut i = 0;
                while i < 16 {
                    (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
                    i += 1;
                }
                order
            };
            must_cast(_mm512_permutexvar_epi16(must_cast(ORDER), both))
        }

        fn chains(rounds: usize) -> f32 {
            let (a, b) = (core::hint::black_box([0x3f00_3e80; 16]), core::hint::black_box([0x3e80_3f00; 16]));
            let (a, b): (__m512i, __m512i) = (must_cast::<[u32; 16], _>(a), must_cast::<[u32; 16], _>(b));
            let mut acc = [_mm512_set1_ps(1.0); 12];
            for _ in 0..rounds {
                for v in &mut acc {
                    *v = _mm512_dpbf16_ps(*v, halves(a), halves(b));
                }
            }
            let sum = acc.iter().fold(_mm512_setzero_ps(), |s, v| _mm512_add_ps(s, *v));
            _mm512_reduce_add_ps(sum)
        }

        fn tile<const M: usize>(a: &[u32], b: &[u32], b_stride: usize, c: &mut [f32], c_stride: usize) {
            let mut acc = [[_mm512_setzero_ps(); 2]; M];
            for i in 0..M {
                let (c, _) = c[i * c_stride..][..COLUMNS].as_chunks::<16>();
                acc[i] = [must_cast(c[0]), must_cast(c[1])];
            }
            let (a, _) = a.as_chunks::<ROWS>();
            for (a, b) in a.iter().zip(b.chunks(b_stride)) {
                let (b, _) = b[..COLUMNS].as_chunks::<16>();
                let b = [halves(must_cast(b[0])), halves(must_cast(b[1]))];
                for i in 0..M {
                    let x = halves(_mm512_set1_epi32(a[i] as i32));
                    acc[i] = [_mm512_dpbf16_ps(acc[i][0], x, b[0]), _mm512_dpbf16_ps(acc[i][1], x, b[1])];
                }
            }
            for i in 0..M {
                let (c, _) = c[i * c_stride..][..COLUMNS].as_chunks_mut::<16>();
                (c[0], c[1]) = (must_cast(acc[i][0]), must_cast(acc[i][1]));
            }
        }
    }

    #[allow(unsafe_code)]
    fn bits(x: __m512bh) -> [u32; 16] {
        // SAFETY: both are 64 bytes of which every pattern is a value.
        unsafe { core::mem::transmute(x) }
    }

    #[allow(unsafe_code)]
    #[inline(always)]
    fn halves(x: __m512i) -> __m512bh {
        // SAFETY: as above.
        unsafe { core::mem::transmute(x) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::{bf16_to_f32, f32_to_bf16};

    #[test]
    fn equals_f64_over_rounded_factors_and_keeps_its_bits_when_cut() {
        let Some(level) = Level::available().into_iter().find(|l| has(*l)) else {
            println!("skipped: this machine does not multiply bf16");
            return;
        };
        let round = |v: f32| bf16_to_f32(f32_to_bf16(v));
        for (m, k, n) in [(1, 1, 32), (12, 33, 32), (11, 64, 96), (2, 7, 64), (12, 128, 256)] {
            let (bs, cs) = (n + 16, n + 5);
            let wave = |n: usize, by: usize| {
                (0..n).map(|i| (i * by % 2311) as f32 / 1100.0 - 1.0).collect::<Vec<_>>()
            };
            let (a, b, gain) = (wave(m * k, 7), wave(k * n, 5), wave(k, 3));
            let start: Vec<f32> = (0..m * cs).map(|i| (i % 3) as f32).collect();
            for gain in [None, Some(&gain[..])] {
                let mut packed = vec![u32::MAX; k.div_ceil(2) * ROWS];
                pack(level, &a, k, m, k, gain, &mut packed);
                let mut laid = vec![u32::MAX; k.div_ceil(2) * bs];
                for (p, to) in laid.chunks_exact_mut(bs).enumerate() {
                    let row = |p: usize| &b[p * n..(p + 1) * n];
                    lay(level, row(2 * p), (2 * p + 1 < k).then(|| row(2 * p + 1)), &mut to[..n]);
                }
                let mut c = start.clone();
                add(level, m, n, &packed, &laid, bs, &mut c, cs);
                for i in 0..m {
                    for j in 0..cs {
                        let mut want = f64::from(start[i * cs + j]);
                        if j < n {
                            want += (0..k)
                                .map(|p| {
                                    let a = round(a[i * k + p] * gain.map_or(1.0, |g| g[p]));
                                    f64::from(a) * f64::from(round(b[p * n + j]))
                                })
                                .sum::<f64>();
                        }
                        assert!((f64::from(c[i * cs + j]) - want).abs() < 1e-4, "{m} {k} {n}");
                    }
                }
                let cut = k / 4 * 2;
                let mut d = start.clone();
                add(level, m, n, &packed[..cut / 2 * ROWS], &laid, bs, &mut d, cs);
                add(level, m, n, &packed[cut / 2 * ROWS..], &laid[cut / 2 * bs..], bs, &mut d, cs);
                assert_eq!(c, d);
                let mut e = start.clone();
                for i in 0..m {
                    let mut one = vec![0; k.div_ceil(2) * ROWS];
                    pack(level, &a[i * k..], k, 1, k, gain, &mut one);
                    add(level, 1, n, &one, &laid, bs, &mut e[i * cs..], cs);
                }
                assert_eq!(c, e);
            }
        }
    }
}
