//! Q2_K: 2 bits, a 4-bit scale and minimum per 16 weights.
//!
//! ```text
//! scales [16] u8    per 16 weights: low nibble s, high nibble b
//! qs     [64] u8    weight 128h + 32t + l, l in 0..32: bits 2t, 2t+1 of qs[32h + l]
//! d      f16        w = d·s·q − m·b
//! m      f16
//! ```

use super::search::affine::Found;
use super::search::{self, LANES, Steps, affine};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 84];

struct Q2K;

impl Blocked for Q2K {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 3;
    const SUB: usize = 16;
    const MIN: bool = true;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 80)
    }
    #[inline(always)]
    fn m(block: &Block) -> u16 {
        half_at(block, 82)
    }
}

super::super_kernels!(Q2K, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        let x = simd::load_bytes(b[16 + 32 * (j / 4)..].first_chunk().expect("32 bytes"));
        let x = match j % 4 {
            0 => x,
            1 => simd::shr_pairs::<2>(x),
            2 => simd::shr_pairs::<4>(x),
            _ => simd::shr_pairs::<6>(x),
        };
        simd::and(x, simd::splat_byte(3))
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        let both: [u8; 16] = *b.first_chunk().expect("16 bytes");
        (simd::widen_unsigned(both.map(|v| v & 15)), simd::widen_unsigned(both.map(|v| v >> 4)))
    }
    fn pieces(b: [&Block; simd::wide::PIECES], h: usize) -> [simd::wide::Bytes; 8] {
        let part = |at: usize| {
            simd::wide::pieces(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")))
        };
        let x: [simd::wide::Bytes; 2] = core::array::from_fn(|i| part(16 + 32 * h + 16 * i));
        let two = |x| simd::wide::and(x, simd::wide::splat_byte(3));
        let (second, third, fourth) =
            (simd::wide::shr_pairs::<2>, simd::wide::shr_pairs::<4>, simd::wide::shr_pairs::<6>);
        [
            two(x[0]),
            two(x[1]),
            two(second(x[0])),
            two(second(x[1])),
            two(third(x[0])),
            two(third(x[1])),
            two(fourth(x[0])),
            two(fourth(x[1])),
        ]
    }
    fn factors(b: [&Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
        let x = simd::wide::pieces(core::array::from_fn(|l| b[l].first_chunk().expect("16 bytes")));
        let low = |x| simd::wide::and(x, simd::wide::splat_byte(15));
        (simd::wide::widen_bytes(low(x)), simd::wide::widen_bytes(low(simd::wide::shr_pairs::<4>(x))))
    }
});

/// 256 quants of 2 bits in 64 bytes, as in `qs`.
#[inline(always)]
pub(super) fn quarters(q: &[u8; 256]) -> [u8; 64] {
    core::array::from_fn(|i| {
        let q = &q[128 * (i / 32) + i % 32..];
        q[0] | q[32] << 2 | q[64] << 4 | q[96] << 6
    })
}

const STARTS: [[f32; 2]; LANES] = affine::starts(-0.5, 0.5);

impl search::Encode for Q2K {
    type Weights = [f32; 256];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 256]) -> Block {
        let Found { d, m, s, b, q } = affine::super_block::<Steps<0, 3>, Steps<0, 15>, 16, 16>(x, &STARTS);
        let mut out = [0; 84];
        for j in 0..16 {
            out[j] = (s[j] | b[j] << 4) as u8;
        }
        out[16..80].copy_from_slice(&quarters(&q));
        out[80..82].copy_from_slice(&d.to_le_bytes());
        out[82..].copy_from_slice(&m.to_le_bytes());
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, m) = (f16_to_f32(half_at(b, 80)), f16_to_f32(half_at(b, 82)));
        for i in 0..256 {
            let q = b[16 + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
            let s = b[i / 16];
            out[i] = d * f32::from(s & 15) * f32::from(q) - m * f32::from(s >> 4);
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q2_K",
    id: 10,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: search::encode::<Q2K>,
    decode_fast,
    dot,
    fill,
    tile,
};
