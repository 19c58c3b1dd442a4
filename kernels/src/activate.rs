//! Activations of bottleneck adapters, element by element, as PyTorch defines them.
//!
//! # Forward
//! ```text
//! tanh  φ(z) = (e^2z − 1)/(e^2z + 1)        gelu  φ(z) = z·Φ(z)         Φ(z) = ½·(1 + erf(z/√2))
//! relu  φ(z) = max(0, z)                    silu  φ(z) = z·σ(z)         σ(z) = 1/(1 + e^−z)
//! ```
//! # Backward
//! ```text
//! tanh  φ′ = 1 − φ²                         gelu  φ′ = Φ + z·e^(−z²/2)/√2π
//! relu  φ′ = 1 where z > 0, else 0          silu  φ′ = σ·(1 + z·(1 − σ))
//! ```
//! Within 1e-6 of the exact values. Plain arithmetic without fused steps, so every level and platform has the same bits; a
//! number that is none stays none.

/// What lies between the two matrices of a bottleneck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The hyperbolic tangent.
    #[default]
    Tanh,
    /// The positive part.
    Relu,
    /// Weighed by the normal distribution, exactly (not by its tanh approximation).
    Gelu,
    /// Weighed by the logistic function.
    Silu,
}

/// All of them, with their names.
pub static ACTIVATIONS: [(Activation, &str); 4] = [
    (Activation::Tanh, "tanh"),
    (Activation::Relu, "relu"),
    (Activation::Gelu, "gelu"),
    (Activation::Silu, "silu"),
];

impl Activation {
    /// The activation of that name.
    pub fn named(name: &str) -> Option<Activation> {
        ACTIVATIONS.iter().find(|(_, n)| *n == name).map(|(a, _)| *a)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        ACTIVATIONS[self as usize].1
    }

    /// `z = φ(z)`
    pub fn apply(self, z: &mut [f32]) {
        match self {
            Activation::Tanh => z.iter_mut().for_each(|z| *z = tanh(*z)),
            Activation::Relu => z.iter_mut().for_each(|z| *z = relu(*z)),
            Activation::Gelu => z.iter_mut().for_each(|z| *z *= normal(*z)),
            Activation::Silu => z.iter_mut().for_each(|z| *z *= logistic(*z)),
        }
    }

    /// `dh = s·φ′(z)·dh` and `z = φ(z)`: the gradient of z, and what the forward pass made of it.
    pub fn apply_back(self, s: f32, z: &mut [f32], dh: &mut [f32]) {
        let mut each = |z: &mut [f32], one: fn(f32) -> (f32, f32)| {
            for (z, dh) in z.iter_mut().zip(&mut *dh) {
                let (value, slope) = one(*z);
                (*z, *dh) = (value, s * slope * *dh);
            }
        };
        match self {
            Activation::Tanh => each(z, |z| {
                let t = tanh(z);
                (t, 1.0 - t * t)
            }),
            Activation::Relu => each(z, |z| (relu(z), if z > 0.0 { 1.0 } else { 0.0 })),
            Activation::Gelu => each(z, |z| {
                let below = normal(z);
                let density = 0.398_942_3 * exp(-0.5 * z * z);
                (z * below, below + z * density)
            }),
            Activation::Silu => each(z, |z| {
                let s = logistic(z);
                (z * s, s * (1.0 + z * (1.0 - s)))
            }),
        }
    }
}

/// e^x for −87.3 ≤ x ≤ 88, clamped outside: the polynomial of [`crate::math`], without fused steps.
#[inline]
fn exp(x: f32) -> f32 {
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // to the nearest integer: below 2^22 adding 1.5·2^23 leaves no bits behind the point
    const ROUND: f32 = 12_582_912.0;
    let n = (x * core::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts, the first with few enough bits that n·part is exact
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_6e-1)
        * r
        + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Cephes' `tanhf` (S. Moshier): a polynomial near 0, where 1 − 2/(e^2|z| + 1) would lose digits.
#[inline]
fn tanh(z: f32) -> f32 {
    let (a, q) = (z.abs(), z * z);
    let near = ((((-5.704_988_7e-3 * q + 2.063_908_8e-2) * q - 5.373_971_4e-2) * q + 1.333_144_2e-1) * q
        - 3.333_328e-1)
        * q
        * z
        + z;
    let far = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(z);
    if a < 0.625 { near } else { far }
}

#[inline]
fn relu(z: f32) -> f32 {
    if z < 0.0 { 0.0 } else { z }
}

#[inline]
fn logistic(z: f32) -> f32 {
    1.0 / (1.0 + exp(-z))
}

/// Φ by erfc(a) = P(t)·e^(−a²), t = 1/(1 + p·a), a = |z|/√2 (Abramowitz and Stegun 7.1.26: within 1.5e-7).
#[inline]
fn normal(z: f32) -> f32 {
    let a = z.abs() * core::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let half = 0.5 * p * exp(-a * a);
    if z < 0.0 { half } else { 1.0 - half }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf(x) = 2/√π·e^(−x²)·Σ 2ⁿ x^(2n+1)/(1·3·…·(2n+1)): nothing cancels.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..400 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        sum * (-x * x).exp() * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn exact(a: Activation, z: f64) -> f64 {
        match a {
            Activation::Tanh => z.tanh(),
            Activation::Relu => z.max(0.0),
            Activation::Gelu => 0.5 * z * (1.0 + erf(z / 2f64.sqrt())),
            Activation::Silu => z / (1.0 + (-z).exp()),
        }
    }

    #[test]
    fn values_and_slopes_are_the_exact_ones() {
        for (i, (a, name)) in ACTIVATIONS.iter().enumerate() {
            assert!(Activation::named(name) == Some(*a) && a.name() == *name && *a as usize == i);
            for i in -4000..4000 {
                let z = i as f32 * 0.0025 + 0.0007;
                let (mut h, mut value, mut slope) = ([z], [z], [2.0]);
                a.apply(&mut h);
                a.apply_back(0.5, &mut value, &mut slope);
                assert_eq!(h[0].to_bits(), value[0].to_bits(), "forward is forward");
                let z = f64::from(z);
                let off = (f64::from(h[0]) - exact(*a, z)).abs();
                // one step of the last place of a large value is more than 1e-6 of nothing
                assert!(off < 1e-6 * z.abs().max(1.0), "{name}({z}): {} off by {off:.1e}", h[0]);
                let step = 1e-4;
                let want = (exact(*a, z + step) - exact(*a, z - step)) / (2.0 * step);
                let off = (f64::from(slope[0]) - want).abs();
                assert!(off < 2e-6 || (*name == "relu" && z.abs() < step), "{name}'({z}): off by {off:.1e}");
            }
        }
    }

    #[test]
    fn far_out_and_close_to_nothing() {
        for (a, _) in ACTIVATIONS {
            let mut z = [0.0, f32::NAN, 100.0, -100.0, 1e30, -1e30, f32::INFINITY];
            let mut dh = [1.0; 7];
            a.apply_back(1.0, &mut z, &mut dh);
            assert!(z[0] == 0.0 && z[1].is_nan() && z[3].abs() <= 1.0, "{a:?} {z:?}");
            let top = if a == Activation::Tanh { 1.0 } else { 100.0 };
            assert_eq!(z[2], top, "{a:?}");
            assert!(dh.iter().enumerate().all(|(i, d)| i == 1 || i == 6 || d.is_finite()), "{a:?} {dh:?}");
        }
        // small inputs keep their digits
        let mut z = [1e-6f32, -3e-5];
        Activation::Tanh.apply(&mut z);
        assert_eq!(z, [1e-6, -3e-5]);
    }
}
