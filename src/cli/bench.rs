//! `onlay bench`: speed, beside what the machine can do.

use super::options::{Kv, Machine, Wear, level};
use super::show::{Table, percent};
use super::terminal::{Progress, bytes, json, line};
use super::{Usage, open};
use anyhow::Result;
use onlay::adapter::{Lora, Targets, Worn};
use onlay::backend::Device;
use onlay::engine::bench::{self, Ceilings, Cost};
use onlay::engine::{Engine, EngineOptions, Layer};
use onlay::model::Model;
use onlay::ops::{Delta, Room};
use onlay::rng::Rng;
use onlay::train::{Example, Keep, Optimizer, Recipe, TrainOptions, Trainer, peak_memory};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Speed, beside what the machine can do
///
/// ppN reads a prompt of N tokens, tgN generates N tokens one after the other, trainN takes optimiser steps on a row of N
/// tokens (LoRA of rank 16 around every product, or the layer of --adapter). With --depth D the first two do so after D
/// tokens (ppN@D), and with --sessions S there are S sessions that generate together (tgNxS, all their tokens counted). After a warm-up each is
/// done -r times; tokens/s are those of the median.
///
/// The ceiling is what this machine could do at most, measured here with the same threads: for tg the read bandwidth over
/// the bytes of the weights, for pp and train the multiply-adds per second over those of the weights. Weights that fit
/// the processor's cache can be read faster than memory. Of a GPU only the bandwidth is measured, by a copy of its own memory. The peak memory is that of the process so far, with the pages of
/// the model it has touched; the tests run in the order of what they need.
///
/// JSON, an object for every test: {"test", "tokens_per_second", "fastest", "slowest", "spread", "repeats", "ceiling",
/// "ceiling_of", "share", "peak_rss_bytes", "threads", "device", "level", "kv", "read_bytes_per_second",
/// "float_multiply_adds_per_second", "byte_multiply_adds_per_second"}
#[derive(clap::Args)]
pub struct Args {
    /// The model: a GGUF file
    model: PathBuf,
    #[command(flatten)]
    wear: Wear,
    /// Tokens of the prompt; 0: no such test
    #[arg(short = 'p', value_name = "N", default_value_t = 512, value_parser = tokens())]
    prompt: u32,
    /// Tokens to generate; 0: no such test
    #[arg(short = 'n', value_name = "N", default_value_t = 128, value_parser = tokens())]
    generate: u32,
    /// Tokens that are read before
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = tokens())]
    depth: u32,
    /// Sessions that generate together
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    sessions: u32,
    /// Load the adapters once for each session, as if every session wore others
    #[arg(long, requires = "adapters")]
    apart: bool,
    /// Train on rows of N tokens too
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = tokens())]
    train: u32,
    /// Compute layers again for the backward pass, as train does where memory is short
    #[arg(long)]
    recompute: bool,
    /// How often each is measured
    #[arg(short = 'r', value_name = "REPEATS", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    #[command(flatten)]
    kv: Kv,
    #[command(flatten)]
    machine: Machine,
    /// Print one JSON object per test
    #[arg(long)]
    json: bool,
}

/// No test is longer than the longest contexts there are.
fn tokens() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..=1 << 20)
}

/// One measured test.
struct Test {
    /// Where it stands in the report.
    rank: usize,
    name: String,
    tokens: usize,
    /// Seconds of every repeat, the shortest first.
    seconds: Vec<f64>,
    peak: Option<u64>,
}

pub fn main(args: Args) -> Result<()> {
    if args.prompt == 0 && args.generate == 0 && args.train == 0 {
        return Err(Usage("expected at least one of -p, -n and --train above 0".into()).into());
    }
    if args.train > 0 && args.wear.adapters.len() > 1 {
        return Err(Usage("--train: expected at most one --adapter, found several".into()).into());
    }
    let model = open::model(&args.model)?;
    let worn = open::worn(&model, &args.wear)?;
    let mut layers: Vec<Layer> = open::layer(&worn).into_iter().collect();
    for _ in 1..if args.apart { args.sessions } else { 1 } {
        layers.extend(open::layer(&open::worn(&model, &args.wear)?));
    }
    let mut tests = measure(&args, &model, &worn, &layers)?;
    tests.sort_by_key(|t| t.rank);
    // Last, for it takes 256 MiB, which the peaks are not to show.
    let ceilings = match args.machine.device()? {
        Device::Host => Limits::Host(Ceilings::measure(args.machine.team())?),
        device => Limits::Device { read: onlay::backend::copied(device)? },
    };
    report(&args, &model, &tests, &ceilings)
}

