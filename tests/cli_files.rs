//! The commands about files: inspect, adapter, quantize.
#![cfg(feature = "cli")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/runs.rs"]
mod runs;
mod support;
use cli::*;
use onlay::adapter::Adapter;
use onlay::format::gguf::{Builder, Encoded};
use onlay::format::types::Type;
use onlay::tensor::{Identity, Weights};
use serde_json::{Value, json as object};
use std::path::PathBuf;
use support::*;

fn llama() -> PathBuf {
    vectors().join("llama/F32.gguf")
}

fn layer() -> PathBuf {
    vectors().join("llama/lora-all")
}

fn id(path: impl AsRef<std::path::Path>) -> String {
    Identity::hex(Adapter::open(path, &open(llama())).unwrap().0.id())
}

#[test]
fn models() {
    let found = json(&args!["inspect", llama()]);
    let weights = Weights::open(llama()).unwrap();
    assert_eq!((&found["kind"], &found["bytes"]), (&object!("model"), &object!(weights.file_len())));
    assert_eq!(found["identity"]["exact"], weights.identity().to_string());
    assert_eq!(found["identity"]["shape"], Identity::hex(&weights.identity().shape));
    assert_eq!(found["metadata"]["llama.block_count"], 2);
    assert_eq!(found["metadata"]["tokenizer.ggml.tokens"]["len"], 272);
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), weights.len());
    let down = tensors.iter().find(|t| t["name"] == "blk.0.ffn_down.weight").unwrap();
    let want =
        object!({"name": "blk.0.ffn_down.weight", "type": "F32", "shape": [64, 128], "bytes": 4 * 64 * 128});
    assert_eq!(down, &want);
    assert_eq!(
        (found["program"]["segments"].as_array().unwrap().len(), &found["sites"][14]["outputs"]),
        (2, &object!(272))
    );
    let program = good(&args!["inspect", llama(), "--program"]);
    assert!(program.contains("down = inner · blk.1.ffn_down.weight"), "{program}");
    assert!(good(&args!["inspect", llama()]).contains("blk.*.attn_k.weight"));
}

#[test]
fn files_that_are_no_models() {
    let scratch = Scratch::new("inspect");
    let peft = json(&args!["inspect", layer()]);
    assert_eq!(
        (&peft["kind"], &peft["alpha"], &peft["ranks"]),
        (&object!("adapter"), &object!(8.0), &object!([4]))
    );
    let gguf = json(&args!["inspect", layer().join("adapter.gguf")]);
    assert_eq!((&gguf["kind"], gguf["tensors"].as_array().unwrap().len()), (&object!("adapter"), 30));

    let model = open(llama());
    let disk = runs::Disk::default();
    let (_, _, bytes) = runs::finish(&mut runs::prepare(&model, runs::small(1), &disk).unwrap(), &disk);
    let checkpoint = scratch.put("run.checkpoint", &bytes);
    let found = json(&args!["inspect", &checkpoint]);
    assert_eq!((&found["kind"], &found["checkpoint"]["steps"]), (&object!("checkpoint"), &object!(9)));
    assert!(found["checkpoint"]["terms"].as_object().unwrap().len() > 5);
    assert!(good(&args!["inspect", &checkpoint]).contains("9 steps"));
    let mut broken = bytes.clone();
    *broken.last_mut().unwrap() ^= 1;
    let ran = fed(&args!["inspect", scratch.put("broken.checkpoint", broken)], b"");
    assert!(ran.code == 0 && ran.err.contains("warning") && ran.err.contains("damaged"), "{}", ran.err);

    let mut b = Builder::new();
    b.set("general.architecture", "unheard-of\x1b[2J\u{9b}")
        .set("general.name", "a \x1b[31mred\x07 name\u{202e}\n2nd");
    b.set("words", Encoded::array(&["\x1b[2J", "b"])).tensor_f32("x\u{a0}.weight", &[2], &[1.0, 2.0]);
    let mut bytes = Vec::new();
    b.write(&mut bytes).unwrap();
    let hostile = scratch.put("hostile.gguf", &bytes);
    let ran = fed(&args!["inspect", &hostile], b"");
    let text = String::from_utf8(ran.out).unwrap() + &ran.err;
    let dangerous = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(ran.code == 0 && !text.contains(dangerous), "{text:?}");
    assert!(text.contains("\\u{1b}[31mred\\u{7} name\\u{202e}\\n2nd"), "{text}");
    assert!(ran.err.contains("unheard-of"), "{}", ran.err);
    assert!(!good(&args!["inspect", &hostile, "--json"]).contains(dangerous));

    let cut = scratch.put("cut.gguf", &std::fs::read(llama()).unwrap()[..5000]);
    for (wrong, says) in [
        (args!["inspect", cut], "cut.gguf"),
        (args!["inspect", scratch.put("empty", "")], "empty"),
        (args!["inspect", &scratch.0], "without adapter_config.json"),
        (args!["inspect", scratch.join("none")], "none: cannot open"),
    ] {
        assert!(bad(1, &wrong).contains(says));
    }
    bad(2, &args!["inspect"]);
}

