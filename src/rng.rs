//! Randomness from a seed, and only from a seed.
//!
//! Two generators: [`Rng`], a sequence (shuffling, sampling, initialisation), and [`hash`], a stateless function
//! of its coordinates (dropout), so that a recomputed forward pass draws the same mask without storing it.
//!
//! Both are SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):
//! 64 bits of state, full period, passes BigCrush; the state is the only thing a checkpoint has to keep.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The 64 bits that belong to the coordinates `at` under `seed`.
pub fn hash(seed: u64, at: &[u64]) -> u64 {
    at.iter().fold(mix(seed.wrapping_add(GAMMA)), |h, &c| mix(h ^ mix(c.wrapping_add(GAMMA))))
}

/// A sequence of random numbers; its whole state is one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The state, for a checkpoint; [`Rng::new`] takes it back.
    pub fn state(&self) -> u64 {
        self.0
    }

    /// Uniform 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform in 0..n without bias (Lemire's multiply-and-reject). `n` must be above 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no answer");
        let reject = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= reject {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box–Muller, the cosine half).
    pub fn normal(&mut self) -> f32 {
        let u = 1.0 - f64::from(self.uniform());
        let v = f64::from(self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // The reference sequence of SplitMix64 for seed 1234567 (Vigna, splitmix64.c).
        let mut r = Rng::new(1_234_567);
        assert_eq!(r.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(r.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn fair_enough() {
        let mut r = Rng::new(7);
        let mut count = [0u32; 6];
        for _ in 0..60_000 {
            count[r.below(6) as usize] += 1;
        }
        assert!(count.iter().all(|&c| (9_500..10_500).contains(&c)), "{count:?}");
        let n: Vec<f32> = (0..20_000).map(|_| r.normal()).collect();
        let mean = n.iter().sum::<f32>() / n.len() as f32;
        let var = n.iter().map(|x| x * x).sum::<f32>() / n.len() as f32;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }

    #[test]
    fn coordinates_do_not_commute() {
        assert_ne!(hash(1, &[2, 3]), hash(1, &[3, 2]));
        assert_ne!(hash(1, &[2, 3]), hash(2, &[2, 3]));
    }
}
