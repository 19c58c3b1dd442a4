//! From text to token ids and back.

use super::bpe::Bpe;
use super::merge::NONE;
use super::normaliser::{Charsmap, Normaliser};
use super::pieces::{Pieces, Spelling, TokenKind};
use super::special::{Finder, Part, Special};
use super::split::Rule;
use super::spm::Spm;
use super::stream::Stream;
use super::unigram::Unigram;
use super::vocabulary::Vocabulary;
use super::wordpiece::WordPiece;
use crate::error::{Error, Kind, Place, Result};
use crate::format::gguf::Metadata;

/// What [`Tokenizer::encode`] does besides spelling the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encode {
    /// Adds the tokens that begin and end a text, by the model's own rules.
    pub special: bool,
    /// Control tokens written out in the text become those tokens. User-defined tokens always do.
    pub parse_special: bool,
}

/// A token and the bytes of the text that it stands for.
///
/// The spans of a text's tokens are in order and do not overlap. A token that stands for nothing in the text (one
/// that begins or ends it, a space that is not written) has an empty span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// The token.
    pub id: u32,
    /// Where its text begins, in bytes.
    pub start: usize,
    /// Where its text ends.
    pub end: usize,
}

/// A checked vocabulary with everything needed to encode and decode. Immutable; share it between threads.
#[derive(Debug)]
pub struct Tokenizer {
    pieces: Pieces,
    model: Model,
    special: Special,
    finder: Finder,
    add_bos: bool,
    add_eos: bool,
    hash: [u8; 32],
}

#[derive(Debug)]
enum Model {
    Spm(Spm, Normaliser),
    Bpe(Bpe),
    WordPiece(WordPiece),
    Unigram(Unigram, Normaliser),
}

/// Where tokens are written, with the way from normalised text back to the text that was given.
#[derive(Default)]
pub(super) struct Out {
    pub tokens: Vec<TokenSpan>,
    /// The token for what cannot be spelled; such text is left out if there is none.
    pub unknown: Option<u32>,
    /// Where the stretch of text at hand begins.
    base: usize,
    /// For every byte at hand its place in the stretch; empty if the stretch was taken as it is.
    source: Vec<usize>,
    /// How many tokens there were when the last unknown one was written.
    last_unknown: usize,
}

impl Out {
    fn place(&self, at: usize) -> usize {
        self.base + self.source.get(at).copied().unwrap_or(at)
    }

    /// Writes a token that stands for `start..end` of the text at hand.
    pub fn push(&mut self, id: u32, start: usize, end: usize) {
        self.tokens.push(TokenSpan { id, start: self.place(start), end: self.place(end) });
    }

    /// Writes text that no token spells: its bytes if they have tokens, otherwise one unknown token for all such
    /// text in a row.
    pub fn unknown(&mut self, pieces: &Pieces, text: &[u8], start: usize, end: usize) {
        for at in start..end {
            match pieces.byte(text[at]) {
                NONE if self.last_unknown == self.tokens.len() && self.last_unknown > 0 => {
                    let end = self.place(at + 1);
                    if let Some(last) = self.tokens.last_mut() {
                        last.end = end;
                    }
                }
                NONE => {
                    if let Some(id) = self.unknown {
                        self.push(id, at, at + 1);
                        self.last_unknown = self.tokens.len();
                    }
                }
                id => self.push(id, at, at + 1),
            }
        }
    }

    /// Writes one unknown token for a whole word.
    pub fn unknown_word(&mut self, start: usize, end: usize) {
        if let Some(id) = self.unknown {
            self.push(id, start, end);
        }
    }
}

impl Tokenizer {
    /// The tokenizer that a file's metadata describes.
    ///
    /// # Errors
    /// [`Kind::Format`] where the metadata contradicts itself, [`Kind::Unsupported`] for a model or a
    /// pre-tokenizer that is not known here: it is never replaced by another.
    pub fn from_metadata(metadata: Metadata<'_>) -> Result<Tokenizer> {
        Tokenizer::new(&Vocabulary::from_metadata(metadata)?)
    }

