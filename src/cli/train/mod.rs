//! `onlay train`: rows in, a layer out.

mod answers;
mod chart;
mod control;
mod flags;
mod mask;
mod output;
mod plan;
mod prepare;
mod report;
mod watch;

pub use flags::Args;

use super::{samples, stop, terminal};
use anyhow::{Context, Result};
use control::Control;
use onlay::adapter::{Adapter, Part, Worn};
use onlay::model::Model;
use onlay::train::{Ending, Files, Outcome, Run, SLOTS, Store, Summary, peak_memory};
use output::{Log, Output};
use prepare::Prepared;
use serde_json::json;
use std::sync::Arc;
use watch::Watch;

/// Tokens of a sample answer.
const SAMPLE: usize = 64;

pub fn main(args: Args) -> Result<()> {
    stop::listen()?;
    let prepared = prepare::prepare(&args)?;
    if let Some(most) = args.show_mask {
        let Prepared { model, data, control, .. } = &prepared;
        for (name, set) in [("train", &data.train), ("eval", &data.eval), ("control", control)] {
            if !set.examples.is_empty() {
                mask::show(name, set, model, most)?;
            }
        }
        let overlap = data.eval.overlap(&data.train);
        if overlap > 0 {
            let text = "evaluation rows are also trained on; --drop-overlap leaves those out of training";
            terminal::line(format_args!("{overlap} {text}"))?;
        }
        return Ok(());
    }
    if args.plan {
        return plan::show(&args, &prepared);
    }
    let Prepared { model, layer, data, options, prompts, control, answers, dropped } = prepared;
    let eval = if args.max_forgetting.is_some() { data.eval.clone() } else { Default::default() };
    args.report.iter().chain(&args.log).for_each(|path| output::sweep(path));
    let output = Output::claim(&args.output, args.replaces())?;
    let mut run =
        Run::new(Arc::clone(&model), layer, data, options, Some(Box::new(Files::beside(output.path()))))?;
    let log = args.log.as_ref().map(|p| Log::open(p, run.progress(), args.resume));
    let mut watch = Watch::new(log.transpose()?);
    watch.answers = answers.as_deref().map(answers::line);
    let done = run.go(&mut |event| {
        watch.see(event);
        stop::flow()
    });
    watch.end();
    let (summary, why) = match done {
        Err(e) => {
            let kept = run.checkpoint().map_or(String::new(), |(step, place)| {
                format!("; --resume goes on from step {step} ({})", place.display())
            });
            return Err(e).with_context(|| format!("the run ended early{kept}"));
        }
        Ok(Outcome::Stopped { step, of, checkpoint }) => {
            let kept = checkpoint.map_or("nothing was saved".into(), |p| {
                format!("saved in {}; the same command with --resume goes on from there", p.display())
            });
            anyhow::bail!("stopped after step {step} of {of}; {kept}")
        }
        Ok(Outcome::Finished(summary)) => (summary, None),
        Ok(Outcome::Halted { summary, why }) => (summary, Some(why)),
    };
    // the memory of the run goes, before anything else is computed
    let mut adapter = run.into_adapter(&output.name(), &summary)?;
    let mut held = None;
    if !control.examples.is_empty() {
        let unwritten =
            "the layer is not written; the same command with --resume goes on from its last checkpoint";
        let (scaled, found) = control::hold(&args, &model, adapter, &control, &eval).context(unwritten)?;
        (adapter, held) = (scaled, Some(found));
    }
    let bytes = output.write(&adapter, &model)?;
    let done = Done { summary, adapter: Arc::new(adapter), bytes, control: held, dropped };
    finish(&args, &model, &done, &prompts, &watch)?;
    // The last thing: whenever the process dies before, --resume ends the same way.
    let mut checkpoints = Files::beside(output.path());
    (0..SLOTS).try_for_each(|slot| checkpoints.remove(slot))?;
    match why {
        None => Ok(()),
        Some(why) => Err(why).with_context(|| {
            let (out, step) = (args.output.display(), done.summary.layer);
            format!("a guard ended the run; {out} has the layer of step {step}, the last that was good")
        }),
    }
}

