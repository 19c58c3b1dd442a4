//! The other methods against PEFT (see `tests/oracles/README.md`): gradients, twenty steps, files there and back, what is
//! worn, folded in, and refused.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::adapter::{
    Adapter, Init, Layer, METHODS, Manifest, MergeOptions, Method, Names, New, Places, Targets, Worn, merge,
};
use onlay::error::Kind;
use onlay::model::Model;
use onlay::ops::kv::Precision;
use onlay::rng::Rng;
use onlay::train::{Event, Example, Flow, Keep, Outcome, Recipe, Run, Shape, TrainOptions, Trainer};
use onlay_kernels::Level;
use serde_json::Value;
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

const RECIPE: Recipe = Recipe {
    rate: 1e-30,
    plus: 1.0,
    shape: Shape::Constant,
    warmup: 0,
    decay: 0.0,
    max_norm: 0.0,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

fn trainer(model: &Arc<Model>, mut layer: Layer, threads: usize, keep: Keep) -> Trainer {
    layer.learn(256, 0.0, 0).unwrap();
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads,
        rows: 256,
        context: 128,
        sequences: 2,
        kv: Precision::F32,
        keep,
    };
    Trainer::new(Arc::clone(model), Arc::new(layer), options).unwrap()
}

fn take(path: impl AsRef<Path>, model: &Model) -> Adapter {
    Adapter::open(path, model).unwrap_or_else(|e| panic!("{e}")).0
}

