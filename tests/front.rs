//! Sequences with something in front of them: alone and together, in whatever steps, in sessions that swap layers.

mod support;
use onlay::adapter::{Adapter, Manifest, Method, New, Worn};
use onlay::engine::{Engine, EngineOptions, Layer};
use onlay::error::Kind;
use onlay::model::{Model, Options, Request, Wanted};
use onlay::ops::kv::Precision;
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

fn model() -> Arc<Model> {
    open(vectors().join("llama/F32.gguf"))
}

/// A fresh adapter of a method with so many virtual tokens.
fn worn(model: &Arc<Model>, method: &str, tokens: usize) -> Arc<Worn> {
    let level = Level::chosen().unwrap();
    let method = Method::named(method).unwrap();
    let layer =
        New { virtual_tokens: Some(tokens), seed: 3, ..New::of(method) }.layer(model, level, 1).unwrap();
    layer.settle(model, level, &mut |n, f| (0..n).for_each(f));
    let adapter = Adapter::new("x", layer, Manifest::of(model), model.program()).unwrap();
    Arc::new(Worn::new(model, vec![(Arc::new(adapter), 1.0)]).unwrap())
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

fn text(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 7 + seed) % 100).collect()
}

#[test]
fn sequences_of_one_step_have_each_its_own_front() {
    let model = model();
    let layers = [worn(&model, "prefix", 3), worn(&model, "prompt", 5), worn(&model, "ptuning", 70)];
    let texts = [text(9, 1), text(4, 2), text(6, 3), text(5, 4)];
    let delta = |i: usize| layers.get(i).and_then(|w| w.delta());
    for kv in [Precision::F32, Precision::F16] {
        let mut alone = runner(&model, Options { kv, ..options(1) });
        let last = |all: Vec<Vec<f32>>| bits(all.last().unwrap());
        let want: Vec<_> = (0..4).map(|i| last(logits(&mut alone, &texts[i], delta(i)))).collect();
        assert!((0..4).all(|i| i == 3 || want[i] != last(logits(&mut alone, &texts[i], None))));
        // together, on more threads, in steps of few rows: virtual tokens too come in several
        for rows in [128, 24] {
            let mut together = runner(&model, Options { kv, rows, ..options(3) });
            let mut sequences: Vec<_> = (0..4).map(|_| together.sequence()).collect();
            let mut got = vec![vec![]; 4];
            let all = sequences.iter_mut().zip(&texts).enumerate();
            let mut requests: Vec<_> = all
                .map(|(i, (sequence, tokens))| Request {
                    sequence,
                    tokens,
                    delta: delta(i),
                    wanted: Wanted::Last,
                })
                .collect();
            together.step(&mut requests, &mut |i, _, z| got[i] = bits(z)).unwrap();
            assert_eq!(got, want, "{kv:?}, {rows} rows");
            assert_eq!(sequences.iter().map(|s| s.len()).collect::<Vec<_>>(), [9, 4, 6, 5]);
        }
    }
}

#[test]
fn a_sequence_goes_on_with_the_front_that_it_began_with() {
    let model = model();
    let [three, five, same] =
        [worn(&model, "prefix", 3), worn(&model, "prefix", 5), worn(&model, "prompt", 3)];
    let mut runner = runner(&model, options(1));
    let mut sequence = runner.sequence();
    let mut feed = |sequence: &mut _, tokens: &[u32], worn: Option<&Worn>| {
        let (mut all, delta) = (vec![], worn.and_then(Worn::delta));
        let done = runner.feed(sequence, tokens, delta, Wanted::Last, &mut |_, z| all = bits(z));
        done.map(|()| all)
    };
    let (tokens, next) = (text(6, 1), [9]);
    feed(&mut sequence, &tokens, Some(&three)).unwrap();
    for other in [None, Some(&*five), Some(&*same)] {
        let error = feed(&mut sequence, &next, other).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch, "{error}");
        assert!(error.to_string().contains("3 of a prefix and 0 virtual tokens"), "{error}");
    }
    // nothing has changed, and from the beginning it may have another
    let on = feed(&mut sequence, &next, Some(&three)).unwrap();
    sequence.truncate(6);
    assert_eq!(feed(&mut sequence, &next, Some(&three)).unwrap(), on);
    sequence.truncate(0);
    let all: Vec<u32> = tokens.iter().chain(&next).copied().collect();
    let other = feed(&mut sequence, &all, Some(&five)).unwrap();
    sequence.truncate(0);
    assert_eq!(feed(&mut sequence, &all, Some(&three)).unwrap(), on);
    assert_ne!(other, on);
}

#[test]
fn sessions_swap_layers_with_other_fronts() {
    let model = model();
    let (prefix, prompt) = (worn(&model, "prefix", 3), worn(&model, "prompt", 7));
    let context = 40;
    // what is in front is planned for, or takes its positions from the context
    for planned in [false, true] {
        let mut room = prefix.room(model.program()).or(prompt.room(model.program()));
        room.lead *= usize::from(planned);
        let options = EngineOptions {
            threads: Some(1),
            context,
            sessions: 2,
            rows: 8,
            kv: Precision::F32,
            room,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(Arc::clone(&model), &options).unwrap();
        let mut session = engine.session();
        engine.append(&mut session, &text(12, 5)).unwrap();
        for worn in [Some(&prefix), None, Some(&prompt), Some(&prefix)] {
            session.wear(worn.map(|w| Arc::clone(w) as Layer));
            let mut got = vec![];
            engine.advance(&mut [&mut session], &mut |_, z| got = bits(z)).unwrap();
            let mut alone = runner(&model, support::options(2));
            let delta = worn.and_then(|w| w.delta());
            assert_eq!(got, bits(logits(&mut alone, session.tokens(), delta).last().unwrap()));
            engine.append(&mut session, &[3]).unwrap();
        }
        let most = if planned { context } else { context - 3 };
        let rest = most - session.tokens().len();
        engine.append(&mut session, &text(rest as u32, 1)).unwrap();
        engine.advance(&mut [&mut session], &mut |_, _| {}).unwrap();
        let error = engine.append(&mut session, &[1]).unwrap_err();
        assert!(error.to_string().contains(&format!("at most {most} tokens")), "{error}");
        // a longer front than was planned for does not fit what has been said
        session.wear(Some(prompt.clone()));
        assert_eq!(engine.advance(&mut [&mut session], &mut |_, _| {}).is_ok(), planned);
        session.wear(Some(prefix.clone()));
        engine.advance(&mut [&mut session], &mut |_, _| {}).unwrap();
        engine.close(session);
    }
}
