//! Where each message stands in a rendered conversation, and which tokens the assistant would have produced.
//!
//! The template is a program and says nothing about its output, so places are proved, by one of three proofs:
//!
//! 1. The template marks the assistant's words itself, with `{% generation %}` blocks: they are rendered once more with
//!    marks around them, and without the marks the text must be the same.
//! 2. Rendering is additive: the conversation up to a message, rendered alone, is how the whole text begins. Then a
//!    message stands between two such beginnings, and the assistant's words begin where the beginning with the
//!    generation prompt ends.
//! 3. Marks put around a message's content come out once each, and without them the text is the same.
//!
//! Where none holds, the template rewrote what was said, and the conversation is refused.

use std::ops::Range;

use serde_json::{Map, Value};

use super::template::MARKS;
use super::{Chat, Conversation, Rendered, Turns};
use crate::error::{Error, Kind, Result};
use crate::text::{TokenKind, TokenSpan, Tokenizer};

pub(super) fn render(
    chat: &Chat,
    tokenizer: &Tokenizer,
    talk: &Conversation,
    turns: Turns,
) -> Result<Rendered> {
    let text = chat.text(talk, false)?;
    let tokens = chat.encode(tokenizer, &text);
    let places = Places::new(chat, talk, &text);
    let spans = match blocks(chat, talk, &text)? {
        Some(spans) if turns == Turns::Every => spans,
        Some(spans) => spans.into_iter().next_back().into_iter().collect(),
        None => {
            let mut spoken = (0..talk.messages.len()).filter(|&i| talk.role(i) == Some("assistant"));
            let learned: Vec<usize> = match turns {
                Turns::Every => spoken.collect(),
                Turns::Last => spoken.next_back().into_iter().collect(),
            };
            learned.into_iter().map(|i| places.words(i)).collect::<Result<_>>()?
        }
    };
    let mut trainable = vec![false; tokens.len()];
    for span in spans {
        for token in learned(tokenizer, &text, &tokens, span) {
            trainable[token] = true;
        }
    }
    let messages = places.messages(&tokens);
    Ok(Rendered { text, tokens, messages, trainable })
}

/// The words that the template's own blocks mark, if it has any.
fn blocks(chat: &Chat, talk: &Conversation, text: &str) -> Result<Option<Vec<Range<usize>>>> {
    if !chat.templates.has_blocks(&chat.name) {
        return Ok(None);
    }
    let marked = chat.write(talk, &talk.messages, false, true)?;
    match unmark(&marked) {
        Some((plain, spans)) if plain == text => Ok(Some(spans).filter(|spans| !spans.is_empty())),
        _ => Err(Error::new(
            Kind::Template,
            "its generation blocks cannot be followed: the text in them is changed after they end",
        )),
    }
}

/// The tokens of one turn that are learned: those within `span` up to the first that ends a generation, which may
/// also follow after white space.
fn learned(tokenizer: &Tokenizer, text: &str, tokens: &[TokenSpan], span: Range<usize>) -> Range<usize> {
    let mut first = tokens.partition_point(|t| t.start < span.start);
    // The token that begins a text is never said.
    while tokens.get(first).is_some_and(|t| t.start == t.end && tokenizer.kind(t.id) == TokenKind::Control) {
        first += 1;
    }
    let mut end = first;
    while let Some(token) = tokens.get(end) {
        let ends = tokenizer.is_end_of_generation(token.id);
        let inside = token.end <= span.end && token.start < span.end;
        if ends && (inside || gap(text, span.end, token.start)) {
            return first..end + 1;
        }
        if !inside {
            break;
        }
        end += 1;
    }
    // The end of the turn may stand behind white space that is not the assistant's.
    let mut behind = end;
    while let Some(token) = tokens.get(behind).filter(|token| gap(text, span.end, token.start)) {
        if tokenizer.is_end_of_generation(token.id) {
            return first..behind + 1;
        }
        behind += 1;
    }
    first..end
}

/// Whether there is nothing but white space between two places.
fn gap(text: &str, from: usize, to: usize) -> bool {
    from <= to && text.get(from..to).is_some_and(|between| between.trim().is_empty())
}

/// What can be proved about the places of messages.
struct Places<'a> {
    chat: &'a Chat,
    talk: &'a Conversation,
    text: &'a str,
    /// `ends[i]`: where the first `i` messages end, if rendering is additive there.
    ends: Vec<Option<usize>>,
}

impl<'a> Places<'a> {
    fn new(chat: &'a Chat, talk: &'a Conversation, text: &'a str) -> Self {
        let n = talk.messages.len();
        let mut places = Places { chat, talk, text, ends: Vec::with_capacity(n + 1) };
        for count in 0..n {
            places.ends.push(places.beginning(count, false));
        }
        places.ends.push(Some(text.len()));
        places
    }

