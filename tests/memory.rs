//! What a run takes, against what its plan says: the anonymous memory of a process that does nothing else, at its peak.
//!
//! A configuration is a process of its own, this test's own program, so that nobody else's memory counts. Its memory is
//! looked at every fraction of a millisecond and after every step; mapped pages of the base are not in it. Some twelve
//! configurations run by default, and with `ONLAY_TEST_MEMORY_GRID` a hundred and more.
//!
//! The models are as small as they can be for their registers, layers and logits to be most of the process: the two or three
//! megabytes that every process of this kind holds are no part of a plan.

use onlay::adapter::{Method, New, Targets};
use onlay::format::gguf::{Builder, Encoded};
use onlay::format::types::Type;
use onlay::model::{Mixture, Model, quantize};
use onlay::ops::kv::Precision;
use onlay::rng::Rng;
use onlay::tensor::Weights;
use onlay::train::objective;
use onlay::train::{
    Data, Example, Flow, Keep, Length, Optimizer, Origin, Recipe, Role, Run, RunOptions, Set, held_memory,
};
use onlay_kernels::Level;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where the models lie, and what a child process is to run.
const FOLDER: &str = "ONLAY_TEST_MEMORY_FOLDER";
const CASE: &str = "ONLAY_TEST_MEMORY_CASE";

/// Switches the whole grid on.
const GRID: &str = "ONLAY_TEST_MEMORY_GRID";

/// The least and the most that the peak may be of the plan.
const BOUNDS: (f64, f64) = (0.85, 1.0);

/// One configuration; as text, its fields between spaces.
#[derive(Clone, Debug)]
struct Case {
    model: &'static str,
    method: &'static str,
    targets: &'static str,
    rank: usize,
    /// Tokens of a row.
    ctx: usize,
    /// Rows of a step.
    batch: usize,
    rows: Option<usize>,
    keep: Keep,
    optimizer: Optimizer,
    threads: usize,
    kv: &'static str,
    dropout: f64,
    objective: &'static str,
    eval: bool,
}

impl Case {
    fn line(&self) -> String {
        let keep = if self.keep == Keep::Registers { "registers" } else { "streams" };
        let rows = self.rows.map_or("usual".into(), |r| r.to_string());
        format!(
            "{} {} {} {} {} {} {rows} {keep} {} {} {} {} {} {}",
            self.model,
            self.method,
            self.targets,
            self.rank,
            self.ctx,
            self.batch,
            self.optimizer.name(),
            self.threads,
            self.kv,
            self.dropout,
            self.objective,
            if self.eval { "eval" } else { "-" }
        )
    }
}

/// Shapes: width, feed-forward, layers, vocabulary, and what the matrices become.
const MODELS: &[(&str, [usize; 4], &str)] = &[
    ("narrow", [128, 512, 4, 512], "Q8_0"),
    ("wide", [512, 1024, 2, 2048], "Q4_K"),
    ("wordy", [256, 512, 2, 16384], "Q8_0"),
    ("exact", [128, 384, 3, 1024], "F32"),
];

fn write_model(folder: &Path, name: &str, [width, ffn, layers, vocabulary]: [usize; 4], kind: &str) {
    let mut b = Builder::new();
    b.set("general.architecture", "llama").set("general.name", name);
    for (key, value) in [
        ("block_count", layers),
        ("context_length", 2048),
        ("embedding_length", width),
        ("feed_forward_length", ffn),
        ("attention.head_count", width / 64),
        ("attention.head_count_kv", width / 128),
        ("rope.dimension_count", 64),
        ("vocab_size", vocabulary),
    ] {
        b.set(&format!("llama.{key}"), value as u32);
    }
    b.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32).set("llama.rope.freq_base", 10_000f32);
    let tokens: Vec<String> = (0..vocabulary).map(|i| format!("t{i}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    b.set("tokenizer.ggml.model", "none").set("tokenizer.ggml.tokens", Encoded::array(&tokens));
    let half = width / 2;
    let mut matrices =
        vec![("token_embd".to_owned(), width, vocabulary), ("output".into(), width, vocabulary)];
    let mut norms = vec!["output_norm".to_owned()];
    for l in 0..layers {
        norms.extend(["attn_norm", "ffn_norm"].map(|n| format!("blk.{l}.{n}")));
        for (n, inputs, outputs) in [
            ("attn_q", width, width),
            ("attn_k", width, half),
            ("attn_v", width, half),
            ("attn_output", width, width),
            ("ffn_gate", width, ffn),
            ("ffn_up", width, ffn),
            ("ffn_down", ffn, width),
        ] {
            matrices.push((format!("blk.{l}.{n}"), inputs, outputs));
        }
    }
    for n in norms {
        let ones: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), width).flatten().collect();
        let name = format!("{n}.weight");
        b.tensor_from(&name, Type::F32, &[width], move |sink| sink.put(&ones));
    }
    for (i, (n, inputs, outputs)) in matrices.into_iter().enumerate() {
        b.tensor_from(&format!("{n}.weight"), Type::F32, &[inputs, outputs], move |sink| {
            let mut rng = Rng::new(i as u64);
            let mut row = vec![0.0; inputs];
            let scale = 1.0 / (inputs as f32).sqrt();
            for _ in 0..outputs {
                row.iter_mut().for_each(|w| *w = scale * rng.normal());
                sink.put_f32s(&row)?;
            }
            Ok(())
        });
    }
    let (to, exact) = (folder.join(format!("{name}.gguf")), folder.join(format!("{name}.exact.gguf")));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&exact).unwrap());
    b.write(&mut file).unwrap();
    drop(file);
    let weights = Weights::open(&exact).unwrap();
    quantize(&weights, Mixture::named(kind).unwrap(), &to, false, 2, &mut |_, _| Ok(())).unwrap();
    std::fs::remove_file(exact).unwrap();
}

