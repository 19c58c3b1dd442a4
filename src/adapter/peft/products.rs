//! Configurations of the methods that are products of factors: LoHa, LoKr, AdaLoRA.

use super::super::layer::Part;
use super::super::lokr::{self, Factoring};
use super::super::names::Names;
use super::super::open::Adapter;
use super::make::{modules, most_common, number};
use crate::error::{Error, Findings, Kind, Place, Result};
use serde_json::{Map, Value, json};

/// What a method's configuration calls the rank and α, and what α must be.
pub(super) fn keys(method: &str) -> (&'static str, &'static str, &'static str) {
    match method {
        "loha" | "lokr" => ("r", "alpha", "a finite number other than 0"),
        "adalora" => ("init_r", "lora_alpha", "a finite number above 0"),
        _ => ("r", "lora_alpha", "a finite number other than 0"),
    }
}

/// α, if it is one. In the place of one that is not above 0 AdaLoRA takes the rank, which nobody means.
pub(super) fn alpha(method: &str, value: &Value) -> Option<f64> {
    let fine = |n: &f64| n.is_finite() && *n != 0.0 && (method != "adalora" || *n > 0.0);
    value.as_f64().filter(fine)
}

/// The ranks that AdaLoRA's masks leave, by the module.
pub(super) fn kept(value: Option<&Value>, wrong: &mut Findings) -> Vec<(String, usize)> {
    let at = |name: &str| Place::Key(format!("rank_pattern: {}", name.chars().take(80).collect::<String>()));
    let empty = Map::new();
    let Some(all) = value.map_or(Some(&empty), Value::as_object) else {
        let error = Error::expected(Kind::Format, "value", "an object of names and masks", "something else");
        wrong.push(error.at(Place::Key("rank_pattern".into())));
        return vec![];
    };
    let one = |(name, mask): (&String, &Value)| {
        let mask: Option<Vec<bool>> =
            mask.as_array().and_then(|all| all.iter().map(Value::as_bool).collect());
        let path = name.strip_prefix("base_model.model.").unwrap_or(name);
        match (path.strip_suffix(".lora_E"), mask) {
            (Some(module), Some(mask)) => {
                Some((module.to_owned(), mask.iter().filter(|kept| **kept).count()))
            }
            _ => {
                let expected = "MODULE.lora_E and a list of true and false";
                wrong.push(Error::expected(Kind::Format, "mask", expected, "something else").at(at(name)));
                None
            }
        }
    };
    all.iter().filter_map(one).collect()
}

/// The scale of AdaLoRA, whose divisor stays that of the first rank: α/(r + 1e-5).
pub(super) fn triplet_scale(alpha: f64, rank: usize) -> f32 {
    (alpha / (rank as f64 + 1e-5)) as f32
}

/// α with `scale(α) = s` in every bit, a short one where there is one.
fn alpha_for(part: &Part, divisor: f64) -> f64 {
    let exact = f64::from(part.scale) * divisor;
    let short = (exact * 1e4).round() / 1e4;
    if (short / divisor) as f32 == part.scale { short } else { exact }
}

/// A place with a part, and its module.
type With = (usize, Part, String);

/// The configuration of an adapter, if its method is one of these.
///
/// # Errors
/// `Unsupported` for LoKr of shapes that no configuration of PEFT's leads to.
pub(super) fn make(names: &Names, adapter: &Adapter) -> Option<Result<Value>> {
    let parts = adapter.parts();
    let with: Vec<With> =
        names.places().filter_map(|i| Some((i, (*parts.get(i)?)?, names.module(i)?.to_owned()))).collect();
    let mut config = json!({
        "peft_type": adapter.method().peft,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.manifest().base_name,
        "inference_mode": true,
        "target_modules": modules(names, parts, &with),
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
    });
    let more = match adapter.method().name {
        "loha" => ranked(&with, |p| p.rank, &[("use_effective_conv2d", json!(false))]),
        "lokr" => match make_lokr(&with) {
            Ok(more) => more,
            Err(e) => return Some(Err(e)),
        },
        "adalora" => match triplets(&with) {
            Ok(more) => more,
            Err(e) => return Some(Err(e)),
        },
        _ => return None,
    };
    config.as_object_mut().expect("it is an object").extend(more);
    Some(Ok(config))
}

