//! Every block format at every level this machine executes: fast decode has the bits of the definition, products are
//! right against f64, and few columns, many columns and different levels give the same bits.

use onlay_kernels::acts::{self, Acts, ActsMut};
use onlay_kernels::half::{f16_to_f32, f32_to_f16};
use onlay_kernels::panel::{self, PanelMut};
use onlay_kernels::quant::{FORMATS, Format};
use onlay_kernels::{Level, dot};

/// A small generator of our own: tests must not depend on the crate they test.
struct Dice(u64);
impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ (self.0 >> 17)
    }
    fn unit(&mut self) -> f32 {
        (self.roll() % 20_001) as f32 / 10_000.0 - 1.0
    }
}

/// Random bytes are valid blocks of every format, once their f16 numbers are ordinary ones.
fn random_blocks(format: &Format, blocks: usize, dice: &mut Dice) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..blocks * format.bytes).map(|_| dice.roll() as u8).collect();
    let halves: &[usize] = match format.name {
        "Q4_0" | "Q5_0" | "Q8_0" | "IQ4_NL" | "IQ4_XS" => &[0],
        "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => &[0, 2],
        "Q2_K" => &[80, 82],
        "Q3_K" => &[108],
        "Q6_K" => &[208],
        other => panic!("where are the f16 numbers of {other}?"),
    };
    for block in bytes.chunks_exact_mut(format.bytes) {
        for &at in halves {
            let h = f32_to_f16(dice.unit() * 0.05);
            block[at..at + 2].copy_from_slice(&h.to_le_bytes());
            assert!(f16_to_f32(h).is_finite());
        }
    }
    bytes
}

fn decode(format: &Format, blocks: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; blocks.len() / format.bytes * format.len];
    (format.decode)(blocks, &mut out);
    out
}

struct Quantized {
    k: usize,
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i32>,
    wide: Vec<i32>,
}

impl Quantized {
    fn sized(format: &Format, k: usize, n: usize) -> Self {
        let g = format.grain.len();
        Quantized {
            k,
            q: vec![0; n * k],
            d: vec![0.0; n * k / g],
            sums: vec![0; n * k / 32],
            wide: vec![0; n * k / 64],
        }
    }
    fn rows(level: Level, format: &Format, x: &[f32], k: usize) -> Self {
        let mut a = Self::sized(format, k, x.len() / k);
        acts::quantize(level, format.grain, x, a.write());
        a
    }
    fn write(&mut self) -> ActsMut<'_> {
        ActsMut { q: &mut self.q, d: &mut self.d, sums: &mut self.sums, wide: &mut self.wide }
    }
    fn part(&self, format: &Format, first: usize, n: usize) -> Acts<'_> {
        let (k, g) = (self.k, format.grain.len());
        Acts {
            k,
            q: &self.q[first * k..(first + n) * k],
            d: &self.d[first * k / g..(first + n) * k / g],
            sums: &self.sums[first * k / 32..(first + n) * k / 32],
            wide: &[],
        }
    }
}

/// y[c][r] by `dot`, `step` columns at a time.
fn by_dot(level: Level, f: &Format, w: &[u8], rows: usize, x: &Quantized, n: usize, step: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; n * rows];
    let row_bytes = x.k / f.len * f.bytes;
    for first in (0..n).step_by(step) {
        let m = step.min(n - first);
        (f.dot)(level, w, row_bytes, x.part(f, first, m), &mut y[first * rows..], rows);
    }
    y
}

/// y[c][r] through panels of `cut` elements.
fn by_panel(
    level: Level,
    f: &Format,
    w: &[u8],
    rows: usize,
    x: &Quantized,
    n: usize,
    cut: usize,
) -> Vec<f32> {
    let (lanes, columns, k) = (panel::lanes(level), acts::columns(level), x.k);
    let row_bytes = k / f.len * f.bytes;
    let mut packed = Vec::new();
    for first in (0..n).step_by(columns) {
        let mut group = Quantized::sized(f, k, columns);
        let m = columns.min(n - first);
        acts::pack(level, f.grain, x.part(f, first, m), group.write());
        packed.push(group);
    }
    let mut y = vec![f32::NAN; n * rows];
    for row in (0..rows).step_by(lanes) {
        let m = lanes.min(rows - row);
        let mut tile = vec![f32::NAN; packed.len() * columns * lanes];
        for from in (0..k).step_by(cut) {
            let cut = cut.min(k - from);
            let mut scratch = vec![0u32; PanelMut::words(lanes, cut)];
            let w = &w[row * row_bytes..(row + m) * row_bytes];
            (f.fill)(level, w, row_bytes, from, PanelMut::carve(&mut scratch, lanes, cut));
            let p = PanelMut::carve(&mut scratch, lanes, cut);
            for (g, x) in packed.iter().enumerate() {
                let x = Acts { k, q: &x.q, d: &x.d, sums: &x.sums, wide: &x.wide };
                (f.tile)(level, p.view(), x, from, &mut tile[g * columns * lanes..], lanes);
            }
        }
        for c in 0..n {
            y[c * rows + row..][..m].copy_from_slice(&tile[c * lanes..][..m]);
        }
    }
    y
}

