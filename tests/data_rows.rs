//! Data files: every kind of row, everything that can be wrong with one, and exactly which tokens are learned.

#[path = "support/rows.rs"]
mod rows;
mod support;
use onlay::error::Kind;
use onlay::rng::Rng;
use onlay::text::{Chat, Turns};
use onlay::train::{Content, Encoder, Flow, Format, Long, Rows};
use rows::*;
use serde_json::json;
use std::path::Path;
use support::*;

/// One row of each kind, and what it should be read as.
fn kinds() -> Vec<(Format, serde_json::Value)> {
    vec![
        (Format::Text, json!({"text": "Once, \"twice\".\n", "id": 7})),
        (Format::Completion, json!({"prompt": "2 + 2 =", "completion": " 4"})),
        (
            Format::Messages,
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}),
        ),
        (
            Format::Conversations,
            json!({"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}),
        ),
        (Format::Instruction, json!({"instruction": "Add.", "input": "1 1", "output": "2"})),
        (Format::Tokens, json!({"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]})),
        (Format::Preference, json!({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})),
        (Format::Feedback, json!({"prompt": "2 + 2 =", "completion": " 4", "label": true})),
    ]
}

#[test]
fn every_kind_is_seen_from_its_keys_and_can_be_forced() {
    for (format, row) in kinds() {
        let one = row.to_string();
        let pretty = serde_json::to_string_pretty(&json!([row, row])).unwrap();
        let files = [
            (one.clone(), vec![1]),
            (format!("{one}\n{one}\n"), vec![1, 2]),
            (format!("\u{feff}{one}\r\n\r\n{one}\r\n"), vec![1, 3]),
            (format!("\n \n[\n{one},\n{one}\n]\n"), vec![4, 5]),
            (format!("\u{feff}[{one},{one}]"), vec![1, 1]),
            (pretty.clone(), vec![2, 3 + one_row_lines(&row)]),
        ];
        for (file, lines) in files {
            let rows = parse(&file).unwrap_or_else(|e| panic!("{e}\n{file}"));
            assert_eq!(rows.format, format);
            assert_eq!(rows.rows.iter().map(|r| r.line).collect::<Vec<_>>(), lines, "{file}");
            assert!(rows.rows.iter().all(|r| r.content == rows.rows[0].content));
            assert_eq!(as_format(&file, format).unwrap().rows, rows.rows);
            assert_eq!(
                rows.ignored.iter().collect::<Vec<_>>(),
                if format == Format::Text { vec!["id"] } else { vec![] }
            );
        }
        assert_eq!(Format::named(format.name()).unwrap(), format);
    }
    let read = |i: usize| parse(kinds()[i].1.to_string()).unwrap().rows.remove(0).content;
    assert_eq!(read(0), Content::Text("Once, \"twice\".\n".into()));
    assert_eq!(read(1), Content::Completion { prompt: "2 + 2 =".into(), completion: " 4".into() });
    let Content::Chat(talk) = read(3) else { panic!() };
    assert_eq!((0..3).map(|m| talk.role(m).unwrap()).collect::<Vec<_>>(), ["system", "user", "assistant"]);
    let Content::Tokens { tokens, trained } = read(5) else { panic!() };
    assert_eq!((tokens, trained), (vec![1, 2, 3, 4], vec![false, false, true, true]));
}

/// Lines that a pretty-printed row takes, less one.
fn one_row_lines(row: &serde_json::Value) -> u64 {
    serde_json::to_string_pretty(row).unwrap().lines().count() as u64 - 1
}

#[test]
fn a_text_file_is_one_document() {
    let read = |bytes: &[u8]| Rows::parse(Path::new("a/Story.TXT"), bytes, None);
    let rows = read(b"\xef\xbb\xbf{\"text\": 1}\r\nEnd").unwrap();
    assert_eq!(rows.rows[0].content, Content::Text("{\"text\": 1}\r\nEnd".into()));
    assert_eq!(read(b"a\nb\n\xff").unwrap_err().to_string(), "a/Story.TXT: line 3: the text is not UTF-8");
    assert!(read(b" \n").unwrap_err().to_string().contains("empty"));
    let forced = Rows::parse(Path::new("a.txt"), b"x", Some(Format::Tokens)).unwrap_err();
    assert!(forced.to_string().contains("expected text, found tokens"), "{forced}");
}

#[test]
fn everything_that_is_wrong_is_listed_with_its_line() {
    let cases: &[(&str, &[(u64, &str)])] = &[
        ("", &[(0, "the file is empty")]),
        ("\u{feff}\r\n \n", &[(0, "the file is empty")]),
        ("[]", &[(0, "there are no rows")]),
        ("[ \n ]\n", &[(0, "there are no rows")]),
        ("{}", &[(1, "the row is empty")]),
        ("[{}, {}]", &[(1, "the row is empty"), (1, "the row is empty")]),
        (
            "{\"text\": \"a\"}\noops\n{\"text\": 3}\n[1]\n{\"text\": \"\"}\n{\"text\": \" \\n\"}\n{\"text\"",
            &[
                (2, "not JSON: expected value at column 1"),
                (3, "text: expected a text, found a number"),
                (4, "a row is an object, found a list"),
                (5, "text: empty"),
                (6, "text: empty"),
                (7, "not JSON: EOF"),
            ],
        ),
        (
            "{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}",
            &[(2, "format of the row: expected text, as the rows before, found completion")],
        ),
        ("{\"text\": \"a\", \"messages\": []}", &[(1, "can be read as text and as messages: say which")]),
        ("{\"question\": \"a\", \"answer\": \"b\"}", &[(1, "found question, answer")]),
        ("{\"text\": \"a\", \"text\": \"b\"}", &[(1, "a key is there twice")]),
        ("{\"text\": \"\\ud800\"}", &[(1, "not JSON: unexpected end of hex escape")]),
        (
            "{\"prompt\": [], \"completion\": 1}",
            &[(1, "conversations are read from `messages`"), (1, "completion: expected a text")],
        ),
        (
            "[{\"text\": \"a\"},\n\n{\"text\":},\n {\"text\": 1}\n",
            &[
                (3, "not JSON: expected value at column 9"),
                (4, "text: expected a text"),
                (5, "the array does not end"),
            ],
        ),
        ("[{\"text\": \"a\"},]", &[(1, "a comma with no row beside it")]),
        (
            "[,{\"text\": \"a\"}\n] x",
            &[(1, "a comma with no row beside it"), (2, "something follows the array")],
        ),
        (
            "[\n1,\n\"a,]\",\n{\"text\": {\"a\":\n oops}}]",
            &[(2, "found a number"), (3, "found a text"), (5, "not JSON: expected value at column 2")],
        ),
        ("{\"messages\": []}", &[(1, "messages: empty")]),
        ("{\"messages\": {}}", &[(1, "messages: messages: expected a list, found an object")]),
        ("{\"messages\": [1]}", &[(1, "message 0: expected an object")]),
        ("{\"messages\": [{\"content\": \"a\"}]}", &[(1, "role of message 0")]),
        (
            "{\"messages\": [{\"role\": \"user\"}, {\"role\": \"assistant\", \"content\": 3, \"weight\": 2}], \"tools\": 1}",
            &[
                (1, "tools: expected a list, found a number"),
                (1, "content of message 0: expected a text, found none"),
                (1, "content of message 1: expected a text, found a number"),
                (1, "weight of message 1: expected 0 or 1"),
            ],
        ),
        (
            "{\"conversations\": [{\"from\": \"me\", \"value\": \"a\"}, {\"from\": \"gpt\"}], \"system\": 1}",
            &[
                (1, "system: expected a text"),
                (1, "from of turn 0: expected system, human, gpt or tool, found me"),
                (1, "content of message 1: expected a text, found null"),
            ],
        ),
        ("{\"conversations\": 1}", &[(1, "expected a list, found a number")]),
        (
            "{\"instruction\": \"\", \"output\": 1, \"input\": 2}",
            &[(1, "instruction: empty"), (1, "output: expected a text"), (1, "input: expected a text")],
        ),
        (
            "{\"input_ids\": []}\n{\"input_ids\": [1, \"a\"]}\n{\"input_ids\": [1, -2]}\n{\"input_ids\": [1.0]}\n{\"input_ids\": 1}",
            &[
                (1, "input_ids: empty"),
                (2, "input_ids: number 1: expected an integer, found \\\"a\\\""),
                (3, "input_ids: number 1: expected a token id, found -2"),
                (4, "input_ids: number 0: expected an integer, found 1.0"),
                (5, "input_ids: expected a list of integers, found a number"),
            ],
        ),
        (
            "{\"input_ids\": [1, 2], \"labels\": [1]}\n{\"input_ids\": [1, 2], \"labels\": [-1, 2]}\n{\"input_ids\": [1, 2], \"labels\": [-100, 3]}",
            &[
                (1, "labels: expected 2 as input_ids, found 1"),
                (2, "labels: number 0: expected -100 or the token 1, found -1"),
                (3, "labels: number 1: expected -100 or the token 2, found 3"),
            ],
        ),
        (
            "{\"input_ids\": [1, 2], \"attention_mask\": [1, 0]}",
            &[(1, "attention_mask: rows are not padded here")],
        ),
        (
            "{\"input_ids\": [4294967296]}\n{\"input_ids\": [18446744073709551615]}",
            &[(1, "expected a token id, found 4294967296"), (2, "expected an integer")],
        ),
    ];
    for (file, expected) in cases {
        let error = parse(file).expect_err(file);
        assert!(error.to_string().starts_with("data.jsonl: "), "{error}");
        let found = findings(&error);
        assert_eq!(found.len(), expected.len(), "{file}\n{error}");
        for ((line, text), (expected_line, words)) in found.iter().zip(*expected) {
            assert!(line == expected_line && text.contains(words), "{file}\n{text}\n{expected_line} {words}");
        }
        assert_eq!(error.kind(), Kind::Data);
    }
    // A format that was forced asks for its keys and looks at no others.
    assert_eq!(as_format("{\"text\": \"a\", \"messages\": 1}", Format::Text).unwrap().ignored.len(), 1);
    let error = as_format("{\"prompt\": \"a\"}", Format::Completion).unwrap_err();
    assert_eq!(error.to_string(), "data.jsonl: line 1: completion: missing");
    let error = as_format("{\"text\": \"a\"}", Format::Conversations).unwrap_err();
    assert_eq!(error.to_string(), "data.jsonl: line 1: conversations: missing");
    let utf16 = parse([0xff, 0xfe, b'{', 0]).unwrap_err();
    assert!(utf16.to_string().contains("UTF-16"));
    let missing = Rows::read("no/such/file.jsonl", None).unwrap_err();
    assert_eq!(missing.kind(), Kind::Io);
    assert!(Rows::read(env!("CARGO_MANIFEST_DIR"), None).unwrap_err().to_string().ends_with("not a file"));
}

#[test]
fn a_message_about_many_bad_rows_ends() {
    let error = parse("x\n".repeat(100_000)).unwrap_err();
    assert_eq!(error.findings().len(), 51);
    assert!(error.to_string().contains("100000 things are wrong") && error.to_string().len() < 5_000);
}

#[test]
fn no_bytes_break_the_reader() {
    let mut rng = Rng::new(11);
    for (_, row) in kinds() {
        for file in [format!("{row}\n{row}\n"), format!("[{row},\n{row}]")] {
            for end in 0..file.len() {
                if let Some(part) = file.get(..end) {
                    let _ = parse(part);
                }
            }
            for _ in 0..2_000 {
                let mut bytes = file.clone().into_bytes();
                for _ in 0..1 + rng.below(3) {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = match rng.below(3) {
                        0 => rng.next_u64() as u8,
                        _ => b"[]{},:\"\\0\n-e."[rng.below(13) as usize],
                    };
                }
                if let Err(e) = parse(&bytes) {
                    assert!(matches!(e.kind(), Kind::Data | Kind::Unsupported), "{e}");
                }
            }
        }
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(deep).unwrap_err().to_string().contains("recursion limit"));
}

#[test]
fn of_conversations_the_assistant_and_its_end_of_turn_are_learned() {
    let t = bytes_tokenizer(false);
    let row = json!({"messages": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
    ]});
    let rows = parse(row.to_string()).unwrap();
    for (name, expected) in [
        ("chatml.jinja", "Two.<|im_end|>Four.<|im_end|>"),
        ("llama3.jinja", "Two.<|eot_id|>Four.<|eot_id|>"),
        ("mistral.jinja", " Two.</s> Four.</s>"),
    ] {
        let chat = template(name, &t);
        let set = encode(&encoder(&t, Some(&chat)), &rows).unwrap();
        assert_eq!(texts(&set, 0, &t).1, expected, "{name}");
        let last = Encoder { turns: Turns::Last, ..encoder(&t, Some(&chat)) };
        let last = texts(&encode(&last, &rows).unwrap(), 0, &t).1;
        assert!(expected.ends_with(&last) && last.contains("Four.") && !last.contains("Two."), "{last}");
        // ShareGPT and Alpaca go the same way.
        let same = json!({"conversations": [{"from": "human", "value": "Add.\n\n1 1"}, {"from": "gpt", "value": "2"}]});
        let alpaca = json!({"instruction": "Add.", "input": "1 1", "output": "2"});
        let [a, b] = [same, alpaca]
            .map(|row| encode(&encoder(&t, Some(&chat)), &parse(row.to_string()).unwrap()).unwrap().examples);
        assert_eq!(a, b);
    }
    // OpenAI's weight 0: shown, not learned.
    let mut weighted = row.clone();
    weighted["messages"][1]["weight"] = json!(0);
    let chat = template("chatml.jinja", &t);
    let set = encode(&encoder(&t, Some(&chat)), &parse(weighted.to_string()).unwrap()).unwrap();
    assert_eq!(texts(&set, 0, &t).1, "Four.<|im_end|>");
    weighted["messages"][3]["weight"] = json!(0);
    let error = encode(&encoder(&t, Some(&chat)), &parse(weighted.to_string()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("the assistant says nothing"), "{error}");
}

#[test]
fn conversations_that_cannot_be_learned_are_listed() {
    let t = bytes_tokenizer(false);
    let question = json!({"messages": [{"role": "user", "content": "One?"}]});
    let fine = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let rows = parse(format!("{fine}\n{question}\n{fine}\n{question}\n")).unwrap();
    let chat = template("chatml.jinja", &t);
    let error = encode(&encoder(&t, Some(&chat)), &rows).unwrap_err();
    assert_eq!(findings(&error).iter().map(|f| f.0).collect::<Vec<_>>(), [2, 4], "{error}");
    assert!(error.to_string().starts_with("data.jsonl: "));

    // A template that does not end the turn teaches the model to go on for ever.
    let endless =
        Chat::new("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", &t).unwrap();
    let error = encode(&encoder(&t, Some(&endless)), &parse(fine.to_string()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Template);
    assert!(error.to_string().contains("would not learn to stop"), "{error}");

    // A template that refuses a row.
    let system =
        json!({"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let mistral = template("mistral.jinja", &t);
    let error = encode(&encoder(&t, Some(&mistral)), &parse(system.to_string()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("roles are system, user and assistant"), "{error}");

    let error = encode(&encoder(&t, None), &parse(fine.to_string()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    let none = Encoder { tokenizer: None, ..encoder(&t, None) };
    assert!(
        encode(&none, &parse("{\"text\": \"a\"}").unwrap()).unwrap_err().to_string().contains("no tokenizer")
    );
}

#[test]
fn of_completions_the_completion_and_the_end_are_learned() {
    for add_bos in [false, true] {
        let t = bytes_tokenizer(add_bos);
        let begin = if add_bos { "<s>" } else { "" };
        let rows = parse(
            "{\"prompt\": \"2 + 2 =\", \"completion\": \" 4 <s>\"}\n{\"prompt\": \"\", \"completion\": \"xyz\"}",
        );
        let set = encode(&encoder(&t, None), &rows.unwrap()).unwrap();
        assert_eq!(texts(&set, 0, &t), (format!("{begin}2 + 2 = 4 <s></s>"), " 4 <s></s>".into()));
        // what is spelled like a control token is only text, unless asked for
        assert_eq!(set.examples[0].tokens.iter().filter(|id| **id == 256).count(), usize::from(add_bos));
        // the first token of a sequence is never learned
        assert_eq!(texts(&set, 1, &t).1, if add_bos { "xyz</s>" } else { "yz</s>" });
        let special = Encoder { parse_special: true, ..encoder(&t, None) };
        let set = encode(&special, &parse("{\"prompt\": \"a\", \"completion\": \"b<|im_end|>\"}").unwrap())
            .unwrap();
        assert_eq!(set.examples[0].tokens.iter().filter(|id| **id == 259).count(), 1);
        // without a template
        let alpaca = parse("{\"instruction\": \"Add.\", \"input\": null, \"output\": \"2\"}").unwrap();
        let (text, learned) = texts(&encode(&encoder(&t, None), &alpaca).unwrap(), 0, &t);
        assert_eq!(learned, "2</s>");
        assert!(text.contains("### Instruction:\nAdd.\n\n### Response:\n2") && !text.contains("Input"));
    }
}

/// Tokenizers with merges: the seam between prompt and completion.
#[test]
fn the_seam_of_a_completion() {
    for name in ["llama/F32", "llama-tied-bias/F32", "qwen2/F32"] {
        let model = open(vectors().join(format!("{name}.gguf")));
        let t = model.tokenizer().unwrap();
        let encoder = Encoder::new(&model, None, 255);
        for (prompt, completion) in [
            ("The cat", " sat on the mat."),
            ("The cat ", "sat on the mat."),
            ("The c", "at sat on the mat."),
            ("", "The cat"),
            ("a\n", "\nb"),
            ("Question: why?\nAnswer:", "because"),
        ] {
            let row = json!({"prompt": prompt, "completion": completion}).to_string();
            let set = encode(&encoder, &parse(row).unwrap()).unwrap();
            let e = &set.examples[0];
            let plain = t.encode(prompt.as_bytes(), onlay::text::Encode::default());
            let begin = usize::from(t.adds_bos());
            let first = e.trained.iter().position(|t| *t).unwrap();
            let text =
                String::from_utf8_lossy(&t.decode(&e.tokens[begin..e.tokens.len() - 1], true)).into_owned();
            // one of these models cannot spell every character
            let whole = t.encode([prompt, completion].concat().as_bytes(), Default::default());
            assert_eq!(text.as_bytes(), t.decode(&whole, true), "{name}");
            assert_eq!(e.tokens.last().copied(), t.eos());
            assert!(e.trained[first..].iter().all(|t| *t));
            if first == begin + plain.len() {
                assert_eq!(e.tokens[begin..first], plain, "what serving sees");
            } else {
                // a token across the seam is learned, or the first of the sequence is not
                let before = t.decode(&e.tokens[begin..first], true);
                assert!(t.decode(&whole, true).starts_with(&before), "{name} {prompt:?}");
            }
        }
    }
}

#[test]
fn documents_are_cut_and_every_token_counts_once() {
    let t = bytes_tokenizer(true);
    let text: String = (0..103).map(|i| char::from(b'a' + i % 26)).collect();
    let rows = Rows::parse(Path::new("book.txt"), text.as_bytes(), None).unwrap();
    for context in [1, 2, 7, 50, 103, 104, 1000] {
        let set = encode(&Encoder { context, ..encoder(&t, None) }, &rows).unwrap();
        let whole: Vec<u32> = [&[256][..], &t.encode(text.as_bytes(), Default::default()), &[257]].concat();
        let mut learned = Vec::new();
        for (i, e) in set.examples.iter().enumerate() {
            assert!(e.rows() >= 1 && e.rows() <= context);
            assert!(!e.trained[0] && e.trained[1..].iter().all(|t| *t));
            if i > 0 {
                assert_eq!(e.tokens[0], *set.examples[i - 1].tokens.last().unwrap());
            }
            learned.extend_from_slice(&e.tokens[1..]);
        }
        assert_eq!(learned, whole[1..], "{context}");
        let facts = set.facts();
        assert_eq!((facts.rows, facts.trained, facts.truncated), (1, 104, 0));
        assert_eq!(facts.examples, 104usize.div_ceil(context));
    }
}

#[test]
fn long_rows_are_refused_or_lose_their_end_and_are_counted() {
    let t = bytes_tokenizer(false);
    let row = |n: usize| json!({"prompt": "p".repeat(n), "completion": "abc"}).to_string();
    let rows = parse([row(3), row(8), row(4), row(20), row(3)].join("\n")).unwrap();
    let refusing = Encoder { context: 7, ..encoder(&t, None) };
    let error = encode(&refusing, &rows).unwrap_err();
    assert_eq!(findings(&error).iter().map(|f| f.0).collect::<Vec<_>>(), [2, 4], "{error}");
    assert!(
        error.to_string().contains("expected at most 8 tokens, or leave to cut it off, found 12"),
        "{error}"
    );
    let cutting = Encoder { long: Long::Truncate, context: 8, ..refusing.clone() };
    let error = encode(&cutting, &rows).unwrap_err();
    assert_eq!(
        error.to_string(),
        "data.jsonl: line 4: nothing of the row is learned in the 9 tokens that fit the context"
    );
    let rows = parse([row(3), row(8), row(4), row(3)].join("\n")).unwrap();
    let set = encode(&cutting, &rows).unwrap();
    assert_eq!(texts(&set, 1, &t), ("ppppppppa".into(), "a".into()));
    let facts = set.facts();
    assert_eq!((facts.rows, facts.examples, facts.truncated, facts.lost), (4, 4, 1, 3));
    assert_eq!((facts.longest, facts.duplicates), (9, 1));
    assert_eq!((facts.tokens, facts.trained), (7 + 9 + 8 + 7, 4 + 1 + 4 + 4));
}

#[test]
fn tokens_are_taken_as_they_are() {
    let t = bytes_tokenizer(true);
    let e = Encoder { vocabulary: 10, context: 4, tokenizer: None, ..encoder(&t, None) };
    let rows =
        parse("{\"input_ids\": [9, 8, 7]}\n{\"input_ids\": [1, 2, 3], \"labels\": [1, -100, 3]}").unwrap();
    let set = encode(&e, &rows).unwrap();
    assert_eq!(set.examples[0].tokens, [9, 8, 7]);
    assert_eq!(set.examples[0].trained, [false, true, true]);
    assert_eq!(set.examples[1].trained, [false, false, true]);
    let rows = parse(
        "{\"input_ids\": [1, 10]}\n{\"input_ids\": [3]}\n{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n\
         {\"input_ids\": [1, 2, 3, 4, 5, 6]}",
    );
    let error = encode(&e, &rows.unwrap()).unwrap_err();
    let found = findings(&error);
    for (found, words) in found.iter().zip([
        "line 1: input_ids: number 1: expected below 10, found 10",
        "line 2: nothing of the row is learned",
        "line 3: nothing of the row is learned",
        "line 4: length of the row: expected at most 5 tokens",
    ]) {
        assert!(found.1.contains(words), "{}", found.1);
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn the_hash_is_of_tokens_mask_and_order() {
    let t = bytes_tokenizer(false);
    let hash = |file: &str| encode(&encoder(&t, None), &parse(file).unwrap()).unwrap().hash();
    let a = hash("{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5]}");
    assert_eq!(
        a,
        hash("[{\"input_ids\": [1, 2, 3], \"labels\": [-100, 2, 3], \"id\": 1},\n{\"input_ids\": [4, 5]}]")
    );
    for other in [
        "{\"input_ids\": [4, 5]}\n{\"input_ids\": [1, 2, 3]}",
        "{\"input_ids\": [1, 2, 3]}",
        "{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}\n{\"input_ids\": [4, 5]}",
        "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4, 5]}",
    ] {
        assert_ne!(a, hash(other));
    }
    let set = |file: &str| encode(&encoder(&t, None), &parse(file).unwrap()).unwrap();
    let (train, eval) =
        (set("{\"text\": \"ab\"}\n{\"text\": \"cd\"}"), set("{\"text\": \"cd\"}\n{\"text\": \"ef\"}"));
    assert_eq!(eval.overlap(&train), 1);
    let mut asked = 0;
    let stopped = encoder(&t, None).encode(&parse("{\"text\": \"ab\"}").unwrap(), &mut |_, _| {
        asked += 1;
        Flow::Stop
    });
    assert_eq!((asked, stopped.unwrap_err().kind()), (1, Kind::Cancelled));
}
