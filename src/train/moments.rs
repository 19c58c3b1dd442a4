//! The moments of AdamW, in 32 bits or in 8.
//!
//! ```text
//! adamw       m, v            f32, laid out as the numbers of each place
//! adamw8bit   m = absmax_b · signed[code]      v = absmax_b · unsigned[code]       in blocks b of 256 numbers
//!             step: decode → AdamW in f32 → p; absmax_b = max |·| of the block; code = the nearest in the map
//! ```
//! Dettmers, Lewis, Shleifer, Zettlemoyer: "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861). The maps and
//! the step are those of bitsandbytes 0.50.2 (`create_dynamic_map`, `AdamW8bit`); like there, arrays of fewer than 4096
//! numbers stay in f32, and an array is one matrix A, one B or the lengths of one place. Numbers that do not learn have no
//! moments in 8 bits. Two bytes and a 32nd per number instead of eight.
//!
//! A dynamic map spends its bits where it is needed: 0, and 1 to 128 steps per power of ten (half of that with a sign), of
//! which there are seven below the block's largest number.

use crate::adapter::{Layer, Part};
use crate::error::{Error, Kind, Result};
use crate::tensor::Slots;
use onlay_kernels::Level;
use onlay_kernels::adam::{self, AdamW};
use std::sync::LazyLock;

/// Numbers of a block.
pub const BLOCK: usize = 256;

/// Arrays of fewer numbers keep f32 (bitsandbytes' `min_8bit_size`).
pub const SMALL: usize = 4096;

/// Which optimiser a run has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimizer {
    /// AdamW with moments in f32.
    #[default]
    AdamW,
    /// AdamW with moments in 8 bits, block by block.
    AdamW8bit,
}

impl Optimizer {
    /// All of them.
    pub const ALL: [Optimizer; 2] = [Optimizer::AdamW, Optimizer::AdamW8bit];

    /// `adamw` or `adamw8bit`.
    pub fn name(self) -> &'static str {
        match self {
            Optimizer::AdamW => "adamw",
            Optimizer::AdamW8bit => "adamw8bit",
        }
    }

    /// The optimiser of that name.
    ///
    /// # Errors
    /// `Argument` naming all.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|o| o.name() == name);
        found.ok_or_else(|| Error::expected(Kind::Argument, "optimizer", "adamw or adamw8bit", name))
    }

    /// Floats and codes of one moment of a part.
    fn room(self, part: Option<&Part>) -> (usize, usize) {
        let Some(part) = part else { return (0, 0) };
        match self {
            Optimizer::AdamW => (part.learning_len(), 0),
            Optimizer::AdamW8bit => {
                part.learned().into_iter().fold((0, 0), |(floats, codes), (at, _)| match at.len() {
                    n if n < SMALL => (floats + n, codes),
                    n => (floats + n.div_ceil(BLOCK), codes + n),
                })
            }
        }
    }
}

/// Both moments of a layer: for each place the floats, which are numbers or what the codes of a block are multiplied
/// with, in the order of [`Part::learned`], and the codes.
#[derive(Debug)]
pub struct Moments {
    optimizer: Optimizer,
    floats: [Slots<Vec<f32>>; 2],
    codes: [Slots<Vec<u8>>; 2],
}

impl Moments {
    /// Zero for all numbers of a layer.
    pub fn new(optimizer: Optimizer, layer: &Layer) -> Self {
        let room = |i: usize| optimizer.room(layer.parts()[i].as_ref());
        let n = layer.parts().len();
        let floats = || Slots::new(n, |i| vec![0.0; room(i).0]);
        let codes = |map: &Map| Slots::new(n, |i| vec![map.zero(); room(i).1]);
        Moments { optimizer, floats: [floats(), floats()], codes: [codes(&SIGNED), codes(&UNSIGNED)] }
    }

    /// The bytes that [`Moments::new`] takes.
    pub fn bytes(optimizer: Optimizer, layer: &Layer) -> u64 {
        let rooms = layer.parts().iter().map(|p| optimizer.room(p.as_ref()));
        2 * rooms.map(|(floats, codes)| 4 * floats as u64 + codes as u64).sum::<u64>()
    }

    /// Floats of the first and the second moment.
    pub fn floats(&self) -> &[Slots<Vec<f32>>; 2] {
        &self.floats
    }

    /// Codes of the first and the second moment; empty where there are none.
    pub fn codes(&self) -> &[Slots<Vec<u8>>; 2] {
        &self.codes
    }