#[test]
fn vocabularies() {
    let Some(file) = shared("vocab/ggml-vocab-gpt-2.gguf") else { return };
    let found = json(&args!["inspect", file]);
    assert_eq!((&found["kind"], &found["vocabulary"]), (&object!("vocabulary"), &object!(50257)));
}

#[test]
fn converted_there_and_back_it_is_the_same_layer() {
    let scratch = Scratch::new("convert");
    let (file, back) = (scratch.join("a.gguf"), scratch.join("back"));
    let first = json(&args!["adapter", "convert", layer(), &file, "--base", llama()]);
    let second = json(&args!["adapter", "convert", &file, &back, "--base", llama()]);
    assert_eq!((&first["id"], &first["form"]), (&object!(id(layer())), &object!("gguf")));
    assert_eq!((&second["id"], &second["form"]), (&object!(id(layer())), &object!("peft")));
    assert_eq!((id(&file), id(&back)), (id(layer()), id(layer())));

    let text = bad(1, &args!["adapter", "convert", layer(), &file, "--base", llama()]);
    assert!(text.contains("--overwrite"), "{text}");
    good(&args!["adapter", "convert", layer(), &file, "--base", llama(), "--overwrite"]);
    bad(2, &args!["adapter", "convert", layer(), &file]);
    bad(2, &args!["adapter", "convert", layer(), scratch.join("a.safetensors"), "--base", llama()]);
    bad(1, &args!["adapter", "convert", scratch.join("none"), scratch.join("b"), "--base", llama()]);
    bad(1, &args!["adapter", "convert", layer(), scratch.join("no/b.gguf"), "--base", llama()]);
    let other = vectors().join("qwen3/F32.gguf");
    bad(1, &args!["adapter", "convert", layer(), scratch.join("b.gguf"), "--base", other]);
    bad(1, &args!["adapter", "convert", llama(), scratch.join("b.gguf"), "--base", llama()]);
    assert!(!scratch.join("b.gguf").exists() && !scratch.join("b").exists());

    let found = jsons(&args!["adapter", "list", &file, &back, "--base", llama()]);
    assert!(found.iter().all(|a| a["id"] == id(layer()) && a["ranks"] == object!([4]) && a["parts"] == 15));
    let alone = json(&args!["adapter", "list", &file]);
    assert_eq!((&alone["id"], &alone["method"]), (&Value::Null, &object!("lora")));
    let ran = fed(&args!["adapter", "list", &file, scratch.join("none")], b"");
    assert!(ran.code == 1 && !ran.out.is_empty() && ran.err.contains("1 of 2"), "{}", ran.err);
    bad(2, &args!["adapter", "list"]);
}

#[test]
fn a_merged_file_scores_as_the_layer_worn() {
    let scratch = Scratch::new("merge");
    let out = scratch.join("merged.gguf");
    let mut half = layer().into_os_string();
    half.push("=0.5");
    let report = json(&args!["adapter", "merge", llama(), &out, "--adapter", &half]);
    assert_eq!((&report["error"], report["tensors"].as_array().unwrap().len()), (&object!(0.0), 15));
    let worn = json(&args!["score", llama(), "--text", "what is worn", "--adapter", &half]);
    let merged = json(&args!["score", &out, "--text", "what is worn"]);
    let pairs = numbers(&worn["logprobs"]).into_iter().zip(numbers(&merged["logprobs"]));
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-2, "{worst}");

    let text = bad(1, &args!["adapter", "merge", llama(), &out, "--adapter", &half]);
    assert!(text.contains("--overwrite"), "{text}");
    let said =
        good(&args!["adapter", "merge", llama(), &out, "--adapter", &half, "--type", "q8_0", "--overwrite"]);
    assert!(said.contains("Q8_0") && said.lines().any(|l| l.starts_with("all ")), "{said}");
    bad(2, &args!["adapter", "merge", llama(), scratch.join("b.gguf")]);
    bad(2, &args!["adapter", "merge", llama(), scratch.join("b.gguf"), "--adapter", &half, "--type", "Q8_1"]);
    bad(1, &args!["adapter", "merge", llama(), scratch.join("b.gguf"), "--adapter", &half, "--type", "Q4_K"]);
    bad(1, &args!["adapter", "merge", llama(), scratch.join("b.gguf"), "--adapter", "none"]);
    bad(1, &args!["adapter", "merge", llama(), llama(), "--adapter", &half, "--overwrite"]);
    assert_eq!(scratch.names(), ["merged.gguf"]);
}

