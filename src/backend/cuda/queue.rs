//! Memory, streams and kernels of a device.
//!
//! The types own what they stand for and give it back. Work is queued on a [`Stream`] and done in its order; only
//! [`Stream::download`] and [`Stream::wait`] wait for it.
#![allow(unsafe_code)]

use super::driver::{Card, Handle, ask};
use crate::backend::device::RING;
use crate::error::{Error, Kind, Result};
use std::ffi::{CStr, CString, c_uint};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

const EVENT_WITHOUT_TIME: c_uint = 2;
const STREAM_OF_ITS_OWN: c_uint = 1;
const CAPTURE_OF_THIS_THREAD: c_uint = 1;

/// A piece of a device's memory, by its address there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    address: u64,
    bytes: u64,
}

impl Region {
    /// Nothing: a null pointer to kernels.
    pub const NONE: Region = Region { address: 0, bytes: 0 };

    /// One that has a size and no place yet.
    pub fn sized(bytes: u64) -> Region {
        Region { address: 0, bytes }
    }

    /// Its size.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Where it is, for tables of addresses that kernels read.
    pub fn address(self) -> u64 {
        self.address
    }

    /// `bytes` from the byte `from` on.
    pub fn part(self, from: u64, bytes: u64) -> Region {
        let end = from.checked_add(bytes).filter(|end| *end <= self.bytes);
        assert!(end.is_some(), "{bytes} bytes from {from} of a region of {}", self.bytes);
        Region { address: self.address + from, bytes }
    }

    /// Its first `n` numbers.
    pub fn floats(self, n: usize) -> Region {
        self.part(0, 4 * n as u64)
    }
}

/// Memory of a device.
#[derive(Debug)]
pub(super) struct Memory {
    card: Arc<Card>,
    whole: Region,
}

impl Memory {
    /// # Errors
    /// `Memory` if the device has not so much.
    pub fn new(card: &Arc<Card>, bytes: u64) -> Result<Memory> {
        if bytes == 0 {
            return Ok(Memory { card: Arc::clone(card), whole: Region::NONE });
        }
        let mut address = 0;
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        ask!(card.functions, cuMemAlloc_v2(&mut address, size)).map_err(|e| {
            let text = format!("{bytes} bytes of {}: {}", card.name(), e.text());
            Error::new(e.kind(), text)
        })?;
        Ok(Memory { card: Arc::clone(card), whole: Region { address, bytes } })
    }

    pub fn whole(&self) -> Region {
        self.whole
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.whole != Region::NONE {
            let _bound = self.card.bind();
            let _ = ask!(self.card.functions, cuMemFree_v2(self.whole.address));
        }
    }
}

/// Memory of the host that the device reads by itself, with the moment at which it was done reading.
#[derive(Debug)]
struct Staging {
    card: Arc<Card>,
    data: Handle,
    bytes: usize,
    read: Event,
}

impl Staging {
    /// # Errors
    /// `Memory` if the system does not give it.
    fn new(card: &Arc<Card>, bytes: usize) -> Result<Staging> {
        let mut data = null_mut();
        let read = Event::new(card)?;
        ask!(card.functions, cuMemHostAlloc(&mut data, bytes, 0))?;
        Ok(Staging { card: Arc::clone(card), data: Handle(data), bytes, read })
    }

    /// Copies `from` into it once the device has read what it held, and queues it on its way to `to`.
    fn send(&mut self, stream: &Stream, from: &[u8], to: Region) -> Result<()> {
        assert!(from.len() <= self.bytes && from.len() as u64 <= to.bytes);
        ask!(self.card.functions, cuEventSynchronize(self.read.handle.0))?;
        // SAFETY: both hold `from.len()` bytes, and the device is not reading: it was waited for.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.data.0.cast(), from.len()) };
        ask!(
            self.card.functions,
            cuMemcpyHtoDAsync_v2(to.address, self.data.0.cast_const(), from.len(), stream.handle.0)
        )?;
        stream.record(&self.read)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _bound = self.card.bind();
        let _ = ask!(self.card.functions, cuEventSynchronize(self.read.handle.0));
        let _ = ask!(self.card.functions, cuMemFreeHost(self.data.0));
    }
}

/// A moment in a stream.
#[derive(Debug)]
pub(super) struct Event {
    card: Arc<Card>,
    handle: Handle,
}

