//! What ends a run before its last step, and which layer is left then.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::adapter::{Adapter, Manifest, Method, New};
use onlay::train::{Ending, Event, Flow, Length, Outcome, Recipe, Run, RunOptions, Set, Shape};
use onlay_kernels::Level;
use runs::*;
use support::*;

#[test]
fn a_diverging_run_ends_with_the_layer_from_before() {
    let model = open(vectors().join(MODEL));
    // Learns for as long as the rate warms up, and is off the numbers it knew from some step on.
    let wild = |rate, guard| RunOptions {
        recipe: Recipe { rate, warmup: 300, shape: Shape::Constant, max_norm: 0.0, ..Recipe::default() },
        length: Length::Steps(300),
        checkpoint_every: Some(10),
        eval_every: None,
        guard,
        ..small(2)
    };
    let at_rate = |rate, guard, stop_at: u64, disk: &Disk| {
        let mut run = prepare(&model, wild(rate, guard), disk).unwrap();
        let layer = run.layer().clone();
        let (mut losses, mut layers) = (Vec::new(), Vec::new());
        let outcome = run.go(&mut |e| {
            if let Event::Step(s) = e {
                losses.push(s.report.loss);
                layers.push((s.step, bits(&layer)));
                if s.step == stop_at {
                    return Flow::Stop;
                }
            }
            Flow::Go
        });
        (outcome, losses, layers, bits(&layer))
    };
    // How long it holds out depends on the last bits, which differ from one level of instructions to another.
    let late = |rate: &f64| {
        let done = at_rate(*rate, true, 0, &Disk::default()).0;
        matches!(done, Ok(Outcome::Halted { summary, why }) if summary.layer > 3 && why.to_string().contains("above its mean"))
    };
    let rate = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0].into_iter().find(late).expect("a rate at which it runs away");
    let run_of = |guard, stop_at: u64, disk: &Disk| at_rate(rate, guard, stop_at, disk);
    let (outcome, losses, layers, left) = run_of(true, 0, &Disk::default());
    let Outcome::Halted { summary, why } = outcome.unwrap() else { panic!("{losses:?}") };
    println!("{why}\n{:.3?}", &losses[summary.layer as usize - 3..]);
    assert!(why.to_string().contains("step ") && why.to_string().contains("above its mean"), "{why}");
    assert_eq!(summary.ending, Ending::Halted(why.to_string()));
    // Seven high steps were taken after the good one, and the eighth was not.
    assert_eq!(summary.layer, summary.steps - 8);
    assert!(losses.len() as u64 == summary.steps && summary.layer > 3);
    let good = layers.iter().find(|(step, _)| *step == summary.layer).unwrap();
    assert!(left == good.1);
    let bar = losses[summary.layer as usize];
    assert!(losses[summary.layer as usize + 1..].iter().all(|l| *l > bar));

    // Stopped in the middle of it and continued, it ends alike.
    for stop in [summary.layer, summary.layer + 1, summary.layer + 5, summary.steps] {
        let disk = Disk::default();
        assert!(matches!(run_of(true, stop, &disk).0, Ok(Outcome::Stopped { .. })));
        let (outcome, _, _, found) = run_of(true, 0, &disk);
        let Ok(Outcome::Halted { summary: again, .. }) = outcome else { panic!() };
        assert_eq!((again.layer, again.steps), (summary.layer, summary.steps));
        assert!(found == left, "stopped after step {stop}");
    }
    // Without the rule it goes on.
    let (_, more, ..) = run_of(false, 0, &Disk::default());
    assert!(more.len() > losses.len());
}

/// A rate at which the held-out loss falls and rises again.
fn overfits(threads: usize) -> RunOptions {
    RunOptions {
        recipe: Recipe { rate: 2e-2, shape: Shape::Constant, ..small(1).recipe },
        length: Length::Steps(120),
        eval_every: Some(5),
        dropout: 0.0,
        keep_best: true,
        ..small(threads)
    }
}

