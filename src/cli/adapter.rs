//! `onlay adapter`: convert, merge, combine and list layers.

use super::options::{Threads, Wear, level};
use super::show::{Table, count, percent, plain};
use super::terminal::{Progress, bytes, duration, error, json, line, warn};
use super::{Usage, open, stop};
use anyhow::{Result, bail};
use clap::Subcommand;
use onlay::adapter::{
    Adapter, Combined, Contents, Form, Manifest, MergeOptions, MergeReport, Merged, Warning, combine, merge,
};
use onlay::error::{Error, Kind};
use onlay::format::types::{TYPES, Type};
use onlay::model::Model;
use onlay::tensor::{Identity, Storage};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Convert, merge, combine and list layers
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Convert(Convert),
    Merge(Merge),
    Combine(Combine),
    List(List),
}

pub fn main(args: Args) -> Result<()> {
    match args.what {
        What::Convert(args) => convert(args),
        What::Merge(args) => fold(args),
        What::Combine(args) => combined(args),
        What::List(args) => list(args),
    }
}

/// Write a layer in the other form: GGUF if OUT ends in .gguf, otherwise a PEFT directory
///
/// Nothing is lost either way: the numbers, and with them the id, stay the same.
///
/// JSON: {"id", "name", "out", "form", "bytes"}
#[derive(clap::Args)]
struct Convert {
    /// A GGUF adapter or a PEFT directory
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// NAME.gguf, or a directory
    out: PathBuf,
    /// The model that the layer is for
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// Refuse a layer that was trained on other weights of the same shape, with another tokenizer or template
    #[arg(long)]
    exact_base: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn convert(args: Convert) -> Result<()> {
    let end = args.out.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if end == "safetensors" || end == "json" {
        let text =
            format!("OUT: expected a name that ends in .gguf, or a directory, found {}", args.out.display());
        return Err(Usage(text).into());
    }
    let form = if end == "gguf" { Form::Gguf } else { Form::Peft };
    if args.out.is_dir() && form == Form::Gguf {
        bail!("{}: expected the name of a file, found a directory", args.out.display());
    }
    open::absent(&args.out, args.overwrite)?;
    let model = open::model(&args.base)?;
    let (adapter, warnings) = Adapter::open(&args.input, &model)?;
    for warning in warnings {
        if args.exact_base {
            return Err(warning.refuse().in_file(&args.input).into());
        }
        warn(format_args!("{}: {warning}", args.input.display()));
    }
    match form {
        Form::Gguf => {
            let said = adapter.write_gguf(&args.out, &model, args.overwrite)?;
            let of_writing = said.iter().filter(|w| matches!(w, Warning::TiedHead));
            of_writing.for_each(|w| warn(format_args!("{}: {w}", args.out.display())));
        }
        Form::Peft => adapter.write_peft(&args.out, &model, args.overwrite)?,
    }
    let id = Identity::hex(adapter.id());
    if args.json {
        json(&json!({
            "id": id, "name": adapter.name(), "out": args.out.to_string_lossy(), "form": form.name(),
            "bytes": adapter.bytes(),
        }))?;
        return Ok(());
    }
    line(format_args!("{} written: {}, {}", args.out.display(), form.name(), bytes(adapter.bytes())))?;
    line(format_args!("id {id}"))?;
    Ok(())
}

/// Fold layers into their base: a new model file that needs no layer
///
/// The matrices that change are encoded again, which rounds again. For each the report says how much the layers changed
/// it and how far encoding came out from that, both as shares of its length: where the error is not much smaller than the
/// change, part of what was learned is gone, and a larger --type keeps it.
///
/// JSON: {"out", "bytes", "untied", "change", "error", "seconds", "tensors": [{"tensor", "type", "change", "error"}]}
#[derive(clap::Args)]
struct Merge {
    /// The base
    model: PathBuf,
    /// The model file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    #[command(flatten)]
    wear: Wear,
    /// The type of the matrices that change [default: the one they have]
    #[arg(long = "type", value_name = "TYPE", value_parser = kind, help = types())]
    kind: Option<Type>,
    /// Replace OUT.gguf if it exists
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Several layers, each with its weight, as one LoRA of a chosen rank, and what that loses
///
/// Layers that are worn together are exact; this writes the nearest pair of matrices to their sum in every product, and says
/// how far off it is as a share of the sum's length.
///
/// JSON: {"out", "rank", "bytes", "error", "seconds", "tensors": [{"tensor", "error"}]}
#[derive(clap::Args)]
struct Combine {
    /// The base
    model: PathBuf,
    /// NAME.gguf, or a directory
    out: PathBuf,
    #[command(flatten)]
    wear: Wear,
    /// The new layer's rank
    #[arg(long, value_name = "R")]
    rank: usize,
    /// Replace OUT if it exists
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn combined(args: Combine) -> Result<()> {
    if args.wear.adapters.is_empty() {
        return Err(Usage("expected at least one --adapter to combine, found none".into()).into());
    }
    open::absent(&args.out, args.overwrite)?;
    let model = open::model(&args.model)?;
    let Some(worn) = open::worn(&model, &args.wear)? else { bail!("there is nothing to combine") };
    stop::listen()?;
    let (mut shown, start) = (Progress::new(), Instant::now());
    let (layer, found) =
        combine(&model, &worn, args.rank, args.threads.count(), level()?, &mut |done, all| {
            shown.show(|| format!("matrix {done} of {all}"));
            if stop::asked() { Err(Error::new(Kind::Cancelled, "stopped")) } else { Ok(()) }
        })?;
    drop(shown);
    let name = args.out.file_stem().unwrap_or_default().to_string_lossy();
    let adapter = Adapter::new(&name, layer, Manifest::of(&model), model.program())?;
    if args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        adapter.write_gguf(&args.out, &model, args.overwrite)?;
    } else {
        adapter.write_peft(&args.out, &model, args.overwrite)?;
    }
    let sum = |f: fn(&Combined) -> f64| found.iter().map(f).sum();
    let total = Combined { tensor: "all".into(), squares: sum(|c| c.squares), lost: sum(|c| c.lost) };
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let each = found.iter().map(|c| json!({"tensor": c.tensor, "error": c.error()}));
        json(&json!({
            "out": args.out.to_string_lossy(), "rank": args.rank, "bytes": adapter.bytes(),
            "error": total.error(), "seconds": seconds, "tensors": each.collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    let mut table = Table::new(&["tensor", ">error"]);
    for c in found.iter().chain([&total]) {
        table.row([plain(&c.tensor), percent(c.error())]);
    }
    table.print(0)?;
    let size = bytes(adapter.bytes());
    line(format_args!("\n{} written, {size}, in {}", args.out.display(), duration(seconds)))?;
    Ok(())
}

fn encodable() -> Vec<&'static str> {
    TYPES.iter().filter(|t| Storage::of(**t).is_some()).map(|t| t.name()).collect()
}

fn types() -> String {
    format!(
        "The type of the matrices that change, in any case [default: the one they have]: {}",
        encodable().join(", ")
    )
}

fn kind(name: &str) -> Result<Type, String> {
    let known = Type::from_name(name).filter(|t| Storage::of(*t).is_some());
    known.ok_or_else(|| format!("expected {}", encodable().join(", ")))
}

fn fold(args: Merge) -> Result<()> {
    if args.wear.adapters.is_empty() {
        return Err(Usage("expected at least one --adapter to fold in, found none".into()).into());
    }
    open::absent(&args.out, args.overwrite)?;
    let model = open::model(&args.model)?;
    let Some(worn) = open::worn(&model, &args.wear)? else { bail!("there is nothing to fold in") };
    stop::listen()?;
    let options = MergeOptions {
        kind: args.kind,
        overwrite: args.overwrite,
        threads: args.threads.count(),
        level: level()?,
    };
    let (mut shown, start) = (Progress::new(), Instant::now());
    let report =
        merge(&model, &worn, &args.out, &options, &mut |done, all| open::step(&mut shown, start, done, all))
            .map_err(|e| open::stopped(e, &args.out))?;
    drop(shown);
    let (total, seconds) = (report.total(), start.elapsed().as_secs_f64());
    if args.json {
        let each = report.tensors.iter().map(
            |t| json!({"tensor": t.tensor, "type": t.kind.name(), "change": t.change(), "error": t.error()}),
        );
        json(&json!({
            "out": args.out.to_string_lossy(), "bytes": report.bytes, "untied": report.untied,
            "change": total.change(), "error": total.error(), "seconds": seconds,
            "tensors": each.collect::<Vec<_>>(),
        }))?;
    } else {
        print(&report, &total)?;
        let size = bytes(report.bytes);
        line(format_args!("{} written, {size}, in {}", args.out.display(), duration(seconds)))?;
    }
    // an error of the size of the change is noise as loud as what was learned
    if total.error() > total.change() / 2.0 {
        let share = percent(total.error() / total.change());
        warn(format_args!(
            "encoding's error is {share} of what the layers changed; a larger --type (Q8_0, F16) keeps more"
        ));
    }
    Ok(())
}

fn print(report: &MergeReport, total: &Merged) -> Result<()> {
    let mut table = Table::new(&["tensor", "type", ">change", ">error"]);
    for t in &report.tensors {
        table.row([plain(&t.tensor), t.kind.to_string(), percent(t.change()), percent(t.error())]);
    }
    table.row(["all".into(), String::new(), percent(total.change()), percent(total.error())]);
    table.print(0)?;
    if report.untied {
        line("\nthe head got a matrix of its own, output.weight; the embedding table is as it was")?;
    } else {
        line("")?;
    }
    Ok(())
}

/// Where layers come from
///
/// Without --base only what the files say; with it, each is held against that model, and its id is computed.
///
/// JSON, an object for every layer: {"path", "form", "name", "method", "ranks", "alpha", "parts", "bytes", "id", "base",
/// "base_exact", "base_shape", "seed", "steps", "recipe", "metrics", "data", "parent", "created_by", "warnings"}
#[derive(clap::Args)]
struct List {
    /// GGUF adapters or PEFT directories
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The model that the layers are for
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Print one JSON object for each
    #[arg(long)]
    json: bool,
}

fn list(args: List) -> Result<()> {
    let model = args.base.as_deref().map(open::model).transpose()?;
    let mut bad = 0;
    for (i, path) in args.paths.iter().enumerate() {
        let found = Contents::read(path).and_then(|contents| {
            let held = model.as_deref().map(|m: &Model| Adapter::open(path, m)).transpose()?;
            Ok((contents, held))
        });
        match found {
            Ok((contents, held)) => {
                let lines = describe(path, &contents, held.as_ref().map(|(a, w)| (a, &w[..])));
                if args.json {
                    json(&lines)?;
                } else {
                    show(&lines, i > 0)?;
                }
            }
            Err(e) => {
                error(&e.to_string());
                bad += 1;
            }
        }
    }
    match (bad, args.paths.len()) {
        (0, _) => Ok(()),
        (n, all) => bail!("{n} of {all} cannot be used"),
    }
}

/// What there is to say, as JSON; what the file does not say is null.
fn describe(path: &Path, contents: &Contents, held: Option<(&Adapter, &[Warning])>) -> Value {
    let Contents { form, name, manifest, ranks, alpha, .. } = contents;
    let Manifest { base, base_name, data, recipe, seed, steps, metrics, parent, created_by, .. } = manifest;
    let hex = |hash: &[u8; 32]| Identity::hex(hash);
    let warnings = held.map(|(_, all)| all.iter().map(Warning::to_string).collect::<Vec<_>>());
    json!({
        "path": path.to_string_lossy(), "form": form.name(), "name": name, "method": contents.method,
        "ranks": ranks, "alpha": alpha, "parts": contents.parts(), "bytes": contents.bytes(),
        "id": held.map(|(a, _)| hex(a.id())),
        "base": base_name, "base_exact": base.map(|b| hex(&b.exact)), "base_shape": base.map(|b| hex(&b.shape)),
        "seed": seed, "steps": steps, "recipe": recipe, "metrics": metrics, "data": data.as_ref().map(hex),
        "parent": parent.as_ref().map(hex), "created_by": created_by, "warnings": warnings,
    })
}

/// The same for people: what is null is left out.
fn show(object: &Value, apart: bool) -> Result<()> {
    if apart {
        line("")?;
    }
    line(plain(object["path"].as_str().unwrap_or_default()))?;
    let each = object.as_object().into_iter().flatten();
    for (key, value) in each.filter(|(key, v)| *key != "path" && !v.is_null()) {
        let text = match (key.as_str(), value) {
            ("bytes", n) => bytes(n.as_u64().unwrap_or(0)),
            ("parts", n) => format!("{} products", count(n.as_u64().unwrap_or(0))),
            (_, Value::String(text)) => plain(text),
            (_, Value::Array(all)) if all.is_empty() => "none".into(),
            (_, Value::Array(all)) => {
                let words = all.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
                plain(&words.collect::<Vec<_>>().join(", "))
            }
            (_, other) => plain(&other.to_string()),
        };
        line(format_args!("  {key:<10}  {text}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_can_be_written() {
        assert_eq!(kind("q8_0"), Ok(Type::Q8_0));
        assert!(kind("Q8_1").unwrap_err().contains("Q8_0") && kind("x").is_err());
    }
}
