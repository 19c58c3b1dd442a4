//! Root-mean-square normalisation of one row (Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019).
//!
//! # Forward
//! ```text
//! r = 1 / sqrt( (1/n) Σ xᵢ² + ε )        yᵢ = (xᵢ·r)·wᵢ
//! ```
//! # Backward
//! ```text
//! dxᵢ += r·wᵢ·dyᵢ − xᵢ·(r³/n)·Σ_j dy_j·w_j·x_j        dwᵢ += dyᵢ·xᵢ·r
//! ```
//! # Shapes
//! every slice is one row of n.

levels! {
    {
        fn scale(x: &[f32], eps: f32) -> f32 {
            1.0 / (at::math::inner(x, x) / x.len() as f32 + eps).sqrt()
        }
    }

    /// `y` from `x`.
    pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        let r = scale(x, eps);
        for ((x, w), y) in x.iter().zip(w).zip(y) {
            *y = x * r * w;
        }
    }

    /// `dx` from `dy`, added.
    pub fn rms_norm_grad(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
        const LANES: usize = simd::wide::LANES;
        let r = scale(x, eps);
        let n = x.len();
        let ((xs, xt), (ws, wt), (dys, dyt)) =
            (x.as_chunks::<LANES>(), w.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        let mut acc = simd::wide::zero();
        for ((x, w), dy) in xs.iter().zip(ws).zip(dys) {
            let of = simd::wide::load;
            acc = simd::wide::fma(simd::wide::mul(of(dy), of(w)), of(x), acc);
        }
        let of = |x: &[f32]| at::math::load_part(x, 0.0);
        acc = simd::wide::fma(simd::wide::mul(of(dyt), of(wt)), of(xt), acc);
        let s = simd::wide::sum(acc) * r * r * r / n as f32;
        for (((x, w), dy), dx) in x.iter().zip(w).zip(dy).zip(dx) {
            *dx += r * w * dy - x * s;
        }
    }

    /// `dw` from `dy`, added; for methods that train the norm's own weights.
    pub fn rms_norm_weight_grad(x: &[f32], eps: f32, dy: &[f32], dw: &mut [f32]) {
        let r = scale(x, eps);
        for ((x, dy), dw) in x.iter().zip(dy).zip(dw) {
            *dw += dy * x * r;
        }
    }
}
