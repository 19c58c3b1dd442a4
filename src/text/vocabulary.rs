//! What a file says about its tokenizer, as it says it.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::Strings;
use crate::error::{Error, Kind, Place, Result};
use crate::format::gguf::Metadata;

/// A tokenizer's description, not yet checked: the metadata keys `tokenizer.ggml.*` one by one.
///
/// [`Tokenizer::new`](super::Tokenizer::new) checks it and builds what encodes and decodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// How tokens are found: `llama`, `gpt2`, `bert` or `t5`.
    pub model: String,
    /// How `gpt2` cuts text into words first.
    pub pre: Option<String>,
    /// The tokens' texts; the place is the id.
    pub tokens: Strings,
    /// How likely each token is, as a logarithm (`llama`, `t5`). Empty: all alike.
    pub scores: Vec<f32>,
    /// What each token is for: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub kinds: Vec<i32>,
    /// Pairs of tokens that join, best first, with a space between (`gpt2`).
    pub merges: Strings,
    /// The token that begins a text (for `bert`, `[CLS]`).
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// The token that ends a turn.
    pub eot: Option<u32>,
    /// The token that ends a message that a tool must answer.
    pub eom: Option<u32>,
    /// The token for text that cannot be spelled.
    pub unk: Option<u32>,
    /// The token between two texts.
    pub sep: Option<u32>,
    /// The token that fills up a row.
    pub pad: Option<u32>,
    /// The token that hides another one.
    pub mask: Option<u32>,
    /// Further tokens at which generation stops: those that fill-in-the-middle models write at a file's end.
    pub file_ends: Vec<u32>,
    /// Whether texts begin with `bos`.
    pub add_bos: Option<bool>,
    /// Whether texts end with `eos`.
    pub add_eos: Option<bool>,
    /// Whether texts begin with a space that is not written (`llama`, `t5`).
    pub add_space_prefix: Option<bool>,
    /// Whether runs of spaces count as one (`llama`, `t5`).
    pub remove_extra_whitespaces: Option<bool>,
    /// The compiled table of replacements (`t5`).
    pub charsmap: Vec<u8>,
    /// Whether upper and lower case are one (`bert`).
    pub lowercase: Option<bool>,
    /// Whether accents are dropped (`bert`).
    pub strip_accents: Option<bool>,
    /// Special tokens that swallow white space before them.
    pub left_strip: Vec<u32>,
    /// Special tokens that swallow white space after them.
    pub right_strip: Vec<u32>,
}

impl Vocabulary {
    /// Reads the keys `tokenizer.ggml.*`. Only their types are checked.
    pub fn from_metadata(metadata: Metadata<'_>) -> Result<Vocabulary> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        // Old converters write "no such token" as −1.
        let id = |name: &str| match metadata.i64(&key(name))? {
            None | Some(-1) => Ok(None),
            Some(v) if v == i64::from(u32::MAX) => Ok(None),
            Some(_) => metadata.u32(&key(name)),
        };
        let flag = |name: &str| metadata.bool(&key(name));
        let model = metadata.need_text(&key("model"))?.to_string();
        let architecture = metadata.text("general.architecture")?.unwrap_or_default();
        let mut vocabulary = Vocabulary {
            pre: metadata.text(&key("pre"))?.or(implied_pre(architecture)).map(str::to_string),
            tokens: metadata.need_texts(&key("tokens"))?.iter().collect(),
            scores: scores(metadata, &key("scores"))?,
            kinds: metadata.i32s(&key("token_type"))?.unwrap_or_default(),
            merges: metadata.texts(&key("merges"))?.map(|m| m.iter().collect()).unwrap_or_default(),
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            unk: id("unknown_token_id")?,
            // The key is misspelt in the format itself.
            sep: id("seperator_token_id")?,
            pad: id("padding_token_id")?,
            mask: id("mask_token_id")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
            charsmap: bytes(metadata, &key("precompiled_charsmap"))?,
            lowercase: flag("normalizer.lowercase")?,
            strip_accents: flag("normalizer.strip_accents")?,
            model,
            ..Vocabulary::default()
        };
        for name in ["fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"] {
            vocabulary.file_ends.extend(id(name)?);
        }
        if vocabulary.model == "bert" && vocabulary.bos.is_none() {
            vocabulary.bos = id("cls_token_id")?;
        }
        vocabulary.mark_stripping(metadata.text("general.name")?.unwrap_or_default());
        Ok(vocabulary)
    }

