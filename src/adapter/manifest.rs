//! Where a layer comes from: written into its file, read back, and held against the base it is put on.
//!
//! Keys in a GGUF adapter; a PEFT directory keeps the same as texts in the `__metadata__` of its tensors:
//!
//! ```text
//! onlay.format u32        1                          onlay.data       SHA-256 of the data set
//! onlay.method            see METHODS                 onlay.recipe     JSON: how it was trained
//! onlay.base.exact        identity of the base,      onlay.seed u64   onlay.steps u64
//! onlay.base.shape          see Identity             onlay.metrics    JSON: what came out
//! onlay.base.name         for people                 onlay.parent     id of the layer it continued from
//! onlay.tokenizer         SHA-256, see below         onlay.created_by program and version
//! onlay.template          SHA-256 of the template
//! ```
//! Hashes are 64 hexadecimal digits. The tokenizer's is over all keys `tokenizer.*` without `tokenizer.chat_template*`,
//! in byte order, each as in [`Identity`]: key, type, value.

use super::methods::{METHODS, Method};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::gguf::{Encoded, Metadata};
use crate::model::Model;
use crate::tensor::Identity;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::cell::RefCell;

/// 32 bytes of SHA-256.
pub type Hash = [u8; 32];

/// The newest form of manifest this version reads and writes.
pub const FORMAT: u32 = 1;

/// What a layer's file says about it; every line may be missing in a file of another program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// The base it was trained on.
    pub base: Option<Identity>,
    /// That base's name, for people.
    pub base_name: Option<String>,
    /// The base's tokenizer.
    pub tokenizer: Option<Hash>,
    /// The base's chat template.
    pub template: Option<Hash>,
    /// The data set.
    pub data: Option<Hash>,
    /// How it was trained.
    pub recipe: Option<Value>,
    /// Where randomness began.
    pub seed: Option<u64>,
    /// Optimiser steps.
    pub steps: Option<u64>,
    /// What came out.
    pub metrics: Option<Value>,
    /// The layer it continued from.
    pub parent: Option<Hash>,
    /// Program and version that wrote it.
    pub created_by: Option<String>,
}

impl Manifest {
    /// The manifest of a new layer on this base: identity, name, tokenizer and template filled in.
    pub fn of(model: &Model) -> Manifest {
        let metadata = model.weights().metadata();
        let stem = || model.weights().path().file_stem().map(|s| s.to_string_lossy().into_owned());
        Manifest {
            base: Some(model.weights().identity()),
            base_name: metadata.text("general.name").ok().flatten().map(str::to_owned).or_else(stem),
            tokenizer: tokenizer_hash(metadata),
            template: template_hash(metadata),
            created_by: Some(concat!("onlay ", env!("CARGO_PKG_VERSION")).into()),
            ..Manifest::default()
        }
    }

    /// Its lines as texts, in the order of the table in the module; empty if there is nothing to say.
    pub(super) fn lines(&self, method: &Method) -> Vec<(&'static str, String)> {
        if *self == Manifest::default() {
            return vec![];
        }
        let hash = |h: &Option<Hash>| h.as_ref().map(Identity::hex);
        let json = |v: &Option<Value>| v.as_ref().map(Value::to_string);
        let lines = [
            ("onlay.format", Some(FORMAT.to_string())),
            ("onlay.method", Some(method.name.into())),
            ("onlay.base.exact", self.base.map(|b| Identity::hex(&b.exact))),
            ("onlay.base.shape", self.base.map(|b| Identity::hex(&b.shape))),
            ("onlay.base.name", self.base_name.clone()),
            ("onlay.tokenizer", hash(&self.tokenizer)),
            ("onlay.template", hash(&self.template)),
            ("onlay.data", hash(&self.data)),
            ("onlay.recipe", json(&self.recipe)),
            ("onlay.seed", self.seed.map(|n| n.to_string())),
            ("onlay.steps", self.steps.map(|n| n.to_string())),
            ("onlay.metrics", json(&self.metrics)),
            ("onlay.parent", hash(&self.parent)),
            ("onlay.created_by", self.created_by.clone()),
        ];
        lines.into_iter().filter_map(|(key, text)| Some((key, text?))).collect()
    }

