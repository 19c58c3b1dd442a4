//! `onlay chat`: a conversation in the terminal.

use super::options::{Kv, Machine, Sampling, Wear, weighted};
use super::{open, run, stop, terminal};
use anyhow::Result;
use onlay::engine::{Engine, Limits, Sampler, Session};
use onlay::model::Model;
use onlay::ops::Room;
use onlay::text::Chat;
use onlay::train::Flow;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

const HELP: &str = "\
/adapter PATH[=SCALE]   put this layer on instead of what is worn
/adapter off            take it off: the base answers
/reset                  begin again
/system TEXT            begin again, with this said first
/help  /quit            Ctrl-C cuts an answer short, Ctrl-D ends the conversation";

#[derive(clap::Args)]
pub struct Args {
    /// The base: a GGUF file, or the first of a split one
    model: PathBuf,
    #[command(flatten)]
    wear: Wear,
    /// What the system says first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of an answer; 0: until the model ends or the context is full
    #[arg(short = 'n', value_name = "N", default_value_t = 0)]
    tokens: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Positions of the conversation [default: the model's, up to 4096]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    kv: Kv,
}

struct Talk {
    args: Args,
    model: Arc<Model>,
    chat: Option<Chat>,
    context: usize,
    engine: Engine,
    session: Session,
    sampler: Sampler,
    /// Hidden numbers that the engine is planned for.
    room: Room,
    messages: Vec<Value>,
}

pub fn main(args: Args) -> Result<()> {
    let model = open::model(&args.model)?;
    let chat = run::chat_of(&model)?;
    let context = open::context(&model, args.ctx);
    let worn = open::worn(&model, &args.wear)?;
    let sampler = Sampler::new(args.sampling.choice(), model.program().vocabulary)?;
    let engine = open::engine(&model, &args.machine, &args.kv, context, &worn)?;
    let mut session = engine.session();
    session.wear(open::layer(&worn));
    let room = worn.as_ref().map_or(Room::default(), |w| w.room(model.program()));
    let system = args.system.clone();
    let messages = Vec::new();
    let mut talk = Talk { args, model, chat, context, engine, session, sampler, room, messages };
    talk.begin(system);
    // Says now, not after the first question, that there is no template.
    run::ask(&talk.model, talk.chat.as_ref(), json!([{"role": "user", "content": ""}]))?;
    stop::listen()?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        terminal::note("/help shows what else can be said; Ctrl-D ends.");
    }
    let mut line = String::new();
    loop {
        if terminal {
            terminal::now("> ")?;
        }
        line.clear();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        stop::forget();
        let said = line.trim();
        let done = match said.split_once(char::is_whitespace).unwrap_or((said, "")) {
            ("", _) => Ok(()),
            ("/quit" | "/exit", _) => return Ok(()),
            ("/help", _) => {
                terminal::note(HELP);
                Ok(())
            }
            ("/reset", _) => {
                let system = talk.args.system.clone();
                talk.begin(system);
                Ok(())
            }
            ("/system", text) => {
                talk.begin(Some(text.trim().to_owned()).filter(|t| !t.is_empty()));
                Ok(())
            }
            ("/adapter", path) => talk.wear(path.trim()),
            (command, _) if command.starts_with('/') => {
                Err(anyhow::anyhow!("{command}: no such command; /help lists them"))
            }
            _ => talk.say(said),
        };
        match done {
            // Whoever reads is gone.
            Err(e) if e.is::<std::io::Error>() => return Err(e),
            Err(e) => terminal::error(&format!("{e:#}")),
            Ok(()) => {}
        }
    }
}

impl Talk {
    fn begin(&mut self, system: Option<String>) {
        self.messages.clear();
        self.messages.extend(system.map(|s| json!({"role": "system", "content": s})));
        self.session.truncate(0);
    }

    /// Puts another layer on. The base stays where it is.
    fn wear(&mut self, path: &str) -> Result<()> {
        if path.is_empty() {
            anyhow::bail!("/adapter: expected PATH[=SCALE] or off");
        }
        let mut wear = Wear { adapters: Vec::new(), exact_base: self.args.wear.exact_base };
        if path != "off" {
            wear.adapters.push(weighted(path).map_err(anyhow::Error::msg)?);
        }
        let worn = open::worn(&self.model, &wear)?;
        let room = worn.as_ref().map_or(Room::default(), |w| w.room(self.model.program()));
        if !self.room.holds(room) {
            let Args { machine, kv, .. } = &self.args;
            self.engine = open::engine(&self.model, machine, kv, self.context, &worn)?;
            self.session = self.engine.session();
            self.room = room;
        }
        self.session.wear(open::layer(&worn));
        terminal::note(match path {
            "off" => "[the base answers]".into(),
            path => format!("[{path} is on]"),
        });
        Ok(())
    }

    fn say(&mut self, said: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": said}));
        match self.answer() {
            Ok(answer) => self.messages.push(json!({"role": "assistant", "content": answer})),
            Err(e) => {
                self.messages.pop(); // as if it had not been said
                return Err(e);
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let tokens = run::ask(&self.model, self.chat.as_ref(), self.messages.clone().into())?;
        // What was computed stays, as far as the template writes the same again.
        let same = self.session.tokens().iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        self.session.truncate(same);
        if tokens.len() >= self.context {
            anyhow::bail!(
                "the conversation has {} tokens and the context {}: /reset begins again, --ctx makes it longer",
                tokens.len(),
                self.context
            );
        }
        self.engine.append(&mut self.session, &tokens[same..])?;
        let limits = Limits { tokens: self.args.tokens, stop: self.args.sampling.stop.clone(), raw: false };
        let (mut answer, mut written) = (String::new(), Ok(()));
        self.engine.generate(&mut self.session, &mut self.sampler, &limits, &mut |text| {
            answer.push_str(text);
            written = terminal::now(text);
            if written.is_err() { Flow::Stop } else { stop::flow() }
        })?;
        written?;
        terminal::now("\n")?;
        Ok(answer)
    }
}
