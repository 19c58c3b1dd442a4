//! What stands in front of a sequence, as the engine sees it: a layer of the tests' own with keys and values, virtual
//! tokens and rows of the table. PEFT's logits, loss and gradients (see `tests/oracles/README.md`), slopes by finite
//! differences, the same bits however it is computed, and nothing left of it when it is off.

#[path = "support/front.rs"]
mod front;
mod support;
use front::Front;
use onlay::adapter::{Names, Targets};
use onlay::engine::{Engine, EngineOptions};
use onlay::error::Kind;
use onlay::eval::{Windows, perplexity, score};
use onlay::model::{Model, Options, Request, Runner, Sequence, Wanted};
use onlay::ops::kv::Precision;
use onlay::ops::{Delta, Room};
use onlay::rng::Rng;
use onlay::train::{Example, Flow, Keep, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

/// A trainer whose own layer reaches as far down as any.
fn trainer(model: &Arc<Model>, threads: usize, keep: Keep) -> Trainer {
    let mut layer = Targets::parse("q").unwrap().layer(model.program(), 1, 1.0).unwrap();
    layer.learn(512, 0.0, 0).unwrap();
    let options = TrainOptions {
        level: Level::chosen().unwrap(),
        threads: threads.into(),
        rows: 512,
        context: 256,
        sequences: 8,
        kv: Precision::F32,
        keep,
        optimizer: Default::default(),
        device: onlay::backend::Device::Host,
    };
    Trainer::new(Arc::clone(model), Arc::new(layer), options).unwrap()
}

/// The loss and the gradients of some examples in one pass.
fn learn(trainer: &mut Trainer, layer: &Front, rows: &[Example]) -> (f64, Vec<f32>) {
    layer.clear();
    let loss = trainer.differentiate(layer, rows, 1.0).unwrap();
    (loss, layer.grads())
}

fn example(n: usize, seed: u32, vocabulary: usize, first: bool) -> Example {
    let tokens = (0..n as u32).map(|i| (i * 37 + seed * 11 + i * i % 7) % vocabulary as u32).collect();
    Example { tokens, trained: (0..n).map(|i| if i == 0 { first } else { i % 3 != 1 }).collect() }
}

fn bits(z: &[Vec<f32>]) -> Vec<u32> {
    z.iter().flatten().map(|v| v.to_bits()).collect()
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// ‖got − want‖ / ‖want‖
fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
    norm(&|i| f64::from(got[i]) - want[i]) / norm(&|i| want[i])
}

/// PEFT's `prompt_embeddings`, or its gradients, in the order of the layer's numbers.
fn ordered(layer: &Front, model: &Model, numbers: &[f64]) -> Vec<f64> {
    if layer.rows > 0 {
        return numbers.to_vec();
    }
    let names = Names::of(model.program());
    let mut all = vec![0.0; layer.numbers.len()];
    for l in 0..layer.layers {
        let site = model.program().site(&format!("blk.{l}.attn_k.weight")).unwrap();
        for position in 0..layer.prefix {
            let from = (position * layer.layers + l) * 2 * layer.kv;
            let to = layer.key(l, position);
            for i in 0..layer.kv {
                // a key turns by pairs that lie as the file's do
                all[to + names.row(site, i)] = numbers[from + i];
                all[to + layer.kv + i] = numbers[from + layer.kv + i];
            }
        }
    }
    all
}

#[test]
fn references() {
    for (name, case) in
        [("llama", "prefix"), ("qwen3", "prefix"), ("llama", "prompt"), ("llama", "prompt-masked")]
    {
        let model = open(vectors().join(name).join("F32.gguf"));
        let folder = vectors().join(name).join(case);
        let answers = Answers::open(folder.join("gradients.safetensors"));
        let (prefix, rows) = if case == "prefix" { (3, 0) } else { (0, 3) };
        let mut layer = Front::new(&model, prefix, rows, &[], 0);
        let stored = Answers::open(folder.join("adapter_model.safetensors")).numbers("prompt_embeddings");
        layer.numbers = ordered(&layer, &model, &stored).iter().map(|v| *v as f32).collect();
        let row = |i: usize| {
            let trained = answers.numbers(&format!("labels.{i}")).iter().map(|l| *l >= 0.0).collect();
            Example { tokens: answers.tokens(&format!("tokens.{i}")), trained }
        };
        let mut runner = runner(&model, options(2));
        let mut forward = 0f64;
        for i in 0..2 {
            let got = logits(&mut runner, &row(i).tokens, Some(&layer));
            let want = answers.numbers(&format!("last.{i}"));
            let off = got.last().unwrap().iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
            forward = forward.max(off.fold(0.0, f64::max));
        }
        assert!(forward < 1e-4, "{name} {case}: logits off by {forward:.1e}");
        let tokens = answers.numbers("trained")[0];
        let want = ordered(&layer, &model, &answers.numbers("prompt_embeddings"));
        for keep in [Keep::Streams, Keep::Registers] {
            layer.clear();
            let scale = 1.0 / tokens as f32;
            let mut trainer = trainer(&model, 2, keep);
            let loss = trainer.differentiate(&layer, &[row(0), row(1)], scale).unwrap() / tokens;
            let off = (loss - answers.numbers("loss")[0]).abs();
            assert!(off < 1e-5, "{name} {case}: loss {loss} off by {off:.1e}");
            let error = relative(&layer.grads(), &want);
            assert!(error < 1e-3, "{name} {case}: gradients off by {error:.1e}");
            println!("{name} {case} {keep:?}: logits {forward:.1e}, loss {off:.1e}, gradients {error:.1e}");
        }
    }
}

/// The slope of the loss along `direction`, by central differences.
fn slope(trainer: &mut Trainer, layer: &mut Front, rows: &[Example], direction: &[f64], h: f64) -> f64 {
    let start = layer.numbers.clone();
    let mut at = |sign: f64| {
        let moved = start.iter().zip(direction).map(|(v, d)| (f64::from(*v) + sign * h * d) as f32);
        layer.numbers = moved.collect();
        trainer.differentiate(&*layer, rows, 0.0).unwrap()
    };
    let slope = (at(1.0) - at(-1.0)) / (2.0 * h);
    layer.numbers = start;
    slope
}

#[test]
fn slopes() {
    for name in ["llama", "qwen3"] {
        let model = open(vectors().join(name).join("F32.gguf"));
        let v = model.program().vocabulary;
        let examples = [example(20, 1, v, true), example(33, 2, v, false), example(9, 3, v, true)];
        let table = [examples[0].tokens[3], examples[1].tokens[0], 7];
        let mut worst = 0f64;
        for (prefix, rows, table) in [
            (3, 0, &[][..]),
            (0, 4, &[]),
            (2, 3, &[]),
            (70, 0, &[]), // more than a tile
            (63, 66, &[]),
            (0, 0, &table),
            (1, 2, &table),
        ] {
            let mut layer = Front::new(&model, prefix, rows, table, 5);
            let mut trainer = trainer(&model, 2, Keep::Streams);
            let (_, grads) = learn(&mut trainer, &layer, &examples);
            // keys and values of every layer, virtual rows, rows of the table: along their gradient, and anywhere
            let mut blocks: Vec<Vec<usize>> = Vec::new();
            for l in 0..if prefix > 0 { layer.layers } else { 0 } {
                for half in 0..2 {
                    let at = |p: usize| layer.key(l, p) + half * layer.kv;
                    blocks.push((0..prefix).flat_map(|p| at(p)..at(p) + layer.kv).collect());
                }
            }
            blocks.extend((0..rows).step_by(rows.div_ceil(4).max(1)).map(|i| {
                let at = layer.prefix_len() + i * layer.width;
                (at..at + layer.width).collect()
            }));
            blocks.extend((0..table.len()).map(|i| {
                let at = layer.prefix_len() + (rows + i) * layer.width;
                (at..at + layer.width).collect()
            }));
            blocks.push((0..layer.numbers.len()).collect());
            let mut rng = Rng::new(9);
            for (b, block) in blocks.iter().enumerate() {
                let along = block.iter().map(|i| f64::from(grads[*i])).collect::<Vec<_>>();
                let length = along.iter().map(|g| g * g).sum::<f64>().sqrt();
                let gradient_of = |direction: &[f64]| {
                    direction.iter().zip(&grads).map(|(d, g)| d * f64::from(*g)).sum::<f64>()
                };
                let mut direction = vec![0.0; layer.numbers.len()];
                if table.contains(&7) && length == 0.0 {
                    continue; // a token that is in no example
                }
                assert!(length > 1e-4, "{name} {prefix} {rows}: block {b} has no gradient");
                // half of the way along the gradient, half anywhere
                let other: Vec<f64> = block.iter().map(|_| f64::from(rng.normal())).collect();
                let other_length = other.iter().map(|g| g * g).sum::<f64>().sqrt();
                for ((i, g), o) in block.iter().zip(&along).zip(&other) {
                    direction[*i] = g / length + o / other_length;
                }
                let want = gradient_of(&direction);
                let found = slope(&mut trainer, &mut layer, &examples, &direction, 0.02);
                let error = (found - want).abs() / want.abs().max(0.2 * length).max(5e-2);
                assert!(error < 0.01, "{name} {prefix} {rows}: block {b}: slope {found}, gradient {want}");
                worst = worst.max(error);
            }
        }
        println!("{name}: worst slope off by {worst:.1e}");
    }
}

/// Logits after every token, in steps of the given sizes.
fn in_pieces(runner: &mut Runner, tokens: &[u32], layer: &dyn Delta, sizes: &[usize]) -> Vec<Vec<f32>> {
    let mut sequence = runner.sequence();
    let (mut all, mut at) = (Vec::new(), 0);
    for size in sizes.iter().cycle() {
        let part = &tokens[at..(at + size).min(tokens.len())];
        runner
            .step(&mut [request(&mut sequence, part, Some(layer))], &mut |_, _, z| all.push(z.to_vec()))
            .unwrap();
        at += part.len();
        assert_eq!(sequence.len(), at);
        if at == tokens.len() {
            break;
        }
    }
    runner.forget(&mut sequence);
    all
}

fn request<'a>(sequence: &'a mut Sequence, tokens: &'a [u32], delta: Option<&'a dyn Delta>) -> Request<'a> {
    Request { sequence, tokens, delta, wanted: Wanted::All }
}

