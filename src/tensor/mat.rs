//! Rows of f32: views, and cutting one matrix into blocks that several workers write at once.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// `rows` rows of `cols` numbers, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    cols: usize,
}

impl<'a> Mat<'a> {
    /// A view of whole rows. Panics if `data` does not divide into rows of `cols`.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len() % cols == 0, "{} numbers are not rows of {cols}", data.len());
        Mat { data, cols }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.data.len() / self.cols
    }

    /// Numbers in a row.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(self, i: usize) -> &'a [f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Some rows.
    pub fn part(self, rows: Range<usize>) -> Mat<'a> {
        Mat { data: &self.data[rows.start * self.cols..rows.end * self.cols], cols: self.cols }
    }

    /// All numbers, row after row.
    pub fn data(self) -> &'a [f32] {
        self.data
    }
}

/// [`Mat`], writable.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    cols: usize,
}

impl<'a> MatMut<'a> {
    /// A view of whole rows. Panics if `data` does not divide into rows of `cols`.
    pub fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len() % cols == 0, "{} numbers are not rows of {cols}", data.len());
        MatMut { data, cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    /// Numbers in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// The same rows for a shorter while.
    pub fn again(&mut self) -> MatMut<'_> {
        MatMut { data: self.data, cols: self.cols }
    }

    /// Some rows.
    pub fn part(self, rows: Range<usize>) -> MatMut<'a> {
        MatMut { data: &mut self.data[rows.start * self.cols..rows.end * self.cols], cols: self.cols }
    }

    /// For reading.
    pub fn view(&self) -> Mat<'_> {
        Mat { data: self.data, cols: self.cols }
    }

    /// All numbers, row after row.
    pub fn data(self) -> &'a mut [f32] {
        self.data
    }
}

/// A rectangle of a matrix that one worker holds alone.
#[derive(Debug)]
pub struct Block<'a> {
    at: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    /// Nobody else writes between its rows.
    alone: bool,
    matrix: PhantomData<&'a mut [f32]>,
}

impl<'a> Block<'a> {
    /// The first `cols` columns of a whole matrix.
    pub fn alone(matrix: MatMut<'a>, cols: usize) -> Self {
        let (rows, stride) = (matrix.rows(), matrix.cols());
        assert!(cols <= stride, "{cols} of {stride} columns");
        Block { at: matrix.data().as_mut_ptr(), stride, rows, cols, alone: true, matrix: PhantomData }
    }

    /// All rows in one piece and what they lie apart, if nobody else writes between them.
    #[allow(unsafe_code)]
    pub fn flat(&mut self) -> Option<(&mut [f32], usize)> {
        // SAFETY: `alone` is set only for the whole of a matrix that this block borrows, `rows` rows of `stride` numbers.
        let all = || unsafe { std::slice::from_raw_parts_mut(self.at, self.rows * self.stride) };
        self.alone.then(all).map(|all| (all, self.stride))
    }

    /// Rows of the rectangle.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Its part of row `i`.
    #[allow(unsafe_code)]
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of a block of {}", self.rows);
        // SAFETY: `Grid::next` made this rectangle inside one live matrix and gives every rectangle out once, so
        // these `cols` numbers of row i are in bounds and nobody else reaches them while the block lives.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(i * self.stride), self.cols) }
    }
}

/// The number of a block's row range, its first columns, and its rectangle of every matrix.
pub type Taken<'a, const N: usize> = (usize, [usize; N], [Block<'a>; N]);

/// Words of bits for blocks that members claim.
const CLAIMS: usize = 16;

/// N matrices with the same rows, cut into row ranges × column widths; workers take the blocks one by one.
///
/// Block (r, c) holds rows `ranges[r]` and, of matrix m, columns `c·width[m] ..` (fewer in the last).
#[derive(Debug)]
pub struct Grid<'a, const N: usize> {
    at: [*mut f32; N],
    cols: [usize; N],
    width: [usize; N],
    across: usize,
    ranges: &'a [Range<usize>],
    taken: AtomicUsize,
    /// One bit for each block that somebody has.
    claimed: [AtomicU64; CLAIMS],
    matrices: PhantomData<&'a mut [f32]>,
}

