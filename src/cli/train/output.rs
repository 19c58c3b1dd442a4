//! Where the layer and the log go.

use crate::cli::terminal;
use anyhow::Result;
use onlay::adapter::Adapter;
use onlay::error::{Error, Kind, Place};
use onlay::format::files::{check_target, write_atomically};
use onlay::model::Model;
use onlay::train::{Files, Progress, SLOTS, Store};
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
    /// Whether something can be written there; it may not be what is read.
    pub fn check(path: &Path, overwrite: bool, reads: &[(&str, &Path)]) -> onlay::Result<()> {
        if is_file(path) {
            return check_target(path, overwrite, reads);
        }
        // A PEFT directory may be there; its files are replaced one by one.
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() && overwrite => Ok(()),
            _ => check_target(&without_slash(path), overwrite, reads),
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
        sweep(&without_slash(path));
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

/// Removes what processes that were killed left half written for this output. Nobody else writes it now.
pub fn sweep(output: &Path) {
    let Some(name) = output.file_name().map(|n| n.to_string_lossy().into_owned()) else { return };
    let mut beside = output.with_file_name("");
    if beside.as_os_str().is_empty() {
        beside = PathBuf::from(".");
    }
    let left = |found: &str| {
        let rest = found.strip_prefix('.')?.strip_suffix(".tmp")?.strip_prefix(&name)?;
        let rest = rest.strip_prefix(".checkpoint").unwrap_or(rest);
        // process, count, time
        let digits = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        (rest
            .strip_prefix(".2")
            .filter(|r| r.starts_with('.'))
            .unwrap_or(rest)
            .strip_prefix('.')
            .is_some_and(digits))
        .then_some(())
    };
    for entry in fs::read_dir(beside).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(left).is_some() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A checkpoint beside this output.
pub fn checkpoint(path: &Path) -> Option<PathBuf> {
    let files = Files::beside(without_slash(path));
    (0..SLOTS).map(|slot| files.place(slot)).find(|place| place.exists()).map(Path::to_path_buf)
}

/// Whether a run to this output begins where nobody else's work lies.
pub fn no_checkpoint(path: &Path, known: bool) -> onlay::Result<()> {
    match checkpoint(path).filter(|_| !known) {
        None => Ok(()),
        Some(place) => {
            let text = "a checkpoint of an earlier run: --resume goes on with it, --overwrite begins again";
            Err(Error::new(Kind::Argument, text).at(Place::Path(place)))
        }
    }
}

/// Whether a file can be made where `path` is to be, found out by making one.
pub fn writable(path: &Path) -> onlay::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let probe = path.with_file_name(name);
    File::create_new(&probe).map_err(|e| Error::io("create a file beside", path, e))?;
    let _ = fs::remove_file(&probe);
    Ok(())
}

/// A path that ends in a slash is a PEFT directory.
fn is_file(path: &Path) -> bool {
    !path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

pub fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// One JSON object per step.
pub struct Log {
    path: PathBuf,
    file: File,
    failed: bool,
    /// What it had when it was opened.
    pub old: Vec<Value>,
}

impl Log {
    /// A new log; or, in a run that is continued, the old one up to where the checkpoint is: what came after will come
    /// again.
    pub fn open(path: &Path, progress: &Progress, resume: bool) -> Result<Log> {
        let io = |what: &str, e| Error::io(what, path, e);
        let (mut kept, mut lines) = (String::new(), Vec::new());
        if resume && path.exists() {
            let old = fs::read_to_string(path).map_err(|e| io("read", e))?;
            for line in old.lines() {
                let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
                let Some(step) = value.get("step").and_then(Value::as_u64) else { continue };
                let known = match value.get("eval_loss") {
                    Some(_) => progress.evaluations.iter().any(|e| e.step == step),
                    None => step <= progress.steps,
                };
                if known {
                    kept.push_str(line);
                    kept.push('\n');
                    lines.push(value);
                }
            }
        }
        // in one step, so that a process that is killed here leaves the old log
        write_atomically(path, true, |out| out.write_all(kept.as_bytes()).map_err(|e| io("write", e)))?;
        let file = File::options().append(true).open(path).map_err(|e| io("open", e))?;
        Ok(Log { path: path.into(), file, failed: false, old: lines })
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
