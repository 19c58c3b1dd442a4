//! `onlay train`: rows in, a layer out.

mod flags;
mod output;
mod watch;

pub use flags::Args;

use super::{open, options, samples, stop, terminal};
use anyhow::{Context, Result};
use onlay::adapter::{Adapter, Lora, New, Part, Targets, Worn};
use onlay::error::{Error, Findings, Kind};
use onlay::model::Model;
use onlay::train::{
    CONTEXT, Data, Encoder, Files, Keep, Length, Long, Outcome, Recipe, Rows, Run, RunOptions, RunPlan, Set,
    Start, Summary, peak_memory, split,
};
use output::{Log, Output};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use watch::Watch;

/// Memory that a run may take for speed unless told.
const COMFORT: u64 = 2 << 30;

/// Tokens of a sample answer.
const SAMPLE: usize = 64;

/// Everything a run is made of.
struct Prepared {
    model: Arc<Model>,
    layer: Lora,
    data: Data,
    options: RunOptions,
    prompts: Vec<String>,
}

pub fn main(args: Args) -> Result<()> {
    stop::listen()?;
    let prepared = prepare(&args)?;
    if args.plan {
        return show_plan(&args, &prepared);
    }
    let Prepared { model, layer, data, options, prompts } = prepared;
    let output = Output::claim(&args.output, args.overwrite)?;
    let mut run =
        Run::new(Arc::clone(&model), layer, data, options, Some(Box::new(Files::beside(output.path()))))?;
    let log = args.log.as_ref().map(|p| Log::open(p, run.progress().steps, args.resume));
    let mut watch = Watch::new(log.transpose()?);
    let done = run.go(&mut |event| {
        watch.see(event);
        stop::flow()
    });
    watch.end();
    match done {
        Err(e) => {
            let kept = run.checkpoint().map_or(String::new(), |(step, place)| {
                format!("; --resume goes on from step {step} ({})", place.display())
            });
            Err(e).with_context(|| format!("the run ended early{kept}"))
        }
        Ok(Outcome::Stopped { step, of, checkpoint }) => {
            let kept = checkpoint.map_or("nothing was saved".into(), |p| {
                format!("saved in {}; the same command with --resume goes on from there", p.display())
            });
            anyhow::bail!("stopped after step {step} of {of}; {kept}")
        }
        Ok(Outcome::Finished(summary)) => {
            let name = output.name();
            let adapter = run.adapter(&name, &summary)?;
            let bytes = output.write(&adapter, &model)?;
            run.remove_checkpoints()?;
            let adapter = Arc::new(adapter);
            drop(run); // its memory, before samples are taken
            finish(&args, &model, adapter, &summary, bytes, &prompts)
        }
    }
}