/// What the machine can do.
enum Limits {
    Host(Ceilings),
    /// Bytes per second that a GPU reads and writes when it copies its own memory.
    Device {
        read: f64,
    },
}

/// All tests, the one that needs least memory first.
fn measure(args: &Args, model: &Arc<Model>, worn: &Option<Arc<Worn>>, layers: &[Layer]) -> Result<Vec<Test>> {
    let threads = args.machine.count();
    let room = worn.as_ref().map_or(Room::default(), |w| w.room(model.program()));
    let mut shown = Progress::new();
    let mut tests = Vec::new();
    let mut run = |rank, name: String, tokens: u32, one: &mut dyn FnMut() -> Result<f64>| {
        let mut seconds = Vec::new();
        for i in 0..args.repeats {
            shown.show(|| format!("{name}: {} of {}", i + 1, args.repeats));
            seconds.push(one()?);
        }
        seconds.sort_by(f64::total_cmp);
        tests.push(Test { rank, name, tokens: tokens as usize, seconds, peak: peak_memory() });
        anyhow::Ok(())
    };
    let depth = args.depth as usize;
    let at = if depth > 0 { format!("@{depth}") } else { String::new() };
    let device = args.machine.device()?;
    let engine = |sessions: usize, tokens: u32| {
        let positions = depth.max(1) + tokens as usize;
        let options = bench::options(threads, sessions, positions, args.kv.kv, room);
        Engine::new(Arc::clone(model), &EngineOptions { device, polite: args.machine.polite, ..options })
    };
    if args.generate > 0 {
        let count = args.sessions as usize;
        let mut engine = engine(count, args.generate)?;
        let mut sessions = bench::sessions(&mut engine, layers, count, depth)?;
        let n = args.generate as usize;
        bench::generate(&mut engine, &mut sessions, 1)?; // as many rows as will be timed
        let many = if count > 1 { format!("x{count}") } else { String::new() };
        let name = format!("tg{n}{at}{many}");
        run(1, name, args.generate * args.sessions, &mut || {
            Ok(bench::generate(&mut engine, &mut sessions, n)?)
        })?;
    }
    if args.prompt > 0 {
        let mut engine = engine(1, args.prompt)?;
        let mut sessions = bench::sessions(&mut engine, layers, 1, depth)?;
        let n = args.prompt as usize;
        bench::prompt(&mut engine, &mut sessions[0], n.min(64))?;
        run(0, format!("pp{n}{at}"), args.prompt, &mut || {
            Ok(bench::prompt(&mut engine, &mut sessions[0], n)?)
        })?;
    }
    if args.train > 0 {
        let mut step = training(args, model, worn)?;
        step()?;
        run(2, format!("train{}", args.train), args.train, &mut step)?;
    }
    Ok(tests)
}

/// One optimiser step, and how many seconds it took.
fn training(
    args: &Args,
    model: &Arc<Model>,
    worn: &Option<Arc<Worn>>,
) -> Result<impl FnMut() -> Result<f64> + use<>> {
    let tokens = args.train as usize;
    let mut layer: Lora = match worn.as_ref().and_then(|w| w.stack().first()) {
        Some((adapter, _)) => adapter.to_lora(),
        None => {
            let mut layer = Targets::parse("all")?.layer(model.program(), 16, 2.0)?;
            layer.start(&mut Rng::new(1));
            layer
        }
    };
    let rows = tokens + layer.virtual_tokens();
    layer.learn(rows, 0.0, 1)?;
    let options = TrainOptions {
        level: level()?,
        threads: args.machine.team(),
        rows,
        context: tokens,
        sequences: 1,
        kv: args.kv.kv,
        keep: if args.recompute { Keep::Streams } else { Keep::Registers },
        optimizer: Optimizer::default(),
        device: args.machine.device()?,
    };
    let example = Example { tokens: bench::text(model, tokens + 1), trained: vec![true; tokens + 1] };
    let mut trainer = Trainer::new(Arc::clone(model), Arc::new(layer), options)?;
    // one schedule for all steps, however many there will be
    let (recipe, steps) = (Recipe::default(), 2 + u64::from(args.repeats));
    Ok(move || {
        let start = Instant::now();
        trainer.step(std::slice::from_ref(&example), &recipe, steps)?;
        Ok(start.elapsed().as_secs_f64())
    })
}

