//! The other methods against PEFT (see `tests/oracles/README.md`): gradients, twenty steps, files there and back, what is
//! worn, folded in, and refused.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::adapter::{
    Activation, Adapter, Budget, Init, Layer, METHODS, Manifest, MergeOptions, Method, Names, New, Places,
    Scaling, Targets, Worn, combine, merge,
};
use onlay::error::Kind;
use onlay::model::Model;
use onlay::ops::kv::Precision;
use onlay::rng::Rng;
use onlay::train::{
    Event, Example, Flow, Keep, Optimizer, Outcome, Recipe, Run, RunOptions, TrainOptions, Trainer,
};
use onlay_kernels::Level;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-methods-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn trainer(model: &Arc<Model>, mut layer: Layer, threads: usize, keep: Keep) -> Trainer {
    layer.learn(256, 0.0, 0).unwrap();
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: threads.into(),
        rows: 256,
        context: 128,
        sequences: 2,
        kv: Precision::F32,
        keep,
        optimizer: Optimizer::default(),
        device: onlay::backend::Device::Host,
    };
    Trainer::new(Arc::clone(model), Arc::new(layer), options).unwrap()
}

fn take(path: impl AsRef<Path>, model: &Model) -> Adapter {
    Adapter::open(path, model).unwrap_or_else(|e| panic!("{e}")).0
}

fn worn(model: &Model, stack: &[(&Arc<Adapter>, f32)]) -> Worn {
    Worn::new(model, stack.iter().map(|(a, w)| (Arc::clone(a), *w)).collect()).unwrap()
}

fn bits(logits: &[Vec<f32>]) -> Vec<u32> {
    logits.iter().flatten().map(|v| v.to_bits()).collect()
}

/// ‖got − want‖ / ‖want‖
fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
    norm(&|i| f64::from(got[i]) - want[i]) / norm(&|i| want[i])
}

fn compare(model: &str, method: &str, keep: Keep) {
    let folder = vectors().join(model);
    let model = open(folder.join("F32.gguf"));
    let answers = Answers::open(folder.join(method).join("gradients.safetensors"));
    let adapter = Arc::new(take(folder.join(method), &model));
    let name = method.split('-').next().unwrap();
    // half of the matrices are whole matrices all the same
    assert_eq!(adapter.method().name, if name == "hft" { "full" } else { name });

    // what is served
    let on = worn(&model, &[(&adapter, 1.0)]);
    let mut runner = runner(&model, options(2));
    let mut forward = 0f64;
    let row = |i: usize| {
        let trained = answers.numbers(&format!("labels.{i}")).iter().map(|l| *l >= 0.0).collect();
        Example { tokens: answers.tokens(&format!("tokens.{i}")), trained }
    };
    for i in 0..2 {
        let got = logits(&mut runner, &row(i).tokens, on.delta());
        let want = answers.numbers(&format!("last.{i}"));
        let off = got.last().unwrap().iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
        forward = forward.max(off.fold(0.0, f64::max));
    }
    assert!(forward < 1e-4, "logits off by {forward:.1e}");

    // what is trained
    let mut layer = adapter.to_lora();
    if name == "adalora" {
        layer = layer.allocating(BUDGET).unwrap(); // its gradients are those of the loss and of orthogonality
    }
    let trainer = trainer(&model, layer, 2, keep);
    let (off, seen, worst) = backward(trainer, &[row(0), row(1)], &answers, &answers, "");
    let own = |n: &&String| n.starts_with("base_model.") || *n == "prompt_embeddings";
    let all = answers.names().iter().filter(own).count();
    assert_eq!(seen, all);
    println!(
        "{method} {keep:?}: logits {forward:.1e}, loss {off:.1e}, worst of {seen} gradients {worst:.1e}"
    );
}

/// One step against the loss, the tokens and the gradients of a reference: how far the loss is off, gradients seen, and the
/// worst of them.
fn backward(
    mut trainer: Trainer,
    rows: &[Example],
    answers: &Answers,
    gradients: &Answers,
    prefix: &str,
) -> (f64, usize, f64) {
    let model = Arc::clone(trainer.model());
    let report = trainer.step(rows, &STILL, 1).unwrap();
    let off = (report.loss - answers.numbers("loss")[0]).abs();
    assert!(off < 1e-5, "loss {} off by {off:.1e}", report.loss);
    assert_eq!(report.tokens as f64, answers.numbers("trained")[0]);
    let names = Names::of(model.program());
    let (mut seen, mut worst) = (0, 0f64);
    for place in 0..trainer.layer().parts().len() {
        let grads = trainer.layer().grads().read(place).clone();
        for (key, got) in trainer.layer().named(&names, place, &grads) {
            if key.ends_with(".token_indices") {
                continue; // which learn nothing
            }
            let error = relative(&got, &gradients.numbers(&format!("{prefix}{key}")));
            assert!(error < 1e-3, "{key}: {error:.1e}");
            (seen, worst) = (seen + 1, worst.max(error));
        }
    }
    let norm = (report.grad_norm / gradients.numbers("grad_norm")[0] - 1.0).abs();
    assert!(norm < 1e-3, "norm {} off by {norm:.1e}", report.grad_norm);
    (off, seen, worst)
}

/// That of the vectors.
const BUDGET: Budget = Budget {
    target: Some(3),
    tinit: Some(3),
    tfinal: Some(5),
    every: Some(2),
    beta1: 0.85,
    beta2: 0.85,
    orthogonality: 0.1,
};

