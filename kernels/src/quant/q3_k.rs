//! Q3_K: 3 bits, a signed 6-bit scale per 16 weights.
//!
//! ```text
//! hmask  [32] u8    weight 32j + l: bit j of hmask[l] is the third bit of q
//! qs     [64] u8    weight 128h + 32t + l, l in 0..32: bits 2t, 2t+1 of qs[32h + l]
//! scales [12] u8    16 scales of 6 bits, 32 too high (see `six_bits`)
//! d      f16        w = d·(s − 32)·(q − 4)
//! ```

use super::q2_k::quarters;
use super::search::scale::Found;
use super::search::{self, Lanes, Steps, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 110];

struct Q3K;

impl Blocked for Q3K {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 7;
    const OFFSET: i32 = 4;
    const SUB: usize = 16;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 108)
    }
}

/// The 16 scales: low nibbles of scales 0..8 and 8..16 in bytes 0..8, their upper two bits in bytes 8..12.
#[inline(always)]
fn six_bits(b: &Block) -> [u8; 16] {
    let at = |i: usize| u32::from_le_bytes([b[96 + 4 * i], b[97 + 4 * i], b[98 + 4 * i], b[99 + 4 * i]]);
    let (low, high) = ([at(0), at(1)], at(2));
    let mut out = [0; 16];
    for i in 0..4 {
        let nibbles = low[i % 2] >> (4 * (i / 2)) & 0x0f0f_0f0f;
        let upper = (high >> (2 * i) & 0x0303_0303) << 4;
        out[4 * i..4 * i + 4].copy_from_slice(&(nibbles | upper).to_le_bytes());
    }
    out
}

super::super_kernels!(Q3K, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        let x = simd::load_bytes(b[32 + 32 * (j / 4)..].first_chunk().expect("32 bytes"));
        let x = match j % 4 {
            0 => x,
            1 => simd::shr_pairs::<2>(x),
            2 => simd::shr_pairs::<4>(x),
            _ => simd::shr_pairs::<6>(x),
        };
        // bit j of each mask byte, moved to bit 2
        let h = simd::and(simd::load_bytes(b.first_chunk().expect("32 bytes")), simd::splat_byte(1 << j));
        let h = match j {
            0 => simd::shl_pairs::<2>(h),
            1 => simd::shl_pairs::<1>(h),
            2 => h,
            3 => simd::shr_pairs::<1>(h),
            4 => simd::shr_pairs::<2>(h),
            5 => simd::shr_pairs::<3>(h),
            6 => simd::shr_pairs::<4>(h),
            _ => simd::shr_pairs::<5>(h),
        };
        simd::or(simd::and(x, simd::splat_byte(3)), h)
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        let s = simd::sub_words(simd::widen_unsigned(six_bits(b)), simd::splat_word(32));
        (s, simd::splat_word(0))
    }
    fn pieces(b: [&Block; simd::wide::PIECES], h: usize) -> [simd::wide::Bytes; 8] {
        let part = |at: usize| {
            simd::wide::pieces(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")))
        };
        let x: [simd::wide::Bytes; 2] = core::array::from_fn(|i| part(32 + 32 * h + 16 * i));
        let two = |x| simd::wide::and(x, simd::wide::splat_byte(3));
        let (second, third, fourth) =
            (simd::wide::shr_pairs::<2>, simd::wide::shr_pairs::<4>, simd::wide::shr_pairs::<6>);
        // bit 4h + t of each mask byte, moved to bit 2
        let third_bit = |i: usize, t: usize| {
            let x = part(16 * i);
            let x = if h == 0 { x } else { simd::wide::shr_pairs::<4>(x) };
            let x = simd::wide::and(x, simd::wide::splat_byte(1 << t));
            match t {
                0 => simd::wide::shl_pairs::<2>(x),
                1 => simd::wide::shl_pairs::<1>(x),
                2 => x,
                _ => simd::wide::shr_pairs::<1>(x),
            }
        };
        let join = |q, i: usize, t: usize| simd::wide::or(two(q), third_bit(i, t));
        [
            join(x[0], 0, 0),
            join(x[1], 1, 0),
            join(second(x[0]), 0, 1),
            join(second(x[1]), 1, 1),
            join(third(x[0]), 0, 2),
            join(third(x[1]), 1, 2),
            join(fourth(x[0]), 0, 3),
            join(fourth(x[1]), 1, 3),
        ]
    }
    fn factors(b: [&Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
        let s = core::array::from_fn(|l| scales(b[l]).0);
        (simd::wide::word_pieces(s), [simd::wide::as_bytes(simd::wide::zero_ints()); 2])
    }
});

const STARTS: Lanes = scale::starts::<Steps<-4, 3>>(-2.0, 1.0);

impl search::Encode for Q3K {
    type Weights = [f32; 256];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 256]) -> Block {
        let Found { d, s, q } = scale::super_block::<Steps<-4, 3>, Steps<-32, 31>, 16, 16>(x, &STARTS);
        let mut out = [0; 110];
        for l in 0..32 {
            for j in 0..8 {
                out[l] |= q[32 * j + l] >> 2 << j;
            }
        }
        out[32..96].copy_from_slice(&quarters(&q.map(|q| q & 3)));
        for (j, s) in s.map(|s| (s + 32) as u8).into_iter().enumerate() {
            out[96 + j % 8] |= (s & 15) << (4 * (j / 8));
            out[104 + j % 4] |= s >> 4 << (2 * (j / 4));
        }
        out[108..].copy_from_slice(&d.to_le_bytes());
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let d = f16_to_f32(half_at(b, 108));
        let scales = six_bits(b);
        for i in 0..256 {
            let low = b[32 + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
            let q = i32::from(low | (b[i % 32] >> (i / 32) & 1) << 2) - 4;
            out[i] = d * (f32::from(scales[i / 16]) - 32.0) * q as f32;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q3_K",
    id: 11,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: search::encode::<Q3K>,
    decode_fast,
    dot,
    fill,
    tile,
};
