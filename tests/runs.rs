//! Runs: what they compute, what they tell, and what stops them.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::error::Kind;
use onlay::eval::score;
use onlay::train::{Event, Flow, Length, Outcome, Recipe, Run, RunOptions, Set, Shape};
use runs::*;
use support::*;

#[test]
fn how_a_window_is_cut_changes_only_the_order_of_sums() {
    let model = open(vectors().join(MODEL));
    let losses = |change: &dyn Fn(&mut RunOptions)| {
        let mut options = RunOptions { dropout: 0.2, ..small(1) };
        change(&mut options);
        let mut run = Run::new(model.clone(), layer(&model, "", 2), data(&model), options, None).unwrap();
        let mut losses = Vec::new();
        run.go(&mut |e| {
            if let Event::Step(s) = e {
                losses.push((s.report.loss, s.report.grad_norm));
            }
            Flow::Go
        })
        .unwrap();
        (losses, bits(run.layer()))
    };
    let want = losses(&|_| {});
    // the product counts, to the bit
    assert!(want == losses(&|o| (o.batch_size, o.grad_accumulation) = (4, 1)));
    assert!(want == losses(&|o| (o.batch_size, o.grad_accumulation) = (1, 4)));
    let mut worst = 0f64;
    for rows in [None, Some(40), Some(53), Some(1000)] {
        for pack in [true, false] {
            let found = losses(&|o| (o.rows_of_a_pass, o.pack) = (rows, pack));
            for (a, b) in found.0.iter().zip(&want.0) {
                worst = worst.max((a.0 / b.0 - 1.0).abs()).max((a.1 / b.1 - 1.0).abs());
            }
        }
    }
    println!("largest relative difference of losses and norms: {worst:.1e}");
    assert!(worst < 1e-4, "{worst}");
    assert!(losses(&|o| o.seed = 1).0 != want.0 && losses(&|o| o.dropout = 0.0).0 != want.0);
}

#[test]
fn evaluation_is_what_serving_would_say() {
    let model = open(vectors().join(MODEL));
    let options = RunOptions { dropout: 0.3, ..small(2) };
    let kv = options.kv;
    let mut run = Run::new(model.clone(), layer(&model, "", 2), data(&model), options, None).unwrap();
    let Outcome::Finished(summary) = run.go(&mut |_| Flow::Go).unwrap() else { panic!() };
    let mut runner = runner(&model, onlay::model::Options { kv, ..support::options(1) });
    let (mut sum, mut n) = (0.0, 0);
    for e in &data(&model).eval.examples {
        let scores = score(&mut runner, &e.tokens, Some(&**run.layer())).unwrap();
        for (p, _) in scores.iter().zip(&e.trained).filter(|(_, t)| **t) {
            sum -= p.unwrap();
            n += 1;
        }
    }
    let last = summary.evaluations.last().unwrap();
    assert_eq!(last.tokens, n);
    assert!((sum / n as f64 - last.loss).abs() < 1e-12, "{} {}", sum / n as f64, last.loss);
    assert_eq!(summary.before_and_after().unwrap().1, last.loss);
}

