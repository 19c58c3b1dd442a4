//! The tokens of a vocabulary, checked: text, kind, what each stands for, and the way back from text to id.

use std::hash::{BuildHasher, RandomState};

use super::Strings;
use super::merge::NONE;
use crate::error::{Error, Findings, Kind, Place, Result};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for text that the vocabulary cannot spell.
    Unknown,
    /// Steers the model (beginning of text, end of turn) and has no text of its own.
    Control,
    /// A piece of text that is recognised before anything else.
    UserDefined,
    /// A place that training left empty.
    Unused,
    /// One byte, written `<0xAB>`.
    Byte,
}

/// How the texts in a vocabulary spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `▁` is a space and everything else itself (SentencePiece, WordPiece as GGUF writes it).
    Metaspace,
    /// Every byte is a printable character (GPT-2).
    ByteLevel,
}

/// The longest text a token may have. The longest known is 512 spaces in GPT-2's spelling, 1024 bytes; without a
/// bound a file could make every look-up arbitrarily slow.
pub(super) const LONGEST: usize = 2048;

/// `▁`, which stands for a space.
pub(super) const METASPACE: &str = "\u{2581}";

/// See the module.
#[derive(Debug)]
pub(super) struct Pieces {
    texts: Strings,
    kinds: Vec<TokenKind>,
    spelling: Spelling,
    /// What each token stands for, in bytes.
    meanings: Strings,
    slots: Vec<u32>,
    state: RandomState,
    /// The token of each byte, for text that has no other token.
    bytes: Box<[u32; 256]>,
    longest: usize,
}

impl Pieces {
    /// Checks the tokens. `kinds` may be empty, which makes every token a normal one.
    pub fn new(texts: Strings, kinds: &[i32], spelling: Spelling) -> Result<Pieces> {
        let n = texts.len();
        let tokens = || Place::Key("tokenizer.ggml.tokens".into());
        let types = || Place::Key("tokenizer.ggml.token_type".into());
        if n == 0 || n > i32::MAX as usize {
            return Err(Error::expected(Kind::Format, "number of tokens", "1 to 2147483647", n).at(tokens()));
        }
        if !kinds.is_empty() && kinds.len() != n {
            let what = "number of token types";
            return Err(
                Error::expected(Kind::Format, what, format_args!("{n}, as tokens"), kinds.len()).at(types())
            );
        }
        let mut wrong = Findings::default();
        let mut pieces = Pieces {
            longest: texts.iter().map(<[u8]>::len).max().unwrap_or(0),
            texts,
            kinds: Vec::with_capacity(n),
            spelling,
            meanings: Strings::default(),
            slots: vec![NONE; (2 * n).next_power_of_two()],
            state: RandomState::new(),
            bytes: Box::new([NONE; 256]),
        };
        if pieces.longest > LONGEST {
            let found = format_args!("one of {}", pieces.longest);
            return Err(Error::expected(
                Kind::Format,
                "length of tokens",
                format_args!("at most {LONGEST}"),
                found,
            )
            .at(tokens()));
        }
        for id in 0..n as u32 {
            let kind = match kinds.get(id as usize).copied().unwrap_or(1) {
                0 | 5 => TokenKind::Unused,
                1 => TokenKind::Normal,
                2 => TokenKind::Unknown,
                3 => TokenKind::Control,
                4 => TokenKind::UserDefined,
                6 => TokenKind::Byte,
                other => {
                    let what = format!("type of token {id}");
                    wrong.push(Error::expected(Kind::Format, &what, "0 to 6", other).at(types()));
                    TokenKind::Normal
                }
            };
            pieces.kinds.push(kind);
            if let Some(first) = pieces.enter(id) {
                let what = format!("token {id} has the same text as token {first}");
                wrong.push(Error::new(Kind::Format, what).at(tokens()));
            }
            if kind == TokenKind::Byte {
                match byte_of(pieces.text(id)) {
                    Some(byte) => pieces.bytes[byte as usize] = id,
                    None => {
                        let what = format!("text of token {id}, a byte");
                        let found = String::from_utf8_lossy(pieces.text(id)).into_owned();
                        wrong.push(
                            Error::expected(Kind::Format, &what, "<0x00> to <0xFF>", found).at(tokens()),
                        );
                    }
                }
            }
        }
        wrong.refuse("the vocabulary cannot be used")?;
        if spelling == Spelling::ByteLevel {
            for byte in 0..=255 {
                let mut utf8 = [0; 4];
                let text = byte_level::char_of(byte).encode_utf8(&mut utf8);
                pieces.bytes[byte as usize] = pieces.find(text.as_bytes()).unwrap_or(NONE);
            }
        }
        pieces.spell();
        Ok(pieces)
    }

