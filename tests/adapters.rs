//! Adapter files: PEFT's and llama.cpp's against PEFT's logits, ours there and back, what is worn, and what is refused.

mod support;
use onlay::adapter::{Adapter, Lora, Manifest, Part, Targets, Warning, Worn};
use onlay::error::Kind;
use onlay::model::{Model, Request, Sequence, Wanted};
use onlay::ops::{Delta, Site};
use onlay::rng::Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-adapters-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn take(path: impl AsRef<Path>, model: &Model) -> Adapter {
    Adapter::open(path, model).unwrap_or_else(|e| panic!("{e}")).0
}

fn worn(model: &Model, stack: &[(&Arc<Adapter>, f32)]) -> Worn {
    let stack = stack.iter().map(|(a, w)| (Arc::clone(a), *w)).collect();
    Worn::new(model, stack).unwrap()
}

fn bits(logits: &[Vec<f32>]) -> Vec<u32> {
    logits.iter().flatten().map(|v| v.to_bits()).collect()
}

/// Every number and scale, bit for bit.
fn numbers(adapter: &Adapter) -> Vec<(usize, usize, u32, Vec<u32>)> {
    let each = adapter.parts().iter().enumerate().filter_map(|(i, p)| {
        let numbers = adapter.numbers(Site(i as u32)).iter().map(|v| v.to_bits()).collect();
        Some((i, (*p)?.rank, p.as_ref()?.scale.to_bits(), numbers))
    });
    each.collect()
}

/// A layer with random A and B on the given targets.
fn random(model: &Model, targets: &str, rank: usize, scale: f32, seed: u64) -> Lora {
    let layer = Targets::parse(targets).unwrap().layer(model.program(), rank, scale).unwrap();
    let mut rng = Rng::new(seed);
    for i in 0..layer.parts().len() {
        layer.params().get(i).iter_mut().for_each(|v| *v = 0.1 * rng.normal());
    }
    layer
}

fn adapter(model: &Model, targets: &str, rank: usize, scale: f32, seed: u64) -> Arc<Adapter> {
    let layer = random(model, targets, rank, scale, seed);
    Arc::new(Adapter::new("random", layer, Manifest::of(model), model.program()).unwrap())
}

const MODELS: [&str; 4] = ["llama", "llama-tied-bias", "qwen2", "qwen3"];

#[test]
fn adapters_of_peft_and_llama_cpp_give_pefts_logits() {
    for model in MODELS {
        let folder = vectors().join(model);
        let model = open(folder.join("F32.gguf"));
        let mut runner = runner(&model, options(2));
        for (file, case) in [
            ("lora-all", "lora-all"),
            ("lora-all/adapter.gguf", "lora-all"),
            ("lora-attention", "lora-attention"),
        ] {
            let (adapter, warnings) = Adapter::open(folder.join(file), &model).unwrap();
            assert_eq!(warnings, [Warning::NoManifest]);
            let worn = worn(&model, &[(&Arc::new(adapter), 1.0)]);
            let answers = Answers::open(folder.join(case).join("gradients.safetensors"));
            let mut worst = 0f64;
            for i in 0..2 {
                let tokens = answers.tokens(&format!("tokens.{i}"));
                let z = logits(&mut runner, &tokens, worn.delta());
                for (got, want) in z.last().unwrap().iter().zip(answers.numbers(&format!("last.{i}"))) {
                    worst = worst.max((f64::from(*got) - want).abs());
                }
            }
            println!("{file}: {worst:.1e}");
            assert!(worst < 1e-3, "{file}: {worst}");
        }
    }
}

#[test]
fn both_files_of_one_adapter_hold_the_same_numbers() {
    for model in MODELS {
        let folder = vectors().join(model);
        let model = open(folder.join("F32.gguf"));
        let (peft, gguf) =
            (take(folder.join("lora-all"), &model), take(folder.join("lora-all/adapter.gguf"), &model));
        assert_eq!(numbers(&peft), numbers(&gguf));
        assert_eq!((peft.id(), gguf.name()), (gguf.id(), "Lora All"));
    }
}

/// Names and numbers of a safetensors file, without the base's.
fn stored(path: impl AsRef<Path>) -> BTreeMap<String, Vec<f64>> {
    let file = Answers::open(path);
    let own = file.names().into_iter().filter(|n| !n.contains("base_layer"));
    own.map(|n| (n.clone(), file.numbers(&n))).collect()
}

