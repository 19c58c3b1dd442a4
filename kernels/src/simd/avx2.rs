//! The vocabulary in AVX2, FMA and F16C.

use bytemuck::must_cast;
use core::arch::x86_64::*;

pub(crate) type Bytes = __m256i;
pub(crate) type Words = __m256i;
pub(crate) type Ints = __m256i;
pub(crate) type Floats = __m256;

macro_rules! words {
    ($($(#[$m:meta])* fn $name:ident $(<const $n:ident : i32>)? ($($a:ident : $t:ty),*) $(-> $r:ty)? $body:block)*) => {
        $( $(#[$m])* #[inline] #[target_feature(enable = "avx2,fma,f16c")]
           pub(crate) fn $name $(<const $n: i32>)? ($($a: $t),*) $(-> $r)? $body )*
    };
}

words! {

    fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }

    // ---- bytes
    fn load_bytes(x: &[u8; 32]) -> Bytes { must_cast(*x) }
    fn splat_byte(x: u8) -> Bytes { _mm256_set1_epi8(x as i8) }
    fn nibbles(x: &[u8; 16]) -> Bytes {
        let x: __m128i = must_cast(*x);
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
    }
    fn and(a: Bytes, b: Bytes) -> Bytes { _mm256_and_si256(a, b) }
    fn or(a: Bytes, b: Bytes) -> Bytes { _mm256_or_si256(a, b) }
    fn xor(a: Bytes, b: Bytes) -> Bytes { _mm256_xor_si256(a, b) }
    fn shr_pairs<const N: i32>(a: Bytes) -> Bytes { _mm256_srli_epi16::<N>(a) }
    fn shl_pairs<const N: i32>(a: Bytes) -> Bytes { _mm256_slli_epi16::<N>(a) }
    fn bit_mask(bits: u32) -> Bytes {
        // byte i looks at byte i/8 of the word, then at its bit i%8
        let place = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let x = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), place);
        _mm256_cmpeq_epi8(_mm256_and_si256(x, bit), bit)
    }
    fn lookup(table: &[i8; 16], index: Bytes) -> Bytes {
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(must_cast(*table)), index)
    }

    // ---- exact integer products
    fn widen_signed(x: [i8; 16]) -> Words { _mm256_cvtepi8_epi16(must_cast(x)) }
    fn widen_unsigned(x: [u8; 16]) -> Words { _mm256_cvtepu8_epi16(must_cast(x)) }
    fn twice(x: [u8; 8]) -> Words {
        let v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(must_cast(x)));
        _mm256_or_si256(v, _mm256_slli_epi32::<16>(v))
    }
    fn twice_signed(x: [i8; 8]) -> Words {
        let v = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(must_cast(x)));
        _mm256_blend_epi16::<0xaa>(v, _mm256_slli_epi32::<16>(v))
    }
    fn sub_words(a: Words, b: Words) -> Words { _mm256_sub_epi16(a, b) }
    fn splat_word(x: i16) -> Words { _mm256_set1_epi16(x) }
    fn zero_ints() -> Ints { _mm256_setzero_si256() }
    fn splat_int(x: i32) -> Ints { _mm256_set1_epi32(x) }
    fn add_ints(a: Ints, b: Ints) -> Ints { _mm256_add_epi32(a, b) }
    fn sub_ints(a: Ints, b: Ints) -> Ints { _mm256_sub_epi32(a, b) }
    fn as_ints(x: Bytes) -> Ints { x }

    fn as_bytes(x: Ints) -> Bytes { x }

    // ---- floats
    fn zero() -> Floats { _mm256_setzero_ps() }
    fn splat(x: f32) -> Floats { _mm256_set1_ps(x) }
    fn load(x: &[f32; 8]) -> Floats { must_cast(*x) }
    fn store(to: &mut [f32; 8], x: Floats) { *to = must_cast(x); }
    fn load_f16(x: &[u16; 8]) -> Floats { _mm256_cvtph_ps(must_cast(*x)) }
    fn store_f16(to: &mut [u16; 8], x: Floats) { *to = must_cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)); }
    fn load_bf16(x: &[u16; 8]) -> Floats {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(must_cast(*x))))
    }
    fn load_i8(x: &[i8; 8]) -> Floats {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(must_cast(*x))))
    }
    fn from_ints(x: Ints) -> Floats { _mm256_cvtepi32_ps(x) }
    fn round_ints(x: Floats) -> Ints { _mm256_cvtps_epi32(x) }
    fn add(a: Floats, b: Floats) -> Floats { _mm256_add_ps(a, b) }
    fn sub(a: Floats, b: Floats) -> Floats { _mm256_sub_ps(a, b) }
    fn mul(a: Floats, b: Floats) -> Floats { _mm256_mul_ps(a, b) }
    fn div(a: Floats, b: Floats) -> Floats { _mm256_div_ps(a, b) }
    fn sqrt(a: Floats) -> Floats { _mm256_sqrt_ps(a) }
    fn fma(a: Floats, b: Floats, c: Floats) -> Floats { _mm256_fmadd_ps(a, b, c) }
    fn fnma(a: Floats, b: Floats, c: Floats) -> Floats { _mm256_fnmadd_ps(a, b, c) }
    fn max(a: Floats, b: Floats) -> Floats { _mm256_max_ps(a, b) }
    fn min(a: Floats, b: Floats) -> Floats { _mm256_min_ps(a, b) }
    fn abs(a: Floats) -> Floats { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    fn exp2_int(n: Ints) -> Floats {
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
    }
    fn sum(x: Floats) -> f32 {
        let q = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
        _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
    }
    fn largest(x: Floats) -> f32 {
        let q = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
        _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)))
    }
}

