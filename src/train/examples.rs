//! Rows as sequences of tokens, with what is learned of each.
//!
//! ```text
//! text          BOS? text EOS          all of it; a document longer than the context becomes pieces
//! completion    BOS? prompt completion EOS                  the completion and its EOS
//! messages, conversations              the model's own template: what the assistant says, with the token that ends
//!                                      its turn
//! instruction   as a conversation where the model has a template, else as a completion of Alpaca's prompt
//! tokens        as they are            where `labels` is not −100
//! ```
//! The first token of a sequence is never learned: nothing predicts it. A piece of a document therefore begins with
//! the last token of the piece before it, so that every token but the first is learned exactly once.
//!
//! Any other row that is longer than the context is refused, or with [`Long::Truncate`] loses its end, and is counted.
//! Text is only text: control tokens spelled out in a row's `text`, `prompt` or `completion` become those tokens only
//! with [`Encoder::parse_special`].

use super::Flow;
use super::rows::{Content, Row, Rows};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::Model;
use crate::text::{Chat, Conversation, Encode, Tokenizer, Turns};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// The day that templates see, 26 July 2024: data must become the same tokens every day, or a run that is continued
/// tomorrow would learn from other data. (It is also the day that the templates of Llama 3 fall back to.)
pub const DAY: i64 = 1_721_952_000;

/// A sequence to learn from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Example {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Which tokens are predicted and counted; the first never is.
    pub trained: Vec<bool>,
}

impl Example {
    /// Rows it takes in a batch: the last token predicts nothing.
    pub fn rows(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Tokens that are predicted and counted.
    pub fn count(&self) -> usize {
        self.trained.iter().skip(1).filter(|t| **t).count()
    }

    /// Whether its last token is learned and is one that ends a turn.
    pub fn ends_with(&self, end: impl Fn(u32) -> bool) -> bool {
        // some templates write a line's end after the turn's
        let last = self.trained.iter().rposition(|t| *t);
        last.is_some_and(|i| end(self.tokens[i]))
    }
}

/// What becomes of a row that is longer than the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Long {
    /// An error that lists it.
    #[default]
    Refuse,
    /// It loses its end.
    Truncate,
}

/// Turns rows into examples.
#[derive(Clone, Debug)]
pub struct Encoder<'a> {
    /// Needed by all rows but those that are tokens already.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The model's template, if it has one.
    pub chat: Option<&'a Chat>,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Positions: a sequence has one token more, the last, which is only predicted.
    pub context: usize,
    /// What becomes of longer rows.
    pub long: Long,
    /// Which of the assistant's turns are learned.
    pub turns: Turns,
    /// Whether control tokens spelled out in texts become those tokens.
    pub parse_special: bool,
}

/// What is said about an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing: it is shown.
    #[default]
    Shown,
    /// The better one of its pair.
    Chosen,
    /// The worse one; it follows the chosen one.
    Rejected,
    /// Labelled true.
    Desirable,
    /// Labelled false.
    Undesirable,
}

impl Role {
    /// Whether it is to become more likely.
    pub fn is_good(self) -> bool {
        matches!(self, Role::Shown | Role::Chosen | Role::Desirable)
    }

    /// The kind of rows that it is found in.
    pub fn signal(self) -> Signal {
        match self {
            Role::Shown => Signal::Shown,
            Role::Chosen | Role::Rejected => Signal::Pairs,
            Role::Desirable | Role::Undesirable => Signal::Labels,
        }
    }
}

/// What rows say about their sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signal {
    /// Nothing.
    #[default]
    Shown,
    /// Which of two is better: two sequences a row, the chosen one first.
    Pairs,
    /// Whether they are wanted.
    Labels,
}

impl Signal {
    /// Sequences of a unit, which is what a window counts.
    pub fn arity(self) -> usize {
        if self == Signal::Pairs { 2 } else { 1 }
    }

