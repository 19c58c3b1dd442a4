//! `adapter_config.json`: what PEFT would do with the tensors.

use super::super::layer::{Effect, Part};
use super::super::methods::{METHODS, Method};
use super::super::names::Names;
use super::super::open::Adapter;
use super::super::pattern::Pattern;
use super::super::tokens::MOST;
use super::bottlenecks::{self, Bottlenecks};
use crate::error::{Error, Findings, Kind, Place, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The longest configuration; a real one has some kilobytes.
const LONGEST: u64 = 16 << 20;

/// Fields that change nothing once an adapter is trained, or are read below.
static KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "d_initial",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "feedforward_modules",
    "inference_mode",
    "init_ia3_weights",
    "init_lora_weights",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "projection_prng_key",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "save_projection",
    "target_modules",
    "task_type",
    "token_indices",
    "use_dora",
    "use_rslora",
    "vera_dropout",
];

/// Starts of A and B that leave the base as it is; after the others (PiSSA, OLoRA, CorDA, LoRA-GA) the numbers count
/// from a changed base.
static STARTS: &[&str] = &["gaussian", "eva", "orthogonal", "loftq", "mica"];

/// What is known of an adapter from its configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// `None` where the field is wrong, and was said to be.
    rank: Option<usize>,
    alpha: f64,
    stabilised: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    targets: Targets,
    /// What is said of bottlenecks, if it is they.
    bottlenecks: Option<Bottlenecks>,
    /// The method, by our name.
    pub method: &'static str,
    /// The tokens that have embeddings of their own.
    pub tokens: Vec<f32>,
    /// The base's name.
    pub base_name: Option<String>,
}

/// Which modules PEFT would look for.
#[derive(Debug)]
enum Targets {
    /// Whatever has tensors.
    Any,
    /// Names that a module path ends in.
    List(Vec<String>),
    /// A pattern for the whole path.
    Like(Pattern),
}

/// A bounded read: a hostile configuration shall not fill the memory.
pub(super) fn load(path: &Path) -> Result<Value> {
    let found = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if !found.is_file() || found.len() > LONGEST {
        let expected = format!("a file of at most {LONGEST} bytes");
        return Err(Error::expected(Kind::Format, "configuration", expected, "another").in_file(path));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(Kind::Format, format!("is not JSON: {e}")).in_file(path))
}

/// The method that a configuration says, by our name if it has one.
pub(super) fn method(config: &Value) -> String {
    let said = config.get("peft_type").and_then(Value::as_str).unwrap_or("unknown");
    match said {
        "LORA" if !says_nothing(config.get("use_dora")) => "dora".into(),
        "BOTTLENECK" => bottleneck(config.as_object()).into(),
        "BEFT" => "bias".into(),
        other => other.chars().take(40).collect::<String>().to_lowercase(),
    }
}

/// Which method a configuration of bottlenecks means.
fn bottleneck(config: Option<&Map<String, Value>>) -> &'static str {
    if config.is_some_and(bottlenecks::beside) { "parallel" } else { "series" }
}

/// A field that is absent, or says no.
pub(super) fn says_nothing(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Array(a)) => a.is_empty(),
        Some(Value::Object(o)) => o.is_empty(),
        Some(_) => false,
    }
}

