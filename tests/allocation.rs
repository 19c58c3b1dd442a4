//! After the start nothing is allocated: not for a token, not for a training step.

// The counting allocator of this test is the one place that implements one.
#![allow(unsafe_code)]

mod support;
use onlay::adapter::{Lora, METHODS, Method, New};
use onlay::engine::{Choice, Engine, EngineOptions, Sampler};
use onlay::model::{Request, Wanted};
use onlay::ops::{Delta, Room};
use onlay::train::objective::Goal;
use onlay::train::{Example, Keep, Optimizer, Origin, Recipe, Role, Set, Signal, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::*;

struct Counting;
static ON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ON.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is System's condition.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is System's condition.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of `f`, in all threads: the only test of this file runs alone.
fn allocations(f: impl FnOnce()) -> usize {
    COUNT.store(0, Ordering::SeqCst);
    ON.store(true, Ordering::SeqCst);
    f();
    ON.store(false, Ordering::SeqCst);
    COUNT.load(Ordering::SeqCst)
}

fn layer(model: &onlay::model::Model, method: &'static Method) -> Lora {
    let level = Level::chosen().unwrap();
    let everywhere = if method.targets == "all" { "all,head" } else { method.targets };
    let targets = Some(onlay::adapter::Targets::parse(everywhere).unwrap());
    let tokens = if method.name == "tokens" { vec![3, 5] } else { vec![] };
    let encoder = (method.name == "prefix").then_some(8); // ptuning has one by itself
    let virtual_tokens = method.leads().then_some(3);
    let new = New { rank: 16, targets, tokens, encoder, virtual_tokens, ..New::of(method) };
    let layer = new.layer(model, level, 1).unwrap();
    layer.settle(model, level, &mut |n, f| (0..n).for_each(f));
    layer
}

#[test]
fn steps_allocate_nothing() {
    // Every method on one base, those that are used most on the others. (Were it to last a minute, the test's own harness would
    // say so, and be counted for it.)
    let files = [("llama-wide/Q4_K", METHODS.len()), ("llama-wide/Q8_0", 2), ("qwen3/F16", 2)];
    for (file, method) in files.iter().flat_map(|(f, n)| METHODS[..*n].iter().map(move |m| (f, m))) {
        let model = open(vectors().join(format!("{file}.gguf")));
        let worn = Arc::new(layer(&model, method));
        let file = format!("{file} {}", method.name);

        // single tokens, and prompts of several sequences, with and without a layer
        let mut runner = runner(&model, options(2));
        let (mut a, mut b) = (runner.sequence(), runner.sequence());
        let text: Vec<u32> = (0..40).collect();
        let mut step = |n: usize| {
            let delta: &dyn Delta = &*worn;
            let mut both = [
                Request { sequence: &mut a, tokens: &text[..n], delta: Some(delta), wanted: Wanted::Last },
                Request { sequence: &mut b, tokens: &text[..n], delta: None, wanted: Wanted::All },
            ];
            runner.step(&mut both, &mut |_, _, _| {}).unwrap();
        };
        step(40);
        step(1);
        assert_eq!(allocations(|| (0..30).for_each(|_| step(1))), 0, "{file}: decode");
        assert_eq!(allocations(|| step(40)), 0, "{file}: prompt");

        // generation through the engine
        let options = EngineOptions {
            threads: Some(2),
            polite: true,
            context: 200,
            room: Room { hidden: 2048, entered: 256, lead: 8 },
            ..Default::default()
        };
        let mut engine = Engine::new(model.clone(), &options).unwrap();
        let mut session = engine.session();
        session.wear(Some(worn.clone()));
        engine.append(&mut session, &text).unwrap();
        let mut sampler =
            Sampler::new(Choice { seed: 1, ..Choice::default() }, model.program().vocabulary).unwrap();
        let mut token = || {
            let next = engine.next(&mut session, &mut sampler).unwrap();
            engine.append(&mut session, &[next]).unwrap();
        };
        token();
        token();
        assert_eq!(allocations(|| (0..50).for_each(|_| token())), 0, "{file}: generation");

        // training
        for (keep, dropout, optimizer) in
            [(Keep::Streams, 0.0, Optimizer::AdamW), (Keep::Registers, 0.1, Optimizer::AdamW8bit)]
        {
            let mut layer = layer(&model, method);
            layer.learn(100, dropout, 1).unwrap();
            let options = TrainOptions {
                level: Level::chosen().unwrap(),
                threads: 2.into(),
                rows: 100,
                context: 100,
                sequences: 4,
                kv: Default::default(),
                keep,
                optimizer,
                device: onlay::backend::Device::Host,
            };
            let example = |n: u32| Example { tokens: (0..n).collect(), trained: vec![true; n as usize] };
            let window = [example(40), example(50), example(30)];
            let mut trainer = Trainer::new(model.clone(), Arc::new(layer), options).unwrap();
            let recipe = Recipe::default();
            trainer.step(&window, &recipe, 100).unwrap();
            let count = allocations(|| {
                for _ in 0..3 {
                    trainer.step(&window, &recipe, 100).unwrap();
                }
            });
            assert_eq!(count, 0, "{file}: training, {keep:?}");

            // judged rows: pairs, and rows whose completions change their prompts; that knows nothing of methods
            let signals = [Signal::Pairs, Signal::Labels];
            for signal in signals.into_iter().filter(|_| ["lora", "dora", "prefix"].contains(&method.name)) {
                let roles = match signal {
                    Signal::Pairs => [Role::Chosen, Role::Rejected],
                    _ => [Role::Desirable, Role::Undesirable],
                };
                let mut set = Set::default();
                for row in 0..16 {
                    let mut example = example(20 + row as u32);
                    example.trained[..10].fill(false);
                    set.examples.push(example);
                    set.origins.push(Origin { row, role: roles[row % 2], lost: 0 });
                }
                trainer.set_goal(Goal::choose(None, signal, &[]).unwrap(), 4).unwrap();
                let mut references = vec![f64::NAN; set.examples.len()];
                let mut step = |units: &[u32]| {
                    trainer.compare(&set, units, &mut references, Some((&recipe, 100))).unwrap();
                };
                step(&[0, 1, 2, 3]);
                let count =
                    allocations(|| [[0, 1, 2, 3], [4, 5, 6, 7], [7, 0, 6, 1]].iter().for_each(|u| step(u)));
                assert_eq!(count, 0, "{file}: {signal:?}, {keep:?}");
            }
        }
    }
}
