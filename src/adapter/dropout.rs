//! Dropout draws its mask from a hash of (seed, row, site, column), where a row is named by its step, its place in the
//! step's window and its position ([`Layer::set_rows`](super::Layer::set_rows)): recomputing a segment draws the same mask, and so does another
//! cut of the window. Without names nothing is dropped: evaluation and serving see the whole layer.

use crate::ops::Site;
use crate::rng::hash;
use crate::tensor::Slots;

/// How inputs are dropped while training.
#[derive(Debug, Default)]
pub(super) struct Dropout {
    /// Of 65,536 inputs, how many are dropped.
    pub rate: u64,
    pub seed: u64,
    /// The name of each row of the batch at hand; empty while nothing is dropped.
    pub rows: Slots<Vec<u64>>,
}

impl Dropout {
    /// Writes `x`, the columns from `at` (a multiple of 4) on of the row called `row`, with dropped inputs set to 0
    /// and the others raised to keep the mean. Linear, so gradients go through it too.
    pub fn drop_into(&self, site: Site, row: u64, at: usize, x: &[f32], to: &mut [f32]) {
        let keep = 65_536.0 / (65_536 - self.rate) as f32;
        for (i, (x, to)) in x.chunks(4).zip(to.chunks_mut(4)).enumerate() {
            let mut draw = hash(self.seed, &[row, u64::from(site.0), (at / 4 + i) as u64]);
            for (x, to) in x.iter().zip(to) {
                *to = if draw & 0xffff < self.rate { 0.0 } else { keep * x };
                draw >>= 16;
            }
        }
    }
}