    /// Phi-3's special tokens swallow the white space that follows, which no key says.
    fn mark_stripping(&mut self, name: &str) {
        let name = name.to_lowercase();
        if !name.contains("phi-3") && !name.contains("phi3") {
            return;
        }
        for (id, text) in self.tokens.iter().enumerate() {
            let special = matches!(self.kinds.get(id), Some(2..=4));
            if special && ![&b"<unk>"[..], b"<s>", b"<|endoftext|>"].contains(&text) {
                self.right_strip.push(id as u32);
            }
        }
    }

    /// The kinds, or where a file has none, what ids and names imply.
    pub(super) fn kinds_or_implied(&self) -> Cow<'_, [i32]> {
        if !self.kinds.is_empty() {
            return Cow::Borrowed(&self.kinds);
        }
        let control = [self.bos, self.eos, self.eot, self.eom, self.sep, self.pad, self.mask];
        let byte = |text: &[u8]| {
            self.model != "gpt2" && text.len() == 6 && text.starts_with(b"<0x") && text.ends_with(b">")
        };
        let kind = |(id, text): (usize, &[u8])| match text {
            _ if self.unk == Some(id as u32) => 2,
            _ if control.contains(&Some(id as u32)) => 3,
            b"<unk>" if self.model != "gpt2" => 2,
            b"<s>" | b"</s>" | b"[CLS]" | b"[SEP]" | b"[UNK]" | b"[PAD]" | b"[MASK]"
                if self.model != "gpt2" =>
            {
                3
            }
            text if byte(text) => 6,
            _ => 1,
        };
        self.tokens.iter().enumerate().map(kind).collect()
    }

    /// A digest of everything that decides which ids a text becomes.
    pub(super) fn hash(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        let mut field = |bytes: &[u8]| {
            sha.update((bytes.len() as u64).to_le_bytes());
            sha.update(bytes);
        };
        field(self.model.as_bytes());
        field(self.pre.as_deref().unwrap_or_default().as_bytes());
        for texts in [&self.tokens, &self.merges] {
            field(&(texts.len() as u64).to_le_bytes());
            texts.iter().for_each(&mut field);
        }
        field(&self.scores.iter().flat_map(|s| s.to_bits().to_le_bytes()).collect::<Vec<_>>());
        field(&self.kinds.iter().flat_map(|k| k.to_le_bytes()).collect::<Vec<_>>());
        field(&self.charsmap);
        for list in [&self.file_ends, &self.left_strip, &self.right_strip] {
            field(&list.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
        }
        for id in [self.bos, self.eos, self.eot, self.eom, self.unk, self.sep, self.pad, self.mask] {
            field(&id.map_or(vec![], |id| id.to_le_bytes().to_vec()));
        }
        for flag in [
            self.add_bos,
            self.add_eos,
            self.add_space_prefix,
            self.remove_extra_whitespaces,
            self.lowercase,
            self.strip_accents,
        ] {
            field(&flag.map_or(vec![], |flag| vec![flag as u8]));
        }
        sha.finalize().into()
    }
}

/// The pre-tokenizer of architectures that only ever had one, for files older than the key `tokenizer.ggml.pre`.
fn implied_pre(architecture: &str) -> Option<&'static str> {
    Some(match architecture {
        "gpt2" | "gptneox" => "gpt-2",
        "phi2" => "phi-2",
        "falcon" => "falcon",
        "mpt" => "mpt",
        "starcoder" | "starcoder2" => "starcoder",
        "refact" => "refact",
        "codeshell" => "codeshell",
        "bloom" => "bloom",
        "command-r" => "command-r",
        _ => return None,
    })
}

