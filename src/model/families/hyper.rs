//! A model's numbers, from its metadata, checked before anything is built from them.

use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::program::{Attention, Sizes, Turning};
use crate::tensor::{Matrix, Weights};
use onlay_kernels::Level;
use onlay_kernels::rope::Pairs;

/// Metadata of one architecture.
pub struct Hyper<'a> {
    weights: &'a Weights,
    architecture: &'a str,
}

/// No real model is beyond these; a hostile one shall not make us build a list without end.
const MOST_LAYERS: u32 = 1024;
const MOST_COLUMNS: u32 = 1 << 20;

impl<'a> Hyper<'a> {
    /// Reads from `weights` the keys of `architecture`.
    pub fn new(weights: &'a Weights, architecture: &'a str) -> Self {
        Hyper { weights, architecture }
    }

    /// Whether the file has this tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.weights.tensor(tensor).is_some()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A number above 0 and up to `most`.
    fn count(&self, name: &str, most: u32) -> Result<Option<usize>> {
        let key = self.key(name);
        match self.weights.metadata().u32(&key)? {
            None => Ok(None),
            Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
            Some(n) => {
                Err(Error::expected(Kind::Format, "value", format!("1 to {most}"), n).at(Place::Key(key)))
            }
        }
    }

    fn need(&self, name: &str, most: u32) -> Result<usize> {
        self.count(name, most)?.ok_or_else(|| {
            Error::new(Kind::Format, "missing from the metadata").at(Place::Key(self.key(name)))
        })
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        match self.weights.metadata().f32(&key)? {
            Some(v) if !v.is_finite() || v < 0.0 => {
                Err(Error::expected(Kind::Format, "value", "a finite number from 0", v).at(Place::Key(key)))
            }
            v => Ok(v.map(f64::from)),
        }
    }

    /// Layers.
    pub fn layers(&self) -> Result<usize> {
        self.need("block_count", MOST_LAYERS)
    }

    /// Columns of the feed-forward.
    pub fn feed_forward(&self) -> Result<usize> {
        self.need("feed_forward_length", MOST_COLUMNS)
    }

    /// Epsilon of the norms.
    pub fn eps(&self) -> Result<f32> {
        let name = "attention.layer_norm_rms_epsilon";
        match self.number(name)? {
            Some(v) if v < 1.0 => Ok(v as f32),
            Some(v) => {
                Err(Error::expected(Kind::Format, "value", "below 1", v).at(Place::Key(self.key(name))))
            }
            None => Err(Error::new(Kind::Format, "missing from the metadata").at(Place::Key(self.key(name)))),
        }
    }

    /// Everything a program starts from, checked together.
    ///
    /// # Errors
    /// All numbers that are missing, out of range, or do not fit each other, at once.
    pub fn sizes(&self, pairs: Pairs) -> Result<Sizes> {
        let mut wrong = Findings::default();
        for key in ["expert_count", "attention.sliding_window"] {
            if wrong.keep(self.weights.metadata().u32(&self.key(key))).flatten().is_some_and(|n| n > 0) {
                wrong.push(Error::new(Kind::Unsupported, "not supported yet").at(Place::Key(self.key(key))));
            }
        }
        let width = wrong.keep(self.need("embedding_length", MOST_COLUMNS)).unwrap_or(1);
        let context = wrong.keep(self.need("context_length", 1 << 30)).unwrap_or(1);
        let heads = wrong.keep(self.need("attention.head_count", 1 << 14)).unwrap_or(1);
        let key_heads = wrong.keep(self.count("attention.head_count_kv", 1 << 14)).flatten().unwrap_or(heads);
        let head =
            wrong.keep(self.count("attention.key_length", 1 << 12)).flatten().unwrap_or(width / heads).max(1);
        if let Some(v) = wrong.keep(self.count("attention.value_length", 1 << 12)).flatten()
            && v != head
        {
            let key = Place::Key(self.key("attention.value_length"));
            wrong.push(Error::expected(Kind::Unsupported, "values as wide as keys", head, v).at(key));
        }
        if heads % key_heads != 0 {
            let key = Place::Key(self.key("attention.head_count_kv"));
            wrong.push(
                Error::expected(Kind::Format, "value", format!("a divisor of {heads}"), key_heads).at(key),
            );
        } else if heads / key_heads > onlay_kernels::attention::ROWS {
            let most = onlay_kernels::attention::ROWS;
            let key = Place::Key(self.key("attention.head_count_kv"));
            wrong.push(
                Error::expected(
                    Kind::Unsupported,
                    "query heads per key head",
                    format!("at most {most}"),
                    heads / key_heads,
                )
                .at(key),
            );
        }
        let vocabulary = self.vocabulary(&mut wrong);
        let frequencies = wrong.keep(self.frequencies(head)).unwrap_or_default();
        wrong.refuse("the model's numbers cannot be used")?;
        Ok(Sizes {
            width,
            vocabulary,
            context,
            attention: Attention { heads, key_heads, head },
            turning: Turning { pairs, frequencies },
        })
    }

    fn vocabulary(&self, wrong: &mut Findings) -> usize {
        let table = wrong.keep(self.weights.need("token_embd.weight").and_then(Matrix::new));
        table.map_or(1, |t| t.rows)
    }

    /// Radians per position of each pair: `base^(−2i/d)`, divided by the factors the file gives.
    ///
    /// Scaling: `none`, `linear` (every frequency by one factor), and the per-pair factors of Llama 3.1 in the tensor
    /// `rope_freqs.weight`.
    fn frequencies(&self, head: usize) -> Result<Vec<f64>> {
        let metadata = self.weights.metadata();
        let turned = self.count("rope.dimension_count", 1 << 12)?.unwrap_or(head);
        if turned > head || turned % 2 != 0 {
            let key = Place::Key(self.key("rope.dimension_count"));
            return Err(
                Error::expected(Kind::Format, "value", format!("even and up to {head}"), turned).at(key)
            );
        }
        let base = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let kind = metadata.text(&self.key("rope.scaling.type"))?.unwrap_or("none");
        let linear = match kind {
            "linear" => {
                self.number("rope.scaling.factor")?.or(self.number("rope.scale_linear")?).unwrap_or(1.0)
            }
            "none" => self.number("rope.scale_linear")?.unwrap_or(1.0),
            other => {
                let key = Place::Key(self.key("rope.scaling.type"));
                return Err(
                    Error::expected(Kind::Unsupported, "rope scaling", "none or linear", other).at(key)
                );
            }
        };
        if base <= 0.0 || linear <= 0.0 {
            let key = Place::Key(self.key("rope.freq_base"));
            return Err(Error::expected(
                Kind::Format,
                "base and factor",
                "above 0",
                format!("{base} and {linear}"),
            )
            .at(key));
        }
        let mut frequencies: Vec<f64> =
            (0..turned / 2).map(|i| base.powf(-2.0 * i as f64 / turned as f64) / linear).collect();
        if let Some(factors) = self.weights.tensor("rope_freqs.weight") {
            let factors = Matrix::shaped(factors, 1, turned / 2)?;
            let mut each = vec![0.0; turned / 2];
            factors.decode(Level::PORTABLE, 0, 0, &mut each);
            for (f, by) in frequencies.iter_mut().zip(each) {
                if !(by.is_finite() && by > 0.0) {
                    let place = Place::Tensor("rope_freqs.weight".into());
                    return Err(Error::expected(Kind::Format, "factors", "above 0", by).at(place));
                }
                *f /= f64::from(by);
            }
        }
        Ok(frequencies)
    }
}
