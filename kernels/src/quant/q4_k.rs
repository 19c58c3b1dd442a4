//! Q4_K: 4 bits, a 6-bit scale and minimum per 32 weights.
//!
//! ```text
//! d      f16
//! m      f16         w = d·s·q − m·b
//! scales [12] u8     eight pairs (s, b) of 6 bits (see `scales_and_minima`)
//! qs     [128] u8    weight 64p + l: low nibble of qs[32p + l]; 64p + 32 + l: high nibble; l in 0..32
//! ```

use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 144];

struct Q4K;

impl Blocked for Q4K {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 15;
    const MIN: bool = true;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 0)
    }
    #[inline(always)]
    fn m(block: &Block) -> u16 {
        half_at(block, 2)
    }
}

/// The eight 6-bit scales and minima of Q4_K and Q5_K, from their 12 bytes:
/// bytes 0..4 hold s0..s3, bytes 4..8 b0..b3 in their low six bits; bytes 8..12 the low nibbles of s4..s7 and b4..b7,
/// whose upper two bits are the upper two bits of bytes 0..4 and 4..8.
#[inline(always)]
pub(super) fn scales_and_minima(x: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let at = |i: usize| u32::from_le_bytes([x[i], x[i + 1], x[i + 2], x[i + 3]]);
    let (a, b, c) = (at(0), at(4), at(8));
    let high = |v: u32| (v >> 6 & 0x0303_0303) << 4;
    let join = |lo: u32, hi: u32| (u64::from(hi) << 32 | u64::from(lo)).to_le_bytes();
    let s = join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | high(a));
    let m = join(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | high(b));
    (s, m)
}

super::super_kernels!(Q4K, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        let x = simd::load_bytes(b[16 + 32 * (j / 2)..].first_chunk().expect("32 bytes"));
        let x = if j % 2 == 0 { x } else { simd::shr_pairs::<4>(x) };
        simd::and(x, simd::splat_byte(15))
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        let (s, m) = scales_and_minima(b[4..].first_chunk().expect("12 bytes"));
        let twice = |x: [u8; 8]| core::array::from_fn(|i| x[i / 2]);
        (simd::widen_unsigned(twice(s)), simd::widen_unsigned(twice(m)))
    }
});

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, m) = (f16_to_f32(half_at(b, 0)), f16_to_f32(half_at(b, 2)));
        let (s, low) = scales_and_minima(b[4..].first_chunk().expect("12 bytes"));
        for i in 0..256 {
            let q = b[16 + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15;
            out[i] = d * f32::from(s[i / 32]) * f32::from(q) - m * f32::from(low[i / 32]);
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q4_K",
    id: 12,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: |_, _| {},
    decode_fast,
    dot,
    fill,
    tile,
};
