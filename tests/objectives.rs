//! The preference objectives against TRL's own losses (see `tests/oracles/README.md`): loss, rewards and gradients of a step,
//! and a curve of twelve.

mod support;
use onlay::adapter::{Adapter, Names};
use onlay::ops::kv::Precision;
use onlay::train::objective::{Goal, named};
use onlay::train::{
    Example, Keep, Optimizer, Origin, Recipe, Role, Set, Shape, Signal, TrainOptions, Trainer,
};
use onlay_kernels::Level;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use support::*;

/// Rows of tokens, as the oracle writes them.
fn rows(path: &Path) -> Set {
    let mut set = Set::default();
    for (row, line) in std::fs::read_to_string(path).unwrap().lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        let ids = |key: &str| -> Vec<u32> {
            line[key].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
        };
        let mut push = |key: &str, role| {
            let (prompt, answer) = (ids("prompt_ids"), ids(key));
            let trained = (0..prompt.len() + answer.len()).map(|i| i >= prompt.len()).collect();
            set.examples.push(Example { tokens: [prompt, answer].concat(), trained });
            set.origins.push(Origin { row, role, lost: 0 });
        };
        match line.get("label") {
            Some(label) if label == true => push("completion_ids", Role::Desirable),
            Some(_) => push("completion_ids", Role::Undesirable),
            None => {
                push("chosen_ids", Role::Chosen);
                push("rejected_ids", Role::Rejected);
            }
        }
    }
    set
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap()
}

/// How the passes of a case are cut; the smallest has room for one pair.
const CUTS: [(usize, Keep, usize); 3] =
    [(256, Keep::Streams, 2), (64, Keep::Registers, 1), (128, Keep::Streams, 1)];

/// The worst relative deviations of a case: loss of the first step, its gradients, losses and gradient norms of all.
fn follow(model: &str, case: &str, (pass_rows, keep, threads): (usize, Keep, usize)) -> [f64; 4] {
    let folder = vectors().join(model);
    let model = open(folder.join("F32.gguf"));
    let kind = case.split('-').next().unwrap();
    let set =
        rows(&folder.join("objectives").join(if kind == "kto" { "feedback.jsonl" } else { "pairs.jsonl" }));
    let stored: Value =
        serde_json::from_slice(&std::fs::read(folder.join(format!("objectives/{case}.json"))).unwrap())
            .unwrap();
    let settings = &stored["settings"];
    let given = ["beta", "label-smoothing", "simpo-gamma", "desirable-weight", "undesirable-weight"]
        .into_iter()
        .filter_map(|name| Some((name, stored["numbers"].get(name.replace('-', "_"))?.as_f64()?)));
    let goal = Goal::choose(Some(named(kind).unwrap()), set.signal(), &given.collect::<Vec<_>>()).unwrap();
    let recipe = Recipe {
        plus: 1.0,
        rate: number(&settings["learning_rate"]),
        shape: Shape::Constant,
        warmup: 0,
        decay: number(&settings["weight_decay"]),
        max_norm: number(&settings["max_grad_norm"]),
        beta1: number(&settings["betas"][0]),
        beta2: number(&settings["betas"][1]),
        epsilon: number(&settings["epsilon"]),
    };
    let (adapter, _) = Adapter::open(folder.join(stored["adapter"].as_str().unwrap()), &model).unwrap();
    let mut layer = adapter.to_lora();
    layer.learn(pass_rows, 0.0, 0).unwrap();
    let layer = Arc::new(layer);
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: threads.into(),
        rows: pass_rows,
        context: 64,
        sequences: 4,
        kv: Precision::F32,
        keep,
        optimizer: Optimizer::default(),
        device: onlay::backend::Device::Host,
    };
    let mut trainer = Trainer::new(Arc::clone(&model), Arc::clone(&layer), options).unwrap();
    let window = settings["window"].as_u64().unwrap() as usize;
    trainer.set_goal(goal, window).unwrap();
    let mut references = vec![f64::NAN; set.examples.len()];
    let steps = stored["steps"].as_array().unwrap();
    let first_loss = number(&steps[0]["loss"]).abs();
    let mut worst = [0f64; 4];
    for (i, step) in steps.iter().enumerate() {
        let units: Vec<u32> = (0..window).map(|k| ((i * window + k) % set.units()) as u32).collect();
        let before = trainer.compare(&set, &units, &mut references, None).unwrap();
        let (report, rewards) =
            trainer.compare(&set, &units, &mut references, Some((&recipe, steps.len() as u64))).unwrap();
        // looking is not learning, and sees the same
        assert_eq!(before.0.loss.to_bits(), report.loss.to_bits());
        assert_eq!(before.1, rewards);
        let want = number(&step["loss"]);
        let off = (report.loss - want).abs() / want.abs().max(0.01 * first_loss);
        worst[2] = worst[2].max(off);
        worst[3] = worst[3].max((report.grad_norm / number(&step["grad_norm"]) - 1.0).abs());
        let bound = if i == 0 { 1e-4 } else { 0.02 };
        let mut named = 0;
        for (name, got) in rewards.iter() {
            let Some(want) = step.get(name).and_then(Value::as_f64) else {
                assert!(kind == "kto" && name == "rewards/accuracies", "{name}"); // TRL has none there
                continue;
            };
            // SimPO's and ORPO's log-probabilities are means over tokens in TRL, sums here
            if name.starts_with("logps") && ["orpo", "simpo"].contains(&kind) {
                continue;
            }
            named += 1;
            let off = (got - want).abs() / want.abs().max(0.1);
            assert!(off < bound, "{case}, step {}: {name} {got}, TRL {want}", i + 1);
        }
        assert!(named >= 4);
        if i == 0 {
            worst[0] = off;
            if folder.ends_with("llama") {
                worst[1] = gradients(&folder.join(format!("objectives/{case}.safetensors")), &model, &layer);
            }
        }
    }
    worst
}

