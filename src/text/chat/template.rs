//! The template engine, set up as the templates' authors had it.
//!
//! What a template may cost is bounded in instructions, in what it prints and in how deep it calls. The engine has no
//! bound for values that it only computes: a template that joins a string to itself again and again can still ask for
//! more memory than there is.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Object;
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State, Value, context, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Map;

use super::Conversation;
use super::python::{strftime, tojson};
use crate::error::{Error, Kind, Place, Result};

/// How many instructions one rendering may take. Real templates take some hundred for a message.
const FUEL: u64 = 10_000_000;
/// How much a template may print, captured text included.
const LONGEST: usize = 64 << 20;
/// How long a template may be; the longest known has some 20 KiB.
const LONGEST_TEMPLATE: usize = 1 << 20;

/// The characters that stand around a marked stretch: two that Unicode keeps free for such use.
pub(super) const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The templates of one file, each compiled twice: as it is, and with the assistant's words marked where the template
/// itself says where they are.
pub(super) struct Templates {
    environment: Environment<'static>,
    /// Whether a template has generation blocks.
    blocks: BTreeMap<String, bool>,
    /// The time that templates see, in seconds since 1970; the clock's if there is none.
    pub now: Option<i64>,
}

impl std::fmt::Debug for Templates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Templates").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl Templates {
    pub fn new(variables: &BTreeMap<&'static str, String>) -> Templates {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_recursion_limit(100);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(print);
        environment.add_filter("tojson", tojson);
        environment.add_filter("__words", |text: Value| text);
        environment.add_filter("__marked_words", |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        for (name, text) in variables {
            environment.add_global(*name, text.clone());
        }
        Templates { environment, blocks: BTreeMap::new(), now: None }
    }

    /// Compiles a template under a name.
    pub fn add(&mut self, name: &str, source: &str) -> Result<()> {
        if source.len() > LONGEST_TEMPLATE {
            return Err(Error::expected(Kind::Template, "length", "at most 1 MiB", source.len()));
        }
        let plain = replace_generation(source, "__words");
        let marked = replace_generation(source, "__marked_words");
        self.blocks.insert(name.to_string(), plain.is_some());
        let plain = plain.unwrap_or_else(|| source.to_string());
        self.environment.add_template_owned(name.to_string(), plain).map_err(failed)?;
        if let Some(marked) = marked {
            self.environment.add_template_owned(marked_name(name), marked).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the template says itself where the assistant's words are.
    pub fn has_blocks(&self, name: &str) -> bool {
        self.blocks.get(name).copied().unwrap_or(false)
    }

    /// The names of the templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.blocks.keys().map(String::as_str)
    }

    /// Renders the first `count` messages.
    pub fn render(
        &self,
        name: &str,
        talk: &Conversation,
        messages: &[Map<String, serde_json::Value>],
        generation_prompt: bool,
        marked: bool,
    ) -> Result<String> {
        let now = self.now.unwrap_or_else(clock);
        let mut variables = talk.variables.clone();
        // As Hugging Face passes them: absent ones are None, which templates tell from undefined.
        for key in ["tools", "documents"] {
            variables.entry(key).or_insert(serde_json::Value::Null);
        }
        if let Some(tools) = &talk.tools {
            variables.insert("tools".into(), tools.clone());
        }
        let own = context! {
            messages => Value::from_serialize(messages),
            add_generation_prompt => generation_prompt,
            strftime_now => Value::from_function(move |format: String| strftime(&format, now)),
        };
        let all = context! { ..own, ..Value::from_serialize(&variables) };
        let name = if marked { marked_name(name) } else { name.to_string() };
        let template = self.environment.get_template(&name).map_err(failed)?;
        let mut text = Limited(Vec::new());
        template.render_captured_to(all, &mut text).map_err(failed)?;
        String::from_utf8(text.0)
            .map_err(|_| Error::new(Kind::Internal, "a template rendered to broken text"))
    }
}

fn marked_name(name: &str) -> String {
    format!("{name}\u{0}marked")
}

fn clock() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
}

/// How much one rendering has printed.
#[derive(Debug, Default)]
struct Printed(AtomicUsize);

impl Object for Printed {}