/// Rows of `ctx` positions; judged ones where the objective is about them.
fn rows(case: &Case, n: usize, vocabulary: usize, seed: u64) -> Set {
    let roles = match case.objective {
        "sft" => [Role::Shown; 2],
        "kto" => [Role::Desirable, Role::Undesirable],
        _ => [Role::Chosen, Role::Rejected],
    };
    let arity = roles[0].signal().arity();
    let mut rng = Rng::new(seed);
    let mut set = Set::default();
    for i in 0..n * arity {
        let tokens = (0..=case.ctx).map(|_| rng.below(vocabulary as u64) as u32).collect();
        // judged rows have a prompt
        let prompt = if case.objective == "sft" { 1 } else { case.ctx / 4 };
        set.examples.push(Example { tokens, trained: (0..=case.ctx).map(|t| t >= prompt).collect() });
        set.origins.push(Origin { row: i / arity, role: roles[i % 2], lost: 0 });
    }
    set
}

/// Three steps of a case; the bytes planned and the peak.
fn measure(case: &Case, folder: &Path) -> (u64, u64) {
    static PEAK: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicBool = AtomicBool::new(false);
    let look = || PEAK.fetch_max(held_memory().unwrap_or(0), Ordering::Relaxed);
    let watcher = std::thread::spawn(move || {
        while !DONE.load(Ordering::Relaxed) {
            look();
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    let model = Arc::new(Model::open(folder.join(format!("{}.gguf", case.model))).unwrap());
    let level = Level::chosen().unwrap();
    let method = Method::named(case.method).unwrap();
    let new = New {
        rank: if method.ranked { case.rank } else { New::of(method).rank },
        targets: Some(Targets::parse(case.targets).unwrap()),
        ..New::of(method)
    };
    let layer = new.layer(&model, level, case.threads).unwrap();
    let vocabulary = model.program().vocabulary;
    let data = Data {
        train: rows(case, 2 * case.batch, vocabulary, 1),
        eval: if case.eval { rows(case, 2, vocabulary, 2) } else { Set::default() },
    };
    let options = RunOptions {
        length: Length::Steps(2),
        batch_size: case.batch,
        objective: Some(objective::named(case.objective).unwrap()),
        recipe: Recipe { rate: 1e-4, ..Recipe::default() },
        optimizer: case.optimizer,
        dropout: case.dropout,
        eval_every: case.eval.then_some(1),
        keep_best: case.eval,
        checkpoint_after: None,
        kv: Precision::named(case.kv).unwrap(),
        keep: case.keep,
        rows_of_a_pass: case.rows,
        ..RunOptions::new(level, case.threads)
    };
    let mut run = Run::new(model, layer, data, options, None).unwrap();
    let planned = run.plan().memory.total();
    run.go(&mut |_| {
        look();
        Flow::Go
    })
    .unwrap();
    look();
    DONE.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    (planned, PEAK.load(Ordering::Relaxed))
}

/// Not a test but the process that is measured.
#[test]
fn child() {
    let (Some(folder), Ok(line)) = (std::env::var_os(FOLDER).map(PathBuf::from), std::env::var(CASE)) else {
        return;
    };
    let case = all().into_iter().find(|c| c.line() == line).expect("a case of the list");
    let before = held_memory().unwrap();
    let (planned, peak) = measure(&case, &folder);
    println!("\nmeasured {planned} {peak} {before}");
}

/// A case of each kind, those that run by default.
fn few() -> Vec<Case> {
    let plain = Case {
        model: "narrow",
        method: "lora",
        targets: "all",
        rank: 16,
        ctx: 256,
        batch: 8,
        rows: Some(2048),
        keep: Keep::Streams,
        optimizer: Optimizer::AdamW,
        threads: 2,
        kv: "f16",
        dropout: 0.0,
        objective: "sft",
        eval: false,
    };
    let p = || plain.clone();
    let eight = Optimizer::AdamW8bit;
    vec![
        p(),
        Case { keep: Keep::Registers, rows: Some(1024), threads: 1, ..p() },
        Case { model: "wide", rank: 256, rows: None, batch: 2, optimizer: eight, ..p() },
        Case { model: "wide", rank: 256, rows: None, batch: 2, eval: true, ..p() },
        Case { model: "wordy", targets: "all,head", rank: 64, rows: None, batch: 2, ..p() },
        Case { model: "exact", keep: Keep::Registers, kv: "f32", ..p() },
        Case { method: "dora", dropout: 0.1, ..p() },
        Case { method: "ia3", targets: "k,v,down", threads: 4, ..p() },
        Case { method: "vera", rank: 128, kv: "q8_0", ..p() },
        Case { objective: "dpo", batch: 4, ..p() },
        Case { objective: "kto", eval: true, ..p() },
        Case { targets: "blk.3.attn", ctx: 1024, batch: 2, optimizer: eight, ..p() },
        Case { method: "adalora", rank: 32, ..p() },
        Case { method: "loha", rank: 8, ..p() },
        Case { method: "lokr", keep: Keep::Registers, rows: Some(1024), ..p() },
        Case { method: "series", targets: "gate,up,down", dropout: 0.1, ..p() },
        Case { method: "prefix", targets: "front", ..p() },
        Case { method: "ptuning", targets: "front", ..p() },
        Case { model: "wide", method: "full", rows: None, batch: 2, ..p() },
        Case { model: "wide", method: "hft", rows: None, batch: 2, optimizer: eight, ..p() },
        Case { method: "norms", targets: "norms", ..p() },
    ]
}

/// Those and many more, drawn once and for all.
fn all() -> Vec<Case> {
    let mut all = few();
    let mut rng = Rng::new(11);
    let mut one = |n: usize| rng.below(n as u64) as usize;
    while all.len() < 112 {
        let model = ["narrow", "narrow", "wide", "wordy", "exact"][one(5)];
        let narrow = matches!(model, "narrow" | "exact");
        let ctx = [64, 128, 256, 512, 1024][one(5)];
        let batch = [1, 2, 4, 8, 16][one(5)];
        let objective = ["sft", "sft", "sft", "dpo", "ipo", "orpo", "simpo", "kto"][one(8)];
        let arity = if matches!(objective, "sft" | "kto") { 1 } else { 2 };
        let window = ctx * batch * arity;
        // enough of something for the process to be small beside it, and not more than a second or two
        let usual = if narrow { 1024..=if arity == 2 { 2048 } else { 4096 } } else { 512..=1024 };
        if !usual.contains(&window) || (objective == "kto" && batch < 2) {
            continue;
        }
        all.push(Case {
            model,
            method: ["lora", "lora", "lora", "dora", "ia3", "vera"][one(6)],
            targets: ["all", "attn", "mlp", "q,v", "all,head"][one(5)],
            rank: [4, 16, 64, if narrow { 32 } else { 128 }][one(4)],
            ctx,
            batch,
            rows: if narrow { Some([1024, 2048][one(2)].max(ctx * arity).min(window)) } else { None },
            keep: [Keep::Streams, Keep::Registers][one(2)],
            optimizer: Optimizer::ALL[one(2)],
            threads: [1, 2, 2, 3][one(4)],
            kv: ["f16", "f16", "f32", "q8_0"][one(4)],
            dropout: [0.0, 0.0, 0.1][one(3)],
            objective,
            eval: one(3) == 0,
        });
        let last = all.last_mut().expect("just put there");
        if !Method::named(last.method).unwrap().drops() {
            last.dropout = 0.0;
        }
    }
    all
}

#[test]
fn peaks_are_what_was_planned() {
    if held_memory().is_none() {
        println!("skipped: the system does not tell how much memory a process holds");
        return;
    }
    let folder = std::env::temp_dir().join(format!("onlay-memory-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, shape, kind) in MODELS {
        write_model(&folder, name, *shape, kind);
    }
    let cases = if std::env::var_os(GRID).is_some() { all() } else { few() };
    let (mut ratios, mut wrong) = (Vec::new(), Vec::new());
    for case in &cases {
        let begun = Instant::now();
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads=1", "--nocapture"])
            .env(FOLDER, &folder)
            .env(CASE, case.line())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        let numbers = said.lines().find_map(|l| l.strip_prefix("measured "));
        let Some(numbers) = numbers.filter(|_| done.status.success()) else {
            panic!("{}: {said}{}", case.line(), String::from_utf8_lossy(&done.stderr));
        };
        let numbers: Vec<f64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
        let ratio = numbers[1] / numbers[0];
        let mib = |n: f64| n / f64::from(1 << 20);
        println!(
            "{ratio:.3}  {:6.1} of {:6.1} MiB  {:.1} s  {}",
            mib(numbers[1]),
            mib(numbers[0]),
            begun.elapsed().as_secs_f64(),
            case.line()
        );
        ratios.push(ratio);
        if !(BOUNDS.0..=BOUNDS.1).contains(&ratio) {
            wrong.push(format!("{ratio:.3} {}", case.line()));
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    ratios.sort_by(f64::total_cmp);
    let n = ratios.len();
    println!(
        "{n} configurations: {:.3} … {:.3} … {:.3} of the plan",
        ratios[0],
        ratios[n / 2],
        ratios[n - 1]
    );
    assert!(wrong.is_empty(), "{} of {n} are not within {BOUNDS:?}:\n{}", wrong.len(), wrong.join("\n"));
}
