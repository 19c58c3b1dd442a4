//! The registers of a program: planned once, then only borrowed.

use super::mat::{Mat, MatMut};
use std::cell::{Ref, RefCell, RefMut};
use std::ops::Deref;

/// Names a register of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u16);

/// One allocation per register, `capacity` rows each; of these the first `rows` are in use.
///
/// Steps borrow the registers they name; reading what is being written is a defect of a step and panics.
#[derive(Debug)]
pub struct Frame {
    registers: Vec<RefCell<Vec<f32>>>,
    cols: Vec<usize>,
    rows: usize,
    capacity: usize,
}

/// A register being read.
pub struct Reading<'a>(Ref<'a, [f32]>, usize);

impl Reading<'_> {
    /// Its rows.
    pub fn mat(&self) -> Mat<'_> {
        Mat::new(&self.0, self.1)
    }
}

impl Deref for Reading<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

/// A register being written.
pub struct Writing<'a>(RefMut<'a, [f32]>, usize);

impl Writing<'_> {
    /// Its rows.
    pub fn mat(&mut self) -> MatMut<'_> {
        MatMut::new(&mut self.0, self.1)
    }
}

impl Frame {
    /// Registers of `cols[i]` columns and up to `capacity` rows.
    pub fn new(cols: &[usize], capacity: usize) -> Self {
        Frame {
            registers: cols.iter().map(|c| RefCell::new(vec![0.0; c * capacity])).collect(),
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
        let cols = self.cols[usize::from(r.0)];
        let len = cols * self.rows;
        Reading(Ref::map(self.registers[usize::from(r.0)].borrow(), |v| &v[..len]), cols)
    }

    /// Borrows a register for writing.
    pub fn write(&self, r: Register) -> Writing<'_> {
        let cols = self.cols[usize::from(r.0)];
        let len = cols * self.rows;
        Writing(RefMut::map(self.registers[usize::from(r.0)].borrow_mut(), |v| &mut v[..len]), cols)
    }

    /// Fills every register's rows in use with zeros: gradients are added.
    pub fn clear(&mut self) {
        for (register, cols) in self.registers.iter_mut().zip(&self.cols) {
            register.get_mut()[..cols * self.rows].fill(0.0);
        }
    }
}
