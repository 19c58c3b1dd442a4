//! Root-mean-square normalisation of rows, or of the heads inside rows. Equations: [`onlay_kernels::norm`].

use super::{Host, Operation, VectorId};
use crate::tensor::Register;
use onlay_kernels::norm::{rms_norm, rms_norm_grad};

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
        let (level, w) = (host.level, host.tables.vector(self.weight));
        let x = host.frame.read(self.x);
        let mut to = host.frame.write(self.to);
        let cols = x.mat().cols();
        host.over_rows(to.mat(), |first, rows| {
            let x = &x[first * cols..];
            for (x, y) in x.chunks_exact(w.len()).zip(rows.chunks_exact_mut(w.len())) {
                rms_norm(level, x, w, self.eps, y);
            }
        });
    }
    fn backward(&self, host: &mut Host<'_>) {
        if !host.wants(self.x) {
            return;
        }
        let (level, w) = (host.level, host.tables.vector(self.weight));
        let x = host.frame.read(self.x);
        let dy = host.grads().read(self.to);
        let mut dx = host.grads().write(self.x);
        let cols = x.mat().cols();
        host.over_rows(dx.mat(), |first, rows| {
            let at = first * cols;
            let pieces = x[at..].chunks_exact(w.len()).zip(dy[at..].chunks_exact(w.len()));
            for ((x, dy), dx) in pieces.zip(rows.chunks_exact_mut(w.len())) {
                rms_norm_grad(level, x, w, self.eps, dy, dx);
            }
        });
    }
}
