//! How much memory the process holds, and has used at most.

/// The largest resident set of this process so far, in bytes; `None` where the system does not tell. Allocates nothing.
pub fn peak_memory() -> Option<u64> {
    said(b"VmHWM:")
}

/// The memory of this process that no file is behind, in bytes, at this moment: all but what is mapped; `None` where the
/// system does not tell. Allocates nothing.
pub fn held_memory() -> Option<u64> {
    said(b"RssAnon:")
}

/// A number of the process's own status.
fn said(name: &[u8]) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use std::io::Read;
        let mut text = [0; 4096];
        let n = std::fs::File::open("/proc/self/status").ok()?.read(&mut text).ok()?;
        kilobytes(&text[..n], name)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = name;
        None
    }
}

/// A line such as `VmHWM:   12345 kB` of a status file, in bytes.
#[cfg(any(target_os = "linux", test))]
fn kilobytes(status: &[u8], name: &[u8]) -> Option<u64> {
    let line = status.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(name))?;
    let digits = line.trim_ascii().strip_suffix(b"kB")?.trim_ascii();
    std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line() {
        let read = |text: &[u8]| kilobytes(text, b"VmHWM:");
        assert_eq!(read(b"Name:\tonlay\nVmHWM:\t  1234 kB\nVmRSS: 1 kB\n"), Some(1234 * 1024));
        assert_eq!(read(b"VmHWM:\t  x kB\n"), None);
        assert_eq!(read(b""), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory().is_some_and(|n| n > 100_000));
            assert!(held_memory().is_some_and(|n| n > 10_000 && n <= peak_memory().unwrap_or(0)));
        }
    }
}
