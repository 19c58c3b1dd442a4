//! `run`, `chat` and `train` as a user meets them: output, exit codes, Ctrl-C, two at once.
#![cfg(feature = "cli")]

mod support;

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::vectors;

/// A folder of its own for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn model() -> String {
    vectors().join("llama/F32.gguf").to_str().unwrap().to_owned()
}

fn data() -> String {
    vectors().join("llama/curve/data.jsonl").to_str().unwrap().to_owned()
}

fn onlay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onlay")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// The exit code and what was said on stderr.
#[track_caller]
fn refused(args: &[&str], code: i32, parts: &[&str]) {
    let done = onlay(args);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[track_caller]
fn fine(args: &[&str]) -> String {
    let done = onlay(args);
    assert_eq!(done.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn train<'a>(model: &'a str, data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", model, "--data", data, "-o", out, "--ctx", "100"];
    let without = ["bias", "ia3", "full", "hft", "norms", "tokens", "prefix", "prompt", "ptuning"];
    if !more.iter().any(|m| without.contains(m)) {
        args.extend(["--rank", "2"]); // which these have not
    }
    args.extend(["--batch-size", "4", "--max-steps", "6", "--json", "--threads", "2"]);
    args.extend(more);
    args
}

#[test]
fn a_layer_is_trained_logged_and_written_and_the_base_stays_as_it_was() {
    let (folder, model, data) = (Folder::new("train"), model(), data());
    let (out, log) = (folder.file("my.gguf"), folder.file("log.jsonl"));
    let before = std::fs::read(&model).unwrap();
    let said =
        fine(&train(&model, &data, &out, &["--log", &log, "--eval-split", "0.2", "--learning-rate", "5e-3"]));
    let summary: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(summary["steps"], 6);
    assert!(summary["eval_loss_after"].as_f64() < summary["eval_loss_before"].as_f64(), "{summary}");
    assert_eq!(before, std::fs::read(&model).unwrap());
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<_> = lines.iter().filter(|l| l.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 6);
    for key in ["step", "loss", "tokens", "lr", "grad_norm"] {
        assert!(steps.iter().all(|s| s[key].is_number()), "{key}");
    }
    // Nothing but the layer and the log is left.
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 2);

    // A layer of weight 0 is the base, and threads change nothing.
    let run = |more: &[&str]| {
        let mut args = vec!["run", &model, "-p", "ab", "-n", "8", "--temp", "0", "--json"];
        args.extend(more);
        let all: Value = serde_json::from_str(&fine(&args)).unwrap();
        (all["text"].clone(), all["tokens"].clone())
    };
    let base = run(&[]);
    assert_eq!(base, run(&["--adapter", &format!("{out}=0")]));
    assert_eq!(run(&["--adapter", &out]), run(&["--adapter", &out, "--threads", "1"]));
}

#[test]
fn every_method_is_trained_written_and_worn() {
    let (folder, model, data) = (Folder::new("methods"), model(), data());
    let run = |more: &[&str]| {
        let mut args = vec!["score", &model, "--tokens", "1,13,70,5,9", "--json"];
        args.extend(more);
        serde_json::from_str::<Value>(&fine(&args)).unwrap()
    };
    let base = run(&[]);
    for (i, (method, more)) in [
        ("dora", &["--method", "dora", "--learning-rate", "5e-3"][..]),
        ("ia3", &["--method", "ia3", "--learning-rate", "0.05"]),
        ("vera", &["--method", "vera", "--learning-rate", "0.05"]),
        ("full", &["--method", "full", "--learning-rate", "1e-3"]),
        ("full", &["--method", "hft", "--learning-rate", "1e-3"]),
        ("norms", &["--method", "norms", "--learning-rate", "1e-2"]),
        ("tokens", &["--method", "tokens", "--tokens", "13,70,120", "--learning-rate", "1e-2"]),
        ("prefix", &["--method", "prefix", "--virtual-tokens", "3"]),
        ("prefix", &["--method", "prefix", "--encoder", "5"]),
        ("prompt", &["--method", "prompt", "--virtual-tokens", "1"]),
        ("ptuning", &["--method", "ptuning"]),
        ("parallel", &["--method", "parallel", "--scale", "learned", "--activation", "relu"]),
        ("series", &["--method", "series", "--targets", "o,up,down", "--scale", "2"]),
        ("bias", &["--method", "bias", "--learning-rate", "0.05"]),
        ("loha", &["--method", "loha", "--alpha", "4", "--rank-pattern", "down=3"]),
        ("lokr", &["--method", "lokr", "--alpha-pattern", "k=1"]),
        ("adalora", &["--method", "adalora", "--target-rank", "1", "--tinit", "1", "--delta-t", "1"]),
        ("lora", &["--init", "pissa", "--lora-plus-ratio", "8"]),
        ("lora", &["--init", "olora"]),
        ("lora", &["--rank-pattern", "q=4,down=3", "--alpha-pattern", "k=1"]),
    ]
    .iter()
    .enumerate()
    {
        let (file, peft) = (folder.file(&format!("{i}.gguf")), folder.file(&format!("{i}")));
        fine(&train(&model, &data, &file, more));
        fine(&train(&model, &data, &format!("{peft}/"), more));
        let with = run(&["--adapter", &file]);
        assert_ne!(base, with, "{more:?}");
        assert_eq!(with, run(&["--adapter", &peft]), "{more:?}");
        assert_eq!(base, run(&["--adapter", &format!("{file}=0")]));
        for path in [&file, &peft] {
            let said: Value = serde_json::from_str(&fine(&["adapter", "list", path, "--json"])).unwrap();
            assert_eq!(said["method"], *method);
        }
        // and goes on from there
        let next = folder.file(&format!("{i}-next.gguf"));
        let args = ["train", &model, "--data", &data, "-o", &next, "--init-adapter", &file, "--ctx", "100"];
        fine(&[&args[..], &["--max-steps", "2", "--json", "--threads", "2"]].concat());
    }
    // another round of half fine-tuning: what was trained before is kept, and another half learns
    let (half, next) = (folder.file("4.gguf"), folder.file("half.gguf"));
    let args = ["train", &model, "--data", &data, "-o", &next, "--init-adapter", &half, "--next-half"];
    let rest = ["--seed", "2", "--ctx", "100", "--max-steps", "2", "--json", "--threads", "2"];
    fine(&[&args[..], &rest].concat());
    let parts = |path: &str| {
        let said: Value = serde_json::from_str(&fine(&["adapter", "list", path, "--json"])).unwrap();
        said["parts"].as_u64().unwrap()
    };
    assert!(parts(&half) == 7 && parts(&next) > 7 && parts(&next) < 15, "{} {}", parts(&half), parts(&next));
    let out = folder.file("no.gguf");
    let tokens = ["--method", "tokens", "--tokens", "3,3,999999"];
    refused(&train(&model, &data, &out, &tokens), 1, &["token 3 is there twice", "found 999999"]);
    refused(&train(&model, &data, &out, &["--tokens", "3"]), 1, &["lora has no tokens"]);
    let norms = ["--method", "norms", "--targets", "q"];
    refused(&train(&model, &data, &out, &norms), 1, &["a norm of this model"]);
    refused(&train(&model, &data, &out, &["--method", "dora", "--init", "pissa"]), 1, &["not of dora"]);
    let plus = ["--method", "ia3", "--lora-plus-ratio", "2"];
    refused(&train(&model, &data, &out, &plus), 1, &["ia3 has no B"]);
    refused(&train(&model, &data, &out, &["--encoder", "4"]), 1, &["lora has no encoder"]);
    refused(&train(&model, &data, &out, &["--virtual-tokens", "4"]), 1, &["lora has no virtual tokens"]);
    refused(
        &train(&model, &data, &out, &["--method", "prompt", "--encoder", "4"]),
        1,
        &["prompt has no encoder"],
    );
    refused(
        &train(&model, &data, &out, &["--method", "prefix", "--targets", "q"]),
        1,
        &["front, what stands"],
    );
    for method in ["prefix", "ia3", "norms", "full", "bias"] {
        let drop = ["--method", method, "--dropout", "0.1"];
        refused(&train(&model, &data, &out, &drop), 1, &[&format!("{method} has no inputs")]);
    }
    refused(&train(&model, &data, &out, &["--activation", "relu"]), 1, &["activation: lora has none"]);
    refused(&train(&model, &data, &out, &["--scale", "2"]), 1, &["scale: lora has none"]);
    refused(&train(&model, &data, &out, &["--method", "series", "--activation", "sin"]), 2, &["tanh"]);
    refused(
        &train(&model, &data, &out, &["--method", "series", "--alpha", "4"]),
        1,
        &["series has no alpha"],
    );
    refused(&train(&model, &data, &out, &["--rank-pattern", "zz=2"]), 1, &["near:"]);
    refused(&train(&model, &data, &out, &["--target-rank", "1"]), 1, &["lora gives up no ranks"]);
    let late = ["--method", "adalora", "--tinit", "5", "--tfinal", "1", "--delta-t", "0"];
    refused(
        &train(&model, &data, &out, &late),
        1,
        &["tinit: expected below 5", "delta-t: expected at least 1"],
    );
    let patterns = ["--method", "adalora", "--rank-pattern", "q=3"];
    refused(&train(&model, &data, &out, &patterns), 1, &["adalora has no ranks and alphas of places"]);
    refused(&train(&model, &data, &out, &["--method", "lokr", "--rslora"]), 1, &["lokr counts alpha/rank"]);
    refused(
        &train(&model, &data, &out, &["--method", "loha", "--rank-pattern", "q=200"]),
        1,
        &["rank: expected 1 to 64"],
    );
    refused(&train(&model, &data, &out, &["--method", "lorra"]), 2, &["lora, dora, ia3, vera"]);
}

#[test]
fn the_same_seed_gives_the_same_bytes_however_often_it_was_stopped() {
    let (folder, model, data) = (Folder::new("stop"), model(), data());
    for name in ["a", "b"] {
        std::fs::create_dir(folder.0.join(name)).unwrap();
    }
    let (a, b) = (folder.file("a/my.gguf"), folder.file("b/my.gguf"));
    let long = ["--max-steps", "400", "--dropout", "0.1"];
    // the last of two flags would be an error: the steps are set once
    let args = |out: &str, more: &[&str]| -> Vec<String> {
        let all = train(&model, &data, out, &[]).into_iter().map(str::to_owned);
        let all = all.filter(|a| a != "--max-steps" && a != "6");
        all.chain(long.iter().chain(more).map(|s| (*s).to_owned())).collect()
    };
    let of = |args: &[String]| fine(&args.iter().map(String::as_str).collect::<Vec<_>>());
    of(&args(&a, &[]));
    if cfg!(unix) {
        let mut stops = 0;
        loop {
            let how: &[&str] = if stops == 0 { &[] } else { &["--resume"] };
            let mut child = Command::new(env!("CARGO_BIN_EXE_onlay"))
                .args(args(&b, how))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(60));
            let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
            let code = child.wait().unwrap().code();
            if code == Some(0) {
                break;
            }
            // A signal that came before anyone listened ends the process as signals do.
            assert!(code.is_none() || said.contains("--resume"), "{code:?} {said}");
            if code.is_some() {
                // so that one who forgets --resume loses nothing
                let again = args(&b, &[]);
                refused(
                    &again.iter().map(String::as_str).collect::<Vec<_>>(),
                    1,
                    &["--resume", "--overwrite"],
                );
                stops += 1;
            }
            if stops == 3 {
                of(&args(&b, &["--resume"]));
                break;
            }
        }
        println!("stopped {stops} times");
    } else {
        println!("skipped: no Ctrl-C to send here");
        of(&args(&b, &[]));
    }
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    // One thread, and another cut of the accumulation: the same bytes.
    let c = folder.file("my.gguf");
    let mut other = args(&c, &["--grad-accumulation", "2"]);
    for (flag, value) in [("--threads", "1"), ("--batch-size", "2")] {
        let at = other.iter().position(|a| a == flag).unwrap();
        other[at + 1] = value.into();
    }
    of(&other);
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&c).unwrap());
}

