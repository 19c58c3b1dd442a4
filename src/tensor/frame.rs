//! The registers of a program: planned once, then only borrowed.

use super::mat::{Mat, MatMut};
use std::ops::Deref;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// Names a register of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u16);

/// One allocation per register, `capacity` rows each; of these the first `rows` are in use.
///
/// Steps borrow the registers they name; reading what is being written is a defect of a step and panics.
#[derive(Debug)]
pub struct Frame {
    registers: Vec<RwLock<Vec<f32>>>,
    cols: Vec<usize>,
    rows: usize,
    capacity: usize,
}

/// A register being read.
#[derive(Debug)]
pub struct Reading<'a> {
    numbers: RwLockReadGuard<'a, Vec<f32>>,
    len: usize,
    cols: usize,
}

impl Reading<'_> {
    /// Its rows.
    pub fn mat(&self) -> Mat<'_> {
        Mat::new(self, self.cols)
    }
}

impl Deref for Reading<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.numbers[..self.len]
    }
}

/// A register being written.
#[derive(Debug)]
pub struct Writing<'a> {
    numbers: RwLockWriteGuard<'a, Vec<f32>>,
    len: usize,
    cols: usize,
}

impl Writing<'_> {
    /// Its rows.
    pub fn mat(&mut self) -> MatMut<'_> {
        MatMut::new(&mut self.numbers[..self.len], self.cols)
    }
}

impl Frame {
    /// Registers of `cols[i]` columns and up to `capacity` rows.
    pub fn new(cols: &[usize], capacity: usize) -> Self {
        Frame {
            registers: cols.iter().map(|c| RwLock::new(vec![0.0; c * capacity])).collect(),
            cols: cols.to_vec(),
            rows: 0,
            capacity,
        }
    }

    /// Bytes that [`Frame::new`] will take.
    pub fn bytes(cols: &[usize], capacity: usize) -> u64 {
        4 * cols.iter().map(|c| *c as u64).sum::<u64>() * capacity as u64
    }

    /// Says how many rows the next steps work on. Panics beyond the capacity: the plan comes first.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.capacity, "{rows} rows in a frame planned for {}", self.capacity);
        self.rows = rows;
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Borrows a register for reading.
    pub fn read(&self, r: Register) -> Reading<'_> {
        let i = usize::from(r.0);
        let numbers = match self.registers[i].try_read() {
            Ok(numbers) => numbers,
            Err(TryLockError::Poisoned(p)) => p.into_inner(), // numbers of a step that panicked are still numbers
            Err(TryLockError::WouldBlock) => panic!("a step reads register {i} while it is written"),
        };
        Reading { numbers, len: self.cols[i] * self.rows, cols: self.cols[i] }
    }

    /// Borrows a register for writing.
    pub fn write(&self, r: Register) -> Writing<'_> {
        let i = usize::from(r.0);
        let numbers = match self.registers[i].try_write() {
            Ok(numbers) => numbers,
            Err(TryLockError::Poisoned(p)) => p.into_inner(),
            Err(TryLockError::WouldBlock) => panic!("a step writes register {i} while it is in use"),
        };
        Writing { numbers, len: self.cols[i] * self.rows, cols: self.cols[i] }
    }

    /// Fills every register's rows in use with zeros: gradients are added.
    pub fn clear(&mut self) {
        self.clear_all(None);
    }

    /// The same of all registers but one.
    pub fn clear_but(&mut self, kept: Register) {
        self.clear_all(Some(kept));
    }

    fn clear_all(&mut self, kept: Option<Register>) {
        for (i, (register, cols)) in self.registers.iter_mut().zip(&self.cols).enumerate() {
            if kept.is_none_or(|kept| usize::from(kept.0) != i) {
                let numbers = register.get_mut().unwrap_or_else(PoisonError::into_inner);
                numbers[..cols * self.rows].fill(0.0);
            }
        }
    }
}
