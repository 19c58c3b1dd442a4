//! The tensor types of GGUF: number, name, and the size of a block.
//!
//! Every type that a file may name is known here, so that any well-formed file can be listed and its tensors found;
//! whether there are kernels for a type is another question (`onlay_kernels::quant::FORMATS`).
//!
//! The numbers are ggml's `enum ggml_type` (`ggml.h`) and the sizes those of its block structs (`ggml-common.h`, July
//! 2026). The `gguf` Python package says 40 bytes for Q8_1, where the struct has had 36 since its scales became f16;
//! the struct is what programs read.

use crate::error::{Error, Kind, Result};
use std::fmt;

/// One tensor type: `block_len` weights lie in `block_bytes` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Type {
    id: u32,
    name: &'static str,
    block_len: u32,
    block_bytes: u32,
}

macro_rules! types {
    ($($constant:ident $id:literal $name:literal $len:literal $bytes:literal)*) => {
        impl Type {
            $(
                #[doc = concat!("`", $name, "`: ", $len, " weights in ", $bytes, " bytes.")]
                pub const $constant: Type = Type { id: $id, name: $name, block_len: $len, block_bytes: $bytes };
            )*
        }

        /// Every known type, in the order of their numbers.
        pub static TYPES: &[Type] = &[$(Type::$constant),*];
    };
}

types! {
    F32      0 "F32"       1   4
    F16      1 "F16"       1   2
    Q4_0     2 "Q4_0"     32  18
    Q4_1     3 "Q4_1"     32  20
    Q5_0     6 "Q5_0"     32  22
    Q5_1     7 "Q5_1"     32  24
    Q8_0     8 "Q8_0"     32  34
    Q8_1     9 "Q8_1"     32  36
    Q2_K    10 "Q2_K"    256  84
    Q3_K    11 "Q3_K"    256 110
    Q4_K    12 "Q4_K"    256 144
    Q5_K    13 "Q5_K"    256 176
    Q6_K    14 "Q6_K"    256 210
    Q8_K    15 "Q8_K"    256 292
    IQ2_XXS 16 "IQ2_XXS" 256  66
    IQ2_XS  17 "IQ2_XS"  256  74
    IQ3_XXS 18 "IQ3_XXS" 256  98
    IQ1_S   19 "IQ1_S"   256  50
    IQ4_NL  20 "IQ4_NL"   32  18
    IQ3_S   21 "IQ3_S"   256 110
    IQ2_S   22 "IQ2_S"   256  82
    IQ4_XS  23 "IQ4_XS"  256 136
    I8      24 "I8"        1   1
    I16     25 "I16"       1   2
    I32     26 "I32"       1   4
    I64     27 "I64"       1   8
    F64     28 "F64"       1   8
    IQ1_M   29 "IQ1_M"   256  56
    BF16    30 "BF16"      1   2
    TQ1_0   34 "TQ1_0"   256  54
    TQ2_0   35 "TQ2_0"   256  66
    MXFP4   39 "MXFP4"    32  17
    NVFP4   40 "NVFP4"    64  36
    Q1_0    41 "Q1_0"    128  18
    Q2_0    42 "Q2_0"     64  18
}

/// Numbers that once had a meaning and may not be read any more, with what took their place.
static REMOVED: &[(u32, &str, &str)] = &[
    (4, "Q4_2", "removed in 2023, before GGUF"),
    (5, "Q4_3", "removed in 2023, before GGUF"),
    (31, "Q4_0_4_4", "removed; the file must be made again as Q4_0"),
    (32, "Q4_0_4_8", "removed; the file must be made again as Q4_0"),
    (33, "Q4_0_8_8", "removed; the file must be made again as Q4_0"),
    (36, "IQ4_NL_4_4", "removed; the file must be made again as IQ4_NL"),
    (37, "IQ4_NL_4_8", "removed; the file must be made again as IQ4_NL"),
    (38, "IQ4_NL_8_8", "removed; the file must be made again as IQ4_NL"),
];

impl Type {
    /// The type of a number in a file.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a number that has no meaning here, and by name for one that was removed.
    pub fn from_id(id: u32) -> Result<Type> {
        if let Some(known) = TYPES.iter().find(|t| t.id == id) {
            return Ok(*known);
        }
        Err(match REMOVED.iter().find(|r| r.0 == id) {
            Some((_, name, why)) => {
                Error::new(Kind::Unsupported, format!("tensor type {id} ({name}) was {why}"))
            }
            None => Error::new(
                Kind::Unsupported,
                format!("tensor type {id} is unknown (the known ones end at {})", TYPES[TYPES.len() - 1].id),
            ),
        })
    }

    /// The type called `name`, in any case, for example `q4_k`; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Type> {
        TYPES.iter().copied().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self.id
    }

    /// The field's name, for example `Q4_K`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Weights per block; 1 for the types that are not blocks.
    pub fn block_len(self) -> usize {
        self.block_len as usize
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.block_bytes as usize
    }

    /// The bytes of a row of `cols` weights; `None` if `cols` is not whole blocks or the bytes cannot be counted.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols % self.block_len() != 0 {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_with_kernels_agree() {
        for f in onlay_kernels::quant::FORMATS {
            let t = Type::from_id(f.id).unwrap();
            assert_eq!((t.name(), t.block_len(), t.block_bytes()), (f.name, f.len, f.bytes));
        }
    }

    #[test]
    fn the_table_is_in_order_and_without_doubles() {
        assert!(TYPES.windows(2).all(|w| w[0].id < w[1].id));
        assert!(REMOVED.iter().all(|r| TYPES.iter().all(|t| t.id != r.0)));
        for t in TYPES {
            assert_eq!(Type::from_name(&t.name.to_lowercase()), Some(*t));
            assert_eq!(Type::from_id(t.id).unwrap(), *t);
        }
    }

    #[test]
    fn removed_and_unknown_numbers_are_told_apart() {
        let text = |id| Type::from_id(id).unwrap_err().to_string();
        assert_eq!(text(33), "tensor type 33 (Q4_0_8_8) was removed; the file must be made again as Q4_0");
        assert_eq!(text(43), "tensor type 43 is unknown (the known ones end at 42)");
        assert_eq!(Type::from_id(u32::MAX).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(Type::Q4_K.row_bytes(512), Some(288));
        assert_eq!(Type::Q4_K.row_bytes(500), None);
        assert_eq!(Type::F64.row_bytes(usize::MAX), None);
    }
}
