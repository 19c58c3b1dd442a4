//! The header's structs and their defaults. `structs_are_those_of_the_header` compares the layouts.

use super::boundary::{StructOut, Text, export, plain};
use super::failure::{Done, Failure};
use crate::backend::Device;
use crate::error::{Error, Kind};
use crate::model::Model;
use crate::ops::kv::Precision;

plain! {
    /// What there is to know about a model.
    ModelInfo, "onlay_model_info" {
        vocabulary: u64 = 0,
        context: u64 = 0,
        bos: i64 = -1,
        eos: i64 = -1,
        has_tokenizer: u32 = 0,
        has_template: u32 = 0,
    }
}

plain! {
    /// What a session is planned for.
    SessionOptions, "onlay_session_options" {
        context: u64 = 0,
        rows: u64 = 512,
        threads: u32 = 0,
        kv: i32 = KV_F16,
        adapter_rank: u32 = 64,
        polite: u32 = 0,
        device: Text = Text::EMPTY,
        gpu_memory: u64 = 0,
    }
}

plain! {
    /// How to choose tokens, and when to end.
    GenerateOptions, "onlay_generate_options" {
        max_tokens: u64 = 0,
        temperature: f32 = 0.8,
        top_p: f32 = 0.95,
        min_p: f32 = 0.05,
        repeat_penalty: f32 = 1.0,
        top_k: u64 = 40,
        repeat_window: u64 = 64,
        seed: u64 = 0,
        stop: *const Text = std::ptr::null(),
        stop_len: usize = 0,
        raw: u32 = 0,
        reserved: u32 = 0,
    }
}

plain! {
    /// What was generated.
    Generated, "onlay_generated" {
        tokens: u64 = 0,
        end: i32 = 0,
        reserved: u32 = 0,
    }
}

plain! {
    /// A run.
    TrainOptions, "onlay_train_options" since polite {
        data: Text = Text::EMPTY,
        data_format: Text = Text::EMPTY,
        eval_data: Text = Text::EMPTY,
        output: Text = Text::EMPTY,
        init_adapter: Text = Text::EMPTY,
        targets: Text = Text::EMPTY,
        rank: u64 = 16,
        alpha: f64 = 0.0,
        dropout: f64 = 0.0,
        learning_rate: f64 = 0.0,
        weight_decay: f64 = 0.0,
        max_grad_norm: f64 = 1.0,
        epochs: f64 = 3.0,
        max_steps: u64 = 0,
        warmup_steps: u64 = 0,
        batch_size: u64 = 8,
        grad_accumulation: u64 = 1,
        context: u64 = 0,
        seed: u64 = 0,
        eval_split: f64 = 0.0,
        eval_every: u64 = 0,
        checkpoint_every: u64 = 0,
        checkpoint_seconds: f64 = 300.0,
        threads: u32 = 0,
        kv: i32 = KV_F16,
        schedule: i32 = SCHEDULE_COSINE,
        start: i32 = START_NEW,
        shuffle: u32 = 1,
        pack: u32 = 1,
        truncate: u32 = 0,
        overwrite: u32 = 0,
        objective: Text = Text::EMPTY,
        beta: f64 = f64::NAN,
        label_smoothing: f64 = f64::NAN,
        simpo_gamma: f64 = f64::NAN,
        desirable_weight: f64 = f64::NAN,
        undesirable_weight: f64 = f64::NAN,
        method: Text = Text::EMPTY,
        layer_options: Text = Text::EMPTY,
        optimizer: Text = Text::EMPTY,
        device: Text = Text::EMPTY,
        gpu_memory: u64 = 0,
        polite: u32 = 0,
        reserved: u32 = 0,
    }
}

