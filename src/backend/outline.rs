//! What a device must know of a program before its first step.

use crate::ops::{MatrixId, Tables};

/// The part of a device's plan that weights go through which do not fit.
pub const STREAMED: &str = "weights on their way";

/// A program and its weights, as far as a device's memory depends on them.
pub struct Outline<'a> {
    /// Bound weights.
    pub tables: &'a dyn Tables,
    /// How many matrices there are.
    pub matrices: usize,
    /// How many vectors.
    pub vectors: usize,
    /// The matrices of every segment.
    pub segments: Vec<Vec<MatrixId>>,
    /// That of the head.
    pub head: MatrixId,
    /// Inputs and outputs of every site.
    pub sites: Vec<[usize; 2]>,
    /// Bytes that layers and their gradients will take.
    pub layers: u64,
}
