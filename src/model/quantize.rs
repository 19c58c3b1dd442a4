//! A model file again with smaller matrices.
//!
//! Every matrix of the program's kind (two dimensions, named `.weight`) is decoded and encoded row by row; vectors and
//! everything else keep their bytes. Rows that a format's blocks do not divide take the nearest format that fits, and
//! the report says so. Some rows at a time, so memory holds a few rows whatever the model's size.
//!
//! # Mixtures
//! `Q4_K_M` and its kin give more bits to the matrices that suffer most: the head, and in some layers the values and the
//! last product of the feed-forward (llama.cpp's choice of layers: the first and last eighth and every third between).

use crate::error::{Error, Findings, Kind, Result};
use crate::format::files::write_atomically;
use crate::format::gguf::{Builder, Sink};
use crate::format::types::Type;
use crate::tensor::{Matrix, Slots, Storage, Team, TensorRef, Weights};
use onlay_kernels::Level;
use onlay_kernels::dense::{self, Dense};
use std::cell::RefCell;
use std::path::Path;

/// What the matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Its name, for example `Q4_K_M`.
    pub name: &'static str,
    /// Most matrices.
    pub most: Type,
    /// The head, and the values and last products of some layers.
    pub some: Type,
    /// llama.cpp's number for it (`general.file_type`).
    pub file_type: u32,
}

/// What a model can be quantized to.
pub static MIXTURES: &[Mixture] = &[
    Mixture { name: "F32", most: Type::F32, some: Type::F32, file_type: 0 },
    Mixture { name: "F16", most: Type::F16, some: Type::F16, file_type: 1 },
    Mixture { name: "BF16", most: Type::BF16, some: Type::BF16, file_type: 32 },
    Mixture { name: "Q4_0", most: Type::Q4_0, some: Type::Q4_0, file_type: 2 },
    Mixture { name: "Q4_1", most: Type::Q4_1, some: Type::Q4_1, file_type: 3 },
    Mixture { name: "Q5_0", most: Type::Q5_0, some: Type::Q5_0, file_type: 8 },
    Mixture { name: "Q5_1", most: Type::Q5_1, some: Type::Q5_1, file_type: 9 },
    Mixture { name: "Q8_0", most: Type::Q8_0, some: Type::Q8_0, file_type: 7 },
    Mixture { name: "Q2_K", most: Type::Q2_K, some: Type::Q2_K, file_type: 10 },
    Mixture { name: "Q3_K", most: Type::Q3_K, some: Type::Q3_K, file_type: 11 },
    Mixture { name: "Q3_K_M", most: Type::Q3_K, some: Type::Q5_K, file_type: 12 },
    Mixture { name: "Q4_K", most: Type::Q4_K, some: Type::Q4_K, file_type: 14 },
    Mixture { name: "Q4_K_M", most: Type::Q4_K, some: Type::Q6_K, file_type: 15 },
    Mixture { name: "Q5_K", most: Type::Q5_K, some: Type::Q5_K, file_type: 16 },
    Mixture { name: "Q5_K_M", most: Type::Q5_K, some: Type::Q6_K, file_type: 17 },
    Mixture { name: "Q6_K", most: Type::Q6_K, some: Type::Q6_K, file_type: 18 },
    Mixture { name: "IQ4_NL", most: Type::IQ4_NL, some: Type::IQ4_NL, file_type: 25 },
    Mixture { name: "IQ4_XS", most: Type::IQ4_XS, some: Type::IQ4_XS, file_type: 30 },
];

impl Mixture {
    /// The mixture of that name, whatever its case.
    ///
    /// # Errors
    /// `Argument` with the list of those there are.
    pub fn named(name: &str) -> Result<&'static Mixture> {
        MIXTURES.iter().find(|m| m.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known: Vec<_> = MIXTURES.iter().map(|m| m.name).collect();
            Error::expected(Kind::Argument, "format", known.join(", "), format!("{name:?}"))
        })
    }

    /// What the tensor called `name` becomes in a model of `layers` layers; `tied`: the table is the head too.
    fn of(&self, name: &str, layers: usize, tied: bool) -> Type {
        let head = name == "output.weight" || (tied && name == "token_embd.weight");
        let layer = name.strip_prefix("blk.").and_then(|n| n.split('.').next()?.parse::<usize>().ok());
        let more = |i: usize| i < layers / 8 || i >= 7 * layers / 8 || (i - layers / 8) % 3 == 2;
        let suffers = name.ends_with("attn_v.weight") || name.ends_with("ffn_down.weight");
        if head || (suffers && layer.is_some_and(more)) { self.some } else { self.most }
    }
}