plain! {
    /// How far a run is.
    Progress, "onlay_progress" {
        step: u64 = 0,
        steps: u64 = 0,
        tokens: u64 = 0,
        loss: f64 = f64::NAN,
        lr: f64 = f64::NAN,
        grad_norm: f64 = f64::NAN,
        eval_loss: f64 = f64::NAN,
        tokens_per_second: f64 = f64::NAN,
        seconds_left: f64 = f64::NAN,
        planned_bytes: u64 = 0,
        peak_bytes: u64 = 0,
        phase: u32 = 0,
        reserved: u32 = 0,
        margin: f64 = f64::NAN,
        accuracy: f64 = f64::NAN,
        eval_accuracy: f64 = f64::NAN,
    }
}

plain! {
    /// What a run has done.
    Trained, "onlay_trained" {
        steps: u64 = 0,
        first_loss: f64 = f64::NAN,
        last_loss: f64 = f64::NAN,
        eval_before: f64 = f64::NAN,
        eval_after: f64 = f64::NAN,
        seconds: f64 = f64::NAN,
        peak_bytes: u64 = 0,
    }
}

pub(super) const KV_F32: i32 = 1;
pub(super) const KV_F16: i32 = 2;
pub(super) const KV_Q8: i32 = 3;
pub(super) const SCHEDULE_CONSTANT: i32 = 1;
pub(super) const SCHEDULE_LINEAR: i32 = 2;
pub(super) const SCHEDULE_COSINE: i32 = 3;
pub(super) const START_NEW: i32 = 1;
pub(super) const START_RESUME: i32 = 2;
pub(super) const START_OVER: i32 = 3;

/// Positions unless told, if the model was trained for as many.
pub(super) const CONTEXT: usize = 2048;
/// No cache of this interface has more positions; sizes computed from it stay far from overflowing.
const MOST_CONTEXT: u64 = 1 << 24;

/// A count from C within its range.
pub(super) fn count(value: u64, least: u64, most: u64, name: &str) -> Done<usize> {
    if !(least..=most).contains(&value) {
        return Err(Failure::argument(format!("{name}: expected {least} to {most}, found {value}")));
    }
    usize::try_from(value).map_err(|_| Failure::argument(format!("{name}: {value} is too large here")))
}

/// 0 or 1.
pub(super) fn flag(value: u32, name: &str) -> Done<bool> {
    count(value.into(), 0, 1, name).map(|v| v == 1)
}

/// A field that has no meaning yet.
pub(super) fn reserved(value: u32) -> Done {
    match value {
        0 => Ok(()),
        _ => Err(Error::expected(Kind::Unsupported, "reserved", 0, value).into()),
    }
}

/// A set of flags of which only `known` exist.
pub(super) fn flags(value: u32, known: u32) -> Done {
    match value & !known {
        0 => Ok(()),
        unknown => Err(Failure::argument(format!("flags: {unknown:#x} is not known to this call"))),
    }
}

/// The context to use; 0 asks for the default.
pub(super) fn context(value: u64, most: usize, model: &Model) -> Done<usize> {
    if value == 0 {
        return Ok(most.min(model.program().context).max(1));
    }
    count(value, 1, MOST_CONTEXT, "context")
}

/// Threads; 0 asks for the default.
pub(super) fn threads(value: u32) -> Done<Option<usize>> {
    count(value.into(), 0, 1024, "threads").map(|n| (n > 0).then_some(n))
}

pub(super) fn precision(value: i32) -> Done<Precision> {
    match value {
        KV_F32 => Ok(Precision::F32),
        KV_F16 => Ok(Precision::F16),
        KV_Q8 => Ok(Precision::Q8),
        other => Err(Failure::argument(format!("kv: expected ONLAY_KV_..., found {other}"))),
    }
}

/// What computes; without a name the host. 0 bytes ask for the default.
pub(super) fn device(name: &Text, memory: u64) -> Done<Device> {
    let device = match utf8(name.bytes("device")?, "device")? {
        "" => Device::Host,
        name => Device::named(name)?,
    };
    if memory > 0 { Ok(device.within(memory)?) } else { Ok(device) }
}

pub(super) fn utf8<'a>(bytes: &'a [u8], name: &str) -> Done<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| Failure::argument(format!("{name}: not UTF-8: {e}")))
}

