//! Kernels over one row against f64, their gradients against central differences in f64, at every level and over
//! awkward lengths.

use onlay_kernels::adam::{AdamW, adamw};
use onlay_kernels::dense::{self, Dense, PIECE};
use onlay_kernels::rope::{Pairs, rotate};
use onlay_kernels::{Level, dense_panel, gate, norm};

const LENGTHS: [usize; 9] = [1, 2, 7, 8, 15, 31, 33, 63, 200];

fn wave(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 61 + seed * 97) % 193) as f32 / 96.0 - 1.0).collect()
}
fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Central differences of `loss` at `x` against `grad`.
fn differences(x: &[f64], grad: &[f32], tolerance: f64, loss: impl Fn(&[f64]) -> f64) {
    let h = 1e-5;
    for i in 0..x.len() {
        let mut moved = x.to_vec();
        moved[i] = x[i] + h;
        let up = loss(&moved);
        moved[i] = x[i] - h;
        let want = (up - loss(&moved)) / (2.0 * h);
        assert!((f64::from(grad[i]) - want).abs() < tolerance, "at {i}: {} against {want}", grad[i]);
    }
}

#[test]
fn rms_norm_and_gradients() {
    for level in Level::available() {
        for n in LENGTHS {
            let (x, w, dy) = (wave(n, 1), wave(n, 2), wave(n, 3));
            let eps = 1e-5;
            let reference = |x: &[f64], w: &[f64]| -> Vec<f64> {
                let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / n as f64 + f64::from(eps)).sqrt();
                x.iter().zip(w).map(|(x, w)| x * r * w).collect()
            };
            let mut y = vec![0.0; n];
            norm::rms_norm(level, &x, &w, eps, &mut y);
            for (a, b) in y.iter().zip(reference(&wide(&x), &wide(&w))) {
                assert!((f64::from(*a) - b).abs() < 1e-5);
            }
            let loss = |x: &[f64], w: &[f64]| -> f64 {
                reference(x, w).iter().zip(&dy).map(|(y, g)| y * f64::from(*g)).sum()
            };
            let (mut dx, mut dw) = (vec![0.5; n], vec![0.5; n]);
            norm::rms_norm_grad(level, &x, &w, eps, &dy, &mut dx);
            norm::rms_norm_weight_grad(level, &x, eps, &dy, &mut dw);
            let less = |g: &[f32]| g.iter().map(|v| v - 0.5).collect::<Vec<_>>(); // gradients are added
            differences(&wide(&x), &less(&dx), 2e-4, |x| loss(x, &wide(&w)));
            differences(&wide(&w), &less(&dw), 2e-5, |w| loss(&wide(&x), w));
        }
    }
}