macro_rules! cases { ($($test:ident $model:literal $method:literal;)*) => { $(
    #[test]
    fn $test() {
        compare($model, $method, Keep::Streams);
        compare($model, $method, Keep::Registers);
    }
)* } }
cases! {
    dora "llama" "dora";
    dora_with_biases_and_a_tied_head "llama-tied-bias" "dora";
    ia3 "llama" "ia3";
    vera "llama" "vera";
    vera_with_biases "llama-tied-bias" "vera";
    ia3_where_products_share_their_input "llama" "ia3-all";
    ia3_with_biases "llama-tied-bias" "ia3-all";
    whole_matrices "llama" "full";
    half_of_the_matrices "llama" "hft";
    norms "llama" "norms";
    norms_of_heads "qwen3" "norms";
    tokens "llama" "tokens";
    tokens_with_a_tied_head "llama-tied-bias" "tokens";
    prefix "llama" "prefix";
    prefix_with_wide_heads "qwen3" "prefix";
    prefix_of_an_encoder "llama" "prefix-projection";
    prompt "llama" "prompt";
    prompt_without_the_first_label "llama" "prompt-masked";
    prompt_of_an_encoder "llama" "ptuning";
    bottlenecks_beside "llama" "parallel";
    bottlenecks_beside_the_mlp "llama" "parallel-mlp";
    bottlenecks_with_a_learned_scale "llama" "parallel-learned";
    bottlenecks_in_series "llama" "series";
    bottlenecks_with_relu "llama" "series-relu";
    bottlenecks_behind "llama" "series-attn";
    bottlenecks_behind_the_mlp "llama" "series-pfeiffer";
    added_vectors "llama" "bias";
    added_vectors_beside_biases "llama-tied-bias" "bias";
    loha "llama" "loha";
    lokr "llama" "lokr";
    lokr_with_one_pair "llama" "lokr-low";
    lokr_with_two_pairs "llama" "lokr-both";
    adalora "llama" "adalora";
}

fn rows(path: &Path) -> Vec<Example> {
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| {
            let all = row[key].as_array()?;
            Some(all.iter().map(|n| n.as_i64().unwrap()).collect::<Vec<_>>())
        };
        let tokens: Vec<u32> = numbers("input_ids").unwrap().iter().map(|t| *t as u32).collect();
        let labels = numbers("labels");
        let trained = labels.map_or(vec![true; tokens.len()], |l| l.iter().map(|l| *l != -100).collect());
        Example { tokens, trained }
    };
    text.lines().map(row).collect()
}

/// Follows PEFT's twenty steps; every loss within `bound`.
fn follow(name: &str, kind: &str, method: &str, bound: f64) {
    let folder = vectors().join(name);
    let model = open(folder.join(format!("{kind}.gguf")));
    let curve = folder.join(format!("curve-{method}"));
    let stored: Value =
        serde_json::from_slice(&std::fs::read(curve.join(format!("{kind}.json"))).unwrap()).unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let settings = &stored["settings"];
    let recipe = Recipe {
        rate: number(&settings["learning_rate"]),
        plus: settings.get("lora_plus_ratio").map_or(1.0, number),
        max_norm: number(&settings["max_grad_norm"]),
        ..STILL
    };
    let initial = curve.join(format!("initial-{kind}"));
    let layer = if initial.join("encoder.safetensors").exists() {
        encoded(&model, method, &initial)
    } else if initial.exists() {
        let layer = take(initial, &model).to_lora();
        if method == "adalora" { layer.allocating(BUDGET).unwrap() } else { layer }
    } else if let Some(targets) = settings.get("target_modules") {
        let targets: Vec<_> = targets.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let targets = Some(Targets::parse(&targets.join(",")).unwrap());
        let new = New { targets, ..New::of(Method::named("full").unwrap()) };
        new.layer(&model, Level::chosen().unwrap(), 2).unwrap()
    } else {
        let rank = if name.contains("wide") { 2 } else { 4 };
        let new = New { rank, init: Init::named(method).unwrap(), ..New::of(&METHODS[0]) };
        new.layer(&model, Level::chosen().unwrap(), 2).unwrap()
    };
    let mut trainer = trainer(&model, layer, 2, Keep::Streams);
    let own = curve.join("data.jsonl");
    let mut rows = rows(&if own.exists() { own } else { folder.join("curve/data.jsonl") });
    if settings.get("first_labels").is_some() {
        rows.iter_mut().for_each(|row| row.trained[0] = false);
    }
    let (mut worst, mut worst_norm) = (0f64, 0f64);
    for (i, step) in stored["steps"].as_array().unwrap().iter().enumerate() {
        let window: Vec<_> = (0..4).map(|j| rows[(i * 4 + j) % rows.len()].clone()).collect();
        let report = trainer.step(&window, &recipe, 20).unwrap();
        let loss = (report.loss / number(&step["loss"]) - 1.0).abs();
        let norm = (report.grad_norm / number(&step["grad_norm"]) - 1.0).abs();
        assert!(loss < bound, "{name} {kind} {method}: step {}: {report:?} against {step}", i + 1);
        assert_eq!(report.tokens as f64, number(&step["tokens"]));
        (worst, worst_norm) = (worst.max(loss), worst_norm.max(norm));
        // how many triplets, not which: rounded activations may decide a close call
        if let Some(kept) = step.get("kept") {
            let layer = trainer.layer();
            let sites = (0..layer.parts().len()).filter_map(|place| layer.kept(place));
            let left: usize = sites.map(|site| site.iter().filter(|k| **k).count()).sum();
            assert_eq!(left as f64, number(kept), "{kind} {method}: step {}", i + 1);
        }
    }
    let (loss, _) = trainer.evaluate(&rows).unwrap();
    let after = (loss / number(&stored["loss_after_all_rows"]) - 1.0).abs();
    assert!(after < bound, "loss after all rows: {loss}");
    println!("{name} {kind} {method}: loss {worst:.1e}, norm {worst_norm:.1e}, after {after:.1e}");
}

#[test]
fn twenty_steps() {
    for method in ["dora", "ia3", "vera", "plus", "pissa", "olora", "full", "hft", "norms", "tokens"] {
        follow("llama", "F32", method, 0.01);
    }
    for method in ["loha", "lokr", "lokr-low", "lokr-both"] {
        follow("llama", "F32", method, 0.01);
    }
    follow("qwen3", "F32", "norms", 0.01);
    for method in [
        "parallel",
        "parallel-mlp",
        "parallel-learned",
        "series",
        "series-relu",
        "series-attn",
        "series-pfeiffer",
        "bias",
    ] {
        follow("llama", "F32", method, 0.01);
    }
    follow("llama-tied-bias", "F32", "bias", 0.01);
    follow("llama-tied-bias", "F32", "tokens", 0.01);
}

#[test]
fn twenty_steps_in_front_of_a_sequence() {
    for method in ["prefix", "prefix-projection", "prompt", "prompt-masked", "ptuning"] {
        follow("llama", "F32", method, 0.01);
    }
    follow("qwen3", "F32", "prefix", 0.01);
}

