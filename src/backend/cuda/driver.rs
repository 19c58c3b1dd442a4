//! NVIDIA's driver, opened at run time: nothing of CUDA is needed to build, to link or to start. Every failure is an
//! error value: no driver, one that is too old, no device, no memory, a device that was lost.
//!
//! What is made with it is in [`super::queue`].
//!
//! The functions are those of the CUDA driver API reference (docs.nvidia.com/cuda/cuda-driver-api), under the names that
//! `cuda.h` maps them to.
#![allow(unsafe_code)]

use crate::error::{Error, Kind, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, OnceLock};

/// The library in place of the system's driver, for tests.
const LIBRARY: &str = "ONLAY_CUDA_LIBRARY";

pub(super) type Pointer = *mut c_void;

/// What the driver calls something it made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle(pub Pointer);
// SAFETY: handles are names; the driver takes every one of them from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        pub(super) struct Functions {
            $(pub $name: unsafe extern "system" fn($($argument),*) -> c_int,)*
            _library: Library,
        }

        impl Functions {
            #[allow(non_snake_case)]
            fn find(library: Library) -> Result<Self> {
                // SAFETY: the type is that of the function's declaration in cuda.h.
                let ($($name,)*) = ($(unsafe {
                    let found = library.get::<unsafe extern "system" fn($($argument),*) -> c_int>(
                        concat!(stringify!($name), "\0").as_bytes(),
                    );
                    found.map(|f| *f)
                },)*);
                let missing = [$($name.is_err().then_some(stringify!($name)),)*];
                match ($($name,)*) {
                    ($(Ok($name),)*) => Ok(Functions { $($name,)* _library: library }),
                    _ => {
                        let names: Vec<_> = missing.into_iter().flatten().collect();
                        let text = format!("the CUDA driver is too old: it lacks {} (R520 or later has all)", names.join(", "));
                        Err(Error::new(Kind::Device, text))
                    }
                }
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut Pointer, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxGetCurrent(*mut Pointer);
    cuCtxSetCurrent(Pointer);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut u64, usize);
    cuMemFree_v2(u64);
    cuMemHostAlloc(*mut Pointer, usize, c_uint);
    cuMemFreeHost(Pointer);
    cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Pointer);
    cuMemcpyDtoHAsync_v2(Pointer, u64, usize, Pointer);
    cuMemcpyDtoDAsync_v2(u64, u64, usize, Pointer);
    cuMemsetD8Async(u64, u8, usize, Pointer);
    cuStreamCreate(*mut Pointer, c_uint);
    cuStreamDestroy_v2(Pointer);
    cuStreamSynchronize(Pointer);
    cuStreamWaitEvent(Pointer, Pointer, c_uint);
    cuEventCreate(*mut Pointer, c_uint);
    cuEventDestroy_v2(Pointer);
    cuEventRecord(Pointer, Pointer);
    cuEventSynchronize(Pointer);
    cuModuleLoadDataEx(*mut Pointer, *const c_void, c_uint, *mut c_int, *mut Pointer);
    cuModuleUnload(Pointer);
    cuModuleGetFunction(*mut Pointer, Pointer, *const c_char);
    cuLaunchKernel(Pointer, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Pointer, *mut Pointer, *mut Pointer);
    cuStreamBeginCapture_v2(Pointer, c_uint);
    cuStreamEndCapture(Pointer, *mut Pointer);
    cuGraphInstantiateWithFlags(*mut Pointer, Pointer, u64);
    cuGraphLaunch(Pointer, Pointer);
    cuGraphDestroy(Pointer);
    cuGraphExecDestroy(Pointer);
    cuGetErrorName(c_int, *mut *const c_char);
    cuGetErrorString(c_int, *mut *const c_char);
}

const OUT_OF_MEMORY: c_int = 2;
const NO_DEVICE: c_int = 100;
/// The first that takes the kernels' version of PTX.
const OLDEST: c_int = 11_080;
const COMPUTE_CAPABILITY: [c_int; 2] = [75, 76];

fn functions() -> Result<&'static Functions> {
    static FOUND: OnceLock<std::result::Result<Functions, (Kind, String)>> = OnceLock::new();
    let found = FOUND.get_or_init(|| open().map_err(|e| (e.kind(), e.text().to_owned())));
    found.as_ref().map_err(|(kind, text)| Error::new(*kind, text.clone()))
}

fn open() -> Result<Functions> {
    let told = std::env::var_os(LIBRARY).filter(|name| !name.is_empty());
    let names = match &told {
        Some(name) => vec![name.clone()],
        None if cfg!(windows) => vec!["nvcuda.dll".into()],
        None => vec!["libcuda.so.1".into(), "libcuda.so".into()],
    };
    let mut why = String::new();
    for name in names {
        // SAFETY: loading NVIDIA's driver runs what it does on loading, as in every program that uses it.
        match unsafe { Library::new(&name) } {
            Ok(library) => return Functions::find(library),
            Err(e) if why.is_empty() => why = e.to_string(),
            Err(_) => {}
        }
    }
    Err(Error::new(Kind::Device, format!("no CUDA driver on this machine: {why}")))
}