#[test]
fn pieces_batches_and_threads_agree() {
    let files =
        [("llama/F32", Precision::F32), ("qwen3/F32", Precision::F16), ("llama-wide/Q8_0", Precision::Q8)];
    for (file, kv) in files {
        let model = open(vectors().join(format!("{file}.gguf")));
        let v = model.program().vocabulary;
        let text = example(75, 3, v, false).tokens;
        let other = example(40, 9, v, false).tokens;
        for (prefix, rows) in [(3, 0), (0, 5), (2, 3), (66, 0), (0, 66)] {
            let layer = Front::new(&model, prefix, rows, &[text[2]], 5);
            let second = Front::new(&model, rows.min(4), prefix.min(4), &[], 6);
            let with = |threads, rows| {
                let mut o = options(threads);
                (o.kv, o.rows, o.room.lead) = (kv, rows, 70);
                runner(&model, o)
            };
            let mut one = with(1, 128);
            let want = bits(&in_pieces(&mut one, &text, &layer, &[75]));
            assert_ne!(want, bits(&logits(&mut one, &text, None)));
            assert_ne!(
                want,
                bits(&in_pieces(&mut one, &text, &Front::new(&model, prefix, rows, &[], 6), &[75]))
            );
            for sizes in [&[1][..], &[3, 4], &[64, 1, 10]] {
                assert_eq!(
                    want,
                    bits(&in_pieces(&mut one, &text, &layer, sizes)),
                    "{file} {prefix} {rows} {sizes:?}"
                );
            }
            // fewer rows a step than there are virtual tokens, and other numbers of threads
            let mut few = with(2, 4);
            let mut all = Vec::new();
            let mut sequence = few.sequence();
            few.feed(&mut sequence, &text, Some(&layer), Wanted::All, &mut |_, z| all.push(z.to_vec()))
                .unwrap();
            assert_eq!(want, bits(&all), "{file} {prefix} {rows}: few rows");
            let mut three = with(3, 128);
            assert_eq!(
                want,
                bits(&in_pieces(&mut three, &text, &layer, &[75])),
                "{file} {prefix} {rows}: threads"
            );
            // beside one that wears nothing and one that wears something else
            let (mut a, mut b, mut c) = (three.sequence(), three.sequence(), three.sequence());
            let mut got = Vec::new();
            for (from, to) in [(0, 20), (20, 21), (21, 75)] {
                let n = (to - from).min(10);
                let mut requests = [
                    request(&mut b, &other[..n], None),
                    request(&mut a, &text[from..to], Some(&layer)),
                    request(&mut c, &other[..n], Some(&second)),
                ];
                let mut take = |i: usize, _: usize, z: &mut [f32]| {
                    if i == 1 {
                        got.push(z.to_vec());
                    }
                };
                three.step(&mut requests, &mut take).unwrap();
            }
            assert_eq!(want, bits(&got), "{file} {prefix} {rows}: beside others");
            // from the beginning again, in the same place, after another layer had it
            for (delta, same) in [(&second as &dyn Delta, false), (&layer, true)] {
                a.truncate(0);
                let mut got = Vec::new();
                let mut requests = [request(&mut a, &text, Some(delta))];
                three.step(&mut requests, &mut |_, _, z| got.push(z.to_vec())).unwrap();
                assert_eq!(want == bits(&got), same);
            }
        }
    }
}

