//! The end of a program: some rows of the residual stream, their logits, losses, and the gradients that go down. The
//! equations are in [`End`](crate::backend::End).

use super::facts::View;
use super::products::Operands;
use super::queue::{Argument, Region};
use super::{Cuda, Dropping};
use crate::backend::End;
use crate::error::Result;
use crate::ops::{Backward, Tables};

impl Cuda {
    /// Logits of rows.
    pub(super) fn end_rows(
        &mut self,
        tables: &dyn Tables,
        end: &End<'_>,
        view: View,
        drop: Dropping,
    ) -> Result<()> {
        let (n, width) = (end.rows.len(), self.cols[usize::from(end.from.0)]);
        let (from, e) = (self.frames[self.frame][usize::from(end.from.0)], &self.end);
        let (rows, stream, x, z) = (e.rows, e.stream, e.x, e.z);
        self.stream.upload(bytemuck::cast_slice(end.rows), rows)?;
        self.launch("gather", [n, 1, 1], 256, 0, arguments![from, width, rows, stream])?;
        let norm = self.vectors[end.norm.0 as usize];
        self.launch("rms_norm", [n, 1, 1], 256, 0, arguments![stream, norm, end.eps, width, n, 1, x])?;
        let of = Operands { rows: n, x, y: z };
        self.multiply(tables, end.matrix, Region::NONE, of)?;
        self.pairs(view, drop, end.site, of)
    }

    /// Their losses come to the host; the logits become gradients if there are scales.
    pub(super) fn end_losses(&mut self, tokens: &[u32], scales: Option<&[f32]>) -> Result<()> {
        let (n, e) = (tokens.len(), &self.end);
        let (targets, to_scale, z, losses, vocabulary) = (e.targets, e.scales, e.z, e.losses, e.vocabulary);
        self.stream.upload(bytemuck::cast_slice(tokens), targets)?;
        if let Some(scales) = scales {
            self.stream.upload(bytemuck::cast_slice(scales), to_scale)?;
        }
        let learn = i32::from(scales.is_some());
        let with = arguments![z, vocabulary, targets, to_scale, learn, losses];
        self.launch("cross_entropy", [n, 1, 1], 1024, 0, with)?;
        let found = bytemuck::cast_slice_mut(&mut self.end.found[..n]);
        self.stream.download(losses.floats(n), found)
    }

    /// Gradients of logits on their way down. The rows are those of [`Cuda::end_rows`] before.
    pub(super) fn end_rows_back(
        &mut self,
        tables: &dyn Tables,
        end: &End<'_>,
        view: View,
        learner: (Dropping, Option<usize>, &dyn Backward),
    ) -> Result<()> {
        let (n, width) = (end.rows.len(), self.cols[usize::from(end.from.0)]);
        let (to, e) = (self.grads[usize::from(end.from.0)], &self.end);
        let (rows, stream, dx, down) = (e.rows, e.stream, e.dx.floats(n * width), e.down.floats(n * width));
        let of = Operands { rows: n, x: e.x, y: e.z };
        self.stream.clear(dx)?;
        self.site_back(tables, (end.site, end.matrix), view, learner, of, Some(dx))?;
        self.stream.clear(down)?;
        let with = arguments![stream, self.vectors[end.norm.0 as usize], end.eps, width, n, 1, dx, down];
        self.launch("rms_norm_grad", [n, 1, 1], 256, 0, with)?;
        self.launch("scatter", [n, 1, 1], 256, 0, arguments![down, width, rows, to])
    }
}
