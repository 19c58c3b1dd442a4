//! Adapters as GGUF files that llama.cpp reads too.
//!
//! ```text
//! general.type           adapter            NAME.lora_a   [inputs, r]   rows of A       NAME: names.rs
//! general.architecture   as the base's      NAME.lora_b   [r, outputs]  rows of B
//! adapter.type           the method         NAME.lora_m   [outputs]     lengths of DoRA
//! adapter.lora.alpha     f32 α              NAME.ia3_l    [1, outputs] or [inputs]
//! onlay.activation       of bottlenecks     NAME.adapter_down [n, r]   NAME.adapter_up [r, m]   NAME.adapter_scaling [1]
//!                                           NAME.beft_bias [outputs]
//! vera_a [most inputs, r]                   NAME.vera_d   [r]
//! vera_b [r, most outputs]                  NAME.vera_b   [outputs]     the shared B in the converted model's order
//! NAME.whole [inputs, outputs]              NAME.norm     [length]      in place of the base's
//! token_embd.weight.token_ids [n] as f32    token_embd.weight.token_rows [width, n]
//! NAME.adalora_a [inputs, r]                NAME.adalora_e [1, r], NAME.adalora_b [r, outputs]
//! front.prompt_embeddings [n, k]            of prefix, prompt and ptuning: a row for each virtual token, see there; keys in the
//!                                           converted model's order
//! NAME.hada_w1_a, w2_a [r, outputs]         NAME.hada_w1_b, w2_b [inputs, r]
//! NAME.lokr_w1 [m, l], NAME.lokr_w2         or .lokr_w1_a, .lokr_w1_b …; outputs in the converted model's order
//! ```
//! llama.cpp knows the type `lora` and refuses others, as it must.
//!
//! To these come the lines of [`manifest`](super::manifest). The scale of a pair is `α/r` with its own r, in f32; 1 if α is 0 or
//! missing, as in llama.cpp (`llama-adapter.h`).
//!
//! # Scales that no single α gives
//! rsLoRA, or another α for some products. The smallest of them is the file's α, and B is written multiplied:
//!
//! ```text
//! onlay.scale.NAME      f32   s, where it is not α/r in every bit
//! onlay.fold.NAME       f64   what B was multiplied with, where it was
//! onlay.rounding.NAME   i8[]  what must be added to the bits of B′/fold, rounded to f32, to get B back; absent if nothing
//! ```
//! So another reader computes the right layer, and ours gets every number back bit for bit.
//!
//! # Read besides
//! F16, BF16 and block-quantized matrices.

use super::bottleneck::one_activation;
use super::contents::{self, Contents, Form};
use super::effect::Key;
use super::gather::{Gather, Half, Terms, all_keys, key_of};
use super::layer::Part;
use super::manifest::Manifest;
use super::methods::{METHODS, Method};
use super::names::Names;
use super::open::{Adapter, Found, Warning, judge};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::files::write_atomically;
use crate::format::gguf::{Builder, Encoded, Metadata, Value, ValueType};
use crate::model::Model;
use crate::tensor::{Matrix, TensorRef, Weights};
use onlay_kernels::activate::{ACTIVATIONS, Activation};
use std::path::Path;

const ALPHA: &str = "adapter.lora.alpha";

/// Tensors that have a rank of rows.
const RANKED: [&str; 6] =
    [".lora_a", ".adapter_down", ".adalora_a", ".hada_w1_b", ".lokr_w1_b", ".lokr_w2_b"];

/// Of all bottlenecks; tanh if absent.
const ACTIVATION: &str = "onlay.activation";

/// The tensor that folds are in.
const B: &str = ".lora_b";

/// Scales closer than this, in units of the last place, are not worth folding.
const CLOSE: i64 = 4;

fn scale_key(name: &str) -> String {
    format!("onlay.scale.{name}")
}

fn fold_key(name: &str) -> String {
    format!("onlay.fold.{name}")
}

fn rounding_key(name: &str) -> String {
    format!("onlay.rounding.{name}")
}

