//! `adapter_config.json` of what stands in front of a sequence. PEFT keeps only the rows: an encoder is gone once they are
//! saved, so the fields about it, and about starts, change nothing.

use super::super::open::Adapter;
use crate::error::{Error, Findings, Kind, Place};
use crate::model::program::Program;
use serde_json::{Value, json};

/// What cannot be.
pub(super) fn check<'v>(method: &str, get: &impl Fn(&str) -> Option<&'v Value>, wrong: &mut Findings) {
    let mut refuse = |key: &str, kind: Kind, expected: &str, found: String| {
        let found: String = found.chars().take(80).collect();
        wrong.push(Error::expected(kind, "value", expected, found).at(Place::Key(key.into())));
    };
    let tokens = get("num_virtual_tokens");
    if tokens.and_then(Value::as_u64).is_none_or(|n| n == 0) {
        let found = tokens.map_or("nothing".into(), Value::to_string);
        refuse("num_virtual_tokens", Kind::Format, "an integer above 0", found);
    }
    if let Some(n) = get("num_transformer_submodules").filter(|n| n.as_u64() != Some(1)) {
        let expected = "1: models of an encoder and a decoder are not supported";
        refuse("num_transformer_submodules", Kind::Unsupported, expected, n.to_string());
    }
    if method == "ptuning"
        && let Some(kind) = get("encoder_reparameterization_type").filter(|k| k.as_str() != Some("MLP"))
    {
        let expected = "\"MLP\"; the LSTM of P-tuning is not supported";
        refuse("encoder_reparameterization_type", Kind::Unsupported, expected, kind.to_string());
    }
}

/// A configuration for an adapter that is in front of a sequence; `None` for others.
pub(super) fn make(program: &Program, adapter: &Adapter) -> Option<Value> {
    let method = Some(adapter.method()).filter(|m| m.leads())?;
    let tokens = adapter.parts().iter().flatten().map(|p| p.virtual_tokens()).next()?;
    let attention = program.attention;
    let prefix = method.name == "prefix";
    // PEFT counts the heads of keys there, and their columns together
    let (heads, columns) = match prefix {
        true => (attention.key_heads, attention.key_heads * attention.head),
        false => (attention.heads, program.width),
    };
    let mut config = json!({
        "peft_type": method.peft,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.manifest().base_name,
        "inference_mode": true,
        "num_virtual_tokens": tokens,
        "num_transformer_submodules": 1,
        "num_layers": program.segments.len(),
        "num_attention_heads": heads,
        "token_dim": columns,
        "modules_to_save": null,
    });
    match method.name {
        "prefix" => {
            config["encoder_hidden_size"] = columns.into();
            config["prefix_projection"] = false.into();
        }
        "prompt" => config["prompt_tuning_init"] = "RANDOM".into(),
        _ => {
            config["encoder_reparameterization_type"] = "MLP".into();
            config["encoder_hidden_size"] = columns.into();
            config["encoder_num_layers"] = 2.into();
            config["encoder_dropout"] = 0.0.into();
        }
    }
    Some(config)
}
