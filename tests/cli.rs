//! The commands that read: score, tokenize, render, eval, bench.
#![cfg(feature = "cli")]

#[path = "support/cli.rs"]
mod cli;
mod support;
use cli::*;
use onlay::eval::score;
use onlay::format::gguf::{Builder, Encoded, parse};
use onlay::model::Options;
use onlay::ops::kv::Precision;
use onlay::text::{Chat, Conversation, Tokenizer, Turns};
use serde_json::{Value, json as object};
use std::process::Stdio;
use support::*;

fn llama() -> std::path::PathBuf {
    vectors().join("llama/F32.gguf")
}

#[test]
fn scores_are_those_of_the_oracles_and_of_the_library() {
    let answers = Answers::open(vectors().join("llama/F32.safetensors"));
    let model = open(llama());
    for i in 0..3 {
        let (tokens, want) =
            (answers.tokens(&format!("tokens.{i}")), answers.numbers(&format!("logprobs.{i}")));
        for (name, kv) in [("f32", Precision::F32), ("f16", Precision::F16)] {
            let found = json(&args!["score", llama(), "--tokens", list(&tokens), "--kv", name]);
            assert_eq!(found.as_object().unwrap().keys().collect::<Vec<_>>(), ["tokens", "logprobs"]);
            assert_eq!((ids(&found["tokens"]), found["logprobs"][0].is_null()), (tokens.clone(), true));
            let found = numbers(&found["logprobs"]);
            let worst = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(found.len() == want.len() && worst < 5e-3, "{worst}");
            // every digit is printed; the test's own reader of JSON would lose the last
            let mut runner = runner(&model, Options { kv, ..options(1) });
            let own = score(&mut runner, &tokens, None).unwrap();
            let printed = good(&args!["score", llama(), "--tokens", list(&tokens), "--kv", name, "--json"]);
            assert!(printed.contains(&format!("\"logprobs\":{}}}", object!(own))), "{printed}");
        }
    }
    let table = good(&args!["score", llama(), "--text", "abc"]);
    assert!(table.contains("\"b\"") && table.contains("perplexity"), "{table}");
}

#[test]
fn scores_wear_adapters() {
    let layer = vectors().join("llama/lora-all");
    let with = |scale: &str| {
        let mut path = layer.clone().into_os_string();
        path.push(scale);
        numbers(&json(&args!["score", llama(), "--text", "what is worn", "--adapter", path])["logprobs"])
    };
    let base = numbers(&json(&args!["score", llama(), "--text", "what is worn"])["logprobs"]);
    assert_eq!(with("=0"), base);
    assert!(with("") != base && with("") == with("=1.0") && with("") != with("=-1"));
    let text = bad(1, &args!["score", llama(), "--text", "a", "--adapter", "no such adapter"]);
    assert!(text.contains("no such adapter: cannot open"), "{text}");
    let text = bad(
        1,
        &args!["score", vectors().join("llama-wide/Q8_0.gguf"), "--text", "a", "--adapter", layer.clone()],
    );
    assert!(text.contains("lora-all"), "{text}");
    bad(1, &args!["score", llama(), "--text", "a", "--adapter", layer, "--exact-base"]);
}

