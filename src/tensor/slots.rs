//! One piece of memory per worker or per group, found by number.

use std::sync::{Mutex, MutexGuard};

/// Several `T`, each used by one worker at a time. The locks are never waited for; they let the compiler see it.
#[derive(Debug, Default)]
pub struct Slots<T>(Vec<Mutex<T>>);

impl<T> Slots<T> {
    /// `n` slots made by `make(number)`.
    pub fn new(n: usize, make: impl FnMut(usize) -> T) -> Self {
        Slots((0..n).map(make).map(Mutex::new).collect())
    }

    /// Slot `i`. A panic elsewhere leaves numbers behind, never a broken slot, so poison is ignored.
    pub fn get(&self, i: usize) -> MutexGuard<'_, T> {
        self.0[i].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
