//! The CUDA backend: the same models, layers and training runs as on the host, with the host as the oracle. See
//! `tests/support/cuda.rs` for where they run.
#![cfg(feature = "cuda")]

mod support;
use onlay::adapter::{Adapter, Lora, Targets, Worn};
use onlay::backend::Device;
use onlay::error::Kind;
use onlay::model::{Memory, Model, Options, Request, Runner, Wanted};
use onlay::ops::kv::Precision;
use onlay::ops::{Delta, Room};
use onlay::rng::Rng;
use onlay::train::{Example, Keep, Optimizer, Recipe, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

#[path = "support/cuda.rs"]
mod card;
#[path = "support/cli.rs"]
#[macro_use]
mod cli;
use card::{alone, device, real};

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

/// Logits after every token, each computed by itself.
fn one_by_one(runner: &mut Runner, tokens: &[u32], delta: Option<&dyn Delta>) -> Vec<Vec<f32>> {
    let (mut sequence, mut all) = (runner.sequence(), vec![]);
    for t in tokens {
        runner.feed(&mut sequence, &[*t], delta, Wanted::All, &mut |_, z| all.push(z.to_vec())).unwrap();
    }
    runner.forget(&mut sequence);
    all
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
            let bytes = (model.program().attention.head % 32 == 0).then_some(Precision::Q8);
            for kv in [Precision::F32, Precision::F16].into_iter().chain(bytes) {
                let (mut host, mut card) = (runner(&model, Options { kv, ..on(Device::Host) }), runner(&model, Options { kv, ..on(device()) }));
                let (want, got) = (logits(&mut host, &tokens, None), logits(&mut card, &tokens, None));
                let (mean, most) = apart(&got, &want);
                println!("{name} {}: {mean:.1e} apart, at most {most:.1e}, of {:.2}", kv.name(), size(&want));
                assert!(mean < 2e-2);
                // one by one, of which the first two tokens are queued step by step and the others at once
                let single = one_by_one(&mut card, &tokens, None);
                assert!(apart(&single, &want).0 < 2e-2);
                assert_eq!(one_by_one(&mut card, &tokens, None), single);
                assert_eq!(logits(&mut card, &tokens, None), got, "two runs");
            }
        }
    }
}

