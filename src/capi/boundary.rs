//! The boundary itself: every pointer that comes from C is looked at here, and nowhere else.
//!
//! Each kind of pointer in `onlay.h` has a type of its own that only C can make (its field is private and there is no
//! constructor outside tests), so that a function which takes one rests on the header's contract:
//!
//! > a pointer is NULL, or good for what the header says about its argument, until the call returns.
//!
//! What can be checked is checked: NULL, alignment, lengths. The rest of the interface is safe code.
#![allow(unsafe_code)]

use super::failure::{BUFFER, Done, Failure, OK};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Runs the body of a call, turns a panic into a status, and tells the caller.
pub(super) fn boundary(error: ErrorOut, body: impl FnOnce() -> Done) -> i32 {
    let done = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|p| Err(Failure::panic(p)));
    match done {
        Ok(()) => {
            error.write(std::ptr::null());
            OK
        }
        Err(failure) => {
            let status = failure.status;
            if !error.0.is_null() {
                error.write(Arc::into_raw(Arc::new(failure)).cast());
            }
            status
        }
    }
}

/// Defines exported calls: the arguments, and as the last one where an error goes.
macro_rules! export {
    ($($(#[$m:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) $body:block)*) => { $(
        $(#[$m])*
        #[allow(unsafe_code)] // the name is exported; the body is safe
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($a: $t,)* error: $crate::capi::boundary::ErrorOut) -> i32 {
            $crate::capi::boundary::boundary(error, || -> $crate::capi::failure::Done { $body })
        }
    )* };
}

/// Defines exported functions that cannot fail and do not panic.
macro_rules! export_plain {
    ($($(#[$m:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) $(-> $r:ty)? $body:block)*) => { $(
        $(#[$m])*
        #[allow(unsafe_code)] // the name is exported; the body is safe
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($a: $t),*) $(-> $r)? $body
    )* };
}

/// Defines a struct of the header: its fields after `struct_size`, with their defaults; `since` names the first that the shortest
/// version lacks.
macro_rules! plain {
    ($(#[$m:meta])* $name:ident, $c:literal $(since $later:ident)? { $($field:ident: $t:ty = $default:expr,)* }) => {
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $name { pub struct_size: usize, $(pub $field: $t,)* }

        impl Default for $name {
            fn default() -> Self {
                $name { struct_size: size_of::<$name>(), $($field: $default,)* }
            }
        }

        // SAFETY: repr(C), begins with a usize, and the compiler checks below that any bytes make the other fields.
        #[allow(unsafe_code)]
        unsafe impl $crate::capi::boundary::Plain for $name {
            const LEAST: usize = {
                let versions = [$(std::mem::offset_of!($name, $later),)? size_of::<$name>()];
                versions[0]
            };
        }

        const _: fn() = || {
            fn any_bytes<T: $crate::capi::boundary::Bits>() {}
            $(any_bytes::<$t>();)*
        };

        #[cfg(test)]
        impl $name {
            /// For the test that holds it to the header.
            pub const LAYOUT: (&'static str, usize, &'static [(&'static str, &'static str, usize)]) = (
                $c,
                size_of::<$name>(),
                &[$((stringify!($field), stringify!($t), std::mem::offset_of!($name, $field)),)*],
            );
        }
    };
}

pub(super) use {export, export_plain, plain};

/// Values that any bytes make.
pub(super) trait Bits: Copy {}
impl Bits for u8 {}
impl Bits for u32 {}
impl Bits for i32 {}
impl Bits for u64 {}
impl Bits for i64 {}
impl Bits for usize {}
impl Bits for f32 {}
impl Bits for f64 {}
impl Bits for Text {}
impl Bits for *const Text {}

/// A struct of the header.
///
/// # Safety
/// `repr(C)`, its first field is `struct_size: usize`, and any bytes make a value.
pub(super) unsafe trait Plain: Copy + Default {
    /// Bytes of its shortest version.
    const LEAST: usize;
}

/// No struct of this interface will be larger; a size above is garbage.
const LARGEST: usize = 4096;

fn check<T>(p: *const T, name: &str) -> Done {
    if p.is_null() {
        return Err(Failure::argument(format!("{name}: NULL")));
    }
    if !p.is_aligned() {
        return Err(Failure::argument(format!("{name}: the pointer is not aligned")));
    }
    Ok(())
}

/// `len` values at `p`, checked as far as they can be. The caller keeps the lifetime below that of the call.
fn slice<'a, T: Bits>(p: *const T, len: usize, name: &str) -> Done<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check(p, name)?;
    fits::<T>(len, name)?;
    // SAFETY: not NULL, aligned, no larger than an object may be; by contract there are `len` values, any bytes make one,
    // and nobody writes to them during the call.
    Ok(unsafe { std::slice::from_raw_parts(p, len) })
}

fn fits<T>(len: usize, name: &str) -> Done {
    match len.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(Failure::argument(format!("{name}: no array has {len} elements"))),
    }
}

/// `onlay_text`: bytes of the caller.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    data: *const u8,
    len: usize,
}

