//! Data files: rows as people write them.
//!
//! ```text
//! text            {"text": …}                                            also a .txt file: one document
//! completion      {"prompt": …, "completion": …}
//! messages        {"messages": [{"role", "content"}, …], "tools"?}       OpenAI
//! conversations   {"conversations": [{"from", "value"}, …], "system"?}   ShareGPT
//! instruction     {"instruction", "input"?, "output"}                    Alpaca
//! tokens          {"input_ids": […], "labels"?}                          −100 is not trained
//! preference      {"prompt"?, "chosen", "rejected"}                      texts or messages, see `judged`
//! feedback        {"prompt", "completion", "label"}
//! ```
//! A file is JSON lines or one JSON array. Which of the formats it has is seen from the keys of its rows, all of which
//! must agree. Nothing is skipped: every row that cannot be used is reported with its line, and keys that no format
//! knows are listed in [`Rows::ignored`].

use super::fields::{Fields, kind_of};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::text::Conversation;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The longest row, in bytes. Parsed JSON takes many times its text, so one line must not be the whole memory.
const MOST_ROW: usize = 32 << 20;

/// Names of ignored keys that are kept.
const MOST_IGNORED: usize = 20;

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Documents, learned whole.
    Text,
    /// A prompt and what should follow it; only that is learned.
    Completion,
    /// Conversations as OpenAI writes them; what the assistant says is learned.
    Messages,
    /// Conversations as ShareGPT writes them.
    Conversations,
    /// Instructions as Alpaca writes them; the output is learned.
    Instruction,
    /// Tokens.
    Tokens,
    /// Two answers, of which one is better.
    Preference,
    /// An answer and whether it is wanted.
    Feedback,
}

/// What a format is known by.
pub(super) struct Shape {
    pub name: &'static str,
    pub keys: &'static [&'static str],
    pub format: Format,
}

pub(super) const SHAPES: &[Shape] = &[
    Shape { name: "text", keys: &["text"], format: Format::Text },
    Shape { name: "completion", keys: &["prompt", "completion"], format: Format::Completion },
    Shape { name: "messages", keys: &["messages"], format: Format::Messages },
    Shape { name: "conversations", keys: &["conversations"], format: Format::Conversations },
    Shape { name: "instruction", keys: &["instruction", "output"], format: Format::Instruction },
    Shape { name: "tokens", keys: &["input_ids"], format: Format::Tokens },
    Shape { name: "preference", keys: &["chosen", "rejected"], format: Format::Preference },
    Shape { name: "feedback", keys: &["prompt", "completion", "label"], format: Format::Feedback },
];

impl Format {
    /// The name, as `--data-format` takes it.
    pub fn name(self) -> &'static str {
        SHAPES.iter().find(|s| s.format == self).map_or("", |s| s.name)
    }

    /// The format of that name.
    ///
    /// # Errors
    /// `Argument` listing the names.
    pub fn named(name: &str) -> Result<Format> {
        SHAPES.iter().find(|s| s.name == name).map(|s| s.format).ok_or_else(|| {
            let known: Vec<_> = SHAPES.iter().map(|s| s.name).collect();
            Error::expected(Kind::Argument, "data format", known.join(", "), name)
        })
    }
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A document.
    Text(String),
    /// A prompt and what follows it.
    Completion {
        /// Given.
        prompt: String,
        /// Learned.
        completion: String,
    },
    /// A conversation.
    Chat(Conversation),
    /// An instruction.
    Instruction {
        /// What to do.
        instruction: String,
        /// With what; may be empty.
        input: String,
        /// The answer.
        output: String,
    },
    /// Tokens.
    Tokens {
        /// All of them.
        tokens: Vec<u32>,
        /// Which are learned.
        trained: Vec<bool>,
    },
    /// Two answers to one prompt, each a [`Content::Completion`] or a [`Content::Chat`].
    Preference {
        /// The better one.
        chosen: Box<Content>,
        /// The worse one.
        rejected: Box<Content>,
    },
    /// An answer, a [`Content::Completion`] or a [`Content::Chat`], and what is said about it.
    Feedback {
        /// The answer after its prompt.
        answer: Box<Content>,
        /// Whether it is wanted.
        label: bool,
    },
}