    /// By how much to learn faster or slower than from supervised rows, to begin with: TRL 1.16 has 2e-5 for those and 1e-6
    /// for all others.
    pub fn pace(self) -> f64 {
        if self == Signal::Shown { 1.0 } else { 0.05 }
    }

    /// The rows, by name.
    pub fn rows(self) -> &'static str {
        match self {
            Signal::Shown => "supervised rows",
            Signal::Pairs => "preference rows (prompt + chosen + rejected)",
            Signal::Labels => "feedback rows (prompt + completion + label)",
        }
    }
}

/// Where an example comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The row, from 0.
    pub row: usize,
    /// What is said about it.
    pub role: Role,
    /// Tokens that were cut off its end.
    pub lost: usize,
}

/// Examples and where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// What is learned from.
    pub examples: Vec<Example>,
    /// For each where it comes from.
    pub origins: Vec<Origin>,
}

/// What there is to know about a set before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Rows.
    pub rows: usize,
    /// Sequences; more than rows where documents were cut into pieces.
    pub examples: usize,
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Tokens that are learned.
    pub trained: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Rows that lost their end.
    pub truncated: usize,
    /// Tokens that were lost.
    pub lost: usize,
    /// Sequences equal to an earlier one.
    pub duplicates: usize,
    /// What the rows say.
    pub signal: Signal,
}

impl Set {
    /// Counts.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts { examples: self.examples.len(), signal: self.signal(), ..Facts::default() };
        let mut seen = HashSet::with_capacity(self.examples.len());
        let mut rows = HashSet::new();
        for (example, origin) in self.examples.iter().zip(&self.origins) {
            rows.insert(origin.row);
            facts.tokens += example.tokens.len();
            facts.trained += example.count();
            facts.longest = facts.longest.max(example.tokens.len());
            facts.truncated += usize::from(origin.lost > 0);
            facts.lost += origin.lost;
            facts.duplicates += usize::from(!seen.insert(example));
        }
        facts.rows = rows.len();
        facts
    }

    /// What its rows say; they are all of one kind.
    pub fn signal(&self) -> Signal {
        self.origins.first().map_or(Signal::Shown, |o| o.role.signal())
    }

    /// Pairs, or sequences where there are none.
    pub fn units(&self) -> usize {
        self.examples.len() / self.signal().arity()
    }

    /// The sequences of a unit.
    pub fn unit(&self, unit: usize) -> &[Example] {
        let arity = self.signal().arity();
        &self.examples[unit * arity..(unit + 1) * arity]
    }

    /// How many of its sequences are also in `other`, token for token.
    pub fn overlap(&self, other: &Set) -> usize {
        let there: HashSet<&[u32]> = other.examples.iter().map(|e| &e.tokens[..]).collect();
        self.examples.iter().filter(|e| there.contains(&e.tokens[..])).count()
    }

    /// Takes out the units that have a sequence in `other`, token for token; how many sequences they were.
    pub fn drop_overlap(&mut self, other: &Set) -> usize {
        let there: HashSet<&[u32]> = other.examples.iter().map(|e| &e.tokens[..]).collect();
        let (before, arity) = (self.examples.len(), self.signal().arity());
        let new = |unit: &[Example]| unit.iter().all(|e| !there.contains(&e.tokens[..]));
        let keep: Vec<bool> = self.examples.chunks(arity).map(new).collect();
        let mut at = 0..;
        self.examples.retain(|_| keep[at.next().unwrap_or(0) / arity]);
        let mut at = 0..;
        self.origins.retain(|_| keep[at.next().unwrap_or(0) / arity]);
        before - self.examples.len()
    }

    /// Rows whose last learned token is not one that ends a turn, by number: nothing in them teaches to stop.
    pub fn open_ended(&self, end: impl Fn(u32) -> bool) -> Vec<usize> {
        let mut open = Vec::new();
        let both = self.examples.iter().zip(&self.origins);
        for (i, (example, origin)) in both.enumerate() {
            let last = self.origins.get(i + 1).is_none_or(|next| next.row != origin.row);
            if last && !example.ends_with(&end) {
                open.push(origin.row);
            }
        }
        open
    }

    /// SHA-256 over all tokens, what is learned of them and what is said of it: equal only for the same examples in the
    /// same order.
    ///
    /// ```text
    /// "onlay data 1"  u64 examples  × { u64 n, u32 token[n], u8 trained[n] }
    /// "onlay data 2"  u64 examples  × { u64 n, u32 token[n], u8 trained[n], u8 good }        of judged rows
    /// ```
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let judged = self.signal() != Signal::Shown;
        hash.update(if judged { b"onlay data 2" } else { b"onlay data 1" });
        hash.update((self.examples.len() as u64).to_le_bytes());
        for (e, origin) in self.examples.iter().zip(&self.origins) {
            hash.update((e.tokens.len() as u64).to_le_bytes());
            e.tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
            e.trained.iter().for_each(|t| hash.update([u8::from(*t)]));
            if judged {
                hash.update([u8::from(origin.role.is_good())]);
            }
        }
        hash.finalize().into()
    }

    fn push(&mut self, tokens: Vec<u32>, mut trained: Vec<bool>, origin: Origin) {
        trained[0] = false; // nothing predicts it
        self.examples.push(Example { tokens, trained });
        self.origins.push(origin);
    }
}

