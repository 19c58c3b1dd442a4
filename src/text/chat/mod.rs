//! Conversations as the text that a model was taught to read.
//!
//! A file carries its chat template: a program in the Jinja language that writes messages out with the model's own
//! markers. [`Chat`] runs it. There is one renderer for training, for prompts and for everything else, so that what a
//! model learns from is what it will be given; [`Chat::render`] adds which message each token belongs to and which
//! tokens the assistant would have produced.
//!
//! A template comes from a file that nobody has vouched for. It sees nothing but the messages, runs for a bounded
//! number of instructions, writes a bounded text, and any failure is an error with the template's line.

mod python;
mod spans;
mod template;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Encode, TokenSpan, Tokenizer};
use crate::error::{Error, Kind, Place, Result};
use crate::format::gguf::Metadata;
use template::Templates;

/// The metadata key of a file's template; others are called `tokenizer.chat_template.NAME`.
const KEY: &str = "tokenizer.chat_template";

/// Messages, and what else a template may look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    messages: Vec<Map<String, Value>>,
    /// Descriptions of tools, in the form of JSON schemas.
    pub tools: Option<Value>,
    /// Further variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// The most messages in one conversation.
    pub const MOST: usize = 1024;

    /// Checks a list of messages: objects with a `role`, and whatever else the template knows (`content`,
    /// `tool_calls`, …).
    ///
    /// # Errors
    /// [`Kind::Data`] naming the message.
    pub fn new(messages: Value) -> Result<Conversation> {
        let wrong = |what: &str, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::expected(Kind::Data, what, expected, found))
        };
        let Value::Array(list) = messages else {
            return wrong("messages", "a list", &kind_of(&messages));
        };
        if list.len() > Self::MOST {
            return wrong("number of messages", "at most 1024", &list.len());
        }
        let mut messages = Vec::with_capacity(list.len());
        for (i, message) in list.into_iter().enumerate() {
            let Value::Object(message) = message else {
                return wrong(&format!("message {i}"), "an object", &kind_of(&message));
            };
            if !message.get("role").is_some_and(Value::is_string) {
                let found = message.get("role").map_or("none", kind_of);
                return wrong(&format!("role of message {i}"), "a string", &found);
            }
            messages.push(message);
        }
        Ok(Conversation { messages, tools: None, variables: Map::new() })
    }

    /// The messages.
    pub fn messages(&self) -> &[Map<String, Value>] {
        &self.messages
    }

    /// The role of a message.
    pub fn role(&self, message: usize) -> Option<&str> {
        self.messages.get(message)?.get("role")?.as_str()
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Which of the assistant's turns are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turns {
    /// Every one.
    #[default]
    Every,
    /// The last one.
    Last,
}

/// A conversation as text and tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Its tokens, with the bytes of `text` that each stands for.
    pub tokens: Vec<TokenSpan>,
    /// For each token the message it was written for, by place; `None` for what belongs to none.
    pub messages: Vec<Option<usize>>,
    /// For each token whether the assistant would have produced it: its words and the token that ends its turn.
    pub trainable: Vec<bool>,
}

/// The chat templates of a file.
#[derive(Debug)]
pub struct Chat {
    templates: Templates,
    /// The name of the template in use.
    name: String,
    bos: String,
    eos: String,
    hash: [u8; 32],
}

impl Chat {
    /// The templates in a file's metadata; `None` if it has none.
    ///
    /// # Errors
    /// [`Kind::Template`] if one does not parse, [`Kind::Format`] if one is not text.
    pub fn from_metadata(metadata: Metadata<'_>, tokenizer: &Tokenizer) -> Result<Option<Chat>> {
        let mut sources = BTreeMap::new();
        if let Some(source) = metadata.text(KEY)? {
            sources.insert("default".to_string(), source);
        }
        for key in metadata.keys() {
            if let Some(name) = key.strip_prefix(KEY).and_then(|rest| rest.strip_prefix('.'))
                && let Some(source) = metadata.text(key)?
            {
                sources.insert(name.to_string(), source);
            }
        }
        if sources.is_empty() {
            return Ok(None);
        }
        Chat::of(sources, tokenizer).map(Some)
    }