/// A row and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its first line in the file, from 1.
    pub line: u64,
    /// What it says.
    pub content: Content,
}

/// The rows of one file.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The file, for messages.
    pub path: PathBuf,
    /// Their format.
    pub format: Format,
    /// All of them, in order.
    pub rows: Vec<Row>,
    /// Keys that were not used, the first 20 by name.
    pub ignored: BTreeSet<String>,
}

impl Rows {
    /// Reads a file. `format` forces what is otherwise seen from the keys.
    ///
    /// # Errors
    /// `Io`; `Data`, with everything that is wrong and its line.
    pub fn read(path: impl AsRef<Path>, format: Option<Format>) -> Result<Rows> {
        let path = path.as_ref();
        let found = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if !found.is_file() {
            return Err(Error::new(Kind::Data, "not a file").at(Place::Path(path.into())));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Rows::parse(path, &bytes, format)
    }

    /// The rows in `bytes`, which came from `path`: its ending says whether they are one document (`.txt`) or JSON.
    ///
    /// # Errors
    /// As [`Rows::read`].
    pub fn parse(path: &Path, bytes: &[u8], format: Option<Format>) -> Result<Rows> {
        let refuse = |text: &str| Err(Error::new(Kind::Data, text).at(Place::Path(path.into())));
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            return refuse("the text is UTF-16; expected UTF-8");
        }
        let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if body.iter().all(u8::is_ascii_whitespace) {
            return refuse("the file is empty");
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) {
            return document(path, body, format);
        }
        let mut reader =
            Reader { wrong: Findings::default(), forced: format.is_some(), format, rows: vec![] };
        let mut ignored = BTreeSet::new();
        if body.trim_ascii_start().first() == Some(&b'[') {
            reader.array(body, &mut ignored);
        } else {
            for (line, text) in (1..).zip(body.split(|b| *b == b'\n')) {
                let text = text.trim_ascii();
                if !text.is_empty() {
                    reader.row(line, text, &mut ignored);
                }
            }
        }
        let Reader { mut wrong, format, rows, .. } = reader;
        if wrong.is_empty() && rows.is_empty() {
            wrong.push(Error::new(Kind::Data, "there are no rows"));
        }
        wrong.refuse("rows that cannot be used").map_err(|e| e.in_file(path))?;
        let format = format.expect("a row without findings has a format");
        Ok(Rows { path: path.into(), format, rows, ignored })
    }
}