#[test]
fn numbers_that_are_none_stop_the_run_and_are_named() {
    // Rates that cannot go well: some make gradients that are no numbers, some losses.
    let model = open(vectors().join(MODEL));
    let mut kinds = [0; 2];
    for rate in [1e6, 1e12, 1e18, 1e25, 1e30, 1e38] {
        let disk = Disk::default();
        let wild = RunOptions {
            recipe: Recipe { rate, shape: Shape::Constant, max_norm: 0.0, ..Recipe::default() },
            checkpoint_every: Some(1),
            eval_every: None,
            guard: false,
            length: Length::Steps(60),
            ..small(1)
        };
        let mut run = prepare(&model, wild.clone(), &disk).unwrap();
        let mut losses = Vec::new();
        let layer = run.layer().clone();
        let mut layers = vec![bits(&layer)];
        let outcome = run.go(&mut |e| {
            if let Event::Step(s) = e {
                losses.push(s.report.loss);
                layers.push(bits(&layer));
            }
            Flow::Go
        });
        let (error, left) = match outcome {
            Err(error) => (error, None),
            Ok(Outcome::Halted { why, summary }) => (why, Some(summary.layer)),
            Ok(_) => continue,
        };
        println!("rate {rate:e}: {error}");
        assert_eq!(error.kind(), Kind::Numeric);
        assert!(losses.iter().all(|l| l.is_finite()));
        let step = run.progress().steps;
        assert!(error.to_string().contains(&format!("step {}: ", step + 1)), "{error}");
        // What is kept is the newest that had a loss.
        let of_loss = error.to_string().contains("loss: expected a finite number");
        kinds[usize::from(of_loss)] += 1;
        assert_eq!(left.unwrap_or(0), if of_loss { step - 1 } else { step }, "{error}");
        assert!(bits(&layer) == layers[left.unwrap_or(0) as usize], "{error}");
        let kept = run.checkpoint().map_or(0, |(step, _)| step);
        assert_eq!(run.go(&mut |_| Flow::Go).is_err(), left.is_some() || of_loss);
        assert_eq!(kept, if of_loss { step - 1 } else { step }, "{error}");
        assert_eq!(prepare(&model, wild, &disk).unwrap().progress().steps, kept);
    }
    assert!(kinds[0] > 0 && kinds[1] > 0, "{kinds:?}");

    // A base with a number that is none.
    let mut bytes = std::fs::read(vectors().join(MODEL)).unwrap();
    let directory = onlay::format::gguf::parse(&bytes).unwrap();
    let at = directory.tensor("blk.1.ffn_down.weight", &bytes).unwrap().offset() + 4 * (128 * 3 + 5);
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = std::env::temp_dir().join(format!("onlay-nan-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let broken = open(&path);
    for eval in [true, false] {
        let mut data = data(&broken);
        if !eval {
            data.eval = Set::default();
        }
        let mut run = Run::new(broken.clone(), layer(&broken, "", 2), data, small(1), None).unwrap();
        let error = run.go(&mut |_| Flow::Go).unwrap_err().to_string();
        assert!(error.contains("blk.1.ffn_down.weight: weight at row 3, column 5"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_run_that_cannot_start_says_everything() {
    let model = open(vectors().join(MODEL));
    let options = RunOptions {
        length: Length::Epochs(f64::NAN),
        batch_size: 0,
        recipe: Recipe { rate: -1.0, ..Recipe::default() },
        dropout: 1.0,
        eval_every: Some(0),
        checkpoint_every: Some(0),
        rows_of_a_pass: Some(3),
        ..small(1)
    };
    let mut rows = data(&model);
    rows.train.examples[1].trained.fill(false);
    rows.eval.examples[0].tokens[2] = 9999;
    let error = Run::new(model.clone(), layer(&model, "nowhere", 1), rows, options, None).unwrap_err();
    assert_eq!(error.findings().len(), 10, "{error}");
    for words in [
        "learning-rate",
        "dropout",
        "no part",
        "batch-size",
        "epochs",
        "eval-every",
        "checkpoint-every",
        "sequence 1",
        "below 272, found 9999",
        "rows of a pass",
    ] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    let big = RunOptions { length: Length::Epochs(1e300), ..small(1) };
    assert!(Run::new(model.clone(), layer(&model, "", 1), data(&model), big, None).is_err());
    let fraction = RunOptions { length: Length::Epochs(0.3), ..small(1) };
    let run = Run::new(model.clone(), layer(&model, "", 1), data(&model), fraction, None).unwrap();
    assert_eq!((run.plan().steps, run.plan().steps_per_epoch), (2, 4));
}

#[test]
fn events_tell_the_run() {
    let model = open(vectors().join(MODEL));
    let mut run = prepare(&model, small(1), &Disk::default()).unwrap();
    let (mut story, mut log) = (String::new(), Vec::new());
    run.go(&mut |e| {
        log.extend(e.log_line());
        match e {
            Event::Started(s) => {
                assert_eq!((s.done, s.steps, s.steps_per_epoch, s.overlap), (0, 9, 4, 0));
                assert_eq!((s.train.rows, s.eval.unwrap().rows), (13, 3));
                assert!(s.memory.total() > 10_000 && s.parameters > 1_000 && s.resumed.is_none());
                story += "<";
            }
            Event::Step(s) => {
                assert!(
                    s.tokens_per_second > 0.0 && s.seconds_left >= 0.0 && s.epoch == 1 + (s.step - 1) / 4
                );
                assert_eq!(s.peak_memory.is_some(), cfg!(target_os = "linux"));
                story += &s.step.to_string();
            }
            Event::Evaluating { done, of } => assert!(done < of),
            Event::Evaluated(_) => story += "e",
            Event::Checkpointed { .. } => story += "c",
            Event::Finished(s) => {
                assert!(s.rows > s.trained && (s.epochs - 2.25).abs() < 1e-12);
                story += ">";
            }
            other => panic!("{other:?}"),
        }
        Flow::Go
    })
    .unwrap();
    assert_eq!(story, "<e12c34ce56c78ce9ec>");
    assert_eq!(log.len(), 9 + 4);
    let keys = |i: usize| log[i].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(0), ["step", "eval_loss", "eval_tokens"]);
    assert_eq!(keys(1), ["step", "loss", "tokens", "lr", "grad_norm"]);
    // Once more goes nowhere and says so.
    let mut steps = 0;
    let outcome = run.go(&mut |e| {
        steps += u64::from(matches!(e, Event::Step(_)));
        Flow::Go
    });
    assert!(matches!(outcome, Ok(Outcome::Finished(_))) && steps == 0);
}
