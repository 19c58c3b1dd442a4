//! Calls with nothing, with too much, and with two at once, as C could make them.

use super::super::adapter::{self, Layer};
use super::super::failure::{self, Failure, PANIC};
use super::super::model::{self, Base};
use super::super::session::{self, Seat};
use super::super::structs::{self, SessionOptions, TrainOptions};
use super::super::{onlay_error_free, onlay_error_message, onlay_error_status, train};
use super::*;
use crate::error::Kind;
use std::ptr::{null, null_mut};

const ARGUMENT: i32 = Kind::Argument as i32;

fn none<T>() -> Handle<T> {
    Handle(null(), PhantomData)
}

fn handle_out<T>(p: &mut *const c_void) -> HandleOut<T> {
    HandleOut(p, PhantomData)
}

/// Checks the status against the error object's, and gives the message.
fn failed(status: i32, error: *const c_void) -> String {
    assert_eq!(onlay_error_status(Handle(error, PhantomData)), status);
    let text = onlay_error_message(Handle(error, PhantomData));
    // SAFETY: a terminated text that lives as long as the error.
    let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_str().unwrap().to_owned();
    onlay_error_free(Handle(error, PhantomData));
    text
}

fn tiny() -> *const c_void {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracles/vectors/llama/F32.gguf");
    let mut model = null();
    let opened =
        model::onlay_model_open(In(path.as_ptr()), path.len(), handle_out(&mut model), ErrorOut(null_mut()));
    assert_eq!(opened, 0);
    model
}

#[test]
fn nothing_is_an_error_everywhere() {
    type Call = Box<dyn Fn(ErrorOut) -> i32>;
    let calls: Vec<Call> = vec![
        Box::new(|e| model::onlay_model_open(In(null()), 0, HandleOut(null_mut(), PhantomData), e)),
        Box::new(|e| model::onlay_model_info_get(none(), StructOut(null_mut()), e)),
        Box::new(|e| {
            model::onlay_model_tokenize(none(), In(null()), 0, 0, Buffer(null_mut()), 0, Place(null_mut()), e)
        }),
        Box::new(|e| {
            model::onlay_model_detokenize(
                none(),
                In(null()),
                0,
                0,
                Buffer(null_mut()),
                0,
                Place(null_mut()),
                e,
            )
        }),
        Box::new(|e| {
            let (a, b) = (Buffer(null_mut()), Buffer(null_mut()));
            let (m, n) = (Place(null_mut()), Place(null_mut()));
            model::onlay_model_render(none(), In(null()), 0, 0, a, 0, m, b, 0, n, e)
        }),
        Box::new(|e| {
            adapter::onlay_adapter_open(none(), In(null()), 0, 0, HandleOut(null_mut(), PhantomData), e)
        }),
        Box::new(|e| adapter::onlay_adapter_warnings(none(), Buffer(null_mut()), 0, Place(null_mut()), e)),
        Box::new(|e| structs::onlay_session_options_init(StructOut(null_mut()), 0, e)),
        Box::new(|e| structs::onlay_generate_options_init(StructOut(null_mut()), 0, e)),
        Box::new(|e| structs::onlay_train_options_init(StructOut(null_mut()), 0, e)),
        Box::new(|e| session::onlay_session_plan(none(), StructIn(null()), Place(null_mut()), e)),
        Box::new(|e| {
            session::onlay_session_new(none(), StructIn(null()), HandleOut(null_mut(), PhantomData), e)
        }),
        Box::new(|e| session::onlay_session_append_tokens(none(), In(null()), 0, e)),
        Box::new(|e| session::onlay_session_append_text(none(), In(null()), 0, 0, e)),
        Box::new(|e| session::onlay_session_tokens(none(), Buffer(null_mut()), 0, Place(null_mut()), e)),
        Box::new(|e| session::onlay_session_truncate(none(), 0, e)),
        Box::new(|e| {
            session::onlay_session_generate(
                none(),
                StructIn(null()),
                None,
                null_mut(),
                StructOut(null_mut()),
                e,
            )
        }),
        Box::new(|e| session::onlay_session_attach(none(), none(), 1.0, e)),
        Box::new(|e| session::onlay_session_detach(none(), none(), e)),
        Box::new(|e| {
            let (made, result) = (HandleOut(null_mut(), PhantomData), StructOut(null_mut()));
            train::onlay_train(none(), StructIn(null()), None, null_mut(), made, result, e)
        }),
    ];
    for (i, call) in calls.iter().enumerate() {
        let mut error = null();
        let status = call(ErrorOut(&mut error));
        assert_eq!(status, ARGUMENT, "call {i}");
        assert!(failed(status, error).contains("NULL"), "call {i}");
        assert_eq!(call(ErrorOut(null_mut())), ARGUMENT, "call {i}");
    }
    model::onlay_model_free(none::<Base>());
    adapter::onlay_adapter_free(none::<Layer>());
    session::onlay_session_free(none::<Seat>());
    onlay_error_free(none::<Failure>());
}

