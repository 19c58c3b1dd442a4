//! Vocabularies in the forms they come in, as what GGUF metadata would say.

use std::io::Read;
use std::path::{Path, PathBuf};

use onlay::text::{Strings, Tokenizer, Vocabulary};
use serde_json::Value;

pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name)
}

pub fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The folder of real vocabularies, or a word that there is none.
pub fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("ONLAY_SHARED").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    if !root.join("vocab").is_dir() {
        println!("skipped: no shared data");
        return None;
    }
    Some(root)
}

/// A file's bytes, unpacked if its name says so.
pub fn bytes(path: PathBuf) -> Vec<u8> {
    let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if path.extension().is_none_or(|e| e != "gz") {
        return file;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

pub fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut out = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group.iter().fold(0u32, |bits, &c| bits << 6 | digit(c) as u32) << (6 * (4 - group.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}

pub fn strings(value: &Value) -> Strings {
    value.as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect()
}

/// A vocabulary in the form that `make_tokenizers.py` writes.
pub fn own(v: &Value) -> Vocabulary {
    let id = |key: &str| v[key].as_u64().map(|id| id as u32);
    Vocabulary {
        model: v["model"].as_str().unwrap().into(),
        pre: v["pre"].as_str().map(str::to_string),
        tokens: strings(&v["tokens"]),
        scores: v["scores"]
            .as_array()
            .map_or(vec![], |s| s.iter().map(|s| s.as_f64().unwrap() as f32).collect()),
        kinds: v["kinds"].as_array().unwrap().iter().map(|k| k.as_i64().unwrap() as i32).collect(),
        merges: v["merges"].as_array().map_or(Strings::default(), |_| strings(&v["merges"])),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unk"),
        add_space_prefix: v["add_space_prefix"].as_bool(),
        remove_extra_whitespaces: v["remove_extra_whitespaces"].as_bool(),
        charsmap: v["charsmap"].as_str().map_or(vec![], base64),
        lowercase: v["lowercase"].as_bool(),
        ..Vocabulary::default()
    }
}

pub fn gguf(file: &[u8]) -> Tokenizer {
    let directory = onlay::format::gguf::parse(file).unwrap();
    Tokenizer::from_metadata(directory.metadata(file)).unwrap()
}

/// `vocab.json` and `merges.txt`, with control tokens after the last id.
pub fn byte_level(vocab: &[u8], merges: &[u8], pre: &str, control: &[&str]) -> Vocabulary {
    let table = json(vocab);
    let table = table.as_object().unwrap();
    let mut tokens =
        vec![String::new(); table.values().map(|i| i.as_u64().unwrap() as usize).max().unwrap() + 1];
    for (text, id) in table {
        tokens[id.as_u64().unwrap() as usize] = text.clone();
    }
    let mut kinds = vec![1; tokens.len()];
    for name in control {
        match tokens.iter().position(|t| t == name) {
            Some(id) => kinds[id] = 3,
            None => {
                tokens.push(name.to_string());
                kinds.push(3);
            }
        }
    }
    let merges = std::str::from_utf8(merges).unwrap().lines();
    let find = |name: Option<&&str>| tokens.iter().position(|t| Some(&t.as_str()) == name).map(|i| i as u32);
    Vocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        merges: merges.filter(|m| !m.starts_with("#version") && !m.is_empty()).collect(),
        kinds,
        bos: find(control.first()),
        eos: find(control.last()),
        tokens: tokens.iter().collect(),
        ..Vocabulary::default()
    }
}

/// BERT's `vocab.txt`, spelled as GGUF spells it.
pub fn wordpiece(text: &[u8], lowercase: bool) -> Vocabulary {
    let names: Vec<&str> = std::str::from_utf8(text).unwrap().lines().collect();
    let control = |name: &str| ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].contains(&name);
    let spelled = names.iter().map(|name| match name.strip_prefix("##") {
        Some(rest) => rest.to_string(),
        None if control(name) => name.to_string(),
        None => format!("▁{name}"),
    });
    Vocabulary {
        model: "bert".into(),
        tokens: spelled.collect(),
        kinds: names.iter().map(|name| if control(name) { 3 } else { 1 }).collect(),
        lowercase: Some(lowercase),
        ..Vocabulary::default()
    }
}

/// A Unigram model in the fast-tokenizer JSON form.
pub fn unigram_json(file: &[u8], collapse: bool) -> Vocabulary {
    let file = json(file);
    let pieces = file["model"]["vocab"].as_array().unwrap();
    let unk = file["model"]["unk_id"].as_u64().unwrap() as u32;
    let mut kinds = vec![1; pieces.len()];
    for token in file["added_tokens"].as_array().unwrap() {
        kinds[token["id"].as_u64().unwrap() as usize] = 3;
    }
    kinds[unk as usize] = 2;
    let normalisers = match &file["normalizer"] {
        Value::Null => vec![],
        n => n["normalizers"].as_array().cloned().unwrap_or_else(|| vec![n.clone()]),
    };
    let table = normalisers.iter().find_map(|n| n["precompiled_charsmap"].as_str());
    let byte = |p: &Value| p[0].as_str().unwrap().starts_with("<0x");
    for (id, piece) in pieces.iter().enumerate() {
        if byte(piece) {
            kinds[id] = 6;
        }
    }
    Vocabulary {
        model: "t5".into(),
        tokens: pieces.iter().map(|p| p[0].as_str().unwrap()).collect(),
        scores: pieces.iter().map(|p| p[1].as_f64().unwrap() as f32).collect(),
        kinds,
        unk: Some(unk),
        charsmap: table.map_or(vec![], base64),
        add_space_prefix: Some(true),
        remove_extra_whitespaces: Some(collapse),
        ..Vocabulary::default()
    }
}

/// The fields of a protocol buffer message: number, integer, bytes.
pub fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[0];
            *message = &message[1..];
            value |= ((byte & 127) as u64) << shift;
            shift += 7;
            if byte < 128 {
                return value;
            }
        }
    }
    let mut all = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => {
                all.push((tag >> 3, varint(&mut message), &[][..]));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut message) as usize,
        };
        all.push((tag >> 3, 0, &message[..length]));
        message = &message[length..];
    }
    all
}

/// A SentencePiece `.model`.
pub fn sentencepiece(file: &[u8]) -> Vocabulary {
    let mut v = Vocabulary { model: "t5".into(), ..Vocabulary::default() };
    for (number, _, body) in fields(file) {
        match number {
            1 => {
                let piece = fields(body);
                let field = |n: u64| piece.iter().find(|f| f.0 == n);
                v.tokens.push(field(1).unwrap().2);
                v.scores.push(field(2).map_or(0.0, |f| f32::from_le_bytes(f.2.try_into().unwrap())));
                v.kinds.push(field(3).map_or(1, |f| f.1 as i32));
            }
            2 if fields(body).iter().any(|f| f.0 == 3 && f.1 == 2) => v.model = "llama".into(),
            3 => {
                let spec = fields(body);
                let flag = |n: u64| Some(spec.iter().find(|f| f.0 == n).is_none_or(|f| f.1 != 0));
                v.charsmap = spec.iter().find(|f| f.0 == 2).map_or(vec![], |f| f.2.to_vec());
                (v.add_space_prefix, v.remove_extra_whitespaces) = (flag(3), flag(4));
            }
            _ => {}
        }
    }
    v.unk = v.kinds.iter().position(|k| *k == 2).map(|id| id as u32);
    v
}