/// Reads an adapter for this model.
///
/// # Errors
/// Everything that is wrong with the file or does not fit the model, at once.
pub(super) fn read(path: &Path, model: &Model) -> Result<Found> {
    let file = Weights::open(path)?;
    let (metadata, program) = (file.metadata(), model.program());
    let names = Names::of(program);
    let method = method_of(metadata).map_err(|e| e.in_file(path))?;
    let mut wrong = Findings::default();
    let (base, adapter) = (model.weights().metadata(), metadata.need_text("general.architecture")?);
    let architecture = base.text("general.architecture")?.unwrap_or_default();
    if adapter != architecture {
        let found = format!("{adapter:?}");
        let error = Error::expected(Kind::Mismatch, "architecture", format!("{architecture:?}"), found);
        wrong.push(error.at(Place::Key("general.architecture".into())));
    }
    if metadata.get("adapter.alora.invocation_tokens").is_some() {
        let place = Place::Key("adapter.alora.invocation_tokens".into());
        wrong.push(Error::new(Kind::Unsupported, "activated LoRA is not supported yet").at(place));
    }
    let manifest = wrong.keep(Manifest::read(|key| text(metadata, key))).unwrap_or_default();
    let warnings = judge(&manifest, model, &mut wrong);
    let alpha = wrong.keep(metadata.f32(ALPHA)).flatten().unwrap_or(0.0);
    if !alpha.is_finite() {
        let error = Error::expected(Kind::Numeric, "value", "a finite number", alpha);
        wrong.push(error.at(Place::Key(ALPHA.into())));
    }

    let name = wrong.keep(name(metadata, path)).unwrap_or_default();
    let activation = wrong.keep(activation(metadata)).unwrap_or_default();

    let mut gather = Gather::new(program, &names, wrong).of(Some(method));
    for tensor in file.tensors() {
        let place = Place::Tensor(tensor.name().into());
        if let Some(which) = ["vera_a", "vera_b"].iter().position(|name| *name == tensor.name()) {
            gather.put_shared(which, place, half(tensor));
            continue;
        }
        match place_of(&names, tensor.name()) {
            Ok((at, key)) => gather.put(at, key, place, half(tensor)),
            Err(e) => gather.wrong.push(e.at(place)),
        }
    }
    let lora = gather
        .finish(
            |at, part| {
                if part.rules().activated() {
                    part.more[0] = activation as usize;
                }
                if !part.rules().scaled() {
                    return Ok(Terms { scale: 0.0, moved: false });
                }
                let plain = if alpha == 0.0 || part.rank == 0 { 1.0 } else { alpha / part.rank as f32 };
                let scale = noted_scale(metadata, names.gguf(at), plain, !method.paired)?;
                Ok(Terms { scale, moved: false })
            },
            |at, key, numbers| match key.gguf {
                B => unfold(metadata, names.gguf(at), numbers),
                _ => Ok(()),
            },
        )
        .map_err(|e| e.in_file(path))?;
    if !lora.parts().iter().flatten().all(|p| method.has(p.effect)) {
        let (expected, found) = (method.name, lora.method().name);
        let error = Error::expected(Kind::Format, "matrices of the method", expected, found);
        return Err(error.at(Place::Key("adapter.type".into())).in_file(path));
    }
    Ok(Found { name, lora, manifest, warnings })
}

/// What the file says without a base.
///
/// # Errors
/// As the reader's; `Argument` if it is no adapter.
pub(super) fn contents(path: &Path) -> Result<Contents> {
    let file = Weights::open(path)?;
    let metadata = file.metadata();
    let method = method_of(metadata)?.name.into();
    let ranks = file
        .tensors()
        .filter(|t| RANKED.iter().any(|end| t.name().ends_with(end)) || t.name() == "vera_a")
        .filter_map(|t| t.dims().get(1).copied());
    let half = |t: TensorRef<'_>| contents::Half {
        name: t.name().into(),
        kind: t.kind().name().into(),
        shape: t.dims().iter().rev().copied().collect(),
        bytes: t.bytes().len() as u64,
    };
    Ok(Contents {
        form: Form::Gguf,
        method,
        name: name(metadata, path)?,
        manifest: Manifest::read(|key| text(metadata, key))?,
        ranks: ranks.collect(),
        alpha: metadata.f32(ALPHA)?.map(f64::from),
        halves: file.tensors().map(half).collect(),
        config: None,
    })
}

