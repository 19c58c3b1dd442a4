//! One thread: how many 10⁶ weights per second does each format encode, at the chosen level (`ONLAY_LEVEL`)?
//!
//! `cargo bench -p onlay-kernels --bench encode [-- FORMAT…]`

use onlay_kernels::Level;
use onlay_kernels::quant::FORMATS;
use std::time::Instant;

/// This thread's time on a processor where the system tells (a busy machine then does no harm), else the clock's.
fn seconds(since: Instant) -> f64 {
    let cpu = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let ns = cpu.and_then(|s| s.split(' ').next()?.parse::<f64>().ok());
    ns.map_or_else(|| since.elapsed().as_secs_f64(), |ns| ns / 1e9)
}

fn main() {
    let since = Instant::now();
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    println!("level {}", Level::chosen().expect("a level this machine executes").name());
    // nearly normal numbers: sums of eight bytes of a counter's hash
    let weights: Vec<f32> = (0..1u64 << 20)
        .map(|i| {
            let h = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i >> 7).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let h = (h ^ (h >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let sum: i32 = (h ^ (h >> 29)).to_le_bytes().iter().map(|b| i32::from(*b)).sum();
            (sum - 1020) as f32 * 1e-4
        })
        .collect();
    for f in FORMATS.iter().filter(|f| only.is_empty() || only.iter().any(|o| o == f.name)) {
        let mut blocks = vec![0u8; weights.len() / f.len * f.bytes];
        let mut best = f64::MAX;
        for _ in 0..3 {
            // the system may count in steps of 4 ms
            let (start, mut runs) = (seconds(since), 0);
            while seconds(since) - start < 0.2 {
                (f.encode)(&weights, &mut blocks);
                runs += 1;
            }
            best = best.min((seconds(since) - start) / f64::from(runs));
        }
        std::hint::black_box(&blocks);
        println!("{:8} {:8.1}", f.name, weights.len() as f64 / best / 1e6);
    }
}
