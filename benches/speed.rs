//! How fast does a model run? `cargo bench --bench speed -- MODEL.gguf [threads] [pp] [tg]`
use onlay::model::{Model, Options, Request, Runner, Wanted};
use onlay::ops::kv::Precision;
use onlay_kernels::Level;
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(path) = args.first() else {
        return println!("usage: speed MODEL [threads] [prompt] [generate]");
    };
    let number = |i: usize, or: usize| args.get(i).map_or(or, |a| a.parse().unwrap());
    let (threads, pp, tg) = (number(1, 2), number(2, 512), number(3, 128));
    let model = Arc::new(Model::open(path).unwrap());
    let options = Options {
        level: Level::chosen().unwrap(),
        threads,
        positions: 1024,
        sequences: 1,
        context: 1024,
        rows: 512,
        kv: Precision::F16,
        hidden: 0,
    };
    let mut runner = Runner::new(model, options).unwrap();
    let tokens: Vec<u32> = (0..pp as u32).map(|i| i * 17 % 4_000).collect();
    let level = Level::chosen().unwrap().name();
    for _ in 0..3 {
        let mut s = runner.sequence();
        let t = Instant::now();
        runner.feed(&mut s, &tokens, None, Wanted::Last, &mut |_, _| {}).unwrap();
        let prompt = t.elapsed().as_secs_f64();
        runner.forget(&mut s);
        let t = Instant::now();
        for i in 0..tg {
            let token = [i as u32 * 31 % 4_000];
            let r = Request { sequence: &mut s, tokens: &token, delta: None, wanted: Wanted::Last };
            runner
                .step(&mut [r], &mut |_, _, z| {
                    std::hint::black_box(z);
                })
                .unwrap();
        }
        let generate = t.elapsed().as_secs_f64();
        runner.forget(&mut s);
        println!(
            "{level} {threads} threads: pp{pp} {:.1} tok/s, tg{tg} {:.2} tok/s",
            pp as f64 / prompt,
            tg as f64 / generate
        );
    }
}
