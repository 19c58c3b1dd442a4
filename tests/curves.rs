//! Twenty optimiser steps against PEFT's (see `tests/oracles/README.md`).

mod support;
use onlay::adapter::Adapter;
use onlay::ops::Site;
use onlay::ops::kv::Precision;
use onlay::train::{Example, Keep, Optimizer, Recipe, Shape, TrainOptions, Trainer};
use onlay_kernels::Level;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use support::*;

fn rows(path: &Path) -> Vec<Example> {
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| {
            let all = row[key].as_array()?;
            Some(all.iter().map(|n| n.as_i64().unwrap()).collect::<Vec<_>>())
        };
        let tokens: Vec<u32> = numbers("input_ids").unwrap().iter().map(|t| *t as u32).collect();
        let trained = match numbers("labels") {
            Some(labels) => labels.iter().map(|l| *l != -100).collect(),
            None => vec![true; tokens.len()],
        };
        Example { tokens, trained }
    };
    text.lines().map(row).collect()
}

/// Follows a stored curve; loss and norm within `bound`, the final adapter within `last` of its norm.
fn follow(model: &str, kind: &str, bound: f64, last: f64) {
    let curve = vectors().join(model).join("curve");
    let model = open(vectors().join(model).join(format!("{kind}.gguf")));
    let stored: Value =
        serde_json::from_slice(&std::fs::read(curve.join(format!("{kind}.json"))).unwrap()).unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let settings = &stored["settings"];
    let recipe = Recipe {
        rate: number(&settings["learning_rate"]),
        plus: settings.get("lora_plus_ratio").map_or(1.0, number),
        shape: Shape::Constant,
        warmup: 0,
        decay: number(&settings["weight_decay"]),
        max_norm: number(&settings["max_grad_norm"]),
        beta1: number(&settings["betas"][0]),
        beta2: number(&settings["betas"][1]),
        epsilon: number(&settings["epsilon"]),
    };
    let (adapter, _) = Adapter::open(curve.join("initial"), &model).unwrap();
    let mut layer = adapter.to_lora();
    layer.learn(256, 0.0, 0).unwrap();
    let layer = Arc::new(layer);
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: 2.into(),
        rows: 256,
        context: 128,
        sequences: 2,
        kv: Precision::F32,
        keep: Keep::Streams,
        optimizer: Optimizer::default(),
        device: onlay::backend::Device::Host,
    };
    let mut trainer = Trainer::new(Arc::clone(&model), Arc::clone(&layer), options).unwrap();
    let rows = rows(&curve.join("data.jsonl"));
    let per_step = 4;
    let (mut worst_loss, mut worst_norm) = (0f64, 0f64);
    for (i, step) in stored["steps"].as_array().unwrap().iter().enumerate() {
        let window: Vec<_> = (0..per_step).map(|j| rows[(i * per_step + j) % rows.len()].clone()).collect();
        let report = trainer.step(&window, &recipe, 20).unwrap();
        assert_eq!(report.tokens as f64, number(&step["tokens"]), "step {}", i + 1);
        assert_eq!(report.rate, number(&step["lr"]));
        let loss = (report.loss / number(&step["loss"]) - 1.0).abs();
        let norm = (report.grad_norm / number(&step["grad_norm"]) - 1.0).abs();
        assert!(loss < bound && norm < bound, "step {}: {report:?} against {step}", i + 1);
        (worst_loss, worst_norm) = (worst_loss.max(loss), worst_norm.max(norm));
    }
    let (loss, _) = trainer.evaluate(&rows).unwrap();
    let after = (loss / number(&stored["loss_after_all_rows"]) - 1.0).abs();
    assert!(after < bound, "loss after all rows: {loss}");

    let (want, _) = Adapter::open(curve.join(format!("final-{kind}")), &model).unwrap();
    let (mut off, mut all) = (0.0, 0.0);
    for i in 0..want.parts().len() {
        for (got, want) in layer.params().read(i).iter().zip(want.numbers(Site(i as u32)).iter()) {
            off += f64::from(got - want).powi(2);
            all += f64::from(*want).powi(2);
        }
    }
    let end = (off / all).sqrt();
    println!("{kind}: loss {worst_loss:.1e}, norm {worst_norm:.1e}, after {after:.1e}, adapter {end:.1e}");
    assert!(end < last, "final adapter off by {end:.1e}");
}

#[test]
fn llama() {
    follow("llama", "F32", 0.01, 1e-3);
}

#[test]
fn qwen2() {
    follow("qwen2", "F32", 0.01, 1e-3);
}

#[test]
fn qwen3_with_weight_decay() {
    follow("qwen3", "F32", 0.01, 1e-3);
}

#[test]
fn quantized_llama() {
    follow("llama-wide", "Q8_0", 0.03, 0.05);
    follow("llama-wide", "Q4_K", 0.03, 0.05);
}
