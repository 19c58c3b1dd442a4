//! `adapter_config.json` for a layer of ours: what PEFT must be told of the tensors beside it.

use super::super::layer::{Effect, Part};
use super::super::methods::Method;
use super::super::names::Names;
use super::super::open::Adapter;
use super::bottlenecks;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

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
