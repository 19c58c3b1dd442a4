//! One sequence of operations per row: the same bits in one step, in pieces, token by token, beside other sequences,
//! and on any number of threads.

mod support;
use onlay::adapter::{Method, New, Targets};
use onlay::model::{Model, Request, Runner, Sequence, Wanted};
use onlay::ops::kv::Precision;
use onlay::ops::{Delta, Site};
use onlay::rng::Rng;
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

const FILES: [&str; 8] = [
    "llama/F32",
    "qwen2/F16",
    "qwen3/F32",
    "llama-wide/Q8_0",
    "llama-wide/Q4_0",
    "llama-wide/Q4_K",
    "llama-wide/Q6_K",
    "qwen3-wide/Q4_K",
];

fn tokens(n: usize, seed: u32, vocabulary: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + seed * 11 + i * i % 7) % vocabulary as u32).collect()
}

fn bits(z: &[Vec<f32>]) -> Vec<Vec<u32>> {
    z.iter().map(|r| r.iter().map(|v| v.to_bits()).collect()).collect()
}

fn request<'a>(sequence: &'a mut Sequence, tokens: &'a [u32]) -> Request<'a> {
    Request { sequence, tokens, delta: None, wanted: Wanted::All }
}

/// Logits after every token, computed in steps of the given sizes.
fn in_pieces(runner: &mut Runner, tokens: &[u32], sizes: &[usize]) -> Vec<Vec<f32>> {
    let mut sequence = runner.sequence();
    let (mut all, mut at) = (Vec::new(), 0);
    for size in sizes.iter().cycle() {
        let part = &tokens[at..(at + size).min(tokens.len())];
        runner.step(&mut [request(&mut sequence, part)], &mut |_, _, z| all.push(z.to_vec())).unwrap();
        at += part.len();
        if at == tokens.len() {
            break;
        }
    }
    runner.forget(&mut sequence);
    all
}

#[test]
fn prompt_pieces_batches_and_threads_agree() {
    for level in Level::available() {
        for file in FILES {
            for kv in [Precision::F32, Precision::F16, Precision::Q8] {
                let model = open(vectors().join(format!("{file}.gguf")));
                let narrow = model.program().attention.head % 32 != 0;
                if kv == Precision::Q8 && narrow {
                    continue;
                }
                let with = |threads| {
                    let mut o = options(threads);
                    (o.level, o.kv) = (level, kv);
                    runner(&model, o)
                };
                let v = model.program().vocabulary;
                let text = tokens(75, 3, v);
                let mut one = with(1);
                let want = bits(&in_pieces(&mut one, &text, &[75]));
                assert_eq!(want.len(), 75);
                for sizes in [&[1][..], &[2], &[3, 4], &[5], &[64, 1, 10], &[7, 33]] {
                    assert_eq!(
                        want,
                        bits(&in_pieces(&mut one, &text, sizes)),
                        "{file} {kv:?} {level:?} {sizes:?}"
                    );
                }
                let mut three = with(3);
                assert_eq!(
                    want,
                    bits(&in_pieces(&mut three, &text, &[75])),
                    "{file} {kv:?} {level:?}: threads"
                );
                assert_eq!(
                    want,
                    bits(&in_pieces(&mut three, &text, &[1])),
                    "{file} {kv:?} {level:?}: threads"
                );
                // beside two others that come and go
                let (mut a, mut b, mut c) = (three.sequence(), three.sequence(), three.sequence());
                let other = tokens(40, 9, v);
                let mut got = Vec::new();
                let mut run = |runner: &mut Runner, requests: &mut [Request<'_>], which: usize| {
                    runner
                        .step(requests, &mut |i, _, z| {
                            if i == which {
                                got.push(z.to_vec());
                            }
                        })
                        .unwrap();
                };
                run(&mut three, &mut [request(&mut b, &other), request(&mut a, &text[..20])], 1);
                run(&mut three, &mut [request(&mut a, &text[20..21])], 0);
                run(
                    &mut three,
                    &mut [
                        request(&mut c, &other[..9]),
                        request(&mut a, &text[21..22]),
                        request(&mut b, &other[..1]),
                    ],
                    1,
                );
                three.forget(&mut b);
                run(&mut three, &mut [request(&mut a, &text[22..]), request(&mut c, &other[9..])], 0);
                assert_eq!(want, bits(&got), "{file} {kv:?} {level:?}: beside others");
            }
        }
    }
}

#[test]
fn a_forgotten_place_leaves_no_trace() {
    let model = open(vectors().join("llama/F32.gguf"));
    let mut o = options(2);
    (o.positions, o.sequences, o.kv) = (64, 1, Precision::F16);
    let mut runner = runner(&model, o);
    let text = tokens(70, 1, model.program().vocabulary);
    let want = bits(&in_pieces(&mut runner, &text, &[70]));
    for seed in 2..6 {
        in_pieces(&mut runner, &tokens(100, seed, model.program().vocabulary), &[50]);
        assert_eq!(want, bits(&in_pieces(&mut runner, &text, &[70])));
    }
}

