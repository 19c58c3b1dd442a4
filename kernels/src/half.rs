//! The two 16-bit floating-point types as bit patterns, scalar.
//!
//! F16 is IEEE 754 binary16, BF16 the upper half of a binary32. Conversions to 16 bits round to nearest, ties to
//! even, like the hardware's; every conversion from 16 bits is exact.

/// The value of an F16 bit pattern.
#[inline]
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let rest = u32::from(h & 0x7fff);
    let bits = if rest >= 0x7c00 {
        // infinity and NaN: all-ones exponent; the hardware sets the quiet bit of a NaN
        (rest << 13) | 0x7f80_0000 | if rest > 0x7c00 { 0x0040_0000 } else { 0 }
    } else {
        // Place the 15 bits where binary32 keeps them and rescale by 2^112: exact also for subnormals.
        (f32::from_bits(rest << 13) * f32::from_bits(0x7780_0000)).to_bits()
    };
    f32::from_bits(sign | bits)
}

/// The F16 bit pattern nearest to `x`.
#[inline]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let abs = bits & 0x7fff_ffff;
    if abs >= 0x7f80_0000 {
        let quiet = if abs > 0x7f80_0000 { 0x0200 | ((abs >> 13) & 0x3ff) as u16 } else { 0 };
        return sign | 0x7c00 | quiet;
    }
    if abs >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and above
    }
    if abs < 0x3880_0000 {
        // Below the smallest normal, 2^-14: adding 0.5 puts the value's units of 2^-24 into the low mantissa bits,
        // rounded to even by the addition itself.
        let units = (f32::from_bits(abs) + 0.5).to_bits() - 0x3f00_0000;
        return sign | units as u16;
    }
    let rounded = abs + 0x0fff + ((abs >> 13) & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// The value of a BF16 bit pattern.
#[inline]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// The BF16 bit pattern nearest to `x`.
#[inline]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_returns() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            if x.is_nan() {
                assert!(f16_to_f32(f32_to_f16(x)).is_nan());
            } else {
                assert_eq!(f32_to_f16(x), h, "{h:#06x} = {x}");
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even() {
        for h in 0..0x7bff_u16 {
            let (a, b) = (f64::from(f16_to_f32(h)), f64::from(f16_to_f32(h + 1)));
            let middle = ((a + b) / 2.0) as f32; // exact in f32
            assert_eq!(f32_to_f16(middle), if h % 2 == 0 { h } else { h + 1 });
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), h);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), h + 1);
        }
        assert_eq!(f32_to_f16(65_519.0), 0x7bff);
        assert_eq!(f32_to_f16(65_520.0), 0x7c00);
        assert_eq!(f32_to_f16(f32::INFINITY), 0x7c00);
        assert_eq!(f32_to_f16(1e-9), 0);
        assert_eq!(f32_to_bf16(1.003_906_3), 0x3f80); // half way above 1.0: to even
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn equals_the_hardware() {
        use core::arch::x86_64::*;
        #[target_feature(enable = "f16c")]
        fn widen(h: u16) -> f32 {
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(h))))
        }
        if !is_x86_feature_detected!("f16c") {
            println!("skipped: no F16C");
            return;
        }
        for h in 0..=u16::MAX {
            #[allow(unsafe_code)]
            // SAFETY: F16C was detected above.
            let hardware = unsafe { widen(h) };
            assert_eq!(hardware.to_bits(), f16_to_f32(h).to_bits(), "{h:#06x}");
        }
    }
}