/// The worst relative deviation of a gradient.
fn gradients(path: &Path, model: &onlay::model::Model, layer: &onlay::adapter::Lora) -> f64 {
    let answers = Answers::open(path);
    let names = Names::of(model.program());
    let (mut worst, mut seen) = (0f64, 0);
    for (site, part) in names.sites().zip(layer.parts()) {
        let Some(part) = part else { continue };
        let gradient = layer.grads().read(site.0 as usize).clone();
        let (a, b) = gradient.split_at(part.rank * part.inputs);
        let b: Vec<f32> = (0..part.outputs)
            .flat_map(|o| (0..part.rank).map(move |j| (o, j)))
            .map(|(o, j)| b[j * part.outputs + names.row(site, o)])
            .collect();
        for (half, got) in [("A", a), ("B", &b[..])] {
            let key = format!("base_model.model.{}.lora_{half}.weight", names.module(site).unwrap());
            let want = answers.numbers(&key);
            assert_eq!(got.len(), want.len());
            let norm = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
            let error = norm(&|i| f64::from(got[i]) - want[i]) / norm(&|i| want[i]);
            assert!(error < 1e-3, "{key}: {error:.1e}");
            worst = worst.max(error);
            seen += 1;
        }
    }
    assert_eq!(seen, answers.names().len());
    worst
}

macro_rules! cases { ($($test:ident $($case:literal)*;)*) => { $(
    #[test]
    fn $test() {
        for case in [$($case),*] {
            for (model, cuts) in [("llama", &CUTS[..]), ("qwen2", &CUTS[..1])] {
                for cut in cuts {
                    let [loss, gradient, curve, norms] = follow(model, case, *cut);
                    println!(
                        "{model} {case} {cut:?}: loss {loss:.1e}, gradients {gradient:.1e}, losses of the curve \
                         {curve:.1e}, its norms {norms:.1e}"
                    );
                    assert!(loss < 1e-5 && curve < 0.01 && norms < 0.02, "{model} {case}");
                }
            }
        }
    }
)* } }
cases! {
    dpo "dpo" "dpo-smooth";
    ipo "ipo";
    orpo "orpo";
    simpo "simpo" "simpo-paper";
    kto "kto" "kto-weighted";
}

