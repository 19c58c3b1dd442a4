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

/// 512 bits.
pub(crate) mod wide {
    use super::*;

    pub(crate) type Bytes = __m512i;
    pub(crate) type Ints = __m512i;
    pub(crate) type Floats = __m512;
    pub(crate) type Partial = __m512i;

    pub(crate) const LANES: usize = 16;
    pub(crate) const COLUMNS: usize = 6;
    pub(crate) const GROUPS: usize = 2;
    pub(crate) const ROWS: usize = 12;
    /// The byte product takes unsigned weights: signed ones are laid down 128 higher.
    pub(crate) const SIGNED_OFFSET: i32 = 128;
    pub(crate) const fn steps(_max: u32) -> usize {
        usize::MAX
    }

    pub(crate) const PIECES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) fn shr_pairs<const N: u32>(a: Bytes) -> Bytes {
        _mm512_srli_epi16::<N>(a)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) fn shl_pairs<const N: u32>(a: Bytes) -> Bytes {
        _mm512_slli_epi16::<N>(a)
    }

    words! {
        fn pieces(x: [&[u8; 16]; 4]) -> Bytes {
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(must_cast(*x[0])), must_cast(*x[1]));
            let low = _mm512_inserti32x4::<2>(_mm512_castsi256_si512(low), must_cast(*x[2]));
            _mm512_inserti32x4::<3>(low, must_cast(*x[3]))
        }
        fn word_pieces(x: [Words; 4]) -> [Bytes; 2] {
            let pair = |a, b| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
            let (a, b) = (pair(x[0], x[1]), pair(x[2], x[3]));
            [_mm512_shuffle_i64x2::<0b10_00_10_00>(a, b), _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b)]
        }
        fn bit_pieces(x: [u16; 4]) -> Bytes { _mm512_movm_epi8(must_cast::<_, u64>(x)) }
        fn splat_piece(x: &[i8; 16]) -> Bytes { _mm512_broadcast_i32x4(must_cast(*x)) }
        fn splat_byte(x: u8) -> Bytes { _mm512_set1_epi8(x as i8) }
        fn and(a: Bytes, b: Bytes) -> Bytes { _mm512_and_si512(a, b) }
        fn or(a: Bytes, b: Bytes) -> Bytes { _mm512_or_si512(a, b) }
        fn xor(a: Bytes, b: Bytes) -> Bytes { _mm512_xor_si512(a, b) }
        fn shuffle(x: Bytes, places: &[i8; 16]) -> Bytes {
            _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(must_cast(*places)))
        }
        fn lookup(table: &[i8; 16], index: Bytes) -> Bytes {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(must_cast(*table)), index)
        }
        fn widen_bytes(x: Bytes) -> [Bytes; 2] {
            let wide = |v| _mm512_srai_epi16::<8>(v);
            [wide(_mm512_unpacklo_epi8(x, x)), wide(_mm512_unpackhi_epi8(x, x))]
        }
        fn mul_words(a: Bytes, b: i16) -> Bytes { _mm512_mullo_epi16(a, _mm512_set1_epi16(b)) }
        fn add_words(a: Bytes, b: i16) -> Bytes { _mm512_add_epi16(a, _mm512_set1_epi16(b)) }
        fn madd(acc: Ints, a: Bytes, b: Bytes) -> Ints { _mm512_dpwssd_epi32(acc, a, b) }
        fn splat_sums(x: &[i32; 4]) -> Bytes { _mm512_broadcast_i32x4(must_cast(*x)) }
        /// Word `i` of every piece, as `widen_piece` wants it: the low half of each lane.
        fn pick(x: Bytes, i: usize) -> Bytes {
            let (a, z) = (2 * i as i8, -1);
            shuffle(x, &[a, a + 1, z, z, a, a + 1, z, z, a, a + 1, z, z, a, a + 1, z, z])
        }
        fn widen_piece(small: bool, total: Ints, partial: Partial, scale: Bytes) -> Ints {
            if small {
                // the sums fit 16 bits, and their upper halves meet zeros
                return _mm512_dpwssd_epi32(total, partial, scale);
            }
            widen(total, partial, _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(scale)))
        }
        fn low_scale(pairs: Ints) -> Ints { _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs)) }
        fn high_scale(pairs: Ints) -> Ints { _mm512_srai_epi32::<16>(pairs) }
        fn store_ints(to: &mut [i32; 16], x: Ints) { *to = must_cast(x); }
        fn as_ints(x: Bytes) -> Ints { x }
        fn as_bytes(x: Ints) -> Bytes { x }
        fn sum_pieces(x: [Ints; 4]) -> Ints {
            let two = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (a, b) = (two(x[0], x[1]), two(x[2], x[3]));
            _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
        }
        fn turn_pieces(x: [Bytes; 4]) -> [Ints; 4] {
            let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
            let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
            let pair = |p, q| (_mm512_unpacklo_epi64(p, q), _mm512_unpackhi_epi64(p, q));
            let ((a, b), (c, d)) = (pair(a, c), pair(b, d));
            [a, b, c, d]
        }
        fn load_panel(x: &[u8; 64]) -> Bytes { must_cast(*x) }
        fn splat_four(x: &[i8; 4]) -> Bytes { _mm512_set1_epi32(must_cast(*x)) }
        fn zero_partial() -> Partial { _mm512_setzero_si512() }
        fn step_us(acc: Partial, u: Bytes, s: Bytes) -> Partial { _mm512_dpbusd_epi32(acc, u, s) }
        fn step_ss(acc: Partial, a: Bytes, b: Bytes) -> Partial { _mm512_dpbusd_epi32(acc, a, b) }
        fn widen(total: Ints, partial: Partial, scale: Ints) -> Ints {
            _mm512_add_epi32(total, _mm512_mullo_epi32(partial, scale))
        }
        fn widen_plain(total: Ints, partial: Partial) -> Ints { _mm512_add_epi32(total, partial) }
        fn load_ints(x: &[i32; 16]) -> Ints { must_cast(*x) }
        fn madd_lanes(acc: Ints, pairs: Ints, two: i32) -> Ints { _mm512_dpwssd_epi32(acc, pairs, _mm512_set1_epi32(two)) }
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
