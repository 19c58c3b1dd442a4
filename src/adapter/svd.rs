//! The largest singular vectors of a matrix, and its first QR columns, in f64: what PiSSA and OLoRA begin with.
//!
//! ```text
//! Z = W or Wᵀ, whichever has fewer rows: n × l
//! Q    n ≤ 192: I.  Otherwise an orthonormal basis of [Ω, ZZᵀΩ, …, (ZZᵀ)⁶Ω], Ω random with r + 8 columns
//! C    QᵀZZᵀQ = E·D·Eᵀ by Jacobi rotations        uᵢ = Q·eᵢ    sᵢ = ‖Zᵀuᵢ‖    vᵢ = Zᵀuᵢ/sᵢ
//! ```
//! (Musco, Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition",
//! 2015.) For small matrices it is exact; for large ones whose singular values hardly differ the vectors are near the
//! largest, which is as good a start.

use crate::rng::Rng;

/// Up to so many rows nothing is approximated.
const EXACT: usize = 192;

/// Columns of Ω beyond those asked for.
const MORE: usize = 8;

/// How often ZZᵀ is applied.
const TIMES: usize = 6;

/// A matrix `[rows][cols]`, and vectors of one length as rows.
type Vectors = Vec<Vec<f64>>;

/// Singular triplets, the largest first.
pub(super) struct Top {
    /// Left vectors, `[r][rows]`.
    pub left: Vectors,
    /// Singular values.
    pub values: Vec<f64>,
    /// Right vectors, `[r][cols]`.
    pub right: Vectors,
}

/// The `r` largest of `w` `[rows][cols]`; r is at most either.
pub(super) fn largest(w: &[f32], rows: usize, cols: usize, r: usize, seed: u64) -> Top {
    let turned = rows > cols;
    let n = rows.min(cols);
    let z = Z { w, rows, cols, turned };
    let basis = if n <= EXACT { None } else { Some(z.krylov(n, (r + MORE).min(n), seed)) };
    // T = QᵀZ, rows of length l
    let t: Vectors = match &basis {
        None => (0..n).map(|i| z.row(i)).collect(),
        Some(q) => z.down(q),
    };
    let mut c: Vectors = t.iter().map(|a| t.iter().map(|b| dot(a, b)).collect()).collect();
    let e = rotate(&mut c);
    let mut order: Vec<usize> = (0..c.len()).collect();
    order.sort_by(|a, b| c[*b][*b].total_cmp(&c[*a][*a]));
    let short: Vectors = order[..r]
        .iter()
        .map(|i| match &basis {
            None => (0..n).map(|j| e[j][*i]).collect(),
            Some(q) => (0..n).map(|j| q.iter().zip(&e).map(|(q, e)| q[j] * e[*i]).sum()).collect(),
        })
        .collect();
    let mut long = z.down(&short);
    let values = long.iter_mut().map(|v| unit(v)).collect();
    let (left, right) = if turned { (long, short) } else { (short, long) };
    Top { left, values, right }
}

/// The first `r` columns of Q and rows of R of W = Q·R: `([r][rows], [r][cols])`.
pub(super) fn first_of_qr(w: &[f32], rows: usize, cols: usize, r: usize) -> (Vectors, Vectors) {
    let mut q: Vectors = Vec::with_capacity(r);
    for j in 0..r {
        let mut v: Vec<f64> = (0..rows).map(|i| f64::from(w[i * cols + j])).collect();
        against(&mut v, &q);
        unit(&mut v);
        q.push(v);
    }
    let z = Z { w, rows, cols, turned: false };
    let r = z.down(&q);
    (q, r)
}

/// W or its transpose.
struct Z<'a> {
    w: &'a [f32],
    rows: usize,
    cols: usize,
    turned: bool,
}