#[test]
fn what_cannot_be_scored() {
    let scratch = Scratch::new("score");
    for wrong in [
        args!["score", llama()],
        args!["score", llama(), "--text", "a", "--tokens", "1"],
        args!["score", llama(), "--tokens", "1,x"],
        args!["score", llama(), "--tokens", "1", "--no-special"],
        args!["score", llama(), "--text", "a", "--kv", "f8"],
        args!["score", llama(), "--text", "a", "--adapter", ""],
        args!["score", llama(), "--text", "a", "--no-such-flag"],
        args!["score", "--text", "a"],
    ] {
        bad(2, &wrong);
    }
    let whole = std::fs::read(llama()).unwrap();
    let cut = scratch.put("cut.gguf", &whole[..whole.len() / 2]);
    let empty = scratch.put("empty", "");
    for (wrong, says) in [
        (args!["score", llama(), "--tokens", "5,272"], "token 1: expected below 272, found 272"),
        (args!["score", llama(), "--text", "abcdefgh", "--ctx", "2"], "at most 3 tokens"),
        (args!["score", llama(), "-f", &empty, "--no-special"], "nothing to score"),
        (args!["score", llama(), "-f", &scratch.0], "cannot be read"),
        (args!["score", scratch.join("none"), "--text", "a"], "none: cannot open"),
        (args!["score", &scratch.0, "--text", "a"], "expected a file, found a directory"),
        (args!["score", &cut, "--text", "a"], "cut.gguf"),
        (args!["score", &empty, "--text", "a"], "empty"),
    ] {
        let text = bad(1, &wrong);
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    let Some(root) = shared("vocab") else { return };
    let strings = std::fs::read_to_string(root.join("ggml-vocab.inp")).unwrap();
    for name in ["llama-spm", "gpt-2"] {
        let file = root.join(format!("ggml-vocab-{name}.gguf"));
        let want = std::fs::read_to_string(root.join(format!("ggml-vocab-{name}.gguf.out"))).unwrap();
        let mut n = 0;
        for (text, want) in strings.split("\n__ggml_vocab_test__\n").zip(want.lines()) {
            let found = fed(&args!["tokenize", &file, "--no-special"], text.as_bytes());
            let found = String::from_utf8(found.out).unwrap();
            assert!(found.split_whitespace().eq(want.split_whitespace()), "{text:?}: {found}{want}");
            n += 1;
        }
        assert_eq!(n, 46);
    }
}

#[test]
fn bytes_to_tokens_and_back() {
    let all: Vec<u8> = (0..=255).chain(*b"  \r\n text \n\n").collect();
    let model = open(llama());
    let own = model.tokenizer().unwrap().encode(&all, onlay::text::Encode::default());
    let ran = fed(&args!["tokenize", llama(), "--no-special"], &all);
    let ids = String::from_utf8(ran.out).unwrap();
    assert_eq!((ran.code, ids.trim_end().replace(' ', ",")), (0, list(&own)));
    let back = fed(&args!["tokenize", llama(), "--decode", &ids, "--no-special"], b"");
    assert_eq!((back.code, back.out), (0, all.clone()));

    let scratch = Scratch::new("tokenize");
    let file = scratch.put("bytes", &all);
    let found = json(&args!["tokenize", llama(), "--no-special", "-f", file]);
    assert_eq!(found, object!({ "tokens": own }));
    let text = json(&args!["tokenize", llama(), "--decode", list(&own), "--no-special"]);
    assert_eq!((&text["text"], text["bytes"].as_array().unwrap().len()), (&Value::Null, all.len()));
    let back = json(&args!["tokenize", llama(), "--decode", list(&own[97..100]), "--no-special"]);
    assert!(back["text"].is_string());

    for wrong in [
        args!["tokenize", llama(), "--text", "a", "-f", "b"],
        args!["tokenize", llama(), "--decode", "1", "--text", "b"],
        args!["tokenize", llama(), "--decode", "1;2"],
    ] {
        bad(2, &wrong);
    }
    assert!(bad(1, &args!["tokenize", llama(), "--decode", "272"]).contains("expected below 272"));
    bad(1, &args!["tokenize", llama(), "-f", scratch.join("none")]);
    bad(1, &args!["tokenize", vectors().join("llama/lora-all/adapter.gguf"), "--text", "a"]);
}

/// A file with a vocabulary of all bytes and some markers, and a chat template.
fn chatty() -> Vec<u8> {
    let shifted = (0x100..).map(|c| char::from_u32(c).unwrap());
    let plain = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut tokens: Vec<String> = plain.chain(shifted.take(68)).map(String::from).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(String::from));
    let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let kinds: Vec<i32> = (0..names.len()).map(|i| if i < 256 { 1 } else { 3 }).collect();
    let template =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text/templates/chatml.jinja");
    let template = std::fs::read_to_string(template).unwrap();
    let mut b = Builder::new();
    b.set("general.architecture", "llama").set("general.name", "a \x1b[31mred\x07 name\u{202e}");
    b.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
    b.set("tokenizer.ggml.tokens", Encoded::array(&names))
        .set("tokenizer.ggml.token_type", Encoded::array(&kinds));
    b.set("tokenizer.ggml.merges", Encoded::array::<&str>(&[]));
    b.set("tokenizer.ggml.eos_token_id", 257u32).set("tokenizer.ggml.bos_token_id", 256u32);
    b.set("tokenizer.ggml.add_bos_token", false);
    b.set("tokenizer.chat_template", template.as_str());
    b.set("tokenizer.chat_template.short", "{{ messages[0].content }}");
    let mut out = Vec::new();
    b.write(&mut out).unwrap();
    out
}