    /// Where the first `count` messages end, if they are how the whole text begins. What the template appends at the
    /// end of every text, which may be the end token, does not count.
    fn beginning(&self, count: usize, generation_prompt: bool) -> Option<usize> {
        // Templates may refuse parts of a conversation; then this proof is not to be had.
        let part = self.chat.write(self.talk, &self.talk.messages[..count], generation_prompt, false).ok()?;
        if self.text.starts_with(&part) {
            return Some(part.len());
        }
        let shorter = part.strip_suffix(self.chat.eos.as_str()).filter(|_| !self.chat.eos.is_empty())?;
        self.text.starts_with(shorter).then_some(shorter.len())
    }

    /// The assistant's words in a message.
    fn words(&self, message: usize) -> Result<Range<usize>> {
        let start = self.beginning(message, true);
        if let (Some(start), Some(end)) = (start, self.ends[message + 1])
            && start <= end
        {
            return Ok(start..end);
        }
        self.content(message).ok_or_else(|| {
            Error::new(
                Kind::Template,
                format!(
                    "message {message}, which the assistant said, is written differently in the whole conversation, \
                     so its words cannot be located; train on the last turn only, or split the conversation"
                ),
            )
        })
    }

    /// The place of a message's content, by marks around it: with the white space at its ends, or, for templates
    /// that trim it, without.
    fn content(&self, message: usize) -> Option<Range<usize>> {
        [false, true].into_iter().find_map(|trimmed| {
            let mut messages = self.talk.messages.clone();
            mark(&mut messages[message], trimmed)?;
            let marked = self.chat.write(self.talk, &messages, false, false).ok()?;
            let (plain, spans) = unmark(&marked)?;
            match spans.as_slice() {
                [span] if plain == self.text => Some(span.clone()),
                _ => None,
            }
        })
    }

    /// The message of each token.
    fn messages(&self, tokens: &[TokenSpan]) -> Vec<Option<usize>> {
        let mut places = Vec::new();
        let mut last = 0;
        for message in 0..self.talk.messages.len() {
            let place = match (self.ends[message], self.ends[message + 1]) {
                (Some(start), Some(end)) if start <= end => Some(start..end),
                _ => self.content(message),
            };
            if let Some(place) = place.filter(|place| place.start >= last) {
                last = place.end;
                places.push((message, place));
            }
        }
        let of = |token: &TokenSpan| {
            let at = places.partition_point(|(_, place)| place.end <= token.start);
            let (message, place) = places.get(at)?;
            (place.start <= token.start).then_some(*message)
        };
        tokens.iter().map(of).collect()
    }
}

/// Puts marks around a message's text, if `trimmed` within the white space at its ends.
fn mark(message: &mut Map<String, Value>, trimmed: bool) -> Option<()> {
    let around = |text: &str| {
        let inner = if trimmed { text.trim() } else { text };
        let start = if trimmed { text.len() - text.trim_start().len() } else { 0 };
        let end = start + inner.len();
        (!inner.is_empty())
            .then(|| format!("{}{}{inner}{}{}", &text[..start], MARKS[0], MARKS[1], &text[end..]))
    };
    match message.get_mut("content")? {
        Value::String(text) => *text = around(text)?,
        Value::Array(parts) => {
            let mut texts = parts.iter_mut().filter_map(|part| part.get_mut("text"));
            let Some(Value::String(text)) = texts.next() else { return None };
            if texts.next().is_some() {
                return None;
            }
            *text = around(text)?;
        }
        _ => return None,
    }
    Some(())
}

/// The text without marks and the stretches that were between them; `None` if they are not in pairs.
fn unmark(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut plain = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut open = None;
    for c in marked.chars() {
        if c == MARKS[0] && open.is_none() {
            open = Some(plain.len());
        } else if c == MARKS[1] {
            spans.push(open.take()?..plain.len());
        } else if c == MARKS[0] {
            return None;
        } else {
            plain.push(c);
        }
    }
    open.is_none().then_some((plain, spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_off_in_pairs() {
        let [a, b] = MARKS;
        assert_eq!(unmark(&format!("x{a}yz{b} {a}{b}")), Some(("xyz ".into(), vec![1..3, 4..4])));
        for bad in [format!("{a}"), format!("{b}"), format!("{a}{a}{b}{b}")] {
            assert_eq!(unmark(&bad), None);
        }
    }

    #[test]
    fn marks_stand_inside_white_space() {
        let mut message = serde_json::json!({"content": " a b\n"}).as_object().unwrap().clone();
        mark(&mut message, true).unwrap();
        assert_eq!(message["content"], " \u{fdd0}a b\u{fdd1}\n");
        message["content"] = " ".into();
        assert!(mark(&mut message, true).is_none());
        mark(&mut message, false).unwrap();
        assert_eq!(message["content"], "\u{fdd0} \u{fdd1}");
    }
}
