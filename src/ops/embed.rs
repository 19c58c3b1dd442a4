//! Rows of a table, one per token.
//!
//! # Forward
//! ```text
//! y[i] = table[token i]
//! ```
//! # Backward
//! The table is frozen, and nothing lies below it.

use super::{Host, MatrixId, Operation};
use crate::tensor::Register;

/// See the module.
#[derive(Clone, Debug)]
pub struct Embed {
    /// `[vocabulary][d]`
    pub table: MatrixId,
    /// `[rows][d]`
    pub to: Register,
}

impl Operation for Embed {
    fn reads(&self) -> Vec<Register> {
        vec![]
    }
    fn writes(&self) -> Vec<Register> {
        vec![self.to]
    }
    fn forward(&self, host: &mut Host<'_>) {
        let table = host.tables.matrix(self.table);
        let (level, tokens) = (host.level, host.batch.tokens);
        let mut to = host.frame.write(self.to);
        let cols = table.cols;
        host.over_rows(to.mat(), |first, rows| {
            for (row, token) in rows.chunks_exact_mut(cols).zip(&tokens[first..]) {
                table.decode(level, *token as usize, 0, row);
            }
        });
    }
    fn backward(&self, _: &mut Host<'_>) {}
}
