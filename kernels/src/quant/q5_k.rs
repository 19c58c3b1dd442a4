//! Q5_K: 5 bits, a 6-bit scale and minimum per 32 weights.
//!
//! ```text
//! d      f16
//! m      f16         w = d·s·q − m·b
//! scales [12] u8     as in Q4_K
//! qh     [32] u8     weight 32j + l: bit j of qh[l] is the fifth bit of q
//! qs     [128] u8    as in Q4_K
//! ```

use super::q4_k::{halves, pack_scales_and_minima, scales_and_minima};
use super::search::affine::Found;
use super::search::{self, LANES, Steps, affine};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 176];

struct Q5K;

impl Blocked for Q5K {
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

super::super_kernels!(Q5K, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        let x = simd::load_bytes(b[48 + 32 * (j / 2)..].first_chunk().expect("32 bytes"));
        let x = if j % 2 == 0 { x } else { simd::shr_pairs::<4>(x) };
        // bit j of each byte, moved to bit 4
        let h =
            simd::and(simd::load_bytes(b[16..].first_chunk().expect("32 bytes")), simd::splat_byte(1 << j));
        let h = match j {
            0 => simd::shl_pairs::<4>(h),
            1 => simd::shl_pairs::<3>(h),
            2 => simd::shl_pairs::<2>(h),
            3 => simd::shl_pairs::<1>(h),
            4 => h,
            5 => simd::shr_pairs::<1>(h),
            6 => simd::shr_pairs::<2>(h),
            _ => simd::shr_pairs::<3>(h),
        };
        simd::or(simd::and(x, simd::splat_byte(15)), h)
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        let (s, m) = scales_and_minima(b[4..].first_chunk().expect("12 bytes"));
        (simd::twice(s), simd::twice(m))
    }
    fn pieces(b: [&Block; simd::wide::PIECES], h: usize) -> [simd::wide::Bytes; 8] {
        let part = |at: usize| {
            simd::wide::pieces(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")))
        };
        let x: [simd::wide::Bytes; 4] = core::array::from_fn(|i| part(48 + 64 * h + 16 * i));
        let low = |x| simd::wide::and(x, simd::wide::splat_byte(15));
        let high = |x| low(simd::wide::shr_pairs::<4>(x));
        // bit 4h + j of each byte, moved to bit 4
        let fifth: [simd::wide::Bytes; 2] = core::array::from_fn(|i| {
            let x = part(16 + 16 * i);
            if h == 0 { x } else { simd::wide::shr_pairs::<4>(x) }
        });
        let join = |q, i: usize, j: usize| {
            let h = simd::wide::and(fifth[i], simd::wide::splat_byte(1 << j));
            let h = match j {
                0 => simd::wide::shl_pairs::<4>(h),
                1 => simd::wide::shl_pairs::<3>(h),
                2 => simd::wide::shl_pairs::<2>(h),
                _ => simd::wide::shl_pairs::<1>(h),
            };
            simd::wide::or(q, h)
        };
        [
            join(low(x[0]), 0, 0),
            join(low(x[1]), 1, 0),
            join(high(x[0]), 0, 1),
            join(high(x[1]), 1, 1),
            join(low(x[2]), 0, 2),
            join(low(x[3]), 1, 2),
            join(high(x[2]), 0, 3),
            join(high(x[3]), 1, 3),
        ]
    }
    fn factors(b: [&Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
        at::quads::six_bits(core::array::from_fn(|l| b[l].first_chunk().expect("16 bytes")))
    }
});

const STARTS: [[f32; 2]; LANES] = affine::starts(-0.75, 0.5);

impl search::Encode for Q5K {
    type Weights = [f32; 256];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 256]) -> Block {
        let Found { d, m, s, b, q } = affine::super_block::<Steps<0, 31>, Steps<0, 63>, 32, 8>(x, &STARTS);
        let mut out = [0; 176];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        out[4..16].copy_from_slice(&pack_scales_and_minima(&s, &b));
        for l in 0..32 {
            for j in 0..8 {
                out[16 + l] |= q[32 * j + l] >> 4 << j;
            }
        }
        out[48..].copy_from_slice(&halves(&q));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, m) = (f16_to_f32(half_at(b, 0)), f16_to_f32(half_at(b, 2)));
        let (s, low) = scales_and_minima(b[4..].first_chunk().expect("12 bytes"));
        for i in 0..256 {
            let q = b[48 + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15;
            let q = q | (b[16 + i % 32] >> (i / 32) & 1) << 4;
            out[i] = d * f32::from(s[i / 32]) * f32::from(q) - m * f32::from(low[i / 32]);
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q5_K",
    id: 13,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: search::encode::<Q5K>,
    decode_fast,
    dot,
    fill,
    tile,
};
