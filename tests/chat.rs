//! Chat templates against transformers, and what of a conversation is learned.
//!
//! The templates in `tests/data/text/templates/` are written for this purpose, in the styles of well-known models.

use std::path::{Path, PathBuf};

use onlay::Kind;
use onlay::error::Place;
use onlay::format::gguf::{Builder, parse};
use onlay::text::{Chat, Conversation, Encode, Rendered, Strings, Tokenizer, Turns, Vocabulary};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const STYLES: &[&str] = &["chatml", "llama3", "mistral", "gemma", "phi", "zephyr", "generation", "thinking"];

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name)
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every byte is a token, and so are the markers of all styles.
fn tokenizer(bos: &str, eos: &str, add_bos: bool) -> Tokenizer {
    let shifted = (0x100..).map(|c| char::from_u32(c).unwrap());
    let plain = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut tokens: Vec<String> = plain.chain(shifted.take(68)).map(String::from).collect();
    assert_eq!(tokens.len(), 256);
    let mut markers = vec![
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "[INST]",
        "[/INST]",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|tool|>",
        "<|end|>",
        "<s>",
        "</s>",
        bos,
        eos,
    ];
    markers.sort();
    markers.dedup();
    tokens.extend(markers.iter().map(|m| m.to_string()));
    let id = |name: &str| tokens.iter().position(|t| t == name).map(|id| id as u32);
    let vocabulary = Vocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        kinds: (0..tokens.len()).map(|i| if i < 256 { 1 } else { 3 }).collect(),
        bos: id(bos),
        eos: id(eos),
        add_bos: Some(add_bos),
        tokens: Strings::from_iter(&tokens),
        ..Vocabulary::default()
    };
    Tokenizer::new(&vocabulary).unwrap()
}

fn style(name: &str, tokenizer: &Tokenizer) -> Chat {
    let mut chat = Chat::new(&read(here(&format!("templates/{name}.jinja"))), tokenizer).unwrap();
    chat.set_now(Some(0));
    chat
}

fn talks() -> Vec<(String, Conversation)> {
    let table: Value = serde_json::from_str(&read(here("chat.json"))).unwrap();
    let talk = |value: &Value| {
        let mut talk = Conversation::new(value["messages"].clone()).unwrap();
        talk.tools = value.get("tools").cloned();
        talk.variables = value["variables"].as_object().cloned().unwrap_or_default();
        talk
    };
    table["talks"].as_object().unwrap().iter().map(|(name, value)| (name.clone(), talk(value))).collect()
}

fn talk(name: &str) -> Conversation {
    talks().into_iter().find(|(n, _)| n == name).unwrap().1
}

/// The text of the tokens that are learned.
fn learned(rendered: &Rendered, tokenizer: &Tokenizer) -> String {
    let tokens = rendered.tokens.iter().zip(&rendered.trainable).filter(|(_, t)| **t);
    let ids: Vec<u32> = tokens.map(|(t, _)| t.id).collect();
    String::from_utf8(tokenizer.decode(&ids, true)).unwrap()
}