/// A path; bytes on Unix, UTF-8 elsewhere.
pub(super) fn path(bytes: &[u8], name: &str) -> Done<std::path::PathBuf> {
    if bytes.is_empty() {
        return Err(Failure::argument(format!("{name}: the path is empty")));
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    Ok(utf8(bytes, name)?.into())
}

export! {
    fn onlay_session_options_init(options: StructOut<SessionOptions>, struct_size: usize) {
        options.init(struct_size, "options")
    }

    fn onlay_generate_options_init(options: StructOut<GenerateOptions>, struct_size: usize) {
        options.init(struct_size, "options")
    }

    fn onlay_train_options_init(options: StructOut<TrainOptions>, struct_size: usize) {
        options.init(struct_size, "options")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_those_of_the_header() {
        let header = include_str!("../../include/onlay.h");
        let mut checks = String::from("#include \"onlay.h\"\n");
        let all = [
            ModelInfo::LAYOUT,
            SessionOptions::LAYOUT,
            GenerateOptions::LAYOUT,
            Generated::LAYOUT,
            TrainOptions::LAYOUT,
            Progress::LAYOUT,
            Trained::LAYOUT,
        ];
        for (name, size, fields) in all {
            let body = header.split(&format!("typedef struct {name} {{")).nth(1).unwrap();
            let body = body.split('}').next().unwrap();
            let code: String = body.lines().map(|l| l.split("/*").next().unwrap()).collect();
            assert_eq!(code.matches(';').count(), fields.len() + 1, "{name}");
            checks += &format!("_Static_assert(sizeof({name}) == {size}, \"{name}\");\n");
            for (field, kind, offset) in fields {
                let kind = match *kind {
                    "u32" => "uint32_t",
                    "i32" => "int32_t",
                    "u64" => "uint64_t",
                    "i64" => "int64_t",
                    "usize" => "size_t",
                    "f32" => "float",
                    "f64" => "double",
                    "Text" => "onlay_text",
                    "*const Text" => "const onlay_text *",
                    other => panic!("what is {other} in C?"),
                };
                let same = format!("_Generic((({name} *)0)->{field}, {kind}: 1, default: 0)");
                let text = format!("offsetof({name}, {field}) == {offset} && {same}");
                checks += &format!("_Static_assert({text}, \"{name}.{field}\");\n");
            }
        }
        let file = std::env::temp_dir().join(format!("onlay-layout-{}.c", std::process::id()));
        std::fs::write(&file, checks).unwrap();
        let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
        let cc = std::process::Command::new("cc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", include])
            .arg(&file)
            .output();
        let _ = std::fs::remove_file(&file);
        match cc {
            Err(_) => println!("skipped: no C compiler"),
            Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
        }
    }

    #[test]
    fn defaults_are_those_of_the_engine() {
        let o = crate::train::RunOptions::new(onlay_kernels::Level::PORTABLE, 1);
        let t = TrainOptions::default();
        assert_eq!((t.batch_size, t.grad_accumulation), (o.batch_size as u64, o.grad_accumulation as u64));
        assert_eq!((t.learning_rate, t.max_grad_norm), (0.0, o.recipe.max_norm));
        assert_eq!(o.length, crate::train::Length::Epochs(t.epochs));
        assert_eq!((t.shuffle == 1, t.pack == 1), (o.shuffle, o.pack));
        assert_eq!(Some(std::time::Duration::from_secs_f64(t.checkpoint_seconds)), o.checkpoint_after);
        let (g, c) = (GenerateOptions::default(), crate::engine::Choice::default());
        assert_eq!((g.temperature, g.top_p, g.min_p), (c.temperature, c.top_p, c.min_p));
        assert_eq!((g.top_k, g.repeat_window), (c.top_k as u64, c.repeat_window as u64));
        let e = crate::engine::EngineOptions::default();
        assert_eq!((CONTEXT, SessionOptions::default().rows), (e.context, e.rows as u64));
        assert_eq!(precision(KV_F16).unwrap(), e.kv);
    }
}
