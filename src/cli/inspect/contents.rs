//! What is known of a file, gathered before any of it is shown.

use super::brief;
use super::program::{self, Listing};
use crate::cli::show::{count, quoted_short};
use crate::cli::terminal::bytes;
use onlay::adapter::{Contents, Manifest};
use onlay::format::gguf::{Metadata, Value};
use onlay::model::Model;
use onlay::tensor::{Identity, Weights};
use onlay::text::Tokenizer;
use onlay::train::Checkpoint;
use onlay::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Arrays up to this length are given whole.
const WHOLE: usize = 16;

/// A tensor of the table.
pub struct Line {
    pub name: String,
    pub kind: String,
    /// Rows, then columns.
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// See the module.
#[derive(Default)]
pub struct Report {
    /// What is said first, one line each; not yet safe to show.
    pub heads: Vec<(&'static str, String)>,
    /// Titled lists of keys and texts; the texts are safe to show.
    pub lists: Vec<(&'static str, Vec<(String, String)>)>,
    pub tensors: Vec<Line>,
    pub program: Option<Listing>,
    /// What is wrong with a file that can be looked at all the same.
    pub warning: Option<String>,
    json: Map<String, Json>,
}

impl Report {
    /// Looks at a file; with `steps` at the steps of its program too.
    pub fn of(path: &Path, steps: bool) -> Result<Report> {
        let mut report = Report::default();
        report.head("file", path.to_string_lossy());
        if path.is_dir() {
            report.peft(path)?;
            return Ok(report);
        }
        let weights = Weights::open(path)?;
        let metadata = weights.metadata();
        let kind = match metadata.text("general.type")? {
            Some("onlay.checkpoint") => "checkpoint",
            None | Some("model") if weights.is_empty() => "vocabulary",
            None => "model",
            Some(other) => other,
        };
        report.head("kind", kind);
        report.sizes(&weights);
        match kind {
            "model" => report.model(&weights, path, steps),
            "adapter" => report.adapter(path),
            "checkpoint" => report.checkpoint(path)?,
            _ => {}
        }
        if kind == "model" || kind == "vocabulary" {
            report.vocabulary(metadata);
        }
        report.metadata(metadata);
        let tensors = weights.tensors().map(|t| Line {
            name: t.name().into(),
            kind: t.kind().name().into(),
            shape: t.dims().iter().rev().copied().collect(),
            bytes: t.bytes().len() as u64,
        });
        report.tensors = tensors.collect();
        Ok(report)
    }

    /// The report as one object.
    pub fn json(self) -> Json {
        let Report { tensors, program, warning, mut json, .. } = self;
        let each = tensors
            .iter()
            .map(|t| json!({"name": t.name, "type": t.kind, "shape": t.shape, "bytes": t.bytes}));
        json.insert("tensors".into(), each.collect());
        if let Some(listing) = program {
            let (program, sites) = listing.json();
            json.insert("program".into(), program);
            json.insert("sites".into(), sites);
        }
        if let Some(warning) = warning {
            json.insert("warning".into(), warning.into());
        }
        json.into()
    }

    /// For every type: tensors, weights and bytes, the type with the most bytes first.
    pub fn kinds(&self) -> Vec<(String, u64, u64, u64)> {
        let mut all: Vec<(String, u64, u64, u64)> = Vec::new();
        for t in &self.tensors {
            let i = all.iter().position(|k| k.0 == t.kind).unwrap_or_else(|| {
                all.push((t.kind.clone(), 0, 0, 0));
                all.len() - 1
            });
            let kind = &mut all[i];
            let weights = t.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
            (kind.1, kind.2, kind.3) = (kind.1 + 1, kind.2 + weights, kind.3 + t.bytes);
        }
        all.sort_by_key(|k| std::cmp::Reverse(k.3));
        all
    }

    /// A line at the head, and the same under its name in JSON.
    fn head(&mut self, key: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.json.insert(key.into(), text.clone().into());
        self.heads.push((key, text));
    }

    fn sizes(&mut self, weights: &Weights) {
        let files: Vec<_> = weights.paths().map(|p| p.to_string_lossy().into_owned()).collect();
        let in_files = if files.len() == 1 { String::new() } else { format!(" in {} files", files.len()) };
        let (version, size) = (weights.directory().version(), weights.file_len());
        self.heads.push(("size", format!("{} mapped{in_files}, GGUF version {version}", bytes(size))));
        self.json.insert("bytes".into(), size.into());
        self.json.insert("files".into(), files.into());
        self.json.insert("version".into(), version.into());
        self.json.insert("alignment".into(), weights.directory().alignment().into());
    }

    fn model(&mut self, weights: &Weights, path: &Path, steps: bool) {
        let identity = weights.identity();
        let (exact, shape) = (Identity::hex(&identity.exact), Identity::hex(&identity.shape));
        self.json.insert("identity".into(), json!({"exact": exact, "shape": shape}));
        self.heads.push(("exact", exact));
        self.heads.push(("shape", shape));
        let elements: u64 = weights.tensors().map(|t| t.elements() as u64).sum();
        let data: u64 = weights.tensors().map(|t| t.bytes().len() as u64).sum();
        let bits = 8.0 * data as f64 / elements as f64;
        self.heads.push(("weights", format!("{}, {bits:.2} bits each", count(elements))));
        self.json.insert("weights".into(), elements.into());
        match Model::open(path) {
            Ok(model) => {
                let listing = program::listing(&model);
                self.heads.push(("program", listing.summary()));
                if steps {
                    self.program = Some(listing);
                } else {
                    self.lists.push(("sites", listing.kinds_of_sites()));
                }
            }
            // a file that cannot be run can still be looked at
            Err(e) => self.warning = Some(e.to_string()),
        }
    }

    fn vocabulary(&mut self, metadata: Metadata<'_>) {
        if metadata.get("tokenizer.ggml.model").is_none() {
            return;
        }
        match Tokenizer::from_metadata(metadata) {
            Ok(t) => {
                let template = metadata.get("tokenizer.chat_template").is_some();
                let with = if template { "with a chat template" } else { "without chat template" };
                self.heads.push(("vocabulary", format!("{} tokens, {with}", count(t.len() as u64))));
                self.json.insert("vocabulary".into(), t.len().into());
                self.json.insert("tokenizer".into(), Identity::hex(&t.hash()).into());
            }
            Err(e) => self.warning = self.warning.take().or(Some(e.to_string())),
        }
    }

    fn adapter(&mut self, path: &Path) {
        match Contents::read(path) {
            Ok(contents) => self.layer(&contents),
            Err(e) => self.warning = Some(e.to_string()),
        }
    }

    fn layer(&mut self, contents: &Contents) {
        let ranks: Vec<_> = contents.ranks.iter().map(usize::to_string).collect();
        let alpha = contents.alpha.map(|a| format!(", alpha {a}")).unwrap_or_default();
        self.head("name", &*contents.name);
        let ranked =
            if ranks.is_empty() { String::new() } else { format!(" of rank {}{alpha}", ranks.join(", ")) };
        self.json.insert("method".into(), contents.method.clone().into());
        self.heads.push(("layer", format!("{}{ranked}", contents.method)));
        self.json.insert("ranks".into(), contents.ranks.iter().copied().collect());
        self.json.insert("alpha".into(), contents.alpha.into());
        let Manifest { base, base_name, .. } = &contents.manifest;
        if let Some(name) = base_name {
            self.head("base", &**name);
        }
        if let Some(base) = base {
            self.head("base_exact", Identity::hex(&base.exact));
            self.head("base_shape", Identity::hex(&base.shape));
        }
    }

    fn peft(&mut self, path: &Path) -> Result<()> {
        let contents = Contents::read(path)?;
        self.head("kind", "adapter");
        self.heads.push(("size", format!("{}, PEFT directory", bytes(contents.bytes()))));
        self.json.insert("bytes".into(), contents.bytes().into());
        self.layer(&contents);
        let config = contents.config.unwrap_or_default();
        let lines = config.as_object().into_iter().flatten();
        let list = lines.filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), brief(v))).collect();
        self.lists.push(("configuration", list));
        self.json.insert("metadata".into(), config);
        let halves = contents.halves.into_iter();
        self.tensors =
            halves.map(|h| Line { name: h.name, kind: h.kind, shape: h.shape, bytes: h.bytes }).collect();
        Ok(())
    }

