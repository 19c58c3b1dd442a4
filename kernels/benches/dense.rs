//! One thread: how fast are unquantized weights multiplied, at each level?
//!
//! `dot`: GB/s of weights streamed from memory with one row of activations · `few`, `many`: 10⁹ multiply-adds per second with
//! 512 rows of activations, a few at a time and through panels (`laid`: once those are laid); `peak`: the ceiling.
//!
//! `K=4096 cargo bench -p onlay-kernels --bench dense [-- LEVEL…]`

use onlay_kernels::dense::{self, Dense, PIECE};
use onlay_kernels::{Level, dense_panel, peak};
use std::time::Instant;

fn best(repeats: usize, mut f: impl FnMut()) -> f64 {
    (0..repeats)
        .map(|_| {
            let t = Instant::now();
            f();
            t.elapsed().as_secs_f64()
        })
        .fold(f64::MAX, f64::min)
}

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let k: usize = std::env::var("K").map_or(2048, |v| v.parse().unwrap());
    let (n, task) = (512, 64);
    let spin = |level: Level| {
        let rounds = 5_000_000;
        let mut done = 0;
        let t = best(3, || done = std::hint::black_box(peak::floats(level, rounds)).0);
        done as f64 / t / 1e9
    };
    println!(
        "{:5} {:9} {:>9} {:>9} {:>11} {:>11} {:>11}",
        "type", "level", "peak", "dot GB/s", "few GMAC/s", "many GMAC/s", "laid GMAC/s"
    );
    for kind in [Dense::F32, Dense::F16, Dense::Bf16] {
        let (rows, row_bytes) = ((1 << 28) / (k * kind.bytes()), k * kind.bytes());
        let w = vec![0x11u32; rows * row_bytes / 4];
        let w: &[u8] = bytemuck::cast_slice(&w);
        let x: Vec<f32> = (0..n * k).map(|i| (i % 17) as f32 - 8.0).collect();
        for level in
            Level::available().into_iter().filter(|l| only.is_empty() || only.iter().any(|o| o == l.name()))
        {
            let mut y = vec![0f32; rows.max((n + 16) * 64)];
            let dot = best(3, || dense::product(level, kind, w, row_bytes, &x[..k], k, &mut y, rows));
            let tasks = 4;
            let few = best(3, || {
                for t in 0..tasks {
                    let w = &w[t * 48 * row_bytes..(t + 1) * 48 * row_bytes];
                    dense::product(level, kind, w, row_bytes, &x, k, &mut y, task);
                }
            });
            let (r, c, len) =
                (dense_panel::rows(level), dense_panel::columns(level), dense_panel::length(level, k));
            let mut packed = vec![0f32; n.div_ceil(c) * c * len];
            for (x, to) in x.chunks(c * k).zip(packed.chunks_mut(c * len)) {
                dense_panel::pack(level, x, k, to);
            }
            let mut panels = vec![0f32; task * dense_panel::length(level, PIECE)];
            let mut many = |lay: bool| {
                best(3, || {
                    for w in w.chunks_exact(task * row_bytes).take(tasks) {
                        for from in (0..k).step_by(PIECE) {
                            let cut = PIECE.min(k - from);
                            let size = r * dense_panel::length(level, cut);
                            for (w, to) in
                                w.chunks(r * row_bytes).zip(panels.chunks_mut(size)).filter(|_| lay)
                            {
                                dense_panel::lay(level, kind, w, row_bytes, from..from + cut, to);
                            }
                            for (x, y) in packed.chunks(c * len).zip(y.chunks_mut(c * task)) {
                                for (p, panel) in panels.chunks(size).enumerate().take(task / r) {
                                    dense_panel::tile(level, panel, x, from, cut, &mut y[p * r..], task);
                                }
                            }
                        }
                    }
                })
            };
            let (many, laid) = (many(true), many(false));
            std::hint::black_box(&y);
            println!(
                "{:5} {:9} {:>9.1} {:>9.1} {:>11.1} {:>11.1} {:>11.1}",
                format!("{kind:?}"),
                level.name(),
                spin(level),
                w.len() as f64 / dot / 1e9,
                (tasks * 48 * k * n) as f64 / few / 1e9,
                (tasks * task * k * n) as f64 / many / 1e9,
                (tasks * task * k * n) as f64 / laid / 1e9,
            );
        }
    }
}
