//! The words of a program.

use super::{Add, Attend, Embed, Gate, Host, Linear, Norm, Rotate};
use crate::tensor::Register;

/// Names a bound matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MatrixId(pub u32);

/// Names a bound vector (a norm's weight, a bias), held as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VectorId(pub u32);

/// An operation: both halves, or none.
pub trait Operation {
    /// Registers it reads.
    fn reads(&self) -> Vec<Register>;
    /// Registers it writes (in place, if it also reads them).
    fn writes(&self) -> Vec<Register>;
    /// Computes what it writes from what it reads, for the rows of the host's batch.
    fn forward(&self, host: &mut Host<'_>);
    /// Adds to the gradients of what it reads from the gradients of what it wrote. The forward registers hold what the
    /// forward pass left in them.
    fn backward(&self, host: &mut Host<'_>);
}

/// One step of a program.
#[derive(Clone, Debug)]
pub enum Step {
    /// Rows of a table.
    Embed(Embed),
    /// Root-mean-square normalisation, of rows or of heads.
    Norm(Norm),
    /// Products with base matrices that share their input.
    Linear(Linear),
    /// Rotary positions, in place.
    Rotate(Rotate),
    /// Causal attention over the cached keys and values.
    Attend(Attend),
    /// SwiGLU.
    Gate(Gate),
    /// A sum: the residual stream.
    Add(Add),
}

impl Step {
    /// The step as an operation.
    pub fn operation(&self) -> &dyn Operation {
        match self {
            Step::Embed(s) => s,
            Step::Norm(s) => s,
            Step::Linear(s) => s,
            Step::Rotate(s) => s,
            Step::Attend(s) => s,
            Step::Gate(s) => s,
            Step::Add(s) => s,
        }
    }

    /// The word.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Embed(_) => "embed",
            Step::Norm(_) => "norm",
            Step::Linear(_) => "linear",
            Step::Rotate(_) => "rotate",
            Step::Attend(_) => "attend",
            Step::Gate(_) => "gate",
            Step::Add(_) => "add",
        }
    }
}