/// Ranks and αs, of most places and of the others.
fn ranked(with: &[With], rank_of: impl Fn(&Part) -> usize, more: &[(&str, Value)]) -> Map<String, Value> {
    let alpha_of = |p: &Part| alpha_for(p, rank_of(p) as f64);
    let rank = most_common(with.iter().map(|(_, p, _)| rank_of(p))).unwrap_or(1);
    let alpha = most_common(with.iter().map(|(_, p, _)| alpha_of(p).to_bits())).map_or(1.0, f64::from_bits);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (_, part, module) in with {
        if rank_of(part) != rank {
            ranks.insert(module.clone(), rank_of(part).into());
        }
        if alpha_of(part) != alpha {
            alphas.insert(module.clone(), number(alpha_of(part)));
        }
    }
    let all = [
        ("r", json!(rank)),
        ("alpha", number(alpha)),
        ("rank_pattern", ranks.into()),
        ("alpha_pattern", alphas.into()),
        ("rank_dropout", json!(0.0)),
        ("module_dropout", json!(0.0)),
        ("init_weights", json!(true)),
    ];
    all.into_iter().chain(more.iter().cloned()).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// One rank for all places, that of the largest, and masks of the others: which of them are true means nothing any more.
///
/// # Errors
/// `Unsupported` where scales differ, for which there is no pattern.
fn triplets(with: &[With]) -> Result<Map<String, Value>> {
    if let Some((_, p, module)) = with.iter().find(|(_, p, _)| p.scale != with[0].1.scale) {
        let expected = format!("that of all others, {}, which PEFT has one number for", with[0].1.scale);
        let error = Error::expected(Kind::Unsupported, "scale", expected, p.scale);
        return Err(error.at(Place::Tensor(module.clone())));
    }
    let rank = with.iter().map(|(_, p, _)| p.rank).max().unwrap_or(1);
    let alpha = with.first().map_or(1.0, |(_, p, _)| alpha_for(p, rank as f64 + 1e-5));
    let mask = |kept: usize| (0..rank).map(|j| j < kept).collect::<Vec<bool>>();
    let masks: Map<_, _> =
        with.iter().map(|(_, p, module)| (format!("{module}.lora_E"), mask(p.rank).into())).collect();
    let fewer = with.iter().any(|(_, p, _)| p.rank != rank);
    let all = [
        ("init_r", json!(rank)),
        ("target_r", json!(rank)),
        ("lora_alpha", number(alpha)),
        ("rank_pattern", if fewer { masks.into() } else { Value::Null }),
        ("lora_dropout", json!(0.0)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("init_lora_weights", json!(true)),
        // PEFT wants a run that it could have
        ("tinit", json!(0)),
        ("tfinal", json!(0)),
        ("deltaT", json!(1)),
        ("total_step", json!(1)),
    ];
    Ok(all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The settings by which PEFT cuts the factors as they are.
fn make_lokr(with: &[With]) -> Result<Map<String, Value>> {
    let low = most_common(with.iter().map(|(_, p, _)| p.rank).filter(|r| *r > 0));
    let mut factors: Vec<i64> =
        with.iter().flat_map(|(_, p, _)| [p.more[0] as i64, p.more[1] as i64]).collect();
    factors.sort_unstable();
    factors.dedup();
    for both in [false, true] {
        let least = |p: &Part| Factoring::of(p).least_rank_of_whole(both);
        let usual = low.unwrap_or_else(|| with.iter().map(|(_, p, _)| least(p)).max().unwrap_or(1));
        // a part that is whole says nothing of r
        let rank_of = |p: &Part| match p.rank {
            0 if usual >= least(p) => usual,
            0 => least(p),
            r => r,
        };
        for factor in std::iter::once(-1).chain(factors.iter().copied()) {
            let same = |p: &Part| lokr::cut(p.inputs, p.outputs, rank_of(p), factor, both) == p.more;
            if with.iter().all(|(_, p, _)| same(p)) {
                let more = [
                    ("use_effective_conv2d", json!(false)),
                    ("decompose_both", json!(both)),
                    ("decompose_factor", json!(factor)),
                    ("rank_dropout_scale", json!(false)),
                ];
                return Ok(ranked(with, rank_of, &more));
            }
        }
    }
    let text = "PEFT's settings (decompose_factor, decompose_both) lead to other factors than these";
    Err(Error::new(Kind::Unsupported, text))
}