impl Text {
    pub const EMPTY: Text = Text { data: std::ptr::null(), len: 0 };

    pub fn bytes(&self, name: &str) -> Done<&[u8]> {
        slice(self.data, self.len, name)
    }

    /// The texts at `list`, which came in a struct.
    pub fn list<'a>(list: &'a *const Text, len: usize, name: &str) -> Done<&'a [Text]> {
        slice(*list, len, name)
    }
}

/// An array that is read; its length is another argument.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Bits> In<T> {
    pub fn slice(&self, len: usize, name: &str) -> Done<&[T]> {
        slice(self.0, len, name)
    }
}

/// A buffer that is written; its capacity is another argument.
#[repr(transparent)]
pub struct Buffer<T>(*mut T);

impl<T: Bits> Buffer<T> {
    /// Writes how many there are, and then all of them if they fit.
    pub fn give(&self, from: &[T], capacity: usize, len: &Place<usize>, name: &str) -> Done {
        len.set(from.len(), name)?;
        self.fit(from, capacity, name)?;
        self.copy(from, capacity);
        Ok(())
    }

    /// Whether they fit, or are not asked for.
    pub fn fit(&self, from: &[T], capacity: usize, name: &str) -> Done {
        if capacity == 0 && self.0.is_null() {
            return Ok(());
        }
        check(self.0, name)?;
        fits::<T>(capacity, name)?;
        if from.len() > capacity {
            let text = format!("{name}: the buffer holds {capacity} elements, {} are needed", from.len());
            return Err(Failure::new(BUFFER, &text));
        }
        Ok(())
    }

    /// Copies what [`fit`](Self::fit) has let through.
    pub fn copy(&self, from: &[T], capacity: usize) {
        if !self.0.is_null() && from.len() <= capacity {
            // SAFETY: by contract the buffer has `capacity` elements; `from` is memory of the library, so apart.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.0, from.len()) };
        }
    }
}

/// Where one value goes.
#[repr(transparent)]
pub struct Place<T>(*mut T);