#[test]
fn gradients_are_the_same_bits() {
    for file in ["llama/F32", "qwen3/F32", "llama-wide/Q8_0"] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let v = model.program().vocabulary;
        let examples: Vec<Example> =
            [20, 33, 9, 70].iter().zip(1..).map(|(n, seed)| example(*n, seed, v, seed % 2 == 0)).collect();
        for (prefix, rows) in [(3, 0), (0, 5), (66, 2)] {
            let layer = Front::new(&model, prefix, rows, &[examples[0].tokens[4]], 5);
            let run = |threads, keep| {
                let (loss, grads) = learn(&mut trainer(&model, threads, keep), &layer, &examples);
                (loss.to_bits(), bits(&[grads]))
            };
            let want = run(1, Keep::Streams);
            for (threads, keep) in [(2, Keep::Streams), (3, Keep::Streams), (2, Keep::Registers)] {
                assert_eq!(want, run(threads, keep), "{file} {prefix} {rows}: {threads} {keep:?}");
            }
            // one after the other: the same losses, and gradients but for the order of sums
            let mut trainer = trainer(&model, 2, Keep::Streams);
            let (loss, together) = learn(&mut trainer, &layer, &examples);
            layer.clear();
            let apart: Vec<f64> = examples
                .iter()
                .map(|e| trainer.differentiate(&layer, std::slice::from_ref(e), 1.0).unwrap())
                .collect();
            assert!((apart.iter().sum::<f64>() / loss - 1.0).abs() < 1e-12);
            let together: Vec<f64> = together.iter().map(|g| f64::from(*g)).collect();
            let error = relative(&layer.grads(), &together);
            assert!(error < 1e-5, "{file} {prefix} {rows}: in several passes off by {error:.1e}");
            // in another order, and beside others: the loss of a sequence is its own
            let turned: Vec<Example> = examples.iter().rev().cloned().collect();
            let (_, again) = learn(&mut trainer, &layer, &turned);
            assert!(relative(&again, &together) < 1e-5);
            let lone = learn(&mut trainer, &layer, &examples[1..2]).0;
            assert_eq!(lone.to_bits(), apart[1].to_bits());
        }
    }
}

