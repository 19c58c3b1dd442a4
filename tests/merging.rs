//! Adapters folded into their base: the merged file computes what was worn, says what encoding cost, and keeps the rest.

mod support;
use onlay::adapter::{Adapter, Manifest, MergeOptions, MergeReport, NOTE, Targets, Worn, merge};
use onlay::error::{Error, Kind, Result};
use onlay::format::types::Type;
use onlay::model::Model;
use onlay::rng::Rng;
use onlay::tensor::Weights;
use onlay_kernels::Level;
use onlay_kernels::quant::FORMATS;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-merging-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn adapter(model: &Model, targets: &str, rank: usize, seed: u64) -> Arc<Adapter> {
    let layer = Targets::parse(targets).unwrap().layer(model.program(), rank, 0.5).unwrap();
    let mut rng = Rng::new(seed);
    for i in 0..layer.parts().len() {
        layer.params().get(i).iter_mut().for_each(|v| *v = 0.1 * rng.normal());
    }
    Arc::new(Adapter::new("random", layer, Manifest::of(model), model.program()).unwrap())
}

const OPTIONS: MergeOptions =
    MergeOptions { kind: None, overwrite: false, threads: 2, level: Level::PORTABLE };

fn quietly(model: &Model, worn: &Worn, path: &Path, options: &MergeOptions) -> Result<MergeReport> {
    merge(model, worn, path, options, &mut |_, _| Ok(()))
}

/// Largest and mean difference of logits between the worn adapter and the merged file.
fn compare(model: &Arc<Model>, worn: &Worn, path: &Path) -> (f32, f32) {
    let tokens: Vec<u32> = (0..40).map(|i| (13 * i + 5) % 100).collect();
    let want = logits(&mut runner(model, options(1)), &tokens, worn.delta());
    let got = logits(&mut runner(&open(path), options(1)), &tokens, None);
    let pairs = want.iter().flatten().zip(got.iter().flatten());
    let differences: Vec<f32> = pairs.map(|(a, b)| (a - b).abs()).collect();
    (
        differences.iter().copied().fold(0.0, f32::max),
        differences.iter().sum::<f32>() / differences.len() as f32,
    )
}

#[test]
fn merged_in_f32_it_computes_what_was_worn() {
    let scratch = Scratch::new("f32");
    for name in ["llama", "llama-tied-bias", "qwen2", "qwen3"] {
        let model = open(vectors().join(name).join("F32.gguf"));
        let (a, b) = (adapter(&model, "all", 4, 1), adapter(&model, "q,down,head", 2, 2));
        let worn = Worn::new(&model, vec![(a, 1.0), (Arc::clone(&b), -0.5)]).unwrap();
        let path = scratch.0.join(format!("{name}.gguf"));
        let mut last = (0, 0);
        let mut watch = |done, all| {
            assert!(last.0 <= done && done <= all);
            last = (done, all);
            Ok(())
        };
        let report = merge(&model, &worn, &path, &OPTIONS, &mut watch).unwrap();
        assert_eq!((report.bytes, report.bytes), (std::fs::metadata(&path).unwrap().len(), last.1));
        let tied = name != "llama" && name != "qwen3";
        assert_eq!((report.untied, report.tensors.len()), (tied, 2 * 7 + 1));
        assert_eq!(report.total().error(), 0.0);
        let change = report.total().change();
        assert!(change > 0.01 && change < 1.0 && report.tensors.iter().all(|t| t.change() > 0.0), "{change}");
        let (most, _) = compare(&model, &worn, &path);
        println!("{name}: {most:.1e}");
        assert!(most < 1e-3, "{name}: {most}");

        let merged = Weights::open(&path).unwrap();
        for old in model.weights().tensors() {
            let new = merged.tensor(old.name()).unwrap();
            let kept = !report.tensors.iter().any(|t| t.tensor == old.name());
            assert_eq!(kept, old.bytes() == new.bytes(), "{}", old.name());
        }
        let note: serde_json::Value =
            serde_json::from_str(merged.metadata().need_text(NOTE).unwrap()).unwrap();
        assert_eq!(note["adapters"][1]["weight"], -0.5);
        assert_eq!(note["adapters"][0]["id"].as_str().unwrap().len(), 64);

        // the same bytes with other threads
        let again = scratch.0.join("again.gguf");
        let options = MergeOptions { threads: 1, overwrite: true, ..OPTIONS };
        assert_eq!(quietly(&model, &worn, &again, &options).unwrap(), report);
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&path).unwrap());
    }
}

