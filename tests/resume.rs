//! A run that is stopped, killed or failed by its disk, and continued, ends with the bits of one that was not.

#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::adapter::Lora;
use onlay::error::Kind;
use onlay::model::Model;
use onlay::rng::Rng;
use onlay::train::{
    Checkpoint, Data, Event, Files, Flow, Keep, Length, Optimizer, Outcome, Recipe, Run, RunOptions, Shape,
    Start,
};
use onlay_kernels::Level;
use runs::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

fn uninterrupted(model: &Arc<Model>) -> End {
    let disk = Disk::default();
    finish(&mut prepare(model, small(1), &disk).unwrap(), &disk)
}

#[test]
fn stopped_anywhere_it_ends_alike() {
    let model = open(vectors().join(MODEL));
    let want = uninterrupted(&model);
    let whole = Checkpoint::read(want.2.clone()).unwrap();
    let evaluations = &whole.progress().evaluations;
    assert_eq!(evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 4, 8, 9]);
    assert!(evaluations[3].loss < evaluations[0].loss);
    // after every event, whatever it is, with another number of threads before and after
    let mut events = 0;
    loop {
        let disk = Disk::default();
        let mut seen = 0;
        let mut run = prepare(&model, small(1 + events % 2), &disk).unwrap();
        let outcome = run.go(&mut |_| {
            seen += 1;
            if seen > events { Flow::Stop } else { Flow::Go }
        });
        let (step, place) = match outcome.unwrap() {
            Outcome::Stopped { step, of: 9, checkpoint } => (step, checkpoint.unwrap()),
            Outcome::Finished(_) => break,
            other => panic!("{other:?}"),
        };
        assert!(place.to_str().unwrap().starts_with("memory"));
        let mut run = prepare(&model, small(2 - events % 2), &disk).unwrap();
        assert_eq!((run.progress().steps, run.checkpoint().unwrap().0), (step, step));
        assert!(want == finish(&mut run, &disk), "stopped after event {events}");
        events += 1;
    }
    assert!(events > 25, "{events}");
}

#[test]
fn stopped_often_it_ends_alike() {
    let model = open(vectors().join(MODEL));
    let want = uninterrupted(&model);
    let mut rng = Rng::new(1);
    for round in 0..6 {
        let disk = Disk::default();
        let found = loop {
            // a keep that changes from time to time changes nothing either
            let keep = [Keep::Streams, Keep::Registers][rng.below(2) as usize];
            let options = RunOptions { keep, ..small(1 + rng.below(2) as usize) };
            let mut run = prepare(&model, options, &disk).unwrap();
            let mut patience = 1 + rng.below(9);
            let outcome = run.go(&mut |_| {
                patience = patience.saturating_sub(1);
                if patience == 0 { Flow::Stop } else { Flow::Go }
            });
            if let Outcome::Finished(summary) = outcome.unwrap() {
                break end(&run, &summary, &disk);
            }
        };
        assert!(want == found, "round {round}");
    }
}

#[test]
fn a_failing_disk_loses_no_more_than_the_last_steps() {
    let model = open(vectors().join(MODEL));
    let want = uninterrupted(&model);
    let whole = want.2.len();
    for write in 1..=5 {
        for fault in [
            Fault::Full(0),
            Fault::Full(100),
            Fault::Full(whole / 2),
            Fault::Full(whole * 9 / 10),
            Fault::BeforeRename,
            Fault::AfterRename,
        ] {
            let disk = Disk::default();
            disk.0.lock().unwrap().fail = Some((write, fault));
            let mut run = prepare(&model, small(1), &disk).unwrap();
            let error = run.go(&mut |_| Flow::Go).unwrap_err();
            assert_eq!(error.kind(), Kind::Io, "{error}");
            let kept = disk.0.lock().unwrap().slots.clone();
            let newest =
                kept.iter().flatten().map(|b| Checkpoint::read(b.clone()).unwrap().progress().steps).max();
            let before = [0, 2, 4, 6, 8, 9][write - usize::from(!matches!(fault, Fault::AfterRename))];
            assert_eq!(newest.unwrap_or(0), before, "{fault:?} of write {write}");
            let mut run = prepare(&model, small(2), &disk).unwrap();
            assert_eq!(run.progress().steps, before);
            assert!(want == finish(&mut run, &disk), "{fault:?} of write {write}");
        }
    }
}