/// The same words at this level's full width, which is the same width.
pub(crate) mod wide {
    pub(crate) use super::*;

    pub(crate) const LANES: usize = 8;
    pub(crate) const COLUMNS: usize = 4;
    pub(crate) const GROUPS: usize = 1;
    pub(crate) const ROWS: usize = 6;
    pub(crate) const SIGNED_OFFSET: i32 = 0;
    /// Pair sums of weights up to `max` and activations up to 127 stay within i16 for this many steps.
    pub(crate) const fn steps(max: u32) -> usize {
        (32_767 / (max * 127 * 2)) as usize
    }
    /// 16-bit pair sums, not yet widened.
    pub(crate) type Partial = __m256i;

    pub(crate) const PIECES: usize = 2;

    words! {
        fn pieces(x: [&[u8; 16]; 2]) -> Bytes { _mm256_set_m128i(must_cast(*x[1]), must_cast(*x[0])) }
        fn word_pieces(x: [Words; 2]) -> [Bytes; 2] {
            [_mm256_permute2x128_si256::<0x20>(x[0], x[1]), _mm256_permute2x128_si256::<0x31>(x[0], x[1])]
        }
        fn bit_pieces(x: [u16; 2]) -> Bytes { bit_mask(must_cast(x)) }
        fn splat_piece(x: &[i8; 16]) -> Bytes { _mm256_broadcastsi128_si256(must_cast(*x)) }
        fn shuffle(x: Bytes, places: &[i8; 16]) -> Bytes {
            _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(must_cast(*places)))
        }
        fn widen_bytes(x: Bytes) -> [Bytes; 2] {
            let wide = |v| _mm256_srai_epi16::<8>(v);
            [wide(_mm256_unpacklo_epi8(x, x)), wide(_mm256_unpackhi_epi8(x, x))]
        }
        fn mul_words(a: Bytes, b: i16) -> Bytes { _mm256_mullo_epi16(a, _mm256_set1_epi16(b)) }
        fn add_words(a: Bytes, b: i16) -> Bytes { _mm256_add_epi16(a, _mm256_set1_epi16(b)) }
        fn madd(acc: Ints, a: Bytes, b: Bytes) -> Ints { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
        fn splat_sums(x: &[i32; 4]) -> Bytes { _mm256_broadcastsi128_si256(must_cast(*x)) }
        fn pick(x: Bytes, i: usize) -> Bytes {
            let a = 2 * i as i8;
            let b = a + 1;
            shuffle(x, &[a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b])
        }
        fn widen_piece(_small: bool, total: Ints, partial: Partial, scale: Bytes) -> Ints {
            widen(total, partial, scale)
        }
        fn low_scale(pairs: Ints) -> Ints { _mm256_blend_epi16::<0xaa>(pairs, _mm256_slli_epi32::<16>(pairs)) }
        fn high_scale(pairs: Ints) -> Ints { _mm256_blend_epi16::<0x55>(pairs, _mm256_srli_epi32::<16>(pairs)) }
        fn store_ints(to: &mut [i32; 8], x: Ints) { *to = must_cast(x); }
        fn sum_pieces(x: [Ints; 4]) -> Ints {
            let two = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (a, b) = (two(x[0], x[1]), two(x[2], x[3]));
            _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
        }
        fn turn_pieces(x: [Bytes; 4]) -> [Ints; 4] {
            let (a, b) = (_mm256_unpacklo_epi32(x[0], x[1]), _mm256_unpackhi_epi32(x[0], x[1]));
            let (c, d) = (_mm256_unpacklo_epi32(x[2], x[3]), _mm256_unpackhi_epi32(x[2], x[3]));
            let pair = |p, q| (_mm256_unpacklo_epi64(p, q), _mm256_unpackhi_epi64(p, q));
            let ((a, b), (c, d)) = (pair(a, c), pair(b, d));
            [a, b, c, d]
        }
        fn load_panel(x: &[u8; 32]) -> Bytes { must_cast(*x) }
        fn splat_four(x: &[i8; 4]) -> Bytes { _mm256_set1_epi32(must_cast(*x)) }
        fn zero_partial() -> Partial { _mm256_setzero_si256() }
        fn step_us(acc: Partial, u: Bytes, s: Bytes) -> Partial { _mm256_add_epi16(acc, _mm256_maddubs_epi16(u, s)) }
        fn step_ss(acc: Partial, a: Bytes, b: Bytes) -> Partial {
            _mm256_add_epi16(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)))
        }
        fn widen(total: Ints, partial: Partial, scale: Ints) -> Ints {
            _mm256_add_epi32(total, _mm256_madd_epi16(partial, scale))
        }
        fn widen_plain(total: Ints, partial: Partial) -> Ints { widen(total, partial, _mm256_set1_epi16(1)) }
        fn load_ints(x: &[i32; 8]) -> Ints { must_cast(*x) }
        fn madd_lanes(acc: Ints, pairs: Ints, two: i32) -> Ints {
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi32(two)))
        }
        fn mul_int(a: Ints, b: i32) -> Ints { _mm256_mullo_epi32(a, _mm256_set1_epi32(b)) }
    }
}
