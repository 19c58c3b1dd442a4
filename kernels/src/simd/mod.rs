//! The vocabulary in which kernels are written: the same names in every level.
//!
//! Two widths. The functions of the level itself work on 256 bits (`Bytes` 32 × 8 bit, `Words` 16 × i16, `Ints`
//! 8 × i32, `Floats` 8 × f32), for single blocks of 32. The module `wide` of each level has the same types at the level's full width with `LANES` lanes,
//! for work that waits for arithmetic.
//!
//! `step_us` multiplies unsigned by signed bytes and adds groups of four in i32 lanes (AVX2: of two in i16, as often as
//! `steps` allows before they are widened), exactly; `step_ss` takes signed by signed for `|a|, |b| ≤ 127` or one of them
//! −128, or weights that lie `SIGNED_OFFSET` higher.
//!
//! A *piece* is sixteen bytes of one row; `wide` registers hold `PIECES` of them, of as many rows ([`crate::quads`]).

// Every level has every word, though a kernel's generic code may not use some of them at some level.
#![allow(dead_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

/// Every word against its definition, [`portable`], where kernels might not show the difference: odd bit patterns, NaN.
#[cfg(test)]
mod tests {
    use crate::{Level, half};

    /// Four pieces: one register of the widest level, two of the others.
    type Pieces = [[u8; 16]; 4];

