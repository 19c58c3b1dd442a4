//! The engine's own threads.
//!
//! A guest in someone's process does not borrow a global pool and does not keep cores warm: the workers spin for some
//! tens of microseconds after a job, so that the next step of the same token finds them awake, then park. Between
//! tokens nothing runs. On a busy machine whoever waits gives the core away instead of burning it.
//!
//! A polite team is for work that nobody waits for: its members are threads of lowest priority, the caller, whose priority is the
//! host's business, is none of them (it does what is too little to be divided), and nobody ever spins.

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
    /// Who is to be woken when the last worker of a polite team has finished.
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

/// How many threads, and how they behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// How many.
    pub count: usize,
    /// They let every other program go first: lowest priority (on Linux nice 19, on Apple's systems that of background work;
    /// elsewhere it stays as it is), and no waiting by spinning. Not less memory, not another result.
    pub polite: bool,
}

impl From<usize> for Threads {
    fn from(count: usize) -> Self {
        Threads { count, polite: false }
    }
}

/// A fixed set of threads, the caller among them unless it is polite, that do one job at a time together.
pub struct Team {
    polite: bool,
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

    /// A team of `threads` members, the caller included unless they are polite.
    ///
    /// # Errors
    /// `Argument` for 0 or more than 1,024 members; `Io` if the system gives no more threads.
    pub fn new(threads: impl Into<Threads>) -> Result<Self> {
        let Threads { count: members, polite } = threads.into();
        if !(1..=1024).contains(&members) {
            return Err(Error::expected(Kind::Argument, "threads", "1 to 1024", members));
        }
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            busy: AtomicUsize::new(0),
            asleep: (0..members).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        });
        let mut team = Team { polite, shared: Arc::clone(&shared), threads: Vec::new(), wake: Vec::new() };
        for number in usize::from(!polite)..members {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("onlay-{number}"))
                .spawn(move || work(&shared, number, polite))
                .map_err(|e| {
                    Error::new(Kind::Io, format!("cannot start thread {number} of {members}: {e}"))
                })?;
            team.wake.push(thread.thread().clone());
            team.threads.push(thread);
        }
        Ok(team)
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.threads.len() + usize::from(!self.polite)
    }

    /// Whether the caller does everything.
    pub fn is_alone(&self) -> bool {
        self.threads.is_empty()
    }

    /// Never.
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
        if self.polite {
            *shared.caller.lock().expect("no member panics holding the caller") =
                Some(std::thread::current());
        }
        shared.busy.store(self.threads.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, thread) in shared.asleep[usize::from(!self.polite)..].iter().zip(&self.wake) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let mine = if self.polite { Ok(()) } else { catch_unwind(AssertUnwindSafe(|| job(0))) };
        let done = || shared.busy.load(Ordering::Acquire) == 0;
        if self.polite {
            while !done() {
                std::thread::park();
            }
        } else if !spin(done) {
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
        if n == 0 || n == 1 && !self.polite || self.threads.is_empty() {
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

/// Gives the calling thread the lowest priority there is for ordinary work.
#[allow(unsafe_code)]
fn step_back() {
    // a system that refuses leaves the thread as it is: a request, not a promise
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the call takes three numbers; 0 names the calling thread, for Linux has priorities by thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
    #[cfg(target_vendor = "apple")]
    // SAFETY: the call takes three numbers; 0 names the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_DARWIN_THREAD, 0, libc::PRIO_DARWIN_BG);
    }
}

fn work(shared: &Shared, number: usize, polite: bool) {
    if polite {
        step_back();
    }
    let mut seen = 0;
    loop {
        let news = || shared.epoch.load(Ordering::SeqCst) != seen;
        if polite || !spin(news) {
            while !news() {
                // Say so first, look again, then sleep: the caller either sees the flag or we see its epoch.
                shared.asleep[number].store(true, Ordering::SeqCst);
                if !news() {
                    std::thread::park();
                }
                shared.asleep[number].store(false, Ordering::SeqCst);
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
        // whoever was last says so; taken out before, for the caller may be gone as soon as nobody is busy
        let caller =
            polite.then(|| shared.caller.lock().expect("no member panics holding the caller").clone());
        if shared.busy.fetch_sub(1, Ordering::Release) == 1
            && let Some(Some(caller)) = caller
        {
            caller.unpark();
        }
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
    fn polite_members_do_the_same_without_the_caller() {
        let caller = std::thread::current().id();
        for count in [1, 2, 3] {
            let mut team = Team::new(Threads { count, polite: true }).unwrap();
            assert_eq!(team.len(), count);
            let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..100 {
                team.run(&|m| {
                    assert_ne!(std::thread::current().id(), caller);
                    hits[m].fetch_add(1, Ordering::Relaxed);
                });
                let seen = AtomicUsize::new(0);
                team.each(round % 3, |_, i| {
                    assert_ne!(std::thread::current().id(), caller);
                    seen.fetch_add(i + 1, Ordering::Relaxed);
                });
                assert_eq!(seen.into_inner(), [0, 1, 3][round % 3]);
            }
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 100));
            let caught = catch_unwind(AssertUnwindSafe(|| team.run(&|m| assert!(m != 0, "member 0"))));
            assert!(caught.is_err());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn polite_members_step_back_and_the_caller_does_not() {
        // the nineteenth number of the line, counted behind the name in brackets
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let behind = stat.rsplit_once(')').unwrap().1;
            behind.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let mut team = Team::new(Threads { count: 2, polite: true }).unwrap();
        team.run(&|_| assert_eq!(nice(), 19));
        assert_eq!(nice(), before);
        let mut team = Team::new(2).unwrap();
        team.run(&|_| assert_eq!(nice(), before));
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