    /// One step of place `i`: `p` by its gradients `g`. `with` is for numbers that learn at the common rate and for those
    /// that learn faster. Allocates nothing.
    pub fn step(&self, level: Level, i: usize, part: &Part, with: [AdamW; 2], p: &mut [f32], g: &[f32]) {
        let [mut m, mut v] = [0, 1].map(|k: usize| self.floats[k].get(i));
        if self.optimizer == Optimizer::AdamW {
            for (at, fast) in part.learned() {
                let with = with[usize::from(fast)];
                adam::adamw(level, with, &mut p[at.clone()], &g[at.clone()], &mut m[at.clone()], &mut v[at]);
            }
            return;
        }
        let [mut m_codes, mut v_codes] = [0, 1].map(|k: usize| self.codes[k].get(i));
        let (mut floats, mut codes) = (0, 0);
        for (at, fast) in part.learned() {
            let (n, with) = (at.len(), with[usize::from(fast)]);
            let (p, g) = (&mut p[at.clone()], &g[at]);
            if n < SMALL {
                let here = floats..floats + n;
                adam::adamw(level, with, p, g, &mut m[here.clone()], &mut v[here]);
                floats += n;
                continue;
            }
            let coded = codes..codes + n;
            let blocks = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
            let m_blocks = m_codes[coded.clone()].chunks_mut(BLOCK).zip(&mut m[floats..]);
            let v_blocks = v_codes[coded].chunks_mut(BLOCK).zip(&mut v[floats..]);
            for (((p, g), m), v) in blocks.zip(m_blocks).zip(v_blocks) {
                step_block(level, with, p, g, m, v);
            }
            floats += n.div_ceil(BLOCK);
            codes += n;
        }
    }
}

/// One step of one block.
fn step_block(
    level: Level,
    with: AdamW,
    p: &mut [f32],
    g: &[f32],
    (m_codes, m_most): (&mut [u8], &mut f32),
    (v_codes, v_most): (&mut [u8], &mut f32),
) {
    let n = p.len();
    let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
    SIGNED.decode(m_codes, *m_most, &mut m);
    UNSIGNED.decode(v_codes, *v_most, &mut v);
    adam::adamw(level, with, p, g, &mut m[..n], &mut v[..n]);
    *m_most = SIGNED.encode(&m[..n], m_codes);
    *v_most = UNSIGNED.encode(&v[..n], v_codes);
}

