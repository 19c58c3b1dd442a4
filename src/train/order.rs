//! In which order rows are learned from.
//!
//! ```text
//! epoch     all rows once: in the file's order, or shuffled by (seed, epoch)
//! window    the next batch_size × grad_accumulation rows of the epoch: one optimiser step. The last window of an epoch
//!           is what is left; none reaches into the next
//! pass      the rows of a window that are computed together, as many as fit the planned memory
//! ```
//! The loss of a step is the mean over the trained tokens of its window, and dropout draws by a row's place in the
//! window. How a window is cut into passes, and how the rows are spread over them, changes nothing but the order of
//! floating-point sums; `batch_size` and `grad_accumulation` count only as their product, to the bit.
//!
//! Where a run stands is a [`Cursor`]; it follows from the number of steps, and no generator has to be saved.

use super::{Set, Signal};
use crate::error::{Error, Findings, Kind, Result};
use crate::rng::{Rng, hash};

/// What seeds are mixed with, so that no two uses of one seed draw alike.
const SHUFFLE: u64 = u64::from_le_bytes(*b"shuffle ");
const SPLIT: u64 = u64::from_le_bytes(*b"split   ");

/// Where in its data a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Epochs completed.
    pub epoch: u64,
    /// Rows of this epoch that are done.
    pub row: u64,
}

/// The windows of a run, one after the other.
#[derive(Clone, Debug)]
pub struct Order {
    window: usize,
    seed: u64,
    shuffle: bool,
    /// The epoch whose order is at hand.
    epoch: u64,
    rows: Vec<u32>,
}

impl Order {
    /// The order of `rows` rows in windows of `batch_size · grad_accumulation`.
    ///
    /// # Errors
    /// `Argument` listing what is 0 or too many; `Data` if there are no rows.
    pub fn new(
        rows: usize,
        batch_size: usize,
        grad_accumulation: usize,
        seed: u64,
        shuffle: bool,
    ) -> Result<Self> {
        let mut wrong = Findings::default();
        for (name, n) in [("batch-size", batch_size), ("grad-accumulation", grad_accumulation)] {
            if n == 0 {
                wrong.push(Error::expected(Kind::Argument, name, "at least 1", 0));
            }
        }
        let window = batch_size.checked_mul(grad_accumulation).filter(|n| *n <= u32::MAX as usize);
        if window.is_none() {
            let what = "batch-size · grad-accumulation";
            let found = format!("{batch_size} · {grad_accumulation}");
            wrong.push(Error::expected(Kind::Argument, what, format!("at most {}", u32::MAX), found));
        }
        if rows == 0 || rows > u32::MAX as usize {
            wrong.push(Error::expected(Kind::Data, "rows to learn from", "1 to 2³² − 1", rows));
        }
        wrong.refuse("rows cannot be put in order")?;
        let window = window.unwrap_or(1).min(rows);
        let mut order = Order { window, seed, shuffle, epoch: 0, rows: (0..rows as u32).collect() };
        order.draw(0);
        Ok(order)
    }

    /// Rows of a full window.
    pub fn rows_of_window(&self) -> usize {
        self.window
    }

    /// Windows of an epoch.
    pub fn windows(&self) -> u64 {
        self.rows.len().div_ceil(self.window) as u64
    }

    /// Where a run stands after `steps` steps.
    pub fn cursor(&self, steps: u64) -> Cursor {
        let (epoch, window) = (steps / self.windows(), steps % self.windows());
        Cursor { epoch, row: window * self.window as u64 }
    }

    /// The rows of the window at a cursor, by number.
    pub fn window(&mut self, at: Cursor) -> &[u32] {
        if self.shuffle && self.epoch != at.epoch {
            self.draw(at.epoch);
        }
        let first = usize::try_from(at.row).unwrap_or(usize::MAX).min(self.rows.len());
        &self.rows[first..self.rows.len().min(first.saturating_add(self.window))]
    }

    fn draw(&mut self, epoch: u64) {
        self.epoch = epoch;
        if self.shuffle {
            self.rows.iter_mut().zip(0..).for_each(|(row, i)| *row = i);
            Rng::new(hash(self.seed, &[SHUFFLE, epoch])).shuffle(&mut self.rows);
        }
    }
}

/// The most that is computed in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of all sequences together.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// The longest sequence, in rows of its own.
    pub context: usize,
    /// Rows in front of every sequence: the layer's virtual tokens.
    pub front: usize,
}

