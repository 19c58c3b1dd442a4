//! `onlay quantize`: a model again with smaller weights.

use super::options::Threads;
use super::show::{Table, count, percent};
use super::terminal::{Progress, bytes, duration, json, line, warn};
use super::{open, stop};
use anyhow::Result;
use onlay::format::types::Type;
use onlay::model::{MIXTURES, Mixture, Quantized, quantize};
use onlay::tensor::{Storage, Weights};
use onlay::{Error, Kind};
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

/// Write a model with smaller weights
///
/// The file appears only when it is whole: a stop or a failure leaves what was there before. The error of a matrix is
/// the distance between it and what was written, as a share of its length: |Ŵ - W| / |W|.
///
/// JSON: {"in", "out", "format", "bytes_before", "bytes_after", "bits_per_weight", "error", "seconds", "types": [{"from",
/// "to", "matrices", "error"}], "matrices": [{"tensor", "from", "to", "instead_of", "error"}]}
#[derive(clap::Args)]
pub struct Args {
    /// The model to read, best in F32, F16 or BF16
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// What the matrices become, in any case
    #[arg(value_name = "FORMAT", value_parser = mixture, help = formats())]
    format: &'static Mixture,
    /// Replace OUT.gguf if it exists
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn names() -> String {
    MIXTURES.iter().map(|m| m.name).collect::<Vec<_>>().join(", ")
}

fn formats() -> String {
    format!("What the matrices become, in any case: {}", names())
}

fn mixture(name: &str) -> Result<&'static Mixture, String> {
    Mixture::named(name).map_err(|_| format!("expected {}", names()))
}

pub fn main(args: Args) -> Result<()> {
    let weights = Weights::open(&args.input)?;
    let kind = weights.metadata().text("general.type")?.unwrap_or("model");
    if kind != "model" || weights.is_empty() {
        let found = if kind == "model" { "a file without tensors".into() } else { format!("{kind:?}") };
        return Err(Error::expected(Kind::Argument, "file", "a model", found).in_file(&args.input).into());
    }
    open::absent(&args.out, args.overwrite)?;
    stop::listen()?;
    let (mut shown, start) = (Progress::new(), Instant::now());
    let threads = args.threads.count();
    let report = quantize(&weights, args.format, &args.out, args.overwrite, threads, &mut |done, all| {
        open::step(&mut shown, start, done, all)
    })
    .map_err(|e| open::stopped(e, &args.out))?;
    drop(shown);
    let seconds = start.elapsed().as_secs_f64();

    if report.iter().any(|q| matches!(Storage::of(q.from), Some(Storage::Block(_)))) {
        warn(
            "matrices that were quantized already were quantized again; the errors count from what they were",
        );
    }
    let written = Weights::open(&args.out)?;
    let (before, after) = (weights.file_len(), written.file_len());
    let sizes = |w: &Weights| w.tensors().fold((0, 0), |(b, n), t| (b + t.bytes().len(), n + t.elements()));
    let (data, elements) = sizes(&written);
    let bits = 8.0 * data as f64 / elements as f64;
    let types = types(&report);
    let total = Group::over(report.iter());
    if args.json {
        let matrices = report.iter().map(|q| {
            json!({"tensor": q.tensor, "from": q.from.name(), "to": q.to.name(),
                   "instead_of": q.instead_of.map(Type::name), "error": q.error()})
        });
        let types = types.iter().map(|(from, to, g)| {
            json!({"from": from.name(), "to": to.name(), "matrices": g.matrices, "error": g.error()})
        });
        json(&json!({
            "in": args.input.to_string_lossy(), "out": args.out.to_string_lossy(), "format": args.format.name,
            "bytes_before": before, "bytes_after": after, "bits_per_weight": bits, "error": total.error(),
            "seconds": seconds, "types": types.collect::<Vec<_>>(), "matrices": matrices.collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    let mut table = Table::new(&["from", "to", ">matrices", ">error"]);
    for (from, to, g) in &types {
        table.row([from.to_string(), to.to_string(), count(g.matrices), percent(g.error())]);
    }
    table.row(["all".into(), String::new(), count(total.matrices), percent(total.error())]);
    table.print(0)?;
    let instead = report.iter().filter_map(|q| Some((q.to, q.instead_of?)));
    for (to, asked) in instead.clone().collect::<HashSet<_>>() {
        let n = instead.clone().filter(|p| *p == (to, asked)).count();
        line(format_args!("{n} are {to} instead of {asked}, whose blocks do not divide their rows"))?;
    }
    let all = u64::try_from(written.len())?.saturating_sub(total.matrices);
    line(format_args!("\n{} tensors kept as they were", count(all)))?;
    let share = percent(after as f64 / before as f64);
    line(format_args!("{} -> {} ({share}), {bits:.2} bits per weight", bytes(before), bytes(after)))?;
    line(format_args!("{} written in {}", args.out.display(), duration(seconds)))?;
    Ok(())
}

/// Some matrices as if they were one.
#[derive(Default)]
struct Group {
    matrices: u64,
    squares: f64,
    lost: f64,
}

impl Group {
    fn over<'a>(all: impl Iterator<Item = &'a Quantized>) -> Group {
        let mut group = Group::default();
        for q in all {
            group.matrices += 1;
            group.squares += q.squares;
            group.lost += q.lost;
        }
        group
    }

    fn error(&self) -> f64 {
        if self.lost == 0.0 { 0.0 } else { (self.lost / self.squares).sqrt() }
    }
}

/// What became what, in order of appearance.
fn types(report: &[Quantized]) -> Vec<(Type, Type, Group)> {
    let mut pairs: Vec<(Type, Type)> = Vec::new();
    for q in report {
        if !pairs.contains(&(q.from, q.to)) {
            pairs.push((q.from, q.to));
        }
    }
    let of = |pair: &(Type, Type)| Group::over(report.iter().filter(|q| (q.from, q.to) == *pair));
    pairs.iter().map(|p| (p.0, p.1, of(p))).collect()
}
