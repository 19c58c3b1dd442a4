//! Choosing the next token from logits.
//!
//! In this order, each step only if it is on:
//!
//! 1. logit bias is added;
//! 2. repeat penalty: logits of the last [`Choice::repeat_window`] tokens are divided by it if positive, multiplied if
//!    negative (Keskar et al., "CTRL", 2019);
//! 3. temperature 0 takes the largest logit (of equals, the lowest id), and nothing below applies;
//! 4. top-k keeps the k largest;
//! 5. top-p keeps the fewest whose probabilities reach p (Holtzman et al., 2019);
//! 6. min-p keeps those with at least p times the largest probability (Nguyen et al., 2024);
//! 7. the logits are divided by the temperature and one is drawn.
//!
//! The order is llama.cpp's. The draw comes from the sampler's own seeded generator, so that the same seed and logits
//! give the same tokens.

use crate::error::{Error, Findings, Kind, Result};
use crate::rng::Rng;

/// The most tokens a repeat penalty may look back.
pub(super) const MOST_WINDOW: usize = 1024;

/// How to choose.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// 0: the largest logit.
    pub temperature: f32,
    /// Keep this many; 0: all.
    pub top_k: usize,
    /// Keep the fewest that reach this probability; 1: all.
    pub top_p: f32,
    /// Keep those with at least this share of the largest probability; 0: all.
    pub min_p: f32,
    /// 1: none.
    pub repeat_penalty: f32,
    /// Tokens that the repeat penalty looks back.
    pub repeat_window: usize,
    /// Added to single logits.
    pub bias: Vec<(u32, f32)>,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Choice {
    fn default() -> Self {
        Choice {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_window: 64,
            bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Choice {
    /// Always the largest logit.
    pub fn greedy() -> Self {
        Choice { temperature: 0.0, ..Choice::default() }
    }

    /// # Errors
    /// Every number out of its range, and biased tokens that are not in a vocabulary of `vocabulary` tokens.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let mut wrong = Findings::default();
        let mut range = |name: &str, value: f32, fine: bool, expected: &str| {
            if !fine {
                wrong.push(Error::expected(Kind::Argument, name, expected, value));
            }
        };
        range("temp", self.temperature, (0.0..=100.0).contains(&self.temperature), "from 0 to 100");
        range(
            "top-p",
            self.top_p,
            (0.0..=1.0).contains(&self.top_p) && self.top_p > 0.0,
            "above 0 and up to 1",
        );
        range("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1");
        let penalty = self.repeat_penalty;
        range("repeat-penalty", penalty, penalty.is_finite() && penalty > 0.0, "a finite number above 0");
        let window = self.repeat_window;
        range("repeat-window", window as f32, window <= MOST_WINDOW, "at most 1024 tokens");
        for (token, bias) in &self.bias {
            if *token as usize >= vocabulary || bias.is_nan() {
                let expected = format!("a number for a token below {vocabulary}");
                wrong.push(Error::expected(Kind::Argument, "bias", expected, format!("{bias} for {token}")));
            }
        }
        wrong.refuse("this way of choosing cannot be used")
    }
}

/// Chooses tokens; its memory is planned, a choice allocates nothing.
#[derive(Clone, Debug)]
pub struct Sampler {
    choice: Choice,
    rng: Rng,
    /// Candidates: logit and token.
    kept: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for logits of `vocabulary` tokens.
    ///
    /// # Errors
    /// As [`Choice::check`].
    pub fn new(choice: Choice, vocabulary: usize) -> Result<Self> {
        choice.check(vocabulary)?;
        Ok(Sampler { rng: Rng::new(choice.seed), choice, kept: Vec::with_capacity(vocabulary) })
    }

    /// How it chooses.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The next token after `recent`. The logits are changed.
    ///
    /// # Errors
    /// `Numeric` if no logit is a finite number.
    pub fn next(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<u32> {
        for (token, bias) in &self.choice.bias {
            logits[*token as usize] += bias;
        }
        self.penalise(logits, recent);
        if logits.iter().any(|z| z.is_nan()) {
            return Err(Error::expected(Kind::Numeric, "logits", "numbers", "NaN"));
        }
        let best = largest(logits);
        if !logits[best].is_finite() {
            return Err(Error::expected(Kind::Numeric, "largest logit", "a finite number", logits[best]));
        }
        if self.choice.temperature == 0.0 {
            return Ok(best as u32);
        }
        self.keep(logits);
        Ok(self.draw())
    }

    /// Only the last of each token counts, so that a token is penalised once.
    fn penalise(&self, logits: &mut [f32], recent: &[u32]) {
        let penalty = self.choice.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        let recent = &recent[recent.len().saturating_sub(self.choice.repeat_window)..];
        for (i, token) in recent.iter().enumerate() {
            if recent[i + 1..].contains(token) {
                continue;
            }
            let z = &mut logits[*token as usize];
            *z = if *z > 0.0 { *z / penalty } else { *z * penalty };
        }
    }

    /// Fills `kept` with the candidates, the largest first.
    fn keep(&mut self, logits: &[f32]) {
        self.kept.clear();
        self.kept.extend(logits.iter().zip(0..).map(|(z, t)| (*z, t)));
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if self.choice.top_k > 0 && self.choice.top_k < self.kept.len() {
            self.kept.select_nth_unstable_by(self.choice.top_k - 1, order);
            self.kept.truncate(self.choice.top_k);
        }
        self.kept.sort_unstable_by(order);
        let top = self.kept[0].0;
        if self.choice.top_p < 1.0 {
            let sum: f64 = self.kept.iter().map(|(z, _)| f64::from(z - top).exp()).sum();
            let (mut reached, mut n) = (0.0, 0);
            while n < self.kept.len() && reached < f64::from(self.choice.top_p) * sum {
                reached += f64::from(self.kept[n].0 - top).exp();
                n += 1;
            }
            self.kept.truncate(n.max(1));
        }
        if self.choice.min_p > 0.0 {
            let least = top + self.choice.min_p.ln();
            let n = self.kept.iter().take_while(|(z, _)| *z >= least).count();
            self.kept.truncate(n.max(1));
        }
    }

    fn draw(&mut self) -> u32 {
        let (top, t) = (self.kept[0].0, f64::from(self.choice.temperature));
        let weight = |z: f32| (f64::from(z - top) / t).exp();
        let sum: f64 = self.kept.iter().map(|(z, _)| weight(*z)).sum();
        let mut left = f64::from(self.rng.uniform()) * sum;
        for (z, token) in &self.kept {
            left -= weight(*z);
            if left < 0.0 {
                return *token;
            }
        }
        self.kept[0].1
    }
}

/// The place of the largest number; of equals, the first.
fn largest(z: &[f32]) -> usize {
    z.iter().enumerate().fold(0, |best, (i, v)| if *v > z[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut Choice)) -> Sampler {
        let mut choice = Choice { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Choice::default() };
        change(&mut choice);
        Sampler::new(choice, 6).unwrap()
    }
    const LOGITS: [f32; 6] = [0.0, 2.0, 1.0, 2.0, -1.0, 0.5];

    fn counts(mut s: Sampler) -> [usize; 6] {
        let mut n = [0; 6];
        for _ in 0..20_000 {
            n[s.next(&mut LOGITS.clone(), &[]).unwrap() as usize] += 1;
        }
        n
    }

    #[test]
    fn draws_follow_the_softmax() {
        for t in [0.5f64, 1.0, 2.0] {
            let n = counts(sampler(|c| c.temperature = t as f32));
            let sum: f64 = LOGITS.iter().map(|z| (f64::from(*z) / t).exp()).sum();
            for (n, z) in n.iter().zip(LOGITS) {
                let expected = 20_000.0 * (f64::from(z) / t).exp() / sum;
                assert!((*n as f64 - expected).abs() < 5.0 * expected.sqrt() + 1.0, "{t} {n} {expected}");
            }
        }
    }

    #[test]
    fn each_limit_keeps_what_it_says() {
        let kept = |s| counts(s).map(|n| n > 0);
        assert_eq!(kept(sampler(|c| c.top_k = 3)), [false, true, true, true, false, false]);
        assert_eq!(kept(sampler(|c| c.top_p = 0.5)), [false, true, false, true, false, false]);
        assert_eq!(kept(sampler(|c| c.top_p = 1e-6)), [false, true, false, false, false, false]);
        assert_eq!(kept(sampler(|c| c.min_p = 0.2)), [false, true, true, true, false, true]);
        assert_eq!(kept(sampler(|c| c.temperature = 0.0)), [false, true, false, false, false, false]);
        assert_eq!(kept(sampler(|c| c.bias = vec![(4, 100.0)])), [false, false, false, false, true, false]);
    }

    #[test]
    fn penalties_count_once_and_only_in_the_window() {
        let next = |recent: &[u32], change: fn(&mut Choice)| {
            let mut s = sampler(|c| {
                c.temperature = 0.0;
                c.repeat_penalty = 3.0;
                change(c);
            });
            s.next(&mut LOGITS.clone(), recent).unwrap()
        };
        assert_eq!(next(&[1, 1, 1], |_| {}), 3);
        assert_eq!(next(&[1, 3], |_| {}), 2);
        assert_eq!(next(&[1, 3, 0], |c| c.repeat_window = 1), 1);
    }

    #[test]
    fn same_seed_same_tokens_and_bad_numbers_are_refused() {
        let run = |seed| {
            let mut s = sampler(|c| c.seed = seed);
            (0..50).map(|_| s.next(&mut LOGITS.clone(), &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let mut s = sampler(|_| {});
        assert!(s.next(&mut [0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0], &[]).is_err());
        assert!(s.next(&mut [f32::NEG_INFINITY; 6], &[]).is_err());
        let bad =
            Choice { temperature: -1.0, top_p: 0.0, min_p: 2.0, bias: vec![(9, 1.0)], ..Choice::default() };
        assert_eq!(bad.check(6).unwrap_err().findings().len(), 4);
    }
}