/// A layer that learns through PEFT's encoder.
fn encoded(model: &Arc<Model>, method: &str, folder: &Path) -> Layer {
    let method = Method::named(method.split('-').next().unwrap()).unwrap();
    let new = New { virtual_tokens: Some(3), encoder: Some(16), ..New::of(method) };
    let layer = new.layer(model, Level::chosen().unwrap(), 1).unwrap();
    let answers = Answers::open(folder.join("encoder.safetensors"));
    let (place, names) = (model.program().front_place(), Names::of(model.program()));
    let mut numbers = layer.params().get(place);
    // where the numbers lie, by numbers that say it
    let indices: Vec<f32> = (0..numbers.len()).map(|i| i as f32).collect();
    let mut seen = 0;
    for (key, at) in layer.named(&names, place, &indices) {
        at.iter().zip(answers.numbers(&key)).for_each(|(at, v)| numbers[*at as usize] = v as f32);
        seen += at.len();
    }
    assert_eq!(seen, numbers.len());
    drop(numbers);
    layer
}

/// PEFT's own fields, and what a configuration says that PEFT could not read.
#[test]
fn configurations_of_virtual_tokens() {
    let scratch = Scratch::new("prompts");
    let level = Level::chosen().unwrap();
    let json = |folder: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    for (name, method) in
        [("llama", "prefix"), ("qwen3", "prefix"), ("llama", "prompt"), ("llama", "ptuning")]
    {
        let folder = vectors().join(name);
        let model = open(folder.join("F32.gguf"));
        let here = scratch.0.join(format!("{name}-{method}"));
        let adapter = take(folder.join(method), &model);
        adapter.write_peft(&here, &model, false).unwrap();
        let (ours, theirs) = (json(&here), json(&folder.join(method)));
        for (key, value) in ours.as_object().unwrap() {
            // a width of no consequence once the encoder is gone
            if key != "base_model_name_or_path" && !(method == "ptuning" && key == "encoder_hidden_size") {
                assert_eq!(*value, theirs[key], "{name} {method}: {key}");
            }
        }
        let tensors = |folder: &Path| Answers::open(folder.join("adapter_model.safetensors"));
        let numbers = |folder: &Path| tensors(folder).numbers("prompt_embeddings");
        assert_eq!(tensors(&here).names(), ["prompt_embeddings"]);
        assert_eq!(numbers(&here), numbers(&folder.join(method)));
        if name != "llama" {
            continue;
        }
        let refused = |key: &str, value: Value, kind: Kind, text: &str| {
            let mut wrong = ours.clone();
            wrong[key] = value;
            std::fs::write(here.join("adapter_config.json"), wrong.to_string()).unwrap();
            let error = Adapter::open(&here, &model).unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(text), "{key}: {error}");
        };
        refused(
            "num_virtual_tokens",
            4.into(),
            Kind::Mismatch,
            "virtual tokens of the tensors: expected 4, found 3",
        );
        refused(
            "num_virtual_tokens",
            0.into(),
            Kind::Format,
            "num_virtual_tokens: value: expected an integer above 0",
        );
        refused("num_transformer_submodules", 2.into(), Kind::Unsupported, "num_transformer_submodules");
        if method == "ptuning" {
            refused("encoder_reparameterization_type", "LSTM".into(), Kind::Unsupported, "LSTM of P-tuning");
        }
        let other = if method == "prefix" { "PROMPT_TUNING" } else { "PREFIX_TUNING" };
        refused("peft_type", other.into(), Kind::Mismatch, "expected");
        if method == "prefix" {
            refused("peft_type", "IA3".into(), Kind::Format, "matrices of the method: expected ia3");
        }
    }
    // one tensor under one name, without the root of the module tree
    let model = open(vectors().join("llama/F32.gguf"));
    for name in ["base_model.model.prompt_embeddings", "model.prompt_embeddings"] {
        let here = scratch.0.join("llama-prompt");
        let bytes: Vec<u8> = vec![0; 3 * 64 * 4];
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![3, 64], &bytes).unwrap();
        let file = safetensors::serialize([(name, view)], None).unwrap();
        std::fs::write(here.join("adapter_model.safetensors"), file).unwrap();
        std::fs::copy(vectors().join("llama/prompt/adapter_config.json"), here.join("adapter_config.json"))
            .unwrap();
        let error = Adapter::open(&here, &model).unwrap_err();
        assert!(matches!(error.kind(), Kind::Format | Kind::Mismatch), "{error}");
    }
    // numbers that are asked for
    let of = |method: &str| New::of(Method::named(method).unwrap());
    for new in [
        New { virtual_tokens: Some(0), ..of("prefix") },
        New { virtual_tokens: Some(usize::MAX), ..of("prompt") },
        New { virtual_tokens: Some(2), ..of("lora") },
        New { encoder: Some(2), ..of("prompt") },
        New { encoder: Some(usize::MAX), ..of("prefix") },
        New { targets: Some(Targets::parse("q").unwrap()), ..of("ptuning") },
    ] {
        assert_eq!(new.layer(&model, level, 1).unwrap_err().kind(), Kind::Argument, "{new:?}");
    }
}

#[test]
fn encoders() {
    let folder = vectors().join("llama");
    let model = open(folder.join("F32.gguf"));
    let level = Level::chosen().unwrap();
    for method in ["prefix-projection", "ptuning"] {
        let here = folder.join(method);
        let answers = Answers::open(here.join("gradients.safetensors"));
        let layer = encoded(&model, method, &here);
        layer.settle(&model, level, &mut |n, f| (0..n).for_each(f));
        // what is published is what PEFT saved
        let published = Adapter::new("x", layer.copy(), Manifest::of(&model), model.program()).unwrap();
        let saved = take(&here, &model);
        let place = model.program().front_place();
        assert_eq!(published.parts(), saved.parts());
        let want: Vec<f64> = saved.numbers(place).iter().map(|v| f64::from(*v)).collect();
        let off = relative(&published.numbers(place), &want);
        assert!(off < 1e-6, "{method}: published numbers off by {off:.1e}");
        assert!(layer.len() != published.to_lora().len() && layer.method().name == published.method().name);
        let row = |i: usize| {
            let trained = answers.numbers(&format!("labels.{i}")).iter().map(|l| *l >= 0.0).collect();
            Example { tokens: answers.tokens(&format!("tokens.{i}")), trained }
        };
        let gradients = Answers::open(here.join("encoder.safetensors"));
        let all = gradients.names().iter().filter(|n| n.starts_with("gradient.")).count();
        for (keep, rows) in [(Keep::Streams, 256), (Keep::Registers, 256), (Keep::Streams, 50)] {
            // with few rows the window is two passes
            let mut layer = layer.copy();
            layer.learn(rows, 0.0, 0).unwrap();
            let options = TrainOptions {
                level,
                threads: 2.into(),
                rows,
                context: 128.min(rows),
                sequences: 2,
                kv: Precision::F32,
                keep,
                optimizer: Optimizer::default(),
                device: onlay::backend::Device::Host,
            };
            let trainer = Trainer::new(Arc::clone(&model), Arc::new(layer), options).unwrap();
            let (off, seen, worst) = backward(trainer, &[row(0), row(1)], &answers, &gradients, "gradient.");
            assert_eq!(seen, all);
            println!("{method} {keep:?} {rows}: loss {off:.1e}, worst of {seen} gradients {worst:.1e}");
        }
    }
}