fn worn(model: &Model, stack: &[(&Arc<Adapter>, f32)]) -> Worn {
    Worn::new(&model, stack.iter().map(|(a, w)| (Arc::clone(a), *w)).collect()).unwrap()
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
    let mut trainer = trainer(&model, adapter.to_lora(), 2, keep);
    let report = trainer.step(&[row(0), row(1)], &RECIPE, 1).unwrap();
    let off = (report.loss - answers.numbers("loss")[0]).abs();
    assert!(off < 1e-5, "loss {} off by {off:.1e}", report.loss);
    let names = Names::of(model.program());
    let (mut seen, mut worst) = (0, 0f64);
    for place in 0..trainer.layer().parts().len() {
        let grads = trainer.layer().grads().read(place).clone();
        for (key, got) in trainer.layer().named(&names, place, &grads) {
            if key.ends_with(".token_indices") {
                continue; // which learn nothing
            }
            let error = relative(&got, &answers.numbers(&key));
            assert!(error < 1e-3, "{key}: {error:.1e}");
            (seen, worst) = (seen + 1, worst.max(error));
        }
    }
    let all = answers.names().iter().filter(|n| n.starts_with("base_model.")).count();
    assert_eq!(seen, all);
    println!(
        "{method} {keep:?}: logits {forward:.1e}, loss {off:.1e}, worst of {seen} gradients {worst:.1e}"
    );
}

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
        ..RECIPE
    };
    let initial = curve.join(format!("initial-{kind}"));
    let layer = if initial.exists() {
        take(initial, &model).to_lora()
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
    let rows = rows(&if own.exists() { own } else { folder.join("curve/data.jsonl") });
    let (mut worst, mut worst_norm) = (0f64, 0f64);
    for (i, step) in stored["steps"].as_array().unwrap().iter().enumerate() {
        let window: Vec<_> = (0..4).map(|j| rows[(i * 4 + j) % rows.len()].clone()).collect();
        let report = trainer.step(&window, &recipe, 20).unwrap();
        let loss = (report.loss / number(&step["loss"]) - 1.0).abs();
        let norm = (report.grad_norm / number(&step["grad_norm"]) - 1.0).abs();
        assert!(loss < bound, "{name} {kind} {method}: step {}: {report:?} against {step}", i + 1);
        (worst, worst_norm) = (worst.max(loss), worst_norm.max(norm));
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
    follow("qwen3", "F32", "norms", 0.01);
    follow("llama-tied-bias", "F32", "tokens", 0.01);
}

#[test]
fn twenty_steps_on_quantized_bases() {
    for kind in ["Q8_0", "Q4_K"] {
        for method in ["dora", "ia3", "vera", "pissa", "olora"] {
            follow("llama-wide", kind, method, 0.03);
        }
    }
}

/// A layer of a method with random numbers near its start.
fn random(model: &Arc<Model>, method: &str, targets: &str, seed: u64) -> Arc<Adapter> {
    let method = Method::named(method).unwrap();
    let tokens = if method.name == "tokens" { vec![7, 3, 90] } else { vec![] };
    let new = New { rank: 3, targets: Some(Targets::parse(targets).unwrap()), tokens, ..New::of(method) };
    let layer = new.layer(model, Level::chosen().unwrap(), 1).unwrap();
    let mut rng = Rng::new(seed);
    for i in 0..layer.parts().len() {
        let deviation = if method.paired { 0.05 } else { 0.2 }; // of vera, on λ alone
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

/// Methods whose layers begin as the base.
const METHODS_HERE: &[&str] = &["dora", "ia3", "vera", "full", "norms", "tokens"];

#[test]
fn off_is_the_base_and_trained_is_served() {
    for (file, methods) in [("llama/F32", METHODS_HERE), ("llama-wide/Q4_K", METHODS_HERE)] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let tokens: Vec<u32> = (0..60).map(|i| (i * 7 + 3) % 100).collect();
        let example = Example { tokens: tokens.clone(), trained: vec![true; 60] };
        let mut one = runner(&model, options(1));
        let base = bits(&logits(&mut one, &tokens, None));
        for method in methods {
            // at the start nothing is changed but DoRA's rounding of m/‖·‖
            let of = New::of(Method::named(method).unwrap());
            let learned = if *method == "tokens" { vec![7, 3] } else { vec![] };
            let fresh = New { tokens: learned, ..of }.layer(&model, Level::chosen().unwrap(), 1).unwrap();
            fresh.settle(&model, Level::chosen().unwrap(), &mut |n, f| (0..n).for_each(f));
            let fresh = Adapter::new("x", fresh, Manifest::default(), model.program()).unwrap();
            let fresh = worn(&model, &[(&Arc::new(fresh), 1.0)]);
            let start = logits(&mut one, &tokens, fresh.delta());
            // (a matrix in f32 takes unrounded inputs, which a quantized one does not)
            if *method != "full" || file.ends_with("F32") {
                assert_eq!(bits(&start), base, "{method}: the start");
            }

            let targets = match *method {
                "ia3" => "k,v,gate,down",
                "norms" | "tokens" => method,
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
                let recipe = Recipe { rate: 1e-3, ..RECIPE };
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
    let (down, inputs, vera) = (of("ia3", "down", 4), of("ia3", "down", 5), of("vera", "q,v,up", 6));
    for stack in [
        &[(&dora, 1.0)][..],
        &[(&dora, 0.5)],
        &[(&ia3, 1.0), (&down, 0.7)],
        &[(&dora, 0.5), (&ia3, 2.0), (&lora, 1.0), (&vera, -0.5)],
        &[(&vera, 1.0)],
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
    let both = Worn::new(&model, vec![(dora, 1.0), (down, 1.0)]).unwrap_err();
    assert_eq!(both.kind(), Kind::Unsupported);
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
    assert!(unknown.contains("lora, dora, ia3, vera"), "{unknown}");
}

#[test]
fn runs_go_on_with_their_own_method_only() {
    let model = open(vectors().join(runs::MODEL));
    let level = Level::chosen().unwrap();
    let layer = |method: &str| {
        New { rank: 2, ..New::of(Method::named(method).unwrap()) }.layer(&model, level, 1).unwrap()
    };
    for method in ["dora", "ia3", "vera"] {
        let run = |disk: &runs::Disk, threads: usize| {
            let (data, options) = (runs::data(&model), runs::small(threads));
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
            let error =
                Run::new(model.clone(), layer(other), runs::data(&model), runs::small(1), store).unwrap_err();
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
    for (method, targets) in [("ia3", "all"), ("dora", "all,head"), ("lora", "all"), ("vera", "all,head")] {
        let adapter = random(&model, method, targets, 3);
        let mut t = trainer(&model, adapter.to_lora(), 2, Keep::Streams);
        t.step(rows, &RECIPE, 1).unwrap();
        let layer = Arc::clone(t.layer());
        // ‖W + s·B·A‖ counts as a constant of DoRA: only its lengths have the slope of their gradient
        let along = |i: usize| match (layer.parts()[i], method) {
            (Some(p), "dora") => p.rank * (p.inputs + p.outputs)..p.len(),
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