/// What kind of adapter the file says it is.
fn method_of(metadata: Metadata<'_>) -> Result<&'static Method> {
    let bad = |key: &str, expected: String, found: &str| {
        let error = Error::expected(Kind::Argument, "file", expected, format!("{found:?}"));
        error.at(Place::Key(key.into()))
    };
    let kind = metadata.need_text("general.type")?;
    if kind != "adapter" {
        return Err(bad("general.type", format!("{:?}", "adapter"), kind));
    }
    let method = metadata.need_text("adapter.type")?;
    Method::named(method).map_err(|_| {
        let all: Vec<_> = METHODS.iter().map(|m| format!("{:?}", m.name)).collect();
        bad("adapter.type", all.join(", "), method)
    })
}

/// What the file calls itself, or is called.
fn name(metadata: Metadata<'_>, path: &Path) -> Result<String> {
    let stem = || path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(metadata.text("general.name")?.map_or_else(stem, str::to_owned))
}

/// The activation that the file names.
fn activation(metadata: Metadata<'_>) -> Result<Activation> {
    let Some(name) = metadata.text(ACTIVATION)? else { return Ok(Activation::default()) };
    Activation::named(name).ok_or_else(|| {
        let all: Vec<_> = ACTIVATIONS.iter().map(|(_, name)| *name).collect();
        let error = Error::expected(Kind::Unsupported, "activation", all.join(", "), format!("{name:?}"));
        error.at(Place::Key(ACTIVATION.into()))
    })
}

/// A line of the manifest, numbers as text.
fn text(metadata: Metadata<'_>, key: &str) -> Result<Option<String>> {
    match metadata.get(key).and_then(|v| v.integer()) {
        Some(n) => Ok(Some(n.to_string())),
        None => Ok(metadata.text(key)?.map(str::to_owned)),
    }
}

fn place_of(names: &Names, tensor: &str) -> Result<(usize, &'static Key)> {
    let Some((name, key)) = key_of(tensor, |key| key.gguf) else {
        let text = format!("is no tensor of a layer: expected NAME and one of {}", all_keys(|key| key.gguf));
        return Err(Error::new(Kind::Unsupported, text));
    };
    match names.from_gguf(name) {
        Some(place) => Ok((place, key)),
        None => Err(Error::new(Kind::Mismatch, format!("this base has no product {name}"))),
    }
}

/// The tensor's rows; a last dim of 1 may have been left out.
fn half<'a>(tensor: TensorRef<'a>) -> Result<Half<'a>> {
    let &[cols, ref rest @ ..] = tensor.dims() else { return Err(Error::new(Kind::Format, "has no dims")) };
    if rest.iter().skip(1).any(|d| *d != 1) {
        return Err(Error::expected(Kind::Format, "dims", "two", format!("{:?}", tensor.dims())));
    }
    let matrix = Matrix::new(tensor).map_err(|e| Error::new(e.kind(), e.text()))?;
    let numbers = move || {
        let mut all = vec![0.0; matrix.rows * matrix.cols];
        all.chunks_exact_mut(matrix.cols).enumerate().for_each(|(i, row)| matrix.decode_row(i, row));
        Ok(all)
    };
    Ok(Half { name: tensor.name().into(), rows: matrix.rows, cols, numbers: Box::new(numbers) })
}

/// The scale of a part, given what α says of it; a `free` one is only noted.
fn noted_scale(metadata: Metadata<'_>, name: &str, plain: f32, free: bool) -> Result<f32> {
    let key = scale_key(name);
    let Some(scale) = metadata.f32(&key)? else {
        let fine = plain.is_finite() && plain != 0.0;
        return fine
            .then_some(plain)
            .ok_or_else(|| metadata.error(ALPHA, format!("gives a scale of {plain}")));
    };
    let says = f64::from(plain) * fold_of(metadata, name)?.unwrap_or(1.0);
    let agrees = free || (f64::from(scale) - says).abs() <= 1e-6 * says.abs();
    if !(scale.is_finite() && scale != 0.0 && agrees) {
        return Err(
            metadata.error(&key, format!("expected {says} as the rest of the file says, found {scale}"))
        );
    }
    Ok(scale)
}

