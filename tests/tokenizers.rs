//! Tokenizers against their references.
//!
//! Vectors that always run are in `tests/data/text/` with the scripts that made them. The vocabularies of real models
//! are not part of this repository: where `../shared/data` (or `$ONLAY_SHARED`) has them, they are compared too.

#[path = "tokenizers/hostile.rs"]
mod hostile;
#[path = "tokenizers/read.rs"]
mod read;

use std::path::Path;

use onlay::text::{Encode, TokenKind, Tokenizer, Vocabulary};
use read::*;
use serde_json::Value;

const PLAIN: Encode = Encode { special: false, parse_special: false };
const SPECIAL: Encode = Encode { special: true, parse_special: true };
const PARSED: Encode = Encode { special: false, parse_special: true };

const OWN: &[&str] = &[
    "spm",
    "spm-unknown",
    "spm-unused",
    "unigram",
    "unigram-bytes",
    "bpe",
    "wordpiece-uncased",
    "wordpiece-cased",
];

fn load(name: &str) -> (Vocabulary, Vec<(String, Vec<u32>)>) {
    let file = json(&bytes(here(&format!("{name}.json"))));
    (own(&file["vocabulary"]), cases(&file["cases"]))
}

/// The strings of `ggml-vocab.inp` and the ids of one `.out` file.
fn vectors(root: &Path, out: &str) -> Vec<(String, Vec<u32>)> {
    let strings = String::from_utf8(bytes(root.join("vocab/ggml-vocab.inp"))).unwrap();
    let ids = String::from_utf8(bytes(root.join(format!("vocab/ggml-vocab-{out}.gguf.out")))).unwrap();
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let mut strings: Vec<&str> = strings.split("\n__ggml_vocab_test__\n").collect();
    assert_eq!(strings.pop(), Some(""), "a separator ends the file");
    let ids: Vec<Vec<u32>> = ids.collect();
    assert_eq!(strings.len(), ids.len(), "{out}");
    strings.into_iter().map(str::to_string).zip(ids).collect()
}

/// Compares every case and what must hold of any tokenizer besides; gives the number of cases.
#[track_caller]
fn compare(name: &str, t: &Tokenizer, cases: &[(String, Vec<u32>)], options: Encode) -> usize {
    let mut wrong = 0;
    for (text, expected) in cases {
        let found = t.encode(text.as_bytes(), options);
        if found != *expected {
            wrong += 1;
            let show = |ids: &[u32]| {
                let names = ids.iter().map(|&id| String::from_utf8_lossy(t.name(id)).into_owned());
                names.collect::<Vec<_>>().join(" ")
            };
            if wrong <= 5 {
                println!("{name}: {text:?}\n  expected {}\n  found    {}", show(expected), show(&found));
            }
        }
        check_offsets(t, text.as_bytes(), options);
    }
    println!("{name}: {} of {} strings", cases.len() - wrong, cases.len());
    assert_eq!(wrong, 0, "{name}");
    cases.len()
}

/// Offsets are in order, inside the text, and lead to the same ids.
#[track_caller]
fn check_offsets(t: &Tokenizer, text: &[u8], options: Encode) {
    let spans = t.encode_with_offsets(text, options);
    let mut last = 0;
    for span in &spans {
        assert!(
            last <= span.start && span.start <= span.end && span.end <= text.len(),
            "{span:?} in {text:?}"
        );
        last = span.end;
    }
    assert_eq!(spans.iter().map(|s| s.id).collect::<Vec<_>>(), t.encode(text, options));
    if t.name(0) != b"" && t.spells_all_bytes() && t.unk() != spans.first().map(|s| s.id) {
        // With every byte spelled, what a token says is what stands at its place.
        for span in &spans {
            let bytes = matches!(t.kind(span.id), TokenKind::Byte);
            assert!(!bytes || text[span.start..span.end] == *t.piece(span.id) || span.start == span.end);
        }
    }
}

fn cases(value: &Value) -> Vec<(String, Vec<u32>)> {
    let pair = |c: &Value| (c[0].as_str().unwrap().to_string(), ids(&c[1]));
    value.as_array().unwrap().iter().map(pair).collect()
}

