//! Text from a session, token by token.

use super::sampler::Sampler;
use super::session::{Engine, Session};
use crate::error::Result;
use crate::text::{Stream, Tokenizer};
pub use crate::train::Flow;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model said so: an end-of-turn or end-of-text token.
    Model,
    /// A stop string.
    StopString,
    /// The limit on tokens.
    Length,
    /// The session's context is full.
    Context,
    /// The caller.
    Caller,
}

impl End {
    /// `stop`, `length`, `context` or `cancelled`.
    pub fn name(self) -> &'static str {
        match self {
            End::Model | End::StopString => "stop",
            End::Length => "length",
            End::Context => "context",
            End::Caller => "cancelled",
        }
    }
}

/// When to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most tokens; 0: until the model or the context ends it.
    pub tokens: usize,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Control tokens are part of the text, and the model's end tokens do not end it.
    pub raw: bool,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Its tokens, with the one that ended it.
    pub tokens: usize,
    /// Why it ended.
    pub end: End,
}

/// Holds text back while it could be the beginning of a stop string.
struct Hold<'a> {
    stop: &'a [String],
    held: String,
}

impl Hold<'_> {
    /// Adds text; gives what is certain, and whether a stop string came.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found =
            self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // The longest end of what is held that some stop string begins with stays.
        let begins = |from: usize| self.stop.iter().any(|s| s.starts_with(&self.held[from..]));
        let keep = self.held.char_indices().map(|(i, _)| i).find(|i| begins(*i)).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

impl Engine {
    /// Generates from where `session` stands; each piece of whole characters goes to `take`, which may stop it. What is
    /// generated becomes part of the session (an end token too, so that a conversation can go on behind it).
    ///
    /// # Errors
    /// As [`Engine::advance`] and [`Sampler::next`]; if logits are not numbers, the weights are searched for the reason.
    pub fn generate(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        limits: &Limits,
        take: &mut dyn FnMut(&str) -> Flow,
    ) -> Result<Generated> {
        let model = self.model().clone();
        let tokenizer: &Tokenizer = model.tokenizer()?;
        let mut stream = Stream::after(tokenizer, session.tokens(), limits.raw);
        let mut hold = Hold { stop: &limits.stop, held: String::new() };
        let mut n = 0;
        let end = loop {
            if limits.tokens > 0 && n == limits.tokens {
                break End::Length;
            }
            if session.tokens.len() >= self.runner.options().most_tokens(session.layer().map(|l| &**l)) {
                break End::Context;
            }
            let token = self.next(session, sampler)?;
            session.tokens.push(token);
            n += 1;
            if !limits.raw && tokenizer.is_end_of_generation(token) {
                break End::Model;
            }
            let (text, stopped) = hold.push(stream.push(token));
            if !text.is_empty() && take(&text) == Flow::Stop {
                break End::Caller;
            }
            if stopped {
                break End::StopString;
            }
        };
        if !matches!(end, End::Caller | End::StopString) {
            let (mut text, _) = hold.push(stream.finish());
            text.push_str(&hold.held);
            if !text.is_empty() {
                take(&text);
            }
        }
        Ok(Generated { tokens: n, end })
    }

    /// The next token of one session; the session does not have it yet.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn next(&mut self, session: &mut Session, sampler: &mut Sampler) -> Result<u32> {
        let mut token = Ok(0);
        // A copy, since the session is borrowed while it is computed.
        let mut last = [0u32; super::sampler::MOST_WINDOW];
        let window = sampler.choice().repeat_window.min(session.tokens.len());
        last[..window].copy_from_slice(&session.tokens[session.tokens.len() - window..]);
        self.advance(&mut [session], &mut |_, z| token = sampler.next(z, &last[..window]))?;
        token.map_err(|e| {
            let model = self.model();
            model.bound().first_not_finite(model.program()).unwrap_or(e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_shown() {
        let stop = ["END".to_owned(), "é!".to_owned()];
        let run = |pieces: &[&str]| {
            let mut hold = Hold { stop: &stop, held: String::new() };
            let mut out = String::new();
            for p in pieces {
                let (text, stopped) = hold.push(p);
                out.push_str(&text);
                if stopped {
                    return (out, true);
                }
            }
            out.push_str(&hold.held);
            (out, false)
        };
        assert_eq!(run(&["abEN", "Dcd"]), ("ab".into(), true));
        assert_eq!(run(&["E", "E", "N", "D"]), ("E".into(), true));
        assert_eq!(run(&["café", "s"]), ("cafés".into(), false));
        assert_eq!(run(&["café", "! more"]), ("caf".into(), true));
        assert_eq!(run(&["EN"]), ("EN".into(), false));
    }
}
