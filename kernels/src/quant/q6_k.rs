//! Q6_K: 6 bits, a signed 8-bit scale per 16 weights.
//!
//! ```text
//! ql     [128] u8    weight 128h + 32t + l, l in 0..32: nibble t/2 of ql[64h + 32(t mod 2) + l]
//! qh     [64] u8     its upper two bits: bits 2t, 2t+1 of qh[32h + l]
//! scales [16] i8     per 16 weights
//! d      f16         w = d·s·(q − 32)
//! ```

use super::search::scale::Found;
use super::search::{self, Lanes, Steps, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 210];

struct Q6K;

impl Blocked for Q6K {
    type Block = Block;
    const SIGNED: bool = false;
    const MAX: u32 = 63;
    const OFFSET: i32 = 32;
    const SUB: usize = 16;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 208)
    }
}

super::super_kernels!(Q6K, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        let (h, t) = (j / 4, j % 4);
        let low = simd::load_bytes(b[64 * h + 32 * (t % 2)..].first_chunk().expect("32 bytes"));
        let low = if t < 2 { low } else { simd::shr_pairs::<4>(low) };
        let high = simd::load_bytes(b[128 + 32 * h..].first_chunk().expect("32 bytes"));
        let high = match t {
            0 => simd::shl_pairs::<4>(high),
            1 => simd::shl_pairs::<2>(high),
            2 => high,
            _ => simd::shr_pairs::<2>(high),
        };
        simd::or(simd::and(low, simd::splat_byte(15)), simd::and(high, simd::splat_byte(0x30)))
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        let s: [u8; 16] = *b[192..].first_chunk().expect("16 bytes");
        (simd::widen_signed(bytemuck::must_cast(s)), simd::splat_word(0))
    }
    fn pieces(b: [&Block; simd::wide::PIECES], h: usize) -> [simd::wide::Bytes; 8] {
        let part = |at: usize| {
            simd::wide::pieces(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")))
        };
        let x: [simd::wide::Bytes; 4] = core::array::from_fn(|i| part(64 * h + 16 * i));
        let upper: [simd::wide::Bytes; 2] = core::array::from_fn(|i| part(128 + 32 * h + 16 * i));
        let low = |x| simd::wide::and(x, simd::wide::splat_byte(15));
        let high = |x| low(simd::wide::shr_pairs::<4>(x));
        let join = |q, x| simd::wide::or(q, simd::wide::and(x, simd::wide::splat_byte(0x30)));
        let (first, second) = (simd::wide::shl_pairs::<4>, simd::wide::shl_pairs::<2>);
        let last = simd::wide::shr_pairs::<2>;
        [
            join(low(x[0]), first(upper[0])),
            join(low(x[1]), first(upper[1])),
            join(low(x[2]), second(upper[0])),
            join(low(x[3]), second(upper[1])),
            join(high(x[0]), upper[0]),
            join(high(x[1]), upper[1]),
            join(high(x[2]), last(upper[0])),
            join(high(x[3]), last(upper[1])),
        ]
    }
    fn factors(b: [&Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
        let s = simd::wide::pieces(core::array::from_fn(|l| b[l][192..].first_chunk().expect("16 bytes")));
        (simd::wide::widen_bytes(s), [simd::wide::as_bytes(simd::wide::zero_ints()); 2])
    }
});

const STARTS: Lanes = scale::starts::<Steps<-32, 31>>(-5.0, 0.5);

impl search::Encode for Q6K {
    type Weights = [f32; 256];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 256]) -> Block {
        let Found { d, s, q } = scale::super_block::<Steps<-32, 31>, Steps<-128, 127>, 16, 16>(x, &STARTS);
        let mut out = [0; 210];
        for h in 0..2 {
            let q = &q[128 * h..128 * h + 128];
            for l in 0..32 {
                let [a, b, c, d] = [q[l], q[32 + l], q[64 + l], q[96 + l]];
                out[64 * h + l] = a & 15 | c << 4;
                out[64 * h + 32 + l] = b & 15 | d << 4;
                out[128 + 32 * h + l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
            }
        }
        out[192..208].copy_from_slice(&s.map(|s| s as u8));
        out[208..].copy_from_slice(&d.to_le_bytes());
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let d = f16_to_f32(half_at(b, 208));
        for i in 0..256 {
            let (h, t, l) = (i / 128, i / 32 % 4, i % 32);
            let low = b[64 * h + 32 * (t % 2) + l] >> (4 * (t / 2)) & 15;
            let q = i32::from(low | (b[128 + 32 * h + l] >> (2 * t) & 3) << 4) - 32;
            out[i] = d * f32::from(b[192 + i / 16] as i8) * q as f32;
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "Q6_K",
    id: 14,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: search::encode::<Q6K>,
    decode_fast,
    dot,
    fill,
    tile,
};
