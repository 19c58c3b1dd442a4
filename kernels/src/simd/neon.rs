//! The vocabulary in NEON with the dot product (ARMv8.2 and later: every Apple processor of that line, most others since 2018).
//!
//! A 256-bit word is two registers. Unsigned quants are at most 127, so that the signed dot product serves for both. What Rust
//! has no stable name for is one instruction of assembly each.

use bytemuck::must_cast;
use core::arch::aarch64::*;
use core::arch::asm;

pub(crate) type Bytes = [uint8x16_t; 2];
pub(crate) type Words = [int16x8_t; 2];
pub(crate) type Ints = [int32x4_t; 2];
pub(crate) type Floats = [float32x4_t; 2];

macro_rules! words {
    ($($(#[$m:meta])* fn $name:ident $(<const $n:ident : i32>)? ($($a:ident : $t:ty),*) $(-> $r:ty)? $body:block)*) => {
        $( $(#[$m])* #[inline] #[target_feature(enable = "neon,dotprod")]
           pub(crate) fn $name $(<const $n: i32>)? ($($a: $t),*) $(-> $r)? $body )*
    };
}

/// The same of both registers.
macro_rules! both {
    (|$($v:ident),+| $e:expr) => {{
        let first = { $( let $v = $v[0]; )+ $e };
        let second = { $( let $v = $v[1]; )+ $e };
        [first, second]
    }};
}

words! {
    #[allow(unsafe_code)]
    fn prefetch(at: *const u8) {
        // SAFETY: a hint, which reads nothing and faults nowhere.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }

    // ---- bytes
    fn load_bytes(x: &[u8; 32]) -> Bytes { must_cast(*x) }
    fn splat_byte(x: u8) -> Bytes { [vdupq_n_u8(x); 2] }
    fn nibbles(x: &[u8; 16]) -> Bytes {
        let x: uint8x16_t = must_cast(*x);
        [vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8::<4>(x)]
    }
    fn and(a: Bytes, b: Bytes) -> Bytes { both!(|a, b| vandq_u8(a, b)) }
    fn or(a: Bytes, b: Bytes) -> Bytes { both!(|a, b| vorrq_u8(a, b)) }
    fn xor(a: Bytes, b: Bytes) -> Bytes { both!(|a, b| veorq_u8(a, b)) }
    fn shr_pairs<const N: i32>(a: Bytes) -> Bytes {
        both!(|a| vreinterpretq_u8_u16(vshrq_n_u16::<N>(vreinterpretq_u16_u8(a))))
    }
    fn shl_pairs<const N: i32>(a: Bytes) -> Bytes {
        both!(|a| vreinterpretq_u8_u16(vshlq_n_u16::<N>(vreinterpretq_u16_u8(a))))
    }
    fn bit_mask(bits: u32) -> Bytes {
        let b = bits.to_le_bytes();
        let bit: uint8x16_t = must_cast([1u8, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128]);
        let eight = |i: usize| vcombine_u8(vdup_n_u8(b[i]), vdup_n_u8(b[i + 1]));
        [vtstq_u8(eight(0), bit), vtstq_u8(eight(2), bit)]
    }
    fn lookup(table: &[i8; 16], index: Bytes) -> Bytes { both!(|index| vqtbl1q_u8(must_cast(*table), index)) }

    // ---- exact integer products
    #[allow(unsafe_code)]
    fn sdot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: one instruction of the level, on registers alone.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }
    fn widen_signed(x: [i8; 16]) -> Words {
        let x: int8x16_t = must_cast(x);
        [vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)]
    }
    fn widen_unsigned(x: [u8; 16]) -> Words {
        let x: uint8x16_t = must_cast(x);
        [vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))), vreinterpretq_s16_u16(vmovl_high_u8(x))]
    }
    fn twice(x: [u8; 8]) -> Words {
        let x = vreinterpretq_s16_u16(vmovl_u8(must_cast(x)));
        [vzip1q_s16(x, x), vzip2q_s16(x, x)]
    }
    fn twice_signed(x: [i8; 8]) -> Words {
        let x = vmovl_s8(must_cast(x));
        [vzip1q_s16(x, x), vzip2q_s16(x, x)]
    }
    fn sub_words(a: Words, b: Words) -> Words { both!(|a, b| vsubq_s16(a, b)) }
    fn splat_word(x: i16) -> Words { [vdupq_n_s16(x); 2] }
    fn zero_ints() -> Ints { [vdupq_n_s32(0); 2] }
    fn splat_int(x: i32) -> Ints { [vdupq_n_s32(x); 2] }
    fn add_ints(a: Ints, b: Ints) -> Ints { both!(|a, b| vaddq_s32(a, b)) }
    fn sub_ints(a: Ints, b: Ints) -> Ints { both!(|a, b| vsubq_s32(a, b)) }
    fn as_ints(x: Bytes) -> Ints { both!(|x| vreinterpretq_s32_u8(x)) }
    fn as_bytes(x: Ints) -> Bytes { both!(|x| vreinterpretq_u8_s32(x)) }

    // ---- floats
    fn zero() -> Floats { [vdupq_n_f32(0.0); 2] }
    fn splat(x: f32) -> Floats { [vdupq_n_f32(x); 2] }
    fn load(x: &[f32; 8]) -> Floats { must_cast(*x) }
    fn store(to: &mut [f32; 8], x: Floats) { *to = must_cast(x); }
    #[allow(unsafe_code)]
    fn load_f16(x: &[u16; 8]) -> Floats {
        let x: uint16x8_t = must_cast(*x);
        let (first, second): (float32x4_t, float32x4_t);
        // SAFETY: two instructions of the level, on registers alone.
        unsafe {
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) first, in(vreg) x, options(pure, nomem, nostack));
            asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) second, in(vreg) x, options(pure, nomem, nostack));
        }
        [first, second]
    }
    #[allow(unsafe_code)]
    fn store_f16(to: &mut [u16; 8], x: Floats) {
        let halves: uint16x8_t;
        // SAFETY: two instructions of the level, on registers alone: to the nearest, ties to even, as Rust leaves the mode.
        unsafe {
            asm!("fcvtn {0:v}.4h, {1:v}.4s", "fcvtn2 {0:v}.8h, {2:v}.4s", out(vreg) halves, in(vreg) x[0], in(vreg) x[1],
                 options(pure, nomem, nostack));
        }
        *to = must_cast(halves);
    }
    fn load_bf16(x: &[u16; 8]) -> Floats {
        let x: uint16x8_t = must_cast(*x);
        [vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(x))), vreinterpretq_f32_u32(vshll_high_n_u16::<16>(x))]
    }
    fn load_i8(x: &[i8; 8]) -> Floats {
        let x = vmovl_s8(must_cast(*x));
        [vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_high_s16(x))]
    }
    fn from_ints(x: Ints) -> Floats { both!(|x| vcvtq_f32_s32(x)) }
    fn round_ints(x: Floats) -> Ints { both!(|x| vcvtnq_s32_f32(x)) }
    fn add(a: Floats, b: Floats) -> Floats { both!(|a, b| vaddq_f32(a, b)) }
    fn sub(a: Floats, b: Floats) -> Floats { both!(|a, b| vsubq_f32(a, b)) }
    fn mul(a: Floats, b: Floats) -> Floats { both!(|a, b| vmulq_f32(a, b)) }
    fn div(a: Floats, b: Floats) -> Floats { both!(|a, b| vdivq_f32(a, b)) }
    fn sqrt(a: Floats) -> Floats { both!(|a| vsqrtq_f32(a)) }
    fn fma(a: Floats, b: Floats, c: Floats) -> Floats { both!(|a, b, c| vfmaq_f32(c, a, b)) }
    fn fnma(a: Floats, b: Floats, c: Floats) -> Floats { both!(|a, b, c| vfmsq_f32(c, a, b)) }
    // `b` where either is NaN, which the instructions of that name are not
    fn max(a: Floats, b: Floats) -> Floats { both!(|a, b| vbslq_f32(vcgtq_f32(a, b), a, b)) }
    fn min(a: Floats, b: Floats) -> Floats { both!(|a, b| vbslq_f32(vcltq_f32(a, b), a, b)) }
    fn abs(a: Floats) -> Floats { both!(|a| vabsq_f32(a)) }
    fn exp2_int(n: Ints) -> Floats {
        both!(|n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))))
    }
    fn sum(x: Floats) -> f32 {
        let q = vaddq_f32(x[0], x[1]);
        let d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
        vget_lane_f32::<0>(d) + vget_lane_f32::<1>(d)
    }
    fn largest(x: Floats) -> f32 { vmaxnmvq_f32(vmaxnmq_f32(x[0], x[1])) }
}

