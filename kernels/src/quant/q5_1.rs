//! Q5_1: 5 bits, scale and minimum per 32 weights.
//!
//! ```text
//! d  f16        q[i]    = (qs[i] & 15) | bit i of qh << 4
//! m  f16        q[i+16] = (qs[i] >> 4) | bit i+16 of qh << 4        i in 0..16
//! qh [4]  u8    w       = d·q + m
//! qs [16] u8
//! ```

use super::q4_0::pairs;
use super::q5_0::fifth_bits;
use super::search::{self, LANES, Steps, affine};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 24];

struct Q5_1;

impl Blocked for Q5_1 {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 31;
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

super::block_kernels!(Q5_1, {
    fn chunk(b: &Block) -> simd::Bytes {
        let low = simd::nibbles(b[8..].first_chunk().expect("16 bytes"));
        let high = simd::bit_mask(u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
        simd::or(low, simd::and(high, simd::splat_byte(16)))
    }
    fn pieces(b: [&Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
        let [low, high] =
            at::quads::nibbles(core::array::from_fn(|l| b[l][8..].first_chunk().expect("16 bytes")));
        let fifth = |at: usize| {
            let bits = simd::wide::bit_pieces(core::array::from_fn(|l| half_at(b[l], at)));
            simd::wide::and(bits, simd::wide::splat_byte(16))
        };
        [simd::wide::or(low, fifth(4)), simd::wide::or(high, fifth(6))]
    }
});

const STARTS: [[f32; 2]; LANES] = affine::starts(-0.75, 0.5);

impl search::Encode for Q5_1 {
    type Weights = [f32; 32];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 32]) -> Block {
        let (d, m, q) = affine::block::<Steps<0, 31>>(x, &STARTS);
        let mut out = [0; 24];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        out[4..8].copy_from_slice(&fifth_bits(&q).to_le_bytes());
        out[8..].copy_from_slice(&pairs(&q));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = (f16_to_f32(half_at(b, 0)), f16_to_f32(half_at(b, 2)));
        let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        for i in 0..32 {
            let low = if i < 16 { b[8 + i] & 15 } else { b[8 + i - 16] >> 4 };
            out[i] = (u32::from(low) | (high >> i & 1) << 4) as f32 * d + m;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q5_1",
    id: 7,
    len: 32,
    bytes: size_of::<Block>(),
    grain: Grain::Small,
    decode,
    encode: search::encode::<Q5_1>,
    decode_fast,
    dot,
    fill,
    tile,
};
