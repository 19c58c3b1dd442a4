//! Gradients of every A and B, and the loss, against PEFT's (see `tests/oracles/README.md`).

mod support;
use onlay::adapter::{Adapter, Names};
use onlay::ops::kv::Precision;
use onlay::train::{Example, Keep, Optimizer, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

fn example(answers: &Answers, i: usize) -> Example {
    let tokens = answers.tokens(&format!("tokens.{i}"));
    let trained = answers.numbers(&format!("labels.{i}")).iter().map(|l| *l >= 0.0).collect();
    Example { tokens, trained }
}

/// ‖got − want‖ / ‖want‖
fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
    norm(&|i| f64::from(got[i]) - want[i]) / norm(&|i| want[i])
}

fn compare(model: &str, case: &str, keep: Keep) {
    let folder = vectors().join(model);
    let model = open(folder.join("F32.gguf"));
    let answers = Answers::open(folder.join(case).join("gradients.safetensors"));
    let (adapter, _) = Adapter::open(folder.join(case), &model).unwrap();
    let mut layer = adapter.to_lora();
    layer.learn(128, 0.0, 0).unwrap();
    let layer = Arc::new(layer);
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: 2.into(),
        rows: 128,
        context: 128,
        sequences: 2,
        kv: Precision::F32,
        keep,
        optimizer: Optimizer::default(),
        device: onlay::backend::Device::Host,
    };
    let mut trainer = Trainer::new(Arc::clone(&model), Arc::clone(&layer), options).unwrap();
    let window = [example(&answers, 0), example(&answers, 1)];
    let report = trainer.step(&window, &STILL, 1).unwrap();
    assert_eq!(report.tokens as f64, answers.numbers("trained")[0]);
    let off = (report.loss - answers.numbers("loss")[0]).abs();
    assert!(off < 1e-5, "loss {} off by {off:.1e}", report.loss);
    let norm = answers.numbers("grad_norm")[0];
    assert!((report.grad_norm / norm - 1.0).abs() < 1e-4, "norm {} against {norm}", report.grad_norm);

    let names = Names::of(model.program());
    let mut seen = 0;
    let mut worst = 0f64;
    for (site, part) in names.sites().zip(layer.parts()) {
        let Some(part) = part else { continue };
        let key = |half| format!("base_model.model.{}.lora_{half}.weight", names.module(site).unwrap());
        let gradient = layer.grads().read(site.0 as usize).clone();
        let (a, b) = gradient.split_at(part.rank * part.inputs);
        // B [outputs][r] in the order of the converted model; ours is [r][outputs] in GGUF's
        let b: Vec<f32> = (0..part.outputs)
            .flat_map(|o| (0..part.rank).map(move |j| (o, j)))
            .map(|(o, j)| b[j * part.outputs + names.row(site, o)])
            .collect();
        for (half, got) in [("A", a), ("B", &b[..])] {
            let error = relative(got, &answers.numbers(&key(half)));
            assert!(error < 1e-3, "{}: {error:.1e}", key(half));
            worst = worst.max(error);
            seen += 1;
        }
    }
    assert_eq!(seen, answers.names().iter().filter(|n| n.contains(".lora_")).count());
    println!("{case} {keep:?}: loss off by {off:.1e}, worst of {seen} gradients {worst:.1e}");
}

macro_rules! cases { ($($test:ident $model:literal;)*) => { $(
    #[test]
    fn $test() {
        for case in ["lora-all", "lora-attention"] {
            for keep in [Keep::Streams, Keep::Registers] {
                compare($model, case, keep);
            }
        }
    }
)* } }
cases! {
    llama "llama";
    llama_tied_with_biases "llama-tied-bias";
    qwen2 "qwen2";
    qwen3 "qwen3";
}

#[test]
fn nothing_is_dropped_while_evaluating() {
    let model = open(vectors().join("llama/F32.gguf"));
    let folder = vectors().join("llama/lora-all");
    let answers = Answers::open(folder.join("gradients.safetensors"));
    let window = [example(&answers, 0), example(&answers, 1)];
    let (adapter, _) = Adapter::open(folder, &model).unwrap();
    let loss = |dropout| {
        let mut layer = adapter.to_lora();
        layer.learn(128, dropout, 0).unwrap();
        let options = TrainOptions {
            level: Level::chosen().unwrap(),
            threads: 1.into(),
            rows: 128,
            context: 128,
            sequences: 2,
            kv: Precision::F32,
            keep: Keep::Streams,
            optimizer: Optimizer::default(),
            device: onlay::backend::Device::Host,
        };
        let mut trainer = Trainer::new(Arc::clone(&model), Arc::new(layer), options).unwrap();
        let before = trainer.evaluate(&window).unwrap().0;
        let learned = trainer.step(&window, &STILL, 1).unwrap().loss;
        assert_eq!(trainer.evaluate(&window).unwrap().0.to_bits(), before.to_bits());
        (before.to_bits(), learned.to_bits())
    };
    let (with, without) = (loss(0.5), loss(0.0));
    assert_eq!(with.0, without.0);
    assert!(with.1 != without.1 && without.0 == without.1);
}