#[allow(unsafe_code)]
// SAFETY: the pointers stand for matrices borrowed mutably for 'a, and `next` gives each part out only once, so
// sharing the grid shares no number.
unsafe impl<const N: usize> Sync for Grid<'_, N> {}

impl<'a, const N: usize> Grid<'a, N> {
    /// Cuts `matrices` at `ranges` of rows (ascending, not overlapping) and every `width[m]` columns.
    ///
    /// # Panics
    /// If ranges overlap or leave a matrix, or the matrices do not have the same number of blocks across.
    pub fn new(matrices: [MatMut<'a>; N], ranges: &'a [Range<usize>], width: [usize; N]) -> Self {
        let mut end = 0;
        for r in ranges {
            assert!(end <= r.start && r.start <= r.end, "row ranges must ascend");
            end = r.end;
        }
        let cols = std::array::from_fn(|m: usize| matrices[m].cols());
        let across: [usize; N] = std::array::from_fn(|m| cols[m].div_ceil(width[m]));
        for m in 0..N {
            assert!(end <= matrices[m].rows(), "rows 0..{end} of a matrix with {}", matrices[m].rows());
            assert_eq!(across[m], across[0], "the matrices of a grid have the same blocks across");
        }
        Grid {
            at: matrices.map(|m| m.data().as_mut_ptr()),
            cols,
            width,
            across: across[0],
            ranges,
            taken: AtomicUsize::new(0),
            claimed: [const { AtomicU64::new(0) }; CLAIMS],
            matrices: PhantomData,
        }
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.ranges.len() * self.across
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next block nobody has: its row range's number, its first columns, and its rectangle of every matrix.
    /// Blocks come column by column, so that neighbours in time share columns.
    pub fn next(&self) -> Option<Taken<'a, N>> {
        loop {
            let i = self.taken.fetch_add(1, Ordering::Relaxed);
            if i >= self.len() {
                return None;
            }
            if self.claim(i) {
                return Some(self.block(i));
            }
        }
    }

    /// Whether block `i` was nobody's until now. More blocks than there are bits are given out by the counter alone.
    fn claim(&self, i: usize) -> bool {
        self.len() > 64 * CLAIMS || {
            let (word, bit) = (&self.claimed[i / 64], 1 << (i % 64));
            word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        }
    }

    /// As [`Grid::next`], for one of `members` that each begin at a stretch of their own and help the others after that:
    /// what a member takes then lies one after the other in memory.
    pub fn next_for(&self, member: usize, members: usize) -> Option<Taken<'a, N>> {
        let len = self.len();
        if len > 64 * CLAIMS {
            return self.next();
        }
        let start = member * len / members;
        let i = (start..len).chain(0..start).find(|i| self.claim(*i))?;
        Some(self.block(i))
    }

    /// Block `i`, which nobody has and nobody else will be given.
    #[allow(unsafe_code)]
    fn block(&self, i: usize) -> Taken<'a, N> {
        assert!(i < self.len(), "block {i} of {}", self.len());
        let (c, r) = (i / self.ranges.len(), i % self.ranges.len());
        let first: [usize; N] = std::array::from_fn(|m| c * self.width[m]);
        let rows = &self.ranges[r];
        let blocks = std::array::from_fn(|m| Block {
            // SAFETY: row `rows.start` ≤ the matrix's rows and column `first` < its columns, by `new`; an offset of
            // at most the matrix's length stays in its allocation.
            at: unsafe { self.at[m].add(rows.start * self.cols[m] + first[m]) },
            stride: self.cols[m],
            rows: rows.len(),
            cols: self.width[m].min(self.cols[m] - first[m]),
            alone: false,
            matrix: PhantomData,
        });
        (r, first, blocks)
    }
}

/// N slices of one length cut into pieces of equal size (the last may be shorter); workers take the pieces one by one.
#[derive(Debug)]
pub struct Chunks<'a, T, const N: usize> {
    at: [*mut T; N],
    len: usize,
    size: usize,
    taken: AtomicUsize,
    slices: PhantomData<&'a mut [T]>,
}

