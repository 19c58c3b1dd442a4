//! Adapters as PEFT keeps them: a directory with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! ```text
//! base_model.model.PATH.lora_A.weight   [r][inputs]
//! base_model.model.PATH.lora_B.weight   [outputs][r]     rows in the order of the converted model: names.rs
//! base_model.model.PATH.lora_magnitude_vector   [outputs]     with use_dora
//! base_model.model.PATH.ia3_l                   [outputs][1], or [1][inputs] for feedforward_modules
//! base_model.vera_A [r][most inputs]     base_model.model.PATH.vera_lambda_d [r]
//! base_model.vera_B [most outputs][r]    base_model.model.PATH.vera_lambda_b [outputs]
//! base_model.model.PATH.lora_A, lora_E, lora_B  [r][inputs], [r][1], [outputs][r]     AdaLoRA; s = α/(init_r + 1e-5)
//! base_model.model.PATH.hada_w1_a, w2_a         [outputs][r]     ….hada_w1_b, w2_b [r][inputs]
//! base_model.model.PATH.lokr_w1, w2             or lokr_w1_a, lokr_w1_b …, in the converted model's order of outputs
//! base_model.model.PATH.weight                  [outputs][inputs]     whole matrices, as of modules_to_save
//! base_model.model.PATH.ln_tuning_layers.weight [length]
//! base_model.model.model.embed_tokens.trainable_tokens_delta [n][width] the rows of token_indices
//! prompt_embeddings [k][n]     of prefix tuning, prompt tuning and P-tuning: the only tensor there
//! base_model.model.PATH.adapter_down.weight [b][n]  .adapter_up.weight [m][b]  .adapter_scaling [1]   bottlenecks.rs
//! base_model.model.PATH.beft_bias               [1][outputs]
//! s = α/r, or α/√r with use_rslora; r and α by rank_pattern and alpha_pattern
//! ```
//! F32, F16 and BF16 are read, F32 is written. Tensors `PATH.base_layer.*`, which PEFT saves beside an adapted head, are
//! the base's and are skipped. Everything else that PEFT would pass over, or that would change what is computed, is
//! refused by name. The lines of our [`manifest`](super::manifest) are texts in the tensors' file, which PEFT ignores.

mod bottlenecks;
mod config;
mod make;
mod products;
mod prompts;
mod tensors;

use super::contents::{self, Contents, Form};
use super::effect::Key;
use super::gather::{Gather, Half, Terms, all_keys, key_of};
use super::manifest::Manifest;
use super::methods::Method;
use super::names::{Names, ROOT};
use super::open::{Adapter, Found, judge};
use super::tokens;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::files::{directory_of, flush_directory, write_atomically};
use crate::model::Model;
use config::Config;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tensors::{Matrix, Tensors};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// Tensors that have a rank of rows.
const RANKED: [&str; 7] = [
    ".lora_A.weight",
    ".adapter_down.weight",
    ".vera_A",
    ".lora_A",
    ".hada_w1_b",
    ".lokr_w1_b",
    ".lokr_w2_b",
];
/// What VeRA's products share.
const SHARED: [&str; 2] = ["base_model.vera_A", "base_model.vera_B"];

