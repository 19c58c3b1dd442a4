//! What `onlay train` shows before a run and leaves after it: masks, plans, control rows, reports.
#![cfg(feature = "cli")]

#[path = "support/cli.rs"]
#[macro_use]
mod cli;
mod support;
use cli::*;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use support::vectors;

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fable-15m.gguf")
}

/// A short run of the tiny model.
fn tiny(folder: &Scratch, more: &str) -> Vec<OsString> {
    let mut all = args!["train", vectors().join("llama/F32.gguf"), "--data"];
    all.push(vectors().join("llama/curve/data.jsonl").into());
    all.extend(args!["-o", folder.join("my.gguf")]);
    let rest = "--rank 2 --ctx 100 --batch-size 4 --threads 2";
    // a flag may be given once
    let unless = |flag: &str, value: &str| match more.contains(flag) {
        true => vec![],
        false => args![flag, value],
    };
    all.extend(unless("--max-steps", "12"));
    all.extend(unless("--learning-rate", "2e-2"));
    all.extend(rest.split(' ').chain(more.split(' ').filter(|w| !w.is_empty())).map(OsString::from));
    all
}

#[test]
fn the_mask_shows_what_is_trained_and_that_turns_end() {
    let folder = Scratch::new("mask");
    let row = |text: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"Who?"}},{{"role":"assistant","content":"{text}"}}]}}"#
        )
    };
    let rows = folder.put("rows.jsonl", [row("It \\u001b[31mis me."), row("No.")].join("\n"));
    let base = args!["train", bundled(), "--data", rows, "-o", folder.join("my.gguf"), "--show-mask"];
    let said = good(&base);
    assert!(!said.contains('\x1b'), "{said}");
    let starred: Vec<_> = said.lines().filter(|l| l.starts_with("  * ")).collect();
    assert_eq!(starred.len(), 2, "{said}");
    assert!(starred[1].contains("No") && !starred[1].contains("Who"), "{said}");
    assert!(said.contains("train row 1: ") && said.contains("the end of the turn is trained"), "{said}");
    assert!(
        said.contains("train: 2 rows") && said.contains("2 of them end with the end of a turn"),
        "{said}"
    );
    assert_eq!(folder.names(), ["rows.jsonl"]);
    // A row that loses its end does not teach to stop, and that is said.
    let cut = fed(&[&base[..], &args!["--ctx", "12", "--truncate"]].concat(), b"");
    let open =
        cut.err.contains("do not end with a trained end of turn") || cut.err.contains("nothing of the row");
    assert!(open, "{}", cut.err);
}

#[test]
fn rows_that_are_evaluated_are_left_out_of_training() {
    let folder = Scratch::new("overlap");
    let all = std::fs::read_to_string(vectors().join("llama/curve/data.jsonl")).unwrap();
    let two: Vec<&str> = all.lines().take(2).collect();
    let eval = folder.put("eval.jsonl", two.join("\n"));
    let with = |more: &str| {
        let more = format!("--plan --eval-data {} {more}", eval.display());
        json(&tiny(&folder, &more))
    };
    let (before, after) = (with(""), with("--drop-overlap"));
    assert_eq!(before["overlap_dropped"], 0);
    assert_eq!(after["overlap_dropped"], 2);
    assert_eq!(before["rows"].as_u64().unwrap() - 2, after["rows"].as_u64().unwrap());
    assert!(before["seconds_a_step"].as_f64().unwrap() > 0.0);
    assert!(before["seconds"].as_f64().unwrap() >= 12.0 * before["seconds_a_step"].as_f64().unwrap());
    let ran = fed(&tiny(&folder, &format!("--eval-data {}", eval.display())), b"");
    assert!(ran.code == 0 && ran.err.contains("--drop-overlap"), "{}", ran.err);
}

#[test]
fn forgetting_is_measured_and_held() {
    let folder = Scratch::new("control");
    let control = vectors().join("llama/curve/data.jsonl");
    let with = format!("--control {} --eval-split 0.2", control.display());
    let free = json(&tiny(&folder, &with));
    let kl = free["control"]["kl"].as_f64().unwrap();
    assert!(kl > 0.0 && free["control"]["scale"] == 1.0, "{free}");
    let limit = kl / 4.0;
    let more = format!("{with} --overwrite --max-forgetting {limit}");
    let held = json(&tiny(&folder, &more));
    let c = &held["control"];
    assert!(c["kl"].as_f64().unwrap() <= limit && c["scale"].as_f64().unwrap() < 1.0, "{held}");
    assert!(c["eval_loss_scaled"].is_number() && c["kl_unscaled"].as_f64().unwrap() == kl, "{held}");
    // The file is what was measured: put on again, it is as far from the base, and it says so itself.
    let out = folder.join("my.gguf");
    let loss = json(&args!["eval", vectors().join("llama/F32.gguf"), "--data", control, "--adapter", &out]);
    let (a, b) = (loss["loss"].as_f64().unwrap(), c["loss_after"].as_f64().unwrap());
    assert!((a - b).abs() < 1e-9, "{a} {b}");
    assert!(good(&args!["inspect", &out, "--json"]).contains("max_forgetting"));
    bad(2, &tiny(&folder, "--max-forgetting 0.1"));
    bad(1, &tiny(&folder, &format!("{with} --overwrite --max-forgetting=-1")));
}

#[test]
fn a_report_is_one_page_that_loads_nothing() {
    let folder = Scratch::new("report");
    let prompts = folder.put("p.txt", "<b>ab</b> & \"c\"\n");
    let report = folder.join("report.html");
    let more = format!(
        "--report {} --samples {} --eval-split 0.2 --eval-every 4",
        report.display(),
        prompts.display()
    );
    good(&tiny(&folder, &more));
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    for part in [
        "<svg",
        "Learning rate",
        "Gradient norm",
        "held out",
        "learning-rate",
        "&lt;b&gt;ab",
        "prefers-color-scheme",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for part in ["<script", "http", "<b>", "src=", "@import", "url("] {
        assert!(!page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg").count(), 3);
    // Refused before any time is spent, all at once.
    let nowhere = folder.join("no/such.html");
    let said = bad(1, &tiny(&folder, &format!("--report {} --learning-rate 0", nowhere.display())));
    assert!(said.contains("such.html") && said.contains("my.gguf"), "{said}");
    let said = bad(1, &tiny(&folder, &format!("--overwrite --report {}", folder.join("my.gguf").display())));
    assert!(said.contains("also the layer"), "{said}");
}

#[test]
fn a_run_that_replaces_a_layer_can_be_resumed() {
    let folder = Scratch::new("replace");
    good(&tiny(&folder, "--max-steps 2"));
    let old = std::fs::read(folder.join("my.gguf")).unwrap();
    let mut child = onlay()
        .args(tiny(&folder, "--overwrite --checkpoint-every 1"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !folder.join("my.gguf.checkpoint").exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
    if folder.join("my.gguf.checkpoint").exists() {
        good(&tiny(&folder, "--resume --checkpoint-every 1"));
    }
    assert!(std::fs::read(folder.join("my.gguf")).unwrap() != old);
    // Without a checkpoint there is nothing to resume, and a layer that is there is not replaced.
    bad(1, &tiny(&folder, "--resume"));
}