#[test]
fn what_cannot_be_run_is_refused_and_changes_nothing() {
    let model = open(vectors().join("llama/F32.gguf"));
    let mut o = options(1);
    (o.positions, o.sequences, o.context, o.rows) = (64, 1, 100, 80);
    let mut runner = runner(&model, o);
    let mut sequence = runner.sequence();
    let mut try_tokens = |tokens: &[u32]| {
        let request = Request { sequence: &mut sequence, tokens, delta: None, wanted: Wanted::Last };
        let result = runner.step(&mut [request], &mut |_, _, _| {});
        (result.map_err(|e| e.to_string()), sequence.len())
    };
    assert_eq!(try_tokens(&[1; 60]), (Ok(()), 60));
    let (e, n) = try_tokens(&[1; 90]);
    assert!(e.unwrap_err().contains("at most 80"), "too many rows");
    assert_eq!(n, 60);
    let (e, n) = try_tokens(&[1; 50]);
    assert!(e.unwrap_err().contains("at most 100"), "beyond the context");
    assert_eq!(n, 60);
    let (e, n) = try_tokens(&[9999]);
    assert_eq!(e.unwrap_err(), "token 0: expected below 272, found 9999");
    assert_eq!(n, 60);
    assert_eq!(try_tokens(&[1; 40]), (Ok(()), 100));
}

fn at_level(file: &str, level: Level) -> (Arc<Model>, Runner) {
    let model = open(vectors().join(format!("{file}.gguf")));
    let runner = runner(&model, onlay::model::Options { level, ..options(2) });
    (model, runner)
}

fn worn<'a>(
    sequence: &'a mut Sequence,
    tokens: &'a [u32],
    layer: &'a dyn Delta,
    wanted: Wanted,
) -> Request<'a> {
    Request { sequence, tokens, delta: Some(layer), wanted }
}

/// Rows whose logits nobody wants end early; the others must not notice.
#[test]
fn what_is_not_wanted_changes_no_bit() {
    for level in Level::available() {
        for file in FILES {
            let (model, mut runner) = at_level(file, level);
            let v = model.program().vocabulary;
            let (text, other) = (tokens(75, 3, v), tokens(40, 9, v));
            // one of them wears a layer
            let layer = Targets::parse("all").unwrap().layer(model.program(), 4, 2.0).unwrap();
            let mut rng = Rng::new(5);
            (0..layer.parts().len())
                .for_each(|i| layer.params().get(i).iter_mut().for_each(|v| *v = 0.1 * rng.normal()));
            let want = logits(&mut runner, &text, Some(&layer));
            assert_ne!(bits(&want), bits(&in_pieces(&mut runner, &text, &[75])));
            let others = in_pieces(&mut runner, &other, &[40]);
            let (mut a, mut b) = (runner.sequence(), runner.sequence());
            let mut got = Vec::new();
            let mut step = |requests: &mut [Request<'_>]| {
                runner.step(requests, &mut |i, t, z| got.push((i, t, z.to_vec()))).unwrap();
            };
            // nobody's, the last of a few, all of one beside the last of another, all beside nobody's
            step(&mut [worn(&mut a, &text[..30], &layer, Wanted::Nothing)]);
            step(&mut [worn(&mut a, &text[30..42], &layer, Wanted::Last)]);
            step(&mut [request(&mut b, &other[..20]), worn(&mut a, &text[42..60], &layer, Wanted::Last)]);
            step(&mut [
                Request { wanted: Wanted::Nothing, ..request(&mut b, &other[20..]) },
                worn(&mut a, &text[60..], &layer, Wanted::All),
            ]);
            let mut expected = vec![(0, 11, &want[41])];
            expected.extend((0..20).map(|t| (0, t, &others[t])));
            expected.push((1, 17, &want[59]));
            expected.extend((0..15).map(|t| (1, t, &want[60 + t])));
            assert_eq!(got.len(), expected.len());
            for ((i, t, z), (wi, wt, w)) in got.iter().zip(&expected) {
                assert_eq!((i, t), (wi, wt), "{file} {level:?}");
                assert!(z.iter().zip(*w).all(|(a, b)| a.to_bits() == b.to_bits()), "{file} {level:?} {t}");
            }
            runner.forget(&mut a);
            runner.forget(&mut b);
        }
    }
}

/// A gate and what it gates are one product, unless somebody in the batch wears a layer that comes between.
#[test]
fn gates_are_the_same_apart() {
    for level in Level::available() {
        for file in FILES {
            let (model, mut runner) = at_level(file, level);
            let v = model.program().vocabulary;
            let (text, other) = (tokens(30, 3, v), tokens(20, 9, v));
            let targets = Some(Targets::parse("gate").unwrap());
            let new = New { targets, ..New::of(Method::named("full").unwrap()) };
            let layer = new.layer(&model, level, 1).unwrap();
            let gates = (0..model.program().sites.len()).map(|i| Site(i as u32));
            assert!(gates.filter(|s| layer.matrix(*s).is_some()).count() == model.program().segments.len());
            let want = bits(&in_pieces(&mut runner, &text, &[30]));
            for size in [1, 30] {
                let (mut a, mut b) = (runner.sequence(), runner.sequence());
                let mut got = Vec::new();
                for (part, beside) in text.chunks(size).zip(other.chunks(size).cycle()) {
                    let mut both = [request(&mut a, part), worn(&mut b, beside, &layer, Wanted::Last)];
                    runner
                        .step(&mut both, &mut |i, _, z| {
                            if i == 0 {
                                got.push(z.to_vec());
                            }
                        })
                        .unwrap();
                }
                assert!(want == bits(&got), "{file} {level:?} {size}");
                runner.forget(&mut a);
                runner.forget(&mut b);
            }
        }
    }
}