/// Reads an adapter for this model.
///
/// # Errors
/// Everything that is wrong with the directory or does not fit the model, at once.
pub(super) fn read(directory: &Path, model: &Model) -> Result<Found> {
    let (json, tensors) = open(directory)?;
    let mut wrong = Findings::default();
    let config = Config::new(&json, &mut wrong);
    let manifest = wrong.keep(Manifest::read(|key| Ok(tensors.text(key)))).unwrap_or_default();
    let warnings = judge(&manifest, model, &mut wrong);
    let names = Names::of(model.program());
    let method = Method::named(config.method).ok();
    let mut gather = Gather::new(model.program(), &names, wrong).of(method);
    // rows of a table that the head shares, a second time
    let mut again = None;
    for name in tensors.names() {
        let half = || -> Result<_> {
            let flat = key_of(&name, |key| key.peft).is_some_and(|(_, key)| key.flat);
            let (rows, cols) = tensors.shape(&name, flat)?;
            let (tensors, name) = (&tensors, name.clone());
            Ok(Half { name: name.clone(), rows, cols, numbers: Box::new(move || tensors.numbers(&name)) })
        };
        if let Some(which) = SHARED.iter().position(|shared| *shared == name) {
            gather.put_shared(which, shown(&name), half());
            continue;
        }
        match place_of(&names, &config, &name) {
            Ok(None) if name.ends_with(tokens::KEYS[1].peft) => {
                let shape = gather.wrong.keep(tensors.shape(&name, false).map_err(|e| e.at(shown(&name))));
                again = shape.map(|_| name.clone());
            }
            Ok(None) => {}
            // where AdaLoRA has left nothing
            Ok(Some(_)) if config.method == "adalora" && tensors.is_empty(&name) => {}
            Ok(Some((place, key))) => gather.put(place, key, shown(&name), half()),
            Err(e) => gather.wrong.push(e.at(shown(&name))),
        }
    }
    if !config.tokens.is_empty() {
        let (rows, tokens) = (config.tokens.len(), config.tokens.clone());
        let name = "token_indices".to_owned();
        let half = Half { name, rows, cols: 1, numbers: Box::new(move || Ok(tokens.clone())) };
        gather.put(
            model.program().table_place(),
            &tokens::KEYS[0],
            Place::Key("token_indices".into()),
            Ok(half),
        );
    }
    let lora = gather.finish(
        |place, part| {
            if !part.rules().scaled() {
                return Ok(Terms { scale: 0.0, moved: true });
            }
            let module = names.module(place).unwrap_or_default();
            Ok(Terms { scale: config.complete(module, part)?, moved: true })
        },
        |_, _, _| Ok(()),
    )?;
    if let Some(name) = again {
        let table = model.program().table_place();
        let rows = lora.params().read(table);
        let first = lora.parts().get(table).and_then(|p| Some(p.as_ref()?.rank)).unwrap_or(rows.len());
        if tensors.numbers(&name)? != rows[first..] {
            let text = "is not what the table's rows are, which the head shares";
            return Err(Error::new(Kind::Format, text).at(shown(&name)));
        }
    }
    let method = Method::named(config.method)?;
    if !lora.parts().iter().flatten().all(|p| method.has(p.effect)) {
        let (expected, found) = (method.name, lora.method().name);
        return Err(Error::expected(Kind::Format, "matrices of the method", expected, found));
    }
    config.virtual_tokens(lora.parts())?;
    let base_name = manifest.base_name.clone().or(config.base_name);
    Ok(Found { name: name(directory), lora, manifest: Manifest { base_name, ..manifest }, warnings })
}

/// The configuration and the tensors.
fn open(directory: &Path) -> Result<(Value, Tensors)> {
    let tensors_at = directory.join(TENSORS);
    if !tensors_at.exists() && directory.join("adapter_model.bin").exists() {
        let text =
            format!("adapter_model.bin is not read, for it may carry code; save it again as {TENSORS}");
        return Err(Error::new(Kind::Unsupported, text).in_file(directory));
    }
    Ok((config::load(&directory.join(CONFIG))?, Tensors::open(&tensors_at)?))
}