fn document(path: &Path, body: &[u8], format: Option<Format>) -> Result<Rows> {
    if let Some(other) = format.filter(|f| *f != Format::Text) {
        let error = Error::expected(Kind::Data, "format of a .txt file", "text", other.name());
        return Err(error.at(Place::Path(path.into())));
    }
    match std::str::from_utf8(body) {
        Ok(text) => Ok(Rows {
            path: path.into(),
            format: Format::Text,
            rows: vec![Row { line: 1, content: Content::Text(text.into()) }],
            ignored: BTreeSet::new(),
        }),
        Err(e) => {
            let line = 1 + body[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64;
            let error = Error::new(Kind::Data, "the text is not UTF-8").at(Place::Line(line));
            Err(error.in_file(path))
        }
    }
}

struct Reader {
    wrong: Findings,
    forced: bool,
    /// Forced, or that of the first row.
    format: Option<Format>,
    rows: Vec<Row>,
}

impl Reader {
    /// The elements of an array of rows. They are told apart by brackets alone, so that one that is broken does not
    /// hide those after it.
    fn array(&mut self, body: &[u8], ignored: &mut BTreeSet<String>) {
        let lines = |part: &[u8]| part.iter().filter(|b| **b == b'\n').count() as u64;
        let open = body.iter().position(|b| *b == b'[').unwrap_or(0) + 1;
        let (mut at, mut line, mut first) = (open, 1 + lines(&body[..open]), true);
        loop {
            let end = at + element(&body[at..]);
            let text = body[at..end].trim_ascii();
            let start = body[at..end].len() - body[at..end].trim_ascii_start().len();
            let here = line + lines(&body[at..at + start]);
            line += lines(&body[at..end]);
            let mut bad = |text: &str| self.wrong.push(Error::new(Kind::Data, text).at(Place::Line(here)));
            let last = body.get(end) != Some(&b',');
            if !text.is_empty() {
                self.row(here, text, ignored);
            } else if !(last && first) {
                bad("a comma with no row beside it");
            }
            if last {
                let mut bad =
                    |text: &str| self.wrong.push(Error::new(Kind::Data, text).at(Place::Line(line)));
                match body.get(end) {
                    Some(_) if body[end + 1..].trim_ascii().is_empty() => {}
                    Some(_) => bad("something follows the array"),
                    None => bad("the array does not end"),
                }
                return;
            }
            (at, first) = (end + 1, false);
        }
    }

    /// One row.
    fn row(&mut self, line: u64, text: &[u8], ignored: &mut BTreeSet<String>) {
        let before = self.wrong.len();
        let mut fields = match object(text) {
            Ok(map) => Fields { map, line, wrong: &mut self.wrong },
            Err((below, text)) => {
                return self.wrong.push(Error::new(Kind::Data, text).at(Place::Line(line + below)));
            }
        };
        if !self.forced
            && let Some(found) = fields.format()
        {
            let wanted = *self.format.get_or_insert(found);
            if found != wanted {
                let text = format!("{}, as the rows before", wanted.name());
                fields.bad_with(Error::expected(Kind::Data, "format of the row", text, found.name()));
            }
        }
        if fields.wrong.len() > before {
            return;
        }
        let format = self.format.expect("seen or forced");
        let content = fields.content(format);
        let names = fields.map.into_iter().map(|(name, _)| name);
        ignored.extend(names.take(MOST_IGNORED.saturating_sub(ignored.len())));
        if self.wrong.len() == before {
            self.rows.extend(content.map(|content| Row { line, content }));
        }
    }
}

/// How many bytes the element at the front of `rest` takes, up to the comma or bracket that ends it.
fn element(rest: &[u8]) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (i, b) in rest.iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b',' | b']' if depth == 0 => return i,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    rest.len()
}

/// How many members an object has, counted in its text: a parsed map has lost those whose key came again.
fn members(object: &[u8]) -> usize {
    let (mut rest, mut n) = (&object[1..], 0);
    loop {
        n += 1;
        let end = element(rest);
        match rest.get(end) {
            Some(b',') => rest = &rest[end + 1..],
            _ => return n,
        }
    }
}

/// A row's fields; or what is wrong, and how many lines below its first.
fn object(text: &[u8]) -> std::result::Result<Map<String, Value>, (u64, String)> {
    if text.len() > MOST_ROW {
        return Err((0, format!("the row has {} bytes; expected at most {MOST_ROW}", text.len())));
    }
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) if map.is_empty() => Err((0, "the row is empty".into())),
        Ok(Value::Object(map)) if members(text) != map.len() => Err((0, "a key is there twice".into())),
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err((0, format!("a row is an object, found {}", kind_of(&other)))),
        Err(e) => {
            let said = e.to_string();
            let said = said.split(" at line ").next().unwrap_or_default();
            Err((e.line().saturating_sub(1) as u64, format!("not JSON: {said} at column {}", e.column())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_end_where_they_should() {
        for (text, n) in [
            ("1,2", 1),
            (r#"{"a":[1,2],"b":"],{\""},x"#, 23),
            ("]", 0),
            (r#""a\\",1"#, 5),
            ("}}]", 2),
            (r#"{"a":"never ends"#, 16),
        ] {
            assert_eq!(element(text.as_bytes()), n, "{text}");
        }
        assert_eq!(members(br#"{"a":{"b":1,"c":2},"a":"x,y:","d":[1,2]}"#), 3);
    }

    #[test]
    fn names_of_formats() {
        for shape in SHAPES {
            assert_eq!(Format::named(shape.format.name()).unwrap(), shape.format);
        }
    }
}
