//! Which machine computes, by the name that people give it.

use super::Plan;
use crate::error::{Error, Kind, Result};
use std::fmt;

/// Where a program is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// This process's processor.
    #[default]
    Host,
    /// One of NVIDIA's GPUs.
    Cuda {
        /// Its number.
        index: usize,
        /// Bytes of its memory that may be taken; all that are free, if not told.
        memory: Option<u64>,
    },
}

impl Device {
    /// The device called `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// `Argument` for another name.
    pub fn named(name: &str) -> Result<Device> {
        let number = |n: &str| n.parse().ok().map(|index| Device::Cuda { index, memory: None });
        match name {
            "cpu" => Some(Device::Host),
            "cuda" => number("0"),
            _ => name.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| Error::expected(Kind::Argument, "device", "cpu or cuda:N, such as cuda:0", name))
    }

    /// The same with a promise of how much of its memory is taken at most.
    ///
    /// # Errors
    /// `Argument` for the host, whose memory has promises of its own.
    pub fn within(self, bytes: u64) -> Result<Device> {
        match self {
            Device::Cuda { index, .. } => Ok(Device::Cuda { index, memory: Some(bytes) }),
            Device::Host => {
                Err(Error::expected(Kind::Argument, "memory of a GPU", "a device such as cuda:0", "cpu"))
            }
        }
    }
}

/// Bytes of the host through which weights go to a device at a time, and everything else; so many pieces of each.
pub(super) const STAGED: [usize; 2] = [4 << 20, 512 << 10];
pub(super) const RING: usize = 4;

impl Device {
    /// Bytes of the host through which weights and rows go to a device: none for the host itself.
    pub fn host_bytes(self, plan: &Plan) -> u64 {
        match self {
            Device::Host => 0,
            Device::Cuda { .. } => {
                (RING * STAGED.iter().sum::<usize>() + 4 * plan.needs.rows * plan.width()) as u64
            }
        }
    }

    /// Bytes of the host at the end of a program.
    pub fn end_bytes(self, plan: &Plan) -> u64 {
        match self {
            Device::Host => plan.end_bytes(),
            // while it learns only losses come back
            Device::Cuda { .. } => (plan.ends * (4 + if plan.back { 0 } else { 4 * plan.vocabulary })) as u64,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Host => f.write_str("cpu"),
            Device::Cuda { index, .. } => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, device) in [
            ("cpu", Device::Host),
            ("cuda", Device::Cuda { index: 0, memory: None }),
            ("cuda:3", Device::Cuda { index: 3, memory: None }),
        ] {
            assert_eq!(Device::named(name).unwrap(), device);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert_eq!(Device::named(name).unwrap_err().kind(), Kind::Argument, "{name}");
        }
        assert!(Device::Host.within(5).is_err());
    }
}