#[test]
fn swiglu_and_gradients() {
    for level in Level::available() {
        for n in LENGTHS {
            let g: Vec<f32> = wave(n, 1).iter().map(|v| 6.0 * v).collect();
            let (u, dy) = (wave(n, 2), wave(n, 3));
            let reference = |g: &[f64], u: &[f64]| {
                g.iter().zip(u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<_>>()
            };
            let mut y = vec![0.0; n];
            gate::swiglu(level, &g, &u, &mut y);
            for (a, b) in y.iter().zip(reference(&wide(&g), &wide(&u))) {
                assert!((f64::from(*a) - b).abs() < 2e-6);
            }
            let loss = |g: &[f64], u: &[f64]| -> f64 {
                reference(g, u).iter().zip(&dy).map(|(y, d)| y * f64::from(*d)).sum()
            };
            let (mut dg, mut du) = (vec![0.0; n], vec![0.0; n]);
            gate::swiglu_grad(level, &g, &u, &dy, &mut dg, &mut du);
            differences(&wide(&g), &dg, 1e-5, |g| loss(g, &wide(&u)));
            differences(&wide(&u), &du, 1e-5, |u| loss(&wide(&g), u));
        }
    }
}

#[test]
fn rotation_and_its_gradient() {
    for level in Level::available() {
        for (head, turned) in [(2, 2), (16, 16), (64, 64), (20, 12), (6, 6)] {
            for pairs in [Pairs::Adjacent, Pairs::Halves] {
                let half = turned / 2;
                let angle: Vec<f32> = (0..half).map(|i| 0.3 + i as f32 * 0.7).collect();
                let cos: Vec<f32> = angle.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = angle.iter().map(|a| a.sin()).collect();
                let x = wave(3 * head, 1);
                let dy = wave(3 * head, 2);
                let reference = |x: &[f64]| -> Vec<f64> {
                    let mut y = x.to_vec();
                    for h in 0..3 {
                        for i in 0..half {
                            let (a, b) = match pairs {
                                Pairs::Adjacent => (h * head + 2 * i, h * head + 2 * i + 1),
                                Pairs::Halves => (h * head + i, h * head + i + half),
                            };
                            let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                            (y[a], y[b]) = (x[a] * c - x[b] * s, x[a] * s + x[b] * c);
                        }
                    }
                    y
                };
                let mut y = x.clone();
                rotate(level, pairs, &mut y, head, &cos, &sin, false);
                for (a, b) in y.iter().zip(reference(&wide(&x))) {
                    assert!((f64::from(*a) - b).abs() < 1e-6);
                }
                let mut dx = dy.clone();
                rotate(level, pairs, &mut dx, head, &cos, &sin, true);
                differences(&wide(&x), &dx, 1e-5, |x| {
                    reference(x).iter().zip(&dy).map(|(y, d)| y * f64::from(*d)).sum()
                });
            }
        }
    }
}

#[test]
fn adamw_follows_the_formula() {
    for level in Level::available() {
        let n = 37;
        let (mut p, mut m, mut v) = (wave(n, 1), vec![0.0; n], vec![0.0; n]);
        let (mut p6, mut m6, mut v6) = (wide(&p), vec![0f64; n], vec![0f64; n]);
        for t in 1..=20 {
            let g = wave(n, t as usize);
            let (b1, b2, rate, decay, clip, eps) = (0.9f64, 0.999f64, 1e-2f64, 0.1f64, 0.5f64, 1e-8f64);
            let (c1, c2) = (1.0 - b1.powi(t), (1.0 - b2.powi(t)).sqrt());
            let with = AdamW {
                rate: rate as f32,
                beta1: b1 as f32,
                beta2: b2 as f32,
                epsilon: eps as f32,
                decay: decay as f32,
                correction1: c1 as f32,
                correction2: c2 as f32,
                clip: clip as f32,
            };
            adamw(level, with, &mut p, &g, &mut m, &mut v);
            for i in 0..n {
                let g = clip * f64::from(g[i]);
                m6[i] = b1 * m6[i] + (1.0 - b1) * g;
                v6[i] = b2 * v6[i] + (1.0 - b2) * g * g;
                p6[i] = p6[i] * (1.0 - rate * decay) - rate / c1 * m6[i] / (v6[i].sqrt() / c2 + eps);
                assert!((f64::from(p[i]) - p6[i]).abs() < 1e-5, "{level:?} step {t}");
            }
        }
    }
}

/// Dense weights, aligned for the element as the map is.
fn stored(kind: Dense, w: &[f32]) -> Vec<u32> {
    let mut words = vec![0u32; (w.len() * kind.bytes()).div_ceil(4)];
    dense::encode(kind, w, &mut bytemuck::cast_slice_mut(&mut words)[..w.len() * kind.bytes()]);
    words
}

#[test]
fn dense_panels_have_the_bits_of_a_row_alone() {
    for level in Level::available() {
        let (lanes, columns) = (dense_panel::rows(level), dense_panel::columns(level));
        for (rows, k, n) in
            [(1, 1, 1), (lanes - 1, 33, columns), (lanes, 200, 2), (7, PIECE + 50, 4), (3, 3 * PIECE, 5)]
        {
            let (w, x) = (wave(rows * k, 1), wave(n * k, 2));
            for kind in [Dense::F32, Dense::F16, Dense::Bf16] {
                let (words, row_bytes) = (stored(kind, &w), k * kind.bytes());
                let w = &bytemuck::cast_slice::<u32, u8>(&words)[..rows * row_bytes];
                let mut want = vec![f32::NAN; n * rows];
                dense::product(level, kind, w, row_bytes, &x, k, &mut want, rows);
                let mut packed = vec![f32::NAN; columns * dense_panel::length(level, k)];
                dense_panel::pack(level, &x, k, &mut packed);
                let mut panel = vec![f32::NAN; lanes * dense_panel::length(level, k.min(PIECE))];
                let mut y = vec![f32::NAN; columns * lanes];
                for from in (0..k).step_by(PIECE) {
                    let cut = PIECE.min(k - from);
                    dense_panel::lay(level, kind, w, row_bytes, from..from + cut, &mut panel);
                    dense_panel::tile(level, &panel, &packed, from, cut, &mut y, lanes);
                }
                for (y, want) in y.chunks(lanes).zip(want.chunks(rows)) {
                    let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&y[..rows]), bits(want), "{level:?} {kind:?} {rows} {k} {n}");
                }
            }
        }
    }
}

#[test]
fn dense_products_of_every_shape() {
    for level in Level::available() {
        for (rows, k, n) in
            [(1, 1, 1), (3, 7, 2), (4, 64, 5), (9, 33, 4), (17, 200, 7), (5, 16, 9), (2, PIECE + 9, 3)]
        {
            let (w, x) = (wave(rows * k, 1), wave(n * k, 2));
            for kind in [Dense::F32, Dense::F16, Dense::Bf16] {
                let words = stored(kind, &w);
                let bytes = &bytemuck::cast_slice::<u32, u8>(&words)[..rows * k * kind.bytes()];
                let mut back = vec![0.0; rows * k];
                dense::decode(level, kind, bytes, &mut back);
                let row_bytes = k * kind.bytes();
                let mut y = vec![f32::NAN; n * rows];
                dense::product(level, kind, bytes, row_bytes, &x, k, &mut y, rows);
                for c in 0..n {
                    for r in 0..rows {
                        let want: f64 =
                            (0..k).map(|i| f64::from(back[r * k + i]) * f64::from(x[c * k + i])).sum();
                        assert!((f64::from(y[c * rows + r]) - want).abs() < 1e-4, "{level:?} {kind:?}");
                    }
                    let mut one = vec![f32::NAN; rows];
                    dense::product(level, kind, bytes, row_bytes, &x[c * k..(c + 1) * k], k, &mut one, rows);
                    assert_eq!(one, y[c * rows..(c + 1) * rows], "a row alone has the bits of the batch");
                }
            }
        }
    }
}