#[allow(unsafe_code)]
// SAFETY: the pointers stand for slices borrowed mutably for 'a, and `next` gives each piece out only once.
unsafe impl<T: Send, const N: usize> Sync for Chunks<'_, T, N> {}

impl<'a, T, const N: usize> Chunks<'a, T, N> {
    /// Cuts `slices` into pieces of `size`. Panics if they differ in length.
    pub fn new(slices: [&'a mut [T]; N], size: usize) -> Self {
        let len = slices[0].len();
        assert!(size > 0 && slices.iter().all(|s| s.len() == len), "slices of one length, pieces of a size");
        Chunks {
            at: slices.map(|s| s.as_mut_ptr()),
            len,
            size,
            taken: AtomicUsize::new(0),
            slices: PhantomData,
        }
    }

    /// The next piece nobody has: its number, and that part of every slice.
    #[allow(unsafe_code)]
    pub fn next(&self) -> Option<(usize, [&'a mut [T]; N])> {
        let i = self.taken.fetch_add(1, Ordering::Relaxed);
        let first = i.checked_mul(self.size).filter(|f| *f < self.len)?;
        let len = self.size.min(self.len - first);
        // SAFETY: first + len ≤ the length of every slice, and the counter gives every i out once.
        Some((i, self.at.map(|at| unsafe { std::slice::from_raw_parts_mut(at.add(first), len) })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_belongs_to_one_block() {
        let (mut a, mut b) = (vec![0.0; 7 * 10], vec![0.0; 7 * 5]);
        let ranges = [0..3, 3..4, 5..7];
        let grid = Grid::new([MatMut::new(&mut a, 10), MatMut::new(&mut b, 5)], &ranges, [4, 2]);
        assert_eq!(grid.len(), 9);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    while let Some((_, _, mut blocks)) = grid.next() {
                        for block in &mut blocks {
                            for i in 0..block.rows() {
                                block.row(i).iter_mut().for_each(|v| *v += 1.0);
                            }
                        }
                    }
                });
            }
        });
        for (i, v) in a.iter().enumerate() {
            assert_eq!(*v, if i / 10 == 4 { 0.0 } else { 1.0 });
        }
        for (i, v) in b.iter().enumerate() {
            assert_eq!(*v, if i / 5 == 4 { 0.0 } else { 1.0 });
        }
    }

    #[test]
    fn members_begin_apart_and_take_every_block_once() {
        let all = 0..2;
        for cols in [1, 7, 300, 5000] {
            let mut a = vec![0.0; 2 * cols];
            let grid = Grid::new([MatMut::new(&mut a, cols)], std::slice::from_ref(&all), [3]);
            let (first, second) = (grid.next_for(0, 2).unwrap().1, grid.next_for(1, 2).map(|t| t.1));
            assert_eq!(first, [0]);
            assert!(grid.len() > 64 * CLAIMS || second.is_none_or(|s| s == [grid.len() / 2 * 3]));
            let grid = Grid::new([MatMut::new(&mut a, cols)], std::slice::from_ref(&all), [3]);
            std::thread::scope(|s| {
                for member in 0..3 {
                    let grid = &grid;
                    s.spawn(move || {
                        // one of them by the other way
                        let next = || if member == 2 { grid.next() } else { grid.next_for(member, 3) };
                        while let Some((_, _, [mut block])) = next() {
                            for i in 0..block.rows() {
                                block.row(i).iter_mut().for_each(|v| *v += 1.0);
                            }
                        }
                    });
                }
            });
            assert!(a.iter().all(|v| *v == 1.0));
        }
    }

    #[test]
    #[should_panic(expected = "ascend")]
    fn overlapping_ranges_are_refused() {
        let mut a = vec![0.0; 20];
        let ranges = [0..2, 1..2];
        let _ = Grid::new([MatMut::new(&mut a, 10)], &ranges, [4]);
    }
}
