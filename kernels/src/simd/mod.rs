//! The vocabulary in which kernels are written: the same names in every level.
//!
//! Two widths. The functions of the level itself work on 256 bits (`Bytes` 32 × 8 bit, `Words` 16 × i16, `Ints`
//! 8 × i32, `Floats` 8 × f32), for single blocks of 32. The module `wide` of each level has the same types at the level's full width with `LANES` lanes,
//! for work that waits for arithmetic.
//!
//! `step_us` multiplies unsigned by signed bytes and adds groups of four in i32 lanes (AVX2: of two in i16, as often as
//! `steps` allows before they are widened), exactly; `step_ss` takes signed by signed for `|a|, |b| ≤ 127` or one of them
//! −128, or weights that lie `SIGNED_OFFSET` higher.
//!
//! A *piece* is sixteen bytes of one row; `wide` registers hold `PIECES` of them, of as many rows ([`crate::quads`]).

// Every level has every word, though a kernel's generic code may not use some of them at some level.
#![allow(dead_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
