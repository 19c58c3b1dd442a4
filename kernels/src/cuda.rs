//! The kernels for NVIDIA's GPUs, as the PTX that `cuda/gen_ptx.py` makes of `cuda/*.cu`. Every driver compiles it for the
//! card at hand.

use std::ffi::CStr;

/// One file of kernels. The texts end with a NUL, for drivers.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Of the source, without its ending.
    pub name: &'static str,
    turing: &'static str,
    ampere: Option<&'static str>,
}

macro_rules! text {
    ($name:literal) => {
        concat!(include_str!(concat!("../cuda/ptx/", $name, ".ptx")), "\0")
    };
}

const fn file(name: &'static str, turing: &'static str) -> File {
    File { name, turing, ampere: None }
}

/// All of them.
pub static FILES: &[File] = &[
    file("attend", text!("attend.75")),
    file("layers", text!("layers.75")),
    file("learn", text!("learn.75")),
    file("matmul", text!("matmul.75")),
    File { ampere: Some(text!("matmul_tensor.80")), ..file("matmul_tensor", text!("matmul_tensor.75")) },
    file("matvec", text!("matvec.75")),
    file("rows", text!("rows.75")),
];

impl File {
    /// PTX for cards from Turing (7.5) on, or from Ampere (8.0) on where there is one of that kind.
    pub fn ptx(&self, ampere: bool) -> &'static CStr {
        let text = self.ampere.filter(|_| ampere).unwrap_or(self.turing);
        CStr::from_bytes_until_nul(text.as_bytes()).expect("the texts end with a NUL")
    }

    /// Whether it has a kernel of this name.
    pub fn has(&self, kernel: &str) -> bool {
        self.turing.contains(&format!(".entry {kernel}("))
    }
}
