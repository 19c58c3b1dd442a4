//! What the tests share: the oracle vectors, and where data that may be absent lies.
#![allow(dead_code)]

use onlay::model::{Model, Options, Runner, Wanted};
use onlay::ops::kv::Precision;
use onlay::ops::{Delta, Room};
use onlay::train::{Recipe, Shape};
use onlay_kernels::Level;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The repository: where the tests were built, or, where that is not, the folder at hand (tests that were carried to
/// another machine).
pub fn root() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built.exists() { built.into() } else { PathBuf::from(".") }
}

/// `tests/oracles/vectors`
pub fn vectors() -> PathBuf {
    root().join("tests/oracles/vectors")
}

/// Data that is not part of the repository: `ONLAY_SHARED`, or `shared/data` beside it.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ONLAY_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no {name} in the shared data");
    None
}

/// Named tensors of a safetensors file, as f64.
pub struct Answers(Vec<u8>);

impl Answers {
    pub fn open(path: impl AsRef<Path>) -> Self {
        Answers(std::fs::read(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display())))
    }
    pub fn names(&self) -> Vec<String> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    }
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let b = t.data();
        match t.dtype() {
            safetensors::Dtype::F32 => {
                b.chunks_exact(4).map(|c| f64::from(f32::from_le_bytes(c.try_into().unwrap()))).collect()
            }
            safetensors::Dtype::F64 => {
                b.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I32 => {
                b.chunks_exact(4).map(|c| f64::from(i32::from_le_bytes(c.try_into().unwrap()))).collect()
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    pub fn tokens(&self, name: &str) -> Vec<u32> {
        self.numbers(name).into_iter().map(|t| t as u32).collect()
    }
}

/// Options for small models; exact keys and values unless a test says otherwise.
pub fn options(threads: usize) -> Options {
    Options {
        level: Level::chosen().unwrap(),
        threads: threads.into(),
        positions: 1024,
        sequences: 8,
        context: 256,
        rows: 128,
        kv: Precision::F32,
        room: Room { hidden: 2048, entered: 256, lead: 16 },
        device: onlay::backend::Device::Host,
    }
}

pub fn open(path: impl AsRef<Path>) -> Arc<Model> {
    Arc::new(Model::open(path).unwrap_or_else(|e| panic!("{e}")))
}

pub fn runner(model: &Arc<Model>, options: Options) -> Runner {
    Runner::new(Arc::clone(model), options).unwrap()
}

/// Logits after every token.
pub fn logits(runner: &mut Runner, tokens: &[u32], delta: Option<&dyn Delta>) -> Vec<Vec<f32>> {
    let mut sequence = runner.sequence();
    let mut all = Vec::new();
    runner.feed(&mut sequence, tokens, delta, Wanted::All, &mut |_, z| all.push(z.to_vec())).unwrap();
    runner.forget(&mut sequence);
    all
}

/// Natural-log probability of each token given those before it, from the second on.
pub fn log_probabilities(logits: &[Vec<f32>], tokens: &[u32]) -> Vec<f64> {
    let log_sum = |z: &[f32]| {
        let m = z.iter().copied().fold(f32::MIN, f32::max);
        f64::from(m) + z.iter().map(|v| f64::from(v - m).exp()).sum::<f64>().ln()
    };
    tokens[1..].iter().zip(logits).map(|(t, z)| f64::from(z[*t as usize]) - log_sum(z)).collect()
}

/// Computes gradients and changes next to nothing.
pub const STILL: Recipe = Recipe {
    rate: 1e-30,
    plus: 1.0,
    shape: Shape::Constant,
    warmup: 0,
    decay: 0.0,
    max_norm: 0.0,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};
