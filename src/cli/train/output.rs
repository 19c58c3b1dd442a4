//! Where the layer and the log go.

use crate::cli::terminal;
use anyhow::Result;
use onlay::adapter::Adapter;
use onlay::error::{Error, Kind, Place};
use onlay::model::Model;
use onlay::train::{Files, SLOTS, Store};
use serde_json::Value;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The output, which this process alone writes.
pub struct Output {
    path: PathBuf,
    overwrite: bool,
    lock: PathBuf,
    /// Held open: the lock goes with the process, however it ends.
    _held: File,
}

impl Output {
    /// Whether something can be written there.
    pub fn check(path: &Path, overwrite: bool) -> onlay::Result<()> {
        let wrong = |kind, text: &str| Err(Error::new(kind, text).at(Place::Path(path.into())));
        let Some(_) = path.file_name() else { return wrong(Kind::Argument, "the path names no file") };
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty())
            && !directory.is_dir()
        {
            let text = format!("the directory {} does not exist", directory.display());
            return wrong(Kind::Io, &text);
        }
        match fs::symlink_metadata(path) {
            Ok(_) if !overwrite => wrong(Kind::Argument, "exists; --overwrite replaces it"),
            Ok(found) if found.is_dir() == is_file(path) => {
                wrong(Kind::Argument, if found.is_dir() { "is a directory" } else { "is not a directory" })
            }
            _ => Ok(()),
        }
    }

    /// Takes the place, so that two runs never write the same checkpoints.
    pub fn claim(path: &Path, overwrite: bool) -> Result<Output> {
        let mut lock = without_slash(path).into_os_string();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let held = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .map_err(|e| Error::io("create", &lock, e))?;
        match held.try_lock() {
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!(
                    "{}: another process is training to it ({} is locked)",
                    path.display(),
                    lock.display()
                )
            }
            // A file system without locks must not keep anyone from training.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Output { path: path.into(), overwrite, lock, _held: held })
    }

    /// The path without a last slash.
    pub fn path(&self) -> PathBuf {
        without_slash(&self.path)
    }

    /// The name of the layer.
    pub fn name(&self) -> String {
        self.path.file_stem().map_or("layer".into(), |s| s.to_string_lossy().into_owned())
    }

    /// Writes the layer, and says how many bytes it takes.
    pub fn write(&self, adapter: &Adapter, model: &Model) -> Result<u64> {
        if is_file(&self.path) {
            let warnings = adapter.write_gguf(&self.path, model, self.overwrite)?;
            warnings.iter().for_each(|w| terminal::warn(format_args!("{}: {w}", self.path.display())));
            return Ok(fs::metadata(&self.path).map_or(0, |m| m.len()));
        }
        adapter.write_peft(&self.path, model, self.overwrite)?;
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        Ok(entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.lock);
    }
}

/// Whether a run to this output begins where nobody else's work lies.
pub fn no_checkpoint(path: &Path, known: bool) -> onlay::Result<()> {
    let files = Files::beside(without_slash(path));
    let there = (0..SLOTS).map(|slot| files.place(slot)).find(|place| place.exists());
    match there.filter(|_| !known) {
        None => Ok(()),
        Some(place) => {
            let text = "a checkpoint of an earlier run: --resume goes on with it, --overwrite begins again";
            Err(Error::new(Kind::Argument, text).at(Place::Path(place.into())))
        }
    }
}

/// A path that ends in a slash is a PEFT directory.
fn is_file(path: &Path) -> bool {
    !path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// One JSON object per step.
pub struct Log {
    path: PathBuf,
    file: File,
    failed: bool,
}

impl Log {
    /// A new log; or, in a run that is continued, the old one up to `done` steps: what was taken after the checkpoint
    /// will be taken again.
    pub fn open(path: &Path, done: u64, resume: bool) -> Result<Log> {
        let io = |what: &str, e| Error::io(what, path, e);
        let mut kept = String::new();
        if resume && path.exists() {
            let old = fs::read_to_string(path).map_err(|e| io("read", e))?;
            let step = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
            for line in old.lines().filter(|l| step(l).is_some_and(|s| s <= done)) {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        let mut file = File::create(path).map_err(|e| io("create", e))?;
        file.write_all(kept.as_bytes()).map_err(|e| io("write", e))?;
        Ok(Log { path: path.into(), file, failed: false })
    }

    /// Adds a line. A log that cannot be written is said once and does not end the run.
    pub fn add(&mut self, line: &Value) {
        if let Err(e) = writeln!(self.file, "{line}")
            && !self.failed
        {
            self.failed = true;
            terminal::warn(format_args!("{}: the log has holes from here on: {e}", self.path.display()));
        }
    }
}
