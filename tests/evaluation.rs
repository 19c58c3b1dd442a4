//! Scores against the oracles, perplexity against its definition.

mod support;
use onlay::adapter::{Lora, Part};
use onlay::error::Kind;
use onlay::eval::{Perplexity, Windows, perplexity, score};
use onlay::model::Options;
use onlay::rng::Rng;
use onlay::train::Flow;
use support::*;

#[test]
fn scores_are_those_of_the_oracles() {
    for (name, within) in [
        ("llama/F32", 1e-3),
        ("llama-tied-bias/F32", 1e-3),
        ("mistral/F32", 1e-3),
        ("qwen2/F32", 1e-3),
        ("qwen3/F32", 1e-3),
        ("llama/F16", 5e-3),
        ("qwen3/F16", 5e-3),
    ] {
        let model = open(vectors().join(format!("{name}.gguf")));
        let answers = Answers::open(vectors().join(format!("{name}.safetensors")));
        let mut worst = 0f64;
        for i in 0..3 {
            let tokens = answers.tokens(&format!("tokens.{i}"));
            let want = answers.numbers(&format!("logprobs.{i}"));
            let mut found = Vec::new();
            for rows in [128, 7, 1] {
                let mut runner = runner(&model, Options { rows, ..options(1 + rows % 2) });
                found.push(score(&mut runner, &tokens, None).unwrap());
            }
            assert!(found[0] == found[1] && found[0] == found[2], "steps of any size, to the bit");
            assert_eq!((found[0].len(), found[0][0]), (tokens.len(), None));
            for (p, want) in found[0][1..].iter().zip(&want) {
                worst = worst.max((p.unwrap() - want).abs());
            }
        }
        println!("{name}: {worst:.1e}");
        assert!(worst < within, "{name}: {worst}");
    }
}

#[test]
fn a_score_needs_tokens_that_fit() {
    let model = open(vectors().join("llama/F32.gguf"));
    let mut runner = runner(&model, Options { context: 10, positions: 10, ..options(1) });
    assert_eq!(score(&mut runner, &[], None).unwrap(), []);
    assert_eq!(score(&mut runner, &[5], None).unwrap(), [None]);
    // ten positions say something about eleven tokens
    assert_eq!(score(&mut runner, &[1; 11], None).unwrap().len(), 11);
    assert_eq!(score(&mut runner, &[1; 12], None).unwrap_err().kind(), Kind::Argument);
    // the last token is looked up too, though nothing is computed after it
    let error = score(&mut runner, &[1, 272], None).unwrap_err();
    assert!(error.to_string().contains("token 1: expected below 272"), "{error}");
    // and after every error there is room again
    for _ in 0..20 {
        assert!(score(&mut runner, &[1; 12], None).is_err() && score(&mut runner, &[1; 11], None).is_ok());
    }
}

/// Perplexity by its definition, from whole rows of logits.
fn by_definition(
    runner: &mut onlay::model::Runner,
    tokens: &[u32],
    windows: &[(usize, usize, usize)],
    begin: Option<u32>,
    layer: Option<&Lora>,
) -> (f64, usize) {
    let (mut sum, mut n) = (0.0, 0);
    for (first, end, counts) in windows {
        let mut text = tokens[*first..*end].to_vec();
        if let Some(begin) = begin.filter(|_| *first > 0) {
            text[0] = begin;
        }
        let z = logits(runner, &text, layer.map(|l| l as _));
        for p in &log_probabilities(&z, &text)[counts - 1..] {
            sum -= p;
            n += 1;
        }
    }
    (sum / n as f64, n)
}

#[test]
fn perplexity_is_what_it_says() {
    let model = open(vectors().join("qwen3/F32.gguf"));
    let mut rng = Rng::new(8);
    let tokens: Vec<u32> = (0..150).map(|_| rng.below(270) as u32).collect();
    let parts = model.program().sites.iter();
    let mut layer = Lora::new(parts.map(|s| Some(Part::lora(2, s.inputs, s.outputs, 1.0))).collect());
    layer.start(&mut rng);
    for i in 0..layer.parts().len() {
        layer.params().get(i).iter_mut().for_each(|v| *v += 0.02 * rng.normal());
    }
    let slow = &mut runner(&model, options(1));
    let fast = &mut runner(&model, Options { rows: 9, ..options(2) });
    for layer in [None, Some(&layer)] {
        for begin in [None, Some(3)] {
            let mut check = |context, how, windows: &[(usize, usize, usize)]| {
                let mut seen = Vec::new();
                let found =
                    perplexity(fast, &tokens, context, how, begin, layer.map(|l| l as _), &mut |i, of, _| {
                        seen.push((i, of));
                        Flow::Go
                    });
                let found: Perplexity = found.unwrap();
                let (nll, n) = by_definition(slow, &tokens, windows, begin, layer);
                assert_eq!((found.tokens, found.windows, seen.len()), (n, windows.len(), windows.len()));
                assert_eq!(seen.last(), Some(&(windows.len(), windows.len())));
                assert!((found.nll - nll).abs() < 1e-6, "{context} {how:?}: {} {nll}", found.nll);
                assert!((found.perplexity / nll.exp() - 1.0).abs() < 1e-6);
                assert!(found.error > 0.0 && found.error < found.perplexity);
            };
            check(200, Windows::Sliding { stride: 100 }, &[(0, 150, 1)]);
            check(100, Windows::Sliding { stride: 40 }, &[(0, 100, 1), (40, 140, 60), (50, 150, 90)]);
            check(
                50,
                Windows::Sliding { stride: 49 },
                &[(0, 50, 1), (49, 99, 1), (98, 148, 1), (100, 150, 48)],
            );
            if begin.is_none() {
                check(60, Windows::Halves, &[(0, 60, 31), (60, 120, 31)]);
            }
        }
    }
    let stopped =
        perplexity(fast, &tokens, 50, Windows::Sliding { stride: 25 }, None, None, &mut |_, _, _| Flow::Stop);
    assert_eq!(stopped.unwrap_err().kind(), Kind::Cancelled);
    for (tokens, context) in [(&tokens[..1], 50), (&tokens, 1), (&tokens, 25)] {
        assert!(
            perplexity(fast, tokens, context, Windows::Sliding { stride: 25 }, None, None, &mut |_, _, _| {
                Flow::Go
            })
            .is_err()
        );
    }
    let outside = perplexity(fast, &[1, 2, 9999], 50, Windows::Halves, None, None, &mut |_, _, _| Flow::Go);
    assert!(outside.unwrap_err().to_string().contains("9999"));
}

#[test]
fn halves_replace_every_first_token() {
    let model = open(vectors().join("llama/F32.gguf"));
    let mut runner = runner(&model, options(1));
    let with = |runner: &mut _, first: u32| {
        let tokens: Vec<u32> = (0..40).map(|i| if i % 20 == 0 { first } else { i }).collect();
        perplexity(runner, &tokens, 20, Windows::Halves, Some(270), None, &mut |_, _, _| Flow::Go).unwrap()
    };
    assert_eq!(with(&mut runner, 1), with(&mut runner, 270));
}