impl Config {
    /// Reads a configuration; what it asks for and this version does not do goes to `wrong`.
    pub(super) fn new(config: &Value, wrong: &mut Findings) -> Config {
        let empty = Map::new();
        let all = config.as_object().unwrap_or(&empty);
        let get = |key: &str| all.get(key).filter(|v| !v.is_null());
        let bad = |key: &str, kind: Kind, expected: &str, found: &Value| {
            let found: String = found.to_string().chars().take(80).collect();
            Error::expected(kind, "value", expected, found).at(Place::Key(key.into()))
        };
        if !config.is_object() {
            wrong.push(Error::expected(Kind::Format, "configuration", "a JSON object", "something else"));
        }
        let mut method = if says_nothing(get("use_dora")) { "lora" } else { "dora" };
        let known = |t: &str| METHODS.iter().find(|m| m.peft == t);
        match get("peft_type") {
            Some(Value::String(t)) if t == "LORA" => {}
            Some(Value::String(t)) if t == "BOTTLENECK" => method = bottleneck(Some(all)),
            Some(t) => match t.as_str().and_then(known) {
                Some(found) => method = found.name,
                None => {
                    let mut all: Vec<_> = METHODS.iter().map(|m| m.peft).collect();
                    all.dedup();
                    let expected = format!("one of {}; others are not supported", all.join(", "));
                    wrong.push(bad("peft_type", Kind::Unsupported, &expected, t))
                }
            },
            None => wrong.push(Error::new(Kind::Format, "missing").at(Place::Key("peft_type".into()))),
        }
        let bottlenecks = matches!(method, "parallel" | "series").then(|| Bottlenecks::read(all, wrong));
        let more = if bottlenecks.is_some() { bottlenecks::KNOWN } else { &[] };
        for (key, value) in all {
            let known = [KNOWN, more].iter().any(|all| all.contains(&key.as_str()));
            if !known && !says_nothing(Some(value)) {
                let text = "changes what the adapter computes, or is unknown: not supported yet";
                wrong
                    .push(Error::new(Kind::Unsupported, text).at(Place::Key(key.chars().take(80).collect())));
            }
        }
        if !says_nothing(get("fan_in_fan_out")) {
            let text = "transposed weights (Conv1D) do not occur in these families";
            wrong.push(Error::new(Kind::Unsupported, text).at(Place::Key("fan_in_fan_out".into())));
        }
        match get("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(s)) if STARTS.contains(&s.as_str()) => {}
            Some(other) => wrong.push(bad(
                "init_lora_weights",
                Kind::Unsupported,
                "a start that leaves the base as it is (save as a plain LoRA first)",
                other,
            )),
        }
        let rank = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let alpha = |v: &Value| v.as_f64().filter(|n| n.is_finite() && *n != 0.0);
        let mut need = |key: &str, expected: &str, good: bool| match get(key) {
            _ if good || !matches!(method, "lora" | "dora") => {}
            Some(found) => wrong.push(bad(key, Kind::Format, expected, found)),
            None => wrong.push(Error::new(Kind::Format, "missing").at(Place::Key(key.into()))),
        };
        let r = get("r").and_then(rank);
        need("r", "an integer above 0", r.is_some());
        let a = get("lora_alpha").and_then(alpha);
        need("lora_alpha", "a finite number other than 0", a.is_some());
        let stabilised = get("use_rslora").unwrap_or(&Value::Bool(false)).as_bool();
        need("use_rslora", "true or false", stabilised.is_some());
        let tokens = match get("token_indices") {
            _ if method != "tokens" => vec![],
            Some(Value::Array(all)) if all.iter().all(|t| t.as_u64().is_some_and(|t| t < MOST.into())) => {
                all.iter().filter_map(|t| t.as_u64().map(|t| t as f32)).collect()
            }
            other => {
                let found = other.unwrap_or(&Value::Null);
                wrong.push(bad("token_indices", Kind::Format, "a list of tokens", found));
                vec![]
            }
        };
        Config {
            tokens,
            rank: r,
            bottlenecks,
            method,
            alpha: a.unwrap_or(1.0),
            stabilised: stabilised.unwrap_or(false),
            ranks: patterns(get("rank_pattern"), "rank_pattern", rank, wrong),
            alphas: patterns(get("alpha_pattern"), "alpha_pattern", alpha, wrong),
            targets: match get("target_modules") {
                Some(Value::String(s)) if s != "all-linear" => {
                    Pattern::new(s).map_or(Targets::Any, Targets::Like)
                }
                Some(Value::Array(a)) => {
                    Targets::List(a.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect())
                }
                _ => Targets::Any,
            },
            base_name: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        }
    }

