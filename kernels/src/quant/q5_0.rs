//! Q5_0: 5 bits, one scale per 32 weights, symmetric.
//!
//! ```text
//! d  f16        q[i]    = (qs[i] & 15) | bit i of qh << 4
//! qh [4]  u8    q[i+16] = (qs[i] >> 4) | bit i+16 of qh << 4        i in 0..16
//! qs [16] u8    w       = d·(q − 16)
//! ```

use super::q4_0::pairs;
use super::search::{self, Lanes, Steps, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 22];

struct Q5_0;

impl Blocked for Q5_0 {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 31;
    const OFFSET: i32 = 16;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 0)
    }
}

super::block_kernels!(Q5_0, {
    fn chunk(b: &Block) -> simd::Bytes {
        let low = simd::nibbles(b[6..].first_chunk().expect("16 bytes"));
        let high = simd::bit_mask(u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
        simd::or(low, simd::and(high, simd::splat_byte(16)))
    }
    fn pieces(b: [&Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
        let [low, high] =
            at::quads::nibbles(core::array::from_fn(|l| b[l][6..].first_chunk().expect("16 bytes")));
        let fifth = |at: usize| {
            let bits = simd::wide::bit_pieces(core::array::from_fn(|l| half_at(b[l], at)));
            simd::wide::and(bits, simd::wide::splat_byte(16))
        };
        [simd::wide::or(low, fifth(2)), simd::wide::or(high, fifth(4))]
    }
});

/// The fifth bits of 32 quants.
#[inline(always)]
pub(super) fn fifth_bits(q: &[u8; 32]) -> u32 {
    let mut out = 0;
    for i in 0..32 {
        out |= u32::from(q[i] >> 4) << i;
    }
    out
}

const STARTS: Lanes = scale::starts::<Steps<-16, 15>>(-2.0, 1.0);

impl search::Encode for Q5_0 {
    type Weights = [f32; 32];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 32]) -> Block {
        let (d, q) = scale::block::<Steps<-16, 15>>(x, &STARTS);
        let mut out = [0; 22];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..6].copy_from_slice(&fifth_bits(&q).to_le_bytes());
        out[6..].copy_from_slice(&pairs(&q));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_to_f32(half_at(b, 0));
        let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
        for i in 0..32 {
            let low = if i < 16 { b[6 + i] & 15 } else { b[6 + i - 16] >> 4 };
            let q = i32::from(low) | ((high >> i & 1) << 4) as i32;
            out[i] = (q - 16) as f32 * d;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q5_0",
    id: 6,
    len: 32,
    bytes: size_of::<Block>(),
    grain: Grain::Small,
    decode,
    encode: search::encode::<Q5_0>,
    decode_fast,
    dot,
    fill,
    tile,
};