#[test]
fn lengths_beyond_any_memory_are_refused() {
    let tiny = tiny();
    let model = || Handle(tiny, PhantomData);
    let (mut error, mut n, byte, token) = (null(), 0, 1u8, 1u32);
    let refused = |status: i32, error: *const c_void, text: &str| {
        assert_eq!(status, ARGUMENT);
        let message = failed(status, error);
        assert!(message.contains(text), "{message}");
    };
    for len in [usize::MAX, isize::MAX as usize + 1] {
        let e = ErrorOut(&mut error);
        let status =
            model::onlay_model_tokenize(model(), In(&byte), len, 0, Buffer(null_mut()), 0, Place(&mut n), e);
        refused(status, error, "no array has");
        let e = ErrorOut(&mut error);
        let tokens = In(&token);
        let status = model::onlay_model_detokenize(
            model(),
            tokens,
            len / 4 + 1,
            0,
            Buffer(null_mut()),
            0,
            Place(&mut n),
            e,
        );
        refused(status, error, "no array has");
        let e = ErrorOut(&mut error);
        let mut out = 0u32;
        let status =
            model::onlay_model_tokenize(model(), In(&byte), 1, 0, Buffer(&mut out), len, Place(&mut n), e);
        refused(status, error, "no array has");
    }
    // A pointer into the middle of a number.
    let words = [0u32; 2];
    let odd = In(words.as_ptr().cast::<u8>().wrapping_add(1).cast::<u32>());
    let e = ErrorOut(&mut error);
    let status = model::onlay_model_detokenize(model(), odd, 1, 0, Buffer(null_mut()), 0, Place(&mut n), e);
    refused(status, error, "not aligned");
    // Sizes of structs.
    for size in [0, 1, size_of::<SessionOptions>() - 1, LARGEST + 1, usize::MAX] {
        let mut options = SessionOptions { struct_size: size, ..SessionOptions::default() };
        let mut bytes = 0;
        let (given, e) = (StructIn(&raw const options), ErrorOut(&mut error));
        refused(session::onlay_session_plan(model(), given, Place(&mut bytes), e), error, "struct_size");
        let e = ErrorOut(&mut error);
        refused(structs::onlay_session_options_init(StructOut(&mut options), size, e), error, "struct_size");
    }
    // A program that was compiled before the last fields were there: it gets their defaults, and nothing behind its own end.
    let least = <TrainOptions as Plain>::LEAST;
    assert!(least < size_of::<TrainOptions>());
    let mut options = TrainOptions { polite: 7, reserved: 7, ..TrainOptions::default() };
    let e = ErrorOut(&mut error);
    assert_eq!(structs::onlay_train_options_init(StructOut(&mut options), least, e), 0);
    assert_eq!((options.struct_size, options.polite, options.reserved, options.rank), (least, 7, 7, 16));
    let read = StructIn(&raw const options).read("options").unwrap_or_else(|_| panic!("a shorter struct"));
    assert_eq!((read.polite, read.reserved, read.rank), (0, 0, 16));
    let e = ErrorOut(&mut error);
    refused(structs::onlay_train_options_init(StructOut(&mut options), least - 1, e), error, "struct_size");
    // Plans beyond any memory are refused, not attempted.
    for (context, rows, rank) in [(1 << 24, 1 << 16, 1 << 16), (u64::MAX, 1, 1), (1, u64::MAX, 1), (1, 0, 1)]
    {
        let options = SessionOptions { context, rows, adapter_rank: rank, ..SessionOptions::default() };
        let mut bytes = 0u64;
        let (given, e) = (StructIn(&raw const options), ErrorOut(null_mut()));
        let status = session::onlay_session_plan(model(), given, Place(&mut bytes), e);
        assert_eq!(status, if context == 1 << 24 { 0 } else { ARGUMENT });
    }
    model::onlay_model_free(model());
}

