//! `onlay tokenize`: text to tokens, and back.

use super::show::quoted;
use super::terminal::{json, line, note};
use super::text::stdin;
use super::tokens::{Ids, Special, Text, ids, known, vocabulary};
use anyhow::Result;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Text to tokens, and back
///
/// Prints the ids on one line with spaces between them. Without --text and -f the text is read from stdin. The bytes
/// are taken as they are: nothing is trimmed, and they need not be UTF-8. A file with only a vocabulary is enough.
///
/// JSON: {"tokens": [ids]}; with --decode {"text": string}, and {"text": null, "bytes": [numbers]} where the bytes are no
/// UTF-8
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file: a model, or only a vocabulary
    model: PathBuf,
    #[command(flatten)]
    text: Text,
    /// Print what these tokens stand for, byte for byte with nothing added; with --no-special without control tokens
    #[arg(long, value_name = "IDS", value_parser = ids, conflicts_with_all = ["text", "file", "parse_special"])]
    decode: Option<Ids>,
    #[command(flatten)]
    special: Special,
    /// Print one token per line, with the text it stands for
    #[arg(long, conflicts_with_all = ["json", "decode"])]
    pieces: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn main(args: Args) -> Result<()> {
    let (_, tokenizer) = vocabulary(&args.model)?;
    if let Some(Ids(ids)) = &args.decode {
        known(ids, tokenizer.len())?;
        let bytes = tokenizer.decode(ids, !args.special.no_special);
        if args.json {
            let text = std::str::from_utf8(&bytes).ok();
            let mut object = serde_json::json!({ "text": text });
            if text.is_none() {
                object["bytes"] = bytes.into();
            }
            json(&object)?;
        } else {
            let mut out = std::io::stdout().lock();
            out.write_all(&bytes)?;
            out.flush()?;
        }
        return Ok(());
    }
    let bytes = match args.text.bytes()? {
        Some(bytes) => bytes,
        None => {
            if std::io::stdin().is_terminal() {
                note("reading the text from the terminal; Ctrl-D ends it");
            }
            stdin()?
        }
    };
    let tokens = tokenizer.encode(&bytes, args.special.options());
    if args.json {
        json(&serde_json::json!({ "tokens": tokens }))?;
    } else if args.pieces {
        let width = tokens.iter().max().map_or(0, |t| t.to_string().len());
        for token in tokens {
            line(format_args!("{token:>width$}  {}", quoted(tokenizer.piece(token))))?;
        }
    } else {
        let words: Vec<String> = tokens.iter().map(u32::to_string).collect();
        line(words.join(" "))?;
    }
    Ok(())
}
