//! f32 products for layers that learn: `C += s·op(A)·B`, spread over the team.
//!
//! Every output is one accumulator over the whole reduction, in order ([`onlay_kernels::gemm`]); members take
//! columns of C, so their number changes no bit.

use super::Host;
use crate::tensor::{Grid, MatMut};
use onlay_kernels::gemm;

/// A left factor: `A[i][p]` at `data[i·row + p·step]`, so a transposed matrix is one with row 1.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// From one row to the next.
    pub row: usize,
    /// From one element of a row to the next.
    pub step: usize,
}

/// Columns that one task takes.
const WIDTH: usize = 64;
/// Elements of the reduction packed at a time.
const DEPTH: usize = 256;

/// `C [m][n] += scale · A [m][k] · B [k][n]`; B's rows are `b_stride` apart.
pub fn add_product(
    host: &mut Host<'_>,
    scale: f32,
    a: Factor<'_>,
    k: usize,
    b: &[f32],
    b_stride: usize,
    c: MatMut<'_>,
) {
    let (level, scratch) = (host.level, host.scratch);
    let (m, per) = (c.rows(), gemm::rows(level));
    if m == 0 || k == 0 {
        return;
    }
    let rows = 0..m;
    let grid = Grid::new([c], std::slice::from_ref(&rows), [WIDTH]);
    host.team.run(&|member| {
        let worker = &mut *scratch.workers.get(member);
        while let Some((_, [first], [mut block])) = grid.next() {
            let width = block.row(0).len();
            let len = (per + WIDTH) * DEPTH + per * WIDTH;
            worker.spare.resize(len.max(worker.spare.len()), 0.0);
            let (packed, rest) = worker.spare.split_at_mut(per * DEPTH);
            let (piece, tile) = rest.split_at_mut(WIDTH * DEPTH);
            for from in (0..k).step_by(DEPTH) {
                let cut = DEPTH.min(k - from);
                // B's rows may lie a power of two apart: side by side they do not fight for the same cache lines.
                for (p, to) in piece.chunks_exact_mut(WIDTH).enumerate().take(cut) {
                    to[..width].copy_from_slice(&b[(from + p) * b_stride + first..][..width]);
                }
                for group in (0..m).step_by(per) {
                    let rows = per.min(m - group);
                    let part = &a.data[group * a.row + from * a.step..];
                    gemm::pack(level, part, a.row, a.step, rows, cut, scale, packed);
                    for i in 0..rows {
                        tile[i * WIDTH..i * WIDTH + width].copy_from_slice(block.row(group + i));
                    }
                    gemm::add(level, rows, width, &packed[..cut * per], piece, WIDTH, tile, WIDTH);
                    for i in 0..rows {
                        block.row(group + i).copy_from_slice(&tile[i * WIDTH..i * WIDTH + width]);
                    }
                }
            }
        }
    });
}