#[test]
fn losses_are_those_of_scoring() {
    let model = open(vectors().join("llama/F32.gguf"));
    let v = model.program().vocabulary;
    for (prefix, rows) in [(3, 0), (0, 5), (2, 2)] {
        let layer = Front::new(&model, prefix, rows, &[], 5);
        let mut e = example(60, 4, v, false);
        e.trained[1..].fill(true);
        let mut o = options(2);
        // as many tokens as there are, besides what is in front
        (o.context, o.positions, o.sequences, o.rows) = (59, 59, 1, 16);
        let mut runner = runner(&model, o.clone());
        let scores = score(&mut runner, &e.tokens, Some(&layer)).unwrap();
        assert!(scores[0].is_none());
        let sum = -scores.iter().flatten().sum::<f64>();
        let loss = learn(&mut trainer(&model, 2, Keep::Streams), &layer, std::slice::from_ref(&e)).0;
        assert!((sum / loss - 1.0).abs() < 1e-12, "{sum} against {loss}");
        let whole = Windows::Sliding { stride: 30 };
        let found =
            perplexity(&mut runner, &e.tokens, 60, whole, None, Some(&layer), &mut |_, _, _| Flow::Go);
        assert!((found.unwrap().nll - sum / 59.0).abs() < 1e-12);
        // a first token that is trained counts where a virtual token predicts it
        let mut first = e.clone();
        first.trained[0] = true;
        let more = learn(&mut trainer(&model, 2, Keep::Streams), &layer, &[first]).0;
        assert_eq!(more > loss + 1e-3, rows > 0);
        // one position more than planned is one token less
        o.room.lead = prefix + rows - 1;
        let error = score(&mut support::runner(&model, o), &e.tokens, Some(&layer)).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().contains("at most 58")),
            (Kind::Argument, true),
            "{error}"
        );
    }
}

