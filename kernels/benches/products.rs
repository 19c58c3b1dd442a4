//! One thread: how fast does each format multiply, at each level?
//!
//! `dot`: GB/s of weights streamed from memory with one row of activations (the ceiling is this core's read
//! bandwidth, printed first), and again from cache · `tile`: 10⁹ multiply-adds per second with 512 rows of activations · `decode`: 10⁹
//! weights per second.
//!
//! `cargo bench -p onlay-kernels --bench products [-- FORMAT…]`

use onlay_kernels::acts::{self, Acts, ActsMut};
use onlay_kernels::panel::{self, PanelMut};
use onlay_kernels::quant::FORMATS;
use onlay_kernels::{Level, half};
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
    let (rows, k) = (65_536, std::env::var("K").map_or(4096, |v| v.parse().unwrap()));
    let buffer = vec![1u64; 1 << 26];
    let read = best(3, || {
        let sum: u64 = buffer.chunks_exact(8).map(|c| c.iter().sum::<u64>()).sum();
        std::hint::black_box(sum);
    });
    println!("read: {:.1} GB/s", buffer.len() as f64 * 8.0 / read / 1e9);
    drop(buffer);
    println!(
        "{:8} {:9} {:>12} {:>12} {:>14} {:>14}",
        "format", "level", "dot GB/s", "cached GB/s", "tile GMAC/s", "decode G/s"
    );
    for f in FORMATS.iter().filter(|f| only.is_empty() || only.iter().any(|o| o == f.name)) {
        let row_bytes = k / f.len * f.bytes;
        let mut w = vec![0x11u8; rows * row_bytes];
        for (i, b) in w.iter_mut().enumerate() {
            *b = (i * 31 % 113) as u8; // f16 numbers below 2
        }
        let x: Vec<f32> = (0..512 * k).map(|i| (i % 17) as f32 - 8.0).collect();
        for level in Level::available() {
            let g = f.grain.len();
            let (mut q, mut d, mut s) =
                (vec![0i8; 512 * k], vec![0f32; 512 * k / g], vec![0i32; 512 * k / 32]);
            acts::quantize(level, f.grain, &x, ActsMut { q: &mut q, d: &mut d, sums: &mut s, wide: &mut [] });
            let mut y = vec![0f32; rows];
            let one = Acts { k, q: &q[..k], d: &d[..k / g], sums: &s[..k / 32], wide: &[] };
            let dot = best(3, || (f.dot)(level, &w, row_bytes, one, &mut y, rows));
            let few = 128;
            let cached = best(5, || {
                for _ in 0..16 {
                    (f.dot)(level, &w[..few * row_bytes], row_bytes, one, &mut y, rows);
                }
            });
            let (lanes, columns) = (panel::lanes(level), acts::columns(level));
            let mut scratch = vec![0u32; PanelMut::words(lanes, 2048)];
            let mut tile = vec![0f32; 512 * lanes];
            let panels = 8;
            let t = best(3, || {
                for p in 0..panels {
                    let w = &w[p * lanes * row_bytes..(p + 1) * lanes * row_bytes];
                    (f.fill)(level, w, row_bytes, 0, PanelMut::carve(&mut scratch, lanes, 2048));
                    let panel = PanelMut::carve(&mut scratch, lanes, 2048);
                    for c in (0..512).step_by(columns).filter(|c| c + columns <= 512) {
                        // packed or not is the same work
                        let x = Acts {
                            k,
                            q: &q[c * k..(c + columns) * k],
                            d: &d[c * k / g..(c + columns) * k / g],
                            sums: &s[c * k / 32..(c + columns) * k / 32],
                            wide: &s[c * k / 64..(c + columns) * k / 64],
                        };
                        (f.tile)(level, panel.view(), x, 0, &mut tile[c * lanes..], lanes);
                    }
                }
            });
            let mut out = vec![0f32; k];
            let decode = best(3, || {
                for row in w.chunks_exact(row_bytes).take(1024) {
                    (f.decode_fast)(level, row, &mut out);
                    std::hint::black_box(&out);
                }
            });
            std::hint::black_box((&y, &tile, half::f16_to_f32(1)));
            println!(
                "{:8} {:9} {:>12.2} {:>12.2} {:>14.1} {:>14.2}",
                f.name,
                level.name(),
                w.len() as f64 / dot / 1e9,
                (16 * few * row_bytes) as f64 / cached / 1e9,
                (panels * lanes * 2048 * 512) as f64 / t / 1e9,
                (1024 * k) as f64 / decode / 1e9
            );
        }
    }
}
