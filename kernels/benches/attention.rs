//! One thread: how fast does decoding look back, at each level?
//!
//! GB/s of 16-bit keys and values (heads of 64) streamed from memory: for so many query rows that share them, `copied` to f32
//! tile by tile, or as they are `cached`.
//!
//! `cargo bench -p onlay-kernels --bench attention [-- LEVEL…]`

use onlay_kernels::Level;
use onlay_kernels::attention::{self, Cached, Half, Keys, Running, Scratch, TILE};
use onlay_kernels::dense::{self, Dense};
use onlay_kernels::half::f32_to_f16;
use std::time::Instant;

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (head, tiles) = (64, 1 << 14);
    let tile = TILE * head;
    let all: Vec<u16> =
        (0..2 * tile * tiles).map(|i| f32_to_f16((i * 37 % 211) as f32 / 105.0 - 1.0)).collect();
    println!("{:10} {:>5} {:>12} {:>12}", "level", "rows", "copied GB/s", "cached GB/s");
    for level in
        Level::available().into_iter().filter(|l| only.is_empty() || only.iter().any(|o| o == l.name()))
    {
        for rows in [1, 2, 4, 8].into_iter().filter(|n| attention::few_enough(level, head, *n)) {
            let q: Vec<f32> = (0..rows * head).map(|i| (i * 53 % 97) as f32 / 48.0 - 1.0).collect();
            let mut scratch = Scratch::new(head, false);
            let (mut kt, mut v) = (vec![0f32; tile], vec![0f32; tile]);
            let valid = vec![TILE; rows];
            let half = |t: usize| {
                let (kt, v) = all[2 * tile * t..2 * tile * (t + 1)].split_at(tile);
                Half { kt, v }
            };
            let mut run = |cached: bool| {
                attention::ready(level, head, &q, &mut scratch);
                let (mut state, mut o) = (vec![Running::START; rows], vec![0f32; rows * head]);
                let t = Instant::now();
                for t in 0..tiles {
                    let now = half(t);
                    if cached {
                        let keys = Cached { now, next: half((t + 1) % tiles) };
                        attention::forward_cached(
                            level,
                            head,
                            0.125,
                            keys,
                            &valid,
                            &mut state,
                            &mut o,
                            &mut scratch,
                        );
                    } else {
                        dense::decode(level, Dense::F16, bytemuck::cast_slice(now.kt), &mut kt);
                        dense::decode(level, Dense::F16, bytemuck::cast_slice(now.v), &mut v);
                        let keys = Keys { kt: &kt, v: &v };
                        attention::forward(
                            level,
                            head,
                            0.125,
                            keys,
                            &valid,
                            &mut state,
                            &mut o,
                            &mut scratch,
                        );
                    }
                }
                (t.elapsed().as_secs_f64(), o)
            };
            let mut best = [f64::MAX; 2];
            for _ in 0..5 {
                let (a, b) = (run(false), run(true));
                assert_eq!(a.1, b.1);
                best = [best[0].min(a.0), best[1].min(b.0)];
            }
            let speed = best.map(|s| 4.0 * (tile * tiles) as f64 / s / 1e9);
            println!("{:10} {:>5} {:>12.1} {:>12.1}", level.name(), rows, speed[0], speed[1]);
        }
    }
}
