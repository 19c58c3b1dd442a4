//! The vocabulary in plain Rust: the specification of the other levels, and what runs where there is no AVX2.
//!
//! `fma` rounds twice here: without the instruction a fused multiply-add is a library call of some fifty
//! nanoseconds. Bits are promised within a level, not between levels.

pub(crate) type Bytes = [u8; 32];
pub(crate) type Words = [i16; 16];
pub(crate) type Ints = [i32; 8];
pub(crate) type Floats = [f32; 8];

macro_rules! zip {
    (|$($v:ident),+| $e:expr) => { core::array::from_fn(|i| { $( let $v = $v[i]; )+ $e }) };
}

pub(crate) fn prefetch(_: *const u8) {}

// ---- bytes

pub(crate) fn load_bytes(x: &[u8; 32]) -> Bytes {
    *x
}
pub(crate) fn splat_byte(x: u8) -> Bytes {
    [x; 32]
}
pub(crate) fn nibbles(x: &[u8; 16]) -> Bytes {
    core::array::from_fn(|i| if i < 16 { x[i] & 15 } else { x[i - 16] >> 4 })
}
pub(crate) fn and(a: Bytes, b: Bytes) -> Bytes {
    zip!(|a, b| a & b)
}
pub(crate) fn or(a: Bytes, b: Bytes) -> Bytes {
    zip!(|a, b| a | b)
}
pub(crate) fn xor(a: Bytes, b: Bytes) -> Bytes {
    zip!(|a, b| a ^ b)
}
/// Each 16-bit pair shifted right; the caller masks what crossed over.
pub(crate) fn shr_pairs<const N: i32>(a: Bytes) -> Bytes {
    let w: [u16; 16] = bytemuck::must_cast(a);
    bytemuck::must_cast::<[u16; 16], _>(zip!(|w| w >> N))
}
/// Each 16-bit pair shifted left; the caller masks what crossed over.
pub(crate) fn shl_pairs<const N: i32>(a: Bytes) -> Bytes {
    let w: [u16; 16] = bytemuck::must_cast(a);
    bytemuck::must_cast::<[u16; 16], _>(zip!(|w| w << N))
}
/// Bit i of `bits` as byte i: 0xff or 0.
pub(crate) fn bit_mask(bits: u32) -> Bytes {
    core::array::from_fn(|i| if bits >> i & 1 == 1 { 0xff } else { 0 })
}
/// `table[index]` for indices 0..16.
pub(crate) fn lookup(table: &[i8; 16], index: Bytes) -> Bytes {
    zip!(|index| table[usize::from(index & 15)] as u8)
}

// ---- exact integer products

fn fours(f: impl Fn(usize) -> i32) -> Ints {
    core::array::from_fn(|i| f(4 * i) + f(4 * i + 1) + f(4 * i + 2) + f(4 * i + 3))
}
pub(crate) fn dot_us(u: Bytes, s: Bytes) -> Ints {
    fours(|i| i32::from(u[i]) * i32::from(s[i] as i8))
}
pub(crate) fn dot_ss(a: Bytes, b: Bytes) -> Ints {
    fours(|i| i32::from(a[i] as i8) * i32::from(b[i] as i8))
}
/// Products of 16-bit pairs, summed in twos.
pub(crate) fn madd(a: Words, b: Words) -> Ints {
    core::array::from_fn(|i| {
        i32::from(a[2 * i]) * i32::from(b[2 * i]) + i32::from(a[2 * i + 1]) * i32::from(b[2 * i + 1])
    })
}
pub(crate) fn widen_signed(x: [i8; 16]) -> Words {
    x.map(i16::from)
}
pub(crate) fn widen_unsigned(x: [u8; 16]) -> Words {
    x.map(i16::from)
}
/// Each of eight numbers twice.
pub(crate) fn twice(x: [u8; 8]) -> Words {
    core::array::from_fn(|i| i16::from(x[i / 2]))
}
/// Each of eight numbers twice.
pub(crate) fn twice_signed(x: [i8; 8]) -> Words {
    core::array::from_fn(|i| i16::from(x[i / 2]))
}
pub(crate) fn sub_words(a: Words, b: Words) -> Words {
    zip!(|a, b| a.wrapping_sub(b))
}
pub(crate) fn splat_word(x: i16) -> Words {
    [x; 16]
}
pub(crate) fn zero_ints() -> Ints {
    [0; 8]
}
pub(crate) fn splat_int(x: i32) -> Ints {
    [x; 8]
}
pub(crate) fn add_ints(a: Ints, b: Ints) -> Ints {
    zip!(|a, b| a.wrapping_add(b))
}
pub(crate) fn sub_ints(a: Ints, b: Ints) -> Ints {
    zip!(|a, b| a.wrapping_sub(b))
}
pub(crate) fn as_ints(x: Bytes) -> Ints {
    bytemuck::must_cast(x)
}