#[test]
fn conversations_are_rendered_as_they_are_learned() {
    let (scratch, file) = (Scratch::new("render"), chatty());
    let model = scratch.put("chatty.gguf", &file);
    let talk = object!([
        {"role": "user", "content": "Hi\x1b[2J there"},
        {"role": "assistant", "content": "Hello,\nyou."},
        {"role": "user", "content": "?"},
    ]);
    let messages = scratch.put("list.json", talk.to_string());
    let found = json(&args!["render", &model, "--messages", &messages]);

    let directory = parse(&file).unwrap();
    let tokenizer = Tokenizer::from_metadata(directory.metadata(&file)).unwrap();
    let chat = Chat::from_metadata(directory.metadata(&file), &tokenizer).unwrap().unwrap();
    let own = chat.render(&tokenizer, &Conversation::new(talk.clone()).unwrap(), Turns::Every).unwrap();
    assert_eq!(found["text"], own.text);
    assert!(ids(&found["tokens"]).into_iter().eq(own.tokens.iter().map(|t| t.id)));
    assert_eq!(found["trained"], object!(own.trainable));
    let role = |m: &Option<usize>| m.map(|m| talk[m]["role"].clone()).unwrap_or_default();
    assert_eq!(found["roles"], own.messages.iter().map(role).collect::<Value>());
    let trained =
        ids(&found["tokens"]).into_iter().zip(&own.trainable).filter(|(_, t)| **t).map(|(id, _)| id);
    let trained = tokenizer.decode(&trained.collect::<Vec<_>>(), true);
    assert_eq!(String::from_utf8(trained).unwrap(), "Hello,\nyou.<|im_end|>");

    let table = good(&args!["render", &model, "--messages", &messages]);
    assert!(!table.contains('\x1b') && table.contains("Hi\\u{1b}[2J there"), "{table}");
    assert!(
        table.lines().any(|l| l.starts_with("assistant  *") && l.ends_with("\"Hello,\\nyou.<|im_end|>\""))
    );
    let prompt = json(&args!["render", &model, "--messages", &messages, "--generation-prompt"]);
    assert!(prompt["text"].as_str().unwrap().ends_with("<|im_end|>\n<|im_start|>assistant\n"));
    let n = own.tokens.len();
    assert_eq!(prompt["roles"].as_array().unwrap()[..n], found["roles"].as_array().unwrap()[..]);
    assert!(prompt["roles"].as_array().unwrap()[n..].iter().all(Value::is_null));
    let short =
        json(&args!["render", &model, "--messages", &messages, "--template", "short", "--generation-prompt"]);
    assert_eq!(short["text"], "Hi\x1b[2J there");

    let row = object!({ "messages": talk });
    let rows = scratch.put("rows.jsonl", format!("{row}\n{row}\n"));
    assert_eq!(jsons(&args!["render", &model, "--messages", rows]), [found.clone(), found.clone()]);
    let pretty = scratch.put("object.json", serde_json::to_string_pretty(&row).unwrap());
    assert_eq!(json(&args!["render", &model, "--messages", pretty]), found);

    bad(2, &args!["render", &model]);
    let empty = scratch.put("empty.json", "[]");
    let text = scratch.put("text.json", "{\"text\": \"a\"}");
    let broken = scratch.put("broken.json", "[{\"role\": \"user\"");
    for (wrong, says) in [
        (args!["render", &model, "--messages", &empty], "there are no messages"),
        (args!["render", &model, "--messages", &text], "line 1: expected a conversation"),
        (args!["render", &model, "--messages", &broken], "broken.json"),
        (args!["render", &model, "--messages", &scratch.0], "cannot be read"),
        (args!["render", &model, "--messages", &messages, "--template", "long"], "expected default, short"),
        (args!["render", llama(), "--messages", &messages], "no chat template"),
    ] {
        let said = bad(1, &wrong);
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn perplexity_is_that_of_the_scores() {
    let scratch = Scratch::new("eval");
    let text: String = (0..180).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    let file = scratch.put("text.txt", &text);
    let scores = numbers(&json(&args!["score", llama(), "-f", &file])["logprobs"]);
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let found = json(&args!["eval", llama(), "--perplexity", &file, "--ctx", "256"]);
    assert_eq!((&found["windows"], &found["tokens"]), (&object!(1), &object!(scores.len())));
    let perplexity = found["perplexity"].as_f64().unwrap();
    assert!((perplexity / (-mean).exp() - 1.0).abs() < 1e-12, "{found}");
    let windows = json(&args!["eval", llama(), "--perplexity", &file, "--ctx", "32", "--stride", "8"]);
    assert_eq!((&windows["tokens"], &windows["stride"]), (&object!(scores.len()), &object!(8)));
    let halves = json(&args!["eval", llama(), "--perplexity", &file, "--ctx", "32", "--halves"]);
    assert!(halves["stride"].is_null() && halves["tokens"].as_u64().unwrap() < 100);
    assert!(good(&args!["eval", llama(), "--perplexity", &file]).starts_with("perplexity  "));

    for wrong in [
        args!["eval", llama()],
        args!["eval", llama(), "--perplexity", &file, "--data", &file],
        args!["eval", llama(), "--perplexity", &file, "--ctx", "1"],
        args!["eval", llama(), "--perplexity", &file, "--ctx", "8", "--stride", "8"],
        args!["eval", llama(), "--perplexity", &file, "--stride", "8", "--halves"],
    ] {
        bad(2, &wrong);
    }
    let empty = scratch.put("empty", "");
    assert!(bad(1, &args!["eval", llama(), "--perplexity", empty]).contains("at least 2 tokens"));
    assert!(bad(1, &args!["eval", llama(), "--perplexity", &file, "--halves"]).contains("two windows"));
    assert!(bad(1, &args!["eval", llama(), "--task", "any"]).contains("not supported yet"));
}

#[test]
fn the_loss_of_a_data_file_is_that_of_its_trained_tokens() {
    let file = vectors().join("llama/curve/data.jsonl");
    let model = open(llama());
    let mut runner = runner(&model, Options { kv: Precision::F16, ..options(1) });
    let (mut sum, mut n, mut rows) = (0.0, 0, 0);
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let tokens = ids(&row["input_ids"]);
        let scores = score(&mut runner, &tokens, None).unwrap();
        for (i, p) in scores.iter().enumerate().skip(1) {
            if row["labels"].is_null() || row["labels"][i] != -100 {
                (sum, n) = (sum - p.unwrap(), n + 1);
            }
        }
        rows += 1;
    }
    let found = json(&args!["eval", llama(), "--data", &file]);
    assert_eq!((&found["rows"], &found["tokens"]), (&object!(rows), &object!(n)));
    assert!((found["loss"].as_f64().unwrap() - sum / f64::from(n)).abs() < 1e-12, "{found}");
    assert!(bad(1, &args!["eval", llama(), "--data", &file, "--ctx", "8"]).contains("line 1"));
    let cut = json(&args!["eval", llama(), "--data", &file, "--ctx", "12", "--truncate"]);
    assert!(cut["truncated"].as_u64().unwrap() > 0);
}

#[test]
fn every_test_of_speed_has_its_ceiling() {
    let found =
        jsons(&args!["bench", llama(), "-p", "16", "-n", "4", "--train", "8", "-r", "2", "--threads", "1"]);
    let names: Vec<_> = found.iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp16", "tg4", "train8"]);
    for test in &found {
        let number = |key: &str| test[key].as_f64().unwrap_or_else(|| panic!("{key}: {test}"));
        assert!(number("tokens_per_second") > 0.0 && number("ceiling") > 0.0);
        assert!((number("share") - number("tokens_per_second") / number("ceiling")).abs() < 1e-9);
        assert_eq!((&test["threads"], &test["repeats"]), (&object!(1), &object!(2)));
        if cfg!(target_os = "linux") {
            assert!(number("peak_rss_bytes") > 1e6);
        }
    }
    let layer = vectors().join("llama/lora-all");
    let worn = args!["bench", llama(), "-p", "0", "-n", "4", "--train", "8", "-r", "1", "--adapter", layer];
    assert_eq!(good(&worn).lines().filter(|l| l.starts_with("tg4") || l.starts_with("train8")).count(), 2);
    bad(2, &args!["bench", llama(), "-p", "0", "-n", "0"]);
    bad(2, &args!["bench", llama(), "-r", "0"]);
    bad(2, &args!["bench", llama(), "-p", "4000000000"]);
    bad(1, &args!["bench", "none.gguf"]);
}

#[test]
fn whoever_stops_reading_may() {
    for args in [args!["inspect", llama(), "--json"], args!["score", llama(), "--text", "a"]] {
        let mut command = onlay();
        let mut child = command.args(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let done = child.wait_with_output().unwrap();
        assert_eq!(
            (done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()),
            (Some(0), ""),
            "{args:?}"
        );
    }
}
