//! How fast does a layer learn? `cargo bench --bench train -- MODEL.gguf [threads] [tokens] [steps] [streams|registers]`
use onlay::adapter::{Lora, Part};
use onlay::model::Model;
use onlay::ops::kv::Precision;
use onlay::rng::Rng;
use onlay::train::{Example, Keep, Recipe, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::sync::Arc;
use std::time::Instant;

fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e6
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(path) = args.first() else { return println!("usage: train MODEL [threads] [tokens] [steps]") };
    let number = |i: usize, or: usize| args.get(i).map_or(or, |a| a.parse().unwrap());
    let (threads, tokens, steps) = (number(1, 2), number(2, 512), number(3, 3));
    let keep = if args.get(4).is_some_and(|a| a == "registers") { Keep::Registers } else { Keep::Streams };
    let model = Arc::new(Model::open(path).unwrap());
    let parts = model.program().sites.iter().map(|s| {
        let part = Part { rank: 16, inputs: s.inputs, outputs: s.outputs, scale: 2.0 };
        s.name.starts_with("blk").then_some(part)
    });
    let mut layer = Lora::new(parts.collect());
    layer.start(&mut Rng::new(1));
    layer.learn(tokens, 0.0, 1).unwrap();
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads,
        rows: tokens,
        context: tokens,
        sequences: 1,
        kv: Precision::F16,
        keep,
    };
    let mut rng = Rng::new(2);
    let vocabulary = model.program().vocabulary as u64;
    let example = Example {
        tokens: (0..=tokens).map(|_| rng.below(vocabulary) as u32).collect(),
        trained: vec![true; tokens + 1],
    };
    let mut trainer = Trainer::new(model, Arc::new(layer), options).unwrap();
    for _ in 0..steps {
        let t = Instant::now();
        let r = trainer.step(std::slice::from_ref(&example), &Recipe::default(), 100).unwrap();
        let s = t.elapsed().as_secs_f64();
        println!(
            "{tokens} tokens in {s:.2} s: {:.1} tokens/s, loss {:.4}, peak {:.2} GB",
            tokens as f64 / s,
            r.loss,
            peak()
        );
    }
}
