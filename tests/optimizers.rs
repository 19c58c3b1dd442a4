//! Runs with moments in 8 bits: they learn as runs in 32 do, stop and go on to the bit, and take what was planned.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::adapter::{Lora, Part};
use onlay::error::Kind;
use onlay::model::Model;
use onlay::rng::Rng;
use onlay::train::{Event, Flow, Moments, Optimizer, Outcome, Run, RunOptions, RunPlan, Start};
use runs::{Disk, bits, data, small};
use std::sync::Arc;
use support::*;

/// Arrays on both sides of the size from which there are 8 bits.
fn layer(model: &Model) -> Lora {
    let part = |(i, s): (usize, &onlay::model::program::SiteInfo)| {
        let rank = if i % 2 == 0 { s.inputs.min(s.outputs) } else { 3 };
        Some(Part::lora(rank, s.inputs, s.outputs, 0.5))
    };
    let mut layer = Lora::new(model.program().sites.iter().enumerate().map(part).collect());
    layer.start(&mut Rng::new(3));
    layer
}

fn options(threads: usize, optimizer: Optimizer) -> RunOptions {
    RunOptions { optimizer, ..small(threads) }
}

fn begin(model: &Arc<Model>, options: RunOptions, disk: &Disk) -> onlay::Result<Run> {
    Run::new(model.clone(), layer(model), data(model), options, Some(Box::new(disk.clone())))
}

#[test]
fn stopped_anywhere_it_ends_alike() {
    let model = open(vectors().join(runs::MODEL));
    let whole = |threads, optimizer| {
        let disk = Disk::default();
        let mut run = begin(&model, options(threads, optimizer), &disk).unwrap();
        let Outcome::Finished(summary) = run.go(&mut |_| Flow::Go).unwrap() else { panic!() };
        let newest = disk.0.lock().unwrap().slots.iter().flatten().map(Vec::len).max().unwrap();
        (bits(run.layer()), summary, newest)
    };
    let want = whole(1, Optimizer::AdamW8bit);
    assert!(want.0 == whole(2, Optimizer::AdamW8bit).0, "threads");
    for stop in [1, 3, 6] {
        let disk = Disk::default();
        let mut run = begin(&model, options(2, Optimizer::AdamW8bit), &disk).unwrap();
        run.go(&mut |e| match e {
            Event::Step(s) if s.step == stop => Flow::Stop,
            _ => Flow::Go,
        })
        .unwrap();
        // another optimiser is refused, by its name and by its arrays
        let error = begin(&model, options(1, Optimizer::AdamW), &disk).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        for text in ["optimizer: \"adamw\" now, \"adamw8bit\" in the checkpoint", "arrays"] {
            assert!(error.to_string().contains(text), "{error}");
        }
        let mut run = begin(&model, options(1, Optimizer::AdamW8bit), &disk).unwrap();
        assert_eq!(run.progress().steps, stop);
        run.go(&mut |_| Flow::Go).unwrap();
        assert!(want.0 == bits(run.layer()), "stopped after step {stop}");
    }
    // as good, and smaller
    let exact = whole(1, Optimizer::AdamW);
    let loss = |s: &onlay::train::Summary| s.evaluations.last().unwrap().loss;
    let (first, here, there) = (exact.1.evaluations[0].loss, loss(&want.1), loss(&exact.1));
    println!("held out {first:.4}: {here:.4} with 8 bits, {there:.4} with 32");
    assert!(here < first && (here - there).abs() < 0.05 * (first - there), "{here} against {there}");
    assert!(want.0 != exact.0 && want.2 < exact.2);
    assert_eq!(want.1.terms.get("optimizer"), Some("adamw8bit"));
    let manifest = want.1.manifest(&model);
    assert_eq!(manifest.recipe.unwrap()["optimizer"], "adamw8bit");
}

#[test]
fn the_plan_knows_its_bytes() {
    let model = open(vectors().join(runs::MODEL));
    for optimizer in Optimizer::ALL {
        let layer = layer(&model);
        let options = RunOptions { start: Start::New, ..options(1, optimizer) };
        let plan = RunPlan::new(&model, &layer, &data(&model), &options).unwrap();
        let planned = plan.memory.parts.iter().find(|(name, _)| *name == "moments").unwrap().1;
        let moments = Moments::new(optimizer, &layer);
        let held = |k: usize| -> usize {
            let n = layer.parts().len();
            (0..n).map(|i| 4 * moments.floats()[k].read(i).len() + moments.codes()[k].read(i).len()).sum()
        };
        assert_eq!(planned, (held(0) + held(1)) as u64);
        let full = 8 * layer.len() as u64;
        match optimizer {
            Optimizer::AdamW => assert_eq!(planned, full),
            Optimizer::AdamW8bit => assert!(2 * planned < full, "{planned} of {full}"),
        }
    }
    assert!(Optimizer::named("sgd").is_err());
    assert!(Optimizer::ALL.iter().all(|o| Optimizer::named(o.name()).unwrap() == *o));
}
