//! Products with base matrices and the low-rank pairs beside them. The equations are at the head of `matvec.cu`,
//! `matmul_tensor.cu` and `layers.cu`.

use super::facts::View;
use super::kernels::few_rows;
use super::queue::{Argument, Region};
use super::{Cuda, Dropping};
use crate::error::Result;
use crate::ops::{Backward, MatrixId, Site, Tables};

/// Up to this many rows every weight is read for four of them at a time.
const FEW: usize = 8;

/// What gradients are raised by on their way into f16: a Turing card has no bf16, and f16 has few small numbers.
const LIFT: f32 = 4096.0;

/// A product's rows: how many, and where they are.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub rows: usize,
    pub x: Region,
    pub y: Region,
}

impl Cuda {
    /// `y = x·Wᵀ + bias`
    pub(super) fn multiply(
        &mut self,
        tables: &dyn Tables,
        id: MatrixId,
        bias: Region,
        of: Operands,
    ) -> Result<()> {
        let (m, w) = (tables.matrix(id), self.weights.region(tables, id)?);
        let (format, [one, four]) = few_rows(m.storage)?;
        let Operands { rows, x, y } = of;
        let (bytes, outputs, cols) = (m.row_bytes as u64, m.rows, m.cols);
        if rows <= FEW {
            let (name, per) = if rows == 1 { (one, 1) } else { (four, 4) };
            let grid = [outputs.div_ceil(4), rows.div_ceil(per), 1];
            return self.launch(name, grid, 128, 0, arguments![w, bytes, outputs, cols, x, rows, bias, y]);
        }
        let (side, block, name) = match cols % 32 {
            0 if rows > 64 => (128, 256, "tensor_matmul_tall"),
            0 => (64, 128, "tensor_matmul"),
            _ => (64, 256, "matmul"),
        };
        let grid = [outputs.div_ceil(64), rows.div_ceil(side), 1];
        self.launch(name, grid, block, 0, arguments![w, format, bytes, outputs, cols, x, rows, bias, y])
    }

    /// `dx += dy·W`, with dx in the place of x and dy in that of y.
    pub(super) fn multiply_grad(&mut self, tables: &dyn Tables, id: MatrixId, of: Operands) -> Result<()> {
        let (m, w) = (tables.matrix(id), self.weights.region(tables, id)?);
        let (format, _) = few_rows(m.storage)?;
        let Operands { rows, x, y } = of;
        let (bytes, outputs, cols) = (m.row_bytes as u64, m.rows, m.cols);
        let (side, block, name) = match outputs % 32 {
            0 if rows > 64 => (128, 256, "tensor_matmul_grad_tall"),
            0 => (64, 128, "tensor_matmul_grad"),
            _ => (64, 256, "matmul_grad"),
        };
        let grid = [cols.div_ceil(64), rows.div_ceil(side), 1];
        if name == "matmul_grad" {
            return self.launch(
                name,
                grid,
                block,
                0,
                arguments![w, format, bytes, outputs, cols, y, rows, x],
            );
        }
        let lift = if self.card.has_bf16() { 1.0 } else { LIFT };
        self.launch(name, grid, block, 0, arguments![w, format, bytes, outputs, cols, y, rows, lift, x])
    }

    /// `y += s·(x·Aᵀ)·B` for the rows that wear a pair here.
    pub(super) fn pairs(&mut self, view: View, drop: Dropping, site: Site, of: Operands) -> Result<()> {
        if !view.any || !self.layers.has(site) {
            return Ok(());
        }
        let [inputs, outputs] = self.sites[usize::from(site)];
        let (pairs, stride, h) = (self.layers.pairs(site), self.stride, self.beside[0]);
        let x = self.dropped(view, drop, site, inputs, of.x)?;
        let hidden = arguments![x, inputs, pairs, view.worn, 0, stride, h];
        self.launch("lora_hidden", [of.rows, 1, 1], 256, 0, hidden)?;
        let grid = [outputs.div_ceil(256), of.rows, 1];
        self.launch("lora_spread", grid, 256, 0, arguments![h, stride, pairs, view.worn, 1, outputs, of.y])
    }

    /// The inputs of pairs at a site: x, or in other memory what is left of it.
    fn dropped(&mut self, view: View, drop: Dropping, site: Site, cols: usize, x: Region) -> Result<Region> {
        if view.names == Region::NONE || view.names.bytes() == 0 {
            return Ok(x);
        }
        let to = self.beside[2];
        self.drop_inputs(view, drop, site, cols, x, false, to)?;
        Ok(to)
    }

    /// `to = drop(x)`, or `to += drop(x)`.
    fn drop_inputs(
        &mut self,
        view: View,
        drop: Dropping,
        site: Site,
        cols: usize,
        x: Region,
        add: bool,
        to: Region,
    ) -> Result<()> {
        let Dropping { rate, seed } = drop;
        let rows = view.rows;
        let with =
            arguments![x, view.names, view.worn, site.0, rate as u32, seed, rows, cols, i32::from(add), to];
        self.launch("drop", [rows, 1, 1], 256, 0, with)
    }

    /// The backward pass of a product at a site: the learner's gradients, and dx where it is wanted. dy in the place of y.
    pub(super) fn site_back(
        &mut self,
        tables: &dyn Tables,
        at: (Site, MatrixId),
        view: View,
        (drop, slot, learner): (Dropping, Option<usize>, &dyn Backward),
        of: Operands,
        dx: Option<Region>,
    ) -> Result<()> {
        let site = at.0;
        let pair = slot.filter(|_| learner.learns(site)).and_then(|s| Some((s, self.layers.at(s, site)?)));
        if let Some((slot, pair)) = pair {
            let [inputs, outputs] = self.sites[usize::from(site)];
            let (pairs, stride, worn, rows) = (self.layers.pairs(site), self.stride, view.worn, of.rows);
            let [h, dh, other] = self.beside;
            let x = self.dropped(view, drop, site, inputs, of.x)?;
            let hidden = arguments![x, inputs, pairs, worn, 0, stride, h];
            self.launch("lora_hidden", [rows, 1, 1], 256, 0, hidden)?;
            let hidden = arguments![of.y, outputs, pairs, worn, 1, stride, dh];
            self.launch("lora_hidden", [rows, 1, 1], 256, 0, hidden)?;
            let [da, db] = pair.grads;
            for (h, scale, x, cols, grad) in [(dh, 1.0, x, inputs, da), (h, pair.scale, of.y, outputs, db)] {
                let grid = [cols.div_ceil(256), pair.learned.div_ceil(8), 1];
                let with = arguments![h, stride, rows, worn, slot, pair.learned, scale, x, cols, grad];
                self.launch("lora_outer", grid, 256, 0, with)?;
            }
            if let Some(dx) = dx {
                let whole = x == of.x;
                let to = if whole { dx } else { other.floats(rows * inputs) };
                if !whole {
                    self.stream.clear(to)?;
                }
                let grid = [inputs.div_ceil(256), rows, 1];
                self.launch("lora_spread", grid, 256, 0, arguments![dh, stride, pairs, worn, 0, inputs, to])?;
                if !whole {
                    self.drop_inputs(view, drop, site, inputs, to, true, dx)?;
                }
            }
        }
        match dx {
            Some(dx) => self.multiply_grad(tables, at.1, Operands { x: dx, ..of }),
            None => Ok(()),
        }
    }
}