fn fold_of(metadata: Metadata<'_>, name: &str) -> Result<Option<f64>> {
    let key = fold_key(name);
    match metadata.get(&key) {
        None => Ok(None),
        Some(Value::F64(fold)) if fold.is_finite() && fold != 0.0 => Ok(Some(fold)),
        Some(other) => Err(metadata.error(&key, format!("expected an f64 other than 0, found {other}"))),
    }
}

/// B from what was written of it.
fn unfold(metadata: Metadata<'_>, name: &str, b: &mut [f32]) -> Result<()> {
    let (key, places) = (fold_key(name), rounding_key(name));
    let Some(fold) = fold_of(metadata, name)? else { return Ok(()) };
    let mut rounding = match metadata.get(&places) {
        None => None,
        Some(Value::Array(a)) if a.kind() == ValueType::I8 && a.len() == b.len() => Some(a.iter()),
        Some(other) => {
            let expected = format!("expected an array of {} i8, found {other}", b.len());
            return Err(metadata.error(&places, expected));
        }
    };
    for (i, v) in b.iter_mut().enumerate() {
        let places = rounding.as_mut().and_then(|r| r.next()?.integer()).unwrap_or(0);
        let guess = (f64::from(*v) / fold) as f32;
        let original = f32::from_bits(guess.to_bits().wrapping_add_signed(places as i32)); // an i8
        if folded(original, fold).to_bits() != v.to_bits() {
            let text = format!("number {i} of {name}.lora_b was changed: it is not a number times {fold}");
            return Err(metadata.error(&key, text));
        }
        *v = original;
    }
    Ok(())
}

fn folded(v: f32, fold: f64) -> f32 {
    (f64::from(v) * fold) as f32
}

/// How many steps of the last place lie between two numbers of one sign.
fn steps(a: f32, b: f32) -> i64 {
    i64::from(a.to_bits()) - i64::from(b.to_bits())
}

/// The α that gives a part its scale.
fn alpha_of(part: &Part) -> f32 {
    (f64::from(part.scale) * part.rank as f64) as f32
}