#[test]
fn no_changed_byte_is_overlooked() {
    let model = open(vectors().join(MODEL));
    let disk = Disk::default();
    let make = || {
        let layer = layer(&model, "blk.1.attn_k", 1);
        Run::new(model.clone(), layer, data(&model), small(1), Some(Box::new(disk.clone())))
    };
    make().unwrap().go(&mut |_| Flow::Go).unwrap();
    let whole = disk.0.lock().unwrap().slots[0].clone().unwrap();
    Checkpoint::read(whole.clone()).unwrap();
    let mut rng = Rng::new(2);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << rng.below(8);
        assert!(Checkpoint::read(bytes).is_err(), "byte {at}");
        assert!(Checkpoint::read(whole[..at].to_vec()).is_err(), "cut at {at}");
    }
    for more in [&b"\0"[..], &[0; 32], b"x"] {
        assert!(Checkpoint::read([&whole, more].concat()).is_err());
    }
    // The other slot stands in for a damaged one, and that is told.
    let newest = make().unwrap().checkpoint().unwrap().0;
    for (slot, damage) in [(0, whole.len() - 100), (1, 200)] {
        let kept = disk.0.lock().unwrap().slots.clone();
        disk.0.lock().unwrap().slots[slot].as_mut().unwrap()[damage] ^= 4;
        let mut run = make().unwrap();
        let mut told = Vec::new();
        run.go(&mut |e| {
            if let Event::Started(s) = e {
                told = s.damaged.iter().map(|e| e.to_string()).collect();
                assert!(s.resumed.is_some() && s.done > 0 && s.done <= newest);
            }
            Flow::Stop
        })
        .unwrap();
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with(["memory: ", "memory.2: "][slot]), "{told:?}");
        disk.0.lock().unwrap().slots = kept;
    }
    disk.0.lock().unwrap().slots.iter_mut().for_each(|s| s.as_mut().unwrap()[1000] ^= 1);
    let error = make().unwrap_err();
    assert_eq!((error.kind(), error.findings().len()), (Kind::Format, 3), "{error}");
}

#[test]
fn what_changes_numbers_is_refused_and_what_does_not_is_not() {
    let model = open(vectors().join(MODEL));
    let disk = Disk::default();
    let mut half = prepare(&model, small(1), &disk).unwrap();
    let stop_at = |step| {
        move |e: &Event<'_>| match e {
            Event::Step(s) if s.step == step => Flow::Stop,
            _ => Flow::Go,
        }
    };
    half.go(&mut stop_at(3)).unwrap();
    let recipe = small(1).recipe;
    type Change = (&'static [&'static str], Box<dyn Fn(&mut RunOptions)>);
    let change = |names, f: fn(&mut RunOptions)| -> Change { (names, Box::new(f)) };
    let changes = [
        change(&["seed"], |o| o.seed = 43),
        change(&["dropout"], |o| o.dropout = 0.2),
        change(&["shuffle"], |o| o.shuffle = false),
        change(&["rows-of-a-step"], |o| o.batch_size = 4),
        change(&["pack"], |o| o.pack = false),
        change(&["rows-of-a-pass"], |o| o.rows_of_a_pass = None),
        change(&["kv"], |o| o.kv = onlay::ops::kv::Precision::F32),
        change(&["steps"], |o| o.length = Length::Epochs(2.0)),
        change(&["level"], |o| {
            o.level = *Level::available().iter().find(|l| **l != o.level).unwrap_or(&o.level)
        }),
        change(&["learning-rate", "beta2", "weight-decay"], |o| {
            o.recipe = Recipe { rate: 5.1e-3, beta2: 0.99, decay: 0.0, ..o.recipe };
        }),
        change(&["lr-schedule", "steps"], |o| o.recipe.shape = Shape::Constant),
        change(&["optimizer"], |o| o.optimizer = Optimizer::AdamW8bit),
        change(&["warmup-steps", "max-grad-norm", "beta1", "epsilon"], |o| {
            o.recipe = Recipe { warmup: 1, max_norm: 0.5, beta1: 0.8, epsilon: 1e-7, ..o.recipe };
        }),
    ];
    for (names, change) in changes {
        let mut options = small(1);
        change(&mut options);
        if names == ["level"] && options.level == Level::chosen().unwrap() {
            println!("skipped: this machine has one level");
            continue;
        }
        let error = prepare(&model, options, &disk).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        let found = if error.findings().is_empty() { 1 } else { error.findings().len() };
        assert_eq!(found, names.len(), "{error}");
        names.iter().for_each(|name| assert!(error.to_string().contains(&format!("{name}: \"")), "{error}"));
        assert!(error.to_string().starts_with("memory"), "{error}");
    }
    // Other rows, another base, another layer.
    let with = |model: &Arc<Model>, layer: Lora, data: Data| {
        Run::new(model.clone(), layer, data, small(1), Some(Box::new(disk.clone()))).map(|_| ()).unwrap_err()
    };
    let mut other = data(&model);
    other.train.examples.swap(0, 1);
    other.eval.examples.pop();
    let error = with(&model, layer(&model, "", 2), other).to_string();
    assert!(error.contains("\n  - data: ") && error.contains("\n  - eval-data: "), "{error}");
    let error = with(&model, layer(&model, "attn", 2), data(&model)).to_string();
    for name in ["initial-layer: ", "layer.blk.0.ffn_up.weight: \"nothing\" now", "arrays: expected"] {
        assert!(error.contains(name), "{error}");
    }
    let error = with(&model, layer(&model, "", 3), data(&model)).to_string();
    assert!(error.contains("\"rank 3 scale 2\" now, \"rank 2 scale 2\" in the checkpoint"), "{error}");
    let f16 = open(vectors().join("llama/F16.gguf"));
    assert!(with(&f16, layer(&f16, "", 2), data(&f16)).to_string().contains(": base: "));

    // Things of this process.
    let free = RunOptions {
        threads: 2.into(),
        keep: Keep::Registers,
        eval_every: None,
        checkpoint_every: None,
        batch_size: 1,
        grad_accumulation: 4,
        ..small(1)
    };
    let mut run = prepare(&model, free, &disk).unwrap();
    let found = finish(&mut run, &disk);
    let want = uninterrupted(&model);
    assert!(found.0 == want.0);

    // A constant rate does not depend on the end: the run can be made longer.
    let constant = |steps| RunOptions {
        length: Length::Steps(steps),
        recipe: Recipe { shape: Shape::Constant, ..recipe },
        ..small(1)
    };
    let (long, short) = (Disk::default(), Disk::default());
    let want = finish(&mut prepare(&model, constant(6), &long).unwrap(), &long);
    finish(&mut prepare(&model, constant(4), &short).unwrap(), &short);
    assert!(want.0 == finish(&mut prepare(&model, constant(6), &short).unwrap(), &short).0);
    let error = prepare(&model, constant(5), &short).unwrap_err();
    assert!(
        error.to_string().contains("steps: expected at most 5, the steps of the run, found 6"),
        "{error}"
    );
}

