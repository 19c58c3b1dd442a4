//! `--find-rate`: a table of rates and a suggestion.

use super::Args;
use super::prepare::Prepared;
use crate::cli::{stop, terminal};
use anyhow::{Result, bail};
use onlay::train::{Recipe, find_rate};
use serde_json::json;

/// Steps of the test.
const STEPS: usize = 48;

/// From where to where, as multiples of the rate by default.
const RANGE: (f64, f64) = (0.01, 1000.0);

pub fn show(args: &Args, prepared: Prepared) -> Result<()> {
    let Prepared { model, layer, data, options, .. } = prepared;
    let usual = Recipe::rate_for(model.program().width, layer.pace(), data.train.signal());
    let mut progress = terminal::Progress::new();
    let range = (usual * RANGE.0, usual * RANGE.1);
    let found = find_rate(&model, layer, &data, &options, range, STEPS, &mut |p| {
        progress.show(|| format!("rate {:.2e}: loss {:.4}", p.rate, p.loss));
        stop::flow()
    })?;
    drop(progress);
    if args.json {
        let probe = |p: &onlay::train::Probe| json!({"lr": p.rate, "loss": p.loss, "gain": p.gain, "smooth": p.smooth});
        return Ok(terminal::json(&json!({
            "probes": found.probes.iter().map(probe).collect::<Vec<_>>(),
            "lowest": found.lowest,
            "suggested": found.suggested,
            "diverged": found.diverged,
            "default": usual,
        }))?);
    }
    terminal::line("      rate      loss    change   smoothed")?;
    for p in &found.probes {
        let mark = if Some(p.rate) == found.lowest { "  lowest" } else { "" };
        let line = format_args!("{:10.2e}  {:8.4}  {:+8.4}  {:+9.4}{mark}", p.rate, p.loss, p.gain, p.smooth);
        terminal::line(line)?;
    }
    if !found.diverged {
        terminal::line("no rate was too much; the highest of them may not be enough")?;
    }
    let Some(rate) = found.suggested else {
        bail!("nothing was learned at any of these rates: is there anything to learn in the rows?")
    };
    Ok(terminal::line(format_args!(
        "suggested: --learning-rate {rate:.1e} (a third of the rate of the lowest point; the default is {usual:.1e})"
    ))?)
}