#[test]
fn quantized_files_are_what_was_asked_for() {
    let scratch = Scratch::new("quantize");
    let out = scratch.join("q8.gguf");
    let report = json(&args!["quantize", llama(), &out, "q8_0"]);
    assert_eq!(
        report["types"],
        object!([{"from": "F32", "to": "Q8_0", "matrices": 16, "error": report["error"]}])
    );
    let error = report["error"].as_f64().unwrap();
    assert!(error > 1e-3 && error < 1e-2, "{error}");
    assert_eq!(report["bytes_after"], std::fs::metadata(&out).unwrap().len());
    let inspected = json(&args!["inspect", &out]);
    let kinds = |dims: usize| {
        let all = inspected["tensors"].as_array().unwrap().iter();
        let mut kinds: Vec<_> = all
            .filter(|t| t["shape"].as_array().unwrap().len() == dims)
            .map(|t| t["type"].as_str().unwrap())
            .collect();
        kinds.dedup();
        kinds
    };
    assert_eq!((kinds(2), kinds(1)), (vec!["Q8_0"], vec!["F32"]));
    assert_eq!(inspected["identity"]["shape"], json(&args!["inspect", llama()])["identity"]["shape"]);

    assert!(bad(1, &args!["quantize", llama(), &out, "Q8_0"]).contains("--overwrite"));
    assert!(good(&args!["quantize", llama(), &out, "Q4_K_M", "--overwrite"]).contains("instead of Q4_K"));
    assert!(bad(2, &args!["quantize", llama(), &out, "Q9"]).contains("Q4_K_M"));
    bad(2, &args!["quantize", llama(), &out]);
    bad(1, &args!["quantize", llama(), scratch.join("no/q.gguf"), "Q8_0"]);
    bad(1, &args!["quantize", llama(), &scratch.0, "Q8_0", "--overwrite"]);
    bad(1, &args!["quantize", llama(), llama(), "Q8_0", "--overwrite"]);
    bad(1, &args!["quantize", layer().join("adapter.gguf"), scratch.join("a.gguf"), "Q8_0"]);
    let cut = scratch.put("cut.gguf", &std::fs::read(llama()).unwrap()[..5000]);
    bad(1, &args!["quantize", cut, scratch.join("a.gguf"), "Q8_0"]);
    assert_eq!(scratch.names(), ["cut.gguf", "q8.gguf"]);
}

/// Ctrl-C in the middle of a file leaves nothing.
#[cfg(unix)]
#[test]
fn stopped_it_leaves_nothing_behind() {
    use std::process::{Command, Stdio};
    let scratch = Scratch::new("stop");
    let input = scratch.join("big.gguf");
    let out = Scratch::new("stop-out");
    let mut b = Builder::new();
    b.set("general.architecture", "llama");
    for i in 0..16 {
        b.tensor_from(&format!("blk.{i}.attn_q.weight"), Type::F32, &[1024, 2048], |sink| {
            (0..2048).try_for_each(|_| sink.put_f32s(&[0.5; 1024]))
        });
    }
    b.write(&mut std::fs::File::create(&input).unwrap()).unwrap();
    let mut command = onlay();
    command.args(args!["quantize", &input, out.join("q.gguf"), "Q3_K", "--threads", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while out.names().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() {
        println!("skipped: it was done before it could be stopped");
        return;
    }
    assert!(
        done.status.code() == Some(1) && said.ends_with("q.gguf: stopped; nothing was written\n"),
        "{said}"
    );
    assert!(out.names().is_empty(), "{:?}", out.names());
}