#[test]
fn refusals_list_everything_and_leave_nothing() {
    let (folder, model, data) = (Folder::new("refuse"), model(), data());
    let out = folder.file("my.gguf");
    refused(&["train", &model], 2, &["--data"]);
    refused(&["train", &model, "--data", &data, "-o", &out, "--rank", "0"], 2, &["--rank"]);
    refused(&["train", &model, "--data", &data, "-o", &out, "--method", "magic"], 2, &["lora"]);
    refused(&["trian"], 2, &["train"]);
    // numbers that a method does not have are not taken and forgotten
    let ia3 = ["train", &model, "--data", &data, "-o", &out, "--method", "ia3"];
    refused(&[&ia3[..], &["--rank", "4"]].concat(), 1, &["ia3 has no rank"]);
    refused(&[&ia3[..], &["--alpha", "4"]].concat(), 1, &["ia3 has no alpha"]);
    let wrong = train(&model, "none.jsonl", "no/such/folder/my.gguf", &["--targets", "nose"]);
    refused(&wrong, 1, &["none.jsonl", "no/such/folder", "\"nose\"", "3 things"]);

    // rows: bad JSON, another format, all masked, empty
    for (name, text, part) in [
        ("bad", "{\"text\": \"a\"}\n{\"text\": \n", "line 2"),
        ("mixed", "{\"text\": \"a\"}\n{\"messages\": []}\n", "line 2"),
        ("masked", "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n", "line 1"),
        ("long", &format!("{{\"input_ids\": [1{}]}}\n", ", 2".repeat(400)), "line 1"),
        ("foreign", "{\"input_ids\": [1, 99999]}\n", "99999"),
        ("empty", "", "empty"),
    ] {
        let rows = folder.file(&format!("{name}.jsonl"));
        std::fs::write(&rows, text).unwrap();
        refused(&train(&model, &rows, &out, &[]), 1, &[&format!("{name}.jsonl"), part]);
    }
    // a model that ends too soon, a directory, a file that exists, too little memory
    let cut = folder.file("cut.gguf");
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    refused(&train(&cut, &data, &out, &[]), 1, &["cut.gguf"]);
    refused(&train(folder.0.to_str().unwrap(), &data, &out, &[]), 1, &["expected"]);
    refused(&train(&model, &data, &cut, &[]), 1, &["cut.gguf", "overwrite"]);
    refused(&train(&model, &data, &out, &["--memory", "1KiB"]), 1, &["--memory", "at least"]);
    assert!(!Path::new(&out).exists());
    // no checkpoint, no lock
    let left = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name());
    assert!(left.into_iter().all(|n| !n.to_string_lossy().contains("my.gguf")));
}

