//! Who executes the steps of a program. [`Machine`] is the host, [`Cuda`](cuda::Cuda) one of NVIDIA's GPUs, with its
//! registers, keys and values in its own memory.

#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod end;
mod host;
mod outline;

pub use device::Device;
pub use end::End;
pub use host::{Machine, Plan};
pub use outline::{Outline, STREAMED};

use crate::error::Result;
use crate::ops::{Backward, Batch, Delta, Step, Tables};
use crate::tensor::{Register, Team};

#[cfg(not(feature = "cuda"))]
fn no_cuda() -> crate::Error {
    crate::Error::new(
        crate::Kind::Unsupported,
        "this build knows no GPU: it was made without the feature `cuda`",
    )
}

/// The memory that a device will hold besides the host's, in parts; none for the host itself.
///
/// # Errors
/// As [`open`].
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn device_parts(device: Device, plan: &Plan, outline: &Outline<'_>) -> Result<Vec<(&'static str, u64)>> {
    match device {
        Device::Host => Ok(vec![]),
        #[cfg(feature = "cuda")]
        Device::Cuda { index, memory } => cuda::parts(index, memory, plan, outline),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => Err(no_cuda()),
    }
}

/// Bytes per second that a device reads and writes when it copies its own memory: the pace of a memory-bound step.
///
/// # Errors
/// `Unsupported` for the host, whose ceilings are measured with its threads; as [`open`] for a device.
pub fn copied(device: Device) -> Result<f64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda { index, memory } => cuda::copied(index, memory),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => Err(no_cuda()),
        Device::Host => {
            Err(crate::Error::new(crate::Kind::Unsupported, "the host has no memory of a device"))
        }
    }
}

/// Takes what `plan` says, on the device that computes.
///
/// # Errors
/// `Memory` if it is not given, `Argument` for a shape of keys and values that cannot be kept; `Device` if there is no such
/// device or its driver refuses, `Unsupported` for what it cannot do or if this build knows none.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn open(device: Device, plan: &Plan, outline: &Outline<'_>, team: Team) -> Result<Box<dyn Backend>> {
    match device {
        Device::Host => Ok(Box::new(Machine::new(plan, team)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda { index, memory } => Ok(Box::new(cuda::Cuda::new(index, memory, plan, outline, team)?)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => Err(no_cuda()),
    }
}

/// A program, as far as a forward pass must know it.
pub struct Walk<'a> {
    /// Tokens to residual stream.
    pub embed: &'a Step,
    /// How many segments follow.
    pub segments: usize,
    /// The steps of each.
    pub steps: &'a dyn Fn(usize) -> &'a [Step],
    /// The residual stream at the start of a segment.
    pub residual: Register,
    /// The residual stream at its end.
    pub result: Register,
    /// Where the rows of the last segment part.
    pub parting: &'a Parting,
    /// The rows whose end somebody wants; `None`: all of them, or nobody knows.
    pub ends: Option<Ends<'a>>,
}

/// The place in a segment behind which rows no longer meet: its last attention.
#[derive(Clone, Debug, Default)]
pub struct Parting {
    /// The steps before it.
    pub steps: usize,
    /// What the steps behind it read of what was there before.
    pub live: Vec<Register>,
}

impl Parting {
    /// Of these steps.
    pub fn of(steps: &[Step]) -> Self {
        let last = steps.iter().rposition(|s| matches!(s, Step::Attend(_)));
        let (mut live, mut written) = (Vec::new(), Vec::new());
        for step in &steps[last.map_or(0, |i| i + 1)..] {
            for register in step.operation().reads() {
                if !written.contains(&register) && !live.contains(&register) {
                    live.push(register);
                }
            }
            written.extend(step.operation().writes());
        }
        Parting { steps: last.map_or(0, |i| i + 1), live }
    }
}

/// Some rows of a batch, ascending, and the batch that they are alone.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    /// Their numbers.
    pub rows: &'a [u32],
    /// As many rows; with none of them it is not looked at.
    pub batch: Batch<'a>,
}

/// Executes steps over the rows of a batch, in its own planned memory.
pub trait Backend: Send {
    /// For people and `inspect`.
    fn name(&self) -> String;

    /// Makes ready for rows that wear a layer: before every step in which some do.
    ///
    /// # Errors
    /// `Unsupported` for a layer that cannot be worn here, `Memory` if there is no room for it.
    fn admit(&mut self, delta: &dyn Delta) -> Result<()>;

    /// Whether everything so far was done, or on a device queued: to be asked after every step, before its results are used. After a failure
    /// nothing more is done.
    ///
    /// # Errors
    /// What failed first, such as a device that was lost.
    fn check(&mut self) -> Result<()>;

    /// Says how many rows the next steps work on, and in which of the planned frames.
    fn begin(&mut self, rows: usize, frame: usize);

    /// Computes a batch, from its tokens to the end of the program. Gives whether only the rows of `walk.ends` came so far,
    /// as the first ones of the residual stream.
    fn walk(&mut self, tables: &dyn Tables, walk: &Walk<'_>, batch: Batch<'_>) -> bool;

    /// Walks the list.
    fn forward(&mut self, tables: &dyn Tables, steps: &[Step], batch: Batch<'_>);

    /// Walks the list backward. Gradients are added to what the gradient registers hold. `wanted` says for each
    /// register whether its gradient is of use (all, if absent).
    fn backward(
        &mut self,
        tables: &dyn Tables,
        steps: &[Step],
        batch: Batch<'_>,
        wanted: Option<&[bool]>,
        learner: &dyn Backward,
    );

    /// Adds the gradients of the layer of a pass that were computed elsewhere than in its own memory: after every pass.
    fn collect(&mut self, learner: &dyn Backward, worn: &dyn Delta);

    /// Goes on in a frame, which may be another: `from` of the one at hand becomes `to` of that.
    fn advance(&mut self, from: Register, to: Register, frame: usize);

    /// Keeps the rows of a register in one of the planned streams.
    fn keep(&mut self, from: Register, stream: usize);

    /// Brings them back.
    fn recall(&mut self, stream: usize, to: Register);

    /// Clears all gradient registers.
    fn clear_grads(&mut self);

    /// Goes down a segment: the gradient of `from` becomes that of `to`, all others are cleared.
    fn descend(&mut self, from: Register, to: Register);

    /// The logits of some rows at the end of the program, in the backend's own memory.
    fn end(&mut self, tables: &dyn Tables, end: &End<'_>);

    /// The logits of so many rows, as [`Backend::end`] left them.
    ///
    /// # Errors
    /// As [`Backend::check`].
    fn logits(&mut self, rows: usize) -> Result<&mut [f32]>;

    /// The losses of those rows by their next tokens, `−log p`; with `scales` the logits become gradients of so many times
    /// that.
    ///
    /// # Errors
    /// As [`Backend::check`].
    fn losses(&mut self, targets: &[u32], scales: Option<&[f32]>, losses: &mut [f64]) -> Result<()>;

    /// Sends these gradients down: they are added to that of the residual stream, and to the learner's.
    fn end_back(&mut self, tables: &dyn Tables, end: &End<'_>, learner: &dyn Backward);

    /// Runs `f(i)` for every i below n, spread over whatever threads there are.
    fn each(&mut self, n: usize, f: &(dyn Fn(usize) + Sync));

    /// A tile for keys and values, if one is left.
    fn take_tile(&mut self) -> Option<u32>;

    /// Takes tiles back.
    fn give_tiles(&mut self, tiles: &mut Vec<u32>);

    /// Tiles nobody owns.
    fn free_tiles(&self) -> usize;
}
