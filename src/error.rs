//! One error type for the whole library.
//!
//! An [`Error`] says what was expected, what was found, and where. A refusal lists everything that is wrong,
//! not the first thing: collect findings in a [`Findings`] and turn it into one error at the end. The
//! [`Kind`] is stable and is what a caller matches on; the text is for people.

use std::fmt;
use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of failure this is. Stable: the numbers cross the C boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum Kind {
    /// The operating system refused: open, read, write, flush, rename, map.
    Io = 1,
    /// Bytes that are not what their format says: truncated, overlapping, out of range.
    Format = 2,
    /// Well-formed, but something this version does not do: a tensor type, an architecture, a pre-tokenizer.
    Unsupported = 3,
    /// Two things that do not belong together: an adapter and another base, a shape and its hyper-parameters.
    Mismatch = 4,
    /// An argument or option outside its range.
    Argument = 5,
    /// A data set's row that cannot be used.
    Data = 6,
    /// More memory than the promise allows, or than the system gives.
    Memory = 7,
    /// Stopped because the caller asked for it.
    Cancelled = 8,
    /// Arithmetic that left the numbers: NaN or infinity in a loss, a gradient, a scale.
    Numeric = 9,
    /// The chat template failed to parse or to render.
    Template = 10,
    /// A defect of this library; please report it.
    Internal = 11,
    /// A device or its driver: absent, too old, or lost.
    Device = 12,
}

impl Kind {
    /// The stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Io => "io",
            Kind::Format => "format",
            Kind::Unsupported => "unsupported",
            Kind::Mismatch => "mismatch",
            Kind::Argument => "argument",
            Kind::Data => "data",
            Kind::Memory => "memory",
            Kind::Cancelled => "cancelled",
            Kind::Numeric => "numeric",
            Kind::Template => "template",
            Kind::Internal => "internal",
            Kind::Device => "device",
        }
    }
}

/// Where a failure is. An error carries several, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A file or directory.
    Path(PathBuf),
    /// A tensor by name.
    Tensor(String),
    /// A metadata key, an option or a configuration field.
    Key(String),
    /// A byte offset from the start of the file.
    Byte(u64),
    /// A line of a text file, from 1.
    Line(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Path(p) => write!(f, "{}", p.display()),
            Place::Tensor(t) => write!(f, "tensor {t}"),
            Place::Key(k) => write!(f, "{k}"),
            Place::Byte(b) => write!(f, "byte {b}"),
            Place::Line(l) => write!(f, "line {l}"),
        }
    }
}

/// A failure: kind, text, places, and what lies under it.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    text: String,
    places: Vec<Place>,
    findings: Vec<Error>,
    source: Option<std::io::Error>,
}

impl Error {
    /// A failure of `kind` described by `text` (a full clause without a final stop).
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            text: text.into(),
            places: Vec::new(),
            findings: Vec::new(),
            source: None,
        }))
    }

    /// "`what`: expected `expected`, found `found`".
    pub fn expected(kind: Kind, what: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Error::new(kind, format!("{what}: expected {expected}, found {found}"))
    }

    /// An operating-system failure while doing `what` (for example "open") at `path`.
    pub fn io(what: &str, path: &Path, source: std::io::Error) -> Self {
        let mut e = Error::new(Kind::Io, format!("cannot {what}: {source}")).at(Place::Path(path.into()));
        e.0.source = Some(source);
        e
    }

    /// Adds an outer place (the newest call is the outermost).
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.0.places.insert(0, place);
        self
    }

    /// Adds the path as the outermost place, unless the error already names one.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        if self.0.places.iter().any(|p| matches!(p, Place::Path(_))) {
            self
        } else {
            self.at(Place::Path(path.into()))
        }
    }

    /// The stable kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The description without places.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Where, outermost first.
    pub fn places(&self) -> &[Place] {
        &self.0.places
    }

    /// The single findings behind a refusal; empty for a plain error.
    pub fn findings(&self) -> &[Error] {
        &self.0.findings
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.0.places {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.text)?;
        for finding in &self.0.findings {
            write!(f, "\n  - {}", finding.to_string().replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The operating system's words are already part of the text; a chain printer would say them twice.
        None
    }
}

/// Everything that is wrong with one thing, gathered before it is refused.
///
/// ```
/// use onlay::error::{Error, Findings, Kind};
/// let mut wrong = Findings::default();
/// wrong.push(Error::expected(Kind::Mismatch, "rank", "at most 64", 128));
/// wrong.push(Error::expected(Kind::Mismatch, "alpha", "a number above 0", -1));
/// let error = wrong.refuse("the adapter does not fit this base").unwrap_err();
/// assert_eq!(error.findings().len(), 2);
/// ```
#[derive(Debug, Default)]
pub struct Findings {
    kept: Vec<Error>,
    count: usize,
}

impl Findings {
    /// How many are kept; a hostile file must not make a message without end, nor fill the memory with findings.
    const LIMIT: usize = 50;

    /// Adds one finding.
    pub fn push(&mut self, error: Error) {
        self.count += 1;
        if self.kept.len() < Self::LIMIT {
            self.kept.push(error);
        }
    }

    /// Keeps the value of a result, or its error as a finding.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.push(e)).ok()
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// `Ok` if nothing was found; the finding itself if there is one; otherwise one error that lists all.
    pub fn refuse(mut self, what: &str) -> Result<()> {
        match self.count {
            0 => Ok(()),
            1 => Err(self.kept.remove(0)),
            n => {
                let mut error = Error::new(self.kept[0].kind(), format!("{what}: {n} things are wrong"));
                if n > Self::LIMIT {
                    self.kept.push(Error::new(error.kind(), format!("and {} more", n - Self::LIMIT)));
                }
                error.0.findings = self.kept;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_from_the_outside_in() {
        let e = Error::expected(Kind::Format, "rows", 4, 3)
            .at(Place::Tensor("blk.0.attn_q.weight".into()))
            .in_file(Path::new("a.gguf"))
            .in_file(Path::new("never.gguf"));
        assert_eq!(e.to_string(), "a.gguf: tensor blk.0.attn_q.weight: rows: expected 4, found 3");
    }

    #[test]
    fn a_refusal_lists_everything_but_not_without_end() {
        let mut f = Findings::default();
        for i in 0..60 {
            f.push(Error::new(Kind::Data, format!("row {i}")));
        }
        let e = f.refuse("rows").unwrap_err();
        assert_eq!(e.findings().len(), Findings::LIMIT + 1);
        assert!(e.to_string().contains("and 10 more"));
        assert!(Findings::default().refuse("x").is_ok());
    }
}