/// A row's tokens before they are held to the context.
pub(super) struct Encoded {
    tokens: Vec<u32>,
    trained: Vec<bool>,
}

impl<'a> Encoder<'a> {
    /// For a model and its template (see [`Encoder::chat_of`]); sequences up to `context` positions.
    pub fn new(model: &'a Model, chat: Option<&'a Chat>, context: usize) -> Self {
        Encoder {
            tokenizer: model.tokenizer().ok(),
            chat,
            vocabulary: model.program().vocabulary,
            context,
            long: Long::Refuse,
            turns: Turns::Every,
            parse_special: false,
        }
    }

    /// The template of a model, which sees a fixed [`DAY`]; `None` if it has none.
    ///
    /// # Errors
    /// As [`Chat::from_metadata`].
    pub fn chat_of(model: &Model) -> Result<Option<Chat>> {
        let Ok(tokenizer) = model.tokenizer() else { return Ok(None) };
        let chat = Chat::from_metadata(model.weights().metadata(), tokenizer)
            .map_err(|e| e.in_file(model.weights().path()))?;
        Ok(chat.map(|mut chat| {
            chat.set_now(Some(DAY));
            chat
        }))
    }

    /// Encodes all rows of a file. `progress(done, of)` is asked now and then whether to go on.
    ///
    /// # Errors
    /// `Data` with every row that cannot be used and its line: longer than the context, nothing learned, tokens that
    /// the model does not have; `Template` where the model's template refuses a conversation or leaves the
    /// assistant's turn without an end; `Unsupported` without a tokenizer or template; `Cancelled`.
    pub fn encode(&self, rows: &Rows, progress: &mut dyn FnMut(usize, usize) -> Flow) -> Result<Set> {
        let mut wrong = Findings::default();
        let mut set = Set::default();
        for (i, row) in rows.rows.iter().enumerate() {
            if i % 64 == 0 && progress(i, rows.rows.len()) == Flow::Stop {
                return Err(Error::new(Kind::Cancelled, "stopped while rows were encoded"));
            }
            if matches!(row.content, Content::Preference { .. } | Content::Feedback { .. }) {
                self.judged(i, row, &mut set, &mut wrong);
                continue;
            }
            let done = self.row(i, row, &mut set);
            wrong.keep(done.map_err(|e| e.at(Place::Line(row.line))));
        }
        super::judged::one_sided(rows, &mut wrong);
        wrong.refuse("rows that cannot be learned from").map_err(|e| e.in_file(&rows.path))?;
        Ok(set)
    }