    /// Reads lines back, each asked of `get`.
    ///
    /// # Errors
    /// Everything that is not what it should be: `Unsupported` for a newer form or another method.
    pub(super) fn read(get: impl Fn(&str) -> Result<Option<String>>) -> Result<Manifest> {
        let wrong = RefCell::new(Findings::default());
        let ask = |key: &str| wrong.borrow_mut().keep(get(key)).flatten();
        let refuse = |key: &str, kind: Kind, expected: &str, text: &str| {
            let shown: String = text.chars().take(80).collect();
            let error = Error::expected(kind, "value", expected, format!("{shown:?}"));
            wrong.borrow_mut().push(error.at(Place::Key(key.into())));
        };
        /// What `one` makes of the text, or a finding.
        macro_rules! line {
            ($key:expr, $expected:expr, $one:expr) => {
                ask($key).and_then(|text: String| {
                    let value = $one(&text);
                    if value.is_none() {
                        refuse($key, Kind::Format, $expected, &text);
                    }
                    value
                })
            };
        }
        let hash = |key| line!(key, "64 hexadecimal digits", |t: &str| from_hex(t));
        let number = |key| line!(key, "an integer from 0", |t: &str| t.parse::<u64>().ok());
        let json = |key| line!(key, "JSON", |t: &str| serde_json::from_str::<Value>(t).ok());
        if let Some(n) = number("onlay.format").filter(|n| *n > FORMAT.into()) {
            refuse("onlay.format", Kind::Unsupported, &format!("at most {FORMAT}"), &n.to_string());
        }
        if let Some(method) = ask("onlay.method").filter(|m| Method::named(m).is_err()) {
            let all: Vec<_> = METHODS.iter().map(|m| m.name).collect();
            refuse("onlay.method", Kind::Unsupported, &all.join(", "), &method);
        }
        let base = hash("onlay.base.exact").zip(hash("onlay.base.shape"));
        let manifest = Manifest {
            base: base.map(|(exact, shape)| Identity { exact, shape }),
            base_name: ask("onlay.base.name"),
            tokenizer: hash("onlay.tokenizer"),
            template: hash("onlay.template"),
            data: hash("onlay.data"),
            recipe: json("onlay.recipe"),
            seed: number("onlay.seed"),
            steps: number("onlay.steps"),
            metrics: json("onlay.metrics"),
            parent: hash("onlay.parent"),
            created_by: ask("onlay.created_by"),
        };
        wrong.into_inner().refuse("the adapter's manifest cannot be used").map(|()| manifest)
    }
}

/// What identifies a tokenizer; `None` for a file without one.
pub fn tokenizer_hash(metadata: Metadata<'_>) -> Option<Hash> {
    let counts = |key: &str| key.starts_with("tokenizer.") && !key.starts_with("tokenizer.chat_template");
    let mut keys: Vec<_> = metadata.iter().filter(|(key, _)| counts(key)).collect();
    keys.sort_unstable_by_key(|(key, _)| *key);
    let mut hash = Sha256::new();
    for (key, value) in &keys {
        let value = Encoded::from(*value);
        hash.update((key.len() as u64).to_le_bytes());
        hash.update(key.as_bytes());
        hash.update(value.kind().id().to_le_bytes());
        hash.update((value.bytes().len() as u64).to_le_bytes());
        hash.update(value.bytes());
    }
    (!keys.is_empty()).then(|| hash.finalize().into())
}

/// What identifies a chat template; `None` for a file without one.
pub fn template_hash(metadata: Metadata<'_>) -> Option<Hash> {
    let template = metadata.text("tokenizer.chat_template").ok().flatten()?;
    Some(Sha256::digest(template).into())
}

/// 64 hexadecimal digits as bytes.
pub(super) fn from_hex(text: &str) -> Option<Hash> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    if rest.is_empty() { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    pub fn full() -> Manifest {
        Manifest {
            base: Some(Identity { exact: [1; 32], shape: [0xab; 32] }),
            base_name: Some("base".into()),
            tokenizer: Some([2; 32]),
            template: None,
            data: Some([3; 32]),
            recipe: Some(serde_json::json!({"rate": 1e-4, "name": "é"})),
            seed: Some(u64::MAX),
            steps: Some(0),
            metrics: Some(serde_json::json!([1, 2])),
            parent: Some([4; 32]),
            created_by: Some("onlay 1".into()),
        }
    }

    fn read(lines: &[(&str, String)]) -> Result<Manifest> {
        let map: HashMap<&str, String> = lines.iter().cloned().collect();
        Manifest::read(|key| Ok(map.get(key).cloned()))
    }

    #[test]
    fn lines_are_read_back() {
        assert_eq!(read(&full().lines(&METHODS[0])).unwrap(), full());
        assert!(Manifest::default().lines(&METHODS[0]).is_empty());
        assert_eq!(read(&[]).unwrap(), Manifest::default());
    }

    #[test]
    fn what_is_wrong_is_listed() {
        let mut lines = full().lines(&METHODS[0]);
        for (key, text) in &mut lines {
            *text = match *key {
                "onlay.format" => "2".into(),
                "onlay.method" => "magic".into(),
                "onlay.base.exact" => "ff".into(),
                "onlay.seed" => "-1".into(),
                "onlay.recipe" => "{".into(),
                _ => continue,
            };
        }
        let error = read(&lines).unwrap_err();
        assert_eq!(error.findings().len(), 5, "{error}");
        assert!(
            error.to_string().contains("onlay.method: value: expected lora, dora, ia3, vera,"),
            "{error}"
        );
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(from_hex(&"0aF".repeat(22)[..64]).unwrap()[..3], [0x0a, 0xf0, 0xaf]);
        for text in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert!(from_hex(text).is_none());
        }
    }
}
