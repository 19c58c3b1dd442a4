//! Rows with weights: losses and gradients against sums of those of single rows in f64, and runs that have them.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::error::Kind;
use onlay::model::Model;
use onlay::ops::kv::Precision;
use onlay::rng::Rng;
use onlay::train::{
    Balance, Data, Event, Example, Flow, Keep, Optimizer, Origin, Recipe, Role, Run, RunOptions, RunPlan,
    Set, TrainOptions, Trainer,
};
use onlay_kernels::Level;
use runs::{Disk, bits, layer, small};
use std::sync::Arc;
use support::*;

/// Rows of a classification: a prompt, and one of three answers, of which one is nine times as frequent.
fn rows(vocabulary: usize, n: usize) -> Set {
    let mut rng = Rng::new(4);
    let mut set = Set::default();
    for row in 0..n {
        let prompt = 5 + rng.below(20) as usize;
        let mut tokens: Vec<u32> = (0..prompt).map(|_| rng.below(vocabulary as u64) as u32).collect();
        tokens.extend([&[1, 2][..], &[3, 2], &[4, 5, 2]][[0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 1][row % 12]]);
        let trained = (0..tokens.len()).map(|i| i >= prompt).collect();
        set.examples.push(Example { tokens, trained });
        set.origins.push(Origin { row, ..Origin::default() });
    }
    set
}

#[test]
fn losses_and_gradients_are_weighted_sums() {
    let model = open(vectors().join("llama/F32.gguf"));
    let mut layer = layer(&model, "", 3);
    for i in 0..layer.parts().len() {
        let mut rng = Rng::new(i as u64);
        layer.params().get(i).iter_mut().for_each(|w| *w = 0.05 * rng.normal());
    }
    layer.learn(100, 0.0, 7).unwrap();
    let layer = Arc::new(layer);
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: 2.into(),
        rows: 100,
        context: 50,
        sequences: 8,
        kv: Precision::F32,
        keep: Keep::Streams,
        optimizer: Optimizer::AdamW,
        device: onlay::backend::Device::Host,
    };
    let mut trainer = Trainer::new(model.clone(), layer.clone(), options).unwrap();
    let set = rows(model.program().vocabulary, 12);
    let recipe = Recipe { max_norm: 0.0, ..Recipe::default() };
    // gradients, and no step
    let mut gradients = |examples: &[&Example], weights: &[f32]| {
        let mut loss = 0.0;
        let done = trainer.step_weighted(examples, weights, &recipe, 10, &mut |r| {
            loss = r.loss;
            false
        });
        assert!(done.unwrap().is_none());
        let all = (0..layer.parts().len()).flat_map(|i| layer.grads().read(i).clone());
        (loss, all.map(f64::from).collect::<Vec<f64>>())
    };
    let all: Vec<&Example> = set.examples.iter().collect();
    let tokens: usize = all.iter().map(|e| e.count()).sum();
    let single: Vec<_> = all.iter().map(|e| gradients(&[*e], &[])).collect();
    for balance in Balance::ALL {
        let weights = balance.weights(&set).unwrap();
        let (loss, gradient) = gradients(&all, &weights);
        let weight = |i: usize| weights.get(i).map_or(1.0, |w| f64::from(*w));
        // of a single row the mean over its own tokens
        let share = |i: usize| weight(i) * all[i].count() as f64 / tokens as f64;
        let direct: f64 = (0..12).map(|i| share(i) * single[i].0).sum();
        assert!((loss / direct - 1.0).abs() < 1e-6, "{balance:?}: {loss} against {direct}");
        let (mut off, mut whole) = (0.0, 0.0);
        for (j, g) in gradient.iter().enumerate() {
            let direct: f64 = (0..12).map(|i| share(i) * single[i].1[j]).sum();
            off += (g - direct).powi(2);
            whole += direct.powi(2);
        }
        let off = (off / whole).sqrt();
        println!("{balance:?}: loss {loss:.6}, gradients off by {off:.1e}");
        assert!(off < 1e-5, "{balance:?}: {off:.1e}");
    }
    let error = trainer.step_weighted(&all, &[1.0], &recipe, 10, &mut |_| true).unwrap_err();
    assert_eq!(error.kind(), Kind::Argument);
}

fn data(model: &Model) -> Data {
    let set = rows(model.program().vocabulary, 48);
    Data { train: set, eval: rows(model.program().vocabulary, 5) }
}

fn begin(model: &Arc<Model>, options: RunOptions, disk: &Disk) -> onlay::Result<Run> {
    Run::new(model.clone(), layer(model, "", 2), data(model), options, Some(Box::new(disk.clone())))
}

#[test]
fn a_balance_is_a_term_of_the_run_and_stops_and_goes_on() {
    let model = open(vectors().join(runs::MODEL));
    let options = |threads, balance| RunOptions { balance, ..small(threads) };
    let whole = |balance| {
        let mut run = begin(&model, options(1, balance), &Disk::default()).unwrap();
        let mut first = None;
        run.go(&mut |e| {
            if let Event::Step(s) = e {
                first.get_or_insert(s.report);
            }
            Flow::Go
        })
        .unwrap();
        (bits(run.layer()), first.unwrap(), run.terms().get("balance").unwrap().to_owned())
    };
    let want = whole(Balance::Inverse);
    let (none, root) = (whole(Balance::None), whole(Balance::Sqrt));
    assert_eq!((&want.2[..], &none.2[..], &root.2[..]), ("inverse", "none", "sqrt"));
    assert!(want.0 != none.0 && want.0 != root.0 && root.0 != none.0);
    assert_ne!(want.1.loss, none.1.loss);
    let disk = Disk::default();
    let stop = &mut |e: &Event<'_>| match e {
        Event::Step(s) if s.step == 3 => Flow::Stop,
        _ => Flow::Go,
    };
    begin(&model, options(2, Balance::Inverse), &disk).unwrap().go(stop).unwrap();
    let error = begin(&model, options(1, Balance::Sqrt), &disk).unwrap_err().to_string();
    assert!(error.contains("balance: \"sqrt\" now, \"inverse\" in the checkpoint"), "{error}");
    let mut run = begin(&model, options(1, Balance::Inverse), &disk).unwrap();
    run.go(&mut |_| Flow::Go).unwrap();
    assert!(want.0 == bits(run.layer()));
    // Pairs have no answers to count, and rows that all differ none to weigh.
    let mut judged = data(&model);
    for (i, o) in judged.train.origins.iter_mut().enumerate() {
        o.role = if i % 2 == 0 { Role::Chosen } else { Role::Rejected };
    }
    judged.eval = Set::default();
    let options = RunOptions { balance: Balance::Inverse, ..small(1) };
    let error = RunPlan::new(&model, &layer(&model, "", 2), &judged, &options).unwrap_err().to_string();
    assert!(error.contains("balance: expected supervised rows, found pairs"), "{error}");
    let text = runs::data(&model);
    let error = RunPlan::new(&model, &layer(&model, "", 2), &text, &options).unwrap_err().to_string();
    assert!(error.contains("balance: expected 2 to 1024 answers"), "{error}");
}