impl Event {
    pub fn new(card: &Arc<Card>) -> Result<Event> {
        let mut event = null_mut();
        ask!(card.functions, cuEventCreate(&mut event, EVENT_WITHOUT_TIME))?;
        Ok(Event { card: Arc::clone(card), handle: Handle(event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _bound = self.card.bind();
        let _ = ask!(self.card.functions, cuEventDestroy_v2(self.handle.0));
    }
}

/// A number or an address as a kernel takes it: its low bytes, as many as the kernel declares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Argument(u64);

impl From<Region> for Argument {
    fn from(region: Region) -> Self {
        Argument(region.address)
    }
}
impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Argument(u64::from(x.to_bits()))
    }
}
impl From<i32> for Argument {
    fn from(n: i32) -> Self {
        Argument(u64::from(n as u32))
    }
}
impl From<u32> for Argument {
    fn from(n: u32) -> Self {
        Argument(u64::from(n))
    }
}
impl From<u64> for Argument {
    fn from(n: u64) -> Self {
        Argument(n)
    }
}
/// An `int` of the kernel; plans keep sizes below 2³¹.
impl From<usize> for Argument {
    fn from(n: usize) -> Self {
        Argument::from(i32::try_from(n).expect("planned below 2^31"))
    }
}

/// The most arguments of a kernel.
const ARGUMENTS: usize = 20;

/// Blocks of a launch, threads of a block, bytes of shared memory that are not declared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub grid: [usize; 3],
    pub block: usize,
    pub shared: usize,
}

/// Work in its order.
#[derive(Debug)]
pub(super) struct Stream {
    card: Arc<Card>,
    handle: Handle,
    /// What uploads go through, and whose turn it is.
    staging: Mutex<(Vec<Staging>, usize)>,
}

impl Stream {
    /// One whose uploads go through [`RING`] times `staged` bytes of the host.
    pub fn new(card: &Arc<Card>, staged: usize) -> Result<Stream> {
        let ring = (0..RING).map(|_| Staging::new(card, staged)).collect::<Result<Vec<_>>>()?;
        let mut stream = null_mut();
        ask!(card.functions, cuStreamCreate(&mut stream, STREAM_OF_ITS_OWN))?;
        Ok(Stream { card: Arc::clone(card), handle: Handle(stream), staging: Mutex::new((ring, 0)) })
    }

    /// Queues a copy from the host, whose bytes may change at once: they go through memory that the device reads by itself,
    /// and wait for a piece of that which it has read.
    pub fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        assert!(from.len() as u64 <= to.bytes, "{} bytes to a region of {}", from.len(), to.bytes);
        let mut ring = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let (ring, turn) = &mut *ring;
        let mut at = 0;
        for part in from.chunks(ring[0].bytes) {
            *turn = (*turn + 1) % RING;
            ring[*turn].send(self, part, to.part(at, part.len() as u64))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Copies to the host, once everything queued before is done.
    pub fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        assert!(to.len() as u64 <= from.bytes, "{} bytes of a region of {}", to.len(), from.bytes);
        if to.is_empty() {
            return Ok(());
        }
        let data = to.as_mut_ptr().cast();
        let asked =
            ask!(self.card.functions, cuMemcpyDtoHAsync_v2(data, from.address, to.len(), self.handle.0));
        // also where that failed: nothing may write to `to` later
        self.wait().and(asked)
    }

    /// Queues a copy on the device.
    pub fn copy(&self, from: Region, to: Region) -> Result<()> {
        assert!(from.bytes <= to.bytes, "{} bytes to a region of {}", from.bytes, to.bytes);
        if from.bytes == 0 {
            return Ok(());
        }
        let bytes = from.bytes as usize;
        ask!(self.card.functions, cuMemcpyDtoDAsync_v2(to.address, from.address, bytes, self.handle.0))
    }

    /// Queues zeros.
    pub fn clear(&self, to: Region) -> Result<()> {
        if to.bytes == 0 {
            return Ok(());
        }
        ask!(self.card.functions, cuMemsetD8Async(to.address, 0, to.bytes as usize, self.handle.0))
    }