#[test]
fn other_types_cost_what_the_report_says() {
    let scratch = Scratch::new("types");
    let f32s = open(vectors().join("llama/F32.gguf"));
    let halves = open(vectors().join("llama/F16.gguf"));
    let try_one = |model: &Arc<Model>, kind: Option<Type>, bound: f64| {
        let worn = Worn::new(model, vec![(adapter(model, "all,head", 4, 1), 1.0)]).unwrap();
        let path = scratch.0.join("merged.gguf");
        let options = MergeOptions { kind, overwrite: true, ..OPTIONS };
        let report = quietly(model, &worn, &path, &options).unwrap();
        let error = report.total().error();
        let (most, mean) = compare(model, &worn, &path);
        let kind = report.tensors[0].kind;
        println!("{kind}: error {error:.1e}, logits {most:.1e}, mean {mean:.1e}");
        assert!(error > 0.0 && error < bound, "{kind}: {error}");
        assert_eq!(Weights::open(&path).unwrap().tensor("blk.0.attn_q.weight").unwrap().kind(), kind);
        (error, f64::from(most))
    };
    assert!(try_one(&halves, None, 3e-4).1 < 2e-2);
    assert!(try_one(&f32s, Some(Type::BF16), 3e-3).1 < 2e-1);
    // block formats: those that have an encoder
    let mut ones = 0;
    for format in FORMATS {
        let (mut blocks, mut back) = (vec![0; format.bytes], vec![0.0; format.len]);
        (format.encode)(&vec![1.0; format.len], &mut blocks);
        (format.decode)(&blocks, &mut back);
        if (back[0] - 1.0).abs() > 0.2 {
            println!("skipped: {} has no encoder yet", format.name);
            continue;
        }
        ones += 1;
        let kind = Type::from_name(format.name).unwrap();
        let wide = vectors().join(format!("llama-wide/{}.gguf", format.name));
        let (model, to) = if wide.exists() {
            (open(wide), None)
        } else {
            (open(vectors().join("llama-wide/Q8_0.gguf")), Some(kind))
        };
        try_one(&model, to, 0.5);
    }
    println!("{ones} block formats");
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let scratch = Scratch::new("refused");
    let source = scratch.0.join("base.gguf");
    std::fs::copy(vectors().join("llama/F32.gguf"), &source).unwrap();
    let before = std::fs::read(&source).unwrap();
    let model = open(&source);
    let worn = Worn::new(&model, vec![(adapter(&model, "all", 2, 1), 1.0)]).unwrap();
    let to = scratch.0.join("to.gguf");
    let refused = |worn: &Worn, path: &Path, options: &MergeOptions| {
        let error = quietly(&model, worn, path, options).unwrap_err();
        assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1, "{error}");
        error
    };
    assert_eq!(refused(&Worn::default(), &to, &OPTIONS).kind(), Kind::Argument);
    let over = MergeOptions { overwrite: true, ..OPTIONS };
    assert_eq!(refused(&worn, &source, &over).kind(), Kind::Argument);
    // rows of 64 are no blocks of 256: every matrix is named
    let error = refused(&worn, &to, &MergeOptions { kind: Some(Type::Q4_K), ..OPTIONS });
    assert_eq!((error.kind(), error.findings().len()), (Kind::Argument, 14));
    let error = refused(&worn, &to, &MergeOptions { kind: Some(Type::IQ1_S), ..OPTIONS });
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(refused(&worn, &scratch.0.join("none/to.gguf"), &OPTIONS).kind(), Kind::Io);
    let other = open(vectors().join("qwen3/F32.gguf"));
    let foreign = Worn::new(&other, vec![(adapter(&other, "all", 2, 1), 1.0)]).unwrap();
    assert_eq!(refused(&foreign, &to, &OPTIONS).kind(), Kind::Mismatch);
    // stopped half-way
    let mut calls = 0;
    let mut stop = |_, _| {
        calls += 1;
        if calls < 5 { Ok(()) } else { Err(Error::new(Kind::Cancelled, "stopped")) }
    };
    assert_eq!(merge(&model, &worn, &to, &OPTIONS, &mut stop).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1);
    // numbers that leave f32 do not become a file
    let huge = Worn::new(&model, vec![(Arc::clone(&worn.stack()[0].0), 1e38)]).unwrap();
    let error = refused(&huge, &to, &MergeOptions { kind: Some(Type::F16), ..OPTIONS });
    assert_eq!(error.kind(), Kind::Numeric);
    assert!(error.to_string().contains("rows from 0 on"), "{error}");
    assert!(std::fs::read(&source).unwrap() == before);
}
