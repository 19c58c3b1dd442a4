//! Q4_0: 4 bits, one scale per 32 weights, symmetric.
//!
//! ```text
//! d  f16        w[i]    = d·((qs[i] & 15) − 8)
//! qs [16] u8    w[i+16] = d·((qs[i] >> 4) − 8)        i in 0..16
//! ```

use super::search::{self, Lanes, Steps, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 18];

struct Q4_0;

impl Blocked for Q4_0 {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 15;
    const OFFSET: i32 = 8;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 0)
    }
}

super::block_kernels!(Q4_0, {
    fn chunk(b: &Block) -> simd::Bytes {
        simd::nibbles(b[2..].first_chunk().expect("16 bytes"))
    }
    fn pieces(b: [&Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
        at::quads::nibbles(core::array::from_fn(|l| b[l][2..].first_chunk().expect("16 bytes")))
    }
});

/// 32 quants in 16 bytes: the low nibbles are the first 16. (What a fifth bit is, see Q5_0.)
#[inline(always)]
pub(super) fn pairs(q: &[u8; 32]) -> [u8; 16] {
    core::array::from_fn(|i| q[i] & 15 | q[i + 16] << 4)
}

const STARTS: Lanes = scale::starts::<Steps<-8, 7>>(-2.0, 1.0);

impl search::Encode for Q4_0 {
    type Weights = [f32; 32];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 32]) -> Block {
        let (d, q) = scale::block::<Steps<-8, 7>>(x, &STARTS);
        let mut out = [0; 18];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..].copy_from_slice(&pairs(&q));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_to_f32(half_at(b, 0));
        for i in 0..16 {
            out[i] = (i32::from(b[2 + i] & 15) - 8) as f32 * d;
            out[i + 16] = (i32::from(b[2 + i] >> 4) - 8) as f32 * d;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q4_0",
    id: 2,
    len: 32,
    bytes: size_of::<Block>(),
    grain: Grain::Small,
    decode,
    encode: search::encode::<Q4_0>,
    decode_fast,
    dot,
    fill,
    tile,
};
