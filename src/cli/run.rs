//! `onlay run`: one text and what follows it.

use super::options::{Kv, Machine, Sampling, Wear};
use super::{open, stop, terminal, text};
use anyhow::Result;
use onlay::engine::{End, Limits, Sampler};
use onlay::model::Model;
use onlay::text::{Chat, Conversation, Encode};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// The base: a GGUF file, or the first of a split one
    model: PathBuf,
    #[command(flatten)]
    wear: Wear,
    #[command(flatten)]
    prompt: Prompt,
    /// The most tokens to write; 0: until the model ends or the context is full
    #[arg(short = 'n', value_name = "N", default_value_t = 256)]
    tokens: usize,
    /// The text is what a user says: use the model's chat template
    #[arg(long)]
    chat: bool,
    /// What the system says before it (with --chat)
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Control tokens written in the text become those tokens (without --chat)
    #[arg(long, conflicts_with = "chat")]
    parse_special: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// Positions: the text and what follows [default: the model's, up to 4096]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    kv: Kv,
    /// One JSON object at the end instead of text as it comes
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// The text
    #[arg(short = 'p', value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// A file with the text; - is stdin
    #[arg(short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Prompt {
    fn bytes(self) -> Result<Vec<u8>> {
        match (self.text, self.file) {
            (Some(text), _) => Ok(text.into_bytes()),
            (_, file) => text::read(&file.expect("clap wants one of them")),
        }
    }
}

/// What a user says, as the tokens that the model answers after.
pub fn ask(model: &Model, chat: Option<&Chat>, messages: Value) -> onlay::Result<Vec<u32>> {
    let tokenizer = model.tokenizer()?;
    let chat = chat.ok_or_else(|| {
        onlay::Error::new(onlay::Kind::Unsupported, "the model has no chat template")
            .in_file(model.weights().path())
    })?;
    let text = chat.text(&Conversation::new(messages)?, true)?;
    Ok(chat.encode(tokenizer, &text).into_iter().map(|t| t.id).collect())
}

/// The model's chat template.
pub fn chat_of(model: &Model) -> onlay::Result<Option<Chat>> {
    Chat::from_metadata(model.weights().metadata(), model.tokenizer()?)
        .map_err(|e| e.in_file(model.weights().path()))
}

pub fn main(args: Args) -> Result<()> {
    let said = args.prompt.bytes()?;
    let model = open::model(&args.model)?;
    let tokens = if args.chat {
        let mut messages: Vec<Value> = Vec::new();
        messages.extend(args.system.map(|s| json!({"role": "system", "content": s})));
        messages.push(json!({"role": "user", "content": text::utf8(said, "the text")?}));
        ask(&model, chat_of(&model)?.as_ref(), messages.into())?
    } else {
        let how = Encode { special: true, parse_special: args.parse_special };
        model.tokenizer()?.encode(&said, how)
    };
    let worn = open::worn(&model, &args.wear)?;
    let context = open::context(&model, args.ctx);
    let mut sampler = Sampler::new(args.sampling.choice(), model.program().vocabulary)?;
    let mut engine = open::engine(&model, &args.machine, &args.kv, context, &worn)?;
    let mut session = engine.session();
    session.wear(open::layer(&worn));
    engine.append(&mut session, &tokens)?;
    stop::listen()?;
    let limits = Limits { tokens: args.tokens, stop: args.sampling.stop.clone(), raw: false };
    let (mut all, mut written) = (String::new(), Ok(()));
    let begun = Instant::now();
    let mut first = None;
    let done = engine.generate(&mut session, &mut sampler, &limits, &mut |text| {
        first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
        if args.json {
            all.push_str(text);
        } else {
            written = terminal::now(text);
        }
        if written.is_err() { onlay::train::Flow::Stop } else { stop::flow() }
    })?;
    written?;
    let all_seconds = begun.elapsed().as_secs_f64();
    let first = first.unwrap_or(all_seconds);
    // The first token comes with the prompt; the others are what a token costs.
    let speed = done.tokens.saturating_sub(1) as f64 / (all_seconds - first).max(1e-9);
    if args.json {
        let speed = (done.tokens > 1).then_some(speed);
        terminal::json(&json!({
            "text": all,
            "prompt_tokens": tokens.len(),
            "tokens": done.tokens,
            "end": done.end.name(),
            "seconds_to_first": first,
            "tokens_per_second": speed,
        }))?;
    } else {
        terminal::now("\n")?;
        if std::io::stderr().is_terminal() {
            let n = done.tokens;
            terminal::note(format_args!(
                "[{} + {n} tokens, first after {first:.2} s, then {speed:.1} tok/s]",
                tokens.len()
            ));
        }
    }
    if done.end == End::Caller && stop::asked() {
        anyhow::bail!("stopped by Ctrl-C after {} tokens", done.tokens);
    }
    Ok(())
}
