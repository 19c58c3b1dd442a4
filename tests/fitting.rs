//! A run that is told how much memory it may take: what it chooses, that it learns the same, and that it keeps to it.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::adapter::{Lora, Part};
use onlay::error::Kind;
use onlay::model::Model;
use onlay::rng::Rng;
use onlay::train::{
    Data, Event, Example, Fit, Flow, Keep, Length, Optimizer, Origin, Outcome, Run, RunOptions, RunPlan, Set,
    Start,
};
use onlay_kernels::Level;
use runs::Disk;
use std::sync::Arc;
use support::*;

fn layer(model: &Model, most: usize) -> Lora {
    let sites = model.program().sites.iter();
    let part = |s: &onlay::model::program::SiteInfo| {
        Part::lora(most.min(s.inputs).min(s.outputs), s.inputs, s.outputs, 1.0)
    };
    let mut layer = Lora::new(sites.map(|s| Some(part(s))).collect());
    layer.start(&mut Rng::new(3));
    layer
}

/// 48 rows of 20 to 60 tokens.
fn data(vocabulary: usize) -> Data {
    let mut rng = Rng::new(9);
    let mut set = Set::default();
    for row in 0..48 {
        let n = 20 + rng.below(41) as usize;
        let tokens = (0..n).map(|_| rng.below(vocabulary as u64) as u32).collect();
        set.examples.push(Example { tokens, trained: (0..n).map(|i| i > 0).collect() });
        set.origins.push(Origin { row, ..Origin::default() });
    }
    Data { train: set, eval: Set::default() }
}

fn options() -> RunOptions {
    RunOptions {
        length: Length::Steps(5),
        batch_size: 4,
        grad_accumulation: 4,
        checkpoint_after: None,
        ..RunOptions::new(Level::chosen().unwrap(), 2)
    }
}

/// The losses and rows of the first steps.
fn steps(model: &Arc<Model>, layer: Lora, options: RunOptions) -> Vec<(f64, usize)> {
    let mut seen = Vec::new();
    let data = data(model.program().vocabulary);
    let mut run = Run::new(model.clone(), layer, data, options, None).unwrap();
    run.go(&mut |e| {
        if let Event::Step(s) = e {
            seen.push((s.report.loss, s.report.tokens));
        }
        Flow::Go
    })
    .unwrap();
    seen
}

#[test]
fn less_memory_is_more_passes_then_fewer_bits_and_the_same_steps() {
    let model = open(vectors().join("llama/F32.gguf"));
    let (layer, data) = (|| layer(&model, 512), data(model.program().vocabulary));
    let fit = |most, free| Fit::new(&model, &layer(), &data, &options(), most, u64::MAX, free);
    let whole = fit(None, true).unwrap();
    assert_eq!((whole.options.keep, whole.options.optimizer), (Keep::Registers, Optimizer::AdamW));
    let want = steps(&model, layer(), whole.options.clone());
    let (mut most, mut ways, mut choices) = (whole.plan.memory.total(), Vec::new(), 0);
    let refused = loop {
        let fit = match fit(Some(most), true) {
            Ok(fit) => fit,
            Err(e) => break e,
        };
        choices += 1;
        assert!(fit.plan.memory.total() <= most);
        let way = (fit.options.keep, fit.plan.options.rows, fit.options.optimizer);
        println!("{most}: {} ({} bytes)", fit.chosen(), fit.plan.memory.total());
        assert!(fit.chosen().contains(fit.options.optimizer.name()));
        ways.push(way);
        // the same rows, whose sums are rounded otherwise, and moments that are
        let bound = if fit.options.optimizer == Optimizer::AdamW { 1e-5 } else { 2e-2 };
        for ((here, n), (there, m)) in steps(&model, layer(), fit.options).iter().zip(&want) {
            assert_eq!(n, m);
            assert!((here / there - 1.0).abs() < bound, "{way:?}: {here} against {there}");
        }
        most = fit.plan.memory.total() - 1;
    };
    assert!(choices >= 6, "{ways:?}");
    // never back to what takes more
    let order = |w: &(Keep, usize, Optimizer)| (w.2 == Optimizer::AdamW8bit, w.0 == Keep::Streams);
    assert!(ways.windows(2).all(|w| order(&w[0]) <= order(&w[1])), "{ways:?}");
    assert_eq!(ways.last().unwrap().2, Optimizer::AdamW8bit);
    assert_eq!(ways.last().unwrap().1, data.longest(&onlay::train::objective::OBJECTIVES[0], 512, 0).1);

    // What is refused says what would fit, and that does.
    assert_eq!(refused.kind(), Kind::Memory);
    let text = refused.to_string();
    let number = |after: &str| -> usize {
        let rest = text.split(after).nth(1).unwrap_or_else(|| panic!("{after:?} is not in: {text}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert_eq!(number("--memory: expected at least "), most as usize + 1);
    let (context, rank) = (number("--ctx "), number("--rank "));
    let mut short = data.clone();
    for e in &mut short.train.examples {
        e.tokens.truncate(context + 1);
        e.trained.truncate(context + 1);
    }
    assert!(Fit::new(&model, &layer(), &short, &options(), Some(most), 0, true).is_ok(), "{text}");
    let smaller = self::layer(&model, rank);
    assert!(Fit::new(&model, &smaller, &data, &options(), Some(most), 0, true).is_ok(), "{text}");

    // An optimiser that was named stays, and the other is what would fit.
    let named = fit(Some(most + 1), false).unwrap_err().to_string();
    assert!(named.contains("--optimizer adamw8bit would fit"), "{named}");
    // The promise is checked by whoever plans.
    let promised = RunOptions { memory: Some(1000), ..options() };
    let error = RunPlan::new(&model, &layer(), &data, &promised).unwrap_err();
    assert_eq!(error.kind(), Kind::Memory, "{error}");
}

#[test]
fn a_run_that_takes_more_than_promised_stops_and_can_go_on() {
    if onlay::train::held_memory().is_none() {
        println!("skipped: the system does not tell how much memory a process holds");
        return;
    }
    let model = open(vectors().join("llama/F32.gguf"));
    let data = data(model.program().vocabulary);
    let fit = Fit::new(&model, &layer(&model, 8), &data, &options(), Some(40 << 20), 0, true).unwrap();
    let disk = Disk::default();
    let begin = |options: RunOptions| {
        let store = Box::new(disk.clone());
        Run::new(model.clone(), layer(&model, 8), data.clone(), options, Some(store)).unwrap()
    };
    let mut hoard = Vec::new();
    let error = begin(fit.options.clone())
        .go(&mut |e| {
            if matches!(e, Event::Step(s) if s.step == 2) {
                hoard = vec![1u8; 60 << 20];
            }
            Flow::Go
        })
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Memory, "{error}");
    assert!(error.to_string().contains("step 2"), "{error}");
    assert!(hoard.iter().all(|b| *b == 1));
    drop(hoard);
    let mut run = begin(RunOptions { start: Start::Resume, ..fit.options });
    assert_eq!(run.progress().steps, 2);
    assert!(matches!(run.go(&mut |_| Flow::Go).unwrap(), Outcome::Finished(_)));
}