/// What is published of a method whose numbers follow from others belongs to the step that is left, not to the last.
#[test]
fn what_follows_from_the_best_layer_is_that_layers() {
    let model = open(vectors().join(MODEL));
    let level = Level::chosen().unwrap();
    for method in ["ptuning", "dora", "lokr"] {
        let of = New { rank: 2, ..New::of(Method::named(method).unwrap()) };
        let layer = of.layer(&model, level, 1).unwrap();
        let mut options = overfits(1);
        options.recipe.rate = 0.1;
        options.guard = false;
        let mut run = Run::new(model.clone(), layer, runs::data(&model), options, None).unwrap();
        let Outcome::Finished(summary) = run.go(&mut |_| Flow::Go).unwrap() else { panic!() };
        assert!(summary.layer < summary.steps, "{method}: the last step was the best");
        let left = run.layer().copy();
        left.settle(&model, level, &mut |n, f| (0..n).for_each(f));
        let want = Adapter::new("my", left, Manifest::default(), model.program()).unwrap();
        assert_eq!(run.adapter("my", &summary).unwrap().id(), want.id(), "{method}");
    }
}

#[test]
fn the_best_evaluation_is_what_is_left_however_often_it_was_stopped() {
    let model = open(vectors().join(MODEL));
    let mut layers = Vec::new();
    let disk = Disk::default();
    let mut run = prepare(&model, RunOptions { early_stop: Some(4), ..overfits(1) }, &disk).unwrap();
    let layer = run.layer().clone();
    let outcome = run.go(&mut |e| {
        if let Event::Evaluated(e) = e {
            layers.push((e.step, e.loss, bits(&layer)));
        }
        Flow::Go
    });
    let Ok(Outcome::Finished(summary)) = outcome else { panic!("{outcome:?}") };
    let best = layers.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    println!("best after step {} of {}", best.0, summary.steps);
    assert!(best.0 > 0 && summary.layer == best.0 && bits(&layer) == best.2);
    assert_eq!(summary.ending, Ending::EarlyStop);
    assert_eq!(summary.steps, best.0 + 4 * 5);
    assert_eq!(summary.before_and_after().unwrap(), (layers[0].1, best.1));
    let want = end(&run, &summary, &disk);
    let manifest = run.adapter("my", &summary).unwrap().manifest().clone();
    assert_eq!(manifest.steps, Some(best.0));

    for patience in [21, 40] {
        let disk = Disk::default();
        let found = loop {
            let options = RunOptions { early_stop: Some(4), ..overfits(1 + patience % 2) };
            let mut run = prepare(&model, options, &disk).unwrap();
            let mut left = patience;
            let outcome = run.go(&mut |_| {
                left = left.saturating_sub(1);
                if left == 0 { Flow::Stop } else { Flow::Go }
            });
            if let Outcome::Finished(summary) = outcome.unwrap() {
                break end(&run, &summary, &disk);
            }
        };
        assert!(want.0 == found.0 && want.1 == found.1, "patience {patience}");
    }
    // Without an early stop it goes to the end, and the best is the best of all.
    let disk = Disk::default();
    let mut run = prepare(&model, overfits(2), &disk).unwrap();
    let Ok(Outcome::Finished(summary)) = run.go(&mut |_| Flow::Go) else { panic!() };
    let lowest = summary.evaluations.iter().map(|e| e.loss).fold(f64::INFINITY, f64::min);
    assert_eq!((summary.steps, summary.before_and_after().unwrap().1), (120, lowest));
}

#[test]
fn what_they_need_is_said_before_the_run() {
    let model = open(vectors().join(MODEL));
    let options = RunOptions {
        early_stop: Some(0),
        keep_best: true,
        eval_every: None,
        checkpoint_every: None,
        ..small(1)
    };
    let error = prepare(&model, options.clone(), &Disk::default()).unwrap_err();
    assert_eq!(error.findings().len(), 3, "{error}");
    assert!(error.to_string().contains("keep-best: expected evaluation rows"), "{error}");
    let mut rows = data(&model);
    rows.eval = Set::default();
    let options = RunOptions { early_stop: Some(1), eval_every: Some(2), ..options };
    let error = onlay::train::Run::new(model.clone(), layer(&model, "", 2), rows, options, None).unwrap_err();
    assert!(error.to_string().contains("no evaluation rows"), "{error}");
    // They decide what is left: a checkpoint without them is of another run.
    let disk = Disk::default();
    prepare(&model, small(1), &disk).unwrap().go(&mut |_| Flow::Stop).unwrap();
    let options = RunOptions { keep_best: true, guard: false, early_stop: Some(3), ..small(1) };
    let error = prepare(&model, options, &disk).unwrap_err().to_string();
    for name in ["divergence-guard: ", "early-stop: ", "keep-best: ", "eval-every: ", "expected 2"] {
        assert!(name == "expected 2" || error.contains(name), "{name}: {error}");
    }
}