#[test]
fn two_runs_do_not_share_an_output() {
    let (folder, model, data) = (Folder::new("two"), model(), data());
    let out = folder.file("my.gguf");
    let held = std::fs::File::create(folder.file("my.gguf.lock")).unwrap();
    held.lock().unwrap();
    refused(&train(&model, &data, &out, &[]), 1, &["another process"]);
    drop(held);
    fine(&train(&model, &data, &out, &[]));
}

#[test]
fn a_plan_is_shown_and_kept_to() {
    let (folder, model, data) = (Folder::new("plan"), model(), data());
    let out = folder.file("my.gguf");
    let plan = |more: &[&str]| -> Value {
        let mut all = train(&model, &data, &out, &["--plan"]);
        all.extend(more);
        serde_json::from_str(&fine(&all)).unwrap()
    };
    let free = plan(&[]);
    assert_eq!(free["steps"], 6);
    let parts = free["memory"].as_object().unwrap().values().map(|v| v.as_u64().unwrap());
    assert_eq!(parts.sum::<u64>(), free["memory_bytes"].as_u64().unwrap());
    let budget = free["memory_bytes"].as_u64().unwrap() - 1;
    let tight = plan(&["--memory", &budget.to_string()]);
    assert!(tight["memory_bytes"].as_u64().unwrap() <= budget, "{tight}");
    assert!(!Path::new(&out).exists());
}

