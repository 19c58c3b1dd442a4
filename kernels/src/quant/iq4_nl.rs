//! IQ4_NL: 4-bit indices into a fixed table, one scale per 32 weights.
//!
//! ```text
//! d  f16        w[i]    = d·VALUES[qs[i] & 15]
//! qs [16] u8    w[i+16] = d·VALUES[qs[i] >> 4]        i in 0..16
//! ```

use super::q4_0::pairs;
use super::search::{self, Ladder, Lanes, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

/// The non-linear code book (ggml's `kvalues_iq4nl`), closer together near zero.
pub(super) static VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

type Block = [u8; 18];

struct Iq4Nl;

impl Blocked for Iq4Nl {
    type Block = Block;
    const SIGNED: bool = true;
    const MAX: u32 = 127;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 0)
    }
}

super::block_kernels!(Iq4Nl, {
    fn chunk(b: &Block) -> simd::Bytes {
        simd::lookup(&VALUES, simd::nibbles(b[2..].first_chunk().expect("16 bytes")))
    }
    fn pieces(b: [&Block; simd::wide::PIECES]) -> [simd::wide::Bytes; 2] {
        let [low, high] =
            at::quads::nibbles(core::array::from_fn(|l| b[l][2..].first_chunk().expect("16 bytes")));
        [simd::wide::lookup(&VALUES, low), simd::wide::lookup(&VALUES, high)]
    }
});

/// The code book as a ladder.
pub(super) struct Table;

impl Ladder for Table {
    const LOW: f32 = VALUES[0] as f32;
    const HIGH: f32 = VALUES[15] as f32;
    #[inline(always)]
    fn snap(v: f32) -> f32 {
        let mut q = Self::LOW;
        for k in 0..15 {
            let (below, above) = (f32::from(VALUES[k]), f32::from(VALUES[k + 1]));
            q += if v > (below + above) * 0.5 { above - below } else { 0.0 };
        }
        q
    }
    #[inline(always)]
    fn code(v: f32) -> u8 {
        let mut code = 0;
        for k in 0..15 {
            let (below, above) = (f32::from(VALUES[k]), f32::from(VALUES[k + 1]));
            code += u8::from(v > (below + above) * 0.5);
        }
        code
    }
}

const STARTS: Lanes = scale::starts::<Table>(-16.0, 8.0);

impl search::Encode for Iq4Nl {
    type Weights = [f32; 32];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 32]) -> Block {
        let (d, q) = scale::block::<Table>(x, &STARTS);
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
            out[i] = f32::from(VALUES[usize::from(b[2 + i] & 15)]) * d;
            out[i + 16] = f32::from(VALUES[usize::from(b[2 + i] >> 4)]) * d;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "IQ4_NL",
    id: 20,
    len: 32,
    bytes: size_of::<Block>(),
    grain: Grain::Small,
    decode,
    encode: search::encode::<Iq4Nl>,
    decode_fast,
    dot,
    fill,
    tile,
};