#[test]
fn a_handle_may_be_freed_while_it_is_used() {
    extern "C" fn free_both(user: *mut c_void, _: *const u8, _: usize) -> std::ffi::c_int {
        // SAFETY: the two handles below.
        let handles = unsafe { &mut *user.cast::<[*const c_void; 2]>() };
        model::onlay_model_free(Handle(std::mem::replace(&mut handles[0], null()), PhantomData));
        session::onlay_session_free(Handle(std::mem::replace(&mut handles[1], null()), PhantomData));
        0
    }
    let model = tiny();
    let mut session = null();
    let options = SessionOptions { context: 64, threads: 1, ..SessionOptions::default() };
    let e = || ErrorOut(null_mut());
    let made = session::onlay_session_new(
        Handle(model, PhantomData),
        StructIn(&raw const options),
        handle_out(&mut session),
        e(),
    );
    assert_eq!(made, 0);
    let seat = || Handle::<Seat>(session, PhantomData);
    assert_eq!(session::onlay_session_append_tokens(seat(), In([1u32, 2].as_ptr()), 2, e()), 0);
    let mut handles = [model, session];
    let user = (&raw mut handles).cast();
    let status = session::onlay_session_generate(
        seat(),
        StructIn(null()),
        Some(free_both),
        user,
        StructOut(null_mut()),
        e(),
    );
    assert_eq!(status, 0);
    assert_eq!(handles, [null(), null()]);
}

#[test]
fn a_panic_becomes_a_status() {
    let mut error = null();
    // `resume_unwind` does not call the hook, which would print
    let status = boundary(ErrorOut(&mut error), || std::panic::resume_unwind(Box::new("deep inside")));
    assert_eq!(status, PANIC);
    assert!(failed(status, error).ends_with(": deep inside"));
    let mut error = std::ptr::dangling();
    assert_eq!(boundary(ErrorOut(&mut error), || Ok(())), failure::OK);
    assert!(error.is_null(), "success says so");
}

#[test]
fn a_session_that_broke_off_can_only_be_freed() {
    let (model, mut session) = (tiny(), null());
    let options = SessionOptions { context: 64, threads: 1, ..SessionOptions::default() };
    let (given, e) = (StructIn(&raw const options), ErrorOut(null_mut()));
    let made = session::onlay_session_new(Handle(model, PhantomData), given, handle_out(&mut session), e);
    assert_eq!(made, 0);
    let seat = || Handle::<Seat>(session, PhantomData);
    let broken = boundary(ErrorOut(null_mut()), || {
        let seat = seat().get("session")?;
        let _held = seat.lock()?;
        std::panic::resume_unwind(Box::new("in the middle"))
    });
    assert_eq!(broken, PANIC);
    let mut error = null();
    let status = session::onlay_session_truncate(seat(), 0, ErrorOut(&mut error));
    assert_eq!(status, PANIC);
    assert!(failed(status, error).contains("only be freed"));
    session::onlay_session_free(seat());
    model::onlay_model_free(Handle(model, PhantomData));
}