/// Scores are numbers, in some files whole ones.
fn scores(metadata: Metadata<'_>, key: &str) -> Result<Vec<f32>> {
    match (metadata.f32s(key), metadata.i32s(key)) {
        (Ok(scores), _) => Ok(scores.unwrap_or_default()),
        (_, Ok(Some(scores))) => Ok(scores.into_iter().map(|s| s as f32).collect()),
        (Err(e), _) => Err(e),
    }
}

/// Bytes, which some files keep as signed numbers.
fn bytes(metadata: Metadata<'_>, key: &str) -> Result<Vec<u8>> {
    let numbers = metadata.i32s(key)?.unwrap_or_default();
    let byte = |n: i32| match n {
        -128..=255 => Ok(n as u8),
        _ => Err(Error::expected(Kind::Format, "element", "a byte", n).at(Place::Key(key.into()))),
    };
    numbers.into_iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::{Builder, Encoded, parse};

    fn read(build: impl FnOnce(&mut Builder)) -> Result<Vocabulary> {
        let mut builder = Builder::new();
        build(&mut builder);
        let mut file = Vec::new();
        builder.write(&mut file).unwrap();
        Vocabulary::from_metadata(parse(&file).unwrap().metadata(&file))
    }

    #[test]
    fn reads_the_keys_and_refuses_other_types() {
        let v = read(|b| {
            b.set("general.architecture", "gptneox").set("general.name", "My Phi-3 mini");
            b.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.tokens", Encoded::array(&["a", "<x>"]));
            b.set("tokenizer.ggml.scores", Encoded::array(&[0i32, -7]));
            b.set("tokenizer.ggml.token_type", Encoded::array(&[1i32, 3]));
            b.set("tokenizer.ggml.precompiled_charsmap", Encoded::array(&[-1i8, 2]));
            b.set("tokenizer.ggml.bos_token_id", 1u32).set("tokenizer.ggml.add_bos_token", true);
        })
        .unwrap();
        assert_eq!((v.model.as_str(), v.pre.as_deref()), ("gpt2", Some("gpt-2")));
        assert_eq!((v.scores.as_slice(), v.kinds.as_slice()), (&[0.0, -7.0][..], &[1, 3][..]));
        assert_eq!(v.charsmap, [255, 2]);
        assert_eq!((v.bos, v.add_bos, v.eos), (Some(1), Some(true), None));
        assert_eq!(v.right_strip, [1]);
        assert!(read(|_| {}).unwrap_err().to_string().contains("tokenizer.ggml.model"));
        let e = read(|b| {
            b.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.tokens", 3u32);
        });
        assert!(e.unwrap_err().to_string().contains("tokenizer.ggml.tokens"));
    }

    #[test]
    fn kinds_may_be_implied() {
        let tokens = Strings::from_iter(["<unk>", "<s>", "a", "<0x0A>", "<x>"]);
        let v = Vocabulary { model: "llama".into(), tokens, eos: Some(4), ..Default::default() };
        assert_eq!(*v.kinds_or_implied(), [2, 3, 1, 6, 3]);
        assert_eq!(*Vocabulary { model: "gpt2".into(), ..v }.kinds_or_implied(), [1, 1, 1, 1, 3]);
    }

    #[test]
    fn the_hash_sees_every_field() {
        let base = Vocabulary { tokens: Strings::from_iter(["ab", "c"]), ..Default::default() };
        let moved = Vocabulary { tokens: Strings::from_iter(["a", "bc"]), ..base.clone() };
        let flagged = Vocabulary { add_bos: Some(false), ..base.clone() };
        let shifted = Vocabulary { add_eos: Some(false), ..base.clone() };
        let hashes = [&base, &moved, &flagged, &shifted].map(Vocabulary::hash);
        for (i, a) in hashes.iter().enumerate() {
            assert!(!hashes[..i].contains(a));
        }
        assert_eq!(base.hash(), base.clone().hash());
    }
}