/// What a run has left.
pub struct Done {
    summary: Summary,
    adapter: Arc<Adapter>,
    bytes: u64,
    control: Option<Control>,
    dropped: usize,
}

fn finish(args: &Args, model: &Arc<Model>, done: &Done, prompts: &[String], watch: &Watch) -> Result<()> {
    let Done { summary, adapter, bytes, control, dropped } = done;
    let parameters: usize = adapter.parts().iter().flatten().map(Part::len).sum();
    let speed = summary.rows as f64 / summary.seconds.max(1e-9);
    let peak = peak_memory();
    if !args.json {
        let held_out = summary
            .before_and_after()
            .map_or(String::new(), |(before, after)| format!("; held out {before:.4} → {after:.4}"));
        let right = summary.accuracies().map_or(String::new(), |(before, after)| {
            format!(", right {:.0} % → {:.0} %", 100.0 * before, 100.0 * after)
        });
        terminal::line(format_args!(
            "{} steps in {}, {speed:.0} tok/s, peak {}: loss {:.4} → {:.4}{held_out}{right}",
            summary.steps,
            terminal::duration(summary.seconds),
            peak.map_or("unknown".into(), terminal::bytes),
            summary.first_loss,
            summary.last_loss,
        ))?;
        if let Ending::EarlyStop = summary.ending {
            let n = args.early_stop.unwrap_or(0);
            terminal::line(format_args!("ended early: {n} evaluations brought nothing better"))?;
        }
        if summary.layer != summary.steps {
            let why = if args.keep_best { "the best on held-out rows" } else { "the last good one" };
            terminal::line(format_args!("the layer is that of step {}, {why}", summary.layer))?;
        }
        terminal::line(format_args!(
            "wrote {} ({}, {parameters} numbers, id {})",
            args.output.display(),
            terminal::bytes(*bytes),
            &onlay::tensor::Identity::hex(adapter.id())[..12],
        ))?;
        control.iter().try_for_each(Control::show)?;
    }
    let samples = if prompts.is_empty() {
        Vec::new()
    } else {
        let worn = Arc::new(Worn::new(model, vec![(Arc::clone(adapter), 1.0)])?);
        samples::take(model, &worn, prompts, SAMPLE, &args.machine, &args.kv)?
    };
    if let Some(path) = &args.report {
        report::write(path, args, model, done, &samples, watch)?;
    }
    if args.json {
        let (before, after) = summary.before_and_after().unzip();
        let (right_before, right_after) = summary.accuracies().unzip();
        return Ok(terminal::json(&json!({
            "output": args.output.display().to_string(),
            "output_bytes": bytes,
            "parameters": parameters,
            "steps": summary.steps,
            "layer_step": summary.layer,
            "ended": summary.ending.name(),
            "epochs": summary.epochs,
            "trained_tokens": summary.trained,
            "first_loss": summary.first_loss,
            "last_loss": summary.last_loss,
            "eval_loss_before": before,
            "eval_loss_after": after,
            "objective": summary.terms.get("objective"),
            "eval_accuracy_before": right_before,
            "eval_accuracy_after": right_after,
            "seconds": summary.seconds,
            "tokens_per_second": speed,
            "peak_rss_bytes": peak,
            "control": control.as_ref().map(Control::json),
            "overlap_dropped": dropped,
            "samples": samples.iter().map(samples::Sample::json).collect::<Vec<_>>(),
        }))?);
    }
    if !samples.is_empty() {
        terminal::line("\nThe same prompts without the layer and with it:")?;
        samples.iter().try_for_each(samples::Sample::show)?;
    }
    if let Some(path) = &args.report {
        terminal::line(format_args!("\nreport: {}", path.display()))?;
    }
    Ok(())
}