/// Reads and checks everything that can be known before memory is taken, and reports all of it at once.
fn prepare(args: &Args) -> Result<Prepared> {
    let model = open::model(&args.model)?;
    let mut wrong = Findings::default();
    let mut reads = vec![("the base", args.model.as_path()), ("the data", &args.data)];
    reads.extend(args.eval_data.iter().map(|p| ("the evaluation data", p.as_path())));
    reads.extend(args.init_adapter.iter().map(|p| ("the layer to begin with", p.as_path())));
    wrong.keep(Output::check(&args.output, args.overwrite || args.plan, &reads));
    wrong.keep(output::no_checkpoint(&args.output, args.overwrite || args.resume || args.plan));
    let log_may_exist = args.overwrite || args.resume || args.plan;
    wrong.keep(args.log.as_ref().map_or(Ok(()), |log| Output::check(log, log_may_exist, &reads)));
    let (layer, parent) = wrong.keep(layer(args, &model)).unzip();
    let mut progress = terminal::Progress::new();
    let mut read = |path: &Path| -> onlay::Result<Set> {
        let format = args.data_format;
        let rows = Rows::read(path, format)?;
        if !rows.ignored.is_empty() {
            let keys: Vec<_> = rows.ignored.iter().map(String::as_str).collect();
            terminal::warn(format_args!("{}: keys that are not used: {}", path.display(), keys.join(", ")));
        }
        let chat = Encoder::chat_of(&model)?;
        let context = args.ctx.unwrap_or(model.program().context.min(CONTEXT));
        let mut encoder = Encoder::new(&model, chat.as_ref(), context);
        encoder.long = if args.truncate { Long::Truncate } else { Long::Refuse };
        encoder.parse_special = args.parse_special;
        encoder.encode(&rows, &mut |done, of| {
            progress.show(|| format!("reading {}: {done} of {of} rows", path.display()));
            stop::flow()
        })
    };
    let train = wrong.keep(read(&args.data));
    let eval = args.eval_data.as_ref().map(|path| wrong.keep(read(path)));
    progress.clear();
    let data = match (train, eval, args.eval_split) {
        (Some(train), None, Some(share)) => {
            wrong.keep(split(train, share, args.seed)).map(|(train, eval)| Data { train, eval })
        }
        (Some(train), eval, _) => Some(Data { train, eval: eval.flatten().unwrap_or_default() }),
        (None, ..) => None,
    };
    let mut options = RunOptions {
        length: args.steps.map_or(Length::Epochs(args.epochs), Length::Steps),
        batch_size: args.batch_size,
        grad_accumulation: args.grad_accumulation,
        recipe: Recipe {
            rate: args.learning_rate.unwrap_or_else(|| Recipe::rate_for(model.program().width)),
            plus: args.lora_plus_ratio,
            shape: args.schedule,
            warmup: args.warmup_steps,
            decay: args.weight_decay,
            max_norm: args.max_grad_norm,
            ..Recipe::default()
        },
        dropout: args.dropout,
        seed: args.seed,
        shuffle: !args.no_shuffle,
        pack: !args.no_pack,
        eval_every: args.eval_every,
        checkpoint_every: args.checkpoint_every,
        checkpoint_after: Some(Duration::from_secs(args.checkpoint_seconds)),
        start: match (args.resume, args.overwrite) {
            (true, _) => Start::Resume,
            (_, true) => Start::Over,
            _ => Start::New,
        },
        parent: parent.flatten(),
        kv: args.kv.kv,
        ..RunOptions::new(options::level()?, args.machine.count())
    };
    let beside = samples::beside(&args.data).filter(|_| !args.no_samples);
    let prompts = args.samples.clone().or(beside).map_or(Ok(Vec::new()), |path| samples::read(&path))?;
    if let (Some(layer), Some(data)) = (&layer, &data) {
        wrong.keep(fit(args, &model, layer, data, &mut options));
    }
    wrong.refuse("the run cannot start")?;
    let (layer, data) = (layer.expect("nothing is wrong"), data.expect("nothing is wrong"));
    Ok(Prepared { model, layer, data, options, prompts })
}

/// The layer before the first step, and the id of the one that it continues.
fn layer(args: &Args, model: &Model) -> onlay::Result<(Lora, Option<[u8; 32]>)> {
    if let Some(path) = &args.init_adapter {
        let (adapter, warnings) = Adapter::open(path, model)?;
        warnings.iter().for_each(|w| terminal::warn(format_args!("{}: {w}", path.display())));
        return Ok((adapter.to_lora(), Some(*adapter.id())));
    }
    let new = New {
        targets: args.targets.as_deref().map(Targets::parse).transpose()?,
        rank: args.rank,
        alpha: args.alpha,
        stabilised: args.rslora,
        ranks: args.rank_pattern.clone().unwrap_or_default(),
        alphas: args.alpha_pattern.clone().unwrap_or_default(),
        init: args.init,
        seed: args.seed,
        ..New::of(args.method)
    };
    Ok((new.layer(model, options::level()?, args.machine.count())?, None))
}

/// Takes what is fastest within the memory that was promised.
fn fit(args: &Args, model: &Model, layer: &Lora, data: &Data, options: &mut RunOptions) -> onlay::Result<()> {
    let most = args.memory.unwrap_or(COMFORT);
    let mut least = u64::MAX;
    for (keep, rows) in [
        (Keep::Registers, None),
        (Keep::Streams, None),
        (Keep::Streams, Some(256)),
        (Keep::Streams, Some(128)),
        (Keep::Streams, Some(longest(data))),
    ] {
        // Fewer rows at a time than the longest sequence has is no plan, more than the default no saving.
        if rows.is_some_and(|r| r < longest(data) || r > 512) && rows != Some(longest(data)) {
            continue;
        }
        let tried = RunOptions { keep, rows_of_a_pass: rows, ..options.clone() };
        let plan = RunPlan::new(model, layer, data, &tried)?;
        least = least.min(plan.memory.total());
        let fits = plan.memory.total() <= most;
        // Without a promise the slower way is enough; rows of a pass stay, they change bits.
        if fits || (args.memory.is_none() && keep == Keep::Streams) {
            *options = tried;
            return Ok(());
        }
    }
    let expected =
        format!("at least {} ({least} bytes) for this model, layer and rows", terminal::bytes(least));
    let found = format!("{} ({most} bytes)", terminal::bytes(most));
    Err(Error::expected(Kind::Memory, "--memory", expected, found))
}