#[test]
fn off_is_the_base() {
    for file in ["llama/F32", "qwen3/F32"] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let text = example(50, 3, model.program().vocabulary, false).tokens;
        let mut plain = runner(&model, Options { room: Room::default(), ..options(2) });
        let want = bits(&logits(&mut plain, &text, None));
        let mut runner = runner(&model, options(2));
        for (prefix, rows) in [(3, 0), (0, 5), (2, 2)] {
            let layer = Front::new(&model, prefix, rows, &[text[1]], 5);
            assert_ne!(want, bits(&logits(&mut runner, &text, Some(&layer))));
            assert_eq!(want, bits(&logits(&mut runner, &text, None)));
            // a sequence that has begun keeps what is in front of it
            let mut sequence = runner.sequence();
            runner.feed(&mut sequence, &text[..10], Some(&layer), Wanted::Nothing, &mut |_, _| {}).unwrap();
            let other = Front::new(&model, rows, prefix + 1, &[], 5);
            for delta in [None, Some(&other as &dyn Delta)] {
                let error = runner
                    .feed(&mut sequence, &text[10..], delta, Wanted::Nothing, &mut |_, _| {})
                    .unwrap_err();
                let expected = format!("{prefix} of a prefix and {rows} virtual tokens");
                assert!(error.kind() == Kind::Mismatch && error.to_string().contains(&expected), "{error}");
                assert_eq!(sequence.len(), 10);
            }
            sequence.truncate(0);
            let mut got = Vec::new();
            runner.feed(&mut sequence, &text, None, Wanted::All, &mut |_, z| got.push(z.to_vec())).unwrap();
            assert_eq!(want, bits(&got));
            runner.forget(&mut sequence);
        }
    }
}

#[test]
fn sessions_put_it_on_and_take_it_off() {
    let model = open(vectors().join("llama/F32.gguf"));
    let text = example(30, 3, model.program().vocabulary, false).tokens;
    let room = Room { lead: 5, ..Room::default() };
    let options =
        EngineOptions { threads: Some(2), context: 30, kv: Precision::F32, room, ..Default::default() };
    let mut engine = Engine::new(model.clone(), &options).unwrap();
    let mut session = engine.session();
    let mut said = |session: &mut onlay::engine::Session, tokens: &[u32]| {
        engine.append(session, tokens)?;
        let mut got = Vec::new();
        engine.advance(&mut [session], &mut |_, z| got.push(z.to_vec())).map(|()| got)
    };
    let mut runner = runner(&model, support::options(2));
    let mut want =
        |delta: Option<&dyn Delta>, n: usize| bits(&logits(&mut runner, &text[..n], delta)[n - 1..]);
    assert_eq!(bits(&said(&mut session, &text[..20]).unwrap()), want(None, 20));
    for (prefix, rows) in [(3, 0), (0, 5), (2, 2)] {
        let layer = Arc::new(Front::new(&model, prefix, rows, &[], 5));
        session.wear(Some(layer.clone()));
        assert_eq!(bits(&said(&mut session, &[]).unwrap()), want(Some(&*layer), 20));
        session.truncate(10);
        assert_eq!(bits(&said(&mut session, &text[10..20]).unwrap()), want(Some(&*layer), 20));
        session.wear(None);
        assert_eq!(bits(&said(&mut session, &[]).unwrap()), want(None, 20));
    }
    // what was planned for takes nothing of the context, more does
    session.wear(Some(Arc::new(Front::new(&model, 5, 0, &[], 5))));
    said(&mut session, &text[20..]).unwrap();
    session.truncate(29);
    session.wear(Some(Arc::new(Front::new(&model, 5, 1, &[], 5))));
    said(&mut session, &[]).unwrap();
    let error = said(&mut session, &text[..1]).unwrap_err().to_string();
    assert!(error.contains("at most 29 tokens"), "{error}");
}

#[test]
fn gradients_do_not_vanish() {
    // what the other tests compare is not nothing
    let model = open(vectors().join("llama/F32.gguf"));
    let layer = Front::new(&model, 2, 2, &[], 5);
    let rows = [example(20, 1, model.program().vocabulary, true)];
    let (loss, grads) = learn(&mut trainer(&model, 1, Keep::Streams), &layer, &rows);
    assert!(loss > 1.0 && norm(&grads) > 1e-3);
    let most = trainer(&model, 1, Keep::Streams).differentiate(&layer, &vec![rows[0].clone(); 9], 1.0);
    assert!(most.unwrap_err().to_string().contains("at most 8"));
}
