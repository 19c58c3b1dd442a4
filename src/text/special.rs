//! Special tokens: which they are, and where they stand in a text.

use super::pieces::{Pieces, TokenKind};
use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;
use crate::error::{Error, Findings, Kind, Place, Result};

/// Tokens that end a turn, the likeliest first. Files often leave `eot_token_id` out.
const TURN_ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "[EOT]",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<|endoftext|>",
];

/// Tokens that end generation besides those.
const OTHER_ENDS: &[&str] = &[
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];

/// Tokens around the holes that fill-in-the-middle models fill.
const HOLES: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
];
/// Tokens that such models write at a file's end.
const FILE_ENDS: &[&str] = &[
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Tokens of a format whose text belongs to what is shown, although its files call them control tokens.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The ids of special tokens, checked, and the kinds that files get wrong put right.
#[derive(Debug, Default)]
pub(super) struct Special {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub unk: Option<u32>,
    pub sep: Option<u32>,
    pub pad: Option<u32>,
    pub mask: Option<u32>,
    /// Where generation stops, sorted.
    pub ends: Vec<u32>,
}

impl Special {
    /// Reads the ids that the file names, finds those that it does not, and corrects `pieces`.
    pub fn new(v: &Vocabulary, pieces: &mut Pieces) -> Result<Special> {
        check(v, pieces.len())?;
        let named = |names: &[&str], pieces: &Pieces| {
            names.iter().filter_map(|name| pieces.find(name.as_bytes())).collect::<Vec<u32>>()
        };
        let turns = named(TURN_ENDS, pieces);
        let mut special = Special {
            bos: v.bos,
            eos: v.eos,
            eot: v.eot.or(turns.first().copied()),
            unk: v.unk,
            sep: v.sep,
            pad: v.pad,
            mask: v.mask,
            ends: Vec::new(),
        };
        special.ends = [turns, named(OTHER_ENDS, pieces), named(FILE_ENDS, pieces)].concat();
        let controls = special.ends.iter().copied().chain(named(HOLES, pieces));
        let mut changes: Vec<_> = controls.map(|id| (id, TokenKind::Control)).collect();
        changes.extend(named(SHOWN, pieces).into_iter().map(|id| (id, TokenKind::UserDefined)));
        special.except(pieces, &mut changes);
        pieces.change_kinds(&changes);
        special.conventions(v, pieces);
        special.ends.extend([special.eos, special.eot, v.eom].into_iter().flatten());
        special.ends.extend(&v.file_ends);
        special.ends.sort_unstable();
        special.ends.dedup();
        Ok(special)
    }

    /// Two formats in which a token of a well-known name means something else.
    fn except(&mut self, pieces: &Pieces, changes: &mut Vec<(u32, TokenKind)>) {
        let has = |name: &str| pieces.find(name.as_bytes());
        let parts = (has("<|return|>").is_some() && has("<|call|>").is_some())
            || (has("<|calls|>").is_some() && has("<|flush|>").is_some());
        let mut shown = |name: &str, kind: TokenKind| {
            let id = has(name);
            self.ends.retain(|end| Some(*end) != id);
            changes.extend(id.map(|id| (id, kind)));
            if self.eot == id {
                self.eot = None;
            }
        };
        if parts {
            // A message may go on in another channel after its end.
            shown("<|end|>", TokenKind::UserDefined);
        }
        if has("<|tool_response>").is_some() {
            shown("</s>", TokenKind::Normal);
        }
    }

    /// The ids that go without saying in SentencePiece and BERT vocabularies.
    fn conventions(&mut self, v: &Vocabulary, pieces: &Pieces) {
        let control = |id: u32, name: &str| {
            let kind = pieces.kind(id);
            let fits = matches!(kind, TokenKind::Control | TokenKind::Unknown);
            (pieces.text(id) == name.as_bytes() && (fits || v.kinds.is_empty())).then_some(id)
        };
        let found = |name: &str| pieces.find(name.as_bytes());
        match v.model.as_str() {
            "llama" => {
                self.unk = self.unk.or(control(0, "<unk>"));
                self.bos = self.bos.or(control(1, "<s>"));
                self.eos = self.eos.or(control(2, "</s>"));
            }
            "t5" => {
                self.pad = self.pad.or(control(0, "<pad>"));
                self.eos = self.eos.or(control(1, "</s>"));
                self.unk = self.unk.or(control(2, "<unk>"));
            }
            "bert" => {
                self.bos = self.bos.or(found("[CLS]"));
                self.sep = self.sep.or(found("[SEP]"));
                self.unk = self.unk.or(found("[UNK]"));
                self.pad = self.pad.or(found("[PAD]"));
                self.mask = self.mask.or(found("[MASK]"));
            }
            _ => {}
        }
    }
}

/// Every id that the file names must be one.
fn check(v: &Vocabulary, n: usize) -> Result<()> {
    let mut wrong = Findings::default();
    let named = [
        ("bos_token_id", v.bos),
        ("eos_token_id", v.eos),
        ("eot_token_id", v.eot),
        ("eom_token_id", v.eom),
        ("unknown_token_id", v.unk),
        ("seperator_token_id", v.sep),
        ("padding_token_id", v.pad),
        ("mask_token_id", v.mask),
    ];
    let more =
        [("fim_…_token_id", &v.file_ends), ("left_strip", &v.left_strip), ("right_strip", &v.right_strip)];
    let more = more.iter().flat_map(|(key, ids)| ids.iter().map(move |id| (*key, Some(*id))));
    for (key, id) in named.into_iter().chain(more) {
        if let Some(id) = id.filter(|&id| id as usize >= n) {
            let place = Place::Key(format!("tokenizer.ggml.{key}"));
            wrong.push(Error::expected(Kind::Format, "token id", format_args!("below {n}"), id).at(place));
        }
    }
    wrong.refuse("special tokens are not in the vocabulary")
}

/// Finds special tokens in text: the leftmost, and of those the longest.
#[derive(Debug)]
pub(super) struct Finder {
    user: Prefixes,
    all: Prefixes,
    left_strip: Vec<u32>,
    right_strip: Vec<u32>,
}

/// A stretch of text, or the token that stands there.
pub(super) enum Part {
    Text(usize, usize),
    Token(u32, usize, usize),
}

impl Finder {
    /// The special tokens of a vocabulary.
    pub fn new(v: &Vocabulary, pieces: &Pieces) -> Finder {
        let is = |id: u32, more: &[TokenKind]| {
            pieces.kind(id) == TokenKind::UserDefined || more.contains(&pieces.kind(id))
        };
        Finder {
            user: Prefixes::new(pieces, |id| is(id, &[])),
            all: Prefixes::new(pieces, |id| is(id, &[TokenKind::Control, TokenKind::Unknown])),
            left_strip: sorted(&v.left_strip),
            right_strip: sorted(&v.right_strip),
        }
    }

    /// Cuts text into stretches and special tokens; control tokens count only if `control` is set.
    pub fn parts(&self, pieces: &Pieces, text: &[u8], control: bool, mut found: impl FnMut(Part)) {
        let tokens = if control { &self.all } else { &self.user };
        let (mut at, mut start) = (0, 0);
        while at < text.len() {
            let Some((length, id)) = tokens.longest(pieces, &text[at..]) else {
                at += 1;
                continue;
            };
            let mut end = at;
            if self.left_strip.binary_search(&id).is_ok() {
                end -= text[start..at].iter().rev().take_while(|b| is_space(**b)).count();
            }
            if start < end {
                found(Part::Text(start, end));
            }
            found(Part::Token(id, at, at + length));
            at += length;
            if self.right_strip.binary_search(&id).is_ok() {
                at += text[at..].iter().take_while(|b| is_space(**b)).count();
            }
            start = at;
        }
        if start < text.len() {
            found(Part::Text(start, text.len()));
        }
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn sorted(ids: &[u32]) -> Vec<u32> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}
