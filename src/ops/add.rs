//! A sum of two registers: the residual stream.
//!
//! # Forward
//! ```text
//! y = a + b
//! ```
//! # Backward
//! ```text
//! da += dy        db += dy
//! ```

use super::{Host, Operation};
use crate::tensor::Register;
use onlay_kernels::math::{add_scaled, sum_of};

/// See the module.
#[derive(Clone, Debug)]
pub struct Add {
    /// `[rows][d]`
    pub a: Register,
    /// `[rows][d]`
    pub b: Register,
    /// `[rows][d]`
    pub to: Register,
}

impl Operation for Add {
    fn reads(&self) -> Vec<Register> {
        vec![self.a, self.b]
    }
    fn writes(&self) -> Vec<Register> {
        vec![self.to]
    }
    fn forward(&self, host: &mut Host<'_>) {
        let level = host.level;
        let (a, b) = (host.frame.read(self.a), host.frame.read(self.b));
        let mut to = host.frame.write(self.to);
        let cols = a.mat().cols();
        host.over_rows(to.mat(), |first, y| {
            let part = first * cols..first * cols + y.len();
            sum_of(level, &a[part.clone()], &b[part], y);
        });
    }
    fn backward(&self, host: &mut Host<'_>) {
        let level = host.level;
        let grads = host.grads();
        let dy = grads.read(self.to);
        let (mut da, mut db) = (grads.write(self.a), grads.write(self.b));
        let cols = dy.mat().cols();
        host.over_rows_of_two(da.mat(), db.mat(), |first, da, db| {
            let dy = &dy[first * cols..first * cols + da.len()];
            add_scaled(level, 1.0, dy, da);
            add_scaled(level, 1.0, dy, db);
        });
    }
}
