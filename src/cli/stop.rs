//! Ctrl-C: the first asks long work to stop where nothing is lost, the second ends the process.

use onlay::train::Flow;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C only asks. Commands that can stop in the middle call this first.
pub fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
    })?;
    Ok(())
}

/// Whether somebody asked.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Forgets that somebody asked: a conversation goes on after an answer that was cut short.
pub fn forget() {
    ASKED.store(false, Ordering::Relaxed);
}

/// The same as an answer to the library.
pub fn flow() -> Flow {
    if asked() { Flow::Stop } else { Flow::Go }
}
