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

        /// `dg` and `du` with their shares.
        fn back(
            g: simd::wide::Floats, u: simd::wide::Floats, dy: simd::wide::Floats, dg: simd::wide::Floats,
            du: simd::wide::Floats) -> [simd::wide::Floats; 2] {
            let (s, silu) = parts(g);
            // σ(1 + g(1 − σ)) = σ + silu·(1 − σ)
            let slope = simd::wide::fma(silu, simd::wide::sub(simd::wide::splat(1.0), s), s);
            [simd::wide::fma(simd::wide::mul(dy, u), slope, dg), simd::wide::fma(dy, silu, du)]
        }
    }

    /// `y` from `g` and `u`.
    pub fn swiglu(g: &[f32], u: &[f32], y: &mut [f32]) {
        const LANES: usize = simd::wide::LANES;
        let ((g, gt), (u, ut)) = (g.as_chunks::<LANES>(), u.as_chunks::<LANES>());
        let (y, yt) = y.as_chunks_mut::<LANES>();
        for ((g, u), y) in g.iter().zip(u).zip(y) {
            simd::wide::store(y, simd::wide::mul(parts(simd::wide::load(g)).1, simd::wide::load(u)));
        }
        let (g, u) = (at::math::load_part(gt, 0.0), at::math::load_part(ut, 0.0));
        at::math::store_part(yt, simd::wide::mul(parts(g).1, u));
    }

    /// `dg` and `du` from `dy`, added.
    pub fn swiglu_grad(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
        const LANES: usize = simd::wide::LANES;
        let ((g, gt), (u, ut)) = (g.as_chunks::<LANES>(), u.as_chunks::<LANES>());
        let (dy, dyt) = dy.as_chunks::<LANES>();
        let ((dg, dgt), (du, dut)) = (dg.as_chunks_mut::<LANES>(), du.as_chunks_mut::<LANES>());
        for ((((g, u), dy), dg), du) in g.iter().zip(u).zip(dy).zip(dg).zip(du) {
            let of = simd::wide::load;
            let [more_g, more_u] = back(of(g), of(u), of(dy), of(dg), of(du));
            simd::wide::store(dg, more_g);
            simd::wide::store(du, more_u);
        }
        let of = |x: &[f32]| at::math::load_part(x, 0.0);
        let [more_g, more_u] = back(of(gt), of(ut), of(dyt), of(dgt), of(dut));
        at::math::store_part(dgt, more_g);
        at::math::store_part(dut, more_u);
    }
}