pub(crate) fn as_bytes(x: Ints) -> Bytes {
    bytemuck::must_cast(x)
}

// ---- floats

pub(crate) fn zero() -> Floats {
    [0.0; 8]
}
pub(crate) fn splat(x: f32) -> Floats {
    [x; 8]
}
pub(crate) fn load(x: &[f32; 8]) -> Floats {
    *x
}
pub(crate) fn store(to: &mut [f32; 8], x: Floats) {
    *to = x;
}
pub(crate) fn load_f16(x: &[u16; 8]) -> Floats {
    x.map(crate::half::f16_to_f32)
}
pub(crate) fn store_f16(to: &mut [u16; 8], x: Floats) {
    *to = x.map(crate::half::f32_to_f16);
}
pub(crate) fn load_bf16(x: &[u16; 8]) -> Floats {
    x.map(crate::half::bf16_to_f32)
}
pub(crate) fn load_i8(x: &[i8; 8]) -> Floats {
    x.map(f32::from)
}
pub(crate) fn from_ints(x: Ints) -> Floats {
    x.map(|v| v as f32)
}
/// Nearest integer, ties to even; for |x| < 2^31.
pub(crate) fn round_ints(x: Floats) -> Ints {
    x.map(|v| v.round_ties_even() as i32)
}
pub(crate) fn add(a: Floats, b: Floats) -> Floats {
    zip!(|a, b| a + b)
}
pub(crate) fn sub(a: Floats, b: Floats) -> Floats {
    zip!(|a, b| a - b)
}
pub(crate) fn mul(a: Floats, b: Floats) -> Floats {
    zip!(|a, b| a * b)
}
pub(crate) fn div(a: Floats, b: Floats) -> Floats {
    zip!(|a, b| a / b)
}
pub(crate) fn sqrt(a: Floats) -> Floats {
    a.map(f32::sqrt)
}
/// `a·b + c`
pub(crate) fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
    zip!(|a, b, c| a * b + c)
}
/// `c − a·b`
pub(crate) fn fnma(a: Floats, b: Floats, c: Floats) -> Floats {
    zip!(|a, b, c| c - a * b)
}
/// `b` where either is NaN, like the instruction.
pub(crate) fn max(a: Floats, b: Floats) -> Floats {
    zip!(|a, b| if a > b { a } else { b })
}
/// `b` where either is NaN, like the instruction.
pub(crate) fn min(a: Floats, b: Floats) -> Floats {
    zip!(|a, b| if a < b { a } else { b })
}
pub(crate) fn abs(a: Floats) -> Floats {
    a.map(f32::abs)
}
/// 2^n for |n| < 127.
pub(crate) fn exp2_int(n: Ints) -> Floats {
    n.map(|v| f32::from_bits(((v + 127) << 23) as u32))
}
/// The sum of all lanes, by halves: (0+4)+(2+6) + ((1+5)+(3+7)).
pub(crate) fn sum(x: Floats) -> f32 {
    let q: [f32; 4] = core::array::from_fn(|i| x[i] + x[i + 4]);
    (q[0] + q[2]) + (q[1] + q[3])
}
pub(crate) fn largest(x: Floats) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The same words at this level's full width.
pub(crate) mod wide {
    pub(crate) use super::*;

    pub(crate) const LANES: usize = 8;
    /// Columns of an integer tile.
    pub(crate) const COLUMNS: usize = 4;
    /// Registers of rows of an integer tile.
    pub(crate) const GROUPS: usize = 1;
    /// Rows of a float tile ([`crate::gemm`]).
    pub(crate) const ROWS: usize = 4;
    /// What is added to signed weights when they are laid into a panel.
    pub(crate) const SIGNED_OFFSET: i32 = 0;
    /// How many products with weights up to `max` may be added before they must be widened.
    pub(crate) const fn steps(_max: u32) -> usize {
        usize::MAX
    }
    pub(crate) type Partial = Ints;

    /// A register holds this many *pieces* of sixteen bytes, one from each of as many rows.
    pub(crate) const PIECES: usize = 2;

