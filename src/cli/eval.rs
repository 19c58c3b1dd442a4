//! `onlay eval`: how well a model predicts a text, or the trained tokens of a data file.

use super::options::{Kv, Machine, Wear};
use super::show::count;
use super::terminal::{Progress, duration, json, line};
use super::{Usage, open, stop, text};
use anyhow::{Result, bail};
use onlay::Kind;
use onlay::adapter::Worn;
use onlay::eval::{Perplexity, Windows, perplexity, score};
use onlay::model::Model;
use onlay::text::Encode;
use onlay::train::{Encoder, Flow, Long, Rows};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Positions of a window unless told.
const WINDOW: usize = 512;

/// Measure a model on a text
///
/// --perplexity reads a text through windows of --ctx tokens; figures are comparable only for the same text, tokenizer,
/// windows and stride, all of which are printed. --data takes the rows of a data file as `train` reads them, and gives
/// the mean loss over their trained tokens: the loss that training with this file as evaluation data would show.
///
/// JSON: {"perplexity", "nll", "error", "tokens", "windows", "ctx", "stride", "kv", "seconds"}; with --data {"loss",
/// "perplexity", "tokens", "rows", "sequences", "truncated", "kv", "seconds"}
#[derive(clap::Args)]
pub struct Args {
    /// The model: a GGUF file
    model: PathBuf,
    #[command(flatten)]
    wear: Wear,
    #[command(flatten)]
    what: What,
    /// Tokens of a window [default: 512]; with --data the longest row allowed [default: what the model knows, up to 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    ctx: Option<u32>,
    /// Tokens between the beginnings of two windows; every token is counted once, with at least ctx - stride before it
    /// [default: half the window]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "data")]
    stride: Option<u32>,
    /// Count as llama.cpp does: whole windows side by side, only the second half of each
    #[arg(long, conflicts_with_all = ["stride", "data"])]
    halves: bool,
    /// With --data: cut longer rows off instead of refusing them
    #[arg(long, requires = "data")]
    truncate: bool,
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
struct What {
    /// Perplexity of the text in this file; - is stdin
    #[arg(long, value_name = "FILE")]
    perplexity: Option<PathBuf>,
    /// Mean loss over the trained tokens of this data file
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    // there are no suites yet; who asks for one is told
    #[arg(long, value_name = "SUITE", hide = true)]
    task: Option<String>,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(task) = &args.what.task {
        let text =
            format!("--task {task}: task suites are not supported yet; there are --perplexity and --data");
        return Err(onlay::Error::new(Kind::Unsupported, text).into());
    }
    if let (Some(stride), ctx) = (args.stride, args.ctx.unwrap_or(WINDOW as u32))
        && stride >= ctx
    {
        return Err(
            Usage(format!("--stride: expected at most {}, --ctx less 1, found {stride}", ctx - 1)).into()
        );
    }
    let model = open::model(&args.model)?;
    let worn = open::worn(&model, &args.wear)?;
    stop::listen()?;
    match &args.what {
        What { perplexity: Some(path), .. } => of_text(&args, &model, &worn, path),
        What { data: Some(path), .. } => of_data(&args, &model, &worn, path),
        _ => unreachable!("clap wants one of them"),
    }
}

fn of_text(args: &Args, model: &Arc<Model>, worn: &Option<Arc<Worn>>, path: &Path) -> Result<()> {
    let tokenizer = model.tokenizer()?;
    let text = text::read(path)?;
    let tokens = tokenizer.encode(&text, Encode { special: true, parse_special: false });
    let least = 2 + usize::from(tokenizer.adds_bos());
    if tokens.len() < least {
        bail!("{}: expected a text of at least 2 tokens, found {} bytes", path.display(), text.len());
    }
    let mut context = args.ctx.map_or(WINDOW.min(model.program().context), |n| n as usize);
    let windows = if args.halves {
        Windows::Halves
    } else {
        // a text that is shorter than a window is one window
        context = context.min(tokens.len());
        let stride = args.stride.map_or(context / 2, |n| n as usize);
        Windows::Sliding { stride: stride.clamp(1, context - 1) }
    };
    let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut engine = open::engine(model, &args.machine, &args.kv, context, worn)?;
    let (mut shown, start) = (Progress::new(), Instant::now());
    let delta = worn.as_ref().and_then(|w| w.delta());
    let done = perplexity(engine.runner(), &tokens, context, windows, begin, delta, &mut |done, of, nll| {
        shown.show(|| {
            let left = duration(start.elapsed().as_secs_f64() * (of - done) as f64 / done as f64);
            format!("window {done} of {of}, perplexity {:.4}, {left} left", nll.exp())
        });
        stop::flow()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    drop(shown);
    let Perplexity { perplexity, nll, error, tokens, windows: n } = done;
    let stride = if let Windows::Sliding { stride } = windows { Some(stride) } else { None };
    if args.json {
        super::terminal::json(&json!({
            "perplexity": perplexity, "nll": nll, "error": error, "tokens": tokens, "windows": n,
            "ctx": context, "stride": stride, "halves": args.halves, "kv": args.kv.kv.name(), "seconds": seconds,
        }))?;
        return Ok(());
    }
    line(format_args!("perplexity  {perplexity:.4} ± {error:.4}"))?;
    line(format_args!("nll         {nll:.6} nats a token"))?;
    let how = stride.map_or("the second halves of each, as llama.cpp".to_owned(), |s| format!("stride {s}"));
    let windows = if n == 1 { "window" } else { "windows" };
    line(format_args!("counted     {} tokens in {n} {windows} of {context}, {how}", count(tokens as u64)))?;
    line(format_args!("time        {}, {:.1} tokens/s", duration(seconds), tokens as f64 / seconds))?;
    Ok(())
}

fn of_data(args: &Args, model: &Arc<Model>, worn: &Option<Arc<Worn>>, path: &Path) -> Result<()> {
    let rows = Rows::read(path, None)?;
    let chat = Encoder::chat_of(model)?;
    let context = open::context(model, args.ctx.map(|n| n as usize));
    let long = if args.truncate { Long::Truncate } else { Long::Refuse };
    let encoder = Encoder { long, ..Encoder::new(model, chat.as_ref(), context) };
    let set = encoder.encode(&rows, &mut |_, _| stop::flow())?;
    let facts = set.facts();
    let mut engine =
        open::engine(model, &args.machine, &args.kv, facts.longest.saturating_sub(1).max(1), worn)?;
    let (mut shown, start) = (Progress::new(), Instant::now());
    let delta = worn.as_ref().and_then(|w| w.delta());
    let (mut loss, mut n, mut read) = (0.0, 0usize, 0usize);
    for (i, example) in set.examples.iter().enumerate() {
        if stop::flow() == Flow::Stop {
            return Err(onlay::Error::new(Kind::Cancelled, "stopped while rows were evaluated").into());
        }
        let scores = score(engine.runner(), &example.tokens, delta)?;
        for (p, _) in scores.iter().zip(&example.trained).filter(|(_, trained)| **trained) {
            (loss, n) = (loss - p.unwrap_or(0.0), n + usize::from(p.is_some()));
        }
        read += example.tokens.len();
        shown.show(|| {
            let left = duration(start.elapsed().as_secs_f64() * (facts.tokens - read) as f64 / read as f64);
            format!("row {} of {}, loss {:.4}, {left} left", i + 1, facts.examples, loss / n.max(1) as f64)
        });
    }
    let (loss, seconds) = (loss / n.max(1) as f64, start.elapsed().as_secs_f64());
    drop(shown);
    if args.json {
        json(&json!({
            "loss": loss, "perplexity": loss.exp(), "tokens": n, "rows": facts.rows, "sequences": facts.examples,
            "truncated": facts.truncated, "kv": args.kv.kv.name(), "seconds": seconds,
        }))?;
        return Ok(());
    }
    line(format_args!("loss        {loss:.6} nats a trained token"))?;
    line(format_args!("perplexity  {:.4}", loss.exp()))?;
    let (rows, all) = (count(facts.rows as u64), count(facts.tokens as u64));
    let cut = if facts.truncated > 0 { format!(", {} rows cut off", facts.truncated) } else { String::new() };
    line(format_args!("counted     {} trained of {all} tokens in {rows} rows{cut}", count(n as u64)))?;
    line(format_args!("time        {}, {:.1} tokens/s", duration(seconds), read as f64 / seconds))?;
    Ok(())
}
