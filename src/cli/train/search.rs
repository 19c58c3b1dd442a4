//! `--search`: a rank and a learning rate, tried out before the run.

use super::Args;
use super::output;
use super::prepare::{self, Prepared};
use crate::cli::{stop, terminal};
use anyhow::{Context, Result, bail};
use onlay::adapter::{Lora, New};
use onlay::error::Kind;
use onlay::train::{Checkpoint, Choice, Chosen, Files, RunOptions, SLOTS, Store, Trial, search};
use std::time::Instant;

/// What ranks and rates are multiplied with.
const RANKS: [f64; 3] = [1.0, 0.5, 2.0];
const RATES: [f64; 3] = [1.0, 3.0, 1.0 / 3.0];

/// Chooses, unless a checkpoint is there of a run that has chosen already.
pub fn choose(args: &Args, minutes: f64, prepared: &mut Prepared) -> Result<()> {
    if let Some(text) = earlier(args, prepared.layer.len())? {
        let best =
            Chosen::read(&text).context("the checkpoint beside the output is of a run without --search")?;
        terminal::note(format_args!("as was searched before: {}", words(&best)));
        return take(args, prepared, best, text);
    }
    let method = prepared.layer.method();
    let rank = args.rank.unwrap_or(New::of(args.method).rank);
    let ranks: Vec<Option<usize>> = match method.ranked {
        true => RANKS.iter().map(|f| Some(((rank as f64 * f) as usize).max(1))).collect(),
        false => vec![None],
    };
    let rate = prepared.options.recipe.rate;
    let mut choices = Vec::new();
    for rank in ranks {
        // What cannot be made, or does not fit, is no choice; the first is the run as it was asked for.
        match made(args, prepared, Choice { rank, rate }) {
            Err(e) if !choices.is_empty() && matches!(e.kind(), Kind::Argument | Kind::Memory) => {
                terminal::note(format_args!("rank {} is left out: {e}", rank.unwrap_or(0)));
            }
            other => {
                other?;
                choices.extend(RATES.iter().map(|f| Choice { rank, rate: rate * f }));
            }
        }
    }
    choices.dedup();
    let (begun, mut progress) = (Instant::now(), terminal::Progress::new());
    let chosen = search(
        &prepared.model,
        &prepared.data,
        &choices,
        60.0 * minutes,
        &mut |choice| made(args, prepared, choice),
        &mut || begun.elapsed().as_secs_f64(),
        &mut |tried: Option<&Trial>| {
            match tried {
                Some(t) => progress.note(line(t)),
                None => progress.show(|| {
                    let seconds = begun.elapsed().as_secs_f64();
                    format!("searching: {} of {minutes} minutes", terminal::duration(seconds))
                }),
            }
            stop::flow()
        },
    )?;
    drop(progress);
    if chosen.cut {
        terminal::warn("the time was over before the search was; what it had found so far counts");
    }
    terminal::note(format_args!("chosen: {}", words(&chosen.best)));
    take(args, prepared, chosen.best, chosen.text())
}

fn words(c: &Choice) -> String {
    let rank = c.rank.map_or(String::new(), |r| format!("rank {r}, "));
    format!("{rank}learning rate {:.2e}", c.rate)
}

fn line(t: &Trial) -> String {
    format!(
        "search {}: {}: held-out loss {:.4} after {} steps",
        t.rung + 1,
        words(&t.choice),
        t.loss,
        t.steps
    )
}

/// The layer and the options of a choice.
fn made(args: &Args, prepared: &Prepared, choice: Choice) -> onlay::Result<(Lora, RunOptions)> {
    let (layer, _) = prepare::layer(args, &prepared.model, choice.rank)?;
    let optimizer = args.optimizer.unwrap_or_default();
    let mut options =
        RunOptions { memory: None, rows_of_a_pass: None, optimizer, ..prepared.options.clone() };
    options.recipe.rate = choice.rate;
    let fit = prepare::fit(args, &prepared.model, &layer, &prepared.data, &options)?;
    Ok((layer, fit.options))
}

/// Makes the run that of a choice.
fn take(args: &Args, prepared: &mut Prepared, best: Choice, text: String) -> Result<()> {
    let (layer, options) = made(args, prepared, best)?;
    prepared.layer = layer;
    prepared.options = RunOptions { searched: Some(text), ..options };
    Ok(())
}

/// What the checkpoint that the run goes on from says was searched; nothing if there is none.
fn earlier(args: &Args, numbers: usize) -> Result<Option<String>> {
    if !args.resume || output::checkpoint(&args.output).is_none() {
        return Ok(None);
    }
    let mut files = Files::beside(output::without_slash(&args.output));
    // five arrays of a layer of twice the rank, and what else there is
    let most = 5 * 4 * 2 * numbers as u64 + (64 << 20);
    let mut newest: Option<(u64, String)> = None;
    for slot in 0..SLOTS {
        let Some(bytes) = files.read(slot, most)? else { continue };
        // A damaged one is reported by the run, which goes on from the other.
        let Ok(found) = Checkpoint::read(bytes) else { continue };
        let steps = found.progress().steps;
        if newest.as_ref().is_none_or(|(n, _)| *n < steps) {
            newest = Some((steps, found.terms().get("searched").unwrap_or_default().to_owned()));
        }
    }
    match newest {
        Some((_, text)) => Ok(Some(text)),
        None => bail!("{}: no checkpoint beside it is whole", args.output.display()),
    }
}