#[test]
fn twenty_steps_on_quantized_bases() {
    for kind in ["Q8_0", "Q4_K"] {
        for method in ["dora", "ia3", "vera", "pissa", "olora", "full", "hft", "norms", "bias", "tokens"] {
            follow("llama-wide", kind, method, 0.03);
        }
        for method in ["series", "parallel", "loha", "lokr", "adalora"] {
            follow("llama-wide", kind, method, 0.03);
        }
        for method in ["prefix", "prefix-projection", "prompt", "ptuning"] {
            follow("llama-wide", kind, method, 0.03);
        }
    }
}

/// A layer of a method with random numbers near its start.
fn random(model: &Arc<Model>, method: &str, targets: &str, seed: u64) -> Arc<Adapter> {
    let method = Method::named(method).unwrap();
    let tokens = if method.name == "tokens" { vec![7, 3, 90] } else { vec![] };
    let new = New {
        rank: 3,
        targets: Some(Targets::parse(targets).unwrap()),
        tokens,
        scaling: (method.name == "parallel").then_some(Scaling::Learned),
        activation: (method.name == "series").then_some(Activation::Gelu),
        ..New::of(method)
    };
    let layer = new.layer(model, Level::chosen().unwrap(), 1).unwrap();
    let mut rng = Rng::new(seed);
    for i in 0..layer.parts().len() {
        let deviation = if method.scaled() { 0.05 } else { 0.2 }; // of vera, on λ alone
        let Some(part) = layer.parts()[i] else { continue };
        for (at, _) in part.learned() {
            layer.params().get(i)[at].iter_mut().for_each(|v| *v += deviation * rng.normal());
        }
    }
    layer.settle(model, Level::chosen().unwrap(), &mut |n, f| (0..n).for_each(f));
    Arc::new(Adapter::new("random", layer, Manifest::of(model), model.program()).unwrap())
}

