//! Q4_K: 4 bits, a 6-bit scale and minimum per 32 weights.
//!
//! ```text
//! d      f16
//! m      f16         w = d·s·q − m·b
//! scales [12] u8     eight pairs (s, b) of 6 bits (see `scales_and_minima`)
//! qs     [128] u8    weight 64p + l: low nibble of qs[32p + l]; 64p + 32 + l: high nibble; l in 0..32
//! ```

use super::search::affine::Found;
use super::search::{self, LANES, Steps, affine};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 144];

struct Q4K;

impl Blocked for Q4K {
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

/// The eight 6-bit scales and minima of Q4_K and Q5_K, from their 12 bytes:
/// bytes 0..4 hold s0..s3, bytes 4..8 b0..b3 in their low six bits; bytes 8..12 the low nibbles of s4..s7 and b4..b7,
/// whose upper two bits are the upper two bits of bytes 0..4 and 4..8.
#[inline(always)]
pub(super) fn scales_and_minima(x: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let at = |i: usize| u32::from_le_bytes([x[i], x[i + 1], x[i + 2], x[i + 3]]);
    let (a, b, c) = (at(0), at(4), at(8));
    let high = |v: u32| (v >> 6 & 0x0303_0303) << 4;
    let join = |lo: u32, hi: u32| (u64::from(hi) << 32 | u64::from(lo)).to_le_bytes();
    let s = join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | high(a));
    let m = join(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | high(b));
    (s, m)
}

super::super_kernels!(Q4K, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        let x = simd::load_bytes(b[16 + 32 * (j / 2)..].first_chunk().expect("32 bytes"));
        let x = if j % 2 == 0 { x } else { simd::shr_pairs::<4>(x) };
        simd::and(x, simd::splat_byte(15))
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        let (s, m) = scales_and_minima(b[4..].first_chunk().expect("12 bytes"));
        (simd::twice(s), simd::twice(m))
    }
    fn pieces(b: [&Block; simd::wide::PIECES], h: usize) -> [simd::wide::Bytes; 8] {
        let part = |at: usize| {
            simd::wide::pieces(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")))
        };
        let x: [simd::wide::Bytes; 4] = core::array::from_fn(|i| part(16 + 64 * h + 16 * i));
        let low = |x| simd::wide::and(x, simd::wide::splat_byte(15));
        let high = |x| low(simd::wide::shr_pairs::<4>(x));
        [low(x[0]), low(x[1]), high(x[0]), high(x[1]), low(x[2]), low(x[3]), high(x[2]), high(x[3])]
    }
    fn factors(b: [&Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
        at::quads::six_bits(core::array::from_fn(|l| b[l].first_chunk().expect("16 bytes")))
    }
});

/// The inverse of [`scales_and_minima`].
#[inline(always)]
pub(super) fn pack_scales_and_minima(s: &[i32; 8], b: &[i32; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = (s[j] | s[j + 4] >> 4 << 6) as u8;
        out[4 + j] = (b[j] | b[j + 4] >> 4 << 6) as u8;
        out[8 + j] = (s[j + 4] & 15 | b[j + 4] << 4) as u8;
    }
    out
}

/// The lower four bits of 256 quants in 128 bytes, as in `qs`.
#[inline(always)]
pub(super) fn halves(q: &[u8; 256]) -> [u8; 128] {
    core::array::from_fn(|i| {
        let q = &q[64 * (i / 32) + i % 32..];
        q[0] & 15 | q[32] << 4
    })
}

const STARTS: [[f32; 2]; LANES] = affine::starts(-0.75, 0.5);

impl search::Encode for Q4K {
    type Weights = [f32; 256];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 256]) -> Block {
        let Found { d, m, s, b, q } = affine::super_block::<Steps<0, 15>, Steps<0, 63>, 32, 8>(x, &STARTS);
        let mut out = [0; 144];
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&m.to_le_bytes());
        out[4..16].copy_from_slice(&pack_scales_and_minima(&s, &b));
        out[16..].copy_from_slice(&halves(&q));
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, m) = (f16_to_f32(half_at(b, 0)), f16_to_f32(half_at(b, 2)));
        let (s, low) = scales_and_minima(b[4..].first_chunk().expect("12 bytes"));
        for i in 0..256 {
            let q = b[16 + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15;
            out[i] = d * f32::from(s[i / 32]) * f32::from(q) - m * f32::from(low[i / 32]);
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q4_K",
    id: 12,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: search::encode::<Q4K>,
    decode_fast,
    dot,
    fill,
    tile,
};