#[test]
fn from_peft_to_gguf_and_back_no_bit_changes() {
    let scratch = Scratch::new("round");
    for model in MODELS {
        for case in ["lora-all", "lora-attention"] {
            let source = vectors().join(model).join(case);
            let model = open(vectors().join(model).join("F32.gguf"));
            let first = take(&source, &model);
            let (gguf, peft) = (scratch.at("a.gguf"), scratch.at("peft"));
            first.write_gguf(&gguf, &model, true).unwrap();
            let second = take(&gguf, &model);
            assert_eq!(numbers(&first), numbers(&second));
            second.write_peft(&peft, &model, true).unwrap();
            let third = take(&peft, &model);
            assert_eq!(numbers(&first), numbers(&third));
            assert_eq!((first.id(), second.id()), (second.id(), third.id()));
            let tensors = "adapter_model.safetensors";
            assert_eq!(stored(source.join(tensors)), stored(peft.join(tensors)), "{case}");
            // written twice, the bytes are the same
            let again = scratch.at("b.gguf");
            second.write_gguf(&again, &model, true).unwrap();
            third.write_peft(scratch.at("peft-2"), &model, true).unwrap();
            for (a, b) in [(gguf, again), (peft.join(tensors), scratch.at("peft-2").join(tensors))] {
                assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
            }
        }
    }
}

#[test]
fn any_ranks_and_scales_survive_both_files() {
    let scratch = Scratch::new("scales");
    let model = open(vectors().join("llama/F32.gguf"));
    let sites = &model.program().sites;
    let mut rng = Rng::new(11);
    for round in 0..20 {
        let parts: Vec<_> = sites
            .iter()
            .map(|s| {
                let scale =
                    [2.0, 1.0 / 3.0, -0.7, 5.656_854, 1e-3, rng.uniform() + 0.01][rng.below(6) as usize];
                let part = Part::lora(1 + rng.below(9) as usize, s.inputs, s.outputs, scale);
                (rng.below(3) > 0).then_some(part)
            })
            .collect();
        let layer = Lora::new(parts);
        for i in 0..sites.len() {
            layer
                .params()
                .get(i)
                .iter_mut()
                .for_each(|v| *v = rng.normal() * 10f32.powi(rng.below(9) as i32 - 6));
        }
        let first = Adapter::new("a", layer, Manifest::default(), model.program()).unwrap();
        let (gguf, peft) = (scratch.at("a.gguf"), scratch.at("peft"));
        first.write_gguf(&gguf, &model, true).unwrap();
        let second = take(&gguf, &model);
        assert_eq!(numbers(&first), numbers(&second), "round {round}");
        second.write_peft(&peft, &model, true).unwrap();
        assert_eq!(numbers(&first), numbers(&take(&peft, &model)), "round {round}");
    }
}

#[test]
fn manifests_travel_and_bases_are_told_apart() {
    let scratch = Scratch::new("manifest");
    let model = open(vectors().join("llama-wide/Q8_0.gguf"));
    let manifest = Manifest {
        data: Some([7; 32]),
        parent: Some([8; 32]),
        recipe: Some(serde_json::json!({"rank": 4, "targets": "all"})),
        metrics: Some(serde_json::json!({"loss": [2.5, 1.25]})),
        seed: Some(u64::MAX),
        steps: Some(20),
        ..Manifest::of(&model)
    };
    let layer = random(&model, "all", 4, 2.0, 1);
    let first = Adapter::new("named", layer, manifest.clone(), model.program()).unwrap();
    first.write_gguf(scratch.at("named.gguf"), &model, false).unwrap();
    first.write_peft(scratch.at("named"), &model, false).unwrap();
    for path in [scratch.at("named.gguf"), scratch.at("named")] {
        let (read, warnings) = Adapter::open(&path, &model).unwrap();
        assert_eq!((read.manifest(), read.name(), &warnings[..]), (&manifest, "named", &[][..]));

        // the same shape in other numbers
        let other = open(vectors().join("llama-wide/Q4_K.gguf"));
        let (_, warnings) = Adapter::open(&path, &other).unwrap();
        let [warning @ Warning::OtherWeights { .. }] = &warnings[..] else { panic!("{warnings:?}") };
        assert_eq!(warning.clone().refuse().kind(), Kind::Mismatch);

        // another model: everything at once
        let error = Adapter::open(&path, &open(vectors().join("llama/F32.gguf"))).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        let text = error.to_string();
        for part in
            ["onlay.base.shape: base: expected", "attn_q", "attn_k", "ffn_down", "inputs: expected 64"]
        {
            let part = if path.is_dir() {
                part.replace("attn_", "self_attn.").replace("ffn_down", "down_proj")
            } else {
                part.into()
            };
            assert!(text.contains(&part), "{part} in {text}");
        }
        assert!(error.findings().len() > 10);
        let error = Adapter::open(&path, &open(vectors().join("qwen2/F32.gguf"))).unwrap_err();
        assert!(path.is_dir() || error.to_string().contains("architecture: expected \"qwen2\""), "{error}");
        assert!(error.to_string().contains("onlay.tokenizer"), "{error}");
    }
}