#[test]
fn files_there_and_back_in_both_forms() {
    let scratch = Scratch::new("files");
    let model = open(vectors().join("llama/F32.gguf"));
    for (method, targets) in [
        ("dora", "q,v,down,head"),
        ("dora", "all"),
        ("ia3", "k,v,down"),
        ("ia3", "all"),
        ("ia3", "blk.1.mlp"),
        ("vera", "q,down"),
        ("vera", "all,head"),
        ("full", "q,down"),
        ("norms", "norms"),
        ("norms", "blk.1.attn_norm,output_norm"),
        ("tokens", "tokens"),
        ("prefix", "front"),
        ("prompt", "front"),
        ("ptuning", "front"),
        ("parallel", "all"),
        ("parallel", "q,down"),
        ("series", "all"),
        ("series", "o,gate"),
        ("bias", "all,head"),
        ("loha", "all,head"),
        ("loha", "q,down"),
        ("lokr", "all,head"),
        ("lokr", "q,blk.1.down"),
        ("adalora", "all,head"),
    ] {
        let adapter = random(&model, method, targets, 5);
        let file = scratch.0.join("layer.gguf");
        let folder = scratch.0.join("layer");
        adapter.write_gguf(&file, &model, true).unwrap();
        let _ = std::fs::remove_dir_all(&folder);
        adapter.write_peft(&folder, &model, false).unwrap();
        for path in [&file, &folder] {
            let (again, warnings) = Adapter::open(path, &model).unwrap();
            assert_eq!((again.id(), again.method().name), (adapter.id(), method));
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        // llama.cpp looks at this key, and refuses what is not "lora"
        let bytes = std::fs::read(&file).unwrap();
        let directory = onlay::format::gguf::parse(&bytes).unwrap();
        assert_eq!(directory.metadata(&bytes).need_text("adapter.type").unwrap(), method);
        let config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(config["peft_type"], Method::named(method).unwrap().peft);
        assert_eq!(config.get("use_dora").and_then(Value::as_bool), (method == "dora").then_some(true));
    }
}

/// Loss, norm and, step by step, the triplets that are left, as PEFT's allocator leaves them; then the pruned file.
#[test]
fn ranks_shrink_as_pefts_do() {
    let scratch = Scratch::new("adalora");
    let (folder, curve) = (vectors().join("llama"), vectors().join("llama/curve-adalora"));
    let model = open(folder.join("F32.gguf"));
    let names = Names::of(model.program());
    let stored: Value = serde_json::from_slice(&std::fs::read(curve.join("F32.json")).unwrap()).unwrap();
    let number = |v: &Value| v.as_f64().unwrap();
    let settings = &stored["settings"];
    let recipe = Recipe {
        rate: number(&settings["learning_rate"]),
        max_norm: number(&settings["max_grad_norm"]),
        ..STILL
    };
    let layer = take(curve.join("initial-F32"), &model).to_lora().allocating(BUDGET).unwrap();
    let mut trainer = trainer(&model, layer, 2, Keep::Streams);
    let rows = rows(&folder.join("curve/data.jsonl"));
    let (mut worst, mut worst_norm, mut choices) = (0f64, 0f64, 0);
    for (i, step) in stored["steps"].as_array().unwrap().iter().enumerate() {
        let window: Vec<_> = (0..4).map(|j| rows[(i * 4 + j) % rows.len()].clone()).collect();
        let report = trainer.step(&window, &recipe, 20).unwrap();
        let loss = (report.loss / number(&step["loss"]) - 1.0).abs();
        let norm = (report.grad_norm / number(&step["grad_norm"]) - 1.0).abs();
        assert!(loss < 0.01 && norm < 0.01, "step {}: {report:?} against {step}", i + 1);
        (worst, worst_norm) = (worst.max(loss), worst_norm.max(norm));
        let layer = trainer.layer();
        let mut left = 0;
        for place in 0..layer.parts().len() {
            let Some(kept) = layer.kept(place) else { continue };
            let said: String = kept.iter().map(|k| if *k { '1' } else { '0' }).collect();
            left += kept.iter().filter(|k| **k).count();
            if let Some(pattern) = step["pattern"].as_object() {
                let key = format!("{}.lora_E", names.module(place).unwrap());
                assert_eq!(pattern[&key], said, "step {}: {key}", i + 1);
                choices += 1;
            }
        }
        assert_eq!(left as f64, number(&step["kept"]), "step {}", i + 1);
    }
    assert_eq!(choices, 17 * 8);
    let (loss, _) = trainer.evaluate(&rows).unwrap();
    let after = (loss / number(&stored["loss_after_all_rows"]) - 1.0).abs();
    assert!(after < 0.01, "loss after all rows: {loss}");
    println!("adalora: loss {worst:.1e}, norm {worst_norm:.1e}, after {after:.1e}");

    // published, it is what PEFT has pruned, and computes what it computed
    let layer = trainer.layer().copy();
    let ours = Arc::new(Adapter::new("x", layer, Manifest::of(&model), model.program()).unwrap());
    let theirs = take(curve.join("final-F32"), &model);
    let (mut off, mut all) = (0.0, 0.0);
    for (i, (a, b)) in ours.parts().iter().zip(theirs.parts()).enumerate() {
        assert_eq!(a, b, "place {i}");
        for (a, b) in ours.numbers(i).iter().zip(theirs.numbers(i).iter()) {
            off += f64::from(a - b).powi(2);
            all += f64::from(*b).powi(2);
        }
    }
    assert!((off / all).sqrt() < 1e-3, "the final adapter is off by {:.1e}", (off / all).sqrt());
    let mut again = self::trainer(&model, ours.to_lora(), 1, Keep::Streams);
    let (pruned, _) = again.evaluate(&rows).unwrap();
    assert!((pruned - loss).abs() < 1e-6, "{pruned} {loss}");
    for path in [scratch.0.join("x.gguf"), scratch.0.join("x")] {
        match path.extension() {
            Some(_) => drop(ours.write_gguf(&path, &model, false).unwrap()),
            None => ours.write_peft(&path, &model, false).unwrap(),
        }
        assert_eq!(take(&path, &model).id(), ours.id());
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(scratch.0.join("x/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["init_r"], &config["lora_alpha"]), (&Value::from(6), &Value::from(8)));
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), 6); // of eight
}

/// PEFT would cut the factors of what is written as it cut those of its own file.
#[test]
fn products_of_factors_are_configured_as_peft_had_them() {
    let scratch = Scratch::new("factors");
    let model = open(vectors().join("llama/F32.gguf"));
    for method in ["loha", "lokr", "lokr-low", "lokr-both"] {
        let (from, to) = (vectors().join("llama").join(method), scratch.0.join(method));
        let adapter = take(&from, &model);
        adapter.write_peft(&to, &model, false).unwrap();
        assert_eq!(take(&to, &model).id(), adapter.id(), "{method}");
        let config = |at: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(at.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (was, is) = (config(&from), config(&to));
        // a rank that only says "whole" may be another
        let same = if method == "lokr" { &["use_effective_conv2d"][..] } else { &["r", "alpha"] };
        let cut = ["decompose_both"];
        for key in same.iter().chain(cut.iter().filter(|_| method.starts_with("lokr"))) {
            assert_eq!(is[*key], was[*key], "{method}: {key}");
        }
        if method == "lokr-low" {
            assert_eq!(is["decompose_factor"], 4);
        }
        if method == "loha" {
            assert_eq!(is["rank_pattern"].as_object().unwrap().len(), 2); // down, in two blocks
            assert_eq!(is["alpha_pattern"].as_object().unwrap().len(), 2); // k
        }
    }
}

/// Methods whose layers begin as the base.
const METHODS_HERE: &[&str] = &[
    "dora", "ia3", "vera", "full", "norms", "tokens", "prefix", "prompt", "ptuning", "loha", "lokr",
    "adalora", "parallel", "series", "bias",
];

#[test]
fn off_is_the_base_and_trained_is_served() {
    for (file, methods) in [("llama/F32", METHODS_HERE), ("llama-wide/Q4_K", METHODS_HERE)] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let tokens: Vec<u32> = (0..60).map(|i| (i * 7 + 3) % 100).collect();
        let mut example = Example { tokens: tokens.clone(), trained: vec![true; 60] };
        example.trained[0] = false; // virtual tokens would predict it
        let mut one = runner(&model, options(1));
        let base = bits(&logits(&mut one, &tokens, None));
        for method in methods {
            // at the start nothing is changed but DoRA's rounding of m/‖·‖; bottlenecks have such a start too
            let of = New::of(Method::named(method).unwrap());
            let learned = if *method == "tokens" { vec![7, 3] } else { vec![] };
            let fresh = New { tokens: learned, init: Init::Zero, ..of }
                .layer(&model, Level::chosen().unwrap(), 1)
                .unwrap();
            fresh.settle(&model, Level::chosen().unwrap(), &mut |n, f| (0..n).for_each(f));
            let fresh = Adapter::new("x", fresh, Manifest::default(), model.program()).unwrap();
            let fresh = worn(&model, &[(&Arc::new(fresh), 1.0)]);
            let start = logits(&mut one, &tokens, fresh.delta());
            let leads = Method::named(method).unwrap().leads(); // which begin with random numbers
            // (a matrix in f32 takes unrounded inputs, which a quantized one does not)
            if !leads && (*method != "full" || file.ends_with("F32")) {
                assert_eq!(bits(&start), base, "{method}: the start");
            }

            let targets = match *method {
                "ia3" => "k,v,gate,down",
                "norms" | "tokens" => method,
                _ if leads => "front",
                _ => "all,head",
            };
            let adapter = random(&model, method, targets, 9);
            let on = worn(&model, &[(&adapter, 1.0)]);
            let with = bits(&logits(&mut one, &tokens, on.delta()));
            assert_ne!(with, base);
            assert_eq!(bits(&logits(&mut one, &tokens, None)), base);
            let mut three = runner(&model, options(3));
            assert_eq!(bits(&logits(&mut three, &tokens, on.delta())), with, "threads");
            // token by token
            let mut sequence = one.sequence();
            let mut all = Vec::new();
            for t in &tokens {
                let wanted = onlay::model::Wanted::All;
                one.feed(&mut sequence, &[*t], on.delta(), wanted, &mut |_, z| all.push(z.to_vec())).unwrap();
            }
            one.forget(&mut sequence);
            assert_eq!(bits(&all), with, "{file} {method}: token by token");
            // the trainer's loss is that of the served logits, and its own layer served gives its bits
            let one_step = |threads| {
                let mut t = trainer(&model, adapter.to_lora(), threads, Keep::Streams);
                let recipe = Recipe { rate: 1e-3, ..STILL };
                let loss = t.evaluate(std::slice::from_ref(&example)).unwrap().0;
                t.step(std::slice::from_ref(&example), &recipe, 1).unwrap();
                let layer = t.layer().copy();
                let trained = Adapter::new("t", layer, Manifest::default(), model.program()).unwrap();
                (loss, Arc::new(trained))
            };
            let (loss, trained) = one_step(1);
            let mean: f64 =
                -log_probabilities(&logits(&mut one, &tokens, on.delta()), &tokens).iter().sum::<f64>()
                    / 59.0;
            assert!((loss - mean).abs() < 1e-6, "{method}: {loss} {mean}");
            let (_, again) = one_step(2);
            assert_eq!(trained.id(), again.id(), "{file} {method}: threads change no bit");
            // written and opened, it computes what it computed in the trainer's hands
            let scratch = Scratch::new("served");
            trained.write_gguf(scratch.0.join("t.gguf"), &model, false).unwrap();
            let opened = Arc::new(take(scratch.0.join("t.gguf"), &model));
            let (a, b) = (worn(&model, &[(&trained, 1.0)]), worn(&model, &[(&opened, 1.0)]));
            let (a, b) = (logits(&mut one, &tokens, a.delta()), logits(&mut one, &tokens, b.delta()));
            assert_eq!(bits(&a), bits(&b));
        }
    }
}

#[test]
fn stacks_and_merges() {
    let scratch = Scratch::new("merge");
    let model = open(vectors().join("llama/F32.gguf"));
    let tokens: Vec<u32> = (0..30).map(|i| (i * 7 + 3) % 100).collect();
    let of = |method, targets, seed| random(&model, method, targets, seed);
    let (dora, ia3, lora) = (of("dora", "all", 1), of("ia3", "k,v", 2), of("lora", "all", 3));
    let (loha, lokr, adalora) = (of("loha", "all", 7), of("lokr", "all", 8), of("adalora", "all", 9));
    let (down, inputs, vera) = (of("ia3", "down", 4), of("ia3", "down", 5), of("vera", "q,v,up", 6));
    for stack in [
        &[(&dora, 1.0)][..],
        &[(&dora, 0.5)],
        &[(&ia3, 1.0), (&down, 0.7)],
        &[(&dora, 0.5), (&ia3, 2.0), (&lora, 1.0), (&vera, -0.5)],
        &[(&vera, 1.0)],
        &[(&loha, 1.0)],
        &[(&lokr, 1.0)],
        &[(&adalora, 1.0)],
        &[(&adalora, 0.5), (&vera, 1.0)],
        &[(&lokr, -0.5), (&dora, 0.5), (&loha, 0.7), (&lora, 1.0)],
        &[(&down, 0.3), (&inputs, 1.0), (&lora, -0.5)],
    ] {
        let on = worn(&model, stack);
        let want = logits(&mut runner(&model, options(1)), &tokens, on.delta());
        let options_ =
            MergeOptions { kind: None, overwrite: true, threads: 2, level: Level::chosen().unwrap() };
        let path = scratch.0.join("merged.gguf");
        merge(&model, &on, &path, &options_, &mut |_, _| Ok(())).unwrap();
        let got = logits(&mut runner(&open(&path), options(1)), &tokens, None);
        let off = want.iter().flatten().zip(got.iter().flatten()).map(|(a, b)| (a - b).abs());
        let off = off.fold(0f32, f32::max);
        assert!(off < 1e-4, "{off}");
    }
    let both = Worn::new(&model, vec![(dora.clone(), 1.0), (down, 1.0)]).unwrap_err();
    assert_eq!(both.kind(), Kind::Unsupported);
    // what stands in front is one adapter's, whole, beside others; it is in no matrix
    let (prefix, prompt) = (of("prefix", "front", 7), of("prompt", "front", 8));
    for stack in [vec![(prefix.clone(), 1.0), (prompt.clone(), 1.0)], vec![(prompt, 0.5)]] {
        let error = Worn::new(&model, stack).unwrap_err();
        assert_eq!((error.kind(), error.findings().len()), (Kind::Unsupported, 0), "{error}");
        assert!(error.to_string().contains("front: only one adapter"), "{error}");
    }
    let on = worn(&model, &[(&dora, 0.5), (&prefix, 1.0)]);
    let level = Level::chosen().unwrap();
    let options = MergeOptions { kind: None, overwrite: true, threads: 1, level };
    let error = merge(&model, &on, &scratch.0.join("no.gguf"), &options, &mut |_, _| Ok(())).unwrap_err();
    assert!(
        error.kind() == Kind::Unsupported && error.to_string().contains("no part of a matrix"),
        "{error}"
    );
    assert!(prefix.to_lora().times(&model, level, 0.5).is_none());
}

#[test]
fn stacks_as_one_pair() {
    let model = open(vectors().join("llama/F32.gguf"));
    let tokens: Vec<u32> = (0..30).map(|i| (i * 7 + 3) % 100).collect();
    let of = |method, targets, seed| random(&model, method, targets, seed);
    let (lora, vera, ia3) = (of("lora", "all", 3), of("vera", "q,v,up", 6), of("ia3", "down", 4));
    let level = Level::chosen().unwrap();
    let on = worn(&model, &[(&lora, 0.5), (&vera, -1.5)]);
    let want = logits(&mut runner(&model, options(1)), &tokens, on.delta());
    let mut errors = Vec::new();
    for rank in [1, 3, 6] {
        let (layer, found) = combine(&model, &on, rank, 2, level, &mut |_, _| Ok(())).unwrap();
        let new = Arc::new(Adapter::new("one", layer, Manifest::default(), model.program()).unwrap());
        let one = worn(&model, &[(&new, 1.0)]);
        let got = logits(&mut runner(&model, options(1)), &tokens, one.delta());
        let off = want.iter().flatten().zip(got.iter().flatten()).map(|(a, b)| (a - b).abs());
        let lost: f64 = found.iter().map(|c| c.lost).sum();
        errors.push(((lost / found.iter().map(|c| c.squares).sum::<f64>()).sqrt(), off.fold(0f32, f32::max)));
    }
    // two of rank 3 are one of rank 6; less loses more, and says so
    assert!(errors[2].0 < 1e-6 && errors[2].1 < 1e-4, "{errors:?}");
    assert!(errors[0].0 > errors[1].0 && errors[1].0 > 0.01, "{errors:?}");
    assert!(errors[0].1 > 1e-3, "{errors:?}");
    // gains of a matrix are a change of full rank
    let gains = worn(&model, &[(&ia3, 1.0)]);
    let (_, found) = combine(&model, &gains, 64, 1, level, &mut |_, _| Ok(())).unwrap();
    assert!(found.iter().all(|c| c.error() < 1e-5), "{found:?}");
    let norms = of("norms", "norms", 1);
    let refused = combine(&model, &worn(&model, &[(&norms, 1.0)]), 4, 1, level, &mut |_, _| Ok(()));
    assert_eq!(refused.unwrap_err().kind(), Kind::Unsupported);
}

/// Half of a layer twice is the layer, however its hidden numbers lie beside those of others.
#[test]
fn bottlenecks_and_vectors_add_up_by_weight() {
    let scratch = Scratch::new("sums");
    let model = open(vectors().join("llama-tied-bias/F32.gguf"));
    let tokens: Vec<u32> = (0..30).map(|i| (i * 7 + 3) % 100).collect();
    let of = |method, targets, seed| random(&model, method, targets, seed);
    let lora = of("lora", "all", 3);
    let run = |stack: &[(&Arc<Adapter>, f32)]| {
        logits(&mut runner(&model, options(2)), &tokens, worn(&model, stack).delta())
    };
    let off = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
    };
    let base = run(&[(&lora, 1.0)]);
    for (method, targets) in [("parallel", "all"), ("series", "gate,up"), ("bias", "all")] {
        let one = of(method, targets, 4);
        let (whole, halves) =
            (run(&[(&lora, 1.0), (&one, 1.0)]), run(&[(&one, 0.25), (&lora, 1.0), (&one, 0.75)]));
        assert!(off(&whole, &base) > 1e-2, "{method} does nothing");
        assert!(off(&whole, &halves) < 1e-4, "{method}: {}", off(&whole, &halves));
        let level = Level::chosen().unwrap();
        let half = Adapter::new(
            "x",
            one.to_lora().times(&model, level, 0.5).unwrap(),
            Manifest::default(),
            model.program(),
        );
        let (times, weighed) = (run(&[(&Arc::new(half.unwrap()), 1.0)]), run(&[(&one, 0.5)]));
        assert!(off(&times, &weighed) < 1e-4, "{method}");
    }
    let (behind, vector) = (of("series", "o,down", 5), of("bias", "q,k,v", 6));
    let both = Worn::new(&model, vec![(behind.clone(), 1.0), (of("lora", "down", 3), 1.0)]).unwrap_err();
    assert!(both.to_string().contains("behind a product"), "{both}");

    // a vector goes into a bias, where there is one; an activation into nothing
    let fold = MergeOptions { kind: None, overwrite: true, threads: 2, level: Level::chosen().unwrap() };
    let path = scratch.0.join("merged.gguf");
    let stack = [(&lora, 0.5), (&vector, 2.0), (&of("ia3", "k,v", 2), 0.5)];
    merge(&model, &worn(&model, &stack), &path, &fold, &mut |_, _| Ok(())).unwrap();
    let got = logits(&mut runner(&open(&path), options(1)), &tokens, None);
    assert!(off(&got, &run(&stack)) < 1e-4, "{}", off(&got, &run(&stack)));
    let refused = |model: &Arc<Model>, adapter: &Arc<Adapter>, weight: f32| {
        let path = scratch.0.join("no.gguf");
        let error =
            merge(model, &worn(model, &[(adapter, weight)]), &path, &fold, &mut |_, _| Ok(())).unwrap_err();
        assert!(!path.exists());
        error
    };
    let error = refused(&model, &behind, 1.0);
    assert!(error.kind() == Kind::Unsupported && error.to_string().contains("an activation lies"), "{error}");
    let plain = open(vectors().join("llama/F32.gguf"));
    let error = refused(&plain, &random(&plain, "bias", "v", 6), 1.0);
    assert!(error.kind() == Kind::Unsupported && error.to_string().contains("no bias here"), "{error}");
    let large = vector.to_lora().times(&model, Level::chosen().unwrap(), 100.0).unwrap();
    let large = Adapter::new("large", large, Manifest::default(), model.program()).unwrap();
    assert_eq!(refused(&model, &Arc::new(large), 3e38).kind(), Kind::Numeric);
}

/// Configurations that do not say what lies beside them, or what is not known.
#[test]
fn configurations_of_bottlenecks_are_held_against_the_tensors() {
    let scratch = Scratch::new("configs");
    let model = open(vectors().join("llama/F32.gguf"));
    for (method, key, value, kind, text) in [
        (
            "series",
            "bottleneck_size",
            json!(4),
            Kind::Mismatch,
            "bottleneck, as the configuration says: expected 4",
        ),
        ("series", "bottleneck_size", json!(0), Kind::Format, "an integer above 0"),
        ("series", "non_linearity", json!("mish"), Kind::Unsupported, "expected tanh, relu, gelu, silu"),
        ("series", "scaling", json!("learned"), Kind::Mismatch, "found fixed"),
        ("series", "scaling", json!(0), Kind::Format, "a finite number other than 0"),
        ("series", "use_parallel_adapter", json!(true), Kind::Mismatch, "outputs: expected"),
        ("series", "peft_type", json!("BEFT"), Kind::Unsupported, "bottleneck_size: changes what"),
        ("parallel", "scaling", json!(1.0), Kind::Mismatch, "found learned"),
        ("parallel", "use_parallel_adapter", json!(false), Kind::Mismatch, "outputs: expected 32, found 64"),
        ("parallel", "adapter_layers", json!(3), Kind::Unsupported, "adapter_layers"),
    ] {
        let targets = if method == "series" { "up" } else { "k" };
        let folder = scratch.0.join("layer");
        let _ = std::fs::remove_dir_all(&folder);
        random(&model, method, targets, 5).write_peft(&folder, &model, false).unwrap();
        let path = folder.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = Adapter::open(&folder, &model).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(text), "{key}: {error}");
    }
}

