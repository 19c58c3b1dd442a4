//! The backward half of the products with base weights.
//!
//! # Backward
//! ```text
//! dx += dy·W                         W decoded piece by piece; the base is frozen, so there is no dW
//! ```
//! with the rounding of x ([`super::linear`]) taken as the identity. Where a layer learns, it does the whole pass
//! ([`super::Backward`]) out of [`product_back`] and [`output_products`].
//!
//! # Shapes
//! dy `[rows][outputs]`, dx `[rows][inputs]`.

use super::scratch::{BACK, BACK_STRIDE};
use super::{Base, Host, Site};
use crate::tensor::{Chunks, Grid, Mat, MatMut, Matrix, Storage};
use onlay_kernels::{Level, dense, gemm, narrow};
use std::ops::Range;

/// The layer's gradients at `site` and the gradient of x, where somebody wants them.
pub(crate) fn site_back(
    host: &mut Host<'_>,
    site: Site,
    base: Base<'_>,
    x: Mat<'_>,
    dy: Mat<'_>,
    dx: Option<MatMut<'_>>,
) {
    match (host.learner.filter(|l| l.learns(site)), dx) {
        (Some(learner), dx) => learner.backward(host, site, base, x, dy, dx),
        (None, Some(dx)) => product_back(host, base.matrix, None, dy, dx),
        (None, None) => {}
    }
}

/// `dx += (gain∘dy)·W`, with `gain` `[outputs]` on every row of dy.
///
/// Both factors are rounded to bf16 where the level multiplies that ([`narrow`]) and W is in blocks, whose forward products
/// round the activations to 8 bits; else they are f32.
pub fn product_back(host: &mut Host<'_>, w: Matrix<'_>, gain: Option<&[f32]>, dy: Mat<'_>, dx: MatMut<'_>) {
    let (level, scratch, n) = (host.level, host.scratch, dy.rows());
    if n == 0 {
        return;
    }
    let halves = narrow::has(level) && matches!(w.storage, Storage::Block(_));
    let (per, k) = (gemm::rows(level), dy.cols());
    let groups = n.div_ceil(per);
    host.team.each(groups, |_, g| {
        let rows = per.min(n - g * per);
        let mut packed = scratch.packed.get(g);
        let dy = &dy.data()[g * per * k..];
        if halves {
            return narrow::pack(level, dy, k, rows, k, gain, bytemuck::cast_slice_mut(&mut packed));
        }
        gemm::pack(level, dy, k, 1, rows, k, 1.0, &mut packed[..k * per]);
        if let Some(gain) = gain {
            for (dy, gain) in packed.chunks_exact_mut(per).zip(gain) {
                dy.iter_mut().for_each(|v| *v *= gain);
            }
        }
    });
    let all = 0..n;
    // Narrow pieces when there are few columns, so that every member has several; never across a block.
    let width = (w.cols / (4 * host.team.len())).next_multiple_of(32).clamp(32, BACK.1);
    let width = if matches!(w.storage, Storage::Block(f) if f.len == 256) { BACK.1 } else { width };
    let grid = Grid::new([dx], std::slice::from_ref(&all), [width]);
    host.team.run(&|member| {
        let worker = &mut *scratch.workers.get(member);
        while let Some((_, [first], [mut block])) = grid.next() {
            let width = block.row(0).len();
            let tile = &mut worker.tile[..n * width];
            for (i, row) in tile.chunks_exact_mut(width).enumerate() {
                row.copy_from_slice(block.row(i));
            }
            worker.spare.resize(BACK.0 * BACK_STRIDE, 0.0);
            for from in (0..k).step_by(BACK.0) {
                let cut = BACK.0.min(k - from);
                if halves {
                    lay_pairs(level, w, from..from + cut, first, width, &mut worker.spare);
                } else {
                    for (i, to) in worker.spare.chunks_exact_mut(BACK_STRIDE).enumerate().take(cut) {
                        w.ask(level, from + i + SOON, first, width);
                        w.decode(level, from + i, first, &mut to[..width]);
                    }
                }
                for g in 0..groups {
                    let rows = per.min(n - g * per);
                    let dy = scratch.packed.read(g);
                    let c = &mut tile[g * per * width..];
                    if halves {
                        let dy = &bytemuck::cast_slice(&dy)[from / 2 * per..(from + cut).div_ceil(2) * per];
                        let b = bytemuck::cast_slice(&worker.spare);
                        narrow::add(level, rows, width, dy, b, BACK_STRIDE, c, width);
                    } else {
                        let dy = &dy[from * per..(from + cut) * per];
                        gemm::add(level, rows, width, dy, &worker.spare, BACK_STRIDE, c, width);
                    }
                }
            }
            for (i, row) in tile.chunks_exact(width).enumerate() {
                block.row(i).copy_from_slice(row);
            }
        }
    });
}

/// How many rows ahead a strip of W is asked for: each lies in another page than the last.
const SOON: usize = 12;

/// Some columns of rows of W in bf16 pairs, `BACK_STRIDE` apart.
fn lay_pairs(level: Level, w: Matrix<'_>, rows: Range<usize>, first: usize, width: usize, to: &mut [f32]) {
    let to = bytemuck::cast_slice_mut(to);
    let mut two = [[0f32; BACK.1]; 2];
    for (i, to) in rows.clone().step_by(2).zip(to.chunks_exact_mut(BACK_STRIDE)) {
        let [a, b] = &mut two;
        w.ask(level, i + SOON, first, width);
        w.ask(level, i + 1 + SOON, first, width);
        w.decode(level, i, first, &mut a[..width]);
        let second = i + 1 < rows.end;
        if second {
            w.decode(level, i + 1, first, &mut b[..width]);
        }
        narrow::lay(level, &a[..width], second.then_some(&b[..width]), &mut to[..width]);
    }
}

/// Rows of the base that a task of [`output_products`] decodes at a time.
const DECODED: usize = 4;

/// `out_i = Σ_rows dy_i·(x·Wᵀ)_i`, what the base's own product adds to the gradient of a number on every output. In
/// f32 over the decoded weights; rows of x one after the other, so members change no bit.
pub fn output_products(host: &mut Host<'_>, w: Matrix<'_>, x: Mat<'_>, dy: Mat<'_>, out: &mut [f32]) {
    let (level, scratch, n, k) = (host.level, host.scratch, x.rows(), w.cols);
    let pieces = Chunks::new([out], DECODED);
    host.team.run(&|member| {
        while let Some((piece, [out])) = pieces.next() {
            let (first, m) = (piece * DECODED, out.len());
            scratch.with_spare(member, DECODED * (k + n), |spare| {
                let (rows, tile) = spare.split_at_mut(DECODED * k);
                for (i, row) in rows.chunks_exact_mut(k).enumerate().take(m) {
                    w.decode(level, first + i, 0, row);
                }
                let rows = bytemuck::cast_slice(&rows[..m * k]);
                dense::product(level, dense::Dense::F32, rows, 4 * k, x.data(), k, tile, DECODED);
                for (i, out) in out.iter_mut().enumerate() {
                    let each = tile.chunks_exact(DECODED).zip(dy.data().chunks_exact(dy.cols()));
                    *out = each.map(|(p, dy)| p[i] * dy[first + i]).sum();
                }
            });
        }
    });
}