    fn checkpoint(&mut self, path: &Path) -> Result<()> {
        let all = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let checkpoint = match Checkpoint::read(all) {
            Ok(checkpoint) => checkpoint,
            Err(e) => {
                self.warning = Some(e.in_file(path).to_string());
                return Ok(());
            }
        };
        let p = checkpoint.progress();
        let place = format!("epoch {}, row {}", p.cursor.epoch, p.cursor.row);
        let losses =
            p.losses.map(|(first, last)| format!(", loss {first:.4} -> {last:.4}")).unwrap_or_default();
        self.heads.push(("progress", format!("{} steps, {place}{losses}", count(p.steps))));
        self.heads.push(("learned", format!("{} tokens of {} rows", count(p.trained), count(p.rows))));
        let evaluations =
            p.evaluations.iter().map(|e| json!({"step": e.step, "loss": e.loss, "tokens": e.tokens}));
        let terms: Map<_, _> =
            checkpoint.terms().iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        let list = terms.iter().map(|(k, v)| (k.clone(), brief(v))).collect();
        self.lists.push(("terms of the run", list));
        self.json.insert(
            "checkpoint".into(),
            json!({
                "steps": p.steps, "epoch": p.cursor.epoch, "row": p.cursor.row, "trained": p.trained, "rows": p.rows,
                "first_loss": p.losses.map(|l| l.0), "last_loss": p.losses.map(|l| l.1),
                "evaluations": evaluations.collect::<Vec<_>>(), "terms": terms,
            }),
        );
        Ok(())
    }