/// A dynamic quantization map: 256 values, rising.
struct Map {
    values: [f32; 256],
    /// Halfway between neighbours; the last is above everything.
    bounds: [f32; 256],
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

impl Map {
    /// 0, 1 and, for e = 0..7, the middles of 2^e (unsigned: 2^(e+1)) equal parts of 0.1..1, times 10^(e−6), with both
    /// signs or without.
    fn new(signed: bool) -> Map {
        let mut values = vec![0.0, 1.0];
        for e in 0..7 {
            let parts = 1 << (e + i32::from(!signed));
            let step = 0.9 / f64::from(parts);
            let power = 10f64.powi(e - 6);
            for k in 0..parts {
                let value = (power * (0.1 + step * (f64::from(k) + 0.5))) as f32;
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = values.try_into().expect("2 + 2·127, or 2 + 254");
        let mut bounds = [f32::INFINITY; 256];
        bounds.iter_mut().zip(values.windows(2)).for_each(|(b, w)| *b = (w[0] + w[1]) / 2.0);
        Map { values, bounds }
    }

    /// The code of 0.
    fn zero(&self) -> u8 {
        self.values.iter().position(|v| *v == 0.0).unwrap_or(0) as u8
    }

    fn decode(&self, codes: &[u8], most: f32, to: &mut [f32; BLOCK]) {
        to.iter_mut().zip(codes).for_each(|(to, code)| *to = most * self.values[usize::from(*code)]);
    }

    /// Codes of a block, each the nearest in the map; what they are to be multiplied with.
    fn encode(&self, numbers: &[f32], codes: &mut [u8]) -> f32 {
        let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
        // a block of nothing, or of numbers too small to divide by
        let inverse = if most >= f32::MIN_POSITIVE { 1.0 / most } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(numbers) {
            *code = self.nearest(x * inverse);
        }
        if inverse == 0.0 { 0.0 } else { most }
    }

    /// How many bounds lie below `x`, in eight steps.
    fn nearest(&self, x: f32) -> u8 {
        let mut at = 0;
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            at += if self.bounds[at + half - 1] < x { half } else { 0 };
        }
        at as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use safetensors::SafeTensors;

    fn vectors() -> Vec<u8> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::read(root.join("tests/oracles/vectors/adam8.safetensors")).unwrap()
    }

    fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
        let data = file.tensor(name).unwrap();
        data.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn maps_are_those_of_bitsandbytes() {
        let bytes = vectors();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (map, name) in [(&SIGNED, "signed"), (&UNSIGNED, "unsigned")] {
            for (i, (here, there)) in map.values.iter().zip(floats(&file, name)).enumerate() {
                let off = (here - there).abs();
                assert!(off <= 2e-7 * there.abs(), "{name} {i}: {here} against {there}");
            }
        }
    }

    #[test]
    fn the_nearest_value_is_found() {
        let mut rng = Rng::new(5);
        for map in [&SIGNED, &UNSIGNED] {
            for (i, v) in map.values.iter().enumerate() {
                assert_eq!(usize::from(map.nearest(*v)), i);
            }
            for _ in 0..20_000 {
                let x = (2.0 * rng.uniform() - 1.0) * 10f32.powf(-7.0 * rng.uniform());
                let off = |v: f32| (v - x).abs();
                let best = map.values.iter().map(|v| off(*v)).fold(f32::INFINITY, f32::min);
                let found = off(map.values[usize::from(map.nearest(x))]);
                assert!(found <= best + 1e-7, "{x}: off by {found}, not {best}");
            }
        }
    }

    #[test]
    fn blocks_of_nothing_stay_nothing() {
        for map in [&SIGNED, &UNSIGNED] {
            for block in [vec![0.0; BLOCK], vec![1e-40; 3]] {
                let mut codes = vec![7; block.len()];
                assert_eq!(map.encode(&block, &mut codes), 0.0);
                let mut back = [1.0; BLOCK];
                map.decode(&codes, 0.0, &mut back);
                assert!(back[..block.len()].iter().all(|x| *x == 0.0));
                assert!(codes.iter().all(|c| *c == map.zero()));
            }
        }
    }

    /// Three steps of bitsandbytes' own optimiser.
    #[test]
    fn steps_are_those_of_bitsandbytes() {
        let bytes = vectors();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut p = floats(&file, "p.0");
        let settings = floats(&file, "settings");
        let n = p.len();
        // one place with an A of that size, and a B too small for 8 bits
        let part = Part::lora(1, n, 1, 1.0);
        let layer = Layer::new(vec![Some(part)]);
        let moments = Moments::new(Optimizer::AdamW8bit, &layer);
        assert_eq!(
            Moments::bytes(Optimizer::AdamW8bit, &layer),
            2 * (n + 4 * (n.div_ceil(BLOCK) + 1)) as u64
        );
        assert_eq!(Moments::bytes(Optimizer::AdamW, &layer), 8 * (n + 1) as u64);
        let (mut other, mut exact) = (0, 0);
        for t in 1..=3i32 {
            let [rate, beta1, beta2, epsilon, decay] = settings[..] else { panic!() };
            let correction1 = (1.0 - f64::from(beta1).powi(t)) as f32;
            let correction2 = (1.0 - f64::from(beta2).powi(t)).sqrt() as f32;
            let with = AdamW { rate, beta1, beta2, epsilon, decay, correction1, correction2, clip: 1.0 };
            let mut g = floats(&file, &format!("g.{t}"));
            g.push(0.5);
            p.push(1.0);
            moments.step(Level::chosen().unwrap(), 0, &part, [with; 2], &mut p, &g);
            p.truncate(n);
            for (i, (here, there)) in p.iter().zip(floats(&file, &format!("p.{t}"))).enumerate() {
                // a step is at most a few times the rate; sums are rounded otherwise
                assert!((here - there).abs() < 2e-6, "step {t}, number {i}: {here} against {there}");
            }
            for (k, name) in ["m", "v"].into_iter().enumerate() {
                let want = file.tensor(&format!("{name}.{t}")).unwrap();
                let (codes, most) = (moments.codes[k].read(0), moments.floats[k].read(0));
                for (i, (here, there)) in codes.iter().zip(want.data()).enumerate() {
                    if most[i / BLOCK] == 0.0 {
                        continue; // codes of a block of nothing mean nothing
                    }
                    assert!(here.abs_diff(*there) <= 1, "step {t}: {name} {i}");
                    other += usize::from(here != there);
                    exact += usize::from(here == there);
                }
                for (here, there) in most.iter().zip(floats(&file, &format!("{name}.absmax.{t}"))) {
                    // here 1 − β₂ is taken of an f32, 1.3e-5 off; there of an f64
                    assert!((here - there).abs() <= 2e-5 * there.abs(), "step {t}: {name} absmax");
                }
            }
        }
        // numbers that lie as good as halfway
        assert!(other * 500 < exact, "{other} of {exact} codes differ");
    }
}