#[test]
fn outputs_that_exist_are_not_replaced_unasked() {
    let scratch = Scratch::new("exists");
    let model = open(vectors().join("qwen3/F32.gguf"));
    let (one, two) = (adapter(&model, "q", 2, 1.0, 1), adapter(&model, "all,head", 3, 1.0, 2));
    let (gguf, peft) = (scratch.at("a.gguf"), scratch.at("dir"));
    one.write_gguf(&gguf, &model, false).unwrap();
    one.write_peft(&peft, &model, false).unwrap();
    assert_eq!(two.write_gguf(&gguf, &model, false).unwrap_err().kind(), Kind::Argument);
    assert_eq!(two.write_peft(&peft, &model, false).unwrap_err().kind(), Kind::Argument);
    assert_eq!(take(&gguf, &model).id(), one.id());
    assert_eq!(take(&peft, &model).id(), one.id());
    two.write_gguf(&gguf, &model, true).unwrap();
    two.write_peft(&peft, &model, true).unwrap();
    assert_eq!((take(&gguf, &model).id(), take(&peft, &model).id()), (two.id(), two.id()));
    for missing in [scratch.at("none/a.gguf"), scratch.at("none/dir")] {
        assert_eq!(one.write_gguf(&missing, &model, false).unwrap_err().kind(), Kind::Io);
        assert_eq!(one.write_peft(&missing, &model, false).unwrap_err().kind(), Kind::Io);
    }
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 2, "nothing is left behind");
    // an adapter of another program
    let other = open(vectors().join("llama/F32.gguf"));
    assert_eq!(one.write_gguf(&gguf, &other, true).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn a_tied_head_goes_both_ways() {
    let scratch = Scratch::new("tied");
    let model = open(vectors().join("qwen2/F32.gguf"));
    let first = adapter(&model, "q,head", 3, 1.5, 4);
    let warnings = first.write_gguf(scratch.at("a.gguf"), &model, false).unwrap();
    assert_eq!(warnings, [Warning::TiedHead]);
    first.write_peft(scratch.at("peft"), &model, false).unwrap();
    for path in ["a.gguf", "peft"] {
        assert_eq!(take(scratch.at(path), &model).id(), first.id());
    }
}

#[test]
fn taken_off_it_is_the_base_again() {
    for file in ["llama/F32", "llama-wide/Q4_K", "qwen3-wide/Q8_0"] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let mut runner = runner(&model, options(2));
        let tokens: Vec<u32> = (0..40).map(|i| (7 * i + 3) % 150).collect();
        let base = logits(&mut runner, &tokens, None);
        let layer = adapter(&model, "all,head", 4, 2.0, 1);
        let on = worn(&model, &[(&layer, 1.0)]);
        let with = logits(&mut runner, &tokens, on.delta());
        assert_ne!(bits(&base), bits(&with));
        assert_eq!(bits(&base), bits(&logits(&mut runner, &tokens, Worn::default().delta())));
        assert!(worn(&model, &[(&layer, 0.0)]).delta().is_none());

        // beside a session that wears it, and one that wears it with another weight
        let half = worn(&model, &[(&layer, 0.5)]);
        let want = [bits(&base), bits(&with), bits(&logits(&mut runner, &tokens, half.delta()))];
        let mut sequences = [Sequence::default(), Sequence::default(), Sequence::default()];
        let mut got = [vec![], vec![], vec![]];
        let deltas = [None, on.delta(), half.delta()];
        let mut requests: Vec<_> = sequences
            .iter_mut()
            .zip(deltas)
            .map(|(sequence, delta)| Request { sequence, tokens: &tokens, delta, wanted: Wanted::All })
            .collect();
        runner.step(&mut requests, &mut |i, _, z| got[i].extend(z.iter().map(|v| v.to_bits()))).unwrap();
        assert!(want == got, "{file}");
    }
}

