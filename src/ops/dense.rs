//! Products of many rows with unquantized weights.
//!
//! Rows of activations are packed once for everybody; a member lays its rows of weights into panels, one cut of the
//! reduction after the other, and every group of activations runs down them. The sums are those of a few rows
//! ([`onlay_kernels::dense_panel`]).

use super::scratch::{Scratch, TASK};
use crate::tensor::{Mat, Slots};
use onlay_kernels::dense::{Dense, PIECE};
use onlay_kernels::{Level, dense_panel as panel};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// From so many rows on, panels are worth their laying.
pub(super) const MANY: usize = 72;

/// Packs the rows of x, group after group; `next` is shared by all members.
pub(super) fn pack(level: Level, scratch: &Scratch, x: Mat<'_>, next: &AtomicUsize) {
    let (columns, k) = (panel::columns(level), x.cols());
    loop {
        let g = next.fetch_add(1, Ordering::Relaxed);
        let rows = g * columns..((g + 1) * columns).min(x.rows());
        if rows.is_empty() {
            return;
        }
        panel::pack(level, x.part(rows).data(), k, &mut scratch.packed.get(g));
    }
}

/// Outputs of at most TASK rows of weights for packed rows; the outputs of a row lie TASK apart.
pub(super) fn outputs(
    level: Level,
    dense: Dense,
    (w, row_bytes, k): (&[u8], usize, usize),
    packed: &Slots<Vec<f32>>,
    rows: Range<usize>,
    memory: &mut [f32],
    y: &mut [f32],
) {
    let (lanes, columns) = (panel::rows(level), panel::columns(level));
    for from in (0..k).step_by(PIECE) {
        let cut = PIECE.min(k - from);
        let size = lanes * panel::length(level, cut);
        for (w, to) in w.chunks(lanes * row_bytes).zip(memory.chunks_mut(size)) {
            panel::lay(level, dense, w, row_bytes, from..from + cut, to);
        }
        // panels stay close while the activations pass by
        let groups = rows.start / columns..rows.end.div_ceil(columns);
        for (g, y) in groups.zip(y.chunks_mut(columns * TASK)) {
            let x = packed.read(g);
            for (p, _) in w.chunks(lanes * row_bytes).enumerate() {
                panel::tile(level, &memory[p * size..], &x, from, cut, &mut y[p * lanes..], TASK);
            }
        }
    }
}