#[test]
fn answers_are_counted_before_the_first_step_and_weighed() {
    let (folder, model, rows) = (Folder::new("balance"), model(), Folder::new("balance-rows"));
    let (data, out) = (rows.file("rows.jsonl"), folder.file("my.gguf"));
    let row = |i: u32| {
        let answer = if i % 8 == 0 { [5, 2] } else { [6, 2] };
        format!(
            "{}\n",
            serde_json::json!({"input_ids": [1, 9 + i, answer[0], answer[1]], "labels": [-100, -100, answer[0], 2]})
        )
    };
    std::fs::write(&data, (0..32).map(row).collect::<String>()).unwrap();
    let all = train(&model, &data, &out, &["--plan", "--balance", "inverse"]);
    let said: Value = serde_json::from_str(&fine(&all)).unwrap();
    let counts: Vec<_> =
        said["answers"].as_array().unwrap().iter().map(|a| a["rows"].as_u64().unwrap()).collect();
    assert_eq!(counts, [28, 4]);
    let weights: Vec<_> =
        said["answers"].as_array().unwrap().iter().map(|a| a["weight"].as_f64().unwrap()).collect();
    assert!((weights[0] - 16.0 / 28.0).abs() < 1e-6 && (weights[1] - 4.0).abs() < 1e-6, "{weights:?}");
    // counted without being asked, too, and before anything is learned
    let done = onlay(&train(&model, &data, &out, &[]));
    let notes = String::from_utf8_lossy(&done.stderr).into_owned();
    let at = notes.find("answers: ").unwrap_or_else(|| panic!("{notes}"));
    assert!(notes[at..].starts_with("answers: ") && notes[at..].contains(" 28, "), "{notes}");
    assert!(notes.find("steps, ").is_some_and(|steps| at < steps), "{notes}");
    let pairs = rows.file("pairs.jsonl");
    let pair = "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n";
    std::fs::write(&pairs, pair.repeat(4)).unwrap();
    let args = train(&model, &pairs, &out, &["--balance", "sqrt", "--overwrite"]);
    refused(&args, 1, &["balance: expected supervised rows"]);
}