/// What became of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Its name.
    pub tensor: String,
    /// Its type before.
    pub from: Type,
    /// Its type now.
    pub to: Type,
    /// It is not what was asked for, because the format's blocks do not divide its rows.
    pub instead_of: Option<Type>,
    /// ‖W‖²
    pub squares: f64,
    /// ‖Ŵ − W‖²
    pub lost: f64,
}

impl Quantized {
    /// ‖Ŵ − W‖ / ‖W‖
    pub fn error(&self) -> f64 {
        if self.lost == 0.0 { 0.0 } else { (self.lost / self.squares).sqrt() }
    }
}

/// Rows that a member takes at a time.
const ROWS: usize = 16;

struct Work<'a> {
    team: Team,
    level: Level,
    report: Vec<Quantized>,
    written: u64,
    all: u64,
    watch: &'a mut dyn FnMut(u64, u64) -> Result<()>,
}

/// Memory of one member.
#[derive(Default)]
struct Rows {
    numbers: Vec<f32>,
    bytes: Vec<u8>,
    back: Vec<f32>,
    squares: f64,
    lost: f64,
    bad: Option<(usize, usize)>,
}

/// Writes `weights` to `path` as `mixture`. `watch(done, all)` is told how many bytes of the file are written, and may
/// stop it with an error.
///
/// # Errors
/// `Argument` for a path that is one of the files being read, or that exists unless `overwrite`; `Unsupported` for
/// matrices of a type without kernels, all of them; `Numeric` naming the first weight that is not finite; `Io`.
pub fn quantize(
    weights: &Weights,
    mixture: &Mixture,
    path: &Path,
    overwrite: bool,
    threads: usize,
    watch: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<Quantized>> {
    let same = |other: &Path| path.canonicalize().is_ok_and(|p| other.canonicalize().is_ok_and(|o| o == p));
    if weights.paths().any(same) {
        return Err(Error::new(Kind::Argument, "is the model that is being read").in_file(path));
    }
    let level = Level::chosen().map_err(|text| Error::new(Kind::Argument, text))?;
    let work = RefCell::new(Work {
        team: Team::new(threads)?,
        level,
        report: Vec::new(),
        written: 0,
        all: 0,
        watch,
    });
    let layers = (0..).take_while(|i| weights.tensor(&format!("blk.{i}.attn_norm.weight")).is_some()).count();
    let tied = weights.tensor("output.weight").is_none();
    let mut wrong = Findings::default();
    let mut builder = Builder::new();
    builder.copy(weights.metadata()).set("general.file_type", mixture.file_type);
    builder.set("general.quantization_version", 2u32);
    for tensor in weights.tensors() {
        if tensor.dims().len() != 2 || !tensor.name().ends_with(".weight") {
            copy(&mut builder, &tensor, &work);
            continue;
        }
        let Some(matrix) = wrong.keep(Matrix::new(tensor)) else { continue };
        let asked = mixture.of(tensor.name(), layers, tied);
        let to = fitting(asked, matrix.cols);
        if to == matrix.kind() {
            copy(&mut builder, &tensor, &work);
            continue;
        }
        let (name, work) = (tensor.name(), &work);
        builder.tensor_from(name, to, tensor.dims(), move |sink| {
            let mut work = work.borrow_mut();
            let (squares, lost) = encode(&mut work, &matrix, to, sink)?; // the writer adds the tensor's name
            let instead_of = (to != asked).then_some(asked);
            let from = matrix.kind();
            work.report.push(Quantized { tensor: name.into(), from, to, instead_of, squares, lost });
            Ok(())
        });
    }
    wrong.refuse("not all matrices can be quantized").map_err(|e| e.in_file(weights.path()))?;
    work.borrow_mut().all = builder.file_len()?;
    write_atomically(path, overwrite, |file| builder.write(file))?;
    Ok(work.into_inner().report)
}

fn copy<'a>(builder: &mut Builder<'a>, tensor: &TensorRef<'a>, work: &'a RefCell<Work<'_>>) {
    let bytes = tensor.bytes();
    builder.tensor_from(tensor.name(), tensor.kind(), tensor.dims(), move |sink| {
        for part in bytes.chunks(1 << 22) {
            sink.put(part)?;
            work.borrow_mut().tell(part.len())?;
        }
        Ok(())
    });
}

