//! A test on a GPU: on the fake driver that runs every kernel on the processor (`kernels/cuda/emulator`), or, with
//! `ONLAY_TEST_CARD=cuda:N` in the environment, on a real card.
//!
//! A driver is opened once in a process, so each test runs in a process of its own, with the fake driver's knobs it wants.
#![allow(dead_code)]

use onlay::Kind;
use onlay::backend::Device;
use std::path::{Path, PathBuf};
use std::process::Command;

const CARD: &str = "ONLAY_TEST_CARD";
const INSIDE: &str = "ONLAY_TEST_INSIDE";

/// The device of these tests.
pub fn device() -> Device {
    Device::named(&std::env::var(CARD).unwrap_or("cuda:0".into())).unwrap()
}

/// Whether it is a real one.
pub fn real() -> bool {
    std::env::var_os(CARD).is_some()
}

/// The fake driver, built if need be; `None`, and said, where there is no compiler.
pub fn fake() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if Command::new("g++").arg("--version").output().is_err() || !cfg!(all(target_arch = "x86_64", unix)) {
        println!("skipped: no g++ for x86-64 Linux to build the fake driver with, and no {CARD}");
        return None;
    }
    let library = root.join("target/cuda/libonlay-fake-cuda.so");
    let built = Command::new(root.join("kernels/cuda/emulator/build.sh")).arg(&library).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(library)
}

/// Runs the body of the test called `name` in a process of its own.
pub fn alone(name: &str, knobs: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(INSIDE, "1");
    if !real() {
        let Some(library) = fake() else { return };
        child.env("ONLAY_CUDA_LIBRARY", library).envs(knobs.iter().copied());
    } else if onlay::backend::copied(device()).is_err_and(|e| e.kind() == Kind::Device) {
        return println!("skipped: no device {}", device());
    } else if !knobs.is_empty() {
        return println!("skipped: {name} needs the fake driver's knobs");
    }
    let done = child.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    print!("{out}");
    assert!(done.status.success() && out.contains("1 passed"), "{name}: {out}\n{err}");
}
