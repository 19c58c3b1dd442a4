//! How fast a model runs here, beside what this machine could do at best.

use super::session::{Engine, EngineOptions, Layer};
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::tensor::Team;
use onlay_kernels::{Level, peak};
use std::time::Instant;

/// What the machine does at best with this many threads, measured now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read from memory per second.
    pub read: f64,
    /// f32 multiply-adds per second.
    pub floats: f64,
    /// Byte multiply-adds per second.
    pub bytes: f64,
}

impl Ceilings {
    /// Measures for about half a second.
    ///
    /// # Errors
    /// As [`Team::new`]; `Memory` if there are not 256 MiB for reading.
    pub fn measure(threads: usize) -> Result<Self> {
        let level = Level::chosen().map_err(|text| Error::new(Kind::Argument, text))?;
        let mut team = Team::new(threads)?;
        let words = 1 << 25;
        let mut memory: Vec<u64> = Vec::new();
        memory
            .try_reserve_exact(words)
            .map_err(|_| Error::new(Kind::Memory, "no memory for measuring bandwidth (256 MiB)"))?;
        memory.extend(0..words as u64);
        const PIECE: usize = 1 << 14;
        let read = fastest(4, || {
            team.each(words / PIECE, |_, i| {
                let mut sums = [0u64; 8];
                for eight in memory[i * PIECE..(i + 1) * PIECE].as_chunks::<8>().0 {
                    for (s, v) in sums.iter_mut().zip(eight) {
                        *s ^= v;
                    }
                }
                std::hint::black_box(sums);
            });
        });
        let rounds = 1 << 18;
        let floats = fastest(4, || {
            team.run(&|_| {
                std::hint::black_box(peak::floats(level, rounds));
            })
        });
        let bytes = fastest(4, || {
            team.run(&|_| {
                std::hint::black_box(peak::bytes(level, rounds));
            })
        });
        let all = |count: u64, time: f64| (count * threads as u64) as f64 / time;
        Ok(Ceilings {
            read: 8.0 * words as f64 / read,
            floats: all(peak::floats(level, rounds).0, floats),
            bytes: all(peak::bytes(level, rounds).0, bytes),
        })
    }
}

fn fastest(repeats: usize, mut f: impl FnMut()) -> f64 {
    let time = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(|_| time(&mut f)).fold(f64::MAX, f64::min)
}

/// What a model costs per token, for comparing with the ceilings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Bytes of weights that a single token reads.
    pub bytes: f64,
    /// Multiply-adds of weights for a token inside a prompt: without the head.
    pub prompt: f64,
    /// Multiply-adds of weights for a token that is trained: forward with the head, and gradients of inputs.
    pub train: f64,
}

impl Cost {
    /// Of one model.
    pub fn of(model: &Model) -> Self {
        let program = model.program();
        let (mut bytes, mut inner, mut head) = (0.0, 0.0, 0.0);
        for (info, id) in program.matrices.iter().zip(0..) {
            let m = model.bound().matrix(crate::ops::MatrixId(id));
            let is_head = id == program.head.matrix.0;
            let is_table = info.name == "token_embd.weight";
            if is_head || !is_table {
                bytes += m.bytes.len() as f64;
                let products = (m.rows * m.cols) as f64;
                *(if is_head { &mut head } else { &mut inner }) += products;
            }
        }
        Cost { bytes, prompt: inner, train: 2.0 * (inner + head) }
    }
}

/// Seconds for a prompt of `tokens`, several times.
///
/// # Errors
/// As [`Engine::advance`].
pub fn prompt(engine: &mut Engine, layer: Option<Layer>, tokens: usize, repeats: usize) -> Result<Vec<f64>> {
    let text = text(engine.model(), tokens);
    repeat(repeats, || {
        let mut session = engine.session();
        session.wear(layer.clone());
        engine.append(&mut session, &text)?;
        let start = Instant::now();
        let done = engine.advance(&mut [&mut session], &mut |_, _| {});
        let time = start.elapsed().as_secs_f64();
        engine.close(session);
        done.map(|()| time)
    })
}

/// Seconds for `tokens` tokens one after the other, several times.
///
/// # Errors
/// As [`Engine::advance`].
pub fn generate(
    engine: &mut Engine,
    layer: Option<Layer>,
    tokens: usize,
    repeats: usize,
) -> Result<Vec<f64>> {
    let text = text(engine.model(), tokens + 1);
    repeat(repeats, || {
        let mut session = engine.session();
        session.wear(layer.clone());
        engine.append(&mut session, &text[..1])?;
        engine.advance(&mut [&mut session], &mut |_, _| {})?;
        let start = Instant::now();
        for token in &text[1..] {
            engine.append(&mut session, std::slice::from_ref(token))?;
            engine.advance(&mut [&mut session], &mut |_, _| {})?;
        }
        let time = start.elapsed().as_secs_f64();
        engine.close(session);
        Ok(time)
    })
}

fn repeat(times: usize, mut f: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    (0..times).map(|_| f()).collect()
}

/// Tokens of no meaning: what they are makes no difference to speed.
pub fn text(model: &Model, tokens: usize) -> Vec<u32> {
    let vocabulary = model.program().vocabulary as u64;
    (0..tokens as u64).map(|i| (i * 7919 % vocabulary) as u32).collect()
}

/// Options that hold `tokens` positions.
pub fn options(threads: usize, tokens: usize, kv: crate::ops::kv::Precision, hidden: usize) -> EngineOptions {
    EngineOptions { threads: Some(threads), context: tokens + 1, rows: 512, kv, hidden, sessions: 1 }
}