    /// Enters a token in the table; gives the one that already has its text. Empty texts stay out.
    fn enter(&mut self, id: u32) -> Option<u32> {
        let text = self.texts.get(id as usize).unwrap_or_default();
        if text.is_empty() {
            return None;
        }
        let mut slot = self.slot(text);
        while self.slots[slot] != NONE {
            if self.text(self.slots[slot]) == text {
                return Some(self.slots[slot]);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = id;
        None
    }

    fn slot(&self, text: &[u8]) -> usize {
        // The hash is keyed at random, so a file cannot be made of colliding texts.
        self.state.hash_one(text) as usize & (self.slots.len() - 1)
    }

    /// Works out what every token stands for. Tokens with a fixed text keep it.
    fn spell(&mut self) {
        let mut meanings = Strings::default();
        let mut buffer = Vec::new();
        for id in self.ids() {
            let text = self.text(id);
            buffer.clear();
            match (self.kind(id), self.spelling) {
                (TokenKind::Byte, _) => buffer.extend(byte_of(text)),
                (TokenKind::Normal | TokenKind::Unused, Spelling::ByteLevel) => {
                    byte_level::decode(text, &mut buffer);
                }
                (TokenKind::Normal | TokenKind::Unused, Spelling::Metaspace) => {
                    unescape(text, &mut buffer);
                }
                _ => buffer.extend_from_slice(text),
            }
            meanings.push(&buffer);
        }
        self.meanings = meanings;
    }

    /// Changes what some tokens are for, before anything else is built on them.
    pub fn change_kinds(&mut self, changes: &[(u32, TokenKind)]) {
        for &(id, kind) in changes {
            self.kinds[id as usize] = kind;
        }
        if !changes.is_empty() {
            self.spell();
        }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// All ids.
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.len() as u32
    }

    /// The text of a token as the file has it; empty if there is no such token.
    pub fn text(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize).unwrap_or_default()
    }

    /// What a token stands for; empty if there is no such token.
    pub fn meaning(&self, id: u32) -> &[u8] {
        self.meanings.get(id as usize).unwrap_or_default()
    }

    /// What a token is for. An id that is not in the vocabulary is an unused token.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// The token with this text.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        if text.is_empty() || text.len() > self.longest {
            return None;
        }
        let mut slot = self.slot(text);
        loop {
            match self.slots[slot] {
                NONE => return None,
                id if self.text(id) == text => return Some(id),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
    }

    /// The token of a byte, or [`NONE`].
    pub fn byte(&self, byte: u8) -> u32 {
        self.bytes[byte as usize]
    }

    /// Whether every byte has a token, so that any text can be spelled.
    pub fn spells_all_bytes(&self) -> bool {
        self.bytes.iter().all(|&id| id != NONE)
    }

    /// The length of the longest text.
    pub fn longest(&self) -> usize {
        self.longest
    }
}

/// The byte that `<0xAB>` names.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    match digits {
        [a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        }
        _ => None,
    }
}

/// Turns every `▁` into a space.
fn unescape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(METASPACE.as_bytes()) {
            out.push(b' ');
            rest = after;
        } else {
            out.push(*first);
            rest = after;
        }
    }
}

/// GPT-2's spelling: bytes that print as themselves in Latin-1 do so, the other 68 are the characters from U+0100.
pub(super) mod byte_level {
    /// The character of a byte.
    pub fn char_of(byte: u8) -> char {
        let code = match byte {
            0..=0x20 => 0x100 + byte as u32,
            0x7f..=0xa0 => 0x121 + (byte - 0x7f) as u32,
            0xad => 0x143,
            _ => byte as u32,
        };
        char::from_u32(code).unwrap_or_default()
    }

    /// The byte of a character.
    pub fn byte_of(c: char) -> Option<u8> {
        match c as u32 {
            code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
            code @ 0x100..=0x120 => Some((code - 0x100) as u8),
            code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
            0x143 => Some(0xad),
            _ => None,
        }
    }

    /// The bytes that `text` spells. Text with a character that spells none stands for itself.
    pub fn decode(text: &[u8], out: &mut Vec<u8>) {
        let bytes: Option<Vec<u8>> =
            std::str::from_utf8(text).ok().and_then(|text| text.chars().map(byte_of).collect());
        out.extend_from_slice(bytes.as_deref().unwrap_or(text));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Normal tokens with these texts.
    pub fn pieces(texts: &[&str]) -> Pieces {
        Pieces::new(Strings::from_iter(texts), &[], Spelling::Metaspace).unwrap()
    }

    #[test]
    fn finds_what_is_there_and_nothing_else() {
        let p = pieces(&["a", "", "▁the", ""]);
        assert_eq!(p.find("▁the".as_bytes()), Some(2));
        assert_eq!((p.find(b""), p.find(b"b"), p.find(b"much longer than any token")), (None, None, None));
        assert_eq!(p.meaning(2), b" the");
        assert_eq!((p.text(9), p.kind(9)), (&b""[..], TokenKind::Unused));
    }

    #[test]
    fn byte_level_spelling_is_a_bijection() {
        for byte in 0..=255 {
            assert_eq!(byte_level::byte_of(byte_level::char_of(byte)), Some(byte));
        }
        assert_eq!(byte_level::char_of(b' '), 'Ġ');
        let mut out = vec![];
        byte_level::decode("ĠÃ¤".as_bytes(), &mut out);
        assert_eq!(out, " ä".as_bytes());
        byte_level::decode("一".as_bytes(), &mut out);
        assert_eq!(out, " ä一".as_bytes());
    }

    #[test]
    fn refuses_every_lie_at_once() {
        let texts = Strings::from_iter(["a", "a", "<0xZZ>", "<0x0A>"]);
        let e = Pieces::new(texts.clone(), &[1, 9, 6, 6], Spelling::Metaspace).unwrap_err();
        assert_eq!((e.kind(), e.findings().len()), (Kind::Format, 3));
        assert!(Pieces::new(texts, &[1], Spelling::Metaspace).is_err());
        assert!(Pieces::new(Strings::default(), &[], Spelling::Metaspace).is_err());
        let long = Strings::from_iter(["x".repeat(LONGEST + 1)]);
        assert!(Pieces::new(long, &[], Spelling::Metaspace).is_err());
    }
}
