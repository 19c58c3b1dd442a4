//! Running the built command.
#![allow(dead_code)]

use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command left behind.
pub struct Ran {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

/// Words as arguments; paths come in as they are.
#[macro_export]
macro_rules! args {
    ($($a:expr),* $(,)?) => { Vec::from([$(std::ffi::OsString::from($a)),*]) };
}

pub fn onlay() -> Command {
    // where the tests were carried to another machine, so was the command
    let built = PathBuf::from(env!("CARGO_BIN_EXE_onlay"));
    Command::new(std::env::var_os("ONLAY_PROGRAM").map_or(built, PathBuf::from))
}

/// Runs it with `input` on stdin.
pub fn fed(args: &[OsString], input: &[u8]) -> Ran {
    let pipe = Stdio::piped;
    let mut child = onlay().args(args).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // what is not read is no failure of the one who wrote it
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let done = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!err.contains("panicked"), "{args:?}: {err}");
    Ran { code: done.status.code().unwrap_or(-1), out: done.stdout, err }
}

/// Runs it; it must do what it was asked to.
#[track_caller]
pub fn good(args: &[OsString]) -> String {
    let Ran { code, out, err } = fed(args, b"");
    assert_eq!(code, 0, "{args:?}: {err}");
    String::from_utf8(out).unwrap()
}

/// The same with `--json`: the object that it printed.
#[track_caller]
pub fn json(args: &[OsString]) -> Value {
    let mut all = jsons(args);
    assert_eq!(all.len(), 1, "{args:?}");
    all.remove(0)
}

/// The same where there are several, one per line.
#[track_caller]
pub fn jsons(args: &[OsString]) -> Vec<Value> {
    let out = good(&[args, &["--json".into()]].concat());
    out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// Runs it; it must end with `code`, print nothing on stdout, and say why on stderr.
#[track_caller]
pub fn bad(code: i32, args: &[OsString]) -> String {
    let ran = fed(args, b"");
    assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
    assert!(ran.out.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&ran.out));
    assert!(ran.err.contains("error: "), "{args:?}: {}", ran.err);
    ran.err
}

/// A directory that goes away.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
    pub fn names(&self) -> Vec<OsString> {
        let all = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = all.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ids between commas.
pub fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}