impl Functions {
    /// What a driver's answer means.
    pub fn said(&self, what: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let text = |f: unsafe extern "system" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = null();
            // SAFETY: it writes a pointer to a text that lives as long as the driver, or none.
            match unsafe { f(code, &mut text) } {
                0 if !text.is_null() => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
                _ => "unknown".to_owned(),
            }
        };
        let (name, about) = (text(self.cuGetErrorName), text(self.cuGetErrorString));
        let kind = if code == OUT_OF_MEMORY { Kind::Memory } else { Kind::Device };
        Err(Error::new(kind, format!("the device refused {what}: {name} ({code}), {about}")))
    }
}

/// Calls a function of the driver and turns its answer into a result.
macro_rules! ask {
    ($functions:expr, $name:ident($($argument:expr),*)) => {{
        let functions = $functions;
        // SAFETY: the arguments are live for the call, and handles are of this driver's making.
        functions.said(stringify!($name), unsafe { (functions.$name)($($argument),*) })
    }};
}
pub(super) use ask;

/// One device, and the process's context on it.
pub(super) struct Card {
    pub functions: &'static Functions,
    device: c_int,
    context: Handle,
    name: String,
    capability: [c_int; 2],
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

impl Card {
    /// The device of this number.
    ///
    /// # Errors
    /// `Device` if there is no driver, none that is new enough, or no such device.
    pub fn open(index: usize) -> Result<Arc<Card>> {
        let functions = functions()?;
        // SAFETY: it takes a number.
        let code = unsafe { (functions.cuInit)(0) };
        let mut count = 0;
        if code != NO_DEVICE {
            functions.said("cuInit", code)?;
            ask!(functions, cuDeviceGetCount(&mut count))?;
        }
        let wanted = c_int::try_from(index).unwrap_or(c_int::MAX);
        if wanted >= count {
            let expected = match count {
                0 => "a CUDA device; the driver knows none".to_owned(),
                n => format!("one of the {n} CUDA devices cuda:0 … cuda:{}", n - 1),
            };
            return Err(Error::expected(Kind::Device, "--device", expected, format!("cuda:{index}")));
        }
        let (mut device, mut context, mut capability, mut version) = (0, null_mut(), [0; 2], 0);
        ask!(functions, cuDriverGetVersion(&mut version))?;
        if version < OLDEST {
            let found = format!("{}.{}", version / 1000, version % 1000 / 10);
            return Err(Error::expected(Kind::Device, "CUDA of the driver", "11.8 (R520) or later", found));
        }
        ask!(functions, cuDeviceGet(&mut device, wanted))?;
        for (to, which) in capability.iter_mut().zip(COMPUTE_CAPABILITY) {
            ask!(functions, cuDeviceGetAttribute(to, which, device))?;
        }
        let mut name = [0; 128];
        ask!(functions, cuDeviceGetName(name.as_mut_ptr(), 127, device))?;
        let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        let name = String::from_utf8_lossy(&name).into_owned();
        if capability < [7, 5] {
            let found = format!("{name}, {}.{}", capability[0], capability[1]);
            let what = "compute capability";
            return Err(Error::expected(Kind::Device, what, "7.5 (Turing) or later", found));
        }
        ask!(functions, cuDevicePrimaryCtxRetain(&mut context, device))?;
        Ok(Arc::new(Card { functions, device, context: Handle(context), name, capability }))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its tensor cores multiply bf16, from Ampere on.
    pub fn has_bf16(&self) -> bool {
        self.capability[0] >= 8
    }

    /// Makes its context that of the calling thread, which may be the host's own with a context of its own: that comes back
    /// when this goes.
    pub fn bind(&self) -> Result<Bound<'_>> {
        let mut before = null_mut();
        ask!(self.functions, cuCtxGetCurrent(&mut before))?;
        ask!(self.functions, cuCtxSetCurrent(self.context.0))?;
        Ok(Bound { card: self, before })
    }

    /// Bytes that are free.
    pub fn free(&self) -> Result<u64> {
        let (mut free, mut total) = (0, 0);
        ask!(self.functions, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok(free as u64)
    }
}

/// A thread whose context is a card's.
pub(super) struct Bound<'a> {
    card: &'a Card,
    before: Pointer,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let _ = ask!(self.card.functions, cuCtxSetCurrent(self.before));
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = ask!(self.functions, cuDevicePrimaryCtxRelease_v2(self.device));
    }
}
