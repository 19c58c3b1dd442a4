//! Rows that judge: preferences and feedback, as TRL writes them.
//!
//! ```text
//! preference   {"prompt"?, "chosen", "rejected"}      texts, or lists of messages; without a prompt it is what chosen
//!                                                     and rejected begin with alike
//! feedback     {"prompt", "completion", "label"}      true: wanted, false: not
//! ```
//! The answers become tokens as supervised rows do: by the model's template where they are messages. Only what the
//! assistant says in the answer is judged, not its turns in the prompt.

use super::examples::{Encoded, Encoder, Role, Set};
use super::fields::{Fields, kind_of};
use super::rows::{Content, Row, Rows};
use crate::error::{Error, Findings, Kind, Place, Result};
use serde_json::Value;

impl Fields<'_> {
    /// Two answers, of which one is better.
    pub fn preference(&mut self) -> Option<Content> {
        let before = self.wrong.len();
        let (mut chosen, mut rejected) = (self.answer("chosen"), self.answer("rejected"));
        let prompt = match (self.map.remove("prompt"), &mut chosen, &mut rejected) {
            (Some(prompt), ..) => Some(prompt),
            (None, Some(chosen), Some(rejected)) => common(chosen, rejected),
            _ => None,
        };
        if let (Some(chosen), Some(rejected)) = (&chosen, &rejected)
            && chosen == rejected
        {
            self.bad_with(Error::new(Kind::Data, "chosen and rejected are the same"));
        }
        if self.wrong.len() > before {
            return None;
        }
        let Some(prompt) = prompt else {
            self.bad("prompt", "missing, and chosen and rejected are not of one kind");
            return None;
        };
        let tools = self.map.remove("tools").filter(|t| !t.is_null());
        let chosen = self.answered("chosen", prompt.clone(), chosen?, tools.clone());
        let rejected = self.answered("rejected", prompt, rejected?, tools);
        Some(Content::Preference { chosen: Box::new(chosen?), rejected: Box::new(rejected?) })
    }

    /// An answer and whether it is wanted.
    pub fn feedback(&mut self) -> Option<Content> {
        let completion = self.answer("completion");
        let prompt = self.map.remove("prompt");
        if prompt.is_none() {
            self.bad("prompt", "missing");
        }
        let label = match self.map.remove("label") {
            Some(Value::Bool(label)) => Some(label),
            other => {
                let found = match &other {
                    None => "none".into(),
                    Some(v @ Value::Number(_)) => v.to_string(),
                    Some(v) => kind_of(v).to_owned(),
                };
                self.bad("label", format!("expected true or false, found {found}"));
                None
            }
        };
        let tools = self.map.remove("tools").filter(|t| !t.is_null());
        let answer = self.answered("completion", prompt?, completion?, tools);
        Some(Content::Feedback { answer: Box::new(answer?), label: label? })
    }

    /// A text or a list that says something.
    fn answer(&mut self, key: &str) -> Option<Value> {
        match self.map.remove(key) {
            Some(Value::String(text)) if text.trim().is_empty() => self.bad(key, "empty"),
            Some(Value::Array(list)) if list.is_empty() => self.bad(key, "empty"),
            Some(answer @ (Value::String(_) | Value::Array(_))) => return Some(answer),
            Some(other) => {
                self.bad(key, format!("expected a text or messages, found {}", kind_of(&other)));
            }
            None => self.bad(key, "missing"),
        }
        None
    }

    /// A prompt and its answer, both texts or both messages.
    fn answered(&mut self, key: &str, prompt: Value, answer: Value, tools: Option<Value>) -> Option<Content> {
        match (prompt, answer) {
            (Value::String(prompt), Value::String(completion)) => {
                Some(Content::Completion { prompt, completion })
            }
            (Value::Array(mut messages), Value::Array(answer)) => {
                for message in messages.iter_mut().filter_map(Value::as_object_mut) {
                    if message.get("role").and_then(Value::as_str) == Some("assistant") {
                        message.insert("weight".into(), 0.into()); // said before, not judged
                    }
                }
                messages.extend(answer);
                Some(Content::Chat(self.conversation(key, Some(Value::Array(messages)), tools)?))
            }
            (prompt @ (Value::String(_) | Value::Array(_)), answer) => {
                let (prompt, answer) = (kind_of(&prompt), kind_of(&answer));
                self.bad(key, format!("expected {prompt} as the prompt is, found {answer}"));
                None
            }
            (other, _) => {
                self.bad("prompt", format!("expected a text or messages, found {}", kind_of(&other)));
                None
            }
        }
    }
}

/// Takes away what both begin with: whole messages; or characters, but for a space before the difference.
fn common(chosen: &mut Value, rejected: &mut Value) -> Option<Value> {
    match (chosen, rejected) {
        (Value::Array(a), Value::Array(b)) => {
            let alike = a.iter().zip(&*b).take_while(|(a, b)| a == b).count();
            b.drain(..alike);
            Some(Value::Array(a.drain(..alike).collect()))
        }
        (Value::String(a), Value::String(b)) => {
            let alike: usize =
                a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
            let alike = alike - usize::from(a[..alike].ends_with(' '));
            b.drain(..alike);
            Some(Value::String(a.drain(..alike).collect()))
        }
        _ => None,
    }
}

impl Encoder<'_> {
    /// Both answers of a preference, or one with its label.
    pub(super) fn judged(&self, number: usize, row: &Row, set: &mut Set, wrong: &mut Findings) {
        let answers = match &row.content {
            Content::Preference { chosen, rejected } => {
                [Some((chosen, Role::Chosen, "chosen")), Some((rejected, Role::Rejected, "rejected"))]
            }
            Content::Feedback { answer, label: true } => {
                [Some((answer, Role::Desirable, "completion")), None]
            }
            Content::Feedback { answer, .. } => [Some((answer, Role::Undesirable, "completion")), None],
            _ => return,
        };
        let (at, line) = (set.examples.len(), Place::Line(row.line));
        for (answer, role, key) in answers.into_iter().flatten() {
            let done = self.answer(answer).and_then(|encoded| self.held(number, encoded, role, set));
            wrong.keep(done.map_err(|e| e.at(Place::Key(key.into())).at(line.clone())));
        }
        if let [chosen, rejected] = &set.examples[at..]
            && chosen == rejected
        {
            let cut = if set.origins[at].lost > 0 { " in the tokens that fit the context" } else { "" };
            let text = format!("chosen and rejected are the same tokens{cut}");
            wrong.push(Error::new(Kind::Data, text).at(line));
        }
    }

    fn answer(&self, content: &Content) -> Result<Encoded> {
        match content {
            Content::Chat(talk) => self.talk(talk),
            Content::Completion { prompt, completion } => self.completion(prompt, completion),
            _ => Err(Error::new(Kind::Data, "an answer is a text or messages")),
        }
    }
}

/// Feedback of one kind teaches nothing about the other.
pub(super) fn one_sided(rows: &Rows, wrong: &mut Findings) {
    let label = |row: &Row| match row.content {
        Content::Feedback { label, .. } => Some(label),
        _ => None,
    };
    let Some((first, label_of_all)) = rows.rows.first().and_then(|r| Some((r.line, label(r)?))) else {
        return;
    };
    if rows.rows.iter().all(|r| label(r) == Some(label_of_all)) {
        let text = format!(
            "label: all {} rows from here on say {label_of_all}; expected rows of both kinds",
            rows.rows.len()
        );
        wrong.push(Error::new(Kind::Data, text).at(Place::Line(first)));
    }
}