fn trainer(model: &Arc<Model>, layer: Lora, keep: Keep, device: Device) -> (Trainer, Arc<Lora>) {
    let layer = Arc::new(layer);
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: 2.into(),
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
                let (mut worst, mut seen, mut all) = (0f64, 0, [vec![], vec![]]);
                for i in 0..want.parts().len() {
                    let (got, want) = (got.grads().read(i), want.grads().read(i));
                    if !want.is_empty() {
                        worst = worst.max(relative(&got, &want));
                        seen += 1;
                        all[0].extend_from_slice(&got);
                        all[1].extend_from_slice(&want);
                    }
                }
                let whole = relative(&all[0], &all[1]);
                println!("{name} dropout {dropout}: loss off by {off:.1e}, gradients {whole:.1e}, worst of {seen} {worst:.1e}");
                // over blocks the host rounds activations to 8 bits, the card to bf16
                let blocks = name.contains("wide");
                let (most_whole, most_worst) = if blocks { (2e-2, 3e-2) } else { (1.2e-2, 1.5e-2) };
                assert!(off < 1e-3 && whole < most_whole && worst < most_worst && seen > 10);
            }
        }
    }

    a_run_follows_the_hosts [] {
        for name in ["llama/F32.gguf", "llama-wide/Q4_K.gguf"] {
            let model = model(name);
            // the fake driver is slow
            let steps = if real() { 200 } else { 12 };
            let recipe = Recipe { rate: 3e-3, warmup: 2, ..Recipe::default() };
            let run = |device| {
                let mut layer = Targets::parse("all").unwrap().layer(model.program(), 4, 2.0).unwrap();
                layer.start(&mut Rng::new(1));
                layer.learn(96, 0.1, 7).unwrap();
                let (mut trainer, layer) = trainer(&model, layer, Keep::Streams, device);
                let losses: Vec<f64> = (0..steps)
                    .map(|i| trainer.step(&examples(&model, i % 3), &recipe, steps).unwrap().loss)
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
            assert!(card.0[card.0.len() - 1] < card.0[2], "it learned nothing: {:?}", card.0);
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
        // token by token, with layers that come and go between: what was kept of other layers must not be queued
        let few = one_by_one(&mut card, &prompt[..5], None);
        for layer in &layers {
            let with = one_by_one(&mut card, &prompt[..5], Some(layer));
            assert!(apart(&with, &few).0 > 1e-3);
            assert_eq!(one_by_one(&mut runner(&model, on(device())), &prompt[..5], Some(layer)), with);
            assert_eq!(one_by_one(&mut card, &prompt[..5], None), few);
        }
    }

    /// More layers than there are slots. Few rows over F32 weights are rounded by neither side.
    layers_come_and_go [] {
        let model = model("llama/F32.gguf");
        let prompt = tokens(&model, 2, 9);
        let (mut host, mut card) = (runner(&model, on(Device::Host)), runner(&model, on(device())));
        for i in 0..70 {
            let layer = layer(&model, 1 + i % 4, i as u64);
            let (want, got) = (logits(&mut host, &prompt, Some(&layer)), logits(&mut card, &prompt, Some(&layer)));
            let (_, most) = apart(&got, &want);
            assert!(most < 1e-4, "layer {i}: {most:.1e}");
        }
    }
}

fn within(memory: u64) -> Device {
    device().within(memory).unwrap()
}

/// The small bundled model, of several layers.
fn fable() -> Arc<Model> {
    open(root().join("models/fable-15m.gguf"))
}

/// A runner of few rows, without layers.
fn small(device: Device) -> Options {
    Options { positions: 64, sequences: 1, context: 64, rows: 16, room: Room::default(), ..on(device) }
}

fn part(memory: &Memory, name: &str) -> u64 {
    memory.parts.iter().find(|p| p.0 == name).unwrap().1
}

alone! {
    weights_that_do_not_fit_are_streamed ["ONLAY_FAKE_CUDA_MEMORY" = "16000000"] {
        let model = fable();
        let tokens = tokens(&model, 9, 2);
        let planned = |device| Runner::device_plan(&model, &small(device));
        let parts = planned(within(15_900_000)).unwrap();
        assert_eq!(part(&parts, "weights on their way"), 0);
        let want = logits(&mut runner(&model, small(within(parts.total()))), &tokens, None);
        let mut streamed = 0;
        let mut memory = parts.total() - 1;
        let refused = loop {
            match planned(within(memory)) {
                Err(e) => break e,
                Ok(parts) => {
                    assert!(parts.total() <= memory, "promised {memory}: {:?}", parts.parts);
                    assert!(part(&parts, "weights on their way") > 0);
                    let got = logits(&mut runner(&model, small(within(memory))), &tokens, None);
                    assert_eq!(got, want, "within {memory} bytes");
                    println!("{memory}: {:?}", parts.parts);
                    streamed += 1;
                    memory = parts.total() - 1;
                }
            }
        };
        assert!(streamed >= 2, "{streamed} budgets");
        assert_eq!(refused.kind(), Kind::Memory);
        println!("{refused}");
        assert!(Runner::new(Arc::clone(&model), small(within(memory))).unwrap_err().kind() == Kind::Memory);
        // promised more than there is
        assert_eq!(Runner::new(model, Options { positions: 1 << 14, ..small(within(1 << 34)) }).unwrap_err().kind(), Kind::Memory);
    }

    a_streamed_run_learns_the_same [] {
        let model = fable();
        let window = [Example { tokens: tokens(&model, 14, 1), trained: vec![true; 14] }];
        let step = |device, keep| {
            let mut layer = layer(&model, 2, 11);
            layer.learn(16, 0.0, 7).unwrap();
            let layer = Arc::new(layer);
            let options = TrainOptions {
                level: Level::chosen().unwrap(),
                threads: 2.into(),
                rows: 16,
                context: 16,
                sequences: 1,
                kv: Precision::F16,
                keep,
                optimizer: Optimizer::default(),
                device,
            };
            let memory = Trainer::device_plan(&model, &layer, &options).unwrap();
            let mut trainer = Trainer::new(Arc::clone(&model), Arc::clone(&layer), options).unwrap();
            let loss = trainer.step(&window, &STILL, 1).unwrap().loss;
            let grads: Vec<Vec<f32>> = (0..layer.parts().len()).map(|i| layer.grads().read(i).clone()).collect();
            (loss, grads, memory)
        };
        let (loss, grads, memory) = step(device(), Keep::Streams);
        assert_eq!(part(&memory, "weights on their way"), 0);
        let less = memory.total() - part(&memory, "weights that stay") / 3;
        let (again, other, memory) = step(within(less), Keep::Streams);
        assert!(part(&memory, "weights on their way") > 0 && memory.total() <= less);
        assert!(loss == again && grads == other);
    }

    what_cannot_be_worn_is_refused [] {
        let model = model("llama/F32.gguf");
        let folder = vectors().join("llama/dora");
        let (adapter, _) = Adapter::open(&folder, &model).unwrap();
        let worn = Worn::new(&model, vec![(Arc::new(adapter), 1.0)]).unwrap();
        let mut card = runner(&model, on(device()));
        let mut sequence = card.sequence();
        let refused = card.feed(&mut sequence, &[1, 2], worn.delta(), Wanted::Last, &mut |_, _| ()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported, "{refused}");
        // and nothing has happened
        assert_eq!(sequence.len(), 0);
        card.feed(&mut sequence, &[1, 2], None, Wanted::Last, &mut |_, _| ()).unwrap();
    }

    no_such_card [] {
        let model = model("llama/F32.gguf");
        let refused = Runner::new(model, on(Device::named("cuda:4096").unwrap())).unwrap_err();
        assert_eq!(refused.kind(), Kind::Device);
        assert!(refused.to_string().contains("cuda:4096"), "{refused}");
    }

    no_card_at_all ["ONLAY_FAKE_CUDA_DEVICES" = "0"] {
        let refused = Runner::new(model("llama/F32.gguf"), on(device())).unwrap_err();
        assert!(refused.kind() == Kind::Device && refused.to_string().contains("knows none"), "{refused}");
    }

    a_card_that_is_too_old ["ONLAY_FAKE_CUDA_CAPABILITY" = "70"] {
        let refused = Runner::new(model("llama/F32.gguf"), on(device())).unwrap_err();
        assert!(refused.kind() == Kind::Device && refused.to_string().contains("7.5"), "{refused}");
    }

    a_driver_that_is_too_old ["ONLAY_FAKE_CUDA_DRIVER" = "11040"] {
        let refused = Runner::new(model("llama/F32.gguf"), on(device())).unwrap_err();
        assert!(refused.kind() == Kind::Device && refused.to_string().contains("11.4"), "{refused}");
    }

    /// Turing has no bf16: f16, with gradients lifted.
    a_turing_card ["ONLAY_FAKE_CUDA_CAPABILITY" = "75"] {
        let model = model("llama/F16.gguf");
        let tokens = tokens(&model, 21, 5);
        let (want, got) = (logits(&mut runner(&model, on(Device::Host)), &tokens, None), logits(&mut runner(&model, on(device())), &tokens, None));
        assert!(apart(&got, &want).0 < 2e-2);
    }

    /// A token alone shares its keys out; a row of a prompt does not.
    long_sequences_are_the_hosts [] {
        let model = model("qwen3/F32.gguf");
        let tokens = tokens(&model, 230, 8);
        for kv in [Precision::F32, Precision::Q8] {
            let with = |device| Options { kv, ..on(device) };
            let want = logits(&mut runner(&model, with(Device::Host)), &tokens, None);
            let mut card = runner(&model, with(device()));
            let (all, single) = (logits(&mut card, &tokens, None), one_by_one(&mut card, &tokens, None));
            let (mean, _) = apart(&all, &want);
            let (single_mean, most) = apart(&single, &want);
            println!("{}: {mean:.1e} and {single_mean:.1e} apart, at most {most:.1e}", kv.name());
            assert!(mean < 2e-2 && single_mean < 2e-2 && most < 0.2);
        }
    }

    /// Of four tokens the first is queued step by step, the others at once.
    tokens_are_queued_at_once ["ONLAY_FAKE_CUDA_FAIL" = "cuGraphLaunch:3:700"] {
        let model = model("llama/F32.gguf");
        let mut card = runner(&model, on(device()));
        let mut sequence = card.sequence();
        let mut done = 0;
        let failed = (0..9).find_map(|i| card.feed(&mut sequence, &[i], None, Wanted::Last, &mut |_, _| done += 1).err());
        assert_eq!((done, failed.map(|e| e.kind())), (3, Some(Kind::Device)));
    }

    a_card_is_lost_while_it_serves ["ONLAY_FAKE_CUDA_FAIL" = "cuLaunchKernel:150:719"] {
        let model = model("llama/F32.gguf");
        let mut card = runner(&model, on(device()));
        let mut sequence = card.sequence();
        let mut given = 0;
        let failed = (0..200).find_map(|i| card.feed(&mut sequence, &[i], None, Wanted::Last, &mut |_, _| given += 1).err());
        let failed = failed.expect("the card is lost");
        assert!(failed.kind() == Kind::Device && failed.to_string().contains("719"), "{failed}");
        // no logits without numbers, and the same answer from then on
        assert_eq!(given, sequence.len());
        let again = card.feed(&mut sequence, &[1], None, Wanted::Last, &mut |_, _| ()).unwrap_err();
        assert_eq!(again.kind(), Kind::Device);
    }

    a_card_is_lost_while_it_learns ["ONLAY_FAKE_CUDA_FAIL" = "cuLaunchKernel:700:700"] {
        let model = model("llama/F32.gguf");
        let mut layer = layer(&model, 2, 1);
        layer.learn(96, 0.0, 0).unwrap();
        let (mut trainer, layer) = trainer(&model, layer, Keep::Streams, device());
        let recipe = Recipe { rate: 1e-3, ..Recipe::default() };
        let mut before = layer.params().read(0).clone();
        let failed = (0..50).find_map(|i| {
            let done = trainer.step(&examples(&model, i), &recipe, 50);
            if done.is_ok() {
                before = layer.params().read(0).clone();
            }
            done.err()
        });
        assert_eq!(failed.expect("the card is lost").kind(), Kind::Device);
        assert_eq!(*layer.params().read(0), before, "a step that failed changes nothing");
    }

    no_room_for_a_layer [] {
        let model = model("llama/F32.gguf");
        let with = |device| Options { room: Room { hidden: 64, ..Room::default() }, ..on(device) };
        let memory = Runner::device_plan(&model, &with(device())).unwrap();
        // as much as is planned: room for layers of some ranks
        let mut card = runner(&model, with(within(memory.total())));
        let (few, many) = (layer(&model, 2, 1), layer(&model, 30, 1));
        let mut sequence = card.sequence();
        let refused = card.feed(&mut sequence, &[1], Some(&many), Wanted::Last, &mut |_, _| ()).unwrap_err();
        assert!(refused.to_string().contains("hidden numbers"), "{refused}");
        for seed in 0..20 {
            let layer = layer(&model, 12, seed);
            card.feed(&mut sequence, &[1], Some(&layer), Wanted::Last, &mut |_, _| ()).unwrap();
        }
        // the others went to make room; what one step wears must fit together
        let layers: Vec<Lora> = (0..4).map(|i| layer(&model, 20, i)).collect();
        let mut sequences: Vec<_> = (0..4).map(|_| card.sequence()).collect();
        let requests = sequences.iter_mut().zip(&layers);
        let mut requests: Vec<_> = requests
            .map(|(sequence, layer)| Request { sequence, tokens: &[1], delta: Some(layer), wanted: Wanted::Last })
            .collect();
        let refused = card.step(&mut requests, &mut |_, _, _| ()).unwrap_err();
        assert!(refused.kind() == Kind::Memory && refused.to_string().contains("room for a layer"), "{refused}");
        // and what was let in for that step can go
        for layer in &layers {
            card.feed(&mut sequence, &[1], Some(layer), Wanted::Last, &mut |_, _| ()).unwrap();
        }
        card.feed(&mut sequence, &[1], Some(&few), Wanted::Last, &mut |_, _| ()).unwrap();
    }
}

alone! {
    the_command_line_knows_devices [] {
        use cli::{Scratch, bad, good, json};
        let root = root();
        let (model, rows) = (root.join("models/fable-15m.gguf"), root.join("models/parrot.jsonl"));
        let card = device().to_string();
        let say = |device: &str| good(&args!["run", &model, "-p", "Once upon", "-n", "6", "--temp", "0", "--device", device]);
        assert_eq!(say(&card), say("cpu"));
        let scratch = Scratch::new("cuda");
        let out = scratch.join("x.gguf");
        let train = args!["train", &model, "--data", &rows, "-o", &out, "--max-steps", "1", "--batch-size", "1", "--rank", "2"];
        let plan = json(&[&train[..], &args!["--plan", "--device", &card]].concat());
        assert_eq!(plan["device"], *card);
        assert!(plan["device_memory"]["weights that stay"].as_u64() > Some(10 << 20), "{plan}");
        assert_eq!(plan["memory"]["activations and their gradients"], 0);
        let host = json(&[&train[..], &args!["--plan"]].concat());
        assert_eq!((&host["device"], &host["device_memory_bytes"]), (&"cpu".into(), &0.into()));
        let little = args!["--device", &card, "--gpu-memory", "3MB"];
        assert!(bad(1, &[&train[..], &little].concat()).contains("memory of the GPU"));
        for wrong in [args!["--device", "gpu"], args!["--gpu-memory", "3MB"]] {
            bad(2, &[&args!["run", &model, "-p", "x"][..], &wrong].concat());
        }
    }
}

alone! {
    no_driver_on_this_machine ["ONLAY_CUDA_LIBRARY" = "/nowhere/libcuda.so.1"] {
        let refused = Runner::new(model("llama/F32.gguf"), on(device())).unwrap_err();
        assert!(refused.kind() == Kind::Device && refused.to_string().contains("no CUDA driver"), "{refused}");
    }
}
