//! Learning rates over the steps of a run, and the numbers of the optimiser.
//!
//! ```text
//! step t = 1..=T, warm-up w:   t ≤ w:  rate·t/w        else, with f = (t − 1 − w)/(T − w):
//! constant: rate     linear: rate·(1 − f)     cosine: rate·½(1 + cos πf)
//! ```
//! (transformers' `get_linear_schedule_with_warmup` and its kin count from 0; the first step here is their second, so
//! that no step is spent at rate zero.)

use super::Signal;
use crate::error::{Error, Kind, Result};
use onlay_kernels::adam::AdamW;

/// The shape of a schedule after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    /// Stays.
    Constant,
    /// Falls to zero in a line.
    Linear,
    /// Falls to zero in half a cosine.
    #[default]
    Cosine,
}

impl Shape {
    /// The shape of that name.
    ///
    /// # Errors
    /// `Argument` naming the three.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "constant" => Ok(Shape::Constant),
            "linear" => Ok(Shape::Linear),
            "cosine" => Ok(Shape::Cosine),
            other => Err(Error::expected(Kind::Argument, "lr-schedule", "constant, linear or cosine", other)),
        }
    }

    /// `constant`, `linear` or `cosine`.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Constant => "constant",
            Shape::Linear => "linear",
            Shape::Cosine => "cosine",
        }
    }
}

/// How fast to learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Peak learning rate.
    pub rate: f64,
    /// LoRA+: B learns so many times as fast as A; 1 for plain LoRA.
    pub plus: f64,
    /// What follows the warm-up.
    pub shape: Shape,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Decoupled weight decay.
    pub decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them.
    pub max_norm: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            rate: 2e-4,
            plus: 1.0,
            shape: Shape::Cosine,
            warmup: 0,
            decay: 0.0,
            max_norm: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

impl Recipe {
    /// A learning rate to begin with:
    ///
    /// ```text
    /// rate = 5e-4 · (2000/width)^0.781 · pace of the method · pace of the rows
    /// ```
    /// The first two factors are the fit for LoRA on Llama models of Thinking Machines' "LoRA Without Regret" (2025) and
    /// its cookbook; it hardly depends on the rank.
    pub fn rate_for(width: usize, pace: f64, signal: Signal) -> f64 {
        5e-4 * (2000.0 / width.max(1) as f64).powf(0.781) * pace * signal.pace()
    }

    /// # Errors
    /// Every number that is out of its range.
    pub fn check(&self) -> Result<()> {
        let mut wrong = crate::error::Findings::default();
        let mut range = |name: &str, value: f64, fine: bool, expected: &str| {
            if !fine {
                wrong.push(Error::expected(Kind::Argument, name, expected, value));
            }
        };
        let r = self;
        range("learning-rate", r.rate, r.rate.is_finite() && r.rate > 0.0, "a finite number above 0");
        let fine = r.plus.is_finite() && r.plus > 0.0;
        range("lora-plus-ratio", r.plus, fine, "a finite number above 0");
        range("weight-decay", r.decay, (0.0..1e3).contains(&r.decay), "a number from 0");
        range(
            "max-grad-norm",
            r.max_norm,
            r.max_norm.is_finite() && r.max_norm >= 0.0,
            "a finite number from 0",
        );
        range("beta1", r.beta1, (0.0..1.0).contains(&r.beta1), "from 0 and below 1");
        range("beta2", r.beta2, (0.0..1.0).contains(&r.beta2), "from 0 and below 1");
        range("epsilon", r.epsilon, r.epsilon.is_finite() && r.epsilon > 0.0, "a finite number above 0");
        wrong.refuse("the recipe cannot be used")
    }

    /// The learning rate of step `t` (from 1) of `steps`.
    pub fn rate_at(&self, t: u64, steps: u64) -> f64 {
        if t <= self.warmup {
            return self.rate * t as f64 / self.warmup as f64;
        }
        let f = (t - 1 - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        self.rate
            * match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => 1.0 - f.min(1.0),
                Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * f.min(1.0)).cos()),
            }
    }

    /// The optimiser's numbers at step `t` with gradients of global norm `norm`.
    pub fn adamw(&self, t: u64, rate: f64, norm: f64) -> AdamW {
        // PyTorch's clip_grad_norm_: max_norm / (norm + 1e-6), at most 1
        let clip = if self.max_norm > 0.0 { (self.max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        AdamW {
            rate: rate as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            epsilon: self.epsilon as f32,
            decay: self.decay as f32,
            correction1: (1.0 - self.beta1.powf(t as f64)) as f32,
            correction2: (1.0 - self.beta2.powf(t as f64)).sqrt() as f32,
            clip: clip as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_begin_and_end_where_they_should() {
        let r = |shape| Recipe { rate: 1.0, shape, warmup: 10, ..Recipe::default() };
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine] {
            let r = r(shape);
            assert_eq!(r.rate_at(1, 110), 0.1);
            assert_eq!(r.rate_at(10, 110), 1.0);
            assert_eq!(r.rate_at(11, 110), 1.0);
            assert_eq!(Shape::named(shape.name()).unwrap(), shape);
        }
        assert!((r(Shape::Linear).rate_at(61, 110) - 0.5).abs() < 1e-12);
        assert!((r(Shape::Cosine).rate_at(61, 110) - 0.5).abs() < 1e-12);
        assert!(r(Shape::Linear).rate_at(110, 110) > 0.0, "the last step still learns");
        assert!(Shape::named("step").is_err());
    }

    #[test]
    fn every_bad_number_is_named() {
        let r = Recipe { rate: f64::INFINITY, max_norm: -1.0, beta2: 1.0, ..Recipe::default() };
        assert_eq!(r.check().unwrap_err().findings().len(), 3);
        assert!(Recipe::default().check().is_ok());
    }
}
