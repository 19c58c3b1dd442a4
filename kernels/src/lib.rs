//! Floor 0 of onlay: block formats and SIMD kernels.
//!
//! A kernel is one tile on one thread. It takes slices and returns; it never allocates, spawns, locks, logs or
//! fails. Sizes are checked by the caller's floor and asserted here.
//!
//! # Levels
//! Every kernel is written once, against the small vocabulary in `simd`, and stamped for each [`Level`] by the
//! `levels!` macro: `portable` (plain Rust), `avx2` (AVX2 + FMA + F16C), `avx512` (AVX-512 F/BW/VL/DQ + VNNI) and `neon`
//! (NEON + dot product).
//! `avx512bf16` is the same with one room more, [`narrow`]. The level is found at run time, so an ordinary `cargo build --release` is full speed everywhere.
//!
//! # One sequence of operations per output
//! The definition of every product fixes the order of its floating-point operations for each output element,
//! independent of how many rows or columns are computed together:
//!
//! * block formats: one f32 accumulator per output, one fused multiply-add per block, blocks in order; all sums
//!   inside a block are exact integers, so their order is free ([`dot`], [`panel`]);
//! * dense formats (F32, F16, BF16): `LANES` f32 accumulators, the *j*-th takes the elements *k ≡ j*, then one fixed
//!   tree; longer rows cut by cut ([`dense`], [`dense_panel`]);
//! * f32 products of the backward pass: one accumulator per output, the reduction in order ([`gemm`]).
//!
//! That is why a row computed alone, in a batch, or by the trainer has the same bits.
//!
//! # Rooms
//! [`quant`] the block formats, one file each · [`acts`] activations rounded to 8 bits · [`dot`] few rows of
//! activations · [`panel`] many · [`dense`] unquantized weights, [`dense_panel`] for many rows · [`gemm`] f32 products of the backward pass and of
//! adapters · [`narrow`] the backward pass in bf16, where the processor multiplies that · [`attention`] · [`norm`], [`rope`], [`gate`], [`softmax`], [`adam`] the rest of a step · [`activate`] what lies
//! inside a bottleneck.

#[macro_use]
mod level;
pub mod activate;
pub mod acts;
pub mod adam;
pub mod attention;
mod count;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod dense;
pub mod dense_panel;
pub mod dot;
pub mod gate;
pub mod gemm;
pub mod half;
pub mod math;
pub mod narrow;
pub mod norm;
pub mod panel;
pub mod peak;
mod quads;
pub mod quant;
pub mod rope;
pub(crate) mod simd;
pub mod softmax;

/// One level's view of the rooms whose kernels are built from each other.
pub(crate) mod at {
    macro_rules! views { ($($(#[$m:meta])* $level:ident)*) => { $(
        $(#[$m])*
        pub(crate) mod $level {
            pub(crate) use crate::decode::$level as decode;
            pub(crate) use crate::dot::$level as dot;
            pub(crate) use crate::gemm::$level as gemm;
            pub(crate) use crate::math::$level as math;
            pub(crate) use crate::panel::$level as panel;
            pub(crate) use crate::quads::$level as quads;
        }
    )* } }
    views! {
        portable
        #[cfg(target_arch = "x86_64")] avx2
        #[cfg(target_arch = "x86_64")] avx512
        #[cfg(target_arch = "aarch64")] neon
    }
}

pub use level::Level;