    /// Whether PEFT would put a layer on this module.
    pub(super) fn targets(&self, module: &str) -> bool {
        match &self.targets {
            Targets::Any => true,
            Targets::Like(pattern) => pattern.matches(module),
            Targets::List(list) => list.iter().any(|t| {
                module.strip_suffix(t.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }

    /// The scale of a module's part, of which the tensors were found; what else must be known of it is set.
    ///
    /// # Errors
    /// `Mismatch` if the configuration says something else than the tensors.
    pub(super) fn complete(&self, module: &str, part: &mut Part) -> Result<f32> {
        match &self.bottlenecks {
            Some(bottlenecks) if part.rules().activated() => bottlenecks.complete(module, part),
            _ => self.scale(module, part.rank),
        }
    }

    /// The scale of a module's layer, whose tensors have the rank `found`.
    ///
    /// # Errors
    /// `Mismatch` if the configuration says another rank.
    fn scale(&self, module: &str, found: usize) -> Result<f32> {
        fn of<T: Copy>(patterns: &[(Pattern, T)], module: &str, otherwise: T) -> T {
            patterns.iter().find(|(p, _)| p.matches(module)).map_or(otherwise, |(_, v)| *v)
        }
        let rank = of(&self.ranks, module, self.rank.unwrap_or(found));
        if rank != found {
            let error = Error::expected(Kind::Mismatch, "rank, as the configuration says", rank, found);
            return Err(error.at(Place::Tensor(module.into())));
        }
        let scale = Part::scale_of(of(&self.alphas, module, self.alpha), rank, self.stabilised);
        if !scale.is_finite() || scale == 0.0 {
            let error = Error::expected(Kind::Numeric, "scale", "a finite number other than 0", scale);
            return Err(error.at(Place::Tensor(module.into())));
        }
        Ok(scale)
    }
}

/// PEFT takes the first key that matches a path or the end of one, from a point on.
fn patterns<T>(
    value: Option<&Value>,
    key: &str,
    one: impl Fn(&Value) -> Option<T>,
    wrong: &mut Findings,
) -> Vec<(Pattern, T)> {
    let mut all = Vec::new();
    let empty = Map::new();
    let map = value.map_or(Some(&empty), Value::as_object);
    if map.is_none() {
        let error =
            Error::expected(Kind::Format, "value", "an object of names and numbers", "something else");
        wrong.push(error.at(Place::Key(key.into())));
    }
    for (name, value) in map.into_iter().flatten() {
        let shown: String = name.chars().take(80).collect();
        let mut bad = |kind, text: &str| {
            wrong.push(Error::new(kind, text).at(Place::Key(shown.clone())).at(Place::Key(key.into())));
        };
        match (Pattern::new(&format!(r"(.*\.)?({name})")), one(value)) {
            (Some(pattern), Some(value)) => all.push((pattern, value)),
            (None, _) => bad(Kind::Unsupported, "is a pattern that cannot be read here"),
            (_, None) => bad(Kind::Format, "expected a number above 0"),
        }
    }
    all
}

/// A configuration for an adapter.
pub(super) fn make(names: &Names, adapter: &Adapter) -> Value {
    let (parts, base_name) = (adapter.parts(), adapter.manifest().base_name.as_deref());
    let method = adapter.method();
    match method.name {
        "lora" | "dora" | "vera" => make_paired(names, parts, base_name),
        "ia3" => make_ia3(names, parts, base_name),
        "tokens" => {
            let mut config = make_plain(names, parts, base_name, method);
            let part = parts.iter().enumerate().find_map(|(i, p)| Some((i, (*p)?)));
            let tokens: Vec<u32> = part
                .map_or(vec![], |(i, p)| adapter.numbers(i)[..p.rank].iter().map(|t| *t as u32).collect());
            config["token_indices"] = tokens.into();
            config["target_modules"] = "model.embed_tokens".into();
            config
        }
        "parallel" | "series" => {
            let mut config = make_plain(names, parts, base_name, method);
            bottlenecks::add(&mut config, method.name, parts);
            config
        }
        _ => make_plain(names, parts, base_name, method),
    }
}

/// What every method has: its name there, and its modules.
fn make_plain(names: &Names, parts: &[Option<Part>], base_name: Option<&str>, method: &Method) -> Value {
    let with: Vec<_> =
        names.places().filter_map(|i| Some((i, (*parts.get(i)?)?, names.module(i)?.to_owned()))).collect();
    json!({
        "peft_type": method.peft,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": true,
        "target_modules": modules(names, parts, &with),
    })
}

/// A configuration of pairs.
fn make_paired(names: &Names, parts: &[Option<Part>], base_name: Option<&str>) -> Value {
    let method = Method::of(parts.iter().flatten()).name;
    let with: Vec<_> =
        names.places().filter_map(|i| Some((i, (*parts.get(i)?)?, names.module(i)?.to_owned()))).collect();
    let rank = most_common(with.iter().map(|(_, p, _)| p.rank)).unwrap_or(1);
    let alpha = most_common(with.iter().map(|(_, p, _)| alpha_of(p).to_bits())).map_or(1.0, f64::from_bits);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (_, part, module) in &with {
        if part.rank != rank {
            ranks.insert(module.clone(), part.rank.into());
        }
        if alpha_of(part) != alpha {
            alphas.insert(module.clone(), number(alpha_of(part)));
        }
    }
    if method == "vera" {
        return json!({
            "peft_type": "VERA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "inference_mode": true,
            "r": rank,
            "target_modules": modules(names, parts, &with),
            "projection_prng_key": 0,
            "save_projection": true,
            "vera_dropout": 0.0,
            "d_initial": 0.1,
            "fan_in_fan_out": false,
            "bias": "none",
            "init_weights": true,
            "modules_to_save": null,
            "layers_to_transform": null,
            "layers_pattern": null,
        });
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": number(alpha),
        "lora_dropout": 0.0,
        "target_modules": modules(names, parts, &with),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": false,
        "use_dora": method == "dora",
        "fan_in_fan_out": false,
        "bias": "none",
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
    })
}

/// A configuration of (IA)³; `feedforward_modules` are among the targets, by the same names.
fn make_ia3(names: &Names, parts: &[Option<Part>], base_name: Option<&str>) -> Value {
    let with = |parts: &[Option<Part>]| -> Vec<_> {
        let all = names.places().filter_map(|i| Some((i, (*parts.get(i)?)?, names.module(i)?.to_owned())));
        all.collect()
    };
    let only: Vec<_> = parts.iter().map(|p| p.filter(|p| p.effect == Effect::Inputs)).collect();
    let mut targets = modules(names, parts, &with(parts));
    let mut inputs = modules(names, &only, &with(&only));
    if !inputs.iter().all(|i| targets.contains(i)) {
        let paths = |parts: &[Option<Part>]| with(parts).into_iter().map(|(.., path)| path).collect();
        (targets, inputs) = (paths(parts), paths(&only));
    }
    json!({
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": true,
        "target_modules": targets,
        "feedforward_modules": inputs,
        "fan_in_fan_out": false,
        "init_ia3_weights": true,
        "modules_to_save": null,
    })
}

/// Short names where every layer has the product, whole paths where only some do.
fn modules(names: &Names, parts: &[Option<Part>], with: &[(usize, Part, String)]) -> Vec<String> {
    let everywhere = |last| {
        names
            .places()
            .filter(|i| names.last(*i) == Some(last))
            .all(|i| parts.get(i).is_some_and(Option::is_some))
    };
    let mut all: Vec<String> = Vec::new();
    for (place, _, module) in with {
        let name = match names.last(*place) {
            Some(last) if everywhere(last) => last.into(),
            _ => module.clone(),
        };
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// α with `α/r = s` in every bit, a short one where there is one.
fn alpha_of(part: &Part) -> f64 {
    let exact = f64::from(part.scale) * part.rank as f64;
    let short = (exact * 1e4).round() / 1e4;
    if Part::scale_of(short, part.rank, false) == part.scale { short } else { exact }
}

fn number(v: f64) -> Value {
    if v.fract() == 0.0 && v.abs() < 1e9 { (v as i64).into() } else { v.into() }
}

fn most_common<T: Ord + Copy>(all: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    all.for_each(|v| *counts.entry(v).or_insert(0) += 1);
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(v, _)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (Config, Vec<String>) {
        let mut wrong = Findings::default();
        let config = Config::new(&serde_json::from_str(text).unwrap(), &mut wrong);
        let error = wrong.refuse("configuration").err();
        let list = error.map_or(vec![], |e| match e.findings() {
            [] => vec![e.to_string()],
            all => all.iter().map(Error::to_string).collect(),
        });
        (config, list)
    }

    #[test]
    fn scales_as_peft_computes_them() {
        let (c, wrong) = config(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true, "use_dora": false, "new": null,
                "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
                "alpha_pattern": {"k_proj": 3, "layers.0.self_attn.q_proj": 5, "^lm_head": 1}}"#,
        );
        assert!(wrong.is_empty(), "{wrong:?}");
        let root = |a: f64, r: f64| (a / r.sqrt()) as f32;
        for (module, rank, want) in [
            ("model.layers.0.self_attn.q_proj", 2, root(5.0, 2.0)),
            ("model.layers.1.self_attn.q_proj", 2, root(8.0, 2.0)),
            ("model.layers.10.self_attn.q_proj", 2, root(8.0, 2.0)),
            ("model.layers.1.self_attn.v_proj", 6, root(8.0, 6.0)),
            ("model.layers.1.self_attn.k_proj", 4, root(3.0, 4.0)),
            ("lm_head", 4, root(1.0, 4.0)),
        ] {
            assert_eq!(c.scale(module, rank).unwrap(), want, "{module}");
        }
        assert!(c.scale("lm_head", 5).is_err());
    }

    #[test]
    fn targets() {
        let q = "model.layers.1.self_attn.q_proj";
        for (targets, want) in [
            ("null", true),
            (r#""all-linear""#, true),
            (r#"["q_proj"]"#, true),
            (r#"["self_attn.q_proj", "x"]"#, true),
            (r#"["proj"]"#, false),
            (r#"[]"#, false),
            (r#"".*q_proj""#, true),
            (r#""q_proj""#, false),
            (r#""(?!x).*""#, true),
        ] {
            let (c, _) = config(&format!(r#"{{"target_modules": {targets}}}"#));
            assert_eq!(c.targets(q), want, "{targets}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let (_, wrong) = config(
            r#"{"peft_type": "LOHA", "r": 0, "lora_alpha": "x", "use_dora": true, "fan_in_fan_out": true,
                "init_lora_weights": "pissa_niter_4", "layer_replication": [[0, 2]], "trainable_token_indices": [1],
                "rank_pattern": {"(": 2, "q": -1}, "alpha_pattern": 3}"#,
        );
        for key in [
            "peft_type",
            "r:",
            "lora_alpha",
            "fan_in",
            "init_lora",
            "layer_repl",
            "trainable_token",
            "rank_pattern: (",
            "rank_pattern: q",
            "alpha_pattern",
        ] {
            assert!(wrong.iter().any(|w| w.starts_with(key)), "{key}: {wrong:?}");
        }
        assert_eq!(wrong.len(), 10, "{wrong:?}");
        assert!(!config("[]").1.is_empty());
    }

    #[test]
    fn alphas_give_their_scales_back() {
        for (scale, rank) in [(2.0, 4), (8.0f32 / 6.0, 6), (f32::MIN_POSITIVE, 3), (5.656_854, 2), (-1.5, 7)]
        {
            let part = Part::lora(rank, 1, 1, scale);
            assert_eq!(Part::scale_of(alpha_of(&part), rank, false), scale);
        }
        assert_eq!(alpha_of(&Part::lora(6, 1, 1, 8.0 / 6.0)), 8.0);
    }
}