#[test]
fn rates_are_tried_without_writing_anything() {
    let (folder, model, data) = (Folder::new("find"), model(), data());
    let out = folder.file("my.gguf");
    let said: Value = serde_json::from_str(&fine(&train(&model, &data, &out, &["--find-rate"]))).unwrap();
    let probes = said["probes"].as_array().unwrap();
    assert!(probes.len() >= 8 && said["suggested"].as_f64().unwrap() > 0.0, "{said}");
    assert!(probes.windows(2).all(|p| p[0]["lr"].as_f64() < p[1]["lr"].as_f64()));
    let again: Value = serde_json::from_str(&fine(&train(&model, &data, &out, &["--find-rate"]))).unwrap();
    assert_eq!(said, again);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
    refused(&train(&model, &data, &out, &["--find-rate", "--plan"]), 2, &["cannot be used with"]);
}

#[test]
fn a_search_chooses_says_so_and_is_not_made_again() {
    let (folder, model, data) = (Folder::new("search"), model(), data());
    let out = folder.file("my.gguf");
    let args = |steps: &str, more: &[&str]| -> Vec<String> {
        let all = train(&model, &data, &out, &["--eval-split", "0.2", "--search", "0.08"]);
        let all = all.into_iter().map(|a| if a == "6" { steps.to_owned() } else { a.to_owned() });
        all.chain(["--lr-schedule", "constant", "--checkpoint-every", "5"].map(str::to_owned))
            .chain(more.iter().map(|s| (*s).to_owned()))
            .collect()
    };
    let of = |args: Vec<String>| {
        let done =
            Command::new(env!("CARGO_BIN_EXE_onlay")).args(args).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(0), "{said}");
        (serde_json::from_slice::<Value>(&done.stdout).unwrap(), said)
    };
    // It has to have something to judge by, and time.
    refused(&train(&model, &data, &out, &["--search", "1"]), 1, &["search: expected held-out rows"]);
    let short = train(&model, &data, &out, &["--eval-split", "0.2", "--search", "0.00001"]);
    refused(&short, 1, &["search: expected at least ", "minutes"]);

    let (summary, said) = of(args("12", &[]));
    let trials = summary["search"]["trials"].as_array().unwrap();
    assert!(trials.len() >= 9 && said.contains("chosen: rank "), "{summary} {said}");
    let rank = summary["search"]["chosen"]["rank"].as_u64().unwrap();
    let listed: Value = serde_json::from_str(&fine(&["inspect", &out, "--json"])).unwrap();
    assert!(listed.to_string().contains("searched"), "{listed}");
    assert!(said.contains(&format!("chosen: rank {rank}")));

    if !cfg!(unix) {
        println!("skipped: no Ctrl-C to send here");
        return;
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_onlay"))
        .args(args("1000000", &["--overwrite"]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let checkpoint = folder.file("my.gguf.checkpoint");
    while !Path::new(&checkpoint).exists() {
        if child.try_wait().unwrap().is_some() {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
            panic!("it ended before its first checkpoint: {said}");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    let step = said.split("stopped after step ").nth(1).unwrap().split(' ').next().unwrap();
    let steps = (step.parse::<u64>().unwrap() + 5).to_string();
    let chosen = said.split("chosen: ").nth(1).unwrap().lines().next().unwrap();
    let (summary, again) = of(args(&steps, &["--resume"]));
    assert!(again.contains(&format!("as was searched before: {chosen}")), "{again}");
    assert_eq!(summary["steps"].as_u64().unwrap().to_string(), steps);
}

#[test]
fn a_conversation_swaps_layers_without_reloading() {
    let folder = Folder::new("chat");
    let base = model();
    let done = Command::new(env!("CARGO_BIN_EXE_onlay"))
        .args(["chat", &base])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // The tiny model has no template, and says so before anyone has typed.
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("chat template"));

    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fable-15m.gguf");
    let bundled = bundled.to_str().unwrap();
    let out = folder.file("my.gguf");
    let rows = folder.file("rows.jsonl");
    let row = r#"{"messages":[{"role":"user","content":"Who are you?"},{"role":"assistant","content":"Zing zing zing zing."}]}"#;
    std::fs::write(&rows, format!("{row}\n")).unwrap();
    fine(&[
        "train",
        bundled,
        "--data",
        &rows,
        "-o",
        &out,
        "--max-steps",
        "12",
        "--learning-rate",
        "3e-3",
        "--rank",
        "4",
    ]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_onlay"))
        .args(["chat", bundled, "--temp", "0", "-n", "8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = format!(
        "Who are you?\n/reset\n/adapter {out}\nWho are you?\n/reset\n/adapter off\nWho are you?\n/adapter no-such\n/nonsense\n/quit\n"
    );
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let (said, errors) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert_eq!(done.status.code(), Some(0), "{errors}");
    let answers: Vec<_> = said.lines().collect();
    assert!(answers.len() >= 3, "{said}");
    assert!(said.matches("Zing").count() >= 1, "{said}");
    assert_eq!(answers.first(), answers.last());
    assert!(errors.contains("no-such") && errors.contains("/nonsense"));
}

#[test]
fn what_run_refuses() {
    let model = model();
    refused(&["run", &model], 2, &["-p"]);
    refused(&["run", &model, "-p", "a", "-f", "b"], 2, &[]);
    refused(&["run", &model, "-p", "a", "--kv", "f8"], 2, &["f16"]);
    refused(&["run", &model, "-p", "a", "--temp=-1", "--top-p", "0"], 1, &["temp", "top-p"]);
    refused(&["run", "no-such.gguf", "-p", "a"], 1, &["no-such.gguf"]);
    refused(&["run", &model, "-p", "a", "--adapter", "no-such"], 1, &["no-such"]);
    refused(&["run", &model, "-f", "no-such.txt"], 1, &["no-such.txt"]);
    refused(&["run", &model, "-p", &"word ".repeat(5000), "--ctx", "64"], 1, &["--ctx"]);
}

#[test]
fn the_objective_follows_from_the_rows_and_is_said() {
    let (folder, model) = (Folder::new("judged"), model());
    let data = folder.file("pairs.jsonl");
    let pair = |i: usize| {
        let words = ["river", "lamp", "clock", "barn", "sea"][i % 5];
        serde_json::json!({"prompt": format!("the {words} "), "chosen": "is old", "rejected": format!("no {i}")})
    };
    let rows: String = (0..10).map(|i| format!("{}\n", pair(i))).collect();
    std::fs::write(&data, &rows).unwrap();
    let (out, log) = (folder.file("my.gguf"), folder.file("log.jsonl"));
    let done = onlay(&train(&model, &data, &out, &["--log", &log, "--eval-split", "0.2", "--beta", "0.2"]));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(
        said.contains("objective: dpo, beta 0.2, label-smoothing 0; the reference is the base"),
        "{said}"
    );
    assert!(said.contains("8 rows") && said.contains("in pairs"), "{said}");
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(summary["objective"], "dpo");
    assert!(summary["eval_accuracy_after"].is_number(), "{summary}");
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<_> = lines.iter().filter(|l| l.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 6);
    assert!(steps.iter().all(|s| s["rewards/chosen"].is_number() && s["rewards/accuracies"].is_number()));
    assert!(lines.iter().any(|l| l["eval_rewards/accuracies"].is_number()), "{log}");

    let again = folder.file("again.gguf");
    let plan: Value = serde_json::from_str(&fine(&train(
        &model,
        &data,
        &again,
        &["--objective", "simpo", "--gamma", "1", "--plan"],
    )))
    .unwrap();
    assert_eq!(plan["objective"], "simpo");
    let refuse =
        |more: &[&str], code, parts: &[&str]| refused(&train(&model, &data, &again, more), code, parts);
    refuse(&["--objective", "ppo"], 2, &["sft, dpo, ipo, orpo, simpo, kto"]);
    refuse(&["--objective", "kto"], 1, &["rows for kto", "feedback rows"]);
    refuse(&["--objective", "ipo", "--gamma", "1", "--beta", "0"], 1, &["no number of ipo", "above 0"]);
    std::fs::write(&data, rows.replace("no 3", "is old")).unwrap();
    refuse(&[], 1, &["line 4", "chosen and rejected are the same"]);
}