/// What the directory says without a base.
///
/// # Errors
/// As the reader's.
pub(super) fn contents(directory: &Path) -> Result<Contents> {
    let (json, tensors) = open(directory)?;
    let halves: Vec<_> = tensors.all().collect();
    let ranks = halves.iter().filter(|h: &&contents::Half| RANKED.iter().any(|end| h.name.ends_with(end)));
    let manifest = Manifest::read(|key| Ok(tensors.text(key)))?;
    let base_name = json.get("base_model_name_or_path").and_then(Value::as_str).filter(|n| !n.is_empty());
    Ok(Contents {
        form: Form::Peft,
        method: config::method(&json),
        name: name(directory),
        ranks: ranks.filter_map(|h| h.shape.first().copied()).collect(),
        manifest: Manifest { base_name: manifest.base_name.or(base_name.map(str::to_owned)), ..manifest },
        alpha: json.get("lora_alpha").or(json.get("alpha")).and_then(Value::as_f64),
        halves,
        config: Some(json),
    })
}

fn name(directory: &Path) -> String {
    directory.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A name that nobody has vouched for, not longer than a message should be.
fn shown(name: &str) -> Place {
    Place::Tensor(name.chars().take(120).collect())
}

/// Which tensor of which place one is; `None` for those of the base.
fn place_of(names: &Names, config: &Config, tensor: &str) -> Result<Option<(usize, &'static Key)>> {
    let unsupported = |text: &str| Err(Error::new(Kind::Unsupported, text));
    let path = tensor.strip_prefix(ROOT).unwrap_or(tensor);
    if path.ends_with(".base_layer.weight") || path.ends_with(".base_layer.bias") {
        return Ok(None);
    }
    let Some((module, key)) = key_of(path, |key| key.peft) else {
        let text = format!(
            "is no tensor of a layer (whole trained modules are not supported): expected one that ends in {}",
            all_keys(|key| key.peft)
        );
        return match () {
            () if path.contains(".lora_embedding_") => {
                unsupported("a layer around the token embedding is not supported yet")
            }
            () if path.ends_with(".bias") => unsupported("trained biases are not supported yet"),
            () => unsupported(&text),
        };
    };
    if module.is_empty() {
        // what stands in front of a sequence is outside the module tree
        return match names.from_module(module) {
            Some(place) if path.len() == tensor.len() => Ok(Some((place, key))),
            _ => Err(Error::new(Kind::Format, format!("expected the name {} alone", key.peft))),
        };
    }
    if !tensor.starts_with(ROOT) {
        return Err(Error::new(Kind::Format, format!("expected a name that begins with {ROOT}")));
    }
    let head = module == "lm_head" && std::ptr::eq(key, &tokens::KEYS[1]);
    if head && names.from_module(module).is_some_and(|head| names.tied(head)) {
        return Ok(None); // the same rows a second time
    }
    let Some(place) = names.from_module(module) else {
        let shown: String = module.chars().take(80).collect();
        return Err(Error::new(Kind::Mismatch, format!("this base has no product {shown}")));
    };
    if !config.targets(module) {
        return Err(Error::new(Kind::Mismatch, "target_modules do not name it, so PEFT would pass over it"));
    }
    Ok(Some((place, key)))
}

/// Writes an adapter of this model as a directory.
///
/// # Errors
/// `Argument` if there is something at the path and `overwrite` is off; `Unsupported` for products that have no module
/// path; `Io`.
pub(super) fn write(adapter: &Adapter, model: &Model, directory: &Path, overwrite: bool) -> Result<()> {
    let names = Names::of(model.program());
    let mut wrong = Findings::default();
    let mut matrices = Vec::new();
    for (i, part) in adapter.parts().iter().enumerate() {
        let Some(part) = *part else { continue };
        if names.module(i).is_none() {
            let error = Error::new(Kind::Unsupported, "PEFT has no name for this product");
            wrong.push(error.at(Place::Tensor(names.gguf(i).into())));
            continue;
        }
        let (names, mut first) = (&names, 0);
        for tensor in part.rules().tensors(&part) {
            let here = first..first + tensor.len();
            first = here.end;
            if std::ptr::eq(tensor.key, &tokens::KEYS[0]) {
                continue; // in the configuration
            }
            let (name, shape) = (names.peft(i, tensor.key).unwrap_or_default(), tensor.shape());
            let numbers = move || tensor.filed(&adapter.numbers(i)[here.clone()], |row| names.row(i, row));
            matrices.push(Matrix { name, shape, numbers: Box::new(numbers) });
        }
    }
    // PEFT keeps the rows of a table that the head shares a second time
    let table = model.program().table_place();
    if let (Some(Some(part)), true) = (adapter.parts().get(table), names.tied(model.program().head.site)) {
        let name = format!("{ROOT}lm_head{}", tokens::KEYS[1].peft);
        let rows = part.rank;
        let numbers = move || adapter.numbers(table)[rows..].to_vec();
        matrices.push(Matrix { name, shape: vec![rows, part.outputs], numbers: Box::new(numbers) });
    }
    if let Some(s) = adapter.lora().shared() {
        let rows = move || (0..s.outputs).flat_map(move |o| (0..s.rank).map(move |j| (o, j)));
        let b = move || rows().map(|(o, j)| s.b[j * s.outputs + o]).collect();
        let a = move || s.a.clone();
        let (a_name, b_name) = (SHARED[0].into(), SHARED[1].into());
        matrices.push(Matrix { name: a_name, shape: vec![s.rank, s.inputs], numbers: Box::new(a) });
        matrices.push(Matrix { name: b_name, shape: vec![s.outputs, s.rank], numbers: Box::new(b) });
    }
    bottlenecks::check(adapter.parts(), &mut wrong);
    wrong.refuse("the adapter cannot be written for PEFT")?;
    let config = match (prompts::make(model.program(), adapter), products::make(&names, adapter)) {
        (Some(config), _) => config,
        (None, Some(config)) => config?,
        (None, None) => make::make(&names, adapter),
    };
    let mut texts = vec![("format", "pt".to_owned())];
    texts.extend(adapter.manifest().lines(adapter.method()));

    // A new directory gets its name when it is complete; in an old one each file is replaced in one step.
    let old = std::fs::symlink_metadata(directory).is_ok();
    if old && !overwrite {
        let text = "exists already; overwrite replaces it";
        return Err(Error::new(Kind::Argument, text).in_file(directory));
    }
    // Overwriting is meant for an adapter, not for a folder of something else.
    if old && !directory.join(CONFIG).is_file() {
        let text = format!("exists and is no adapter's directory: there is no {CONFIG} in it");
        return Err(Error::new(Kind::Argument, text).in_file(directory));
    }
    let staging = if old { None } else { Some(Staging::beside(directory)?) };
    let into = staging.as_ref().map_or(directory, |s| &s.0);
    write_atomically(&into.join(TENSORS), overwrite, |out| tensors::write(out, &texts, matrices))?;
    write_atomically(&into.join(CONFIG), overwrite, |out| {
        serde_json::to_writer_pretty(&mut *out, &config)
            .map_err(|e| Error::new(Kind::Io, format!("cannot write: {e}")))
    })?;
    match staging {
        Some(staging) => staging.put_at(directory),
        None => Ok(()),
    }
}

/// A directory that is removed unless it gets its place.
struct Staging(PathBuf);

impl Staging {
    fn beside(target: &Path) -> Result<Staging> {
        let Some(name) = target.file_name() else {
            return Err(Error::new(Kind::Argument, "the path names no directory").in_file(target));
        };
        let short: String = name.to_string_lossy().chars().take(40).collect();
        for n in 0..100 {
            let path = target.with_file_name(format!(".{short}.{}-{n}.tmp", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Staging(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create a directory beside", target, e)),
            }
        }
        Err(Error::new(Kind::Io, "no free name for a temporary directory").in_file(target))
    }

    fn put_at(mut self, target: &Path) -> Result<()> {
        std::fs::rename(&self.0, target)
            .map_err(|e| Error::io("put the finished directory at", target, e))?;
        self.0 = PathBuf::new();
        flush_directory(directory_of(target))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
