//! What the encoders share: least squares over a few numbers and many small integers, sixteen candidates at a time.
//!
//! Every encoder minimises, over the numbers its block can store,
//!
//! ```text
//! E = Σᵢ (wᵢ − ŵᵢ)²        every weight equally important
//! ```
//!
//! [`scale`] does it for ŵ = d·q, [`affine`] for ŵ = d·q − m. Given the scales, the best quants are the nearest ones;
//! given the quants, the best scales solve a linear system. What is left is where to start, so both try sixteen
//! starting points at once, one per lane: one pass over the weights serves all sixteen, and each lane adds up its
//! own sums in the order of the weights.
//!
//! # Same bytes everywhere
//! Products and sums are plain and in one order, never fused, so the bytes depend on neither level nor machine.
//!
//! # Weights that are not numbers
//! A caller refuses NaN and infinities before it encodes. Here they count as zeros, so that they harm only
//! themselves. Weights beyond what the largest scale can reach are encoded as far as it reaches.

pub(super) mod affine;
pub(super) mod scale;

use crate::half::f32_to_f16;

/// Candidates per pass.
pub(super) const LANES: usize = 16;

/// One number for each candidate.
pub(super) type Lanes = [f32; LANES];

/// The values a quant can stand for, before scaling.
pub(super) trait Ladder {
    /// The smallest value.
    const LOW: f32;
    /// The largest value.
    const HIGH: f32;
    /// The value nearest to `v`.
    fn snap(v: f32) -> f32;
    /// Its place on the ladder, from 0.
    fn code(v: f32) -> u8;
}

/// All integers of a range.
pub(super) struct Steps<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Ladder for Steps<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    #[inline(always)]
    fn snap(v: f32) -> f32 {
        round(clamp(v, Self::LOW, Self::HIGH))
    }
    #[inline(always)]
    fn code(v: f32) -> u8 {
        (int(Self::snap(v)) - LOW) as u8
    }
}

/// A format's encoder for one block; [`encode`] runs it over rows.
pub(super) trait Encode {
    /// The weights of a block, `[f32; LEN]`.
    type Weights: bytemuck::Pod;
    /// The bytes of a block.
    type Block: bytemuck::Pod;
    /// Encodes a block.
    fn block(x: &Self::Weights) -> Self::Block;
}

levels! {
    {}
    pub fn encode_at[E: Encode](weights: &[f32], blocks: &mut [u8]) {
        let (weights, blocks) = (bytemuck::cast_slice(weights), bytemuck::cast_slice_mut(blocks));
        assert_eq!(weights.len(), blocks.len(), "as many blocks of weights as of bytes");
        for (x, block) in weights.iter().zip(blocks) {
            *block = E::block(x);
        }
    }
}

/// The `encode` of a format: the chosen level only makes it faster.
pub(super) fn encode<E: Encode>(weights: &[f32], blocks: &mut [u8]) {
    encode_at::<E>(crate::Level::chosen().unwrap_or(crate::Level::PORTABLE), weights, blocks);
}

/// Adding it leaves no bits for fractions, so the addition rounds (to even, like the hardware's instruction).
const ROUNDER: f32 = 12_582_912.0; // 1.5·2²³

/// The smallest number above 0 of f16, 2⁻²⁴.
const SMALLEST: f32 = 5.960_464_5e-8;

/// The nearest integer of |v| < 2²².
#[inline(always)]
fn round(v: f32) -> f32 {
    (v + ROUNDER) - ROUNDER
}

/// An integer held in a float, |v| < 2²².
#[inline(always)]
fn int(v: f32) -> i32 {
    (v + ROUNDER).to_bits() as i32 - ROUNDER.to_bits() as i32
}

/// `v` moved into a range; NaN becomes `low`.
#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    min(max(v, low), high)
}

// `f32::max` treats NaN specially; these are one instruction each.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// 1/v, or 0 for 0.
#[inline(always)]
fn inverse(v: f32) -> f32 {
    if v != 0.0 { 1.0 / v } else { 0.0 }
}

/// A number for each candidate.
#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for c in 0..LANES {
        out[c] = f(c);
    }
    out
}

/// Lanes put together, halving.
#[inline(always)]
fn fold(mut v: Lanes, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for c in 0..half {
            v[c] = join(v[c], v[c + half]);
        }
        half /= 2;
    }
    v[0]
}

#[inline(always)]
fn sum(v: Lanes) -> f32 {
    fold(v, |a, b| a + b)
}

/// The smallest of sixteen numbers whose error is within 5 % of the best's.
#[inline(always)]
fn smallest_good(v: &Lanes, errors: &Lanes, best: usize) -> f32 {
    // errors come from sums near 16 and are noise below 1e-6
    let limit = max(errors[best], 0.0) * 1.05 + 1e-6;
    fold(lanes(|c| if errors[c] <= limit { v[c] } else { f32::MAX }), min)
}

/// Which of sixteen errors is the least; of errors that agree in 20 bits the first. Rounding may have left some
/// below 0.
#[inline(always)]
fn least(errors: &Lanes) -> usize {
    let mut keys = [0; LANES];
    for c in 0..LANES {
        // floats that are not negative are ordered like their bits
        keys[c] = (max(errors[c], 0.0).to_bits() as i32 & !15) | c as i32;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for c in 0..half {
            keys[c] = if keys[c] < keys[c + half] { keys[c] } else { keys[c + half] };
        }
        half /= 2;
    }
    (keys[0] & 15) as usize
}

