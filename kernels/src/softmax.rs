//! Log-softmax of a row of logits, and the cross-entropy loss on it.
//!
//! # Forward
//! ```text
//! L = log Σ_j e^{z_j} = m + log Σ_j e^{z_j − m},  m = max z        loss = L − z_target
//! ```
//! # Backward
//! ```text
//! dz_j = scale·(e^{z_j − L} − [j = target])
//! ```
//! The sum runs in lanes over pieces of 1,024, the pieces' sums in f64: one order, whatever the vocabulary.

levels! {
    {
        fn top(z: &[f32]) -> f32 {
            let (body, tail) = z.as_chunks::<{ simd::wide::LANES }>();
            let mut m = at::math::load_part(tail, f32::NEG_INFINITY);
            for v in body {
                m = simd::wide::max(m, simd::wide::load(v));
            }
            simd::wide::largest(m)
        }
    }

    /// log Σ e^z. Not finite if any logit is not.
    pub fn log_sum_exp(z: &[f32]) -> f64 {
        let m = top(z);
        let mut total = 0f64;
        for piece in z.chunks(1024) {
            let (body, tail) = piece.as_chunks::<{ simd::wide::LANES }>();
            let shift = simd::wide::splat(m);
            let mut acc = simd::wide::zero();
            for v in body {
                acc = simd::wide::add(acc, at::math::exp(simd::wide::sub(simd::wide::load(v), shift)));
            }
            let mut sum = f64::from(simd::wide::sum(acc));
            let mut rest = [0f32; simd::wide::LANES];
            at::math::store_part(&mut rest, at::math::exp(simd::wide::sub(at::math::load_part(tail, m), shift)));
            sum += rest[..tail.len()].iter().map(|v| f64::from(*v)).sum::<f64>();
            total += sum;
        }
        // exp clamps: a NaN or an infinity would vanish in it, and must not.
        if z.iter().fold(true, |fine, v| fine & v.is_finite()) {
            f64::from(m) + total.ln()
        } else {
            f64::NAN
        }
    }

    /// Turns logits into `scale·(softmax − one-hot)` in place; gives the loss (not scaled).
    pub fn cross_entropy(z: &mut [f32], target: usize, scale: f32) -> f64 {
        let log_sum = log_sum_exp(z);
        let loss = log_sum - f64::from(z[target]);
        let shift = simd::wide::splat(log_sum as f32);
        let s = simd::wide::splat(scale);
        let (body, tail) = z.as_chunks_mut::<{ simd::wide::LANES }>();
        for v in body {
            let p = at::math::exp(simd::wide::sub(simd::wide::load(v), shift));
            simd::wide::store(v, simd::wide::mul(p, s));
        }
        let p = at::math::exp(simd::wide::sub(at::math::load_part(tail, 0.0), shift));
        at::math::store_part(tail, simd::wide::mul(p, s));
        z[target] -= scale;
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn loss_and_gradient_against_f64() {
        for level in Level::available() {
            for n in [1, 2, 7, 8, 33, 1024, 5003] {
                let z: Vec<f32> = (0..n).map(|i| ((i * 29 % 97) as f32 - 48.0) * 0.3).collect();
                let sum: f64 = z.iter().map(|v| f64::from(*v).exp()).sum();
                let target = n / 2;
                let mut g = z.clone();
                let loss = cross_entropy(level, &mut g, target, 0.5);
                assert!((loss - (sum.ln() - f64::from(z[target]))).abs() < 1e-5 * sum.ln().abs().max(1.0));
                for (i, got) in g.iter().enumerate() {
                    let want = 0.5 * (f64::from(z[i]).exp() / sum - f64::from(u8::from(i == target)));
                    assert!((f64::from(*got) - want).abs() < 2e-6, "{level:?} {n} {i} {got} {want}");
                }
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut z = vec![0.0f32; 40];
                z[17] = bad;
                assert!(log_sum_exp(level, &z).is_nan(), "{level:?} {bad}");
            }
        }
    }
}
