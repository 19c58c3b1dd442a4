//! One frozen weight, borrowed from the map.

use super::weights::TensorRef;
use crate::error::{Error, Kind, Result};
use crate::format::types::Type;
use onlay_kernels::Level;
use onlay_kernels::acts::Grain;
use onlay_kernels::dense::{self, Dense};
use onlay_kernels::quant::{FORMATS, Format};
use std::fmt;

/// How a matrix keeps its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage {
    /// One by one.
    Dense(Dense),
    /// In blocks that share scales.
    Block(&'static Format),
}

impl Storage {
    /// The storage of a tensor type; `None` for the types that have no kernels.
    pub fn of(kind: Type) -> Option<Storage> {
        Some(match kind {
            Type::F32 => Storage::Dense(Dense::F32),
            Type::F16 => Storage::Dense(Dense::F16),
            Type::BF16 => Storage::Dense(Dense::Bf16),
            other => Storage::Block(FORMATS.iter().find(|f| f.id == other.id())?),
        })
    }

    /// The tensor type, which knows the sizes.
    pub fn kind(self) -> Type {
        match self {
            Storage::Dense(Dense::F32) => Type::F32,
            Storage::Dense(Dense::F16) => Type::F16,
            Storage::Dense(Dense::Bf16) => Type::BF16,
            // a test holds the two tables together
            Storage::Block(format) => Type::from_id(format.id).expect("every format is a tensor type"),
        }
    }

    /// How activations are rounded for products with it; dense weights take them as they are.
    pub fn grain(self) -> Option<Grain> {
        match self {
            Storage::Dense(_) => None,
            Storage::Block(f) => Some(f.grain),
        }
    }

    /// The names of everything that has kernels.
    fn supported() -> String {
        let blocks = FORMATS.iter().map(|f| f.name);
        ["F32", "F16", "BF16"].into_iter().chain(blocks).collect::<Vec<_>>().join(", ")
    }

    /// What the kernels ask of the address of a row.
    fn align(self) -> usize {
        match self {
            Storage::Dense(dense) => dense.bytes(),
            Storage::Block(_) => 1,
        }
    }
}

/// `rows` outputs of `cols` inputs: W of y = x·Wᵀ.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Number format.
    pub storage: Storage,
    /// Outputs.
    pub rows: usize,
    /// Inputs: the row length.
    pub cols: usize,
    /// Bytes from one row to the next.
    pub row_bytes: usize,
    /// `rows · row_bytes` bytes.
    pub bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A tensor as a matrix: `dims[0]` columns and all the other dims together as rows. A vector is one row; a stack
    /// of matrices (experts) is cut apart with [`Matrix::narrow`].
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a type without kernels, naming it and those that have them.
    pub fn new(tensor: TensorRef<'a>) -> Result<Matrix<'a>> {
        let Some(storage) = Storage::of(tensor.kind()) else {
            let text =
                format!("type {} is not supported yet (supported: {})", tensor.kind(), Storage::supported());
            return Err(tensor.error(Kind::Unsupported, text));
        };
        let cols = tensor.dims()[0];
        Matrix::from_bytes(storage, tensor.elements() / cols, cols, tensor.bytes())
            .map_err(|e| tensor.error(e.kind(), e.text()))
    }

    /// A tensor that must have exactly this shape.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] for another shape; otherwise as [`Matrix::new`].
    pub fn shaped(tensor: TensorRef<'a>, rows: usize, cols: usize) -> Result<Matrix<'a>> {
        let matrix = Matrix::new(tensor)?;
        if (matrix.rows, matrix.cols) != (rows, cols) {
            let found = tensor.dims();
            let text = format!("shape: expected {rows} rows of {cols}, found {found:?} (row length first)");
            return Err(tensor.error(Kind::Mismatch, text));
        }
        Ok(matrix)
    }

    /// A matrix over bytes that are not in a file.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] if the rows are empty or not whole blocks, or if `bytes` are not exactly `rows` of them;
    /// [`Kind::Format`] if they lie at an address that the weights' type does not allow.
    pub fn from_bytes(storage: Storage, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Matrix<'a>> {
        let kind = storage.kind();
        let row_bytes = kind.row_bytes(cols).filter(|&n| n > 0).ok_or_else(|| {
            let whole = format!("whole blocks of {}", kind.block_len());
            Error::expected(Kind::Mismatch, &format!("columns of a {kind} matrix"), whole, cols)
        })?;
        if rows.checked_mul(row_bytes) != Some(bytes.len()) {
            let expected = format!("{rows} rows of {row_bytes}");
            return Err(Error::expected(Kind::Mismatch, "bytes of a matrix", expected, bytes.len()));
        }
        if bytes.as_ptr().addr() % storage.align() != 0 {
            let expected = format!("a multiple of {}", storage.align());
            return Err(Error::expected(Kind::Format, "address of the weights", expected, "another"));
        }
        Ok(Matrix { storage, rows, cols, row_bytes, bytes })
    }

    /// The tensor type.
    pub fn kind(&self) -> Type {
        self.storage.kind()
    }

    /// The bytes of one row.
    pub fn row(&self, i: usize) -> &'a [u8] {
        self.part(i, 1)
    }

    /// The bytes of some rows.
    pub fn part(&self, first: usize, rows: usize) -> &'a [u8] {
        &self.bytes[first * self.row_bytes..(first + rows) * self.row_bytes]
    }

    /// Some rows as a matrix.
    pub fn narrow(&self, first: usize, rows: usize) -> Matrix<'a> {
        Matrix { rows, bytes: self.part(first, rows), ..*self }
    }

    /// Elements `from..from + out.len()` of one row as f32; both ends at block boundaries.
    pub fn decode(&self, level: Level, row: usize, from: usize, out: &mut [f32]) {
        let bytes = self.part(row, 1);
        match self.storage {
            Storage::Dense(d) => {
                dense::decode(level, d, &bytes[from * d.bytes()..][..out.len() * d.bytes()], out)
            }
            Storage::Block(f) => {
                let at = from / f.len * f.bytes;
                (f.decode_fast)(level, &bytes[at..at + out.len() / f.len * f.bytes], out);
            }
        }
    }

    /// Asks for what [`Matrix::decode`] will read, if the row is there.
    pub fn ask(&self, level: Level, row: usize, from: usize, len: usize) {
        if row < self.rows {
            let bytes = |elements: usize| match self.storage {
                Storage::Dense(d) => elements * d.bytes(),
                Storage::Block(f) => elements / f.len * f.bytes,
            };
            onlay_kernels::decode::ask(level, &self.part(row, 1)[bytes(from)..][..bytes(len)]);
        }
    }

    /// One row as f32, exactly as the format defines it. Panics past the end, or if `out` has not `cols` numbers.
    pub fn decode_row(&self, i: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row has {} weights", self.cols);
        self.decode(Level::chosen().unwrap_or(Level::PORTABLE), i, 0, out);
    }
}

