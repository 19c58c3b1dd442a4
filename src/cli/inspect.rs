//! `onlay inspect`: what is in a file.

mod contents;
mod program;

use super::show::{Table, count, plain};
use super::terminal::{bytes, json, line, warn};
use anyhow::Result;
use contents::{Line, Report};
use serde_json::Value;
use std::path::PathBuf;

/// What is in a file
///
/// Reads models (also those cut into several files), files that only carry a vocabulary, adapters (GGUF or a PEFT
/// directory) and checkpoints of training runs. Nothing of the file is trusted: what a terminal would obey is written
/// out.
///
/// JSON: {"file", "kind": "model" | "vocabulary" | "adapter" | "checkpoint" | other, "bytes", "files", "identity",
/// "metadata", "tensors": [{"name", "type", "shape", "bytes"}], "program", "sites", "checkpoint"}; shapes are rows, then
/// columns; arrays of more than 16 are {"array": type, "len", "first"}
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file or a PEFT directory
    file: PathBuf,
    /// Show the steps of a model's program, segment by segment
    #[arg(long)]
    program: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn main(args: Args) -> Result<()> {
    let report = Report::of(&args.file, args.program || args.json)?;
    if let Some(warning) = &report.warning {
        warn(warning);
    }
    if args.json {
        json(&report.json())?;
        return Ok(());
    }
    show(&report)
}

fn show(report: &Report) -> Result<()> {
    let heads = &report.heads;
    let width = heads.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, text) in heads {
        line(format_args!("{key:<width$}  {}", plain(text)))?;
    }
    for (title, list) in &report.lists {
        line(format_args!("\n{title}"))?;
        let width = list.iter().map(|(key, _)| plain(key).chars().count()).max().unwrap_or(0);
        for (key, text) in list {
            line(format_args!("  {:<width$}  {text}", plain(key)))?;
        }
    }
    if !report.tensors.is_empty() {
        line(format_args!("\ntensors, {}", count(report.tensors.len() as u64)))?;
        let mut table = Table::new(&["name", "type", ">shape", ">bytes"]);
        for Line { name, kind, shape, bytes: n } in &report.tensors {
            table.row([plain(name), plain(kind), shown(shape), bytes(*n)]);
        }
        table.print(2)?;
        let mut kinds = Table::new(&["type", ">tensors", ">weights", ">bytes"]);
        for (kind, n, weights, size) in report.kinds() {
            kinds.row([plain(&kind), count(n), count(weights), bytes(size)]);
        }
        line("\ntypes")?;
        kinds.print(2)?;
    }
    if let Some(program) = &report.program {
        line("")?;
        program::show(program)?;
    }
    Ok(())
}

/// `2048 x 512`
fn shown(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// A JSON value on one line for people, cut where it is long.
fn brief(value: &Value) -> String {
    let text = match value {
        Value::String(text) => super::show::quoted_short(text.as_bytes(), 160),
        other => other.to_string(),
    };
    plain(&text)
}
