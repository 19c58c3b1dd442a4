//! `--plan`: what a run would take.

use super::prepare::Prepared;
use super::{Args, watch};
use crate::cli::{stop, terminal};
use anyhow::{Result, bail};
use onlay::model::Memory;
use onlay::train::{Data, Event, Flow, Run, RunOptions, RunPlan, Set, Trainer};
use serde_json::json;
use std::sync::Arc;

pub fn show(args: &Args, prepared: &Prepared) -> Result<()> {
    let Prepared { model, layer, data, options, .. } = prepared;
    let plan = RunPlan::new(model, layer, data, options)?;
    let facts = data.train.facts();
    let total = plan.memory.total();
    let device = Trainer::device_plan(model, layer, &plan.options)?;
    let (step, all) = probe(prepared, &plan)?;
    if args.json {
        let parts = |memory: &Memory| -> serde_json::Map<_, _> {
            memory.parts.iter().map(|(name, bytes)| ((*name).to_owned(), json!(bytes))).collect()
        };
        return Ok(terminal::json(&json!({
            "steps": plan.steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "objective": plan.goal.objective.name,
            "parameters": layer.learning_len(),
            "memory_bytes": total,
            "memory": parts(&plan.memory),
            "device": plan.options.device.to_string(),
            "device_memory_bytes": device.total(),
            "device_memory": parts(&device),
            "mapped_bytes": model.weights().file_len(),
            "keeps": watch::keeps(plan.options.keep),
            "rows_of_a_pass": plan.options.rows,
            "optimizer": plan.options.optimizer.name(),
            "rows": facts.rows,
            "answers": prepared.answers.as_deref().map(super::answers::json),
            "tokens": facts.tokens,
            "trained_tokens": facts.trained,
            "longest": facts.longest,
            "overlap_dropped": prepared.dropped,
            "seconds_a_step": step,
            "seconds": all,
        }))?);
    }
    terminal::line(watch::facts("train", &facts))?;
    if !data.eval.examples.is_empty() {
        terminal::line(watch::facts("eval", &data.eval.facts()))?;
    }
    terminal::line(watch::goal(&plan.goal))?;
    terminal::line(format_args!(
        "{} steps ({} an epoch), {} numbers are learned, {} rows a pass, {} for the backward pass",
        plan.steps,
        plan.steps_per_epoch,
        layer.learning_len(),
        plan.options.rows,
        watch::keeps(plan.options.keep),
    ))?;
    list(&plan.memory)?;
    terminal::line(format_args!(
        "  {:>10}  in all, besides the mapped base of {}",
        terminal::bytes(total),
        terminal::bytes(model.weights().file_len())
    ))?;
    if device.total() > 0 {
        terminal::line(format_args!("on {}", plan.options.device))?;
        list(&device)?;
        terminal::line(format_args!("  {:>10}  in all", terminal::bytes(device.total())))?;
    }
    terminal::line(format_args!(
        "about {} a step, {} in all with evaluations, by two steps on these rows",
        if step < 60.0 { format!("{step:.2} s") } else { terminal::duration(step) },
        terminal::duration(all)
    ))?;
    Ok(())
}

/// The parts of a plan, one a line.
fn list(memory: &Memory) -> Result<()> {
    for (name, bytes) in memory.parts.iter().filter(|(_, bytes)| *bytes > 0) {
        terminal::line(format_args!("  {:>10}  {name}", terminal::bytes(*bytes)))?;
    }
    Ok(())
}

/// Seconds of a step and of the whole run, by two steps on the rows themselves whose results are thrown away.
fn probe(prepared: &Prepared, plan: &RunPlan) -> Result<(f64, f64)> {
    let Prepared { model, layer, data, options, .. } = prepared;
    let rows = Data { train: data.train.clone(), ..Data::default() };
    let options = RunOptions {
        rows_of_a_pass: Some(plan.options.rows),
        eval_every: None,
        early_stop: None,
        keep_best: false,
        ..options.clone()
    };
    let mut run = Run::new(Arc::clone(model), layer.copy(), rows, options, None)?;
    let mut speed = 0.0;
    run.go(&mut |event| {
        if let Event::Step(s) = event {
            speed = s.tokens_per_second;
            if s.step == 2 {
                return Flow::Stop;
            }
        }
        stop::flow()
    })?;
    if speed == 0.0 {
        bail!("stopped before a step could be timed");
    }
    let rows = |set: &Set| set.examples.iter().map(|e| e.rows()).sum::<usize>() as f64;
    let step = rows(&data.train) / plan.steps_per_epoch as f64 / speed;
    // An evaluation is a forward pass, about a third of a step for as many rows.
    let evaluations = 2 + prepared.options.eval_every.map_or(0, |n| (plan.steps - 1) / n);
    let evaluating = evaluations as f64 * rows(&data.eval) / (3.0 * speed);
    Ok((step, step * plan.steps as f64 + evaluating))
}
