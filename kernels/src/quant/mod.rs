//! The block formats: one file each, one line in [`FORMATS`].
//!
//! A format is a block of weights that share scales. Its file holds the layout, `decode` (the definition: exact in
//! f32, and what everything else is tested against), `encode`, and how a block splits into small integers, from which
//! [`crate::dot`] and [`crate::panel`] build its products at every level.
//!
//! Layouts are those of GGUF (ggml's `ggml-common.h`; the `gguf` Python package is the reference decoder).

use crate::Level;
use crate::acts::{Acts, Grain};
use crate::panel::{Panel, PanelMut};

mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;

/// Every block format, in the order of their GGUF type numbers.
pub static FORMATS: &[&Format] = &[
    &q4_0::FORMAT,
    &q4_1::FORMAT,
    &q5_0::FORMAT,
    &q5_1::FORMAT,
    &q8_0::FORMAT,
    &q2_k::FORMAT,
    &q3_k::FORMAT,
    &q4_k::FORMAT,
    &q5_k::FORMAT,
    &q6_k::FORMAT,
    &iq4_nl::FORMAT,
    &iq4_xs::FORMAT,
];

/// One block format: its numbers and its kernels.
pub struct Format {
    /// The field's name, for example `Q4_K`.
    pub name: &'static str,
    /// The tensor type number in a GGUF file.
    pub id: u32,
    /// Weights per block.
    pub len: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// How activations are rounded for products with it.
    pub grain: Grain,
    /// `decode(blocks, out)`: the definition, scalar.
    pub decode: fn(&[u8], &mut [f32]),
    /// `encode(weights, blocks)`: least-error rounding, every weight equally important.
    pub encode: fn(&[f32], &mut [u8]),
    /// `decode_fast(level, blocks, out)`: the same bits as `decode`.
    pub decode_fast: fn(Level, &[u8], &mut [f32]),
    /// `dot(level, rows, row_bytes, x, y, stride)`: few columns; see [`crate::dot`].
    pub dot: fn(Level, &[u8], usize, Acts<'_>, &mut [f32], usize),
    /// `fill(level, rows, row_bytes, from, panel)`: lay rows into a panel; see [`crate::panel`].
    pub fill: fn(Level, &[u8], usize, usize, PanelMut<'_>),
    /// `tile(level, panel, x, from, y, stride)`: a panel times packed activations; see [`crate::panel`].
    pub tile: fn(Level, Panel<'_>, Acts<'_>, usize, &mut [f32], usize),
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// What the products need to know of a format at compile time.
///
/// A weight is `d·(s·q) − m·b` where q is a small integer, s and b are integer scales of 16 or 32 weights (1 and 0 in
/// formats without them), d and m are f16 numbers of the block, and `b` may also be an integer offset times s.
pub(crate) trait Blocked {
    /// The bytes of one block.
    type Block: bytemuck::Pod;
    /// Signed quants (−127..=127) instead of unsigned.
    const SIGNED: bool;
    /// The largest magnitude of a quant; unsigned ones are at most 63 where sub-blocks are scaled.
    const MAX: u32;
    /// Blocks of 32: what is taken off an unsigned quant.
    const OFFSET: i32 = 0;
    /// Super-blocks: how many weights share an integer scale.
    const SUB: usize = 32;
    /// There is a float minimum: added in blocks of 32, taken off in super-blocks.
    const MIN: bool = false;
    /// The f16 bits of d.
    fn d(block: &Self::Block) -> u16;
    /// The f16 bits of m; only asked where `MIN`.
    fn m(_: &Self::Block) -> u16 {
        0
    }
}

/// Two bytes of a block as the bits of an f16.
#[inline(always)]
pub(crate) fn half_at<const N: usize>(block: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The kernels of a format of 32-weight blocks, from two functions in the file's `levels!`: `chunk(block) -> Bytes`, the
/// quants of one block, and `pieces(blocks) -> [wide::Bytes; 2]`, the first and the last sixteen of `PIECES` rows' blocks
/// (see [`crate::quads`]).
macro_rules! block_kernels {
    ($format:ident, { $($helper:tt)* }) => {
        levels! {
            { $($helper)* }
            pub fn dot(w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize) {
                at::dot::blocks::<$format, _>(w, row_bytes, x, y, stride, |b| pieces(b));
            }
            pub fn fill(w: &[u8], row_bytes: usize, from: usize, to: PanelMut<'_>) {
                at::panel::fill_blocks::<$format, _>(w, row_bytes, from, to, |b| pieces(b));
            }
            pub fn tile(panel: Panel<'_>, x: Acts<'_>, from: usize, y: &mut [f32], stride: usize) {
                at::panel::tile_blocks::<$format>(panel, x, from, y, stride);
            }
            pub fn decode_fast(blocks: &[u8], out: &mut [f32]) {
                at::decode::blocks::<$format, _>(blocks, out, |b| chunk(b));
            }
        }
    };
}

/// The kernels of a format of 256-weight super-blocks. Of one block: `chunk(block, j) -> Bytes` (the j-th 32 quants) and
/// `scales(block) -> (Words, Words)` (per 16 weights: scale, and what the sums are multiplied with). Of `PIECES` rows'
/// blocks: `pieces(blocks, h) -> [wide::Bytes; 8]` (the h-th half, sixteen quants at a time) and `factors(blocks)`, the same
/// as `scales` in two times eight words for each row (see [`crate::quads`]).
macro_rules! super_kernels {
    ($format:ident, { $($helper:tt)* }) => {
        levels! {
            { $($helper)* }
            pub fn dot(w: &[u8], row_bytes: usize, x: Acts<'_>, y: &mut [f32], stride: usize) {
                at::dot::supers::<$format, _, _>(w, row_bytes, x, y, stride, |b, h| pieces(b, h), |b| factors(b));
            }
            pub fn fill(w: &[u8], row_bytes: usize, from: usize, to: PanelMut<'_>) {
                at::panel::fill_supers::<$format, _, _>(w, row_bytes, from, to, |b, h| pieces(b, h), |b| factors(b));
            }
            pub fn tile(panel: Panel<'_>, x: Acts<'_>, from: usize, y: &mut [f32], stride: usize) {
                at::panel::tile_supers::<$format>(panel, x, from, y, stride);
            }
            pub fn decode_fast(blocks: &[u8], out: &mut [f32]) {
                at::decode::supers::<$format, _, _>(blocks, out, |b, j| chunk(b, j), |b| scales(b));
            }
        }
    };
}
pub(crate) use {block_kernels, super_kernels};
