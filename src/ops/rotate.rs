//! Rotary positions, in place. Equations: [`onlay_kernels::rope`].

use super::{Host, Operation};
use crate::error::{Error, Kind, Result};
use crate::tensor::Register;
use onlay_kernels::rope::{Pairs, rotate};

/// Turns every head of a register by its row's position. The gradient is turned back in place.
#[derive(Clone, Debug)]
pub struct Rotate {
    /// `[rows][heads · head]`
    pub x: Register,
    /// Columns per head.
    pub head: usize,
}

impl Operation for Rotate {
    fn reads(&self) -> Vec<Register> {
        vec![self.x]
    }
    fn writes(&self) -> Vec<Register> {
        vec![self.x]
    }
    fn forward(&self, host: &mut Host<'_>) {
        let mut x = host.frame.write(self.x);
        self.turn(host, x.mat(), false);
    }
    fn backward(&self, host: &mut Host<'_>) {
        let mut dx = host.grads().write(self.x);
        self.turn(host, dx.mat(), true);
    }
}

impl Rotate {
    fn turn(&self, host: &mut Host<'_>, x: crate::tensor::MatMut<'_>, back: bool) {
        let (level, batch, turns, cols) = (host.level, host.batch, host.tables.turns(), x.cols());
        host.over_rows(x, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
                let span = batch.span_of(first + i);
                let (cos, sin) = turns.at(span.position + first + i - span.first);
                rotate(level, turns.pairs, row, self.head, cos, sin, back);
            }
        });
    }
}

/// Cosines and sines of every position up to a context, `[positions][pairs]` each.
#[derive(Clone, Debug)]
pub struct Turns {
    /// Which columns turn together.
    pub pairs: Pairs,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    /// The table of `frequencies` (radians per position, one per pair) for positions 0..`context`.
    ///
    /// # Errors
    /// `Memory` if the table does not fit.
    pub fn new(pairs: Pairs, frequencies: &[f64], context: usize) -> Result<Self> {
        let half = frequencies.len();
        let bytes = Self::bytes(half, context);
        let mut turns = Turns { pairs, half, cos: Vec::new(), sin: Vec::new() };
        for table in [&mut turns.cos, &mut turns.sin] {
            table.try_reserve_exact(half * context).map_err(|_| {
                Error::new(
                    Kind::Memory,
                    format!("no memory for the rotary table of {context} positions ({bytes} bytes)"),
                )
            })?;
        }
        for position in 0..context {
            for f in frequencies {
                let (sin, cos) = (position as f64 * f).sin_cos();
                turns.cos.push(cos as f32);
                turns.sin.push(sin as f32);
            }
        }
        Ok(turns)
    }

    /// Bytes of a table.
    pub fn bytes(half: usize, context: usize) -> u64 {
        8 * half as u64 * context as u64
    }

    /// Pairs of a position.
    pub fn half(&self) -> usize {
        self.half
    }

    /// All cosines and all sines, `[positions][half]`.
    pub fn tables(&self) -> [&[f32]; 2] {
        [&self.cos, &self.sin]
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(usize::MAX)
    }

    /// Cosines and sines of one position.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let part = position * self.half..(position + 1) * self.half;
        (&self.cos[part.clone()], &self.sin[part])
    }
}