fn longest(data: &Data) -> usize {
    let all = data.train.examples.iter().chain(&data.eval.examples);
    all.map(|e| e.tokens.len().saturating_sub(1)).max().unwrap_or(1).max(1)
}

fn show_plan(args: &Args, prepared: &Prepared) -> Result<()> {
    let Prepared { model, layer, data, options, .. } = prepared;
    let plan = RunPlan::new(model, layer, data, options)?;
    let facts = data.train.facts();
    let total = plan.memory.total();
    if args.json {
        let parts: serde_json::Map<_, _> =
            plan.memory.parts.iter().map(|(name, bytes)| ((*name).to_owned(), json!(bytes))).collect();
        return Ok(terminal::json(&json!({
            "steps": plan.steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "parameters": layer.len(),
            "memory_bytes": total,
            "memory": parts,
            "mapped_bytes": model.weights().file_len(),
            "keeps": watch::keeps(plan.options.keep),
            "rows_of_a_pass": plan.options.rows,
            "rows": facts.rows,
            "tokens": facts.tokens,
            "trained_tokens": facts.trained,
            "longest": facts.longest,
        }))?);
    }
    terminal::line(watch::facts("train", &facts))?;
    if !data.eval.examples.is_empty() {
        terminal::line(watch::facts("eval", &data.eval.facts()))?;
    }
    terminal::line(format_args!(
        "{} steps ({} an epoch), {} numbers are learned, {} rows a pass, {} for the backward pass",
        plan.steps,
        plan.steps_per_epoch,
        layer.len(),
        plan.options.rows,
        watch::keeps(plan.options.keep),
    ))?;
    for (name, bytes) in plan.memory.parts.iter().filter(|(_, bytes)| *bytes > 0) {
        terminal::line(format_args!("  {:>10}  {name}", terminal::bytes(*bytes)))?;
    }
    terminal::line(format_args!(
        "  {:>10}  in all, besides the mapped base of {}",
        terminal::bytes(total),
        terminal::bytes(model.weights().file_len())
    ))?;
    Ok(())
}

fn finish(
    args: &Args,
    model: &Arc<Model>,
    adapter: Arc<Adapter>,
    summary: &Summary,
    bytes: u64,
    prompts: &[String],
) -> Result<()> {
    let parameters: usize = adapter.parts().iter().flatten().map(Part::len).sum();
    let speed = summary.rows as f64 / summary.seconds.max(1e-9);
    let peak = peak_memory();
    if !args.json {
        let held_out = summary
            .before_and_after()
            .map_or(String::new(), |(before, after)| format!("; held out {before:.4} → {after:.4}"));
        terminal::line(format_args!(
            "{} steps in {}, {speed:.0} tok/s, peak {}: loss {:.4} → {:.4}{held_out}",
            summary.steps,
            terminal::duration(summary.seconds),
            peak.map_or("unknown".into(), terminal::bytes),
            summary.first_loss,
            summary.last_loss,
        ))?;
        terminal::line(format_args!(
            "wrote {} ({}, {parameters} numbers, id {})",
            args.output.display(),
            terminal::bytes(bytes),
            &onlay::tensor::Identity::hex(adapter.id())[..12],
        ))?;
    }
    let samples = if prompts.is_empty() {
        Vec::new()
    } else {
        let worn = Arc::new(Worn::new(model.program(), vec![(adapter, 1.0)])?);
        samples::take(model, &worn, prompts, SAMPLE, &args.machine, &args.kv)?
    };
    if args.json {
        let (before, after) = summary.before_and_after().unzip();
        return Ok(terminal::json(&json!({
            "output": args.output.display().to_string(),
            "output_bytes": bytes,
            "parameters": parameters,
            "steps": summary.steps,
            "epochs": summary.epochs,
            "trained_tokens": summary.trained,
            "first_loss": summary.first_loss,
            "last_loss": summary.last_loss,
            "eval_loss_before": before,
            "eval_loss_after": after,
            "seconds": summary.seconds,
            "tokens_per_second": speed,
            "peak_rss_bytes": peak,
            "samples": samples.iter().map(samples::Sample::json).collect::<Vec<_>>(),
        }))?);
    }
    if !samples.is_empty() {
        terminal::line("\nThe same prompts without the layer and with it:")?;
        samples.iter().try_for_each(samples::Sample::show)?;
    }
    Ok(())
}
