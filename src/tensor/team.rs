//! The engine's own threads.
//!
//! A guest in someone's process does not borrow a global pool and does not keep cores warm: the workers spin for some
//! tens of microseconds after a job, so that the next step of the same token finds them awake, then park. Between
//! tokens nothing runs. On a busy machine whoever waits gives the core away instead of burning it.

use crate::error::{Error, Kind, Result};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// A piece of work: called once on every member with its number, 0 being the caller.
type Job = &'static (dyn Fn(usize) + Sync);

/// How long a worker looks for the next job before it parks, and the caller for the last worker before it yields.
const PATIENCE: Duration = Duration::from_micros(40);

/// Looks for `ready` until patience ends.
fn spin(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        // A pause takes 10 to 50 ns, a look at the clock about as much as one.
        for _ in 0..32 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
    }
}

struct Shared {
    /// Counts jobs; a worker that sees a new number takes the job.
    epoch: AtomicUsize,
    job: Mutex<Option<Job>>,
    /// Workers that have not finished the current job.
    busy: AtomicUsize,
    /// Workers that are parked or about to be.
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

/// A fixed set of threads, the caller among them, that do one job at a time together.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    wake: Vec<Thread>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team of {}", self.len())
    }
}

impl Team {
    /// As many members as the machine has cores, but not more than 16: decoding waits for memory.
    pub fn default_len() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from).min(16)
    }

    /// A team of `members`, the caller included.
    ///
    /// # Errors
    /// `Argument` for 0 or more than 1,024 members; `Io` if the system gives no more threads.
    pub fn new(members: usize) -> Result<Self> {
        if !(1..=1024).contains(&members) {
            return Err(Error::expected(Kind::Argument, "threads", "1 to 1024", members));
        }
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            busy: AtomicUsize::new(0),
            asleep: (1..members).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Team { shared: Arc::clone(&shared), threads: Vec::new(), wake: Vec::new() };
        for number in 1..members {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("onlay-{number}"))
                .spawn(move || work(&shared, number))
                .map_err(|e| {
                    Error::new(Kind::Io, format!("cannot start thread {number} of {members}: {e}"))
                })?;
            team.wake.push(thread.thread().clone());
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Members, the caller included.
    pub fn len(&self) -> usize {
        self.threads.len() + 1
    }

    /// Never: the caller is a member.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Runs `job(member)` on every member at once and returns when all are done.
    ///
    /// A panic in any member is passed on to the caller after all have finished.
    #[allow(unsafe_code)]
    pub fn run(&mut self, job: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return job(0);
        }
        // SAFETY: the reference is forgotten by every worker before `busy` reaches 0, and this function does not
        // return, nor unwind, before that; so it never outlives the borrow whose lifetime is erased here.
        let forever: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        let shared = &*self.shared;
        *shared.job.lock().expect("no member panics holding the job") = Some(forever);
        shared.busy.store(self.threads.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, thread) in shared.asleep.iter().zip(&self.wake) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| job(0)));
        let done = || shared.busy.load(Ordering::Acquire) == 0;
        if !spin(done) {
            while !done() {
                std::thread::yield_now();
            }
        }
        let theirs = shared.panic.lock().expect("no member panics holding a panic").take();
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Runs `f(member, i)` for every i in 0..n, members taking the next i as they become free.
    pub fn each(&mut self, n: usize, f: impl Fn(usize, usize) + Sync) {
        if n <= 1 || self.threads.is_empty() {
            return (0..n).for_each(|i| f(0, i));
        }
        let next = AtomicUsize::new(0);
        self.run(&|member| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return;
                }
                f(member, i);
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A worker catches its job's panics, so there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, number: usize) {
    let mut seen = 0;
    loop {
        let news = || shared.epoch.load(Ordering::SeqCst) != seen;
        if !spin(news) {
            while !news() {
                // Say so first, look again, then sleep: the caller either sees the flag or we see its epoch.
                shared.asleep[number - 1].store(true, Ordering::SeqCst);
                if !news() {
                    std::thread::park();
                }
                shared.asleep[number - 1].store(false, Ordering::SeqCst);
            }
        }
        seen = shared.epoch.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let job = shared.job.lock().expect("no member panics holding the job").expect("an epoch has a job");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(number))) {
            shared.panic.lock().expect("no member panics holding a panic").get_or_insert(panic);
        }
        shared.busy.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_works_once_per_job() {
        for members in [1, 2, 3, 7] {
            let mut team = Team::new(members).unwrap();
            let count: Vec<AtomicUsize> = (0..members).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..300 {
                if round == 150 {
                    std::thread::sleep(Duration::from_millis(3)); // long enough to park
                }
                team.run(&|m| {
                    count[m].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(count.iter().all(|c| c.load(Ordering::Relaxed) == 300));
        }
        assert!(Team::new(0).is_err());
    }

    #[test]
    fn items_are_taken_once() {
        let mut team = Team::new(3).unwrap();
        let hits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        team.each(hits.len(), |_, i| {
            hits[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let mut team = Team::new(3).unwrap();
        for who in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|m| assert!(m != who, "member {who}"));
            }));
            assert!(caught.is_err());
        }
        let sum = AtomicUsize::new(0);
        team.run(&|m| {
            sum.fetch_add(m, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 3);
    }
}
