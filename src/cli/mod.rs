//! The command line: a face over the library's public parts, one file per command.
//!
//! Results go to stdout (with `--json` as JSON, one object or one per line), everything else to stderr. Exit codes:
//! 0 done, 1 failed or stopped, 2 bad usage.

mod adapter;
mod bench;
mod chat;
mod eval;
mod inspect;
mod open;
mod options;
mod quantize;
mod render;
mod run;
mod samples;
mod score;
mod show;
mod stop;
mod terminal;
mod text;
mod tokenize;
mod tokens;
mod train;

use clap::{Parser, Subcommand};
use std::io::ErrorKind;
use std::process::ExitCode;

/// Serves and trains over one memory-mapped, quantized GGUF base.
#[derive(Parser)]
#[command(name = "onlay", version, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// A line here would hide the longer description that a command's `Args` has.
#[derive(Subcommand)]
enum Command {
    /// Continue a text, or answer once
    Run(run::Args),
    /// Talk; /adapter PATH|off swaps the layer without reloading
    Chat(chat::Args),
    /// Train a layer over a base
    Train(Box<train::Args>),
    Score(score::Args),
    Tokenize(tokenize::Args),
    Render(render::Args),
    Eval(eval::Args),
    Inspect(inspect::Args),
    Adapter(adapter::Args),
    Quantize(quantize::Args),
    Bench(bench::Args),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // help and version are no errors and go to stdout
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Run(args) => run::main(args),
        Command::Chat(args) => chat::main(args),
        Command::Train(args) => train::main(*args),
        Command::Score(args) => score::main(args),
        Command::Tokenize(args) => tokenize::main(args),
        Command::Render(args) => render::main(args),
        Command::Eval(args) => eval::main(args),
        Command::Inspect(args) => inspect::main(args),
        Command::Adapter(args) => adapter::main(args),
        Command::Quantize(args) => quantize::main(args),
        Command::Bench(args) => bench::main(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if closed(&e) => ExitCode::SUCCESS,
        Err(e) => {
            terminal::error(&format!("{e:#}"));
            // What the library calls a wrong argument may lie in a file; only clap knows bad usage.
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Whether somebody stopped reading our output, which is their right.
fn closed(e: &anyhow::Error) -> bool {
    e.chain().any(|e| e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe))
}

/// Bad usage that clap cannot see.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