/// Prints one value of a template.
fn print(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> std::result::Result<(), minijinja::Error> {
    let printed = state.get_or_set_temp_object("printed", Printed::default);
    let length = value.as_str().map_or(1, str::len);
    if printed.0.fetch_add(length, Ordering::Relaxed).saturating_add(length) > LONGEST {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, TOO_LONG));
    }
    escape_formatter(out, state, value)
}

const TOO_LONG: &str = "the text grows beyond 64 MiB";

/// Text that may not grow without end, for what is printed without being computed.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(io::Error::other(TOO_LONG));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The engine's error in our words, with the line of the template.
fn failed(error: minijinja::Error) -> Error {
    let mut text = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    let mut line = error.line();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
            line = inner.line().or(line);
        }
        source = inner.source();
    }
    let error = Error::new(Kind::Template, text);
    match line {
        Some(line) => error.at(Place::Line(line as u64)),
        None => error,
    }
}

/// Turns `{% generation %}…{% endgeneration %}`, which the engine does not know, into filter blocks, which treat white
/// space and scope in the same way. `None` if there are none.
fn replace_generation(source: &str, filter: &str) -> Option<String> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(open) = rest.find("{%") {
        let inside = &rest[open + 2..];
        let Some(close) = inside.find("%}") else { break };
        let tag = inside[..close].trim_matches(['-', '+']).trim();
        let new = match tag {
            "generation" => format!("filter {filter}"),
            "endgeneration" => "endfilter".to_string(),
            _ => {
                out.push_str(&rest[..open + 2]);
                rest = inside;
                continue;
            }
        };
        found = true;
        let (left, right) = inside[..close].split_once(tag).unwrap_or_default();
        out.push_str(&rest[..open + 2]);
        out.push_str(left);
        out.push_str(&new);
        out.push_str(right);
        rest = &inside[close..];
    }
    out.push_str(rest);
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let mut templates = Templates::new(&BTreeMap::from([("bos_token", "<s>".to_string())]));
        templates.now = Some(0);
        templates.add("t", source)?;
        let talk =
            Conversation::new(serde_json::json!([{"role": "user", "content": "hé<>&'\"\n", "n": [1, 2.0]}]))?;
        templates.render("t", &talk, talk.messages(), true, false)
    }

    #[test]
    fn python_habits() {
        for (source, text) in [
            ("{{ bos_token }}{{ messages[0]['content'].strip() | upper }}", "<s>HÉ<>&'\""),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "hé<>&'\"\n", "n": [1, 2.0]}"#),
            ("{{ messages[0].n | tojson(indent=2) }}", "[\n  1,\n  2.0\n]"),
            ("{{ messages[0].n | tojson(separators=(',', ':')) }}", "[1,2.0]"),
            ("{{ 'é' | tojson(ensure_ascii=true) }}", "\"\\u00e9\""),
            (
                "{{ tools is none }} {{ tools }} {{ x is defined }} {{ 1.0 }} {{ true }}",
                "True None False 1.0 True",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "01 Jan 1970"),
            ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),
            ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "0234"),
            ("a\n{%- generation %}\n b\n{% endgeneration -%}\n c", "a b\nc"),
        ] {
            assert_eq!(render(source).unwrap(), text, "{source}");
        }
    }

    #[test]
    fn failures_name_the_line() {
        for (source, line, words) in [
            ("\n{{ raise_exception('no system role') }}", 2, "no system role"),
            ("{% if %}", 1, "syntax error"),
            ("a\nb\n{{ x.y.z }}", 3, "undefined"),
            ("{{ 'a' | nosuch }}", 1, "nosuch"),
            ("{% generation %}", 1, "syntax error"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", 1, "fuel"),
            ("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", 1, "64 MiB"),
            (
                "{% set x = 'xxxxxxxx' %}{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(x=x) %}
                 {%- for i in range(40) %}{% set n.x = d(n.x) %}{% endfor %}",
                1,
                "64 MiB",
            ),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", 1, "recursion"),
        ] {
            let e = render(source).unwrap_err();
            assert_eq!(e.kind(), Kind::Template);
            assert!(e.to_string().contains(words), "{source}: {e}");
            assert_eq!(e.places(), [Place::Line(line)], "{source}: {e}");
        }
    }
}