impl Z<'_> {
    fn row(&self, i: usize) -> Vec<f64> {
        let Z { w, rows, cols, turned } = *self;
        if turned {
            (0..rows).map(|r| f64::from(w[r * cols + i])).collect()
        } else {
            w[i * cols..(i + 1) * cols].iter().map(|v| f64::from(*v)).collect()
        }
    }

    /// `Zᵀ·x` for each.
    fn down(&self, xs: &[Vec<f64>]) -> Vectors {
        if self.turned { self.with_rows(xs) } else { self.with_columns(xs) }
    }

    /// `Z·y` for each.
    fn up(&self, ys: &[Vec<f64>]) -> Vectors {
        if self.turned { self.with_columns(ys) } else { self.with_rows(ys) }
    }

    /// `W·x`
    fn with_rows(&self, xs: &[Vec<f64>]) -> Vectors {
        let mut out = vec![vec![0.0; self.rows]; xs.len()];
        for (i, row) in self.w.chunks_exact(self.cols).enumerate() {
            for (x, out) in xs.iter().zip(&mut out) {
                out[i] = row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
            }
        }
        out
    }

    /// `Wᵀ·x`
    fn with_columns(&self, xs: &[Vec<f64>]) -> Vectors {
        let mut out = vec![vec![0.0; self.cols]; xs.len()];
        for (i, row) in self.w.chunks_exact(self.cols).enumerate() {
            for (x, out) in xs.iter().zip(&mut out) {
                out.iter_mut().zip(row).for_each(|(o, w)| *o += f64::from(*w) * x[i]);
            }
        }
        out
    }

    fn krylov(&self, n: usize, b: usize, seed: u64) -> Vectors {
        let mut rng = Rng::new(seed);
        let mut block: Vectors = (0..b).map(|_| (0..n).map(|_| f64::from(rng.normal())).collect()).collect();
        let mut basis = Vectors::new();
        for _ in 0..=TIMES {
            let first = basis.len();
            for mut v in block {
                let before = dot(&v, &v).sqrt();
                against(&mut v, &basis);
                if unit(&mut v) > 1e-10 * before && basis.len() < n {
                    basis.push(v);
                }
            }
            block = self.up(&self.down(&basis[first..]));
        }
        basis
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Takes the orthonormal `others` out of `v`; twice, for the first time leaves rounding behind.
fn against(v: &mut [f64], others: &[Vec<f64>]) {
    for _ in 0..2 {
        for q in others {
            let s = dot(v, q);
            v.iter_mut().zip(q).for_each(|(v, q)| *v -= s * q);
        }
    }
}

/// Scales to length 1 (zero stays), and says what the length was.
fn unit(v: &mut [f64]) -> f64 {
    let length = dot(v, v).sqrt();
    if length > 0.0 {
        v.iter_mut().for_each(|v| *v /= length);
    }
    length
}

/// Jacobi's eigenvalue method: makes the symmetric `c` diagonal and returns the eigenvectors as columns.
fn rotate(c: &mut [Vec<f64>]) -> Vectors {
    let n = c.len();
    let mut e: Vectors = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let all: f64 = c.iter().flatten().map(|v| v * v).sum();
    for _ in 0..50 {
        let off: f64 = (0..n).map(|i| c[i][i + 1..].iter().map(|v| v * v).sum::<f64>()).sum();
        if off <= 1e-30 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if c[p][q] == 0.0 {
                    continue;
                }
                let theta = (c[q][q] - c[p][p]) / (2.0 * c[p][q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cos = 1.0 / t.hypot(1.0);
                let sin = t * cos;
                let turn = |a: &mut f64, b: &mut f64| (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
                for row in c.iter_mut().chain(&mut e) {
                    let (a, b) = row.split_at_mut(q);
                    turn(&mut a[p], &mut b[0]);
                }
                let (a, b) = c.split_at_mut(q);
                a[p].iter_mut().zip(&mut b[0]).for_each(|(a, b)| turn(a, b));
            }
        }
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    /// U·diag(s)·Vᵀ with random orthonormal U and V.
    fn matrix(rows: usize, cols: usize, values: &[f64]) -> Vec<f32> {
        let mut rng = Rng::new(5);
        let mut basis = |n: usize| {
            let mut q = Vectors::new();
            for _ in values {
                let mut v: Vec<f64> = (0..n).map(|_| f64::from(rng.normal())).collect();
                against(&mut v, &q);
                unit(&mut v);
                q.push(v);
            }
            q
        };
        let (u, v) = (basis(rows), basis(cols));
        let at =
            |i: usize, j: usize| (0..values.len()).map(|k| u[k][i] * values[k] * v[k][j]).sum::<f64>() as f32;
        (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
    }

    #[test]
    fn singular_values_and_what_they_leave() {
        let values: Vec<f64> = (0..30).map(|i| 10.0 * 0.8f64.powi(i)).collect();
        for (rows, cols) in [(40, 70), (70, 40), (30, 30), (200, 260), (300, 210)] {
            let w = matrix(rows, cols, &values);
            let top = largest(&w, rows, cols, 6, 1);
            for (got, want) in top.values.iter().zip(&values) {
                assert!((got / want - 1.0).abs() < 1e-5, "{rows}×{cols}: {:?}", top.values);
            }
            for i in 0..6 {
                let wv: Vec<f64> = w
                    .chunks_exact(cols)
                    .map(|row| row.iter().zip(&top.right[i]).map(|(w, v)| f64::from(*w) * v).sum())
                    .collect();
                let off: f64 = wv
                    .iter()
                    .zip(&top.left[i])
                    .map(|(a, b)| (a - top.values[i] * b).powi(2))
                    .sum::<f64>()
                    .sqrt();
                assert!(off < 1e-5 * top.values[i], "{rows}×{cols}, vector {i}: {off:e}");
            }
        }
    }

    #[test]
    fn qr_gives_the_first_columns_back() {
        let (rows, cols) = (20, 31);
        let mut rng = Rng::new(2);
        let w: Vec<f32> = (0..rows * cols).map(|_| rng.normal()).collect();
        let (q, r) = first_of_qr(&w, rows, cols, 4);
        for i in 0..rows {
            for j in 0..4 {
                let sum: f64 = (0..4).map(|k| q[k][i] * r[k][j]).sum();
                assert!((sum - f64::from(w[i * cols + j])).abs() < 1e-12);
            }
        }
    }
}
