//! What the layer changes on control rows, and how much of it is kept.

use super::Args;
use crate::cli::{options, stop, terminal};
use anyhow::{Result, bail};
use onlay::adapter::{Adapter, Worn};
use onlay::error::{Error, Kind};
use onlay::eval::{Forgetting, forgetting, within};
use onlay::model::{Model, Options, Runner};
use onlay::train::Set;
use onlay_kernels::Level;
use serde_json::{Value, json};
use std::sync::Arc;

/// What was measured on the control rows.
pub struct Control {
    /// How much of the layer is kept.
    pub scale: f32,
    /// The whole layer.
    pub whole: Forgetting,
    /// What is kept of it.
    pub kept: Forgetting,
    /// The most that was agreed.
    pub limit: Option<f64>,
    /// Loss on the evaluation rows with what is kept, where that is not the whole layer.
    pub held_out: Option<f64>,
}

impl Control {
    pub fn json(&self) -> Value {
        json!({
            "tokens": self.kept.tokens, "loss_before": self.kept.before, "loss_after": self.kept.after,
            "kl": self.kept.kl, "max_forgetting": self.limit, "scale": self.scale, "kl_unscaled": self.whole.kl,
            "eval_loss_scaled": self.held_out,
        })
    }

    pub fn show(&self) -> Result<()> {
        let Forgetting { tokens, before, after, kl } = self.kept;
        terminal::line(format_args!(
            "control: loss {before:.4} → {after:.4}, {kl:.4} nats a token from the base (KL) over {tokens} tokens"
        ))?;
        if self.scale < 1.0 {
            let held_out = self.held_out.map_or(String::new(), |l| format!("; held out {l:.4}"));
            terminal::line(format_args!(
                "the layer is scaled to {} to stay within {} (KL of the whole {:.4}){held_out}",
                self.scale,
                self.limit.unwrap_or_default(),
                self.whole.kl
            ))?;
        }
        Ok(())
    }
}

/// Measures the layer on the control rows, and scales it down to what was agreed.
pub fn hold(
    args: &Args,
    model: &Arc<Model>,
    adapter: Adapter,
    control: &Set,
    eval: &Set,
) -> Result<(Adapter, Control)> {
    let adapter = Arc::new(adapter);
    let level = options::level()?;
    // at another scale, the layer that would be written: what cannot be worn with a weight may still have one such
    let wear = |scale: f32| -> onlay::Result<Worn> {
        let adapter = if scale == 1.0 {
            Arc::clone(&adapter)
        } else {
            Arc::new(scaled(&adapter, model, level, scale)?)
        };
        Worn::new(model, vec![(adapter, 1.0)])
    };
    let longest = control.examples.iter().chain(&eval.examples).map(|e| e.rows()).max().unwrap_or(1).max(1);
    let options = Options {
        level,
        threads: args.machine.team(),
        positions: 2 * longest,
        sequences: 2,
        context: longest,
        rows: longest.clamp(2, 256),
        kv: args.kv.kv,
        room: wear(1.0)?.room(model.program()),
        device: args.machine.device()?,
    };
    let mut runner = Runner::new(Arc::clone(model), options)?;
    let mut progress = terminal::Progress::new();
    let mut measure = |rows: &Set, scale: f32| {
        forgetting(&mut runner, &rows.examples, &wear(scale)?, &mut |done, of| {
            progress.show(|| format!("control rows at scale {scale}: {done} of {of}"));
            stop::flow()
        })
    };
    let whole = measure(control, 1.0)?;
    let (scale, kept) = match args.max_forgetting {
        None => (1.0, whole),
        Some(limit) => {
            let mut at = |scale| if scale == 1.0 { Ok(whole) } else { measure(control, scale) };
            match within(limit, &mut at)? {
                Some(found) => found,
                None => bail!(
                    "--max-forgetting: expected a layer that stays within {limit} nats a token on the control rows, \
                     found {} at full scale and more than {limit} at 1/256 of it",
                    whole.kl
                ),
            }
        }
    };
    let held_out = match scale < 1.0 && !eval.examples.is_empty() {
        true => Some(measure(eval, scale)?.after),
        false => None,
    };
    drop(progress);
    let done = Control { scale, whole, kept, limit: args.max_forgetting, held_out };
    let mut manifest = adapter.manifest().clone();
    if let Some(Value::Object(metrics)) = &mut manifest.metrics {
        metrics.insert("control".into(), done.json());
    }
    let written = scaled(&adapter, model, level, scale)?;
    let written = Adapter::new(adapter.name(), written.to_lora(), manifest, model.program())?;
    Ok((written, done))
}

/// The layer that does `scale` times what it did. A run whose method has no such numbers is refused before it starts.
fn scaled(adapter: &Adapter, model: &Model, level: Level, scale: f32) -> onlay::Result<Adapter> {
    let mut layer = adapter.to_lora();
    if scale != 1.0 {
        let no = || Error::new(Kind::Unsupported, "this layer cannot be scaled");
        layer = layer.times(model, level, scale).ok_or_else(no)?;
        layer.settle(model, level, &mut |n, f| (0..n).for_each(f));
    }
    Adapter::new(adapter.name(), layer, adapter.manifest().clone(), model.program())
}
