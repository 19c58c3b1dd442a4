//! How much memory the process has used at most.

/// The largest resident set of this process so far, in bytes; `None` where the system does not tell. Allocates nothing.
pub fn peak_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use std::io::Read;
        let mut text = [0; 4096];
        let n = std::fs::File::open("/proc/self/status").ok()?.read(&mut text).ok()?;
        high_water(&text[..n])
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The line `VmHWM:   12345 kB` of a status file.
#[cfg(any(target_os = "linux", test))]
fn high_water(status: &[u8]) -> Option<u64> {
    let line = status.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(b"VmHWM:"))?;
    let digits = line.trim_ascii().strip_suffix(b"kB")?.trim_ascii();
    std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line() {
        assert_eq!(high_water(b"Name:\tonlay\nVmHWM:\t  1234 kB\nVmRSS: 1 kB\n"), Some(1234 * 1024));
        assert_eq!(high_water(b"VmHWM:\t  x kB\n"), None);
        assert_eq!(high_water(b""), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory().is_some_and(|n| n > 100_000));
        }
    }
}