#[test]
fn ranks_and_alphas_of_places() {
    let scratch = Scratch::new("places");
    let model = open(vectors().join("llama/F32.gguf"));
    let level = Level::chosen().unwrap();
    let new = New {
        rank: 4,
        alpha: Some(8.0),
        ranks: Places::parse("blk.1.q=2, q=3,down=6").unwrap(),
        alphas: Places::parse("k=2").unwrap(),
        ..New::of(&METHODS[0])
    };
    let layer = new.layer(&model, level, 1).unwrap();
    let names = Names::of(model.program());
    let at = |module: &str| layer.parts()[names.from_module(module).unwrap()].unwrap();
    for (module, rank, scale) in [
        ("model.layers.0.self_attn.q_proj", 3, 8.0 / 3.0),
        ("model.layers.1.self_attn.q_proj", 2, 4.0),
        ("model.layers.1.self_attn.k_proj", 4, 0.5),
        ("model.layers.0.mlp.down_proj", 6, 8.0 / 6.0),
        ("model.layers.0.mlp.up_proj", 4, 2.0),
    ] {
        assert_eq!((at(module).rank, at(module).scale), (rank, scale as f32), "{module}");
    }
    let adapter = Adapter::new("x", layer, Manifest::of(&model), model.program()).unwrap();
    adapter.write_peft(scratch.0.join("x"), &model, false).unwrap();
    assert_eq!(take(scratch.0.join("x"), &model).id(), adapter.id());
    let wrong = New {
        ranks: Places::parse("qq=2,q=2.5").unwrap(),
        init: Init::Pissa,
        ..New::of(Method::named("ia3").unwrap())
    };
    assert_eq!(wrong.layer(&model, level, 1).unwrap_err().findings().len(), 4);
    assert!(Places::parse("q").is_err() && Places::parse("q=0").is_err() && Places::parse("=1").is_err());
    let unknown = Method::named("lorra").unwrap_err().to_string();
    assert!(
        unknown.contains("lora, dora, ia3, vera") && unknown.contains("prefix, prompt, ptuning"),
        "{unknown}"
    );
}

