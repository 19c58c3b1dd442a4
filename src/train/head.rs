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
use crate::backend::{Backend, End};
use crate::error::{Error, Kind, Result};
use crate::model::View;
use crate::ops::{Backward, Batch, Delta, Span};

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

/// Memory for some rows of the end.
#[derive(Debug)]
pub(super) struct Ends {
    rows: Vec<u32>,
    tokens: Vec<u32>,
    scales: Vec<f32>,
    losses: Vec<f64>,
}

impl Ends {
    pub fn new(rows: usize) -> Ends {
        let numbers = || Vec::with_capacity(rows);
        Ends { rows: numbers(), tokens: numbers(), scales: Vec::with_capacity(rows), losses: vec![0.0; rows] }
    }
}

/// The head over one batch.
pub(super) struct Head<'a> {
    pub backend: &'a mut dyn Backend,
    pub view: View<'a>,
    /// The trainer's own layer: rows are named to it.
    pub layer: &'a Lora,
    /// The layer that learns.
    pub learner: &'a dyn Backward,
    /// The layer, if it is on.
    pub worn: Option<&'a dyn Delta>,
    /// Names of the batch's rows, if any.
    pub names: &'a [u64],
    /// Tokens of the batch, of which the head needs only the number.
    pub tokens: &'a [u32],
    pub ends: &'a mut Ends,
}

impl Head<'_> {
    /// Σ −log p over the targets, each with its weight.
    pub fn run(&mut self, targets: &[Target], pass: Pass<'_>) -> Result<f64> {
        let rows = self.ends.losses.len();
        let mut loss = 0.0;
        match pass {
            Pass::Loss | Pass::Learn(_) => {
                let scale = if let Pass::Learn(scale) = pass { Some(scale) } else { None };
                for part in targets.chunks(rows) {
                    self.at(part, |end, head| {
                        head.backend.end(&head.view, end);
                        match scale {
                            None => head.measure(part),
                            Some(scale) => head.differentiate(part, &|t| scale.all * scale.weight(t)),
                        }?;
                        // summed in row order, whoever computed them
                        let weight = |t: &Target| scale.map_or(1.0, |s| f64::from(s.weight(t)));
                        let losses = part.iter().zip(&head.ends.losses);
                        loss += losses.map(|(t, l)| weight(t) * l).sum::<f64>();
                        finite(loss)?;
                        if scale.is_some() {
                            head.backend.end_back(&head.view, end, head.learner);
                        }
                        Ok(())
                    })?;
                }
            }
            Pass::Sequences { sums, judge, .. } => {
                for part in targets.chunks(rows) {
                    self.at(part, |end, head| {
                        head.backend.end(&head.view, end);
                        head.measure(part)
                    })?;
                    for (target, one) in part.iter().zip(&self.ends.losses) {
                        let sum = &mut sums[usize::from(target.sequence)];
                        // token by token: the same bits in whatever pass the sequence is
                        sum.trained -= if target.trained { *one } else { 0.0 };
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
                    self.at(part, |end, head| {
                        if targets.len() > rows {
                            head.backend.end(&head.view, end);
                        }
                        head.differentiate(part, &weight)?;
                        head.backend.end_back(&head.view, end, head.learner);
                        Ok(())
                    })?;
                }
            }
        }
        Ok(loss)
    }

    /// Does something at the end of the program over the rows of some targets.
    fn at(&mut self, part: &[Target], f: impl FnOnce(&End<'_>, &mut Self) -> Result<()>) -> Result<()> {
        let (m, program) = (part.len(), self.view.model.program());
        self.layer.set_rows(part.iter().filter_map(|t| self.names.get(t.row as usize).copied()));
        let (whole, spans) = (0..m, [Span { first: 0, rows: m, delta: self.worn, ..Span::NONE }]);
        let batch = Batch { tokens: &self.tokens[..m], spans: &spans, pieces: std::slice::from_ref(&whole) };
        let mut rows = std::mem::take(&mut self.ends.rows);
        rows.clear();
        rows.extend(part.iter().map(|t| t.row));
        let done = f(&program.end(&rows, batch), self);
        self.ends.rows = rows;
        done
    }

    /// Their losses; the logits stay.
    fn measure(&mut self, part: &[Target]) -> Result<()> {
        let Ends { tokens, losses, .. } = &mut *self.ends;
        tokens.clear();
        tokens.extend(part.iter().map(|t| t.token));
        self.backend.losses(tokens, None, &mut losses[..part.len()])
    }

    /// Their losses; the logits become gradients.
    fn differentiate(&mut self, part: &[Target], scale: &dyn Fn(&Target) -> f32) -> Result<()> {
        let Ends { tokens, scales, losses, .. } = &mut *self.ends;
        tokens.clear();
        tokens.extend(part.iter().map(|t| t.token));
        scales.clear();
        scales.extend(part.iter().map(scale));
        self.backend.losses(tokens, Some(scales), &mut losses[..part.len()])
    }
}

fn finite(loss: f64) -> Result<()> {
    match loss.is_finite() {
        true => Ok(()),
        false => Err(Error::expected(Kind::Numeric, "loss", "a finite number", loss)),
    }
}
