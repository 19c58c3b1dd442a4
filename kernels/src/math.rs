//! The exponential function, the same polynomial at every level.

levels! {
    {
        /// e^x to about one unit in the last place for −87.3 ≤ x ≤ 88, clamped outside.
        ///
        /// x = n·ln 2 + r, |r| ≤ ½ ln 2; e^r by the degree-six polynomial of Cephes' `expf` (S. Moshier).
        fn exp(x: simd::wide::Floats) -> simd::wide::Floats {
            use simd::wide::{exp2_int, fma, fnma, from_ints, max, min, mul, round_ints, splat};
            let x = min(max(x, splat(-87.3)), splat(88.0));
            let n = round_ints(mul(x, splat(core::f32::consts::LOG2_E)));
            let f = from_ints(n);
            // ln 2 in two parts, the first with few enough bits that f·part is exact
            let r = fnma(f, splat(0.693_359_4), x);
            let r = fnma(f, splat(-2.121_944_4e-4), r);
            let p = splat(1.987_569_1e-4);
            let p = fma(p, r, splat(1.398_199_9e-3));
            let p = fma(p, r, splat(8.333_452e-3));
            let p = fma(p, r, splat(4.166_579_6e-2));
            let p = fma(p, r, splat(1.666_666_6e-1));
            let p = fma(p, r, splat(0.5));
            let p = fma(mul(p, r), r, r);
            mul(simd::wide::add(p, splat(1.0)), exp2_int(n))
        }

        /// 1 / (1 + e^−x)
        fn sigmoid(x: simd::wide::Floats) -> simd::wide::Floats {
            let one = simd::wide::splat(1.0);
            simd::wide::div(one, simd::wide::add(one, exp(simd::wide::sub(simd::wide::zero(), x))))
        }

        /// The last elements of a slice, filled up.
        fn load_part(x: &[f32], fill: f32) -> simd::wide::Floats {
            let mut full = [fill; simd::wide::LANES];
            full[..x.len()].copy_from_slice(x);
            simd::wide::load(&full)
        }

        fn store_part(to: &mut [f32], x: simd::wide::Floats) {
            let full: [f32; simd::wide::LANES] = bytemuck::must_cast(x);
            let n = to.len();
            to.copy_from_slice(&full[..n]);
        }
    }

    /// e^x for each element, in place.
    pub fn exp_all(x: &mut [f32]) {
        let (body, tail) = x.as_chunks_mut::<{ simd::wide::LANES }>();
        for v in body {
            simd::wide::store(v, exp(simd::wide::load(v)));
        }
        store_part(tail, exp(load_part(tail, 0.0)));
    }

    /// Σ xᵢ·yᵢ in lanes and one tree.
    pub fn inner(x: &[f32], y: &[f32]) -> f32 {
        let (x, xt) = x.as_chunks::<{ simd::wide::LANES }>();
        let (y, yt) = y.as_chunks::<{ simd::wide::LANES }>();
        let mut acc = simd::wide::zero();
        for (x, y) in x.iter().zip(y) {
            acc = simd::wide::fma(simd::wide::load(x), simd::wide::load(y), acc);
        }
        acc = simd::wide::fma(load_part(xt, 0.0), load_part(yt, 0.0), acc);
        simd::wide::sum(acc)
    }

    /// `to += s·x`
    pub fn add_scaled(s: f32, x: &[f32], to: &mut [f32]) {
        let (x, xt) = x.as_chunks::<{ simd::wide::LANES }>();
        let (to, tt) = to.as_chunks_mut::<{ simd::wide::LANES }>();
        let s = simd::wide::splat(s);
        for (x, to) in x.iter().zip(to) {
            simd::wide::store(to, simd::wide::fma(s, simd::wide::load(x), simd::wide::load(to)));
        }
        store_part(tt, simd::wide::fma(s, load_part(xt, 0.0), load_part(tt, 0.0)));
    }

    /// `to = a + b`
    pub fn sum_of(a: &[f32], b: &[f32], to: &mut [f32]) {
        for ((a, b), to) in a.iter().zip(b).zip(to) {
            *to = a + b;
        }
    }

    /// The sum of squares, in f64 over pieces of fixed size: the same whoever computes it.
    pub fn squares(x: &[f32]) -> f64 {
        let mut total = 0f64;
        for piece in x.chunks(4096) {
            let (body, tail) = piece.as_chunks::<{ simd::wide::LANES }>();
            let mut acc = simd::wide::zero();
            for v in body {
                let v = simd::wide::load(v);
                acc = simd::wide::fma(v, v, acc);
            }
            let v = load_part(tail, 0.0);
            total += f64::from(simd::wide::sum(simd::wide::fma(v, v, acc)));
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn exp_is_within_two_units() {
        for level in Level::available() {
            let mut x: Vec<f32> = (0..20_000).map(|i| -87.0 + i as f32 * (175.0 / 20_000.0)).collect();
            let want: Vec<f64> = x.iter().map(|v| f64::from(*v).exp()).collect();
            exp_all(level, &mut x);
            for (got, want) in x.iter().zip(want) {
                assert!((f64::from(*got) / want - 1.0).abs() < 2.5e-7, "{level:?} {got} {want}");
            }
            let mut odd = [0.0, f32::NEG_INFINITY, f32::INFINITY];
            exp_all(level, &mut odd);
            assert!(odd[0] == 1.0 && odd[1] < 1e-37 && odd[2].is_finite());
        }
    }

    #[test]
    fn sums_of_every_length() {
        for level in Level::available() {
            for n in [0, 1, 7, 8, 15, 16, 17, 63, 5000] {
                let x: Vec<f32> = (0..n).map(|i| (i % 13) as f32 - 6.0).collect();
                let want: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
                assert!((squares(level, &x) - want).abs() <= 1e-6 * want);
                assert!((f64::from(inner(level, &x, &x)) - want).abs() <= 1e-6 * want);
                let mut y = vec![1.0; n];
                add_scaled(level, 2.0, &x, &mut y);
                assert!(x.iter().zip(&y).all(|(x, y)| *y == 1.0 + 2.0 * x));
            }
        }
    }
}
