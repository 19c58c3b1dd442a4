//! Rows as tokens, with what is trained of them.

use crate::cli::show::{count, plain};
use crate::cli::terminal::{line, warn};
use anyhow::Result;
use onlay::model::Model;
use onlay::text::Tokenizer;
use onlay::train::{Example, Rows, Set};
use std::io::IsTerminal;
use std::path::Path;

/// How many rows are named in a warning.
const NAMED: usize = 5;

/// The first `most` sequences of a set, and counts over all of them.
pub fn show(name: &str, set: &Set, model: &Model, most: usize) -> Result<()> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let tokenizer = model.tokenizer().ok();
    for (example, origin) in set.examples.iter().zip(&set.origins).take(most) {
        let end = match tokenizer.map(|t| example.ends_with(|id| t.is_end_of_generation(id))) {
            Some(true) => "; the end of the turn is trained",
            Some(false) => "; no end of a turn at its end",
            None => "",
        };
        let cut = if origin.lost > 0 { format!(", {} cut off", origin.lost) } else { String::new() };
        let (tokens, trained) = (example.tokens.len(), example.count());
        line(format_args!("{name} row {}: {tokens} tokens{cut}, {trained} trained{end}", origin.row + 1))?;
        if colour {
            coloured(example, tokenizer)?
        } else {
            marked(example, tokenizer)?
        }
        line("")?;
    }
    let facts = set.facts();
    let ended = tokenizer.map(|t| facts.rows - set.open_ended(|id| t.is_end_of_generation(id)).len());
    let ended =
        ended.map_or(String::new(), |n| format!("; {} of them end with the end of a turn", count(n as u64)));
    line(format_args!(
        "{name}: {} rows, {} tokens, {} of them trained{ended}",
        count(facts.rows as u64),
        count(facts.tokens as u64),
        count(facts.trained as u64),
    ))?;
    Ok(())
}

/// Rows that do not teach the model to stop are said before the run.
pub fn warn_of_open_ends(path: &Path, rows: &Rows, set: &Set, model: &Model) {
    let Ok(tokenizer) = model.tokenizer() else { return };
    let open = set.open_ended(|id| tokenizer.is_end_of_generation(id));
    if open.is_empty() {
        return;
    }
    let lines: Vec<String> = open.iter().take(NAMED).map(|row| rows.rows[*row].line.to_string()).collect();
    warn(format_args!(
        "{}: {} of {} rows do not end with a trained end of turn: nothing in them teaches the model to stop (line {}{})",
        path.display(),
        open.len(),
        rows.rows.len(),
        lines.join(", "),
        if open.len() > NAMED { ", …" } else { "" }
    ));
}

/// A token as text that a terminal does not obey.
fn word(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    let Some(tokenizer) = tokenizer else { return id.to_string() };
    let piece = tokenizer.piece(id);
    let bytes = if piece.is_empty() { tokenizer.name(id) } else { piece };
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(&plain(chunk.valid()));
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out
}

/// Trained tokens in green, others grey; neighbours differ a little, so that tokens can be told apart.
fn coloured(example: &Example, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let mut text = String::new();
    for (i, (id, trained)) in example.tokens.iter().zip(&example.trained).enumerate() {
        let colour = match (trained, i % 2) {
            (true, 0) => "1;32",
            (true, _) => "32",
            (false, 0) => "2",
            (false, _) => "2;3",
        };
        text.push_str(&format!("\x1b[{colour}m{}\x1b[0m", word(tokenizer, *id)));
    }
    Ok(line(text)?)
}

/// Runs of tokens, a line each, dots between them; those that are trained begin with a star.
fn marked(example: &Example, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let mut first = 0;
    while first < example.tokens.len() {
        let trained = example.trained[first];
        let len = example.trained[first..].iter().take_while(|t| **t == trained).count();
        let words: Vec<_> =
            example.tokens[first..first + len].iter().map(|id| word(tokenizer, *id)).collect();
        line(format_args!("  {} {}", if trained { '*' } else { ' ' }, words.join("·")))?;
        first += len;
    }
    Ok(())
}