    /// Checks a vocabulary and builds what encodes and decodes with it. Errors as
    /// [`from_metadata`](Self::from_metadata).
    pub fn new(v: &Vocabulary) -> Result<Tokenizer> {
        let spelling = if v.model == "gpt2" { Spelling::ByteLevel } else { Spelling::Metaspace };
        let known = ["llama", "gpt2", "bert", "t5"];
        if !known.contains(&v.model.as_str()) {
            let place = Place::Key("tokenizer.ggml.model".into());
            return Err(unknown(&v.model, known.into_iter()).at(place));
        }
        let mut pieces = Pieces::new(v.tokens.clone(), &v.kinds_or_implied(), spelling)?;
        let special = Special::new(v, &mut pieces)?;
        let mut add_bos = v.add_bos.unwrap_or(false);
        let mut add_eos = v.add_eos.unwrap_or(false);
        let model = match v.model.as_str() {
            "llama" => {
                add_bos = v.add_bos.unwrap_or(special.bos.is_some());
                Model::Spm(Spm::new(&pieces, &scores(v)?), normaliser(v, true)?)
            }
            "t5" => {
                add_eos = v.add_eos.unwrap_or(special.eos.is_some());
                Model::Unigram(Unigram::new(&pieces, scores(v)?), normaliser(v, false)?)
            }
            "bert" => {
                let lowercase = v.lowercase.unwrap_or(true);
                let strip_accents = v.strip_accents.unwrap_or(lowercase);
                Model::WordPiece(WordPiece::new(&pieces, lowercase, strip_accents))
            }
            _ => {
                let rule = rule(v.pre.as_deref())?;
                add_bos = v.add_bos.unwrap_or(rule.add_bos && special.bos.is_some());
                Model::Bpe(Bpe::new(&pieces, &v.merges, rule)?)
            }
        };
        for (wanted, id, key) in [(add_bos, special.bos, "bos"), (add_eos, special.eos, "eos")] {
            if wanted && id.is_none() {
                let place = Place::Key(format!("tokenizer.ggml.{key}_token_id"));
                return Err(Error::new(Kind::Format, "is to be added to texts, but there is none").at(place));
            }
        }
        let finder = Finder::new(v, &pieces);
        Ok(Tokenizer { model, special, finder, add_bos, add_eos, hash: v.hash(), pieces })
    }

    /// The token ids of a text. The bytes are taken as they are; they need not be UTF-8.
    ///
    /// The time is that of a sort: n·log n in the length of the text, whatever it holds.
    pub fn encode(&self, text: &[u8], options: Encode) -> Vec<u32> {
        self.encode_with_offsets(text, options).into_iter().map(|t| t.id).collect()
    }