    fn of_words(f: impl Fn(usize) -> i16) -> Bytes {
        bytemuck::must_cast::<[i16; 16], _>(core::array::from_fn(f))
    }
    fn words(x: Bytes) -> [i16; 16] {
        bytemuck::must_cast(x)
    }
    pub(crate) fn pieces(x: [&[u8; 16]; 2]) -> Bytes {
        core::array::from_fn(|i| x[i / 16][i % 16])
    }
    /// Of 16 words of each row the first eight, and the last eight.
    pub(crate) fn word_pieces(x: [Words; 2]) -> [Bytes; 2] {
        [of_words(|i| x[i / 8][i % 8]), of_words(|i| x[i / 8][8 + i % 8])]
    }
    /// 0xff where a row's bit is set, else 0.
    pub(crate) fn bit_pieces(x: [u16; 2]) -> Bytes {
        bit_mask(u32::from(x[1]) << 16 | u32::from(x[0]))
    }
    /// The same sixteen bytes for every row.
    pub(crate) fn splat_piece(x: &[i8; 16]) -> Bytes {
        core::array::from_fn(|i| x[i % 16] as u8)
    }
    /// Within each piece the bytes at `places`; zero where that is negative.
    pub(crate) fn shuffle(x: Bytes, places: &[i8; 16]) -> Bytes {
        core::array::from_fn(|i| usize::try_from(places[i % 16]).map_or(0, |at| x[i / 16 * 16 + at]))
    }
    /// Signed bytes as words: of the first eight bytes of each piece, and of the last eight.
    pub(crate) fn widen_bytes(x: Bytes) -> [Bytes; 2] {
        let of = |from: usize| of_words(|i| i16::from(x[i / 8 * 16 + from + i % 8] as i8));
        [of(0), of(8)]
    }
    pub(crate) fn mul_words(a: Bytes, b: i16) -> Bytes {
        of_words(|i| words(a)[i].wrapping_mul(b))
    }
    pub(crate) fn add_words(a: Bytes, b: i16) -> Bytes {
        of_words(|i| words(a)[i].wrapping_add(b))
    }
    /// `acc` + products of words, summed in twos.
    pub(crate) fn madd(acc: Ints, a: Bytes, b: Bytes) -> Ints {
        add_ints(acc, super::madd(words(a), words(b)))
    }
    /// Four pairs of 16-bit sums for every row.
    pub(crate) fn splat_sums(x: &[i32; 4]) -> Bytes {
        bytemuck::must_cast::<[i32; 8], _>(core::array::from_fn(|i| x[i % 4]))
    }
    /// Word `i` of every piece, in the form in which `widen_piece` wants it.
    pub(crate) fn pick(x: Bytes, i: usize) -> Bytes {
        bytemuck::must_cast::<[i32; 8], _>(core::array::from_fn(|l| i32::from(words(x)[l / 4 * 8 + i])))
    }
    /// `total + partial · scale`; `small` says that the sums of each lane fit 16 bits.
    pub(crate) fn widen_piece(_small: bool, total: Ints, partial: Partial, scale: Bytes) -> Ints {
        widen(total, partial, as_ints(scale))
    }
    /// The first of two words of each lane, in the form in which `widen` wants it.
    pub(crate) fn low_scale(pairs: Ints) -> Ints {
        pairs.map(|p| i32::from(p as i16))
    }
    /// The second.
    pub(crate) fn high_scale(pairs: Ints) -> Ints {
        pairs.map(|p| p >> 16)
    }
    pub(crate) fn store_ints(to: &mut [i32; 8], x: Ints) {
        *to = x;
    }
    /// Lane 4p + i: the sum of piece p of `x[i]`.
    pub(crate) fn sum_pieces(x: [Ints; 4]) -> Ints {
        core::array::from_fn(|l| x[l % 4][l / 4 * 4..][..4].iter().sum())
    }
    /// `out[i]`, lane 4p + r: the i-th four bytes of piece p of `x[r]`.
    pub(crate) fn turn_pieces(x: [Bytes; 4]) -> [Ints; 4] {
        let x = x.map(as_ints);
        core::array::from_fn(|i| core::array::from_fn(|l| x[l % 4][l / 4 * 4 + i]))
    }

    pub(crate) fn load_panel(x: &[u8; 32]) -> Bytes {
        *x
    }
    pub(crate) fn splat_four(x: &[i8; 4]) -> Bytes {
        core::array::from_fn(|i| x[i % 4] as u8)
    }
    pub(crate) fn zero_partial() -> Partial {
        [0; 8]
    }
    pub(crate) fn step_us(acc: Partial, u: Bytes, s: Bytes) -> Partial {
        add_ints(acc, dot_us(u, s))
    }
    pub(crate) fn step_ss(acc: Partial, a: Bytes, b: Bytes) -> Partial {
        add_ints(acc, dot_ss(a, b))
    }
    /// `total + partial · scale`, the scale as `low_scale` and `high_scale` make it.
    pub(crate) fn widen(total: Ints, partial: Partial, scale: Ints) -> Ints {
        zip!(|total, partial, scale| total + partial * scale)
    }
    pub(crate) fn widen_plain(total: Ints, partial: Partial) -> Ints {
        add_ints(total, partial)
    }
    pub(crate) fn load_ints(x: &[i32; 8]) -> Ints {
        *x
    }
    /// `acc` + two 16-bit numbers of each lane with two of the splat, products summed.
    pub(crate) fn madd_lanes(acc: Ints, pairs: Ints, two: i32) -> Ints {
        zip!(|acc, pairs| acc + i32::from(pairs as i16) * i32::from(two as i16) + (pairs >> 16) * (two >> 16))
    }
    pub(crate) fn mul_int(a: Ints, b: i32) -> Ints {
        a.map(|v| v * b)
    }
}