/// Cuts windows into passes; keeps its memory between them.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    /// Rows and sequences of each pass so far.
    filled: Vec<(usize, usize)>,
    /// Examples in the order of the passes they are in.
    order: Vec<u32>,
    /// For each example its pass; then where each pass ends in `order`.
    pass: Vec<u32>,
    ends: Vec<usize>,
}

impl Passes {
    /// Spreads examples, of which the i-th takes `rows(i)` rows besides those in front, over passes: each goes to the first pass that has
    /// room for it (`pack`), or to the last one or a new one. Deterministic.
    ///
    /// # Errors
    /// `Data` listing all examples that do not fit a pass alone.
    pub fn cut(&mut self, n: usize, rows: impl Fn(usize) -> usize, pack: bool, limits: Limits) -> Result<()> {
        let mut wrong = Findings::default();
        self.filled.clear();
        self.pass.clear();
        let most = limits.rows.saturating_sub(limits.front).min(limits.context);
        for i in 0..n {
            let need = rows(i);
            if need > most {
                let what = format!("length of sequence {i}");
                wrong.push(Error::expected(
                    Kind::Data,
                    &what,
                    format!("at most {} tokens", most + 1),
                    need + 1,
                ));
                continue;
            }
            let need = need + limits.front;
            let fits = |f: &(usize, usize)| f.0 + need <= limits.rows && f.1 < limits.sequences;
            let from = if pack { 0 } else { self.filled.len().saturating_sub(1) };
            let at = match self.filled[from..].iter().position(fits) {
                Some(at) => from + at,
                None => {
                    self.filled.push((0, 0));
                    self.filled.len() - 1
                }
            };
            self.filled[at].0 += need;
            self.filled[at].1 += 1;
            self.pass.push(at as u32);
        }
        wrong.refuse("sequences that do not fit")?;
        // where each pass begins, which moves to where it ends as it is filled
        self.ends.clear();
        let mut begin = 0;
        for (_, sequences) in &self.filled {
            self.ends.push(begin);
            begin += sequences;
        }
        self.order.clear();
        self.order.resize(n, 0);
        for (i, pass) in self.pass.iter().enumerate() {
            let end = &mut self.ends[*pass as usize];
            self.order[*end] = i as u32;
            *end += 1;
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The examples of a pass, by number.
    pub fn get(&self, pass: usize) -> &[u32] {
        let begin = if pass == 0 { 0 } else { self.ends[pass - 1] };
        &self.order[begin..self.ends[pass]]
    }
}

/// Divides a set into what is learned from and what is only evaluated: a share of the rows, drawn by `seed`, both parts
/// in the order they had. Of a single document the last pieces are held out.
///
/// # Errors
/// `Argument` for a share outside 0..1; `Data` if there is nothing to divide.
pub fn split(set: Set, share: f64, seed: u64) -> Result<(Set, Set)> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::expected(Kind::Argument, "eval-split", "above 0 and below 1", share));
    }
    let mut rows: Vec<usize> = set.origins.iter().map(|o| o.row).collect();
    rows.dedup();
    let by_row = rows.len() > 1 || set.signal() != Signal::Shown; // a pair is never divided
    let n = if by_row { rows.len() } else { set.examples.len() };
    if n < 2 {
        return Err(Error::new(Kind::Data, "one row cannot be divided into training and evaluation"));
    }
    let held = ((share * n as f64).round() as usize).clamp(1, n - 1);
    let mut out = vec![false; n];
    if by_row {
        let mut order: Vec<usize> = (0..n).collect();
        Rng::new(hash(seed, &[SPLIT])).shuffle(&mut order);
        order[..held].iter().for_each(|i| out[*i] = true);
    } else {
        out[n - held..].fill(true);
    }
    let mut parts = (Set::default(), Set::default());
    let mut unit = 0;
    let both = set.examples.into_iter().zip(set.origins);
    for (i, (example, origin)) in both.enumerate() {
        if by_row {
            unit += usize::from(origin.row != rows[unit]);
        } else {
            unit = i;
        }
        let part: &mut Set = if out[unit] { &mut parts.1 } else { &mut parts.0 };
        part.examples.push(example);
        part.origins.push(origin);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Example, Origin};

    #[test]
    fn every_epoch_has_every_row_once_and_the_cursor_finds_its_window() {
        for (rows, batch, shuffle) in
            [(10, 3, true), (12, 4, true), (7, 9, true), (5, 1, false), (1, 1, true)]
        {
            let mut order = Order::new(rows, batch, 1, 42, shuffle).unwrap();
            let mut again = Order::new(rows, 1, batch, 42, shuffle).unwrap();
            let per = order.windows();
            assert_eq!(per, rows.div_ceil(batch.min(rows)) as u64);
            let mut epochs = Vec::new();
            for epoch in 0..3 {
                let mut all = Vec::new();
                for step in epoch * per..(epoch + 1) * per {
                    let cursor = order.cursor(step);
                    assert_eq!(cursor.epoch, epoch);
                    all.extend_from_slice(order.window(cursor));
                    // any window at any time, as a run that is continued asks
                    let jump = again.cursor(1000 - step);
                    again.window(jump);
                    assert_eq!(order.window(cursor), again.window(cursor));
                }
                let mut sorted = all.clone();
                sorted.sort_unstable();
                assert!(sorted.iter().copied().eq(0..rows as u32), "{all:?}");
                epochs.push(all);
            }
            assert_eq!(epochs[0] != epochs[1], shuffle && rows > 1);
        }
        let other = Order::new(100, 100, 1, 43, true).unwrap().rows;
        assert_ne!(other, Order::new(100, 100, 1, 42, true).unwrap().rows);
        assert_eq!(Order::new(0, 0, 0, 0, true).unwrap_err().findings().len(), 3);
        assert!(Order::new(1, usize::MAX, 2, 0, true).is_err());
    }

    #[test]
    fn packing_fills_passes_and_loses_nothing() {
        let limits = Limits { rows: 10, sequences: 3, context: 9, front: 0 };
        let lengths = [6, 6, 4, 3, 1, 9, 1, 1, 0];
        let mut passes = Passes::default();
        passes.cut(lengths.len(), |i| lengths[i], true, limits).unwrap();
        let all: Vec<&[u32]> = (0..passes.len()).map(|p| passes.get(p)).collect();
        assert_eq!(all, [&[0, 2, 8][..], &[1, 3, 4], &[5, 6], &[7]]);
        passes.cut(lengths.len(), |i| lengths[i], false, limits).unwrap();
        let all: Vec<&[u32]> = (0..passes.len()).map(|p| passes.get(p)).collect();
        assert_eq!(all, [&[0][..], &[1, 2], &[3, 4], &[5, 6], &[7, 8]]);
        let error = passes.cut(3, |i| [10, 9, 11][i], true, limits).unwrap_err();
        assert_eq!(error.findings().len(), 2, "{error}");
        // two rows in front of each
        let led = Limits { front: 2, ..limits };
        passes.cut(4, |i| [4, 3, 2, 8][i], true, led).unwrap();
        let all: Vec<&[u32]> = (0..passes.len()).map(|p| passes.get(p)).collect();
        assert_eq!(all, [&[0, 2][..], &[1], &[3]]);
        let error = passes.cut(2, |i| [8, 9][i], true, led).unwrap_err().to_string();
        assert!(error.contains("at most 9 tokens") && error.contains("found 10"), "{error}");
        passes.cut(0, |_| 0, true, limits).unwrap();
        assert!(passes.is_empty());
    }

    fn set(rows: &[usize]) -> Set {
        let example = |i: usize| Example { tokens: vec![i as u32; 3], trained: vec![false, true, true] };
        Set {
            examples: (0..rows.len()).map(example).collect(),
            origins: rows.iter().map(|row| Origin { row: *row, ..Origin::default() }).collect(),
        }
    }

    #[test]
    fn a_split_keeps_rows_whole_and_in_order() {
        let rows: Vec<usize> = (0..40).map(|i| i / 2 * 3).collect(); // two pieces of each of 20 rows
        let (train, eval) = split(set(&rows), 0.25, 1).unwrap();
        assert_eq!((train.facts().rows, eval.facts().rows), (15, 5));
        assert_eq!((train.facts().examples, eval.facts().examples), (30, 10));
        for part in [&train, &eval] {
            assert!(part.examples.windows(2).all(|w| w[0].tokens < w[1].tokens));
        }
        assert!(eval.origins.iter().all(|o| !train.origins.contains(o)));
        assert_ne!(split(set(&rows), 0.25, 2).unwrap().1, eval);
        assert_eq!(split(set(&rows), 0.25, 1).unwrap().1, eval);
        // a single document
        let (train, eval) = split(set(&[0; 10]), 0.1, 1).unwrap();
        assert_eq!((train.examples.len(), &eval.examples[0].tokens), (9, &vec![9; 3]));
        assert!(split(set(&[0]), 0.5, 1).is_err() && split(set(&[0, 1]), 1.0, 1).is_err());
        assert!(split(set(&[0, 1]), f64::NAN, 1).is_err());
        assert_eq!(split(set(&[0, 1]), 0.01, 1).unwrap().1.examples.len(), 1);
    }
}