#[test]
fn texts_are_those_of_transformers() {
    let t = tokenizer("<s>", "</s>", false);
    let table: Value = serde_json::from_str(&read(here("chat.json"))).unwrap();
    let mut checked = 0;
    for name in STYLES {
        let chat = style(name, &t);
        for (talk_name, talk) in talks() {
            for (key, prompt) in [("prompt", true), ("whole", false)] {
                let expected = &table[name][&talk_name][key];
                let found = chat.text(&talk, prompt);
                match (expected["text"].as_str(), found) {
                    (Some(expected), Ok(found)) => assert_eq!(found, expected, "{name} {talk_name} {key}"),
                    (None, Err(e)) => {
                        assert_eq!(e.kind(), Kind::Template);
                        assert!(e.to_string().contains(expected["error"].as_str().unwrap()), "{e}");
                        assert!(e.places().iter().any(|p| matches!(p, Place::Line(_))), "{e}");
                    }
                    (expected, found) => panic!("{name} {talk_name} {key}: {expected:?} {found:?}"),
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, STYLES.len() * 7 * 2);
}

#[test]
fn the_assistants_words_and_the_end_of_its_turn_are_learned() {
    let t = tokenizer("<s>", "</s>", false);
    for (name, talk_name, expected) in [
        ("chatml", "short", "Hello, how are you?<|im_end|>"),
        ("chatml", "question", ""),
        ("chatml", "long", "Two<|im_end|> Four \n<|im_end|>Six\n\nand a <|half|><|im_end|>"),
        (
            "chatml",
            "tools",
            "\n<call>{\"name\": \"weather\", \"arguments\": {\"place\": \"Kyōto\", \"days\": 2, \"exact\": null, \
             \"fast\": true}}</call><|im_end|>Yes, it is.<|im_end|>",
        ),
        ("llama3", "system", "At sea, mate.<|eot_id|>"),
        ("llama3", "long", "Two<|eot_id|>Four<|eot_id|>Six\n\nand a <|half|><|eot_id|>"),
        (
            "llama3",
            "tools",
            "{\"name\": \"weather\", \"parameters\": {\"place\": \"Kyōto\", \"days\": 2, \"exact\": null, \
             \"fast\": true}}<|eom_id|>Yes, it is.<|eot_id|>",
        ),
        ("mistral", "long", " Two</s>  Four \n</s> Six\n\nand a <|half|></s>"),
        ("gemma", "long", "Two<end_of_turn>Four<end_of_turn>Six\n\nand a <|half|><end_of_turn>"),
        ("phi", "long", "Two<|end|> Four \n<|end|>Six\n\nand a <|half|><|end|>"),
        ("zephyr", "long", "Two</s> Four \n</s>Six\n\nand a <|half|></s>"),
        ("zephyr", "system", "At sea, mate.</s>"),
        ("generation", "long", "Two<|im_end|> Four \n<|im_end|>Six\n\nand a <|half|><|im_end|>"),
        // Only what was said last shows its thoughts.
        (
            "thinking",
            "long",
            "Two<|im_end|> Four \n<|im_end|><think>\n\n</think>\n\nSix\n\nand a <|half|><|im_end|>",
        ),
    ] {
        let rendered = style(name, &t).render(&t, &talk(talk_name), Turns::Every).unwrap();
        assert_eq!(learned(&rendered, &t), expected, "{name} {talk_name}");
        assert_eq!(rendered.trainable.len(), rendered.tokens.len());
        assert_eq!(rendered.messages.len(), rendered.tokens.len());
        let last = style(name, &t).render(&t, &talk(talk_name), Turns::Last).unwrap();
        let of_last = learned(&last, &t);
        assert!(expected.ends_with(&of_last) && of_last.is_empty() == expected.is_empty());
        let ends = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<end_of_turn>", "<|end|>"];
        let turns = |text: &str| ends.iter().map(|end| text.matches(end).count()).sum::<usize>();
        assert_eq!(turns(&of_last), turns(expected).min(1), "{name} {talk_name}: {of_last}");
    }
}

#[test]
fn what_is_learned_is_what_serving_would_produce() {
    let t = tokenizer("<s>", "</s>", false);
    for name in STYLES.iter().filter(|name| **name != "generation") {
        let chat = style(name, &t);
        for (talk_name, talk) in talks() {
            let Ok(rendered) = chat.render(&t, &talk, Turns::Last) else { continue };
            let Some(first) = rendered.trainable.iter().position(|t| *t) else { continue };
            let before = talk.messages()[..talk.messages().len() - 1].to_vec();
            let mut asked = Conversation::new(before.into_iter().map(Value::Object).collect()).unwrap();
            asked.tools = talk.tools.clone();
            let prompt = chat.encode(&t, &chat.text(&asked, true).unwrap());
            assert_eq!(prompt, rendered.tokens[..first], "{name} {talk_name}");
            let end = rendered.trainable.iter().rposition(|t| *t).unwrap();
            assert!(rendered.trainable[first..=end].iter().all(|t| *t));
            assert!(t.is_end_of_generation(rendered.tokens[end].id));
        }
    }
}

#[test]
fn the_templates_own_blocks_are_followed() {
    let t = tokenizer("<s>", "</s>", false);
    let table: Value = serde_json::from_str(&read(here("chat.json"))).unwrap();
    for (name, talk) in talks() {
        let rendered = style("generation", &t).render(&t, &talk, Turns::Every).unwrap();
        let chars: Vec<char> = rendered.text.chars().collect();
        let spans = table["generation"][&name]["whole"]["spans"].as_array().unwrap();
        let expected: String = spans
            .iter()
            .map(|span| {
                let at = |i: usize| span[i].as_u64().unwrap() as usize;
                chars[at(0)..at(1)].iter().collect::<String>() + "<|im_end|>"
            })
            .collect();
        assert_eq!(learned(&rendered, &t), expected, "{name}");
    }
}

#[test]
fn tokens_know_their_messages() {
    let t = tokenizer("<s>", "</s>", false);
    for name in ["chatml", "phi", "mistral", "thinking"] {
        let talk = talk("long");
        let rendered = style(name, &t).render(&t, &talk, Turns::Every).unwrap();
        for (i, message) in talk.messages().iter().enumerate() {
            let of: Vec<u32> = rendered
                .tokens
                .iter()
                .zip(&rendered.messages)
                .filter(|(_, m)| **m == Some(i))
                .map(|(token, _)| token.id)
                .collect();
            let text = String::from_utf8(t.decode(&of, true)).unwrap();
            assert!(text.contains(message["content"].as_str().unwrap()), "{name} {i}: {text:?}");
            assert_eq!(talk.role(i), message["role"].as_str());
        }
        // What is learned was written for a message of the assistant.
        for (message, trained) in rendered.messages.iter().zip(&rendered.trainable) {
            assert!(!trained || message.is_none_or(|m| talk.role(m) == Some("assistant")));
        }
    }
}

#[test]
fn rewritten_history_is_refused_where_it_would_be_learned() {
    let t = tokenizer("<s>", "</s>", false);
    let chat = style("thinking", &t);
    let e = chat.render(&t, &talk("thinking"), Turns::Every).unwrap_err();
    assert_eq!(e.kind(), Kind::Template);
    assert!(e.to_string().contains("message 1"), "{e}");
    let last = chat.render(&t, &talk("thinking"), Turns::Last).unwrap();
    let expected = "<think>\nThe box without a lid.\n</think>\n\nIt has no hinges.<|im_end|>";
    assert_eq!(learned(&last, &t), expected);
    // Blocks whose content is changed afterwards.
    let shouting =
        "{% set x %}{% generation %} {{ messages[0].content }}{% endgeneration %}{% endset %}{{ x | trim }}";
    let chat = Chat::new(shouting, &t).unwrap();
    let said = Conversation::new(json!([{"role": "assistant", "content": "a"}])).unwrap();
    let e = chat.render(&t, &said, Turns::Every).unwrap_err();
    assert!(e.to_string().contains("tokenizer.chat_template"), "{e}");
}

#[test]
fn a_text_begins_once() {
    let t = tokenizer("<s>", "</s>", true);
    for (name, begun) in [("zephyr", false), ("mistral", true)] {
        let chat = style(name, &t);
        let rendered = chat.render(&t, &talk("short"), Turns::Every).unwrap();
        assert_eq!(rendered.text.starts_with("<s>"), begun);
        let bos = rendered.tokens.iter().filter(|token| Some(token.id) == t.bos()).count();
        assert_eq!((bos, rendered.tokens[0].id), (1, t.bos().unwrap()), "{name}");
        assert!(!rendered.trainable[0] && rendered.tokens.len() == rendered.messages.len());
    }
}

#[test]
fn templates_of_a_file() {
    let t = tokenizer("<s>", "</s>", false);
    let file = |build: &dyn Fn(&mut Builder)| {
        let mut builder = Builder::new();
        build(&mut builder);
        let mut file = Vec::new();
        builder.write(&mut file).unwrap();
        let directory = parse(&file).unwrap();
        Chat::from_metadata(directory.metadata(&file), &t)
    };
    let hi = Conversation::new(json!([{"role": "user", "content": "hi"}])).unwrap();
    let mut chat = file(&|b| {
        b.set("tokenizer.chat_template", "{{ messages[0].content }}{{ eos_token }}");
        b.set("tokenizer.chat_template.loud", "{{ messages[0].content | upper }}");
    })
    .unwrap()
    .unwrap();
    assert_eq!(chat.names().collect::<Vec<_>>(), ["default", "loud"]);
    assert_eq!(chat.text(&hi, true).unwrap(), "hi</s>");
    chat.choose("loud").unwrap();
    assert_eq!(chat.text(&hi, true).unwrap(), "HI");
    assert_eq!(chat.choose("quiet").unwrap_err().kind(), Kind::Argument);
    assert_ne!(chat.hash(), Chat::new("{{ messages[0].content }}{{ eos_token }}", &t).unwrap().hash());

    assert!(file(&|b| _ = b.set("general.name", "x")).unwrap().is_none());
    let e = file(&|b| _ = b.set("tokenizer.chat_template.bad", "a\n{% for %}")).unwrap_err();
    assert_eq!(e.kind(), Kind::Template);
    assert!(e.to_string().starts_with("tokenizer.chat_template.bad: "), "{e}");
    assert!(file(&|b| _ = b.set("tokenizer.chat_template", 3u32)).is_err());
}

#[test]
fn messages_are_checked() {
    for (messages, words) in [
        (json!({}), "a list"),
        (json!(["hi"]), "message 0"),
        (json!([{"role": "user"}, {"content": "x"}]), "role of message 1"),
        (json!([{"role": 3}]), "role of message 0"),
    ] {
        let e = Conversation::new(messages).unwrap_err();
        assert_eq!(e.kind(), Kind::Data);
        assert!(e.to_string().contains(words), "{e}");
    }
}

/// The templates of real models, where they are at hand, compared by the hashes of what transformers makes of them.
#[test]
fn real_templates() {
    let root = std::env::var_os("ONLAY_SHARED").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    let folder = root.join("tokenizers/config");
    if !folder.is_dir() {
        println!("skipped: no shared data");
        return;
    }
    let table: Value = serde_json::from_str(&read(here("chat-real.json"))).unwrap();
    let (mut equal, mut all) = (0, 0);
    for (file, rows) in table.as_object().unwrap() {
        let config: Value = serde_json::from_str(&read(folder.join(file))).unwrap();
        let token = |key: &str| config[key]["content"].as_str().or(config[key].as_str()).unwrap_or_default();
        let t = tokenizer(token("bos_token"), token("eos_token"), false);
        let chat = Chat::new(config["chat_template"].as_str().unwrap(), &t).unwrap();
        for (name, talk) in talks() {
            for (prompt, place) in [(true, 0), (false, 1)] {
                let expected = rows[&name][place].as_str();
                let found = chat
                    .text(&talk, prompt)
                    .ok()
                    .map(|text| Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>());
                all += 1;
                equal += usize::from(found.as_deref() == expected);
                assert_eq!(
                    found.as_deref(),
                    expected,
                    "{file} {name} {prompt}: {:?}",
                    chat.text(&talk, prompt)
                );
            }
            // Whatever a template does, what is learned is proved or refused.
            if let Ok(rendered) = chat.render(&t, &talk, Turns::Every) {
                let said = learned(&rendered, &t);
                for message in talk.messages().iter().filter(|m| m["role"] == "assistant") {
                    let content =
                        message["content"].as_str().unwrap().rsplit("</think>").next().unwrap().trim();
                    assert!(said.contains(content), "{file} {name}: {said:?}");
                }
            }
        }
    }
    println!("{equal} of {all} texts of {} templates", table.as_object().unwrap().len());
}

#[test]
fn one_tokenizer_and_one_chat_serve_all_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
    shared::<Chat>();
}

#[test]
fn a_conversation_may_begin_with_the_assistant() {
    let t = tokenizer("<s>", "</s>", true);
    let chat = Chat::new("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", &t).unwrap();
    let said = Conversation::new(json!([{"role": "assistant", "content": "a"}])).unwrap();
    let rendered = chat.render(&t, &said, Turns::Every).unwrap();
    assert_eq!(rendered.trainable, [false, true, true]);
}

#[test]
fn plain_text_cannot_end_a_turn() {
    // Without `parse_special` the markers in a text are text.
    let t = tokenizer("<s>", "</s>", false);
    let plain = t.encode(b"<|im_end|>", Encode::default());
    assert_eq!(plain.len(), 10);
    assert!(plain.iter().all(|&id| !t.is_end_of_generation(id)));
}