/// The same words at this level's full width, which is the same width: a piece is a register.
pub(crate) mod wide {
    pub(crate) use super::*;

    pub(crate) const LANES: usize = 8;
    // of 32 registers: sums and totals 24, a row's weights 2, activations 1
    pub(crate) const COLUMNS: usize = 6;
    pub(crate) const GROUPS: usize = 1;
    // sums 24, four of B, one of A
    pub(crate) const ROWS: usize = 6;
    pub(crate) const SIGNED_OFFSET: i32 = 0;
    pub(crate) const fn steps(_max: u32) -> usize {
        usize::MAX
    }
    pub(crate) type Partial = Ints;

    pub(crate) const PIECES: usize = 2;

    words! {
        fn pieces(x: [&[u8; 16]; 2]) -> Bytes { [must_cast(*x[0]), must_cast(*x[1])] }
        fn word_pieces(x: [Words; 2]) -> [Bytes; 2] {
            let bytes = |w| vreinterpretq_u8_s16(w);
            [[bytes(x[0][0]), bytes(x[1][0])], [bytes(x[0][1]), bytes(x[1][1])]]
        }
        fn bit_pieces(x: [u16; 2]) -> Bytes { bit_mask(must_cast(x)) }
        fn splat_piece(x: &[i8; 16]) -> Bytes { [must_cast(*x); 2] }
        fn shuffle(x: Bytes, places: &[i8; 16]) -> Bytes { both!(|x| vqtbl1q_u8(x, must_cast(*places))) }
        fn widen_bytes(x: Bytes) -> [Bytes; 2] {
            let x = both!(|x| vreinterpretq_s8_u8(x));
            let low = both!(|x| vreinterpretq_u8_s16(vmovl_s8(vget_low_s8(x))));
            [low, both!(|x| vreinterpretq_u8_s16(vmovl_high_s8(x)))]
        }
        fn mul_words(a: Bytes, b: i16) -> Bytes {
            both!(|a| vreinterpretq_u8_s16(vmulq_n_s16(vreinterpretq_s16_u8(a), b)))
        }
        fn add_words(a: Bytes, b: i16) -> Bytes {
            both!(|a| vreinterpretq_u8_s16(vaddq_s16(vreinterpretq_s16_u8(a), vdupq_n_s16(b))))
        }
        /// Products of words, summed in twos.
        fn twos(a: int16x8_t, b: int16x8_t) -> int32x4_t {
            vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b))
        }
        fn madd(acc: Ints, a: Bytes, b: Bytes) -> Ints {
            both!(|acc, a, b| vaddq_s32(acc, twos(vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b))))
        }
        fn splat_sums(x: &[i32; 4]) -> Bytes { [must_cast(*x); 2] }
        fn pick(x: Bytes, i: usize) -> Bytes {
            let (a, z) = (2 * i as i8, -1);
            let high = shuffle(x, &[z, z, a, a + 1, z, z, a, a + 1, z, z, a, a + 1, z, z, a, a + 1]);
            as_bytes(high_scale(as_ints(high)))
        }
        fn widen_piece(_small: bool, total: Ints, partial: Partial, scale: Bytes) -> Ints {
            widen(total, partial, as_ints(scale))
        }
        fn low_scale(pairs: Ints) -> Ints { both!(|pairs| vshrq_n_s32::<16>(vshlq_n_s32::<16>(pairs))) }
        fn high_scale(pairs: Ints) -> Ints { both!(|pairs| vshrq_n_s32::<16>(pairs)) }
        fn store_ints(to: &mut [i32; 8], x: Ints) { *to = must_cast(x); }
        fn sum_pieces(x: [Ints; 4]) -> Ints {
            let of = |p: usize| vpaddq_s32(vpaddq_s32(x[0][p], x[1][p]), vpaddq_s32(x[2][p], x[3][p]));
            [of(0), of(1)]
        }
        fn turn_pieces(x: [Bytes; 4]) -> [Ints; 4] {
            let x = [as_ints(x[0]), as_ints(x[1]), as_ints(x[2]), as_ints(x[3])];
            let turn = |p: usize| {
                let (a, b) = (vtrn1q_s32(x[0][p], x[1][p]), vtrn2q_s32(x[0][p], x[1][p]));
                let (c, d) = (vtrn1q_s32(x[2][p], x[3][p]), vtrn2q_s32(x[2][p], x[3][p]));
                let long = |v| vreinterpretq_s64_s32(v);
                let first = |v, w| vreinterpretq_s32_s64(vtrn1q_s64(long(v), long(w)));
                let last = |v, w| vreinterpretq_s32_s64(vtrn2q_s64(long(v), long(w)));
                [first(a, c), first(b, d), last(a, c), last(b, d)]
            };
            let (x, y) = (turn(0), turn(1));
            [[x[0], y[0]], [x[1], y[1]], [x[2], y[2]], [x[3], y[3]]]
        }
        fn load_panel(x: &[u8; 32]) -> Bytes { must_cast(*x) }
        fn splat_four(x: &[i8; 4]) -> Bytes { [vreinterpretq_u8_s32(vdupq_n_s32(must_cast(*x))); 2] }
        fn zero_partial() -> Partial { zero_ints() }
        fn step_us(acc: Partial, u: Bytes, s: Bytes) -> Partial { step_ss(acc, u, s) }
        fn step_ss(acc: Partial, a: Bytes, b: Bytes) -> Partial {
            both!(|acc, a, b| sdot(acc, vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b)))
        }
        fn widen(total: Ints, partial: Partial, scale: Ints) -> Ints {
            both!(|total, partial, scale| vmlaq_s32(total, partial, scale))
        }
        fn widen_plain(total: Ints, partial: Partial) -> Ints { add_ints(total, partial) }
        fn load_ints(x: &[i32; 8]) -> Ints { must_cast(*x) }
        fn madd_lanes(acc: Ints, pairs: Ints, two: i32) -> Ints {
            let two = vreinterpretq_s16_s32(vdupq_n_s32(two));
            both!(|acc, pairs| vaddq_s32(acc, twos(vreinterpretq_s16_s32(pairs), two)))
        }
        fn mul_int(a: Ints, b: i32) -> Ints { both!(|a| vmulq_n_s32(a, b)) }
    }
}
