//! The same prompts with and without a layer.

use super::options::{Kv, Machine};
use super::{open, run, stop, terminal, text};
use anyhow::Result;
use onlay::adapter::Worn;
use onlay::engine::{Choice, Limits, Sampler};
use onlay::model::Model;
use onlay::text::Encode;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Columns of shown text.
const COLUMNS: usize = 96;

/// `NAME.prompts.txt` beside a data file `NAME.…`, if it is there.
pub fn beside(data: &Path) -> Option<PathBuf> {
    Some(data.with_extension("prompts.txt")).filter(|p| p.is_file())
}

/// The prompts of a file: one a line, empty lines are none.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let all = text::utf8(text::read(path)?, &path.display().to_string())?;
    Ok(all.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect())
}

/// A prompt and two answers.
pub struct Sample {
    pub prompt: String,
    pub without: String,
    pub with: String,
}

impl Sample {
    pub fn json(&self) -> Value {
        json!({"prompt": self.prompt, "without": self.without, "with": self.with})
    }

    pub fn show(&self) -> Result<()> {
        terminal::line(format_args!("\n> {}", self.prompt))?;
        for (name, answer) in [("without", &self.without), ("with", &self.with)] {
            for (i, line) in wrapped(answer, COLUMNS - 12).iter().enumerate() {
                terminal::line(format_args!("  {:8}  {line}", if i == 0 { name } else { "" }))?;
            }
        }
        Ok(())
    }
}

/// Answers of at most `tokens` tokens, drawn as `run` draws them. The template is used where the model has one.
pub fn take(
    model: &Arc<Model>,
    worn: &Arc<Worn>,
    prompts: &[String],
    tokens: usize,
    machine: &Machine,
    kv: &Kv,
) -> Result<Vec<Sample>> {
    let chat = run::chat_of(model)?;
    let tokenizer = model.tokenizer()?;
    let asked = prompts
        .iter()
        .map(|p| match &chat {
            Some(_) => run::ask(model, chat.as_ref(), json!([{"role": "user", "content": p}])),
            None => Ok(tokenizer.encode(p.as_bytes(), Encode { special: true, parse_special: false })),
        })
        .collect::<onlay::Result<Vec<_>>>()?;
    let longest = asked.iter().map(Vec::len).max().unwrap_or(0);
    let worn = Some(Arc::clone(worn));
    let mut engine = open::engine(model, machine, kv, longest + tokens, &worn)?;
    let limits = Limits { tokens, ..Limits::default() };
    let mut samples = Vec::new();
    for (prompt, asked) in prompts.iter().zip(&asked) {
        let mut answers = [String::new(), String::new()];
        for (answer, layer) in answers.iter_mut().zip([None, open::layer(&worn)]) {
            // A fresh draw for each, so that an answer does not depend on those before it.
            let mut sampler = Sampler::new(Choice::default(), model.program().vocabulary)?;
            let mut session = engine.session();
            session.wear(layer);
            engine.append(&mut session, asked)?;
            engine.generate(&mut session, &mut sampler, &limits, &mut |text| {
                answer.push_str(text);
                stop::flow()
            })?;
            engine.close(session);
        }
        let [without, with] = answers;
        samples.push(Sample { prompt: prompt.clone(), without, with });
        if stop::asked() {
            break;
        }
    }
    Ok(samples)
}

/// Lines of at most `columns` characters, broken between words.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push(word.into());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_between_words() {
        assert_eq!(wrapped("one two\n three", 7), ["one two", "three"]);
        assert_eq!(wrapped("longer-than-that x", 4), ["longer-than-that", "x"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
