//! The gated unit SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020), element by element.
//!
//! # Forward
//! ```text
//! y = g·σ(g)·u
//! ```
//! # Backward
//! ```text
//! du += dy·g·σ(g)        dg += dy·u·σ(g)·(1 + g·(1 − σ(g)))
//! ```

levels! {
    {
        fn parts(g: simd::wide::Floats) -> (simd::wide::Floats, simd::wide::Floats) {
            let s = at::math::sigmoid(g);
            (s, simd::wide::mul(g, s))
        }
    }

    /// `y` from `g` and `u`.
    pub fn swiglu(g: &[f32], u: &[f32], y: &mut [f32]) {
        const LANES: usize = simd::wide::LANES;
        for from in (0..y.len()).step_by(LANES) {
            let to = (from + LANES).min(y.len());
            let (g, u) = (at::math::load_part(&g[from..to], 0.0), at::math::load_part(&u[from..to], 0.0));
            at::math::store_part(&mut y[from..to], simd::wide::mul(parts(g).1, u));
        }
    }

    /// `dg` and `du` from `dy`, added.
    pub fn swiglu_grad(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
        const LANES: usize = simd::wide::LANES;
        let one = simd::wide::splat(1.0);
        for from in (0..dy.len()).step_by(LANES) {
            let to = (from + LANES).min(dy.len());
            let part = |x: &[f32]| at::math::load_part(&x[from..to], 0.0);
            let (gv, uv, dyv) = (part(g), part(u), part(dy));
            let (s, silu) = parts(gv);
            let old = part(du);
            at::math::store_part(&mut du[from..to], simd::wide::fma(dyv, silu, old));
            // σ(1 + g(1 − σ)) = σ + silu·(1 − σ)
            let slope = simd::wide::fma(silu, simd::wide::sub(one, s), s);
            let old = part(dg);
            at::math::store_part(&mut dg[from..to], simd::wide::fma(simd::wide::mul(dyv, uv), slope, old));
        }
    }
}