    fn row(&self, number: usize, row: &Row, set: &mut Set) -> Result<()> {
        let done = match &row.content {
            Content::Text(text) => return self.document(number, text, set),
            Content::Completion { prompt, completion } => self.completion(prompt, completion)?,
            Content::Chat(talk) => self.talk(talk)?,
            Content::Instruction { instruction, input, output } => {
                self.instruction(instruction, input, output)?
            }
            Content::Tokens { tokens, trained } => {
                let outside = tokens.iter().position(|t| *t as usize >= self.vocabulary);
                if let Some(i) = outside {
                    let most = format!("below {}", self.vocabulary);
                    let error = Error::expected(Kind::Data, &format!("number {i}"), most, tokens[i]);
                    return Err(error.at(Place::Key("input_ids".into())));
                }
                Encoded { tokens: tokens.clone(), trained: trained.clone() }
            }
            Content::Preference { .. } | Content::Feedback { .. } => unreachable!("judged"),
        };
        self.held(number, done, Role::Shown, set)
    }

    /// Holds a sequence to the context.
    pub(super) fn held(&self, number: usize, encoded: Encoded, role: Role, set: &mut Set) -> Result<()> {
        let Encoded { mut tokens, mut trained } = encoded;
        let most = self.context.saturating_add(1);
        let lost = tokens.len().saturating_sub(most);
        if lost > 0 && self.long == Long::Refuse {
            let most = format!("at most {most} tokens, or leave to cut it off");
            return Err(Error::expected(Kind::Data, "length of the row", most, tokens.len()));
        }
        tokens.truncate(most);
        trained.truncate(most);
        if !trained.iter().skip(1).any(|t| *t) {
            let cut =
                if lost > 0 { format!(" in the {most} tokens that fit the context") } else { String::new() };
            return Err(Error::new(Kind::Data, format!("nothing of the row is learned{cut}")));
        }
        set.push(tokens, trained, Origin { row: number, lost, role });
        Ok(())
    }

