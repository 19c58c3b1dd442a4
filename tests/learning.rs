//! The whole backward pass: gradients of every part of a layer against differences of the loss, whatever is kept and
//! however many threads.

mod support;
use onlay::adapter::{Lora, Part};
use onlay::model::Model;
use onlay::ops::kv::Precision;
use onlay::rng::Rng;
use onlay::train::{Example, Keep, Optimizer, Recipe, TrainOptions, Trainer};
use onlay_kernels::Level;
use std::sync::Arc;
use support::*;

fn parts(model: &Model, rank: usize, which: impl Fn(&str) -> bool) -> Vec<Option<Part>> {
    let part = |inputs, outputs| Part::lora(rank, inputs, outputs, 2.0);
    model.program().sites.iter().map(|s| which(&s.name).then(|| part(s.inputs, s.outputs))).collect()
}

fn train_options(threads: usize, keep: Keep) -> TrainOptions {
    TrainOptions {
        level: Level::chosen().unwrap(),
        threads: threads.into(),
        rows: 100,
        context: 100,
        sequences: 8,
        kv: Precision::F32,
        keep,
        optimizer: Optimizer::default(),
        device: onlay::backend::Device::Host,
    }
}

fn random_layer(parts: Vec<Option<Part>>, dropout: f64, seed: u64) -> Arc<Lora> {
    let mut layer = Lora::new(parts);
    let mut rng = Rng::new(seed);
    for i in 0..layer.parts().len() {
        layer.params().get(i).iter_mut().for_each(|v| *v = 0.05 * rng.normal());
    }
    layer.learn(100, dropout, 7).unwrap();
    Arc::new(layer)
}

fn examples(vocabulary: usize) -> Vec<Example> {
    let mut rng = Rng::new(5);
    [23, 40, 2]
        .iter()
        .map(|n| Example {
            tokens: (0..*n).map(|_| rng.below(vocabulary as u64) as u32).collect(),
            trained: (0..*n).map(|i| i % 3 != 1 || *n == 2).collect(),
        })
        .collect()
}

#[test]
fn gradients_are_differences_of_the_loss() {
    for (file, which) in [
        ("llama/F32", ""),
        ("qwen3/F32", ""),
        ("qwen2/F32", "attn"),
        ("llama-tied-bias/F32", "ffn"),
        ("mistral/F32", "token_embd output"),
    ] {
        for dropout in [0.0, 0.3] {
            let model = open(vectors().join(format!("{file}.gguf")));
            let which = |name: &str| which.is_empty() || which.split(' ').any(|w| name.contains(w));
            let layer = random_layer(parts(&model, 3, which), dropout, 3);
            let mut trainer =
                Trainer::new(model.clone(), layer.clone(), train_options(2, Keep::Streams)).unwrap();
            let window = examples(model.program().vocabulary);
            trainer.step(&window, &STILL, 10).unwrap();
            let gradients: Vec<_> = (0..layer.parts().len()).map(|i| layer.grads().read(i).clone()).collect();
            let mut rng = Rng::new(9);
            let mut worst = 0f64;
            for (i, part) in layer.parts().iter().enumerate() {
                let Some(part) = part else { continue };
                let gradient = &gradients[i];
                // along a random direction through A, and one through B
                for range in [0..part.rank * part.inputs, part.rank * part.inputs..part.len()] {
                    let direction: Vec<f32> = range.clone().map(|_| rng.normal()).collect();
                    let slope: f64 = range
                        .clone()
                        .zip(&direction)
                        .map(|(j, d)| f64::from(gradient[j]) * f64::from(*d))
                        .sum();
                    let h = 2e-3;
                    let mut at = |by: f32| {
                        let old = layer.params().read(i).clone();
                        for (j, d) in range.clone().zip(&direction) {
                            layer.params().get(i)[j] = old[j] + by * d;
                        }
                        // the same draw of dropout as in the step above
                        trainer.set_steps(0);
                        let loss = trainer.step(&window, &STILL, 10).unwrap().loss;
                        layer.params().get(i).copy_from_slice(&old);
                        loss
                    };
                    // central differences of fourth order
                    let near = at(h) - at(-h);
                    let difference = (8.0 * near - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * f64::from(h));
                    let error = (difference - slope).abs() / slope.abs().max(0.05);
                    worst = worst.max(error);
                    let name = &model.program().sites[i].name;
                    assert!(error < 1e-2, "{file} {name} dropout {dropout}: {difference} against {slope}");
                }
            }
            println!("{file} dropout {dropout}: worst {worst:.1e}");
        }
    }
}

#[test]
fn what_is_kept_and_how_many_work_change_no_bit() {
    for file in ["llama/F32", "llama-wide/Q8_0", "qwen3-wide/Q4_K"] {
        let model = open(vectors().join(format!("{file}.gguf")));
        let window = examples(model.program().vocabulary);
        let recipe = Recipe { rate: 1e-2, ..Recipe::default() };
        let run = |threads, keep| {
            let layer = random_layer(parts(&model, 4, |_| true), 0.1, 1);
            let mut trainer =
                Trainer::new(model.clone(), layer.clone(), train_options(threads, keep)).unwrap();
            let reports: Vec<_> = (0..3).map(|_| trainer.step(&window, &recipe, 3).unwrap()).collect();
            let numbers: Vec<Vec<u32>> = (0..layer.parts().len())
                .map(|i| layer.params().read(i).iter().map(|v| v.to_bits()).collect())
                .collect();
            (reports, numbers)
        };
        let want = run(1, Keep::Streams);
        assert!(want.0[2].loss < want.0[0].loss, "{file} learns: {:?}", want.0);
        for (threads, keep) in [(2, Keep::Streams), (3, Keep::Registers), (1, Keep::Registers)] {
            assert!(want == run(threads, keep), "{file} {threads} {keep:?}");
        }
    }
}
