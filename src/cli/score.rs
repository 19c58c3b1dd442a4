//! `onlay score`: the log-probability of each token of a text.

use super::options::{Kv, Machine, Wear};
use super::show::{Table, quoted};
use super::terminal::{json, line};
use super::tokens::{Ids, Special, ids};
use super::{open, text};
use anyhow::{Result, bail};
use onlay::eval::score;
use onlay::model::Model;
use std::ffi::OsString;
use std::path::PathBuf;

/// The log-probability of each token of a text
///
/// Natural logarithms of the probability of each token given those before it. Nothing comes before the first, which has
/// none.
///
/// JSON: {"tokens": [ids], "logprobs": [null, numbers]}
#[derive(clap::Args)]
pub struct Args {
    /// The model: a GGUF file
    model: PathBuf,
    #[command(flatten)]
    wear: Wear,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    special: Special,
    /// Positions to plan for [default: what the text needs, if the model knows as many]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ctx: Option<u32>,
    #[command(flatten)]
    kv: Kv,
    #[command(flatten)]
    machine: Machine,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text; its bytes are taken as they are
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<OsString>,
    /// Tokens instead of text
    #[arg(long, value_name = "IDS", value_parser = ids, conflicts_with_all = ["no_special", "parse_special"])]
    tokens: Option<Ids>,
    /// A file with the text, every byte of it taken as it is; - is stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub fn main(args: Args) -> Result<()> {
    let model = open::model(&args.model)?;
    let tokens = tokens(&args, &model)?;
    if tokens.is_empty() {
        bail!("there is nothing to score: the text has no tokens");
    }
    model.check_tokens(&tokens)?;
    let worn = open::worn(&model, &args.wear)?;
    // after the last token nothing is predicted, so it needs no position
    let need = (tokens.len() - 1).max(1);
    let context = args.ctx.map_or(need.min(model.program().context), |n| n as usize);
    if need > context {
        let (most, found) = (context + 1, tokens.len());
        bail!("length of the text: expected at most {most} tokens (--ctx {context}), found {found}");
    }
    let mut engine = open::engine(&model, &args.machine, &args.kv, context, &worn)?;
    let delta = worn.as_ref().and_then(|w| w.delta());
    let scores = score(engine.runner(), &tokens, delta)?;
    if args.json {
        json(&serde_json::json!({"tokens": tokens, "logprobs": scores}))?;
        return Ok(());
    }
    let mut table = Table::new(&[">#", ">id", ">logprob", "piece"]);
    for (i, (token, p)) in tokens.iter().zip(&scores).enumerate() {
        let piece = model.tokenizer().map_or_else(|_| String::new(), |t| quoted(t.piece(*token)));
        let p = p.map_or_else(|| "-".into(), |p| format!("{p:.6}"));
        table.row([i.to_string(), token.to_string(), p, piece]);
    }
    table.print(0)?;
    let (n, sum) = (scores.iter().flatten().count(), scores.iter().flatten().sum::<f64>());
    line("")?;
    if n > 0 {
        let perplexity = (-sum / n as f64).exp();
        line(format_args!("{n} tokens scored: log-probability {sum:.6}, perplexity {perplexity:.4}"))?;
    } else {
        line("no tokens scored: the first has nothing before it")?;
    }
    Ok(())
}

fn tokens(args: &Args, model: &Model) -> Result<Vec<u32>> {
    let bytes = match &args.input {
        Input { tokens: Some(Ids(tokens)), .. } => return Ok(tokens.clone()),
        Input { text: Some(text), .. } => text.as_encoded_bytes().to_vec(),
        Input { file: Some(path), .. } => text::read(path)?,
        _ => unreachable!("clap wants one of them"),
    };
    Ok(model.tokenizer()?.encode(&bytes, args.special.options()))
}
