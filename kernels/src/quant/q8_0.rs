//! Q8_0: 8 bits, one scale per 32 weights.
//!
//! ```text
//! d  f16        w[i] = d·qs[i]        i in 0..32
//! qs [32] i8
//! ```

use super::search::{self, Lanes, Steps, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 34];

struct Q8_0;

impl Blocked for Q8_0 {
    type Block = Block;
    const SIGNED: bool = true;
    const MAX: u32 = 127;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 0)
    }
}

super::block_kernels!(Q8_0, {
    fn chunk(b: &Block) -> simd::Bytes {
        simd::load_bytes(b[2..].first_chunk().expect("32 bytes"))
    }
    fn pieces(b: [&Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
        let part = |at: usize| {
            simd::wide::pieces(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")))
        };
        [part(2), part(18)]
    }
});

const STARTS: Lanes = scale::starts::<Steps<-127, 127>>(-8.0, 1.0);

impl search::Encode for Q8_0 {
    type Weights = [f32; 32];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 32]) -> Block {
        let (d, q) = scale::block::<Steps<-127, 127>>(x, &STARTS);
        let mut out = [0; 34];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..].copy_from_slice(&q.map(|q| q.wrapping_sub(127)));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_to_f32(half_at(b, 0));
        for i in 0..32 {
            out[i] = f32::from(b[2 + i] as i8) * d;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q8_0",
    id: 8,
    len: 32,
    bytes: size_of::<Block>(),
    grain: Grain::Small,
    decode,
    encode: search::encode::<Q8_0>,
    decode_fast,
    dot,
    fill,
    tile,
};
