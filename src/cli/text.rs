//! Text that comes from a flag, a file or stdin, as the bytes it is.

use anyhow::{Context, Result};
use std::io::Read;
use std::path::Path;

/// The bytes of a file; `-` is stdin.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        return stdin();
    }
    std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))
}

/// All of stdin.
pub fn stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("stdin cannot be read")?;
    Ok(bytes)
}

/// The same as a string.
pub fn utf8(bytes: Vec<u8>, from: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        anyhow::anyhow!("{from}: expected UTF-8, found another byte at {}", e.utf8_error().valid_up_to())
    })
}
