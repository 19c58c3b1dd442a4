//! Learning rates and ranks that are tried before a run: the range test and the search.

mod support;
use onlay::adapter::{Lora, METHODS, Method, New};
use onlay::error::Kind;
use onlay::model::Model;
use onlay::rng::Rng;
use onlay::train::{
    Choice, Chosen, Data, Example, Flow, Length, Origin, Recipe, Role, RunOptions, Set, find_rate, search,
};
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

/// A model that has learned something: over random weights a layer that breaks everything is as good as any.
fn fable() -> Arc<Model> {
    open(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fable-15m.gguf"))
}

/// Rows that repeat a short motif, so that there is something to learn.
fn rows(vocabulary: usize, n: usize, seed: u64) -> Set {
    let mut rng = Rng::new(seed);
    let mut set = Set::default();
    for row in 0..n {
        let period = 3 + rng.below(3) as usize;
        let motif: Vec<u32> = (0..period).map(|_| rng.below(vocabulary as u64) as u32).collect();
        let tokens: Vec<u32> = (0..16).map(|i| motif[i % period]).collect();
        set.examples.push(Example { trained: (0..16).map(|i| i > 0).collect(), tokens });
        set.origins.push(Origin { row, ..Origin::default() });
    }
    set
}

fn data(model: &Model) -> Data {
    let n = model.program().vocabulary;
    Data { train: rows(n, 64, 1), eval: rows(n, 4, 2) }
}

fn layer(model: &Model, method: &'static Method, rank: usize) -> Lora {
    New { rank, ..New::of(method) }.layer(model, Level::chosen().unwrap(), 1).unwrap()
}

fn options(threads: usize) -> RunOptions {
    let recipe = Recipe { rate: 3e-3, ..Recipe::default() };
    RunOptions {
        length: Length::Steps(90),
        batch_size: 4,
        recipe,
        ..RunOptions::new(Level::chosen().unwrap(), threads)
    }
}

#[test]
fn the_range_test_finds_rates_that_learn_and_such_that_do_not() {
    let model = fable();
    let data = data(&model);
    let test = |threads, range| {
        let layer = layer(&model, &METHODS[0], 4);
        find_rate(&model, layer, &data, &options(threads), range, 32, &mut |_| Flow::Go).unwrap()
    };
    let found = test(1, (1e-5, 1e3));
    assert_eq!(found, test(2, (1e-5, 1e3)), "the same at any number of threads");
    assert!(found.diverged && found.probes.len() < 32);
    let (first, second) = (found.probes[0], found.probes[1]);
    // nothing has changed before the first step, and next to nothing before the second
    assert_eq!((first.rate, first.gain), (1e-5, 0.0));
    assert!(second.rate > first.rate && second.gain.abs() < 0.05);
    let (lowest, suggested) = (found.lowest.unwrap(), found.suggested.unwrap());
    assert!(suggested < lowest && (1e-4..1.0).contains(&suggested), "{suggested}");
    assert!(found.probes.last().unwrap().rate > 3.0 * lowest, "a rate that is too much");
    // A run at the suggested rate learns more than at a thirtieth of it, and does not diverge as at thirty times it.
    let held_out = |rate| {
        let options = RunOptions {
            length: Length::Steps(24),
            recipe: Recipe { rate, ..Recipe::default() },
            guard: false,
            ..options(2)
        };
        let layer = layer(&model, &METHODS[0], 4);
        let mut run = onlay::train::Run::new(model.clone(), layer, data.clone(), options, None).unwrap();
        match run.go(&mut |_| Flow::Go) {
            Ok(onlay::train::Outcome::Finished(s)) => s.evaluations[1].loss - s.evaluations[0].loss,
            _ => f64::INFINITY,
        }
    };
    let [slow, right, fast] = [suggested / 30.0, suggested, 30.0 * suggested].map(held_out);
    println!("suggested {suggested:.1e}: {right:+.3} nats; a thirtieth {slow:+.3}, thirty times {fast:+.3}");
    assert!(right < slow && right < fast && right < -0.1);

    // Rates that are all too small do not diverge.
    let first = layer(&model, &METHODS[0], 4);
    let small = find_rate(&model, first, &data, &options(2), (1e-7, 1e-5), 8, &mut |_| Flow::Go).unwrap();
    assert!(!small.diverged && small.probes.len() == 8);
    let wrong = |range, steps| {
        let layer = layer(&model, &METHODS[0], 4);
        find_rate(&model, layer, &data, &options(1), range, steps, &mut |_| Flow::Go).unwrap_err().kind()
    };
    assert_eq!(wrong((1e-3, 1e-3), 20), Kind::Argument);
    assert_eq!(wrong((1e-3, f64::INFINITY), 20), Kind::Argument);
    assert_eq!(wrong((1e-3, 1e-2), 7), Kind::Argument);
    let layer = layer(&model, &METHODS[0], 4);
    let stop = find_rate(&model, layer, &data, &options(1), (1e-5, 1.0), 20, &mut |_| Flow::Stop);
    assert_eq!(stop.unwrap_err().kind(), Kind::Cancelled);
}

#[test]
fn the_range_test_takes_judged_rows() {
    let model = fable();
    let mut data = data(&model);
    data.eval = Set::default();
    for (i, o) in data.train.origins.iter_mut().enumerate() {
        (o.row, o.role) = (i / 2, [Role::Chosen, Role::Rejected][i % 2]);
    }
    let layer = layer(&model, &METHODS[0], 4);
    let found = find_rate(&model, layer, &data, &options(2), (1e-5, 1.0), 12, &mut |_| Flow::Go).unwrap();
    assert!((found.probes[0].loss - 2f64.ln()).abs() < 1e-9, "DPO begins at ln 2");
    assert!(found.suggested.is_some());
}

/// A search whose clock advances by a second at every look.
fn tried(model: &Arc<Model>, choices: &[Choice], seconds: f64, threads: usize) -> onlay::Result<Chosen> {
    let mut now = 0.0;
    let mut clock = || {
        now += 1.0;
        now
    };
    let mut make = |c: Choice| {
        let recipe = Recipe { rate: c.rate, ..Recipe::default() };
        Ok((layer(model, &METHODS[0], c.rank.unwrap_or(4)), RunOptions { recipe, ..options(threads) }))
    };
    search(model, &data(model), choices, seconds, &mut make, &mut clock, &mut |_| Flow::Go)
}

#[test]
fn a_search_halves_its_choices_and_keeps_to_its_time() {
    let model = fable();
    let mut choices = Vec::new();
    for rank in [4, 2, 8] {
        choices.extend([1e-5, 3e-3, 3.0].map(|rate| Choice { rank: Some(rank), rate }));
    }
    let chosen = tried(&model, &choices, 250.0, 2).unwrap();
    let of = |rung| chosen.trials.iter().filter(move |t| t.rung == rung);
    assert_eq!((of(0).count(), of(1).count(), chosen.cut), (9, 3, false));
    let (first, second) = (of(0).next().unwrap().steps, of(1).next().unwrap().steps);
    assert_eq!(second, 3 * first);
    assert!((4..=30).contains(&first), "{first}");
    // What learns nothing and what diverges falls out.
    assert_eq!(chosen.best.rate, 3e-3, "{chosen:?}");
    let mut losses: Vec<f64> = of(0).map(|t| t.loss).collect();
    losses.sort_by(f64::total_cmp);
    for t in of(1) {
        let before = of(0).find(|f| f.choice == t.choice).unwrap();
        assert!(before.loss <= losses[2], "{t:?}");
    }
    let best = of(1).min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert_eq!(best.choice, chosen.best);
    assert_eq!(Chosen::read(&chosen.text()), Some(chosen.best));
    println!("{} steps of {} choices, then {}", first, choices.len(), second);
    // The same clock, the same search, at any number of threads.
    let few = [choices[0], choices[1]];
    assert_eq!(tried(&model, &few, 60.0, 2).unwrap(), tried(&model, &few, 60.0, 1).unwrap());
    // Less time, fewer steps; and too little is refused with what it would take.
    let error = tried(&model, &choices, 50.0, 2).unwrap_err();
    assert_eq!(error.kind(), Kind::Argument);
    assert!(error.to_string().contains("search: expected at least "), "{error}");
    let error = tried(&model, &[], 1e9, 2).unwrap_err();
    assert_eq!(error.kind(), Kind::Argument);
}