#[test]
fn runs_go_on_with_their_own_method_only() {
    let model = open(vectors().join(runs::MODEL));
    let level = Level::chosen().unwrap();
    let layer = |method: &str| {
        let budget = Budget { target: Some(1), every: Some(1), ..Budget::default() };
        let budget = (method == "adalora").then_some(budget);
        New { rank: 2, budget, ..New::of(Method::named(method).unwrap()) }.layer(&model, level, 1).unwrap()
    };
    let options = |method: &str, threads: usize| {
        let options = runs::small(threads);
        match Method::named(method).unwrap().drops() {
            true => options,
            false => RunOptions { dropout: 0.0, ..options }, // of which they know nothing
        }
    };
    for method in [
        "dora", "ia3", "vera", "prefix", "ptuning", "loha", "lokr", "adalora", "parallel", "series", "bias",
        "norms", "full",
    ] {
        let run = |disk: &runs::Disk, threads: usize| {
            let (data, options) = (runs::data(&model), options(method, threads));
            Run::new(model.clone(), layer(method), data, options, Some(Box::new(disk.clone()))).unwrap()
        };
        let (whole, parts) = (runs::Disk::default(), runs::Disk::default());
        let want = runs::finish(&mut run(&whole, 1), &whole);
        let stop = &mut |e: &Event<'_>| {
            if matches!(e, Event::Step(s) if s.step == 5) { Flow::Stop } else { Flow::Go }
        };
        assert!(matches!(run(&parts, 2).go(stop).unwrap(), Outcome::Stopped { step: 5, .. }));
        for other in ["lora", "dora", "ia3", "vera"].into_iter().filter(|o| *o != method) {
            let store = Some(Box::new(parts.clone()) as Box<_>);
            let error = Run::new(model.clone(), layer(other), runs::data(&model), options(other, 1), store)
                .unwrap_err();
            assert!(error.kind() == Kind::Mismatch && error.to_string().contains("method"), "{error}");
        }
        assert!(runs::finish(&mut run(&parts, 2), &parts) == want, "{method}: other bytes after a stop");
    }
}

