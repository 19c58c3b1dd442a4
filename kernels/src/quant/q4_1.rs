//! Q4_1: 4 bits, scale and minimum per 32 weights.
//!
//! ```text
//! d  f16        w[i]    = d·(qs[i] & 15) + m
//! m  f16        w[i+16] = d·(qs[i] >> 4) + m          i in 0..16
//! qs [16] u8
//! ```

use super::q4_0::pairs;
use super::search::{self, LANES, Steps, affine};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 20];

struct Q4_1;

impl Blocked for Q4_1 {
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

super::block_kernels!(Q4_1, {
    fn chunk(b: &Block) -> simd::Bytes {
        simd::nibbles(b[4..].first_chunk().expect("16 bytes"))
    }
    fn pieces(b: [&Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
        at::quads::nibbles(core::array::from_fn(|l| b[l][4..].first_chunk().expect("16 bytes")))
    }
});

const STARTS: [[f32; 2]; LANES] = affine::starts(-0.75, 0.5);

impl search::Encode for Q4_1 {
    type Weights = [f32; 32];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 32]) -> Block {
        let (d, m, q) = affine::block::<Steps<0, 15>>(x, &STARTS);
        let mut out = [0; 20];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        out[4..].copy_from_slice(&pairs(&q));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = (f16_to_f32(half_at(b, 0)), f16_to_f32(half_at(b, 2)));
        for i in 0..16 {
            out[i] = f32::from(b[4 + i] & 15) * d + m;
            out[i + 16] = f32::from(b[4 + i] >> 4) * d + m;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q4_1",
    id: 3,
    len: 32,
    bytes: size_of::<Block>(),
    grain: Grain::Small,
    decode,
    encode: search::encode::<Q4_1>,
    decode_fast,
    dot,
    fill,
    tile,
};
