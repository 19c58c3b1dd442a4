//! The C interface. What it promises is written in `include/onlay.h`; here is how it is kept.
//!
//! ```text
//! boundary   pointers from C, checked; panics caught; the only unsafe code
//! failure    onlay_error: a status and a message
//! structs    the header's structs and their defaults
//! model, session, adapter, train    the calls
//! ```
//! A handle is an `Arc`: each call takes a reference of its own, so a handle may be freed inside a callback. There is
//! no global state.

#[cfg(panic = "abort")]
compile_error!("feature capi needs panic = \"unwind\": it promises that no defect ends the host's process");

mod adapter;
mod boundary;
mod failure;
mod layer;
mod model;
mod session;
mod structs;
mod train;

use boundary::{Handle, export_plain};
use failure::Failure;
use std::ffi::c_char;

/// Raised when a program made for an older header could no longer run.
const ABI_VERSION: u32 = 1;

const VERSION: &std::ffi::CStr =
    match std::ffi::CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };

export_plain! {
    fn onlay_abi_version() -> u32 {
        ABI_VERSION
    }

    fn onlay_version() -> *const c_char {
        VERSION.as_ptr()
    }

    fn onlay_status_name(status: i32) -> *const c_char {
        failure::name(status).as_ptr()
    }

    fn onlay_error_status(error: Handle<Failure>) -> i32 {
        error.get("error").map_or(failure::OK, |e| e.status)
    }

    // The caller's own reference keeps the text where it is.
    fn onlay_error_message(error: Handle<Failure>) -> *const c_char {
        error.get("error").map_or(c"".as_ptr(), |e| e.message.as_ptr())
    }

    fn onlay_error_free(error: Handle<Failure>) {
        error.free();
    }
}