impl<T: Bits> Place<T> {
    pub fn set(&self, value: T, name: &str) -> Done {
        check(self.0, &format!("where to write the number of {name}"))?;
        // SAFETY: not NULL, aligned; by contract good for one value.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// A struct that is read. NULL: its defaults.
#[repr(transparent)]
pub struct StructIn<T>(*const T);

impl<T: Plain> StructIn<T> {
    /// What the caller knows of it, defaults for the rest.
    pub fn read(&self, name: &str) -> Done<T> {
        let mut value = T::default();
        if self.0.is_null() {
            return Ok(value);
        }
        let size = sized(self.0, name)?;
        let known = size.min(size_of::<T>());
        // SAFETY: by contract there are `size` bytes; any bytes make a T, and `known` is no more than either has.
        unsafe { std::ptr::copy_nonoverlapping(self.0.cast::<u8>(), (&raw mut value).cast(), known) };
        // SAFETY: the bytes from `known` to `size`, which the caller has.
        let rest = unsafe { std::slice::from_raw_parts(self.0.cast::<u8>().add(known), size - known) };
        if rest.iter().any(|b| *b != 0) {
            let text = format!("{name}: a field is set that this version does not know");
            return Err(Failure::new(crate::error::Kind::Unsupported as i32, &text));
        }
        Ok(value)
    }
}

/// A struct that is written. NULL: not wanted, except where it is initialised.
#[repr(transparent)]
pub struct StructOut<T>(*mut T);

impl<T: Plain> StructOut<T> {
    /// Fills it with defaults; `size` is what the caller has of it.
    pub fn init(&self, size: usize, name: &str) -> Done {
        check(self.0, name)?;
        check_size::<T>(size, name)?;
        // SAFETY: by contract there are `size` bytes, and `put` asks for no more.
        unsafe {
            self.0.cast::<u8>().write_bytes(0, size);
            self.put(T::default(), size);
        }
        Ok(())
    }

    /// Refuses NULL.
    pub fn need(&self, name: &str) -> Done {
        check(self.0, name)
    }

    /// Checks before the work begins what [`write`](Self::write) will need.
    pub fn check(&self, name: &str) -> Done {
        if self.0.is_null() { Ok(()) } else { sized(self.0, name).map(|_| ()) }
    }

    /// Writes all but `struct_size`.
    pub fn write(&self, value: T, name: &str) -> Done {
        if self.0.is_null() {
            return Ok(());
        }
        let size = sized(self.0, name)?;
        // SAFETY: by contract there are `size` bytes.
        unsafe { self.put(value, size) };
        Ok(())
    }

    /// As much of a value as its caller has, and how much that is.
    ///
    /// # Safety
    /// There are `size` bytes, at least those of `struct_size`.
    unsafe fn put(&self, value: T, size: usize) {
        let known = size.min(size_of::<T>());
        // SAFETY: both have `known` bytes, and the value is apart; it begins with its size.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), self.0.cast::<u8>(), known);
            self.0.cast::<usize>().write(size);
        }
    }
}

fn sized<T: Plain>(p: *const T, name: &str) -> Done<usize> {
    check(p, name)?;
    // SAFETY: not NULL, aligned; every struct of the header begins with its size.
    let size = unsafe { p.cast::<usize>().read() };
    check_size::<T>(size, name)?;
    Ok(size)
}

/// From the shortest version of a struct to what no later one will exceed.
fn check_size<T: Plain>(size: usize, name: &str) -> Done {
    let least = T::LEAST;
    if (least..=LARGEST).contains(&size) {
        return Ok(());
    }
    Err(Failure::argument(format!("struct_size of {name}: expected {least} to {LARGEST}, found {size}")))
}

/// A handle that C has: NULL, or one reference to a `T`, opaque to it.
#[repr(transparent)]
pub struct Handle<T>(*const c_void, PhantomData<T>);

impl<T> Handle<T> {
    /// A reference of our own, so that the handle may be freed meanwhile.
    pub fn get(&self, name: &str) -> Done<Arc<T>> {
        let p = self.0.cast::<T>();
        check(p, name)?;
        // SAFETY: by contract a live handle of this type, which `put` made from an Arc.
        Ok(unsafe {
            Arc::increment_strong_count(p);
            Arc::from_raw(p)
        })
    }

    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Gives the caller's reference back.
    pub fn free(self) {
        if !self.0.is_null() {
            // SAFETY: by contract a live handle of this type, and the caller will not use it again.
            let last = unsafe { Arc::from_raw(self.0.cast::<T>()) };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(last))) {
                std::mem::forget(payload);
            }
        }
    }
}

/// Where a new handle goes.
#[repr(transparent)]
pub struct HandleOut<T>(*mut *const c_void, PhantomData<T>);

impl<T> HandleOut<T> {
    /// Begins: no handle yet.
    pub fn clear(&self, name: &str) -> Done {
        check(self.0, name)?;
        self.clear_if_wanted();
        Ok(())
    }

    /// The same where NULL says that no handle is wanted.
    pub fn clear_if_wanted(&self) {
        self.write(std::ptr::null());
    }

    /// Hands a reference over.
    pub fn put(&self, value: Arc<T>) {
        if !self.0.is_null() {
            self.write(Arc::into_raw(value).cast());
        }
    }

    fn write(&self, handle: *const c_void) {
        if !self.0.is_null() {
            // SAFETY: not NULL; by contract good for a pointer. Unaligned, as it was perhaps not checked.
            unsafe { self.0.write_unaligned(handle) };
        }
    }
}

/// `onlay_error **`; may be NULL.
#[repr(transparent)]
pub struct ErrorOut(*mut *const c_void);

impl ErrorOut {
    fn write(&self, handle: *const c_void) {
        if !self.0.is_null() {
            // SAFETY: not NULL; by contract good for a pointer. An error about alignment must not need it.
            unsafe { self.0.write_unaligned(handle) };
        }
    }
}

#[cfg(test)]
#[path = "hostile.rs"]
mod hostile;