    /// Queues a kernel.
    pub fn launch(&self, kernel: Kernel, shape: Shape, arguments: [&[Argument]; 2]) -> Result<()> {
        let mut numbers = [0u64; ARGUMENTS];
        let mut pointers = [null_mut(); ARGUMENTS];
        let all = arguments.into_iter().flatten();
        for ((number, pointer), argument) in numbers.iter_mut().zip(&mut pointers).zip(all) {
            *number = argument.0;
            *pointer = (&raw mut *number).cast();
        }
        assert!(arguments.map(<[Argument]>::len).iter().sum::<usize>() <= ARGUMENTS);
        let [x, y, z] = shape.grid.map(|n| n as c_uint);
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let Handle(function) = kernel.function;
        ask!(
            self.card.functions,
            cuLaunchKernel(
                function,
                x,
                y,
                z,
                shape.block as c_uint,
                1,
                1,
                shape.shared as c_uint,
                self.handle.0,
                pointers.as_mut_ptr(),
                null_mut()
            )
        )
        .map_err(|e| Error::new(e.kind(), format!("{}: {}", kernel.name, e.text())))
    }

    /// Keeps what `f` queues instead of doing it. It must not wait, nor copy from or to memory of the host.
    pub fn capture(&self, f: impl FnOnce() -> Result<()>) -> Result<Graph> {
        ask!(self.card.functions, cuStreamBeginCapture_v2(self.handle.0, CAPTURE_OF_THIS_THREAD))?;
        let queued = f();
        let mut graph = null_mut();
        // also where `f` failed: the stream must be able to go on
        let ended = ask!(self.card.functions, cuStreamEndCapture(self.handle.0, &mut graph));
        queued.and(ended)?;
        let mut executable = null_mut();
        let made = ask!(self.card.functions, cuGraphInstantiateWithFlags(&mut executable, graph, 0));
        let _ = ask!(self.card.functions, cuGraphDestroy(graph));
        made?;
        Ok(Graph { card: Arc::clone(&self.card), handle: Handle(executable) })
    }

    /// Queues what was kept.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        ask!(self.card.functions, cuGraphLaunch(graph.handle.0, self.handle.0))
    }

    /// Waits until all of it is done.
    pub fn wait(&self) -> Result<()> {
        ask!(self.card.functions, cuStreamSynchronize(self.handle.0))
    }

    /// Notes the moment at which everything queued so far is done.
    pub fn record(&self, event: &Event) -> Result<()> {
        ask!(self.card.functions, cuEventRecord(event.handle.0, self.handle.0))
    }

    /// What is queued from now on waits for that moment.
    pub fn after(&self, event: &Event) -> Result<()> {
        ask!(self.card.functions, cuStreamWaitEvent(self.handle.0, event.handle.0, 0))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _bound = self.card.bind();
        let _ = self.wait();
        let _ = ask!(self.card.functions, cuStreamDestroy_v2(self.handle.0));
    }
}

/// Work that was kept, to be queued at once and as often as wanted.
#[derive(Debug)]
pub(super) struct Graph {
    card: Arc<Card>,
    handle: Handle,
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _bound = self.card.bind();
        let _ = ask!(self.card.functions, cuGraphExecDestroy(self.handle.0));
    }
}

/// A kernel of a module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    function: Handle,
    name: &'static str,
}

/// Compiled kernels; they live as long as it.
#[derive(Debug)]
pub(super) struct Module {
    card: Arc<Card>,
    handle: Handle,
}

impl Module {
    /// Lets the driver compile a text in PTX.
    ///
    /// # Errors
    /// `Device` if it does not take it.
    pub fn new(card: &Arc<Card>, ptx: &CStr) -> Result<Module> {
        let mut module = null_mut();
        ask!(
            card.functions,
            cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 0, null_mut(), null_mut())
        )?;
        Ok(Module { card: Arc::clone(card), handle: Handle(module) })
    }

    /// A kernel by its name.
    pub fn kernel(&self, name: &'static str) -> Result<Kernel> {
        let mut function = null_mut();
        let text = CString::new(name).map_err(|_| Error::new(Kind::Internal, "a name with a NUL"))?;
        ask!(self.card.functions, cuModuleGetFunction(&mut function, self.handle.0, text.as_ptr()))?;
        Ok(Kernel { function: Handle(function), name })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _bound = self.card.bind();
        let _ = ask!(self.card.functions, cuModuleUnload(self.handle.0));
    }
}
