//! The vocabulary with AVX-512 (F, BW, VL, DQ) and VNNI: 256-bit words as in AVX2 except for the byte products, and
//! a `wide` of 512 bits.

use bytemuck::must_cast;
use core::arch::x86_64::*;

pub(crate) use super::avx2::*;

macro_rules! words {
    ($($(#[$m:meta])* fn $name:ident ($($a:ident : $t:ty),*) $(-> $r:ty)? $body:block)*) => {
        $( $(#[$m])* #[inline]
           #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
           pub(crate) fn $name ($($a: $t),*) $(-> $r)? $body )*
    };
}

words! {
    fn dot_us(u: Bytes, s: Bytes) -> Ints { _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, s) }
    fn dot_ss(a: Bytes, b: Bytes) -> Ints { dot_us(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)) }
}

/// 512 bits.
pub(crate) mod wide {
    use super::*;

    pub(crate) type Bytes = __m512i;
    pub(crate) type Ints = __m512i;
    pub(crate) type Floats = __m512;
    pub(crate) type Partial = __m512i;

    pub(crate) const LANES: usize = 16;
    pub(crate) const COLUMNS: usize = 8;
    pub(crate) const ROWS: usize = 12;
    /// The byte product takes unsigned weights: signed ones are laid down 128 higher.
    pub(crate) const SIGNED_OFFSET: i32 = 128;
    pub(crate) const fn steps(_max: u32) -> usize {
        usize::MAX
    }

    words! {
        fn load_panel(x: &[u8; 64]) -> Bytes { must_cast(*x) }
        fn splat_four(x: &[i8; 4]) -> Bytes { _mm512_set1_epi32(must_cast(*x)) }
        fn zero_partial() -> Partial { _mm512_setzero_si512() }
        fn step_us(acc: Partial, u: Bytes, s: Bytes) -> Partial { _mm512_dpbusd_epi32(acc, u, s) }
        fn step_ss(acc: Partial, a: Bytes, b: Bytes) -> Partial { _mm512_dpbusd_epi32(acc, a, b) }
        fn widen(total: Ints, partial: Partial, scale: Ints) -> Ints {
            _mm512_add_epi32(total, _mm512_mullo_epi32(partial, scale))
        }
        fn widen_plain(total: Ints, partial: Partial) -> Ints { _mm512_add_epi32(total, partial) }
        fn scale_lane(pair: u32) -> i32 { i32::from(pair as i16) }
        fn load_ints(x: &[i32; 16]) -> Ints { must_cast(*x) }
        fn madd_lanes(pairs: Ints, two: i32) -> Ints { _mm512_madd_epi16(pairs, _mm512_set1_epi32(two)) }
        fn mul_int(a: Ints, b: i32) -> Ints { _mm512_mullo_epi32(a, _mm512_set1_epi32(b)) }
        fn zero_ints() -> Ints { _mm512_setzero_si512() }
        fn splat_int(x: i32) -> Ints { _mm512_set1_epi32(x) }
        fn add_ints(a: Ints, b: Ints) -> Ints { _mm512_add_epi32(a, b) }
        fn sub_ints(a: Ints, b: Ints) -> Ints { _mm512_sub_epi32(a, b) }

        fn zero() -> Floats { _mm512_setzero_ps() }
        fn splat(x: f32) -> Floats { _mm512_set1_ps(x) }
        fn load(x: &[f32; 16]) -> Floats { must_cast(*x) }
        fn store(to: &mut [f32; 16], x: Floats) { *to = must_cast(x); }
        fn load_f16(x: &[u16; 16]) -> Floats { _mm512_cvtph_ps(must_cast(*x)) }
        fn store_f16(to: &mut [u16; 16], x: Floats) {
            *to = must_cast(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x));
        }
        fn load_bf16(x: &[u16; 16]) -> Floats {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(must_cast(*x))))
        }
        fn load_i8(x: &[i8; 16]) -> Floats { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(must_cast(*x))) }
        fn from_ints(x: Ints) -> Floats { _mm512_cvtepi32_ps(x) }
        fn round_ints(x: Floats) -> Ints { _mm512_cvtps_epi32(x) }
        fn add(a: Floats, b: Floats) -> Floats { _mm512_add_ps(a, b) }
        fn sub(a: Floats, b: Floats) -> Floats { _mm512_sub_ps(a, b) }
        fn mul(a: Floats, b: Floats) -> Floats { _mm512_mul_ps(a, b) }
        fn div(a: Floats, b: Floats) -> Floats { _mm512_div_ps(a, b) }
        fn sqrt(a: Floats) -> Floats { _mm512_sqrt_ps(a) }
        fn fma(a: Floats, b: Floats, c: Floats) -> Floats { _mm512_fmadd_ps(a, b, c) }
        fn fnma(a: Floats, b: Floats, c: Floats) -> Floats { _mm512_fnmadd_ps(a, b, c) }
        fn max(a: Floats, b: Floats) -> Floats { _mm512_max_ps(a, b) }
        fn min(a: Floats, b: Floats) -> Floats { _mm512_min_ps(a, b) }
        fn abs(a: Floats) -> Floats { _mm512_abs_ps(a) }
        fn exp2_int(n: Ints) -> Floats {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127))))
        }
        fn sum(x: Floats) -> f32 {
            super::sum(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)))
        }
        fn largest(x: Floats) -> f32 {
            super::largest(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)))
        }
    }
}