    /// What the words of a level answer, by name.
    type Answers = Vec<(&'static str, Pieces)>;

    fn put<const P: usize>(
        name: &'static str,
        i: usize,
        first: usize,
        bytes: [[u8; 16]; P],
        to: &mut Answers,
    ) {
        if first == 0 {
            to.push((name, [[0; 16]; 4]));
        }
        to[i].1[first..first + P].copy_from_slice(&bytes);
    }

    levels! {
        {}
        pub fn integers(a: &Pieces, b: &Pieces, to: &mut Answers) {
            use simd::wide::*;
            const LAST: [i8; 16] = [7, -1, 0, 1, 15, 14, -128, 3, 3, 8, 9, 10, 2, 4, 6, 5];
            for first in (0..4).step_by(PIECES) {
                let x = pieces(core::array::from_fn(|p| &a[first + p]));
                let y = pieces(core::array::from_fn(|p| &b[first + p]));
                let signed = |p: usize| simd::widen_signed(bytemuck::must_cast(a[first + p]));
                let unsigned = |p: usize| simd::widen_unsigned(a[first + p]);
                let less = |p: usize| simd::sub_words(signed(p), simd::splat_word(9));
                let word = |p: usize| u16::from_le_bytes([b[first + p][3], a[first + p][5]]);
                let four: [i32; 4] = bytemuck::must_cast(a[0]);
                let none = zero_ints();
                let u = and(x, splat_byte(127));
                let us = step_us(zero_partial(), u, y);
                let few = step_us(zero_partial(), and(x, splat_byte(31)), y);
                let sum = widen_plain(none, us);
                let ones = widen_plain(none, step_us(zero_partial(), splat_byte(1), y));
                let ss = step_ss(zero_partial(), if SIGNED_OFFSET == 0 { x } else { xor(x, splat_byte(128)) }, y);
                let ss = sub_ints(widen_plain(none, ss), mul_int(ones, SIGNED_OFFSET));
                let turned = turn_pieces([x, y, u, or(x, y)]);
                let pairs = as_ints(x);
                let all = [
                    ("and", and(x, y)), ("or", or(x, y)), ("xor", xor(x, y)), ("shr_pairs", shr_pairs::<3>(x)),
                    ("shl_pairs", shl_pairs::<5>(x)), ("shuffle", shuffle(x, &LAST)),
                    ("lookup", lookup(&LAST, and(x, splat_byte(15)))), ("splat_piece", splat_piece(&LAST)),
                    ("widen_bytes, first", widen_bytes(x)[0]), ("widen_bytes, last", widen_bytes(x)[1]),
                    ("mul_words", mul_words(x, -31)), ("add_words", add_words(x, -1999)),
                    ("bit_pieces", bit_pieces(core::array::from_fn(word))),
                    ("widen_signed, first", word_pieces(core::array::from_fn(signed))[0]),
                    ("widen_unsigned, last", word_pieces(core::array::from_fn(unsigned))[1]),
                    ("sub_words", word_pieces(core::array::from_fn(less))[1]),
                    ("splat_sums", splat_sums(&four)), ("splat_four", splat_four(&[1, -2, 3, -128])),
                    ("madd", as_bytes(madd(pairs, x, y))), ("madd_lanes", as_bytes(madd_lanes(none, pairs, four[1]))),
                    ("step_us", as_bytes(sum)), ("step_ss", as_bytes(ss)),
                    ("sub_ints", as_bytes(sub_ints(pairs, sum))), ("add_ints", as_bytes(add_ints(pairs, sum))),
                    ("mul_int", as_bytes(mul_int(sum, -32_000))), ("splat_int", as_bytes(splat_int(four[2]))),
                    ("low_scale", as_bytes(widen(none, us, low_scale(pairs)))),
                    ("high_scale", as_bytes(widen(sum, us, high_scale(pairs)))),
                    ("widen_piece", as_bytes(widen_piece(false, none, us, pick(x, 0)))),
                    ("widen_piece, large", as_bytes(widen_piece(false, sum, us, pick(y, 7)))),
                    ("widen_piece, small", as_bytes(widen_piece(true, sum, few, pick(y, 3)))),
                    ("sum_pieces", as_bytes(sum_pieces([sum, ss, ones, sub_ints(sum, ss)]))),
                    ("turn_pieces 0", as_bytes(turned[0])), ("turn_pieces 1", as_bytes(turned[1])),
                    ("turn_pieces 2", as_bytes(turned[2])), ("turn_pieces 3", as_bytes(turned[3])),
                ];
                for (i, (name, x)) in all.into_iter().enumerate() {
                    let mut ints = [0; LANES];
                    store_ints(&mut ints, as_ints(x));
                    super::put::<PIECES>(name, i, first, bytemuck::must_cast(ints), to);
                }
            }
            let half = [a[0], a[1]];
            for (name, x) in [
                ("nibbles", simd::nibbles(&a[0])),
                ("bit_mask", simd::bit_mask(four_bytes(a))),
                ("load_bytes", simd::load_bytes(&bytemuck::must_cast(half))),
            ] {
                super::put::<2>(name, to.len(), 0, bytemuck::must_cast(x), to);
            }
            for (name, x) in [
                ("twice", simd::twice(bytemuck::must_cast::<_, [[u8; 8]; 2]>(a[0])[1])),
                ("twice_signed", simd::twice_signed(bytemuck::must_cast::<_, [[i8; 8]; 2]>(a[0])[1])),
            ] {
                super::put::<2>(name, to.len(), 0, bytemuck::must_cast(x), to);
            }
        }

        pub fn numbers(a: &[f32; 16], b: &[f32; 16], to: &mut Answers) {
            use simd::wide::*;
            let halves: [u16; 16] = a.map(|v| (v.to_bits() >> 16) as u16);
            let small: [i8; 16] = b.map(|v| v.to_bits() as i8);
            for first in (0..16).step_by(LANES) {
                let part = |x: &[f32; 16]| load(x[first..].first_chunk().expect("lanes"));
                let (x, y) = (part(a), part(b));
                let near = |most: f32| round_ints(min(max(x, splat(-most)), splat(most)));
                let all = [
                    ("max", max(x, y)), ("min", min(x, y)), ("abs", abs(x)), ("zero", zero()), ("add", add(x, y)),
                    ("sub", sub(x, y)), ("mul", mul(x, y)), ("div", div(x, y)), ("sqrt", sqrt(x)),
                    ("round_ints", from_ints(near(1e9))), ("exp2_int", exp2_int(near(126.0))),
                    ("load_bf16", load_bf16(halves[first..].first_chunk().expect("lanes"))),
                    ("load_i8", load_i8(small[first..].first_chunk().expect("lanes"))),
                ];
                for (i, (name, x)) in all.into_iter().enumerate() {
                    let mut lanes = [0.0; LANES];
                    store(&mut lanes, x);
                    if !["max", "min", "abs", "load_bf16"].contains(&name) {
                        // which NaN is the platform's business
                        lanes = lanes.map(|v| if v.is_nan() { f32::NAN } else { v });
                    }
                    super::put::<PIECES>(name, i, first / 4, bytemuck::must_cast(lanes), to);
                }
            }
        }

        /// `a·b + c` and `c − a·b`
        pub fn fused(a: f32, b: f32, c: f32) -> [f32; 2] {
            use simd::wide::*;
            let [a, b, c] = [a, b, c].map(|v| splat(v));
            [fma(a, b, c), fnma(a, b, c)].map(|v| bytemuck::must_cast::<_, [f32; LANES]>(v)[LANES - 1])
        }

        /// The sum and the largest of eight.
        pub fn ends(x: &[f32; 8]) -> [f32; 2] {
            [simd::sum(simd::load(x)), simd::largest(simd::load(x))]
        }

        pub fn widened(x: &[u16; 16]) -> [f32; 16] {
            let mut to = [0.0; 16];
            for (x, to) in x.as_chunks::<{ simd::wide::LANES }>().0.iter().zip(to.as_chunks_mut().0) {
                simd::wide::store(to, simd::wide::load_f16(x));
            }
            to
        }

        pub fn narrowed(x: &[f32; 16]) -> [u16; 16] {
            let mut to = [0; 16];
            for (x, to) in x.as_chunks::<{ simd::wide::LANES }>().0.iter().zip(to.as_chunks_mut().0) {
                simd::wide::store_f16(to, simd::wide::load(x));
            }
            to
        }
    }

    fn four_bytes(a: &Pieces) -> u32 {
        bytemuck::must_cast::<_, [u32; 4]>(a[0])[3]
    }

    fn compare(level: Level, got: &Answers, want: &Answers) {
        assert_eq!(got.len(), want.len());
        for ((name, got), (_, want)) in got.iter().zip(want) {
            assert_eq!(got, want, "{level:?}: {name}");
        }
    }

    #[test]
    fn integers_are_those_of_the_definition() {
        let mut rng = 1u64;
        let mut byte = || {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // the ends of the range more often than chance has them
            [(rng >> 40) as u8, 0, 127, 128, 255, (rng >> 48) as u8, (rng >> 32) as u8, 1]
                [(rng >> 61) as usize]
        };
        for _ in 0..200 {
            let a: Pieces = [(); 4].map(|()| [(); 16].map(|()| byte()));
            // −128 stands on one side only
            let b = [(); 4].map(|()| [(); 16].map(|()| byte()).map(|v| if v == 128 { 129 } else { v }));
            let mut want = Answers::new();
            integers(Level::PORTABLE, &a, &b, &mut want);
            for level in Level::available() {
                let mut got = Answers::new();
                integers(level, &a, &b, &mut got);
                compare(level, &got, &want);
            }
        }
    }

    #[test]
    fn numbers_are_those_of_the_definition() {
        let signalling = f32::from_bits(0x7f80_0001);
        let odd = [
            0.0,
            -0.0,
            1.0,
            -1.5,
            0.5,
            2.5,
            -3.5,
            1e-40,
            -1e-45,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
            signalling,
        ];
        for turn in 0..16 {
            let b: [f32; 16] = core::array::from_fn(|i| odd[(i + turn) % 16]);
            let mut want = Answers::new();
            numbers(Level::PORTABLE, &odd, &b, &mut want);
            let finite: [f32; 8] = core::array::from_fn(|i| (1.0 + i as f32 * 0.37).powi(turn as i32) - 9.0);
            for level in Level::available() {
                let mut got = Answers::new();
                numbers(level, &odd, &b, &mut got);
                compare(level, &got, &want);
                assert_eq!(ends(level, &finite), ends(Level::PORTABLE, &finite), "{level:?}");
                // only the last bits tell whether the product was rounded
                let [x, y, z] = [finite[1], finite[2] * 1.1, -finite[1] * finite[2] * 1.1];
                if level != Level::PORTABLE {
                    assert_eq!(fused(level, x, y, z), [x.mul_add(y, z), (-x).mul_add(y, z)], "{level:?}");
                }
            }
        }
    }

    #[test]
    fn halves_are_those_of_the_scalars_bit_for_bit() {
        for level in Level::available() {
            for first in (0..=u16::MAX).step_by(16) {
                let x: [u16; 16] = core::array::from_fn(|i| first + i as u16);
                let want = x.map(|h| half::f16_to_f32(h).to_bits());
                assert_eq!(widened(level, &x).map(f32::to_bits), want, "{level:?} {first:#x}");
            }
            for h in 0..=u16::MAX {
                // the number, its upper neighbours half way and all the way, and what lies beside them
                let bits = half::f16_to_f32(h).to_bits();
                let next = half::f16_to_f32(h.wrapping_add(1)).to_bits();
                let middle =
                    ((f64::from(f32::from_bits(bits)) + f64::from(f32::from_bits(next))) / 2.0) as f32;
                let x: [f32; 16] = core::array::from_fn(|i| {
                    let at = [bits, middle.to_bits(), next, u32::from(h) << 16][i / 4];
                    f32::from_bits(at.wrapping_add(i as u32 % 4).wrapping_sub(1))
                });
                assert_eq!(narrowed(level, &x), x.map(half::f32_to_f16), "{level:?} {h:#x}");
            }
        }
    }
}
