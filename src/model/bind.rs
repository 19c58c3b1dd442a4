//! A program's names bound to a file's tensors: shapes checked, matrices left where they lie, vectors as f32.

use super::program::Program;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::ops::{MatrixId, VectorId};
use crate::tensor::{Location, Matrix, Storage, Weights};
use onlay_kernels::Level;
use std::sync::Arc;

/// Bound weights; the matrices stay in the map.
#[derive(Debug)]
pub struct Bound {
    weights: Arc<Weights>,
    matrices: Vec<BoundMatrix>,
    vectors: Vec<Vec<f32>>,
}

#[derive(Clone, Copy, Debug)]
struct BoundMatrix {
    storage: Storage,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    at: Location,
}

impl Bound {
    /// Finds every matrix and vector of `program` in `weights`.
    ///
    /// # Errors
    /// All tensors that are missing, misshapen, of a type without kernels, or (vectors) not finite, in one refusal.
    pub fn new(program: &Program, weights: Arc<Weights>) -> Result<Self> {
        let mut wrong = Findings::default();
        let mut matrices = Vec::new();
        for m in &program.matrices {
            let found = weights.need(&m.name).and_then(|t| Matrix::shaped(t, m.rows, m.cols));
            if let (Some(found), Some(at)) = (wrong.keep(found), weights.locate(&m.name)) {
                let Matrix { storage, rows, cols, row_bytes, .. } = found;
                matrices.push(BoundMatrix { storage, rows, cols, row_bytes, at });
            }
        }
        let mut vectors = Vec::new();
        for v in &program.vectors {
            let found = weights.need(&v.name).and_then(|t| Matrix::shaped(t, 1, v.len));
            let Some(found) = wrong.keep(found) else { continue };
            let mut numbers = vec![0.0; v.len];
            found.decode(Level::PORTABLE, 0, 0, &mut numbers);
            if let Some((i, bad)) = numbers.iter().enumerate().find(|(_, x)| !x.is_finite()) {
                let place = Place::Tensor(v.name.clone());
                wrong.push(Error::expected(Kind::Numeric, &format!("number {i}"), "finite", bad).at(place));
            }
            vectors.push(numbers);
        }
        wrong.refuse("the weights do not fit the architecture").map_err(|e| e.in_file(weights.path()))?;
        Ok(Bound { weights, matrices, vectors })
    }

    /// A matrix, borrowed from the map.
    pub fn matrix(&self, id: MatrixId) -> Matrix<'_> {
        let BoundMatrix { storage, rows, cols, row_bytes, at } = self.matrices[id.0 as usize];
        Matrix { storage, rows, cols, row_bytes, bytes: self.weights.at(at) }
    }

    /// A vector.
    pub fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.0 as usize]
    }

    /// How each matrix is stored.
    pub fn storage(&self) -> Vec<Storage> {
        self.matrices.iter().map(|m| m.storage).collect()
    }

    /// The weights.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Bytes of vectors held outside the map.
    pub fn vector_bytes(&self) -> u64 {
        self.vectors.iter().map(|v| 4 * v.len() as u64).sum()
    }

    /// Looks through all matrices for the first number that is not finite: what to say when logits are not.
    pub fn first_not_finite(&self, program: &Program) -> Option<Error> {
        let mut row = Vec::new();
        for (info, id) in program.matrices.iter().zip(0..) {
            let m = self.matrix(MatrixId(id));
            row.resize(m.cols, 0.0);
            for r in 0..m.rows {
                m.decode_row(r, &mut row);
                if let Some(c) = row.iter().position(|x| !x.is_finite()) {
                    let what = format!("weight at row {r}, column {c}");
                    let place = Place::Tensor(info.name.clone());
                    let error = Error::expected(Kind::Numeric, &what, "finite", row[c]).at(place);
                    return Some(error.in_file(self.weights.path()));
                }
            }
        }
        None
    }
}
