//! The end of a pass: logits and losses of the rows whose next token counts, some at a time, and the gradient they
//! send down.
//!
//! ```text
//! Loss             logits → log p
//! Learn(c, w)      logits → w·log p, c·w·∂(−log p)/∂logits → down
//! Sequences        logits → log p, summed per sequence; if they are judged, the verdict is the weight of every row:
//!                  logits again, unless they are still there → weight·∂(log p)/∂logits → down
//! ```
//! A verdict needs whole sequences, and the logits of all their rows would be most of a run's memory: computing the head
//! product twice costs less than any other way to have both.

use crate::adapter::Lora;
use crate::backend::Backend;
use crate::error::{Error, Kind, Result};
use crate::model::View;
use crate::ops::{Backward, Batch, Delta, Span, add_weight_back};
use crate::tensor::{Chunks, Slots};
use onlay_kernels::norm::{rms_norm, rms_norm_grad};
use onlay_kernels::{Level, softmax};

/// Rows of the head computed at a time.
pub(super) const HEAD_ROWS: usize = 128;

/// A row whose next token counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// In the batch.
    pub row: u32,
    /// The token.
    pub token: u32,
    /// Of which sequence of the pass.
    pub sequence: u16,
    /// Whether it is trained; if not it counts as text alone.
    pub trained: bool,
}

/// What a pass found of a sequence, and what is made of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    /// Whether tokens that are not trained count as text.
    pub whole: bool,
    /// Σ log p over the trained tokens.
    pub trained: f64,
    /// Σ log p over all tokens that count.
    pub text: f64,
    /// dL/d trained, dL/d text.
    pub slopes: [f64; 2],
}

/// Turns what was found into slopes.
pub(super) type Judge<'a> = &'a mut dyn FnMut(&mut [Sum]);

/// What losses are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a> {
    /// All of them, before they become gradients.
    pub all: f32,
    /// Weights of the examples of the window; none if all count alike.
    pub weights: &'a [f32],
    /// The examples of the pass.
    pub which: &'a [u32],
}

impl Scale<'_> {
    fn weight(&self, target: &Target) -> f32 {
        match self.weights {
            [] => 1.0,
            weights => weights[self.which[usize::from(target.sequence)] as usize],
        }
    }
}

/// What a pass is for.
pub(super) enum Pass<'a> {
    /// The sum of its losses.
    Loss,
    /// The sum of its weighted losses, and the gradients of so many times that.
    Learn(Scale<'a>),
    /// Log-probabilities of its sequences, with or without the layer; with a judge, also gradients by its slopes.
    Sequences { sums: &'a mut [Sum], layer: bool, judge: Option<Judge<'a>> },
}

impl Pass<'_> {
    /// Whether there are gradients.
    pub fn learns(&self) -> bool {
        matches!(self, Pass::Learn(_) | Pass::Sequences { judge: Some(_), .. })
    }

    /// Whether the layer is on.
    pub fn layer(&self) -> bool {
        !matches!(self, Pass::Sequences { layer: false, .. })
    }

    /// Whether sequences are compared with what they are without the layer.
    pub fn compares(&self) -> bool {
        matches!(self, Pass::Sequences { .. })
    }

    /// Whether tokens of a sequence count that are not trained.
    pub fn whole(&self, sequence: usize) -> bool {
        matches!(self, Pass::Sequences { sums, .. } if sums[sequence].whole)
    }
}

/// The head over one batch.
pub(super) struct Head<'a> {
    pub level: Level,
    pub backend: &'a mut dyn Backend,
    pub view: View<'a>,
    /// The trainer's own layer: rows are named to it.
    pub layer: &'a Lora,
    /// The layer that learns.
    pub learner: &'a dyn Backward,
    /// The layer, if it is on.
    pub worn: Option<&'a dyn Delta>,
    /// The end of the program, row by row, and its gradient.
    pub last: &'a [f32],
    pub d_last: &'a mut [f32],
    /// Names of the batch's rows, if any.
    pub names: &'a [u64],
    /// Tokens of the batch, of which the head needs only the number.
    pub tokens: &'a [u32],
    pub x: &'a mut [f32],
    pub dx: &'a mut [f32],
    pub logits: &'a mut [f32],
    pub losses: &'a Slots<f64>,
}