#[test]
fn one_of_weight_one_is_itself_and_a_stack_is_the_sum() {
    for file in ["llama/F32", "llama-wide/Q4_K"] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let mut runner = runner(&model, options(2));
        let tokens: Vec<u32> = (0..30).map(|i| (11 * i + 1) % 150).collect();
        let a = adapter(&model, "all,head", 3, 1.5, 1);
        let alone = a.to_lora();
        let want = bits(&logits(&mut runner, &tokens, Some(&alone as &dyn Delta)));
        assert!(want == bits(&logits(&mut runner, &tokens, worn(&model, &[(&a, 1.0)]).delta())));

        // one layer with both side by side; without scales it is the same sequence of operations
        for (file, scale, wa, wb) in [(file, 1.0, 1.0, 1.0), (file, 1.5, 0.75, -2.0)] {
            let (a, b) = (adapter(&model, "all,head", 3, scale, 1), adapter(&model, "attn", 12, scale, 2));
            let stack = worn(&model, &[(&a, wa), (&b, wb)]);
            assert_eq!(stack.room(model.program()).hidden, 3 * (3 + 12));
            let sum = logits(&mut runner, &tokens, Some(&side_by_side(&[(&a, wa), (&b, wb)])));
            let got = logits(&mut runner, &tokens, stack.delta());
            if scale == 1.0 {
                assert!(bits(&sum) == bits(&got), "{file}");
            } else if file.ends_with("F32") {
                let pairs = sum.iter().flatten().zip(got.iter().flatten());
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                println!("{file}: weighted stack against sum {worst:.1e}");
                assert!(worst < 1e-4);
            }
        }
    }
}

/// One layer that holds some adapters, with scales and weights in B.
fn side_by_side(stack: &[(&Arc<Adapter>, f32)]) -> Lora {
    let of = |i: usize| stack.iter().filter_map(move |(a, w)| Some((*a, *w, a.parts()[i]?)));
    let parts = (0..stack[0].0.parts().len()).map(|i| {
        let part = of(i).next()?.2;
        Some(Part { rank: of(i).map(|(.., p)| p.rank).sum(), scale: 1.0, ..part })
    });
    let both = Lora::new(parts.collect());
    for i in 0..both.parts().len() {
        let (mut first, mut second) = (vec![], vec![]);
        for (adapter, weight, part) in of(i) {
            let numbers = adapter.numbers(Site(i as u32));
            let (a, b) = numbers.split_at(part.rank * part.inputs);
            first.extend_from_slice(a);
            second.extend(b.iter().map(|v| v * weight * part.scale));
        }
        first.append(&mut second);
        *both.params().get(i) = first;
    }
    both
}

#[test]
fn what_cannot_be_worn_is_refused() {
    let model = open(vectors().join("llama/F32.gguf"));
    let other = open(vectors().join("qwen3/F32.gguf"));
    let (mine, foreign) = (adapter(&model, "q", 2, 1.0, 1), adapter(&other, "q", 2, 1.0, 1));
    let stack = vec![(Arc::clone(&mine), f32::NAN), (foreign, 1.0), (mine, 1.0)];
    let error = Worn::new(&model, stack).unwrap_err();
    assert_eq!(error.findings().len(), 2, "{error}");
    let mut layer = random(&model, "q", 2, 1.0, 1);
    layer.params().get(0)[3] = f32::INFINITY;
    let error = Adapter::new("x", layer.copy(), Manifest::default(), model.program()).unwrap_err();
    assert_eq!(error.kind(), Kind::Numeric);
    layer = Lora::new(vec![None; model.program().sites.len()]);
    assert!(Adapter::new("x", layer, Manifest::default(), model.program()).is_err());
    assert!(Adapter::new("x", Lora::new(vec![]), Manifest::default(), model.program()).is_err());
}
