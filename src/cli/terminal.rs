//! What is written where: results on stdout, words on stderr, and one line of progress.

use super::show::{obeyed, plain};
use serde_json::Value;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// A line on stdout. Unlike `println!` it does not panic when nobody reads.
pub fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// A JSON value on a line of stdout. What a terminal would obey, and JSON would let through, is escaped: such
/// characters stand only inside strings.
pub fn json(value: &Value) -> io::Result<()> {
    line(escaped(&value.to_string()))
}

fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match obeyed(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// Text on stdout, seen at once.
pub fn now(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A remark on stderr.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A warning on stderr.
pub fn warn(text: impl Display) {
    note(format_args!("onlay: warning: {}", lines(&text.to_string())));
}

/// The error that ends the command.
pub fn error(text: &str) {
    note(format_args!("onlay: error: {}", lines(text)));
}

/// Text that may quote a file, safe to show; its lines stay lines.
fn lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// One line of stderr that says how far long work is: rewritten in place on a terminal, otherwise a new line every
/// few seconds. The line goes away, or is ended, when this is dropped.
pub struct Progress {
    live: bool,
    begun: Instant,
    /// When it was last written.
    last: Option<Instant>,
}

impl Progress {
    const LIVE: Duration = Duration::from_millis(80);
    /// In a log, work that is done at once needs no line.
    const FIRST: Duration = Duration::from_secs(3);
    const LOGGED: Duration = Duration::from_secs(10);

    pub fn new() -> Self {
        Progress { live: io::stderr().is_terminal(), begun: Instant::now(), last: None }
    }

    /// Shows `text`, unless it was shown a moment ago.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        let due = match (self.live, self.last) {
            (true, None) => true,
            (true, Some(last)) => last.elapsed() >= Self::LIVE,
            (false, None) => self.begun.elapsed() >= Self::FIRST,
            (false, Some(last)) => last.elapsed() >= Self::LOGGED,
        };
        if due {
            self.show_now(&text());
        }
    }

    /// Shows `text` whenever the last was.
    pub fn show_now(&mut self, text: &str) {
        let mut err = io::stderr().lock();
        let _ = if self.live { write!(err, "\r\x1b[K{text}") } else { writeln!(err, "{text}") };
        let _ = err.flush();
        self.last = Some(Instant::now());
    }

    /// A remark that stays, above the line.
    pub fn note(&mut self, text: impl Display) {
        self.clear();
        note(text);
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.live && self.last.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
            self.last = None;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `1.23 GiB`
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match (unit, value < 10.0) {
        (0, _) => format!("{n} B"),
        (_, true) => format!("{value:.2} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

/// `0:07`, `12:30`, `3:05:00`
pub fn duration(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.round() as u64 } else { return "?".into() };
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_a_terminal_does_not_obey() {
        let text = "é\u{9b}2J\u{202e}\x1b";
        let json = escaped(&Value::from(text).to_string());
        assert_eq!(json, "\"é\\u009b2J\\u202e\\u001b\"");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), text);
    }

    #[test]
    fn sizes_and_times() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (11 << 20, "11 MiB")];
        sizes.iter().for_each(|(n, s)| assert_eq!(bytes(*n), *s));
        let times = [(6.6, "0:07"), (750.0, "12:30"), (11_100.0, "3:05:00"), (f64::INFINITY, "?")];
        times.iter().for_each(|(n, s)| assert_eq!(duration(*n), *s));
    }
}