#[test]
fn what_to_do_about_a_checkpoint_must_be_said() {
    let model = open(vectors().join(MODEL));
    let folder = std::env::temp_dir().join(format!("onlay-resume-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let out = folder.join("my.gguf");
    let make = |start| {
        let options = RunOptions { start, ..small(1) };
        Run::new(
            model.clone(),
            layer(&model, "", 2),
            data(&model),
            options,
            Some(Box::new(Files::beside(&out))),
        )
    };
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let mut run = make(Start::New).unwrap();
    assert!(names().is_empty());
    run.go(&mut |_| Flow::Go).unwrap();
    assert_eq!(names(), ["my.gguf.checkpoint", "my.gguf.checkpoint.2"]);
    let error = make(Start::New).unwrap_err();
    assert_eq!(error.kind(), Kind::Argument);
    assert!(error.to_string().contains("an earlier run, at step 9: resume it, or start over"), "{error}");
    assert_eq!(make(Start::Resume).unwrap().progress().steps, 9);
    let mut run = make(Start::Over).unwrap();
    assert_eq!((run.progress().steps, names()), (0, vec![]));
    run.go(&mut |_| Flow::Stop).unwrap();
    assert_eq!(names(), ["my.gguf.checkpoint"]);
    // A file of any size in its place is not read into memory.
    let big = std::fs::File::create(folder.join("my.gguf.checkpoint.2")).unwrap();
    big.set_len(1 << 40).unwrap();
    drop(big);
    let run = make(Start::Resume).unwrap();
    assert_eq!(run.checkpoint().unwrap().0, 0);
    let mut run = make(Start::Over).unwrap();
    run.go(&mut |_| Flow::Go).unwrap();
    run.remove_checkpoints().unwrap();
    assert!(names().is_empty() && run.checkpoint().is_none());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The folder in which a child process runs; see below.
const FOLDER: &str = "ONLAY_TEST_RESUME_FOLDER";

/// Not a test but the process that `killed_at_any_moment_it_ends_alike` kills.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let model = open(vectors().join(MODEL));
    let long = RunOptions { length: Length::Steps(25), checkpoint_every: Some(1), ..small(2) };
    let store = Files::beside(folder.join("out.gguf"));
    let mut run =
        Run::new(model.clone(), layer(&model, "", 2), data(&model), long, Some(Box::new(store))).unwrap();
    run.go(&mut |_| Flow::Go).unwrap();
    let numbers: Vec<u8> = bits(run.layer()).concat().into_iter().flat_map(u32::to_le_bytes).collect();
    std::fs::write(folder.join("layer"), numbers).unwrap();
}

#[test]
fn killed_at_any_moment_it_ends_alike() {
    let root = std::env::temp_dir().join(format!("onlay-kill-{}", std::process::id()));
    let spawn = |folder: &Path| {
        std::fs::create_dir_all(folder).unwrap();
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads=1", "-q"])
            .env(FOLDER, folder)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let whole = root.join("whole");
    let start = std::time::Instant::now();
    assert!(spawn(&whole).wait().unwrap().success());
    let span = start.elapsed();
    let want = std::fs::read(whole.join("layer")).unwrap();
    let mut rng = Rng::new(u64::from(std::process::id()));
    let (mut kills, wanted) = (0, if std::env::var_os("ONLAY_TEST_KILLS").is_some() { 1000 } else { 10 });
    let mut folders = 0;
    while kills < wanted {
        let folder = root.join(folders.to_string());
        folders += 1;
        loop {
            let mut child = spawn(&folder);
            let patience = span.mul_f32(rng.uniform());
            std::thread::sleep(patience);
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "after {kills} kills");
                break;
            }
            child.kill().unwrap();
            let status = child.wait().unwrap();
            if status.success() {
                break; // it had just finished
            }
            kills += 1;
        }
        assert!(want == std::fs::read(folder.join("layer")).unwrap(), "after {kills} kills");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    println!("{kills} kills of {folders} runs");
    std::fs::remove_dir_all(&root).unwrap();
}
