//! Kernels by name, compiled by the driver when they are first wanted.

use super::driver::Card;
use super::queue::{Kernel, Module};
use crate::error::{Error, Kind, Result};
use crate::tensor::Storage;
use onlay_kernels::cuda::FILES;
use std::collections::HashMap;
use std::sync::Arc;

/// The kernels of one device.
#[derive(Debug)]
pub(super) struct Kernels {
    card: Arc<Card>,
    modules: Vec<Option<Module>>,
    found: HashMap<&'static str, Kernel>,
}

impl Kernels {
    pub fn new(card: &Arc<Card>) -> Kernels {
        let modules = FILES.iter().map(|_| None).collect();
        Kernels { card: Arc::clone(card), modules, found: HashMap::new() }
    }

    /// A kernel.
    ///
    /// # Errors
    /// `Device` if the driver does not take the file that it is in.
    pub fn get(&mut self, name: &'static str) -> Result<Kernel> {
        if let Some(kernel) = self.found.get(name) {
            return Ok(*kernel);
        }
        let Some(i) = FILES.iter().position(|f| f.has(name)) else {
            return Err(Error::new(Kind::Internal, format!("no kernel is called {name}")));
        };
        let ptx = FILES[i].ptx(self.card.has_bf16());
        let module = match &mut self.modules[i] {
            Some(module) => module,
            none => none.insert(Module::new(&self.card, ptx).map_err(|e| {
                Error::new(
                    e.kind(),
                    format!("kernels {} on {}: {}", FILES[i].name, self.card.name(), e.text()),
                )
            })?),
        };
        let kernel = module.kernel(name)?;
        self.found.insert(name, kernel);
        Ok(kernel)
    }
}

/// Products of one row and of up to four with weights of a tensor type, by its number in GGUF files.
const FEW_ROWS: &[(u32, [&str; 2])] = &[
    (0, ["matvec_f32", "matvec4_f32"]),
    (1, ["matvec_f16", "matvec4_f16"]),
    (2, ["matvec_q4_0", "matvec4_q4_0"]),
    (3, ["matvec_q4_1", "matvec4_q4_1"]),
    (6, ["matvec_q5_0", "matvec4_q5_0"]),
    (7, ["matvec_q5_1", "matvec4_q5_1"]),
    (8, ["matvec_q8_0", "matvec4_q8_0"]),
    (10, ["matvec_q2_k", "matvec4_q2_k"]),
    (11, ["matvec_q3_k", "matvec4_q3_k"]),
    (12, ["matvec_q4_k", "matvec4_q4_k"]),
    (13, ["matvec_q5_k", "matvec4_q5_k"]),
    (14, ["matvec_q6_k", "matvec4_q6_k"]),
    (20, ["matvec_iq4_nl", "matvec4_iq4_nl"]),
    (23, ["matvec_iq4_xs", "matvec4_iq4_xs"]),
    (30, ["matvec_bf16", "matvec4_bf16"]),
];

/// The number of a storage, and its products of few rows.
///
/// # Errors
/// `Unsupported` for weights that have no kernels here.
pub(super) fn few_rows(storage: Storage) -> Result<(u32, [&'static str; 2])> {
    let id = storage.kind().id();
    let found = FEW_ROWS.iter().find(|(n, _)| *n == id);
    found.copied().ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("weights of type {} have no CUDA kernels", storage.kind()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use onlay_kernels::dense::Dense;
    use onlay_kernels::quant::FORMATS;

    #[test]
    fn every_format_of_the_host_has_kernels() {
        let dense = [Dense::F32, Dense::F16, Dense::Bf16].map(Storage::Dense);
        for storage in dense.into_iter().chain(FORMATS.iter().map(|f| Storage::Block(f))) {
            let (_, names) = few_rows(storage).unwrap();
            assert!(names.iter().all(|n| FILES.iter().any(|f| f.has(n))), "{names:?}");
        }
        assert!(!FILES.iter().any(|f| f.has("matvec")));
    }
}