    fn tokenizer(&self) -> Result<&'a Tokenizer> {
        let text = "the model has no tokenizer; its rows must be tokens (input_ids)";
        self.tokenizer.ok_or_else(|| Error::new(Kind::Unsupported, text))
    }

    fn options(&self) -> Encode {
        Encode { special: false, parse_special: self.parse_special }
    }

    /// The token that begins a text, where the model wants one.
    fn begin(tokenizer: &Tokenizer) -> Vec<u32> {
        tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect()
    }

    /// The token that ends a text. A model that has none cannot be taught to stop.
    fn end(tokenizer: &Tokenizer) -> Option<u32> {
        tokenizer.eos().or(tokenizer.eot())
    }

    /// A document, in pieces that overlap by one token.
    fn document(&self, number: usize, text: &str, set: &mut Set) -> Result<()> {
        let tokenizer = self.tokenizer()?;
        let mut tokens = Self::begin(tokenizer);
        tokens.extend(tokenizer.encode(text.as_bytes(), self.options()));
        tokens.extend(Self::end(tokenizer));
        if tokens.len() < 2 {
            return Err(Error::new(Kind::Data, "nothing of the row is learned: it has one token"));
        }
        let context = self.context.max(1);
        for start in (0..tokens.len() - 1).step_by(context) {
            let piece = tokens[start..tokens.len().min(start + context + 1)].to_vec();
            let trained = vec![true; piece.len()];
            set.push(piece, trained, Origin { row: number, ..Origin::default() });
        }
        Ok(())
    }

    /// A prompt's tokens as serving sees them, then those of the completion.
    ///
    /// The tokens are those of the whole text where the prompt's own tokens are its beginning. Where the two would
    /// grow together at the seam, the completion is spelled alone if that leaves the text as it is (a tokenizer may
    /// begin every text with a space); otherwise the token across the seam is learned.
    pub(super) fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        let tokenizer = self.tokenizer()?;
        let whole = [prompt, completion].concat();
        let own = tokenizer.encode(prompt.as_bytes(), self.options());
        let joint = tokenizer.encode_with_offsets(whole.as_bytes(), self.options());
        let begins = joint.len() >= own.len() && joint.iter().zip(&own).all(|(j, o)| j.id == *o);
        let mut tokens = Self::begin(tokenizer);
        let first;
        if begins && joint.get(own.len()).is_none_or(|t| t.start >= prompt.len()) {
            first = tokens.len() + own.len();
            tokens.extend(joint.iter().map(|t| t.id));
        } else {
            let apart = [own.clone(), tokenizer.encode(completion.as_bytes(), self.options())].concat();
            if tokenizer.decode(&apart, true) == whole.as_bytes() {
                first = tokens.len() + own.len();
                tokens.extend(apart);
            } else {
                first = tokens.len() + joint.partition_point(|t| t.end <= prompt.len());
                tokens.extend(joint.iter().map(|t| t.id));
            }
        }
        tokens.extend(Self::end(tokenizer));
        let trained = (0..tokens.len()).map(|i| i >= first).collect();
        Ok(Encoded { tokens, trained })
    }

    fn instruction(&self, instruction: &str, input: &str, output: &str) -> Result<Encoded> {
        if self.chat.is_some() {
            let asked = match input {
                "" => instruction.to_owned(),
                input => format!("{instruction}\n\n{input}"),
            };
            return self.talk(&Conversation::new(json!([
                {"role": "user", "content": asked},
                {"role": "assistant", "content": output},
            ]))?);
        }
        let prompt = match input {
            "" => format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the \
                 request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
            ),
            input => format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. \
                 Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
                 ### Input:\n{input}\n\n### Response:\n"
            ),
        };
        self.completion(&prompt, output)
    }

    pub(super) fn talk(&self, talk: &Conversation) -> Result<Encoded> {
        let tokenizer = self.tokenizer()?;
        let chat = self.chat.ok_or_else(|| {
            let text = "the model has no chat template; conversations cannot be written in its words";
            Error::new(Kind::Unsupported, text)
        })?;
        let learned = |m: usize| talk.messages()[m].get("weight").and_then(|w| w.as_u64()) != Some(0);
        if !(0..talk.messages().len()).any(|m| talk.role(m) == Some("assistant") && learned(m)) {
            return Err(Error::new(Kind::Data, "nothing of the row is learned: the assistant says nothing"));
        }
        let rendered = chat.render(tokenizer, talk, self.turns)?;
        let tokens: Vec<u32> = rendered.tokens.iter().map(|t| t.id).collect();
        let mut trained = rendered.trainable;
        // Every turn of the assistant must end with the token that makes serving stop.
        for i in 0..tokens.len() {
            let last = trained[i] && !trained.get(i + 1).is_some_and(|next| *next);
            if last && !tokenizer.is_end_of_generation(tokens[i]) {
                let words = String::from_utf8_lossy(tokenizer.name(tokens[i])).into_owned();
                let text = format!(
                    "the assistant's turn ends with {words:?} at token {i}, which does not end a turn: the model \
                     would not learn to stop"
                );
                return Err(Error::new(Kind::Template, text));
            }
        }
        if !(0..talk.messages().len()).all(learned) {
            for (trained, message) in trained.iter_mut().zip(&rendered.messages) {
                let of = |m: &usize| if *trained { learned(*m) } else { false };
                if *trained && message.is_none() {
                    let text =
                        "a message has weight 0, and the template does not show which words are its own";
                    return Err(Error::new(Kind::Template, text));
                }
                *trained = message.as_ref().is_some_and(of);
            }
        }
        Ok(Encoded { tokens, trained })
    }
}
