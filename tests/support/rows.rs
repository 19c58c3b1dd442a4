//! Rows, a tokenizer whose tokens are bytes, and templates to write messages with.
#![allow(dead_code)]

use onlay::error::{Error, Place, Result};
use onlay::text::{Chat, Strings, Tokenizer, Turns, Vocabulary};
use onlay::train::{DAY, Encoder, Flow, Format, Long, Rows, Set};
use std::path::Path;

pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Rows> {
    Rows::parse(Path::new("data.jsonl"), bytes.as_ref(), None)
}

pub fn as_format(bytes: &str, format: Format) -> Result<Rows> {
    Rows::parse(Path::new("data.jsonl"), bytes.as_bytes(), Some(format))
}

/// Every byte is a token; then control tokens.
pub fn bytes_tokenizer(add_bos: bool) -> Tokenizer {
    let shifted = (0x100..).map(|c| char::from_u32(c).unwrap());
    let plain = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut tokens: Vec<String> = plain.chain(shifted.take(68)).map(String::from).collect();
    let controls = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"];
    tokens.extend(controls.iter().chain(&["<|eot_id|>", "[INST]", "[/INST]"]).map(|t| t.to_string()));
    Tokenizer::new(&Vocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        kinds: (0..tokens.len()).map(|i| if i < 256 { 1 } else { 3 }).collect(),
        bos: Some(256),
        eos: Some(257),
        add_bos: Some(add_bos),
        tokens: Strings::from_iter(&tokens),
        ..Vocabulary::default()
    })
    .unwrap()
}

pub fn template(name: &str, tokenizer: &Tokenizer) -> Chat {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text/templates").join(name);
    let mut chat = Chat::new(&std::fs::read_to_string(path).unwrap(), tokenizer).unwrap();
    chat.set_now(Some(DAY));
    chat
}

pub fn encoder<'a>(tokenizer: &'a Tokenizer, chat: Option<&'a Chat>) -> Encoder<'a> {
    Encoder {
        tokenizer: Some(tokenizer),
        chat,
        vocabulary: tokenizer.len(),
        context: 1000,
        long: Long::Refuse,
        turns: Turns::Every,
        parse_special: false,
    }
}

pub fn encode(encoder: &Encoder<'_>, rows: &Rows) -> Result<Set> {
    encoder.encode(rows, &mut |_, _| Flow::Go)
}

/// The text of an example, and that of what is learned of it.
pub fn texts(set: &Set, i: usize, tokenizer: &Tokenizer) -> (String, String) {
    let e = &set.examples[i];
    let learned: Vec<u32> = e.tokens.iter().zip(&e.trained).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
    let text = |ids: &[u32]| String::from_utf8(tokenizer.decode(ids, true)).unwrap();
    (text(&e.tokens), text(&learned))
}

/// Every line an error names, with that error.
pub fn findings(e: &Error) -> Vec<(u64, String)> {
    let of = |e: &Error| {
        let line = e.places().iter().find_map(|p| if let Place::Line(l) = p { Some(*l) } else { None });
        (line.unwrap_or(0), e.to_string())
    };
    if e.findings().is_empty() { vec![of(e)] } else { e.findings().iter().map(of).collect() }
}
