//! Q4_0: 4 bits, one scale per 32 weights, symmetric.
//!
//! ```text
//! d  f16        w[i]    = d·((qs[i] & 15) − 8)
//! qs [16] u8    w[i+16] = d·((qs[i] >> 4) − 8)        i in 0..16
//! ```

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
});

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
    encode: |_, _| {},
    decode_fast,
    dot,
    fill,
    tile,
};
