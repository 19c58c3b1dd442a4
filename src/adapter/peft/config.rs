//! `adapter_config.json`: what PEFT would do with the tensors.

use super::super::layer::{Effect, Part};
use super::super::methods::{METHODS, Method};
use super::super::names::Names;
use super::super::open::Adapter;
use super::super::pattern::Pattern;
use super::super::tokens::MOST;
use super::bottlenecks::{self, Bottlenecks};
use super::{products, prompts};
use crate::error::{Error, Findings, Kind, Place, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The longest configuration; a real one has some kilobytes.
const LONGEST: u64 = 16 << 20;

/// Fields that change nothing once an adapter is trained, or are read below.
static KNOWN: &[&str] = &[
    "alpha",
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "beta1",
    "beta2",
    "bias",
    "corda_config",
    "d_initial",
    "decompose_both",
    "decompose_factor",
    "deltaT",
    "encoder_dropout",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "feedforward_modules",
    "inference_mode",
    "init_ia3_weights",
    "init_lora_weights",
    "init_r",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "module_dropout",
    "modules_to_save",
    "orth_reg_weight",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "peft_type",
    "peft_version",
    "prefix_projection",
    "projection_prng_key",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "r",
    "rank_dropout",
    "rank_dropout_scale",
    "rank_pattern",
    "revision",
    "runtime_config",
    "save_projection",
    "target_modules",
    "target_r",
    "task_type",
    "tfinal",
    "tinit",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
    "token_indices",
    "total_step",
    "use_dora",
    "use_effective_conv2d",
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
    /// Ranks that AdaLoRA has left, by module.
    kept: Vec<(String, usize)>,
    targets: Targets,
    /// What is said of bottlenecks, if it is they.
    bottlenecks: Option<Bottlenecks>,
    /// The method, by our name.
    pub method: &'static str,
    /// How many virtual tokens it says there are.
    virtual_tokens: Option<u64>,
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
        other if let Some(m) = METHODS.iter().find(|m| m.peft == other) => m.name.into(),
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
                Some(found) => {
                    method = found.name;
                    if found.leads() {
                        prompts::check(method, &get, wrong);
                    }
                }
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
        let alpha = |v: &Value| products::alpha(method, v);
        let scaled = Method::named(method).is_ok_and(Method::scaled);
        let (rank_key, alpha_key, of_alpha) = products::keys(method);
        let mut need = |key: &str, expected: &str, good: bool| match get(key) {
            _ if good || !scaled => {}
            Some(found) => wrong.push(bad(key, Kind::Format, expected, found)),
            None => wrong.push(Error::new(Kind::Format, "missing").at(Place::Key(key.into()))),
        };
        let r = get(rank_key).and_then(rank);
        need(rank_key, "an integer above 0", r.is_some());
        let a = get(alpha_key).and_then(alpha);
        need(alpha_key, of_alpha, a.is_some());
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
            // the others' configurations may have the word, and their layers do not look at it
            stabilised: stabilised.unwrap_or(false) && matches!(method, "lora" | "dora"),
            ranks: match method {
                "adalora" => vec![],
                _ => patterns(get("rank_pattern"), "rank_pattern", rank, wrong),
            },
            kept: match method {
                "adalora" => products::kept(get("rank_pattern"), wrong),
                _ => vec![],
            },
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
            virtual_tokens: get("num_virtual_tokens").and_then(Value::as_u64),
            base_name: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        }
    }

    /// Holds the virtual tokens of parts against what it says.
    ///
    /// # Errors
    /// `Mismatch` if there are more or fewer: PEFT could not read them.
    pub(super) fn virtual_tokens(&self, parts: &[Option<Part>]) -> Result<()> {
        let here = parts.iter().flatten().map(|p| p.virtual_tokens()).find(|n| *n > 0);
        match (self.virtual_tokens, here) {
            (Some(said), Some(here)) if said != here as u64 => {
                let error = Error::expected(Kind::Mismatch, "virtual tokens of the tensors", said, here);
                Err(error.at(Place::Key("num_virtual_tokens".into())))
            }
            _ => Ok(()),
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
        let kept = self.kept.iter().find(|(name, _)| name == module).map(|(_, n)| *n);
        let rank = kept.unwrap_or(rank);
        // factors that are whole matrices have none
        if rank != found && found > 0 {
            let error = Error::expected(Kind::Mismatch, "rank, as the configuration says", rank, found);
            return Err(error.at(Place::Tensor(module.into())));
        }
        let scale = match self.method {
            "adalora" => products::triplet_scale(self.alpha, self.rank.unwrap_or(found)),
            _ => Part::scale_of(of(&self.alphas, module, self.alpha), rank.max(1), self.stabilised),
        };
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
        "lora" | "dora" | "vera" | "parallel" | "series" | "bias" => make_paired(names, parts, base_name),
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
    if let ("parallel" | "series", Some((_, first, _))) = (method, with.first()) {
        return bottlenecks::make(method, first, modules(names, parts, &with), base_name);
    }
    if method == "bias" {
        return json!({
            "peft_type": "BEFT",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "inference_mode": true,
            "target_modules": modules(names, parts, &with),
            "init_weights": true,
            "modules_to_save": null,
        });
    }
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
pub(super) fn modules(names: &Names, parts: &[Option<Part>], with: &[(usize, Part, String)]) -> Vec<String> {
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

pub(super) fn number(v: f64) -> Value {
    if v.fract() == 0.0 && v.abs() < 1e9 { (v as i64).into() } else { v.into() }
}

pub(super) fn most_common<T: Ord + Copy>(all: impl Iterator<Item = T>) -> Option<T> {
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
            r#"{"peft_type": "OFT", "r": 0, "lora_alpha": "x", "use_dora": true, "fan_in_fan_out": true,
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