/// Without the weights.
impl fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} rows of {} {})", self.rows, self.cols, self.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::types::TYPES;
    use crate::rng::Rng;
    use std::path::Path;

    /// Random bytes at an address that every storage allows; finite as any of the dense types.
    fn weights(n: usize) -> Vec<f32> {
        let mut rng = Rng::new(n as u64);
        (0..n.div_ceil(4)).map(|_| f32::from_bits(rng.next_u64() as u32 & 0x3bff_3bff)).collect()
    }

    #[test]
    fn every_storage_is_a_type_and_back() {
        let with: Vec<_> = TYPES.iter().filter_map(|t| Storage::of(*t)).collect();
        assert_eq!(with.len(), FORMATS.len() + 3);
        for storage in with {
            assert_eq!(Storage::of(storage.kind()), Some(storage));
        }
    }

    #[test]
    fn rows_are_decoded_where_they_lie() {
        for kind in TYPES.iter().filter(|t| Storage::of(**t).is_some()) {
            let (rows, cols) = (3, 2 * kind.block_len().max(9));
            let row_bytes = kind.row_bytes(cols).unwrap();
            let store = weights(rows * row_bytes);
            let bytes = &bytemuck::cast_slice::<f32, u8>(&store)[..rows * row_bytes];
            let storage = Storage::of(*kind).unwrap();
            let m = Matrix::from_bytes(storage, rows, cols, bytes).unwrap();
            assert_eq!(m.row(1), &bytes[row_bytes..2 * row_bytes]);
            assert_eq!(m.narrow(1, 2).row(1), m.row(2));
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let (mut all, mut row, mut half) = (vec![0.0; rows * cols], vec![0.0; cols], vec![0.0; cols / 2]);
            Matrix::from_bytes(storage, 1, rows * cols, bytes).unwrap().decode_row(0, &mut all);
            for i in 0..rows {
                m.decode_row(i, &mut row);
                assert_eq!(bits(&row), bits(&all[i * cols..(i + 1) * cols]), "{kind}");
                m.decode(Level::PORTABLE, i, cols / 2, &mut half);
                assert_eq!(bits(&half), bits(&row[cols / 2..]), "{kind}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let store = weights(36);
        let bytes = &bytemuck::cast_slice::<f32, u8>(&store)[..36];
        let of = |t| Storage::of(t).unwrap();
        let refuse = |t, rows, cols, b| Matrix::from_bytes(of(t), rows, cols, b).unwrap_err().to_string();
        assert_eq!(
            refuse(Type::Q4_0, 2, 33, bytes),
            "columns of a Q4_0 matrix: expected whole blocks of 32, found 33"
        );
        assert_eq!(refuse(Type::Q4_0, 3, 32, bytes), "bytes of a matrix: expected 3 rows of 18, found 36");
        assert!(refuse(Type::F32, 4, 2, &bytes[2..34]).contains("multiple of 4"));
        assert!(Matrix::from_bytes(of(Type::Q4_0), 1, 32, &bytes[1..19]).is_ok());
        assert!(Matrix::from_bytes(of(Type::F32), 1, 0, &[]).is_err());
    }

    #[test]
    fn types_without_kernels_are_named_with_those_that_have_them() {
        let mut file = Vec::new();
        let mut b = crate::format::gguf::Builder::new();
        b.tensor("w", Type::IQ2_XS, &[256], &[0; 74]).tensor("v", Type::Q8_0, &[32, 2, 3], &[0; 204]);
        b.write(&mut file).unwrap();
        let d = crate::format::gguf::parse(&file).unwrap();
        let tensor = |name| TensorRef::new(d.tensor(name, &file).unwrap(), &file, Path::new("m.gguf"));
        let error = Matrix::new(tensor("w")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        let text = error.to_string();
        assert!(
            text.starts_with("m.gguf: tensor w: type IQ2_XS is not supported yet (supported: F32"),
            "{text}"
        );
        assert!(text.contains("IQ4_XS"), "{text}");
        assert_eq!(Matrix::new(tensor("v")).unwrap().rows, 6);
        let text = Matrix::shaped(tensor("v"), 3, 32).unwrap_err().to_string();
        let end = "tensor v: shape: expected 3 rows of 32, found [32, 2, 3] (row length first)";
        assert!(text.ends_with(end), "{text}");
    }
}