/// The smallest and the largest of some weights, a multiple of sixteen.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let (parts, _) = x.as_chunks::<LANES>();
    let (mut low, mut high) = (parts[0], parts[0]);
    for part in &parts[1..] {
        low = lanes(|c| min(low[c], part[c]));
        high = lanes(|c| max(high[c], part[c]));
    }
    (fold(low, min), fold(high, max))
}

/// The sum of squares: the error of a block of zeros.
#[inline(always)]
fn energy<const N: usize>(x: &[f32; N]) -> f32 {
    let mut sums = [0.0; LANES];
    for part in x.as_chunks::<LANES>().0 {
        sums = lanes(|c| sums[c] + part[c] * part[c]);
    }
    sum(sums)
}

/// The power of two that was taken out of a block, so that squares neither overflow nor vanish.
pub(super) struct Unit {
    up: f32,
    down: f32,
}

impl Unit {
    /// Takes the power of two out of a block. `None` if zeros are the best it can be encoded as: all weights are less
    /// than half of the smallest f16.
    #[inline(always)]
    fn take<const N: usize>(x: &[f32; N]) -> Option<([f32; N], Unit)> {
        // no format reaches beyond 65504·128·32
        const REACH: f32 = 268_435_456.0; // 2²⁸
        let finite = |v: f32| if v.abs() <= f32::MAX { clamp(v, -REACH, REACH) } else { 0.0 };
        let mut top = [0.0; LANES];
        for part in x.as_chunks::<LANES>().0 {
            top = lanes(|c| max(finite(part[c]).abs(), top[c]));
        }
        let top = fold(top, max);
        if top < SMALLEST / 2.0 {
            return None;
        }
        let exponent = top.to_bits() & 0x7f80_0000;
        let unit = Unit { up: f32::from_bits(exponent), down: f32::from_bits(0x7f00_0000 - exponent) };
        let mut out = [0.0; N];
        for i in 0..N {
            out[i] = finite(x[i]) * unit.down;
        }
        Some((out, unit))
    }

    /// The number nearest to `v` that an f16 can hold, but finite, and zero only for zero: below the smallest number a
    /// scale of 1 and small quants are better than nothing.
    #[inline(always)]
    fn half(&self, v: f32) -> f32 {
        let u = clamp(v * self.up, -65504.0, 65504.0);
        // of 24 significant bits a split by 2¹³ + 1 leaves 11; below 2⁻¹⁴ f16 holds the multiples of 2⁻²⁴
        let split = u * 8193.0;
        let normal = split - (split - u);
        let small = (u + 0.75) - 0.75;
        let small = if small == 0.0 && u != 0.0 { SMALLEST.copysign(u) } else { small };
        (if u.abs() < SMALLEST * 1024.0 { small } else { normal }) * self.down
    }

    /// The f16 bits of a number that came from [`Unit::half`].
    #[inline(always)]
    fn bits(&self, v: f32) -> u16 {
        f32_to_f16(v * self.up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::f16_to_f32;

    #[test]
    fn half_is_the_nearest_f16() {
        let near = |v: f32, unit: &Unit| {
            let want = f16_to_f32(f32_to_f16(v * unit.up));
            let got = unit.half(v) * unit.up;
            assert!(got == want || want == 0.0 && got == SMALLEST.copysign(v), "{v}: {got} {want}");
            assert_eq!(f16_to_f32(unit.bits(unit.half(v))), got);
        };
        for unit in [Unit { up: 1.0, down: 1.0 }, Unit { up: 0.125, down: 8.0 }] {
            for h in 0..0x7bff {
                let (low, high) = (f16_to_f32(h), f16_to_f32(h + 1));
                for part in [0.25, 0.499, 0.501, 1.0] {
                    let v = (low + (high - low) * part) * unit.down;
                    near(v, &unit);
                    near(-v, &unit);
                }
            }
            assert_eq!(unit.half(1e30) * unit.up, 65504.0);
            assert_eq!(unit.half(0.0), 0.0);
        }
    }

    #[test]
    fn least_is_the_first_of_the_smallest() {
        let mut errors = [2.0; LANES];
        assert_eq!(least(&errors), 0);
        (errors[7], errors[9]) = (1.0, 1.0);
        assert_eq!(least(&errors), 7);
        errors[15] = -1e-7; // what rounding may leave of nothing
        assert_eq!(least(&errors), 15);
    }

    #[test]
    fn rounds_to_integers() {
        for (v, want) in [(0.4, 0), (0.6, 1), (-0.6, -1), (2.5, 2), (3.5, 4), (126.9, 127), (-300.0, -127)] {
            assert_eq!(int(Steps::<-127, 127>::snap(v)), want);
        }
        assert_eq!(Steps::<-4, 3>::code(-9.0), 0);
        assert_eq!(Steps::<-4, 3>::code(f32::NAN), 0);
        assert_eq!(Steps::<-4, 3>::code(2.7), 7);
    }
}