/// Decoding gives the text back, at once and token by token.
#[track_caller]
fn round_trip(t: &Tokenizer, text: &[u8], options: Encode) {
    let tokens = t.encode(text, options);
    assert_eq!(t.decode(&tokens, options.parse_special), text, "{:?}", String::from_utf8_lossy(text));
    let mut stream = t.stream(options.parse_special);
    let mut streamed = String::new();
    for &id in &tokens {
        streamed.push_str(stream.push(id));
    }
    streamed.push_str(stream.finish());
    assert_eq!(streamed, String::from_utf8_lossy(text));
}

#[test]
fn own_vocabularies_encode_as_their_references() {
    for name in OWN {
        let (vocabulary, cases) = load(name);
        assert!(compare(name, &Tokenizer::new(&vocabulary).unwrap(), &cases, PLAIN) >= 100);
    }
}

#[test]
fn llama_cpp_vectors() {
    let Some(root) = shared() else { return };
    for (name, file) in [
        ("llama-spm", "llama-spm.gguf"),
        ("phi-3", "phi-3.gguf"),
        ("gpt-2", "gpt-2.gguf"),
        ("bert-bge", "bert-bge.gguf"),
        ("starcoder", "starcoder.gguf.gz"),
        ("deepseek-llm", "deepseek-llm.gguf.gz"),
    ] {
        let t = gguf(&bytes(root.join("vocab").join(format!("ggml-vocab-{file}"))));
        assert_eq!(compare(name, &t, &vectors(&root, name), PLAIN), 46);
    }
    let file = |path: &str| bytes(root.join("tokenizers").join(path));
    let qwen2 =
        |pre| byte_level(&file("qwen2/vocab.json.gz"), &file("qwen2/merges.txt.gz"), pre, &["<|im_end|>"]);
    let built = [
        (
            "llama-bpe",
            byte_level(&file("llama3/encoder.json.gz"), &file("llama3/vocab.bpe.gz"), "llama-bpe", &[]),
        ),
        ("qwen2", qwen2("qwen2")),
        ("deepseek-r1-qwen", qwen2("deepseek-r1-qwen")),
        (
            "roberta-bpe",
            byte_level(
                &file("roberta-base/vocab.json.gz"),
                &file("gpt2/merges.txt.gz"),
                "roberta-bpe",
                &["<s>", "<pad>", "<unk>", "<mask>", "</s>"],
            ),
        ),
    ];
    for (name, vocabulary) in built {
        let t = Tokenizer::new(&vocabulary).unwrap();
        assert_eq!(compare(name, &t, &vectors(&root, name), PLAIN), 46);
    }
    // These have a vocabulary and no vectors: they load, and give every text back.
    for name in ["baichuan", "gpt-neox"] {
        let t = gguf(&bytes(root.join("vocab").join(format!("ggml-vocab-{name}.gguf.gz"))));
        for (text, _) in vectors(&root, "gpt-2") {
            check_offsets(&t, text.as_bytes(), SPECIAL);
            round_trip(&t, text.as_bytes(), PLAIN);
        }
    }
}

#[test]
fn vocabularies_of_other_forms() {
    let Some(root) = shared() else { return };
    let file = |path: &str| bytes(root.join("tokenizers").join(path));
    let texts = json(&bytes(here("strings.json")));
    let texts: Vec<String> = texts.as_array().unwrap().iter().map(|s| s.as_str().unwrap().into()).collect();
    let table = json(&bytes(here("shared.json")));
    for (name, expected) in table.as_object().unwrap() {
        let (vocabulary, options) = match name.as_str() {
            "t5-small/tokenizer.json.gz" => (unigram_json(&file(name), true), PLAIN),
            name if name.ends_with("tokenizer.json.gz") => (unigram_json(&file(name), false), PARSED),
            "tiny/tiny_bpe_tokenizer.json" => (
                byte_level(
                    &file("tiny/tiny_bpe_vocab.json"),
                    &file("tiny/tiny_bpe_merges.txt"),
                    "qwen2",
                    &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                ),
                PARSED,
            ),
            name => (sentencepiece(&file(name)), PLAIN),
        };
        let mut cases: Vec<_> =
            texts.iter().cloned().zip(expected.as_array().unwrap().iter().map(ids)).collect();
        // The tiny one lacks most bytes, and its library joins what stands on both sides of a missing one.
        let spelled = |text: &str| text.bytes().all(|b| (b' '..=b'~').contains(&b) || b == b'\n');
        cases.retain(|(text, _)| !name.starts_with("tiny") || spelled(text));
        compare(name, &Tokenizer::new(&vocabulary).unwrap(), &cases, options);
    }
}