fn report(args: &Args, model: &Model, tests: &[Test], limits: &Limits) -> Result<()> {
    let device = args.machine.device()?.to_string();
    let (threads, level, cost) = (args.machine.count(), level()?, Cost::of(model, args.kv.kv));
    let mut table =
        Table::new(&["test", ">tokens/s", ">spread", ">ceiling", ">share", "ceiling of", ">peak memory"]);
    for test in tests {
        let n = test.tokens as f64;
        let speed = |i: usize| n / test.seconds[i];
        let last = test.seconds.len() - 1;
        let (fastest, slowest) = (speed(0), speed(last));
        let median = n * 2.0 / (test.seconds[last / 2] + test.seconds[last.div_ceil(2)]);
        let spread = (fastest - slowest) / median;
        let found = ceiling(args, test, model, &cost, limits);
        let (ceiling, of) = (found.map(|f| f.0), found.map(|f| f.1));
        if args.json {
            json(&json!({
                "test": test.name, "tokens_per_second": median, "fastest": fastest, "slowest": slowest,
                "spread": spread, "repeats": test.seconds.len(), "ceiling": ceiling, "ceiling_of": of,
                "share": ceiling.map(|c| median / c), "peak_rss_bytes": test.peak, "threads": threads, "device": device,
                "level": level.name(), "kv": args.kv.kv.name(),
                "read_bytes_per_second": limits.read(),
                "float_multiply_adds_per_second": limits.host().map(|c| c.floats),
                "byte_multiply_adds_per_second": limits.host().map(|c| c.bytes),
            }))?;
            continue;
        }
        table.row([
            test.name.clone(),
            format!("{median:.2}"),
            percent(spread),
            ceiling.map_or_else(|| "?".into(), |c| format!("{c:.1}")),
            ceiling.map_or_else(|| "?".into(), |c| percent(median / c)),
            of.unwrap_or("not measured").into(),
            test.peak.map_or_else(|| "?".into(), bytes),
        ]);
    }
    if args.json {
        return Ok(());
    }
    table.print(0)?;
    let Some(&Ceilings { read, floats, bytes, halves }) = limits.host() else {
        return Ok(line(format_args!("\n{device}: copies {:.1} GB/s", limits.read() / 1e9))?);
    };
    let of_bf16 = halves.map_or(String::new(), |h| format!(", {:.0} billion of bf16", h / 1e9));
    line(format_args!(
        "\n{threads} threads, {}: reads {:.1} GB/s, {:.0} billion multiply-adds/s of f32, {:.0} billion of bytes{of_bf16}",
        level.name(),
        read / 1e9,
        floats / 1e9,
        bytes / 1e9
    ))?;
    Ok(())
}

/// Tokens per second at best, and what limits them.
///
/// Products with block formats are of bytes, with dense weights of f32; gradients of inputs are of f32, or through block
/// formats of bf16 where the level has that.
fn ceiling(
    args: &Args,
    test: &Test,
    model: &Model,
    cost: &Cost,
    limits: &Limits,
) -> Option<(f64, &'static str)> {
    // A token looks back at all of the depth and, in the middle, at half of the tokens that are timed.
    let back = |n: u32| f64::from(args.depth) + f64::from(n) / 2.0;
    if test.rank == 1 {
        let sessions = f64::from(args.sessions);
        let bytes = cost.bytes + sessions * cost.position_bytes * back(args.generate);
        return Some((sessions * limits.read() / bytes, "read bandwidth"));
    }
    let ceilings = limits.host()?;
    let blocks = model.bound().storage().iter().any(|s| s.grain().is_some());
    let forward = if blocks { ceilings.bytes } else { ceilings.floats };
    let half = cost.train / 2.0;
    let seconds = if test.rank == 0 {
        cost.prompt / forward + cost.position * back(args.prompt) / ceilings.floats
    } else {
        half / forward + half / ceilings.halves.filter(|_| blocks).unwrap_or(ceilings.floats)
    };
    Some((1.0 / seconds, "peak arithmetic"))
}

impl Limits {
    fn host(&self) -> Option<&Ceilings> {
        if let Limits::Host(ceilings) = self { Some(ceilings) } else { None }
    }

    fn read(&self) -> f64 {
        match self {
            Limits::Host(ceilings) => ceilings.read,
            Limits::Device { read } => *read,
        }
    }
}