    fn metadata(&mut self, metadata: Metadata<'_>) {
        let list = metadata.iter().map(|(key, value)| (key.to_owned(), line(value))).collect();
        self.lists.push(("metadata", list));
        let object: Map<_, _> = metadata.iter().map(|(key, value)| (key.to_owned(), of(value))).collect();
        self.json.insert("metadata".into(), object.into());
    }
}

/// A value on one line.
fn line(value: Value<'_>) -> String {
    match value {
        Value::Text(text) => quoted_short(text.as_bytes(), 160),
        Value::Bytes(bytes) => quoted_short(bytes, 160),
        Value::Bool(b) => b.to_string(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Array(array) => {
            let first: Vec<_> = array.iter().take(8).map(line).collect();
            let more = if array.len() > first.len() { ", …" } else { "" };
            format!("{} of {}: {}{more}", count(array.len() as u64), array.kind().name(), first.join(", "))
        }
        other => other.integer().unwrap_or_default().to_string(),
    }
}

/// The same as JSON; what JSON has no word for is a string.
fn of(value: Value<'_>) -> Json {
    match value {
        Value::Text(text) => text.into(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into(),
        Value::Bool(b) => b.into(),
        Value::F32(x) => float(x.into()),
        Value::F64(x) => float(x),
        Value::U64(n) => n.into(),
        Value::Array(array) if array.len() <= WHOLE => array.iter().map(of).collect(),
        Value::Array(array) => json!({
            "array": array.kind().name(), "len": array.len(),
            "first": array.iter().take(8).map(of).collect::<Vec<_>>(),
        }),
        other => other.integer().and_then(|n| i64::try_from(n).ok()).into(),
    }
}

fn float(x: f64) -> Json {
    if x.is_finite() { x.into() } else { x.to_string().into() }
}