impl Head<'_> {
    /// Σ −log p over the targets, each with its weight.
    pub fn run(&mut self, targets: &[Target], pass: Pass<'_>) -> Result<f64> {
        let rows = self.x.len() / self.view.model.program().width;
        let mut loss = 0.0;
        match pass {
            Pass::Loss | Pass::Learn(_) => {
                let scale = if let Pass::Learn(scale) = pass { Some(scale) } else { None };
                for part in targets.chunks(rows) {
                    self.product(part)?;
                    match scale {
                        None => self.measure(part),
                        Some(scale) => self.differentiate(part, &|t| scale.all * scale.weight(t)),
                    }
                    // summed in row order, whoever computed them
                    let weight = |t: &Target| scale.map_or(1.0, |s| f64::from(s.weight(t)));
                    let losses = part.iter().enumerate().map(|(i, t)| weight(t) * *self.losses.read(i));
                    loss += losses.sum::<f64>();
                    finite(loss)?;
                    if scale.is_some() {
                        self.back(part);
                    }
                }
            }
            Pass::Sequences { sums, judge, .. } => {
                for part in targets.chunks(rows) {
                    self.product(part)?;
                    self.measure(part);
                    for (i, target) in part.iter().enumerate() {
                        let (sum, one) = (&mut sums[usize::from(target.sequence)], *self.losses.read(i));
                        // token by token: the same bits in whatever pass the sequence is
                        sum.trained -= if target.trained { one } else { 0.0 };
                        sum.text -= one;
                        loss += one;
                    }
                    finite(loss)?;
                }
                let Some(judge) = judge else { return Ok(loss) };
                judge(sums);
                let weight = |t: &Target| {
                    let [trained, text] = sums[usize::from(t.sequence)].slopes;
                    // of −log p
                    -(text + if t.trained { trained } else { 0.0 }) as f32
                };
                for part in targets.chunks(rows) {
                    if targets.len() > rows {
                        self.product(part)?;
                    }
                    self.differentiate(part, &weight);
                    self.back(part);
                }
            }
        }
        Ok(loss)
    }

    /// The logits of some targets.
    fn product(&mut self, part: &[Target]) -> Result<()> {
        let program = self.view.model.program();
        let (width, m) = (program.width, part.len());
        let own = self.worn.and_then(|d| d.vector(program.head.norm));
        let norm = own.as_ref().map_or(self.view.model.bound().vector(program.head.norm), |own| &own[..]);
        for (target, to) in part.iter().zip(self.x.chunks_exact_mut(width)) {
            let row = target.row as usize * width;
            rms_norm(self.level, &self.last[row..row + width], norm, program.head.eps, to);
        }
        self.layer.set_rows(part.iter().filter_map(|t| self.names.get(t.row as usize).copied()));
        let (whole, spans) = (0..m, [Span { first: 0, rows: m, delta: self.worn, ..Span::NONE }]);
        let batch = Batch { tokens: &self.tokens[..m], spans: &spans, pieces: std::slice::from_ref(&whole) };
        let at = (program.head.site, program.head.matrix);
        let (x, z) = (&self.x[..m * width], &mut self.logits[..m * program.vocabulary]);
        self.backend.product(&self.view, batch, at, x, z);
        self.backend.check()?;
        if let Some(delta) = self.worn.filter(|_| program.head.matrix == program.table()) {
            for (x, z) in x.chunks_exact(width).zip(z.chunks_exact_mut(program.vocabulary)) {
                delta.head(self.level, x, z);
            }
        }
        Ok(())
    }

    /// Their losses; the logits stay.
    fn measure(&mut self, part: &[Target]) {
        let (vocabulary, level, losses) = (self.view.model.program().vocabulary, self.level, self.losses);
        let rows = Chunks::new([&mut self.logits[..part.len() * vocabulary]], vocabulary);
        self.backend.each(part.len(), &|_| {
            let Some((i, [z])) = rows.next() else { return };
            *losses.get(i) = softmax::log_sum_exp(level, z) - f64::from(z[part[i].token as usize]);
        });
    }

    /// Their losses; the logits become gradients.
    fn differentiate(&mut self, part: &[Target], scale: &(dyn Fn(&Target) -> f32 + Sync)) {
        let (vocabulary, level, losses) = (self.view.model.program().vocabulary, self.level, self.losses);
        let rows = Chunks::new([&mut self.logits[..part.len() * vocabulary]], vocabulary);
        self.backend.each(part.len(), &|_| {
            let Some((i, [z])) = rows.next() else { return };
            *losses.get(i) = softmax::cross_entropy(level, z, part[i].token as usize, scale(&part[i]));
        });
    }

    /// Sends the gradients down to the end of the program.
    fn back(&mut self, part: &[Target]) {
        let program = self.view.model.program();
        let (width, m) = (program.width, part.len());
        let (whole, spans) = (0..m, [Span { first: 0, rows: m, delta: self.worn, ..Span::NONE }]);
        let batch = Batch { tokens: &self.tokens[..m], spans: &spans, pieces: std::slice::from_ref(&whole) };
        let at = (program.head.site, program.head.matrix);
        let (x, z) = (&self.x[..m * width], &self.logits[..m * program.vocabulary]);
        let dx = &mut self.dx[..m * width];
        dx.fill(0.0);
        if program.head.matrix == program.table() {
            let rows = x.chunks_exact(width).zip(z.chunks_exact(program.vocabulary));
            for ((x, z), dx) in rows.zip(dx.chunks_exact_mut(width)) {
                self.learner.head_back(self.level, x, z, dx);
            }
        }
        self.backend.product_back(&self.view, batch, at, x, z, Some(dx), self.learner);
        if self.learner.learns_vector(program.head.norm) {
            let dw = &mut self.x[..width]; // the rows in it are done with
            dw.fill(0.0);
            for (target, dx) in part.iter().zip(dx.chunks_exact(width)) {
                let row = target.row as usize * width;
                add_weight_back(self.level, &self.last[row..row + width], dx, program.head.eps, dw);
            }
            self.learner.vector_back(program.head.norm, dw);
        }
        let own = self.worn.and_then(|d| d.vector(program.head.norm));
        let norm = own.as_ref().map_or(self.view.model.bound().vector(program.head.norm), |own| &own[..]);
        for (target, dx) in part.iter().zip(dx.chunks_exact(width)) {
            let rows = target.row as usize * width..(target.row as usize + 1) * width;
            rms_norm_grad(
                self.level,
                &self.last[rows.clone()],
                norm,
                program.head.eps,
                dx,
                &mut self.d_last[rows],
            );
        }
    }
}

fn finite(loss: f64) -> Result<()> {
    match loss.is_finite() {
        true => Ok(()),
        false => Err(Error::expected(Kind::Numeric, "loss", "a finite number", loss)),
    }
}
