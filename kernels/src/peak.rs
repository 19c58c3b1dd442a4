//! How much arithmetic a core does at best: the ceiling beside which figures are printed.

/// Chains of operations that hide each other's latency.
const CHAINS: usize = 12;

levels! {
    {}
    /// Multiply-adds of `rounds` rounds of f32; the result only keeps them from being left out.
    pub fn floats(rounds: usize) -> (u64, f32) {
        let mut acc = [simd::wide::splat(1.0); CHAINS];
        let (a, b) = (simd::wide::splat(core::hint::black_box(0.5)), simd::wide::splat(core::hint::black_box(0.25)));
        for _ in 0..rounds {
            for v in &mut acc {
                *v = simd::wide::fma(*v, a, b);
            }
        }
        let sum = acc.iter().fold(simd::wide::zero(), |s, v| simd::wide::add(s, *v));
        ((rounds * CHAINS * simd::wide::LANES) as u64, simd::wide::sum(sum))
    }

    /// Multiply-adds of `rounds` rounds of bytes, unsigned by signed, with the sums as the level keeps them.
    pub fn bytes(rounds: usize) -> (u64, i32) {
        let mut acc = [simd::wide::zero_partial(); CHAINS];
        let s = simd::wide::splat_four(&core::hint::black_box([1, -1, 2, -2]));
        let u = simd::wide::splat_four(&core::hint::black_box([1, 2, 3, 4]));
        for _ in 0..rounds {
            for v in &mut acc {
                *v = simd::wide::step_us(*v, u, s);
            }
        }
        let mut sum = simd::wide::zero_ints();
        for v in acc {
            sum = simd::wide::widen_plain(sum, v);
        }
        let sum: [i32; simd::wide::LANES] = bytemuck::must_cast(sum);
        ((rounds * CHAINS * 4 * simd::wide::LANES) as u64, sum[0])
    }
}
