//! Root-mean-square normalisation of rows, or of the heads inside rows. Equations: [`onlay_kernels::norm`]. A layer may put
//! a weight of its own in place of the base's.

use super::{Batch, Host, Operation, VectorId};
use crate::tensor::Register;
use onlay_kernels::Level;
use onlay_kernels::norm::{rms_norm, rms_norm_grad, rms_norm_weight_grad};
use std::ops::Range;

/// `y = rms_norm(x)·w` on pieces as wide as w: whole rows, or every head of a row.
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[rows][a multiple of width]`
    pub x: Register,
    /// `[width]`
    pub weight: VectorId,
    /// Added under the root.
    pub eps: f32,
    /// As `x`.
    pub to: Register,
}

impl Operation for Norm {
    fn reads(&self) -> Vec<Register> {
        vec![self.x]
    }
    fn writes(&self) -> Vec<Register> {
        vec![self.to]
    }
    fn forward(&self, host: &mut Host<'_>) {
        let (level, base, batch) = (host.level, host.tables.vector(self.weight), host.batch);
        let x = host.frame.read(self.x);
        let mut to = host.frame.write(self.to);
        let cols = x.mat().cols();
        host.over_rows(to.mat(), |first, rows| {
            weights(batch, self.weight, base, first..first + rows.len() / cols, &mut |part, w| {
                let x = &x[part.start * cols..part.end * cols];
                let y = &mut rows[(part.start - first) * cols..(part.end - first) * cols];
                for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
                    rms_norm(level, x, w, self.eps, y);
                }
            });
        });
    }
    fn backward(&self, host: &mut Host<'_>) {
        let (level, base, batch) = (host.level, host.tables.vector(self.weight), host.batch);
        let x = host.frame.read(self.x);
        let cols = x.mat().cols();
        if let Some(learner) = host.learner.filter(|l| l.learns_vector(self.weight)) {
            let dy = host.grads().read(self.to);
            // one member, row after row: a sum of the same bits however many there are
            host.scratch.with_spare(0, base.len(), |dw| {
                dw.fill(0.0);
                add_weight_back(level, &x, &dy, self.eps, dw);
                learner.vector_back(self.weight, dw);
            });
        }
        if !host.wants(self.x) {
            return;
        }
        let dy = host.grads().read(self.to);
        let mut dx = host.grads().write(self.x);
        host.over_rows(dx.mat(), |first, rows| {
            weights(batch, self.weight, base, first..first + rows.len() / cols, &mut |part, w| {
                let at = part.start * cols..part.end * cols;
                let dx = &mut rows[(part.start - first) * cols..(part.end - first) * cols];
                let pieces = x[at.clone()].chunks_exact(w.len()).zip(dy[at].chunks_exact(w.len()));
                for ((x, dy), dx) in pieces.zip(dx.chunks_exact_mut(w.len())) {
                    rms_norm_grad(level, x, w, self.eps, dy, dx);
                }
            });
        });
    }
}

/// `dw += Σ_pieces dy∘x/rms(x)`
pub(crate) fn add_weight_back(level: Level, x: &[f32], dy: &[f32], eps: f32, dw: &mut [f32]) {
    let n = dw.len();
    for (x, dy) in x.chunks_exact(n).zip(dy.chunks_exact(n)) {
        rms_norm_weight_grad(level, x, eps, dy, dw);
    }
}

/// `f(rows, weight)` for all of `rows`, with the base's weight or that of a row's layer.
fn weights(
    batch: Batch<'_>,
    id: VectorId,
    base: &[f32],
    rows: Range<usize>,
    f: &mut dyn FnMut(Range<usize>, &[f32]),
) {
    if batch.spans.iter().all(|s| s.delta.is_none_or(|d| d.vector(id).is_none())) {
        return f(rows, base);
    }
    for span in batch.spans {
        let part = span.range().start.max(rows.start)..span.range().end.min(rows.end);
        if !part.is_empty() {
            let own = span.delta.and_then(|d| d.vector(id));
            f(part, own.as_ref().map_or(base, |own| &own[..]));
        }
    }
}