    /// A chat with this template.
    ///
    /// # Errors
    /// [`Kind::Template`] if it does not parse.
    pub fn new(template: &str, tokenizer: &Tokenizer) -> Result<Chat> {
        Chat::of(BTreeMap::from([("default".to_string(), template)]), tokenizer)
    }

    fn of(sources: BTreeMap<String, &str>, tokenizer: &Tokenizer) -> Result<Chat> {
        let text = |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.name(id)).into_owned());
        let variables: BTreeMap<&'static str, String> = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unk()),
            ("sep_token", tokenizer.sep()),
            ("pad_token", tokenizer.pad()),
            ("mask_token", tokenizer.mask()),
        ]
        .into_iter()
        .filter_map(|(name, id)| Some((name, text(id)?)))
        .collect();
        let mut templates = Templates::new(&variables);
        let mut sha = Sha256::new();
        for (name, source) in &sources {
            templates.add(name, source).map_err(|e| e.at(place(name)))?;
            for part in [name.as_str(), source] {
                sha.update((part.len() as u64).to_le_bytes());
                sha.update(part);
            }
        }
        let name = match sources.contains_key("default") {
            true => "default",
            false => sources.keys().next().map_or("default", String::as_str),
        };
        let variable = |name: &str| variables.get(name).cloned().unwrap_or_default();
        Ok(Chat {
            name: name.to_string(),
            bos: variable("bos_token"),
            eos: variable("eos_token"),
            hash: sha.finalize().into(),
            templates,
        })
    }

    /// The names of the templates; the file's main one is `default`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.templates.names()
    }

    /// Uses the template of this name from now on.
    ///
    /// # Errors
    /// [`Kind::Argument`] if there is none.
    pub fn choose(&mut self, name: &str) -> Result<()> {
        if !self.names().any(|n| n == name) {
            let known = self.names().collect::<Vec<_>>().join(", ");
            return Err(Error::expected(Kind::Argument, "chat template", known, name));
        }
        self.name = name.to_string();
        Ok(())
    }

    /// Fixes the time that templates see, in seconds since 1970, for texts that must come out the same every day.
    pub fn set_now(&mut self, seconds: Option<i64>) {
        self.templates.now = seconds;
    }

    /// SHA-256 over all templates and their names.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// A conversation as text; with `generation_prompt`, as far as where the assistant's next words begin.
    ///
    /// # Errors
    /// [`Kind::Template`] if the template fails or refuses the conversation, with its line.
    pub fn text(&self, talk: &Conversation, generation_prompt: bool) -> Result<String> {
        self.write(talk, &talk.messages, generation_prompt, false)
    }

    fn write(
        &self,
        talk: &Conversation,
        messages: &[Map<String, Value>],
        generation_prompt: bool,
        marked: bool,
    ) -> Result<String> {
        self.templates
            .render(&self.name, talk, messages, generation_prompt, marked)
            .map_err(|e| e.at(place(&self.name)))
    }

    /// The tokens of a rendered text. What the template wrote as special tokens becomes those; the token that begins
    /// a text is added if the model wants it and the template did not write it.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Vec<TokenSpan> {
        let begun = !self.bos.is_empty() && text.starts_with(&self.bos);
        let options = Encode { special: false, parse_special: true };
        let mut tokens = tokenizer.encode_with_offsets(text.as_bytes(), options);
        if tokenizer.adds_bos() && !begun {
            tokens.splice(0..0, tokenizer.bos().map(|id| TokenSpan { id, start: 0, end: 0 }));
        }
        tokens
    }

    /// A whole conversation as text and tokens, with the messages they belong to and what the assistant said.
    ///
    /// The text is encoded once, as it is encoded for serving. A token is trainable if all of it lies in the
    /// assistant's words, from where the assistant was asked to speak up to and with the token that ends its turn.
    ///
    /// # Errors
    /// As [`text`](Self::text), and [`Kind::Template`] if the template rewrites what was said, so that it cannot be
    /// shown which part of the text it is.
    pub fn render(&self, tokenizer: &Tokenizer, talk: &Conversation, turns: Turns) -> Result<Rendered> {
        spans::render(self, tokenizer, talk, turns).map_err(|e| match e.places() {
            [] => e.at(place(&self.name)),
            _ => e,
        })
    }
}

fn place(name: &str) -> Place {
    Place::Key(if name == "default" { KEY.to_string() } else { format!("{KEY}.{name}") })
}