    /// The tokens of a text with the bytes that each stands for. The ids are those of [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &[u8], options: Encode) -> Vec<TokenSpan> {
        let mut out = Out { unknown: self.special.unk, ..Out::default() };
        let bert = matches!(self.model, Model::WordPiece(_));
        if options.special && (self.add_bos || bert) {
            out.tokens.extend(self.special.bos.map(|id| TokenSpan { id, start: 0, end: 0 }));
        }
        let mut first = true;
        self.finder.parts(&self.pieces, text, options.parse_special, |part| match part {
            Part::Token(id, start, end) => {
                out.tokens.push(TokenSpan { id, start, end });
                first = true;
            }
            Part::Text(start, end) => {
                self.stretch(&text[start..end], start, first, &mut out);
                first = false;
            }
        });
        let last = match self.model {
            Model::WordPiece(_) => self.special.sep,
            _ => self.special.eos.filter(|_| self.add_eos),
        };
        if options.special {
            out.tokens.extend(last.map(|id| TokenSpan { id, start: text.len(), end: text.len() }));
        }
        out.tokens
    }

    /// Appends the tokens of a stretch of text without special tokens.
    fn stretch(&self, text: &[u8], base: usize, first: bool, out: &mut Out) {
        let pieces = &self.pieces;
        out.base = base;
        out.source.clear();
        let normalise = |normaliser: &Normaliser, out: &mut Out| {
            let done = normaliser.apply(text, first);
            out.source = done.source;
            done.text
        };
        match &self.model {
            Model::Spm(spm, normaliser) => spm.encode(pieces, &normalise(normaliser, out), out),
            Model::Unigram(unigram, normaliser) => unigram.encode(pieces, &normalise(normaliser, out), out),
            Model::Bpe(bpe) => bpe.encode(pieces, text, out),
            Model::WordPiece(wordpiece) => wordpiece.encode(pieces, text, out),
        }
    }

    /// The bytes that tokens stand for. Control tokens are written out if `special` is set and left out otherwise;
    /// ids outside the vocabulary stand for nothing.
    ///
    /// This undoes [`encode`](Self::encode): where the vocabulary spells every byte and nothing is normalised, the
    /// text comes back byte for byte. (To a SentencePiece vocabulary a `▁` that stands in the text is a space.)
    pub fn decode(&self, ids: &[u32], special: bool) -> Vec<u8> {
        let mut first = true;
        let mut text = Vec::new();
        for &id in ids {
            text.extend_from_slice(self.decode_next(id, special, &mut first));
        }
        text
    }

    /// A reader of tokens as they come, at the beginning of a text.
    pub fn stream(&self, special: bool) -> Stream<&Tokenizer> {
        Stream::new(self, special)
    }

    /// What the next token adds to a text. `first` says that it stands at the beginning or after a special token,
    /// where encoding put a space that is not in the text, and is kept up to date.
    pub(super) fn decode_next(&self, id: u32, special: bool, first: &mut bool) -> &[u8] {
        let meaning = self.pieces.meaning(id);
        match self.kind(id) {
            TokenKind::Control | TokenKind::Unknown => {
                *first = self.prefixes();
                if special { meaning } else { &[] }
            }
            TokenKind::UserDefined => {
                *first = self.prefixes();
                meaning
            }
            _ if meaning.is_empty() => meaning,
            _ => {
                let phantom = *first && (self.prefixes() || matches!(self.model, Model::WordPiece(_)));
                *first = false;
                if phantom { meaning.strip_prefix(b" ").unwrap_or(meaning) } else { meaning }
            }
        }
    }

    /// Whether encoding begins with a space that is not in the text.
    fn prefixes(&self) -> bool {
        match &self.model {
            Model::Spm(_, normaliser) | Model::Unigram(_, normaliser) => normaliser.prefix,
            _ => false,
        }
    }

    /// What a token stands for: text with its leading space, one byte, or a control token's name. Empty for an id
    /// outside the vocabulary.
    pub fn piece(&self, id: u32) -> &[u8] {
        self.pieces.meaning(id)
    }

    /// A token as the vocabulary spells it (`▁the`, `Ġthe`, `<0x0A>`). Empty for an id outside the vocabulary.
    pub fn name(&self, id: u32) -> &[u8] {
        self.pieces.text(id)
    }

    /// The token that the vocabulary spells like this.
    pub fn find(&self, name: &[u8]) -> Option<u32> {
        self.pieces.find(name)
    }

    /// What a token is for. An id outside the vocabulary is unused.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.pieces.kind(id)
    }

    /// How many tokens there are.
    #[expect(clippy::len_without_is_empty, reason = "a vocabulary is never empty")]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token that ends a turn.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// The token for text that cannot be spelled.
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// The token between two texts.
    pub fn sep(&self) -> Option<u32> {
        self.special.sep
    }

    /// The token that fills up a row.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// The token that hides another one.
    pub fn mask(&self) -> Option<u32> {
        self.special.mask
    }

    /// Whether [`Encode::special`] puts [`bos`](Self::bos) before a text.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether generation stops at this token: the end of a text, of a turn, of a message, or of a file.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.special.ends.binary_search(&id).is_ok()
    }

    /// Whether every byte has a token, so that no text is lost.
    pub fn spells_all_bytes(&self) -> bool {
        self.pieces.spells_all_bytes()
    }

    /// SHA-256 over everything that decides which ids a text becomes. Two tokenizers with one hash are the same.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

/// Scores, checked: one for each token and none that cannot be compared.
fn scores(v: &Vocabulary) -> Result<Vec<f32>> {
    let place = || Place::Key("tokenizer.ggml.scores".into());
    let n = v.tokens.len();
    if v.scores.is_empty() {
        return Ok(vec![0.0; n]);
    }
    if v.scores.len() != n {
        let expected = format_args!("{n}, as tokens");
        return Err(Error::expected(Kind::Format, "number of scores", expected, v.scores.len()).at(place()));
    }
    match v.scores.iter().position(|s| !s.is_finite()) {
        Some(id) => {
            let what = format!("score of token {id}");
            Err(Error::expected(Kind::Format, &what, "a number", v.scores[id]).at(place()))
        }
        None => Ok(v.scores.clone()),
    }
}

fn normaliser(v: &Vocabulary, prefix: bool) -> Result<Normaliser> {
    Ok(Normaliser {
        charsmap: if v.charsmap.is_empty() { None } else { Some(Charsmap::new(&v.charsmap)?) },
        prefix: v.add_space_prefix.unwrap_or(prefix),
        collapse: v.remove_extra_whitespaces.unwrap_or(false),
    })
}

fn rule(name: Option<&str>) -> Result<&'static Rule> {
    let place = || Place::Key("tokenizer.ggml.pre".into());
    let name = name.ok_or_else(|| {
        let text = "missing, and the architecture does not say which of several rules is meant";
        Error::new(Kind::Unsupported, text).at(place())
    })?;
    Rule::named(name).ok_or_else(|| unknown(name, Rule::names()).at(place()))
}

fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> Error {
    let known = known.collect::<Vec<_>>().join(", ");
    Error::new(Kind::Unsupported, format!("\"{}\" is not known here; known are {known}", name.escape_debug()))
}