/// `asked`, or the format of about its size whose blocks divide `cols`.
fn fitting(asked: Type, cols: usize) -> Type {
    let fits = |t: Type| t.row_bytes(cols).is_some();
    let smaller = match asked {
        Type::Q2_K | Type::Q3_K | Type::IQ4_XS => Type::IQ4_NL,
        Type::Q4_K => Type::Q5_0,
        Type::Q5_K => Type::Q5_1,
        _ => Type::Q8_0,
    };
    [asked, smaller, Type::F16].into_iter().find(|t| fits(*t)).unwrap_or(Type::F16)
}

impl Work<'_> {
    fn tell(&mut self, bytes: usize) -> Result<()> {
        self.written += bytes as u64;
        (self.watch)(self.written, self.all)
    }
}

/// Encodes `matrix` into `sink`; ‖W‖² and ‖Ŵ − W‖².
fn encode(work: &mut Work<'_>, matrix: &Matrix<'_>, to: Type, sink: &mut Sink<'_>) -> Result<(f64, f64)> {
    let storage = Storage::of(to).expect("mixtures are of types with kernels");
    let row_bytes = to.row_bytes(matrix.cols).expect("checked to fit");
    let (cols, level) = (matrix.cols, work.level);
    let members = work.team.len();
    let slots = Slots::new(8 * members, |_| Rows::default());
    let (mut squares, mut lost) = (0.0, 0.0);
    for first in (0..matrix.rows).step_by(ROWS * slots.len()) {
        let count = (matrix.rows - first).div_ceil(ROWS).min(slots.len());
        work.team.each(count, |_, i| {
            let rows = first + i * ROWS..(first + (i + 1) * ROWS).min(matrix.rows);
            let Rows { numbers, bytes, back, squares, lost, bad } = &mut *slots.get(i);
            numbers.resize(rows.len() * cols, 0.0);
            back.resize(rows.len() * cols, 0.0);
            bytes.resize(rows.len() * row_bytes, 0);
            for (row, out) in rows.clone().zip(numbers.chunks_exact_mut(cols)) {
                matrix.decode(level, row, 0, out);
            }
            *bad = numbers.iter().position(|v| !v.is_finite()).map(|at| (rows.start + at / cols, at % cols));
            match storage {
                Storage::Dense(d) => {
                    dense::encode(d, numbers, bytes);
                    dense_back(d, bytes, back);
                }
                Storage::Block(f) => {
                    (f.encode)(numbers, bytes);
                    (f.decode_fast)(level, bytes, back);
                }
            }
            *squares = numbers.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            *lost = numbers.iter().zip(&*back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        });
        for i in 0..count {
            let rows = slots.read(i);
            if let Some((row, col)) = rows.bad {
                let what = format!("weight at row {row}, column {col}");
                return Err(Error::expected(Kind::Numeric, &what, "finite", "NaN or infinity"));
            }
            sink.put(&rows.bytes)?;
            squares += rows.squares;
            lost += rows.lost;
            work.tell(rows.bytes.len())?;
        }
    }
    Ok((squares, lost))
}

fn dense_back(d: Dense, bytes: &[u8], back: &mut [f32]) {
    if d == Dense::F32 {
        // a byte buffer may lie anywhere; F32 rows do not
        for (to, from) in back.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *to = f32::from_le_bytes(*from);
        }
    } else {
        for (to, from) in back.iter_mut().zip(bytes.as_chunks::<2>().0) {
            let bits = u16::from_le_bytes(*from);
            *to = if d == Dense::F16 {
                onlay_kernels::half::f16_to_f32(bits)
            } else {
                onlay_kernels::half::bf16_to_f32(bits)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtures_favour_what_suffers() {
        let m = Mixture::named("q4_k_m").unwrap();
        assert_eq!(m.of("output.weight", 16, false), Type::Q6_K);
        assert_eq!(m.of("token_embd.weight", 16, false), Type::Q4_K);
        assert_eq!(m.of("token_embd.weight", 16, true), Type::Q6_K);
        let more: Vec<usize> =
            (0..16).filter(|i| m.of(&format!("blk.{i}.ffn_down.weight"), 16, true) == Type::Q6_K).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert!(Mixture::named("Q9").unwrap_err().to_string().contains("Q4_K_M"));
    }

    #[test]
    fn rows_that_do_not_divide_take_the_next_format() {
        assert_eq!(fitting(Type::Q4_K, 512), Type::Q4_K);
        assert_eq!(fitting(Type::Q4_K, 96), Type::Q5_0);
        assert_eq!(fitting(Type::Q6_K, 96), Type::Q8_0);
        assert_eq!(fitting(Type::Q8_0, 33), Type::F16);
    }
}
