//! What the fields of one row say.

use super::rows::{Content, Format, SHAPES, Shape};
use crate::error::{Error, Findings, Kind, Place};
use crate::text::Conversation;
use serde_json::{Map, Value};

/// The fields of one row, taken out as they are understood.
pub(super) struct Fields<'a> {
    pub map: Map<String, Value>,
    pub line: u64,
    pub wrong: &'a mut Findings,
}

impl Fields<'_> {
    /// One more thing that is wrong with it.
    pub fn bad_with(&mut self, error: Error) {
        self.wrong.push(error.at(Place::Line(self.line)));
    }

    pub fn bad(&mut self, key: &str, text: impl Into<String>) {
        self.bad_with(Error::new(Kind::Data, text).at(Place::Key(key.into())));
    }

    /// The format whose keys the row has.
    pub fn format(&mut self) -> Option<Format> {
        let has = |s: &&Shape| s.keys.iter().all(|k| self.map.contains_key(*k));
        let fits: Vec<&Shape> = SHAPES.iter().filter(has).collect();
        let inside = |s: &Shape, other: &Shape| {
            other.keys.len() > s.keys.len() && s.keys.iter().all(|k| other.keys.contains(k))
        };
        let whole: Vec<_> = fits.iter().filter(|s| !fits.iter().any(|other| inside(s, other))).collect();
        match whole[..] {
            [Shape { format, .. }] => return Some(*format),
            [] => {
                let keys: Vec<String> = self.map.keys().take(8).map(|k| short(k)).collect();
                let known: Vec<String> = SHAPES.iter().map(|s| s.keys.join(" + ")).collect();
                let text = format!("{}; or {}", known[..known.len() - 1].join("; "), known[known.len() - 1]);
                self.bad_with(Error::expected(Kind::Data, "keys of the row", text, keys.join(", ")));
            }
            [..] => {
                let names: Vec<_> = whole.iter().map(|s| s.name).collect();
                let text = format!("the row can be read as {}: say which is meant", names.join(" and as "));
                self.bad_with(Error::new(Kind::Data, text));
            }
        }
        None
    }

    /// What the row says in this format; `None` if something is wrong.
    pub fn content(&mut self, format: Format) -> Option<Content> {
        Some(match format {
            Format::Text => Content::Text(self.said("text")?),
            Format::Completion => {
                let (prompt, completion) = (self.text("prompt"), self.said("completion"));
                Content::Completion { prompt: prompt?, completion: completion? }
            }
            Format::Messages => {
                let messages = self.map.remove("messages");
                let tools = self.map.remove("tools").filter(|t| !t.is_null());
                Content::Chat(self.conversation("messages", messages, tools)?)
            }
            Format::Conversations => {
                let turns = self.turns();
                Content::Chat(self.conversation("conversations", turns, None)?)
            }
            Format::Instruction => {
                let (instruction, output) = (self.said("instruction"), self.said("output"));
                let input = match self.map.get("input") {
                    None | Some(Value::Null) => Some(String::new()),
                    Some(_) => self.text("input"),
                };
                Content::Instruction { instruction: instruction?, input: input?, output: output? }
            }
            Format::Tokens => return self.tokens(),
            Format::Preference => return self.preference(),
            Format::Feedback => return self.feedback(),
        })
    }

    /// A text, which may be empty.
    fn text(&mut self, key: &str) -> Option<String> {
        match self.map.remove(key) {
            Some(Value::String(text)) => return Some(text),
            Some(Value::Array(_)) if matches!(key, "prompt" | "completion") => {
                self.bad(key, "expected a text, found a list; conversations are read from `messages`");
            }
            Some(other) => self.bad(key, format!("expected a text, found {}", kind_of(&other))),
            None => self.bad(key, "missing"),
        }
        None
    }

    /// A text that says something.
    fn said(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if text.trim().is_empty() {
            self.bad(key, "empty");
            return None;
        }
        Some(text)
    }

    pub fn conversation(
        &mut self,
        key: &str,
        messages: Option<Value>,
        tools: Option<Value>,
    ) -> Option<Conversation> {
        let before = self.wrong.len();
        let Some(messages) = messages else {
            self.bad(key, "missing");
            return None;
        };
        if messages.as_array().is_some_and(Vec::is_empty) {
            self.bad(key, "empty");
        }
        if let Some(tools) = tools.as_ref().filter(|t| !t.is_array()) {
            self.bad("tools", format!("expected a list, found {}", kind_of(tools)));
        }
        for (i, message) in messages.as_array().into_iter().flatten().enumerate() {
            let Some(message) = message.as_object() else { continue }; // Conversation::new says so
            match message.get("content") {
                Some(Value::String(_) | Value::Array(_)) => {}
                None | Some(Value::Null) if message.contains_key("tool_calls") => {}
                other => {
                    let found = other.map_or("none", kind_of);
                    self.bad(key, format!("content of message {i}: expected a text, found {found}"));
                }
            }
            let weight = message.get("weight");
            if weight.is_some_and(|w| w.as_u64().is_none_or(|w| w > 1)) {
                self.bad(key, format!("weight of message {i}: expected 0 or 1"));
            }
        }
        match Conversation::new(messages) {
            Ok(mut talk) if self.wrong.len() == before => {
                talk.tools = tools;
                Some(talk)
            }
            Ok(_) => None,
            Err(e) => {
                self.bad_with(e.at(Place::Key(key.into())));
                None
            }
        }
    }

    /// ShareGPT's turns as messages. Files that write role and content under that key are understood too.
    fn turns(&mut self) -> Option<Value> {
        const KEY: &str = "conversations";
        let system = match self.map.remove("system") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(system @ Value::String(_)) => Some(system),
            Some(other) => {
                self.bad("system", format!("expected a text, found {}", kind_of(&other)));
                None
            }
        };
        let mut list = match self.map.remove(KEY)? {
            Value::Array(list) => list,
            other => return Some(other), // Conversation::new says what is wrong
        };
        for (i, turn) in list.iter_mut().enumerate() {
            let Value::Object(turn) = turn else { continue };
            if turn.contains_key("role") {
                continue;
            }
            let role = match turn.get("from").and_then(Value::as_str) {
                Some("system") => "system",
                Some("human" | "user") => "user",
                Some("gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model") => "assistant",
                Some("tool" | "observation" | "function_response") => "tool",
                other => {
                    let found = other.map_or("none".into(), short);
                    let text =
                        format!("from of turn {i}: expected system, human, gpt or tool, found {found}");
                    self.bad(KEY, text);
                    "user" // only to find what else is wrong
                }
            };
            turn.remove("from");
            let value = turn.remove("value").unwrap_or_default();
            turn.insert("role".into(), role.into());
            turn.insert("content".into(), value);
        }
        if let Some(text) = system {
            let mut message = Map::new();
            message.insert("role".into(), "system".into());
            message.insert("content".into(), text);
            list.insert(0, Value::Object(message));
        }
        Some(Value::Array(list))
    }

    fn tokens(&mut self) -> Option<Content> {
        let tokens = self.integers("input_ids");
        let labels = if self.map.contains_key("labels") { Some(self.integers("labels")?) } else { None };
        // What tokenizers write beside the ids; padding would be learned from.
        if self.map.contains_key("attention_mask") && self.integers("attention_mask")?.contains(&0) {
            self.bad("attention_mask", "rows are not padded here; expected ones");
        }
        let ids = tokens?;
        if ids.is_empty() {
            self.bad("input_ids", "empty");
            return None;
        }
        if let Some(i) = ids.iter().position(|t| u32::try_from(*t).is_err()) {
            let t = ids[i];
            self.bad("input_ids", format!("number {i}: expected a token id, found {t}"));
        }
        if let Some(labels) = &labels {
            if labels.len() != ids.len() {
                self.bad("labels", format!("expected {} as input_ids, found {}", ids.len(), labels.len()));
            }
            let mut both = labels.iter().zip(&ids).enumerate();
            if let Some((i, (l, t))) = both.find(|(_, (l, t))| **l != -100 && l != t) {
                self.bad("labels", format!("number {i}: expected -100 or the token {t}, found {l}"));
            }
        }
        let tokens = ids.iter().map(|t| u32::try_from(*t).unwrap_or(0)).collect();
        let trained = match labels {
            Some(labels) => labels.iter().map(|l| *l != -100).collect(),
            None => vec![true; ids.len()],
        };
        Some(Content::Tokens { tokens, trained })
    }

    fn integers(&mut self, key: &str) -> Option<Vec<i64>> {
        let list = match self.map.remove(key) {
            Some(Value::Array(list)) => list,
            other => {
                let found = other.as_ref().map_or("none", kind_of);
                self.bad(key, format!("expected a list of integers, found {found}"));
                return None;
            }
        };
        let mut numbers = Vec::with_capacity(list.len());
        for (i, n) in list.iter().enumerate() {
            match n.as_i64() {
                Some(n) => numbers.push(n),
                None => {
                    self.bad(
                        key,
                        format!("number {i}: expected an integer, found {}", short(&n.to_string())),
                    );
                    return None;
                }
            }
        }
        Some(numbers)
    }
}

/// A piece of somebody's text as a message may carry it.
fn short(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at].escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
