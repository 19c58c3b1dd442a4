//! `adapter_config.json` of bottlenecks, as LLM-Adapters writes it (arXiv 2304.01933; `peft/tuners/bottleneck.py`).
//!
//! ```text
//! peft_type              BOTTLENECK
//! bottleneck_size        r, the same everywhere
//! non_linearity          tanh if absent
//! scaling                a number, 1 if absent, or "learned"
//! use_parallel_adapter   parallel, or series, whose places follow from the modules
//! use_adapterp           only the feed-forward's last product: `target_modules` says so too
//! ```

use super::super::bottleneck::{activation, one_activation, scale_learns};
use super::super::layer::Part;
use super::config::says_nothing;
use crate::error::{Error, Findings, Kind, Place};
use onlay_kernels::activate::{ACTIVATIONS, Activation};
use serde_json::{Map, Value, json};

/// Fields that only this kind has.
pub(super) static KNOWN: &[&str] = &[
    "adapter_dropout",
    "bottleneck_size",
    "non_linearity",
    "scaling",
    "use_adapterp",
    "use_parallel_adapter",
];

/// What a configuration says.
#[derive(Debug)]
pub(super) struct Bottlenecks {
    pub size: usize,
    pub activation: Activation,
    /// 1 where it is learned.
    pub scale: f32,
    pub learned: bool,
}

/// Whether a configuration means `parallel`.
pub(super) fn beside(all: &Map<String, Value>) -> bool {
    !says_nothing(all.get("use_parallel_adapter"))
}

impl Bottlenecks {
    /// Reads the fields; what is wrong with them goes to `wrong`.
    pub(super) fn read(all: &Map<String, Value>, wrong: &mut Findings) -> Bottlenecks {
        let get = |key: &str| all.get(key).filter(|v| !v.is_null());
        let mut bad = |key: &str, kind: Kind, expected: &str, found: &Value| {
            let found: String = found.to_string().chars().take(80).collect();
            wrong.push(Error::expected(kind, "value", expected, found).at(Place::Key(key.into())));
        };
        let size = get("bottleneck_size").unwrap_or(&Value::Null);
        let whole = size.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        if whole.is_none() {
            bad("bottleneck_size", Kind::Format, "an integer above 0", size);
        }
        let mut found = Bottlenecks {
            size: whole.unwrap_or(1),
            activation: Activation::default(),
            scale: 1.0,
            learned: false,
        };
        if let Some(value) = get("non_linearity") {
            // "swish" is transformers' other name of silu
            let name = value.as_str().map(|n| if n == "swish" { "silu" } else { n });
            match name.and_then(Activation::named) {
                Some(activation) => found.activation = activation,
                None => {
                    let all: Vec<_> = ACTIVATIONS.iter().map(|(_, name)| *name).collect();
                    bad("non_linearity", Kind::Unsupported, &all.join(", "), value);
                }
            }
        }
        match get("scaling") {
            None => {}
            Some(Value::String(s)) if s == "learned" => found.learned = true,
            Some(value) => match value.as_f64().map(|s| s as f32).filter(|s| s.is_finite() && *s != 0.0) {
                Some(scale) => found.scale = scale,
                None => bad("scaling", Kind::Format, "a finite number other than 0, or \"learned\"", value),
            },
        }
        found
    }

    /// Completes a part whose tensors were found, or says what the configuration has otherwise.
    pub(super) fn complete(&self, module: &str, part: &mut Part) -> Result<f32, Error> {
        let at = |e: Error| e.at(Place::Tensor(module.into()));
        if part.rank != self.size {
            let what = "bottleneck, as the configuration says";
            return Err(at(Error::expected(Kind::Mismatch, what, self.size, part.rank)));
        }
        if scale_learns(part) != self.learned {
            let text =
                |learned| if learned { "learned, adapter_scaling" } else { "fixed, no adapter_scaling" };
            let (expected, found) = (text(self.learned), text(scale_learns(part)));
            return Err(at(Error::expected(
                Kind::Mismatch,
                "scaling, as the configuration says",
                expected,
                found,
            )));
        }
        part.more[0] = self.activation as usize;
        Ok(self.scale)
    }
}

/// Finds what one configuration cannot say of these parts.
pub(super) fn check(parts: &[Option<Part>], wrong: &mut Findings) {
    one_activation(parts, wrong);
    let with: Vec<&Part> = parts.iter().flatten().filter(|p| p.rules().activated()).collect();
    let Some(first) = with.first() else { return };
    let mut same = |key: &str, one: &dyn Fn(&Part) -> String| {
        if let Some(other) = with.iter().find(|p| one(p) != one(first)) {
            let error = Error::expected(Kind::Unsupported, "all of one", one(first), one(other));
            wrong.push(error.at(Place::Key(key.into())));
        }
    };
    same("bottleneck_size", &|p| p.rank.to_string());
    same("scaling", &scaling);
    if scale_learns(first) && first.scale != 1.0 {
        let text = "a learned scale that is multiplied with another";
        wrong.push(Error::new(Kind::Unsupported, text).at(Place::Key("scaling".into())));
    }
}

fn scaling(part: &Part) -> String {
    if scale_learns(part) { "learned".into() } else { part.scale.to_string() }
}

/// A configuration of parts that [`check`] found nothing with.
pub(super) fn make(method: &str, first: &Part, targets: Vec<String>, base_name: Option<&str>) -> Value {
    let scaling: Value = match scale_learns(first) {
        true => "learned".into(),
        // the shortest decimal that is this number in f32
        false => first.scale.to_string().parse::<f64>().unwrap_or(f64::from(first.scale)).into(),
    };
    json!({
        "peft_type": "BOTTLENECK",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": true,
        "bottleneck_size": first.rank,
        "non_linearity": activation(first).name(),
        "adapter_dropout": 0.0,
        "scaling": scaling,
        "use_parallel_adapter": method == "parallel",
        "use_adapterp": method == "series" && targets == ["down_proj"],
        "target_modules": targets,
        "bias": "none",
        "init_weights": "bert",
        "modules_to_save": null,
    })
}