/// The loss along a gradient, by central difference, against the gradient's length.
#[test]
fn gradients_are_slopes() {
    let folder = vectors().join("llama");
    let model = open(folder.join("F32.gguf"));
    let rows = &rows(&folder.join("curve/data.jsonl"))[..4];
    for (method, targets) in [
        ("ia3", "all"),
        ("dora", "all,head"),
        ("lora", "all"),
        ("vera", "all,head"),
        ("prefix", "front"),
        ("prompt", "front"),
        ("loha", "all"),
        ("lokr", "all"),
        ("parallel", "all"),
        ("series", "gate,up"),
        ("series", "q,k,v,o,down"),
        ("series", "all,head"),
        ("bias", "all,head"),
    ] {
        let adapter = random(&model, method, targets, 3);
        let mut t = trainer(&model, adapter.to_lora(), 2, Keep::Streams);
        t.step(rows, &STILL, 1).unwrap();
        let layer = Arc::clone(t.layer());
        // ‖W + s·B·A‖ counts as a constant of DoRA: only its lengths have the slope of their gradient
        let along = |i: usize| match (layer.parts()[i], method) {
            (Some(p), "dora") => p.rank * (p.inputs + p.outputs)..p.len(),
            (Some(p), "parallel") => p.len() - 1..p.len(), // the learned scale: beside matrices it would not show
            (part, _) => 0..part.map_or(0, |p| p.len()),
        };
        let squares: f64 = (0..layer.parts().len())
            .map(|i| layer.grads().read(i)[along(i)].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>())
            .sum();
        let step = 0.02 / squares.sqrt();
        let loss = |sign: f64| {
            let moved = adapter.to_lora();
            for i in 0..moved.parts().len() {
                let (mut p, g) = (moved.params().get(i), layer.grads().read(i));
                let both = p[along(i)].iter_mut().zip(&g[along(i)]);
                both.for_each(|(p, g)| *p = (f64::from(*p) + sign * step * f64::from(*g)) as f32);
            }
            trainer(&model, moved, 2, Keep::Streams).evaluate(rows).unwrap().0
        };
        let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
        let off = (slope / squares - 1.0).abs();
        println!("{method}: slope off by {off:.1e}");
        assert!(off < 2e-3, "{method}: slope {slope}, squared length {squares}");
    }
}
