//! Opening what the flags name.

use super::options::{Kv, Machine, Wear};
use super::stop::asked;
use super::terminal::{Progress, bytes, duration, warn};
use onlay::adapter::{Adapter, Worn};
use onlay::engine::{Engine, EngineOptions, Layer};
use onlay::error::Findings;
use onlay::model::Model;
use onlay::ops::Room;
use onlay::{Error, Kind, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Positions of a session unless told, if the model has as many.
const CONTEXT: usize = 4096;

/// The context to plan for: as told, or what the model knows, up to 4,096.
pub fn context(model: &Model, told: Option<usize>) -> usize {
    told.unwrap_or(model.program().context.min(CONTEXT))
}

/// Opens a model.
pub fn model(path: &Path) -> Result<Arc<Model>> {
    Model::open(path).map(Arc::new)
}

/// Opens the layers that are to be worn, and says what is worth saying about them.
pub fn worn(model: &Model, wear: &Wear) -> Result<Option<Arc<Worn>>> {
    if wear.adapters.is_empty() {
        return Ok(None);
    }
    let mut wrong = Findings::default();
    let mut stack = Vec::new();
    for one in &wear.adapters {
        let Some((adapter, warnings)) = wrong.keep(Adapter::open(&one.path, model)) else { continue };
        for warning in warnings {
            if wear.exact_base {
                wrong.push(warning.refuse().in_file(&one.path));
            } else {
                warn(format_args!("{}: {warning}", one.path.display()));
            }
        }
        stack.push((Arc::new(adapter), one.weight));
    }
    wrong.refuse("the adapters cannot be used")?;
    Ok(Some(Arc::new(Worn::new(model, stack)?)))
}

/// The same as a layer of a session; `None` where nothing is left to wear.
pub fn layer(worn: &Option<Arc<Worn>>) -> Option<Layer> {
    worn.as_ref().filter(|w| !w.stack().is_empty()).map(|w| Arc::clone(w) as Layer)
}

/// An engine for one session that wears at most `worn`.
pub fn engine(
    model: &Arc<Model>,
    machine: &Machine,
    kv: &Kv,
    context: usize,
    worn: &Option<Arc<Worn>>,
) -> Result<Engine> {
    let options = EngineOptions {
        threads: machine.threads(),
        polite: machine.polite,
        context,
        kv: kv.kv,
        device: machine.device()?,
        room: worn.as_ref().map_or(Room::default(), |w| w.room(model.program())),
        ..EngineOptions::default()
    };
    Engine::new(Arc::clone(model), &options)
}

/// Refuses an output that exists before any work is done for it.
pub fn absent(path: &Path, overwrite: bool) -> Result<()> {
    if overwrite || !path.exists() {
        return Ok(());
    }
    Err(Error::new(Kind::Argument, "exists already; --overwrite replaces it").in_file(path))
}

/// What a stop in the middle of a file is called; other errors stay as they are.
pub fn stopped(error: Error, out: &Path) -> Error {
    match error.kind() {
        Kind::Cancelled => Error::new(Kind::Cancelled, "stopped; nothing was written").in_file(out),
        _ => error,
    }
}

/// Shows how much of a file is written; an error once somebody asked to stop.
pub fn step(shown: &mut Progress, start: Instant, done: u64, all: u64) -> Result<()> {
    if asked() {
        return Err(Error::new(Kind::Cancelled, "stopped"));
    }
    shown.show(|| {
        let left = duration(start.elapsed().as_secs_f64() * (all - done) as f64 / done.max(1) as f64);
        format!("{:3.0}% of {}, {left} left", 100.0 * done as f64 / all.max(1) as f64, bytes(all))
    });
    Ok(())
}