#[test]
fn reference_texts() {
    let Some(root) = shared() else { return };
    let root = root.join("tokenizers");
    let uncased = wordpiece(&bytes(root.join("bert-base-uncased/vocab.txt")), true);
    let cased = wordpiece(&bytes(root.join("bert-base-cased/vocab.txt")), false);
    let gpt2 = byte_level(
        &bytes(root.join("gpt2/vocab.json.gz")),
        &bytes(root.join("gpt2/merges.txt.gz")),
        "gpt-2",
        &["<|endoftext|>"],
    );
    for (name, text, vocabulary) in [
        ("Rust_programming_language-bert-base-uncased", "Rust_programming_language", &uncased),
        ("Rust_programming_language-bert-base-cased", "Rust_programming_language", &cased),
        ("Metal_umlaut-bert-base-uncased", "Metal_umlaut", &uncased),
        ("monty-python-credits-bert-base-uncased", "monty-python-credits", &uncased),
        ("monty-python-credits-gpt2", "monty-python-credits", &gpt2),
    ] {
        let text = String::from_utf8(bytes(root.join(format!("reftests/{text}.txt")))).unwrap();
        let expected = ids(&json(&bytes(root.join(format!("reftests/{name}.json"))))["token_ids"]);
        compare(name, &Tokenizer::new(vocabulary).unwrap(), &[(text, expected)], SPECIAL);
    }
}

#[test]
fn tokenizer_tests_of_other_models() {
    let Some(root) = shared() else { return };
    let file = |path: &str| bytes(root.join("tokenizers").join(path));
    let uncased = || wordpiece(&file("bert-base-uncased/vocab.txt"), true);
    let gpt2 = || byte_level(&file("gpt2/vocab.json.gz"), &file("gpt2/merges.txt.gz"), "gpt-2", &[]);
    let mut llama3 = byte_level(
        &file("llama3/encoder.json.gz"),
        &file("llama3/vocab.bpe.gz"),
        "llama-bpe",
        &["<|begin_of_text|>"],
    );
    llama3.add_bos = Some(true);
    let mut t5 = unigram_json(&file("t5-small/tokenizer.json.gz"), true);
    t5.add_eos = Some(true);
    let tests = json(&file("reftests/tokenizer_tests.json"));
    for (name, t) in [
        ("bert-base-uncased", Tokenizer::new(&uncased())),
        ("google-bert/bert-base-uncased", Tokenizer::new(&uncased())),
        ("distilgpt2", Tokenizer::new(&gpt2())),
        ("openai/whisper-tiny.en", Tokenizer::new(&gpt2())),
        ("t5-base", Tokenizer::new(&t5)),
        ("pcuenq/Llama-3.2-1B-Instruct-tokenizer", Tokenizer::new(&llama3)),
        (
            "coreml-projects/Llama-2-7b-chat-coreml",
            Ok(gguf(&bytes(root.join("vocab/ggml-vocab-llama-spm.gguf")))),
        ),
    ] {
        let cases = tests[name].as_array().unwrap().iter().map(|case| {
            let mut expected = ids(&case["encoded"]["input_ids"]);
            // Whisper puts four tokens of its own around the text, above GPT-2's vocabulary.
            expected.retain(|&id| !name.contains("whisper") || id < 50256);
            (case["input"].as_str().unwrap().to_string(), expected)
        });
        compare(name, &t.unwrap(), &cases.collect::<Vec<_>>(), SPECIAL);
    }
}
