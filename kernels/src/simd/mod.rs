//! The vocabulary in which kernels are written: the same names in every level.
//!
//! Two widths. The functions of the level itself work on 256 bits (`Bytes` 32 × 8 bit, `Words` 16 × i16, `Ints`
//! 8 × i32, `Floats` 8 × f32): rows of weights come in blocks of 32 bytes, and a decode step waits for memory, not
//! for registers. The module `wide` of each level has the same types at the level's full width with `LANES` lanes,
//! for work that waits for arithmetic.
//!
//! `dot_us` multiplies unsigned by signed bytes and sums groups of four into i32 lanes, exactly, as long as
//! `u ≤ 127` (so that AVX2's pair sums stay within i16); `dot_ss` takes signed by signed for `|a|, |b| ≤ 127` or
//! one of them −128.

// Every level has every word, though a kernel's generic code may not use some of them at some level.
#![allow(dead_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;