/// Where a pass has more rows than the head takes at a time, their logits are computed twice.
#[test]
fn gradients_do_not_depend_on_the_passes() {
    let folder = vectors().join("llama");
    let model = open(folder.join("F32.gguf"));
    let set = rows(&folder.join("objectives/pairs.jsonl"));
    assert!(set.examples.iter().map(Example::count).sum::<usize>() > 128, "one pass, two rounds of the head");
    let (adapter, _) = Adapter::open(folder.join("lora-attention"), &model).unwrap();
    let step = |objective: &str, rows: usize, sequences: usize, pack: bool| {
        let mut layer = adapter.to_lora();
        layer.learn(rows, 0.25, 7).unwrap();
        let layer = Arc::new(layer);
        let options = TrainOptions {
            level: Level::chosen().unwrap(),
            threads: 2.into(),
            rows,
            context: 40,
            sequences,
            kv: Precision::F32,
            keep: Keep::Streams,
            optimizer: Optimizer::default(),
            device: onlay::backend::Device::Host,
        };
        let mut trainer = Trainer::new(Arc::clone(&model), Arc::clone(&layer), options).unwrap();
        trainer.set_packing(pack);
        let goal = Goal::choose(Some(named(objective).unwrap()), Signal::Pairs, &[]).unwrap();
        trainer.set_goal(goal, 8).unwrap();
        let mut references = vec![f64::NAN; set.examples.len()];
        let units: Vec<u32> = (0..8).collect();
        let recipe = Recipe { rate: 1e-30, ..Recipe::default() };
        let (report, _) = trainer.compare(&set, &units, &mut references, Some((&recipe, 1))).unwrap();
        let grads: Vec<f32> = (0..layer.parts().len()).flat_map(|i| layer.grads().read(i).clone()).collect();
        (report.loss, grads)
    };
    for objective in ["dpo", "orpo"] {
        let (loss, grads) = step(objective, 400, 16, true);
        let norm = |g: &[f32]| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        for (rows, sequences, pack) in [(64, 2, true), (90, 7, false), (200, 16, true)] {
            let (other, others) = step(objective, rows, sequences, pack);
            assert!((loss - other).abs() < 1e-12 * loss, "{loss} {other}");
            let off: Vec<f32> = grads.iter().zip(&others).map(|(a, b)| a - b).collect();
            assert!(norm(&off) < 1e-5 * norm(&grads), "{objective} {rows}: {:e}", norm(&off) / norm(&grads));
        }
    }
}

#[test]
fn references_do_not_depend_on_the_pass_and_a_pair_stays_whole() {
    let folder = vectors().join("llama");
    let model = open(folder.join("F32.gguf"));
    let set = rows(&folder.join("objectives/pairs.jsonl"));
    let (adapter, _) = Adapter::open(folder.join("lora-attention"), &model).unwrap();
    let remembered = |rows: usize, sequences: usize, window: usize| {
        let mut layer = adapter.to_lora();
        layer.learn(rows, 0.0, 0).unwrap();
        let options = TrainOptions {
            level: Level::chosen().unwrap(),
            threads: 2.into(),
            rows,
            context: 40,
            sequences,
            kv: Precision::F16,
            keep: Keep::Streams,
            optimizer: Optimizer::default(),
            device: onlay::backend::Device::Host,
        };
        let mut trainer = Trainer::new(Arc::clone(&model), Arc::new(layer), options).unwrap();
        assert!(trainer.compare(&set, &[0], &mut [], None).is_err(), "no goal was set");
        trainer.set_goal(Goal::choose(None, Signal::Pairs, &[]).unwrap(), window).unwrap();
        let mut references = vec![f64::NAN; set.examples.len()];
        let (report, rewards) =
            trainer.evaluate_compared(&set, window, &mut references, &mut |_| true).unwrap().unwrap();
        let bits: Vec<u64> = references.iter().map(|r| r.to_bits()).collect();
        (bits, report.loss, rewards)
    };
    let (bits, loss, rewards) = remembered(256, 16, 8);
    for (rows, sequences, window) in [(64, 2, 1), (100, 5, 3), (70, 3, 8)] {
        let (other, other_loss, other_rewards) = remembered(rows, sequences, window);
        assert_eq!(bits, other);
        assert!((loss - other_loss).abs() < 1e-12);
        assert_eq!(rewards.accuracies, other_rewards.accuracies);
    }
    // the log-probabilities are those that scoring sees, without any layer
    let mut options = options(2);
    options.kv = Precision::F16;
    let mut runner = runner(&model, options);
    for (example, bits) in set.examples.iter().zip(bits) {
        let all = log_probabilities(&logits(&mut runner, &example.tokens, None), &example.tokens);
        let sum: f64 = all.iter().zip(&example.trained[1..]).filter(|(_, t)| **t).map(|(p, _)| p).sum();
        assert!((sum - f64::from_bits(bits)).abs() < 1e-5 * sum.abs(), "{sum} {}", f64::from_bits(bits));
    }
}
