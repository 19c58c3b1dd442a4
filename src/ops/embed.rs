//! Rows of a table, one per token.
//!
//! # Forward
//! ```text
//! y[i] = table[token i], or the layer's row of that token
//! ```
//! # Backward
//! The table is frozen, and nothing lies below it. A layer's rows get the gradient of what follows from who runs the pass
//! ([`Backward::embedding_back`](super::Backward::embedding_back)).

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
        let (level, batch) = (host.level, host.batch);
        let tokens = batch.tokens;
        let embeds = batch.spans.iter().any(|s| s.delta.is_some_and(|d| d.embeds()));
        let mut to = host.frame.write(self.to);
        let cols = table.cols;
        host.over_rows(to.mat(), |first, rows| {
            for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
                let (delta, token) = (batch.span_of(first + i).delta, tokens[first + i]);
                if !delta.is_some_and(|d| embeds && d.embedding(token, row)) {
                    table.decode(level, token as usize, 0, row);
                }
            }
        });
    }
    fn backward(&self, _: &mut Host<'_>) {}
}
