//! What a call reports: a status and a message, as an object that the caller owns.

use crate::error::{Error, Kind};
use std::any::Any;
use std::ffi::{CStr, CString};

/// Statuses beyond the library's own kinds, whose numbers they continue.
pub(super) const OK: i32 = 0;
pub(super) const PANIC: i32 = 100;
pub(super) const BUSY: i32 = 101;
pub(super) const BUFFER: i32 = 102;

/// All kinds; `kinds_have_names` finds one that is missing here or in the header.
const KINDS: &[Kind] = &[
    Kind::Io,
    Kind::Format,
    Kind::Unsupported,
    Kind::Mismatch,
    Kind::Argument,
    Kind::Data,
    Kind::Memory,
    Kind::Cancelled,
    Kind::Numeric,
    Kind::Template,
    Kind::Internal,
    Kind::Device,
];

/// An `onlay_error`.
#[derive(Debug)]
pub struct Failure {
    pub status: i32,
    pub message: CString,
}

/// What the body of a call gives.
pub(super) type Done<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(status: i32, message: &str) -> Failure {
        // A path may hold a NUL that C would take for the end.
        let message = CString::new(message.replace('\0', "\u{fffd}")).unwrap_or_default();
        Failure { status, message }
    }

    pub fn argument(message: impl AsRef<str>) -> Failure {
        Failure::new(Kind::Argument as i32, message.as_ref())
    }

    /// From what `catch_unwind` caught.
    pub fn panic(payload: Box<dyn Any + Send>) -> Failure {
        let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(text), _) => text,
            (_, Some(text)) => text.as_str(),
            _ => "no message",
        };
        let failure = Failure::new(PANIC, &format!("a defect of the library, please report it: {text}"));
        std::mem::forget(payload); // dropping what nobody knows may panic again
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.kind() as i32, &error.to_string())
    }
}

/// The name of a status.
pub(super) fn name(status: i32) -> &'static CStr {
    match status {
        OK => c"ok",
        PANIC => c"panic",
        BUSY => c"busy",
        BUFFER => c"buffer",
        _ => match KINDS.iter().find(|k| **k as i32 == status) {
            Some(Kind::Io) => c"io",
            Some(Kind::Format) => c"format",
            Some(Kind::Unsupported) => c"unsupported",
            Some(Kind::Mismatch) => c"mismatch",
            Some(Kind::Argument) => c"argument",
            Some(Kind::Data) => c"data",
            Some(Kind::Memory) => c"memory",
            Some(Kind::Cancelled) => c"cancelled",
            Some(Kind::Numeric) => c"numeric",
            Some(Kind::Template) => c"template",
            Some(Kind::Internal) => c"internal",
            Some(Kind::Device) => c"device",
            None => c"unknown",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header's statuses are the library's kinds, by name and number.
    #[test]
    fn kinds_have_names() {
        let header = include_str!("../../include/onlay.h");
        let number = |name: &str| {
            let line = header
                .lines()
                .find_map(|l| l.trim_start().strip_prefix(&format!("ONLAY_{} = ", name.to_uppercase())));
            let digits = line.unwrap_or_else(|| panic!("{name} is not in the header"));
            digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<i32>().unwrap()
        };
        let mut known = 0;
        for status in 0..200 {
            let text = name(status).to_str().unwrap();
            if text != "unknown" {
                assert_eq!(number(text), status);
                known += 1;
            }
        }
        assert_eq!(known, KINDS.len() + 4);
        KINDS.iter().for_each(|k| assert_eq!(name(*k as i32).to_str().unwrap(), k.name()));
    }

    #[test]
    fn messages_end_where_c_thinks() {
        assert_eq!(Failure::argument("a\0b").message.to_str().unwrap(), "a\u{fffd}b");
        let caught = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(String::from("why"))));
        let failure = Failure::panic(caught.unwrap_err());
        assert_eq!(failure.status, PANIC);
        assert!(failure.message.to_str().unwrap().ends_with(": why"));
    }
}
