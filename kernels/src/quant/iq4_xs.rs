//! IQ4_XS: 4-bit indices into IQ4_NL's table, a 6-bit scale per 32 weights.
//!
//! ```text
//! d        f16        w = d·(s − 32)·VALUES[index]
//! scales_h u16        upper two bits of scale j: bits 2j, 2j+1
//! scales_l [4] u8     low nibble of scale j: nibble j mod 2 of byte j/2
//! qs       [128] u8   weight 32j + i: low nibble of qs[16j + i]; 32j + 16 + i: high nibble; i in 0..16
//! ```

use super::iq4_nl::{Table, VALUES};
use super::q4_0::pairs;
use super::search::scale::Found;
use super::search::{self, Lanes, Steps, scale};
use super::{Blocked, Format, half_at};
use crate::acts::{Acts, Grain};
use crate::half::f16_to_f32;
use crate::panel::{Panel, PanelMut};

type Block = [u8; 136];

struct Iq4Xs;

impl Blocked for Iq4Xs {
    type Block = Block;
    const SIGNED: bool = true;
    const MAX: u32 = 127;
    #[inline(always)]
    fn d(block: &Block) -> u16 {
        half_at(block, 0)
    }
}

/// The eight scales, still 32 too high.
#[inline(always)]
fn six_bits(b: &Block) -> [i8; 8] {
    let high = half_at(b, 2);
    core::array::from_fn(|j| (b[4 + j / 2] >> (4 * (j % 2)) & 15) as i8 | ((high >> (2 * j) & 3) << 4) as i8)
}

super::super_kernels!(Iq4Xs, {
    fn chunk(b: &Block, j: usize) -> simd::Bytes {
        simd::lookup(&VALUES, simd::nibbles(b[8 + 16 * j..].first_chunk().expect("16 bytes")))
    }
    fn scales(b: &Block) -> (simd::Words, simd::Words) {
        (simd::twice_signed(six_bits(b).map(|s| s - 32)), simd::splat_word(0))
    }
    fn pieces(b: [&Block; simd::wide::PIECES], h: usize) -> [simd::wide::Bytes; 8] {
        let mut out = [simd::wide::splat_byte(0); 8];
        for j in 0..4 {
            let at = 8 + 16 * (4 * h + j);
            let both =
                at::quads::nibbles(core::array::from_fn(|l| b[l][at..].first_chunk().expect("16 bytes")));
            out[2 * j] = simd::wide::lookup(&VALUES, both[0]);
            out[2 * j + 1] = simd::wide::lookup(&VALUES, both[1]);
        }
        out
    }
    fn factors(b: [&Block; simd::wide::PIECES]) -> ([simd::wide::Bytes; 2], [simd::wide::Bytes; 2]) {
        let s = core::array::from_fn(|l| scales(b[l]).0);
        (simd::wide::word_pieces(s), [simd::wide::as_bytes(simd::wide::zero_ints()); 2])
    }
});

const STARTS: Lanes = scale::starts::<Table>(-16.0, 8.0);

impl search::Encode for Iq4Xs {
    type Weights = [f32; 256];
    type Block = Block;
    #[inline(always)]
    fn block(x: &[f32; 256]) -> Block {
        let Found { d, s, q } = scale::super_block::<Table, Steps<-32, 31>, 32, 8>(x, &STARTS);
        let mut out = [0; 136];
        out[..2].copy_from_slice(&d.to_le_bytes());
        let mut high = 0;
        for (j, q) in q.as_chunks().0.iter().enumerate() {
            let s = (s[j] + 32) as u16;
            high |= s >> 4 << (2 * j);
            out[4 + j / 2] |= (s as u8 & 15) << (4 * (j % 2));
            out[8 + 16 * j..24 + 16 * j].copy_from_slice(&pairs(q));
        }
        out[2..4].copy_from_slice(&high.to_le_bytes());
        out
    }
}

fn decode(blocks: &[u8], out: &mut [f32]) {
    for (b, out) in bytemuck::cast_slice::<u8, Block>(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
        let d = f16_to_f32(half_at(b, 0));
        let scales = six_bits(b);
        for i in 0..256 {
            let (j, l) = (i / 32, i % 32);
            let index = b[8 + 16 * j + l % 16] >> (4 * (l / 16)) & 15;
            out[i] = d * f32::from(scales[j] - 32) * f32::from(VALUES[usize::from(index)]);
        }
    }
}

pub(super) static FORMAT: Format = Format {
    name: "IQ4_XS",
    id: 23,
    len: 256,
    bytes: size_of::<Block>(),
    grain: Grain::Large,
    decode,
    encode: search::encode::<Iq4Xs>,
    decode_fast,
    dot,
    fill,
    tile,
};