#[test]
fn fast_decode_has_the_bits_of_the_definition() {
    let mut dice = Dice(1);
    for format in FORMATS {
        let blocks = random_blocks(format, 300, &mut dice);
        let want = decode(format, &blocks);
        for level in Level::available() {
            let mut got = vec![f32::NAN; want.len()];
            (format.decode_fast)(level, &blocks, &mut got);
            for (i, (a, b)) in want.iter().zip(&got).enumerate() {
                assert_eq!(a.to_bits(), b.to_bits(), "{format:?} {level:?} at {i}: {a} {b}");
            }
        }
    }
}

#[test]
fn products_are_right_and_have_one_sequence_of_operations() {
    let mut dice = Dice(2);
    for format in FORMATS {
        for (rows, k, n) in [(1, format.len, 1), (8, 512, 3), (13, 768, 5), (33, 1024, 9), (16, 256, 16)] {
            let w = random_blocks(format, rows * k / format.len, &mut dice);
            let x: Vec<f32> = (0..n * k).map(|_| dice.unit()).collect();
            let dense = decode(format, &w);
            let mut fused: Option<Vec<f32>> = None;
            for level in Level::available() {
                let a = Quantized::rows(level, format, &x, k);
                let y = by_dot(level, format, &w, rows, &a, n, 1);
                for c in 0..n {
                    for r in 0..rows {
                        let (mut want, mut size) = (0f64, 0f64);
                        for i in 0..k {
                            let x =
                                f64::from(a.d[(c * k + i) / format.grain.len()]) * f64::from(a.q[c * k + i]);
                            want += f64::from(dense[r * k + i]) * x;
                            size += (f64::from(dense[r * k + i]) * x).abs();
                        }
                        let got = f64::from(y[c * rows + r]);
                        // minima are taken off after the sum: the error is relative to the sizes summed
                        assert!(
                            (got - want).abs() <= 2e-6 * (size + 30.0),
                            "{format:?} {level:?} {got} {want}"
                        );
                    }
                }
                let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                for step in 2..=dot::COLUMNS {
                    let other = by_dot(level, format, &w, rows, &a, n, step);
                    assert_eq!(bits(&y), bits(&other), "{format:?} {level:?} {step} columns");
                }
                for cut in [k, 256.min(k)] {
                    let other = by_panel(level, format, &w, rows, &a, n, cut);
                    assert_eq!(bits(&y), bits(&other), "{format:?} {level:?} panels of {cut}");
                }
                if level != Level::PORTABLE {
                    let first = fused.get_or_insert_with(|| y.clone());
                    assert_eq!(bits(first), bits(&y), "{format:?}: levels with fused arithmetic agree");
                }
            }
        }
    }
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    // All quants and scales at their extremes, activations at ±127: the 16-bit partial sums must hold.
    for format in FORMATS {
        for byte in [0xff, 0x80, 0x7f, 0x00] {
            let k = 512;
            let mut w = vec![byte; 8 * k / format.len * format.bytes];
            let mut dice = Dice(3);
            let halves = random_blocks(format, 1, &mut dice);
            for block in w.chunks_exact_mut(format.bytes) {
                let finite: Vec<usize> = match format.bytes {
                    18 | 22 | 34 | 136 => vec![0],
                    20 | 24 | 144 | 176 => vec![0, 2],
                    84 => vec![80, 82],
                    110 => vec![108],
                    _ => vec![208],
                };
                for at in finite {
                    block[at..at + 2].copy_from_slice(&halves[at..at + 2]);
                }
            }
            let x: Vec<f32> = (0..4 * k).map(|i| if i / k % 2 == 0 { 1.0 } else { -1.0 }).collect();
            let mut first: Option<Vec<f32>> = None;
            for level in Level::available() {
                let a = Quantized::rows(level, format, &x, k);
                for y in [by_dot(level, format, &w, 8, &a, 4, 2), by_panel(level, format, &w, 8, &a, 4, k)] {
                    let want = first.get_or_insert_with(|| y.clone());
                    for (a, b) in want.iter().zip(&y) {
                        assert!(
                            (a - b).abs() <= 1e-5 * a.abs().max(1.0),
                            "{format:?} {byte:#x} {level:?} {a} {b}"
                        );
                    }
                }
            }
        }
    }
}