/// Writes an adapter of this model.
///
/// # Errors
/// As [`write_atomically`]; `Numeric` where a scale or a folded number is too large for f32.
pub(super) fn write(adapter: &Adapter, model: &Model, path: &Path, overwrite: bool) -> Result<Vec<Warning>> {
    let (lora, names) = (adapter.lora(), Names::of(model.program()));
    let mut builder = Builder::new();
    let architecture = model.weights().metadata().need_text("general.architecture")?;
    builder.set("general.architecture", architecture).set("general.type", "adapter");
    builder.set("adapter.type", lora.method().name).set("general.name", adapter.name());
    let paired = lora.method().paired;
    let alphas = lora.parts().iter().flatten().filter(|_| paired).map(alpha_of);
    let alpha = alphas.min_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    if paired {
        builder.set(ALPHA, alpha);
    }
    for (key, text) in adapter.manifest().lines(lora.method()) {
        match text.parse::<u64>() {
            Ok(n) if matches!(key, "onlay.seed" | "onlay.steps") => builder.set(key, n),
            Ok(n) if key == "onlay.format" => builder.set(key, n as u32),
            _ => builder.set(key, text),
        };
    }
    if let Some(s) = lora.shared() {
        let kind = crate::format::types::Type::F32;
        builder.tensor_from("vera_a", kind, &[s.inputs, s.rank], |sink| sink.put_f32s(&s.a));
        let rows = (0..s.outputs).flat_map(|o| (0..s.rank).map(move |j| (o, j)));
        let b: Vec<f32> = rows.map(|(o, j)| s.b[j * s.outputs + o]).collect();
        builder.tensor_from("vera_b", kind, &[s.rank, s.outputs], move |sink| sink.put_f32s(&b));
    }
    let mut warnings = Vec::new();
    let mut wrong = Findings::default();
    if let Some(activation) = one_activation(lora.parts(), &mut wrong) {
        builder.set(ACTIVATION, activation.name());
    }
    for (i, part) in lora.parts().iter().enumerate() {
        let Some(part) = *part else { continue };
        let name = names.gguf(i);
        if names.tied(i) {
            warnings.push(Warning::TiedHead);
        }
        // what one α says of all places; others are folded into B, where there is one
        let plain = if alpha == 0.0 || part.rank == 0 { 1.0 } else { alpha / part.rank as f32 };
        let scaled = part.rules().scaled();
        if scaled && plain.to_bits() != part.scale.to_bits() {
            builder.set(&scale_key(name), part.scale);
        }
        let close = plain.signum() == part.scale.signum() && steps(plain, part.scale).abs() <= CLOSE;
        let fold = (scaled && !close).then(|| f64::from(part.scale) / f64::from(plain));
        let mut first = 0;
        for tensor in part.rules().tensors(&part) {
            let (here, key) = (first..first + tensor.len(), tensor.key.gguf);
            first = here.end;
            let (kind, dims) = (crate::format::types::Type::F32, tensor.dims());
            let numbers = move || tensor.filed(&lora.params().read(i)[here.clone()], |row| row);
            let name = format!("{name}{key}");
            let Some(fold) = fold.filter(|_| key == B) else {
                builder.tensor_from(&name, kind, &dims, move |sink| sink.put_f32s(&numbers()));
                continue;
            };
            let mut b = numbers();
            let Some(rounding) = wrong.keep(fold_into(names.gguf(i), fold, &mut b)) else { continue };
            builder.set(&fold_key(names.gguf(i)), fold);
            if rounding.iter().any(|r| *r != 0) {
                builder.set(&rounding_key(names.gguf(i)), Encoded::array(&rounding));
            }
            builder.tensor_from(&name, kind, &dims, move |sink| sink.put_f32s(&b));
        }
    }
    wrong.refuse("the adapter cannot be written as a GGUF file").map_err(|e| e.in_file(path))?;
    write_atomically(path, overwrite, |out| builder.write(out))?;
    Ok(warnings)
}

/// Multiplies B, and says what its inverse misses.
fn fold_into(name: &str, fold: f64, b: &mut [f32]) -> Result<Vec<i8>> {
    let one = |v: &mut f32| {
        let by = folded(*v, fold);
        let places = steps(*v, (f64::from(by) / fold) as f32);
        *v = by;
        i8::try_from(places).ok().filter(|_| by.is_finite())
    };
    b.iter_mut().map(one).collect::<Option<_>>().ok_or_else(|| {
        let text = format!("numbers times {fold}, which this file needs, are too large");
        Error::new(Kind::Numeric, text).at(Place::Tensor(format!("{name}.lora_b")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn folding_loses_no_bit() {
        let mut rng = Rng::new(3);
        for fold in [1.0000003, 1.3333334, 1.5, 2.0, 3.7, -2.5, 1e6] {
            let mut b: Vec<f32> = (0..4000).map(|_| f32::from_bits(rng.next_u64() as u32)).collect();
            b.retain(|v| v.abs() < 1e30);
            b.extend([0.0, -0.0, 1e-45, -1e-45, 1e-40, f32::MIN_POSITIVE]);
            let original = b.clone();
            let rounding = fold_into("x", fold, &mut b).unwrap();
            let mut file = Vec::new();
            let mut builder = Builder::new();
            builder.set("onlay.fold.x", fold).set("onlay.rounding.x", Encoded::array(&rounding));
            builder.write(&mut file).unwrap();
            let directory = crate::format::gguf::parse(&file).unwrap();
            unfold(directory.metadata(&file), "x", &mut b).unwrap();
            let bits = |b: &[f32]| b.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&b), bits(&original), "{fold}");
        }
        assert!(fold_into("x", 2.0, &mut [3e38]).is_err());
    }
}
