//! One piece of memory per worker or per group, found by number.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Several `T`, each written by one worker at a time and read by many after that. Steps are arranged so that nobody
/// waits for a lock; the locks let the compiler see that no two workers write one piece.
#[derive(Debug, Default)]
pub struct Slots<T>(Vec<RwLock<T>>);

impl<T> Slots<T> {
    /// `n` slots made by `make(number)`.
    pub fn new(n: usize, make: impl FnMut(usize) -> T) -> Self {
        Slots((0..n).map(make).map(RwLock::new).collect())
    }

    /// Slot `i`, to write. A panic elsewhere leaves numbers behind, never a broken slot, so poison is ignored.
    pub fn get(&self, i: usize) -> RwLockWriteGuard<'_, T> {
        self.0[i].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slot `i`, to read.
    pub fn read(&self, i: usize) -> RwLockReadGuard<'_, T> {
        self.0[i].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
