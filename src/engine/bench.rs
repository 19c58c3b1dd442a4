//! How fast a model runs here, beside what this machine could do at best.

use super::session::{Engine, EngineOptions, Layer, Session};
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::ops::Room;
use crate::ops::kv::{Precision, TILE};
use crate::tensor::{Team, Threads};
use onlay_kernels::{Level, narrow, peak};
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
    /// bf16 multiply-adds per second, where the level has them.
    pub halves: Option<f64>,
}

impl Ceilings {
    /// Measures for about half a second.
    ///
    /// # Errors
    /// As [`Team::new`]; `Memory` if there are not 256 MiB for reading.
    pub fn measure(threads: impl Into<Threads>) -> Result<Self> {
        let threads = threads.into();
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
        let halves = narrow::has(level).then(|| {
            fastest(4, || {
                team.run(&|_| {
                    let mut out = 0.0;
                    narrow::peak(level, rounds, &mut out);
                    std::hint::black_box(out);
                })
            })
        });
        let all = |count: u64, time: f64| (count * threads.count as u64) as f64 / time;
        Ok(Ceilings {
            read: 8.0 * words as f64 / read,
            floats: all(peak::floats(level, rounds).0, floats),
            bytes: all(peak::bytes(level, rounds).0, bytes),
            halves: halves.map(|time| all((rounds * narrow::PEAK) as u64, time)),
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
    /// Bytes of keys and values for every position that a token looks back.
    pub position_bytes: f64,
    /// Multiply-adds of f32 for every position that a token looks back.
    pub position: f64,
}

impl Cost {
    /// Of one model, whose keys and values are kept as `kv`.
    pub fn of(model: &Model, kv: Precision) -> Self {
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
        let layers = program.segments.len();
        let attention = program.attention;
        Cost {
            bytes,
            prompt: inner,
            train: 2.0 * (inner + head),
            position_bytes: program.kv_shape(kv, layers).tile_bytes() as f64 / TILE as f64,
            position: (2 * layers * attention.heads * attention.head) as f64,
        }
    }
}

/// Sessions that wear `layer` (each the next of them, if there are several) and have read `depth` tokens, at least one.
///
/// # Errors
/// As [`Engine::advance`].
pub fn sessions(engine: &mut Engine, layers: &[Layer], count: usize, depth: usize) -> Result<Vec<Session>> {
    let text = text(engine.model(), depth.max(1));
    let mut all = Vec::with_capacity(count);
    for i in 0..count {
        let mut session = engine.session();
        session.wear(layers.get(i % layers.len().max(1)).cloned());
        engine.append(&mut session, &text)?;
        engine.advance(&mut [&mut session], &mut |_, _| {})?;
        all.push(session);
    }
    Ok(all)
}

/// Seconds for reading `tokens` more tokens; the session then is as it was.
///
/// # Errors
/// As [`Engine::advance`].
pub fn prompt(engine: &mut Engine, session: &mut Session, tokens: usize) -> Result<f64> {
    let (depth, text) = (session.tokens().len(), text(engine.model(), tokens));
    engine.append(session, &text)?;
    let start = Instant::now();
    engine.advance(&mut [session], &mut |_, _| {})?;
    let time = start.elapsed().as_secs_f64();
    session.truncate(depth);
    Ok(time)
}

/// Seconds for `tokens` tokens of every session one after the other, all sessions in one step; they then are as they
/// were.
///
/// # Errors
/// As [`Engine::advance`].
pub fn generate(engine: &mut Engine, sessions: &mut [Session], tokens: usize) -> Result<f64> {
    let text = text(engine.model(), tokens);
    let depths: Vec<_> = sessions.iter().map(|s| s.tokens().len()).collect();
    let start = Instant::now();
    for token in &text {
        for session in sessions.iter_mut() {
            engine.append(session, std::slice::from_ref(token))?;
        }
        let mut all: Vec<_> = sessions.iter_mut().collect();
        engine.advance(&mut all, &mut |_, _| {})?;
    }
    let time = start.elapsed().as_secs_f64();
    sessions.iter_mut().zip(depths).for_each(|(s, depth)| s.truncate(depth));
    Ok(time)
}

/// Tokens of no meaning: what they are makes no difference to speed.
pub fn text(model: &Model, tokens: usize) -> Vec<u32> {
    let vocabulary = model.program().vocabulary as u64;
    (0..tokens as u64).map(|i| (i * 7919 % vocabulary) as u32).collect()
}

/// Options for `sessions` sessions of `positions` positions.
pub fn options(
    threads: usize,
    sessions: usize,
    positions: usize,
    kv: Precision,
    room: Room,
) -> EngineOptions {
    let threads = Some(threads);
    EngineOptions { threads, context: positions, rows: 512, kv, room, sessions, ..EngineOptions::default() }
}
