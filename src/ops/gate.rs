//! SwiGLU. Equations: [`onlay_kernels::gate`].

use super::{Host, Operation};
use crate::tensor::Register;
use onlay_kernels::gate::{swiglu, swiglu_grad};

/// `y = silu(gate)·up`
#[derive(Clone, Debug)]
pub struct Gate {
    /// `[rows][d]`
    pub gate: Register,
    /// `[rows][d]`
    pub up: Register,
    /// `[rows][d]`
    pub to: Register,
}

impl Operation for Gate {
    fn reads(&self) -> Vec<Register> {
        vec![self.gate, self.up]
    }
    fn writes(&self) -> Vec<Register> {
        vec![self.to]
    }
    fn forward(&self, host: &mut Host<'_>) {
        let level = host.level;
        let (g, u) = (host.frame.read(self.gate), host.frame.read(self.up));
        let mut to = host.frame.write(self.to);
        let cols = g.mat().cols();
        host.over_rows(to.mat(), |first, y| {
            let part = first * cols..first * cols + y.len();
            swiglu(level, &g[part.clone()], &u[part], y);
        });
    }
    fn backward(&self, host: &mut Host<'_>) {
        let level = host.level;
        let (g, u) = (host.frame.read(self.gate), host.frame.read(self.up));
        let grads = host.grads();
        let dy = grads.read(self.to);
        let (mut dg, mut du) = (grads.write(self.gate), grads.write(self.up));
        let cols = g.mat().cols();
        host.over_rows_of_two(dg.mat(), du.mat(), |first, dg, du| {
            let part = first * cols..first * cols + dg.len();
            swiglu_grad(level, &g[part.clone()], &u[part.clone()], &dy[part], dg, du);
        });
    }
}
