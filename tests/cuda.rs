//! The CUDA backend: the same models, layers and training runs as on the host, with the host as the oracle. See
//! `tests/support/cuda.rs` for where they run.
#![cfg(feature = "cuda")]

mod support;
use onlay::adapter::{Lora, Targets};
use onlay::backend::Device;
use onlay::model::{Model, Options, Request, Wanted};
use onlay::ops::kv::Precision;
use onlay::ops::{Delta, Room};
use onlay::rng::Rng;
use onlay::train::{Example, Keep, Optimizer, Recipe, Shape, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

#[path = "support/cuda.rs"]
mod card;
use card::{alone, device};

macro_rules! alone { ($($(#[$m:meta])* $name:ident [$($knob:literal = $value:literal),*] $body:block)*) => { $(
    #[test]
    $(#[$m])*
    fn $name() {
        alone(stringify!($name), &[$(($knob, $value)),*], || $body);
    }
)* } }

const MODELS: [&str; 9] = [
    "llama/F32.gguf",
    "llama/F16.gguf",
    "llama-tied-bias/F32.gguf",
    "mistral/F32.gguf",
    "qwen2/F32.gguf",
    "qwen3/F32.gguf",
    "llama-wide/Q4_K.gguf",
    "llama-wide/Q6_K.gguf",
    "qwen3-wide/Q8_0.gguf",
];

fn on(device: Device) -> Options {
    Options { device, room: Room { lead: 0, ..options(2).room }, ..options(2) }
}

fn model(name: &str) -> Arc<Model> {
    open(vectors().join(name))
}

fn tokens(model: &Model, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(model.program().vocabulary as u64) as u32).collect()
}

/// A LoRA with numbers in both halves.
fn layer(model: &Model, rank: usize, seed: u64) -> Lora {
    let layer = Targets::parse("all").unwrap().layer(model.program(), rank, 2.0).unwrap();
    let mut rng = Rng::new(seed);
    for i in 0..layer.parts().len() {
        layer.params().get(i).iter_mut().for_each(|v| *v = 0.2 * rng.uniform() - 0.1);
    }
    layer
}

/// Mean absolute difference of logits, and the largest.
fn apart(a: &[Vec<f32>], b: &[Vec<f32>]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let each: Vec<f64> =
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| f64::from((a - b).abs())).collect();
    assert!(!each.is_empty() && each.iter().all(|d| d.is_finite()));
    (each.iter().sum::<f64>() / each.len() as f64, each.iter().copied().fold(0.0, f64::max))
}

/// How large logits are.
fn size(a: &[Vec<f32>]) -> f64 {
    let n = a.iter().map(Vec::len).sum::<usize>() as f64;
    a.iter().flatten().map(|v| f64::from(v.abs())).sum::<f64>() / n
}

alone! {
    logits_are_the_hosts [] {
        for name in MODELS {
            let model = model(name);
            let tokens = tokens(&model, 21, 5);
            for kv in [Precision::F32, Precision::F16] {
                let (mut host, mut card) = (runner(&model, Options { kv, ..on(Device::Host) }), runner(&model, Options { kv, ..on(device()) }));
                let (want, got) = (logits(&mut host, &tokens, None), logits(&mut card, &tokens, None));
                let (mean, most) = apart(&got, &want);
                println!("{name} {}: {mean:.1e} apart, at most {most:.1e}, of {:.2}", kv.name(), size(&want));
                assert!(mean < 2e-2);
                // one by one: products of one row
                let mut sequence = card.sequence();
                let mut single = Vec::new();
                for t in &tokens {
                    card.feed(&mut sequence, &[*t], None, Wanted::All, &mut |_, z| single.push(z.to_vec())).unwrap();
                }
                card.forget(&mut sequence);
                assert!(apart(&single, &want).0 < 2e-2);
                assert_eq!(logits(&mut card, &tokens, None), got, "two runs");
            }
        }
    }
}

/// Computes gradients and changes next to nothing.
const STILL: Recipe = Recipe {
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

fn trainer(model: &Arc<Model>, layer: Lora, keep: Keep, device: Device) -> (Trainer, Arc<Lora>) {
    let layer = Arc::new(layer);
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: 2,
        rows: 96,
        context: 48,
        sequences: 4,
        kv: Precision::F32,
        keep,
        optimizer: Optimizer::default(),
        device,
    };
    (Trainer::new(Arc::clone(model), Arc::clone(&layer), options).unwrap(), layer)
}

/// Rows of different lengths, of which some tokens are not trained.
fn examples(model: &Model, seed: u64) -> Vec<Example> {
    let row = |(i, n): (usize, usize)| Example {
        tokens: tokens(model, n, seed + i as u64),
        trained: (0..n).map(|t| t % 4 != 2).collect(),
    };
    [40, 7, 33, 19].into_iter().enumerate().map(row).collect()
}

/// ‖a − b‖ / ‖b‖
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |f: &dyn Fn(usize) -> f32| (0..b.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>().sqrt();
    norm(&|i| a[i] - b[i]) / norm(&|i| b[i])
}

alone! {
    gradients_are_the_hosts [] {
        for name in MODELS {
            let model = model(name);
            for (keep, dropout) in [(Keep::Streams, 0.0), (Keep::Registers, 0.3)] {
                let window = examples(&model, 3);
                let step = |device| {
                    let mut layer = layer(&model, 5, 11);
                    layer.learn(96, dropout, 7).unwrap();
                    let (mut trainer, layer) = trainer(&model, layer, keep, device);
                    let report = trainer.step(&window, &STILL, 1).unwrap();
                    (report, layer)
                };
                let ((host, want), (card, got)) = (step(Device::Host), step(device()));
                let off = (card.loss / host.loss - 1.0).abs();
                let (mut worst, mut seen) = (0f64, 0);
                for i in 0..want.parts().len() {
                    let (got, want) = (got.grads().read(i), want.grads().read(i));
                    if !want.is_empty() {
                        worst = worst.max(relative(&got, &want));
                        seen += 1;
                    }
                }
                println!("{name} dropout {dropout}: loss off by {off:.1e}, worst of {seen} gradients {worst:.1e}");
                assert!(off < 2e-2 && worst < 3e-2 && seen > 10);
            }
        }
    }

    a_run_follows_the_hosts [] {
        for name in ["llama/F32.gguf", "llama-wide/Q4_K.gguf"] {
            let model = model(name);
            let recipe = Recipe { rate: 3e-3, warmup: 2, ..Recipe::default() };
            let run = |device| {
                let mut layer = Targets::parse("all").unwrap().layer(model.program(), 4, 2.0).unwrap();
                layer.start(&mut Rng::new(1));
                layer.learn(96, 0.1, 7).unwrap();
                let (mut trainer, layer) = trainer(&model, layer, Keep::Streams, device);
                let losses: Vec<f64> = (0..12)
                    .map(|i| trainer.step(&examples(&model, i % 3), &recipe, 12).unwrap().loss)
                    .collect();
                let (after, _) = trainer.evaluate(&examples(&model, 0)).unwrap();
                let numbers: Vec<f32> = (0..layer.parts().len()).flat_map(|i| layer.params().read(i).clone()).collect();
                (losses, after, numbers)
            };
            let (host, card, again) = (run(Device::Host), run(device()), run(device()));
            for (i, (a, b)) in host.0.iter().zip(&card.0).enumerate() {
                println!("{name} step {}: {a:.4} {b:.4}", i + 1);
                assert!((b / a - 1.0).abs() < 2e-2, "step {}: {b} against {a}", i + 1);
            }
            assert!((card.1 / host.1 - 1.0).abs() < 2e-2, "evaluated: {} against {}", card.1, host.1);
            assert!(card.0[11] < card.0[2], "it learned nothing: {:?}", card.0);
            assert!(card == again, "two runs differ");
        }
    }

    rows_wear_their_own_layers [] {
        let model = model("llama-wide/Q4_K.gguf");
        let layers: Vec<Lora> = (0..3).map(|i| layer(&model, 3 + i, 20 + i as u64)).collect();
        let worn: [Option<&dyn Delta>; 4] = [Some(&layers[0]), None, Some(&layers[1]), Some(&layers[2])];
        let together = |device| {
            let mut runner = runner(&model, on(device));
            let prompts: Vec<Vec<u32>> = (0..4).map(|i| tokens(&model, 5 + 3 * i, i as u64)).collect();
            let mut sequences: Vec<_> = (0..4).map(|_| runner.sequence()).collect();
            let mut all = vec![];
            for part in [0..4, 4..5] {
                let requests = sequences.iter_mut().zip(&prompts).zip(worn);
                let mut requests: Vec<_> = requests
                    .map(|((sequence, tokens), delta)| {
                        Request { sequence, tokens: &tokens[part.clone()], delta, wanted: Wanted::All }
                    })
                    .collect();
                runner.step(&mut requests, &mut |_, _, z| all.push(z.to_vec())).unwrap();
            }
            all
        };
        let (want, got) = (together(Device::Host), together(device()));
        println!("mixed layers: {:.1e} apart", apart(&got, &want).0);
        assert!(apart(&got, &want).0 < 2e-2);
        // with the layers off the base is what it was, bit for bit
        let mut card = runner(&model, on(device()));
        let prompt = tokens(&model, 12, 9);
        let base = logits(&mut card, &prompt, None);
        let other = logits(&mut card, &prompt, Some(&layers[0]));
        assert!(apart(&other, &base).0 > 1e-3, "the layer does nothing");
        assert_eq!(logits(&mut card, &prompt, None), base);
        assert_eq!(logits(&mut card, &prompt, Some(&layers[0])), other);
        // more layers than there is room for at once
        for i in 0..70 {
            let layer = layer(&model, 1 + i % 4, i as u64);
            let (want, got) = (logits(&mut runner(&model, on(Device::Host)), &prompt[..2], Some(&layer)), logits(&mut card, &prompt[..2], Some(&layer)));
            // the host rounds activations to 8 bits, the card does not
            assert!(apart(&got, &want).0 < 3e-2, "layer {i}");
        }
    }
}
