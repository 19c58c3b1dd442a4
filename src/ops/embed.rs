//! Rows of a table, one per token; or rows of a layer.
//!
//! # Forward
//! ```text
//! y[i] = table[token i]          the layer's row where it has one for that token: of the table's own tokens, or of those
//!                                behind the vocabulary, which stand in front of sequences
//! ```
//! # Backward
//! The table is frozen, and nothing lies below it: the gradients of rows go to the layer that learns some.

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
        let mut to = host.frame.write(self.to);
        let cols = table.cols;
        let some = batch.spans.iter().any(|s| s.delta.is_some_and(|d| d.embeds()));
        host.over_rows(to.mat(), |first, rows| {
            for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
                let token = batch.tokens[first + i];
                let layer = if some { batch.span_of(first + i).delta } else { None };
                if !layer.is_some_and(|d| d.embedding(token, row)) {
                    table.decode(level, token as usize, 0, row);
                }
            }
        });
    }
    fn backward(&self, host: &mut Host<'_>) {
        let Some(learner) = host.learner.filter(|l| l.learns_embeddings()) else { return };
        learner.embedding_back(host.batch.tokens, host.grads().read(self.to).mat());
    }
}
