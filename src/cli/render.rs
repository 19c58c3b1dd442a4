//! `onlay render`: conversations as the model reads them, with roles and what is trained.

use super::show::{Table, count, quoted};
use super::terminal::{json, line};
use super::text;
use super::tokens::vocabulary;
use anyhow::{Context, Result, anyhow, bail};
use onlay::text::{Chat, Conversation, Rendered, Tokenizer, Turns};
use onlay::train::{Content, DAY, Rows};
use serde_json::Value;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Messages as the model reads them, with roles and what is trained
///
/// Writes conversations out with the model's own chat template, as training, run and chat do, and shows which message
/// every token belongs to and which tokens a model would be trained on (marked *). A template that asks for the date is
/// told 26 July 2024, as in training. A file with only a vocabulary is enough.
///
/// JSON, an object for every conversation: {"text", "tokens": [ids], "roles": [role or null for every token],
/// "trained": [bool for every token]}
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file with a chat template: a model, or only a vocabulary
    model: PathBuf,
    /// JSON: a list of messages, an object with "messages" (and "tools"), or rows of a data file, all of which are
    /// rendered; - is stdin
    #[arg(long, value_name = "FILE")]
    messages: PathBuf,
    /// The template to use, where the file has several
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// End where the assistant's next words begin
    #[arg(long)]
    generation_prompt: bool,
    /// Mark only the assistant's last turn as trained
    #[arg(long)]
    last_turn: bool,
    /// Print one JSON object per conversation
    #[arg(long)]
    json: bool,
}

pub fn main(args: Args) -> Result<()> {
    let (weights, tokenizer) = vocabulary(&args.model)?;
    let chat = Chat::from_metadata(weights.metadata(), &tokenizer).map_err(|e| e.in_file(&args.model))?;
    let mut chat = chat.ok_or_else(|| {
        anyhow!("{}: tokenizer.chat_template: missing; the model has no chat template", args.model.display())
    })?;
    chat.set_now(Some(DAY));
    if let Some(name) = &args.template {
        chat.choose(name)?;
    }
    let turns = if args.last_turn { Turns::Last } else { Turns::Every };
    let from = if args.messages == Path::new("-") { Path::new("stdin") } else { &args.messages };
    let talks = talks(from, &text::read(&args.messages)?)?;
    let several = talks.len() > 1;
    for (i, (row, talk)) in talks.iter().enumerate() {
        let rendered =
            render(&chat, &tokenizer, talk, turns, args.generation_prompt).with_context(|| match row {
                Some(row) => format!("{}: line {row}", from.display()),
                None => from.display().to_string(),
            })?;
        let roles: Vec<Option<&str>> =
            rendered.messages.iter().map(|m| m.and_then(|m| talk.role(m))).collect();
        if args.json {
            let tokens: Vec<u32> = rendered.tokens.iter().map(|t| t.id).collect();
            json(&serde_json::json!({
                "text": rendered.text, "tokens": tokens, "roles": roles, "trained": rendered.trainable,
            }))?;
            continue;
        }
        if several {
            line(format_args!("{}row {}", if i > 0 { "\n" } else { "" }, i + 1))?;
        }
        show(&rendered, &roles, &tokenizer)?;
    }
    Ok(())
}

/// The rendered conversation; with a prompt at its end, the part before that as it is rendered without one.
fn render(
    chat: &Chat,
    tokenizer: &Tokenizer,
    talk: &Conversation,
    turns: Turns,
    prompt: bool,
) -> onlay::Result<Rendered> {
    if !prompt {
        return chat.render(tokenizer, talk, turns);
    }
    let text = chat.text(talk, true)?;
    let tokens = chat.encode(tokenizer, &text);
    let (mut messages, mut trainable) = (vec![None; tokens.len()], vec![false; tokens.len()]);
    // A template may write a conversation that goes on differently; then only what is equal has known roles.
    if let Ok(whole) = chat.render(tokenizer, talk, turns) {
        let same = text.bytes().zip(whole.text.bytes()).take_while(|(a, b)| a == b).count();
        for (i, (a, b)) in tokens.iter().zip(&whole.tokens).enumerate() {
            if a != b || a.end > same {
                break;
            }
            (messages[i], trainable[i]) = (whole.messages[i], whole.trainable[i]);
        }
    }
    Ok(Rendered { text, tokens, messages, trainable })
}

/// Runs of tokens that belong together, a line each.
fn show(rendered: &Rendered, roles: &[Option<&str>], tokenizer: &Tokenizer) -> Result<()> {
    let Rendered { text, tokens, messages, trainable } = rendered;
    let mut table = Table::new(&["role", "trained", ">tokens", "text"]);
    let mut first = 0;
    let mut marked = vec![false];
    while first < tokens.len() {
        let same = |i: &usize| (messages[*i], trainable[*i]) == (messages[first], trainable[first]);
        let end = (first..tokens.len()).take_while(same).last().map_or(first + 1, |i| i + 1);
        let mut bytes = Vec::new();
        for token in &tokens[first..end] {
            // what begins a text may stand for nothing in it
            let written = &text.as_bytes()[token.start..token.end];
            bytes.extend_from_slice(if written.is_empty() { tokenizer.piece(token.id) } else { written });
        }
        let role = roles[first].map_or_else(|| "-".to_owned(), super::show::plain);
        let mark = if trainable[first] { "*" } else { "" };
        table.row([role, mark.into(), (end - first).to_string(), quoted(&bytes)]);
        marked.push(trainable[first]);
        first = end;
    }
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for (text, marked) in table.lines(0).iter().zip(&marked) {
        match colour && *marked {
            true => line(format_args!("\x1b[32m{text}\x1b[0m"))?,
            false => line(text)?,
        }
    }
    let (n, trained) = (tokens.len() as u64, trainable.iter().filter(|t| **t).count() as u64);
    line(format_args!("\n{} tokens, {} of them trained", count(n), count(trained)))?;
    Ok(())
}

/// The conversations in the bytes of a file, with their lines where it has rows.
fn talks(path: &Path, bytes: &[u8]) -> Result<Vec<(Option<u64>, Conversation)>> {
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Array(list)) if list.is_empty() => bail!("{}: there are no messages", path.display()),
        Ok(Value::Array(list)) if list.iter().all(|m| m.get("role").is_some()) => {
            Ok(vec![(None, one(Value::Array(list), None).map_err(|e| e.in_file(path))?)])
        }
        Ok(Value::Object(mut map)) if map.contains_key("messages") => {
            let tools = map.remove("tools").filter(|t| !t.is_null());
            let messages = map.remove("messages").unwrap_or_default();
            Ok(vec![(None, one(messages, tools).map_err(|e| e.in_file(path))?)])
        }
        _ => rows(path, bytes),
    }
}

fn one(messages: Value, tools: Option<Value>) -> onlay::Result<Conversation> {
    let mut talk = Conversation::new(messages)?;
    if talk.messages().is_empty() {
        return Err(onlay::Error::new(onlay::Kind::Data, "there are no messages"));
    }
    talk.tools = tools;
    Ok(talk)
}

fn rows(path: &Path, bytes: &[u8]) -> Result<Vec<(Option<u64>, Conversation)>> {
    let rows = Rows::parse(path, bytes, None)?;
    let name = rows.format.name();
    let talk = |row: onlay::train::Row| match row.content {
        Content::Chat(talk) => Ok((Some(row.line), talk)),
        _ => Err(anyhow!(
            "{}: line {}: expected a conversation (messages or conversations), found a row of the format {name}",
            path.display(),
            row.line
        )),
    };
    rows.rows.into_iter().map(talk).collect()
}
