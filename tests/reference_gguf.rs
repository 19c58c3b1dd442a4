//! A file of the reference writer: every metadata type and some tensors are read exactly, and written again they give
//! the same bytes. `tests/data/reference_gguf.py` made it.

use onlay::format::gguf::{Builder, Value, ValueType, parse};
use onlay::format::types::Type;
use onlay::tensor::{Matrix, Weights};
use std::path::Path;

const FILE: &[u8] = include_bytes!("data/reference.gguf");

#[test]
fn metadata_of_every_type() {
    let directory = parse(FILE).unwrap();
    let m = directory.metadata(FILE);
    assert_eq!((directory.version(), directory.alignment(), m.len()), (3, 64, 21));
    for (key, value) in [
        ("general.architecture", Value::Text("reference")),
        ("general.alignment", Value::U32(64)),
        ("scalar.u8", Value::U8(200)),
        ("scalar.i8", Value::I8(-100)),
        ("scalar.u16", Value::U16(60_000)),
        ("scalar.i16", Value::I16(-30_000)),
        ("scalar.u32", Value::U32(4_000_000_000)),
        ("scalar.i32", Value::I32(-2_000_000_000)),
        ("scalar.u64", Value::U64(u64::MAX)),
        ("scalar.i64", Value::I64(i64::MIN)),
        ("scalar.f32", Value::F32(0.1)),
        ("scalar.f64", Value::F64(0.1)),
        ("scalar.true", Value::Bool(true)),
        ("scalar.false", Value::Bool(false)),
        ("scalar.text", Value::Text("Grüße, 世界")),
    ] {
        assert_eq!(m.get(key), Some(value), "{key}");
    }
    assert_eq!(m.need_u32s("array.u8").unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(m.need_i32s("array.i32").unwrap(), [1, -2, 3]);
    assert_eq!(m.need_f32s("array.f32").unwrap(), [0.5, -1.5]);
    assert_eq!(m.need_bools("array.bool").unwrap(), [true, false, true]);
    let words = m.need_texts("array.text").unwrap();
    assert!(words.iter().eq(["<s>", "", "▁the", "é"].map(str::as_bytes)));
    let Some(Value::Array(outer)) = m.get("array.arrays") else { panic!("an array") };
    assert_eq!((outer.kind(), outer.len()), (ValueType::Array, 2));
    let inner: Vec<Vec<_>> = outer
        .iter()
        .map(|v| match v {
            Value::Array(a) => a.iter().collect(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(inner, [vec![Value::I32(1), Value::I32(2)], vec![Value::I32(3)]]);
}

#[test]
fn tensors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference.gguf");
    let weights = Weights::open(&path).unwrap();
    let table: Vec<_> = weights
        .tensors()
        .map(|t| (t.name(), t.kind(), t.dims().to_vec(), t.offset(), t.bytes().len()))
        .collect();
    assert_eq!(
        table,
        [
            ("dense.f32", Type::F32, vec![6, 2], 1024, 48),
            ("dense.f16", Type::F16, vec![3, 2, 1], 1088, 12),
            ("blocks.q8_0", Type::Q8_0, vec![64, 3], 1152, 204),
            ("dense.bf16", Type::BF16, vec![4, 1], 1408, 8),
            ("one", Type::F32, vec![1], 1472, 4),
        ]
    );
    let rows = |name: &str| -> Vec<f32> {
        let m = Matrix::new(weights.need(name).unwrap()).unwrap();
        let mut all = vec![0.0; m.rows * m.cols];
        all.chunks_mut(m.cols).enumerate().for_each(|(i, row)| m.decode_row(i, row));
        all
    };
    assert_eq!(rows("dense.f32"), (0..12).map(|i| i as f32 / 8.0 - 0.5).collect::<Vec<_>>());
    assert_eq!(rows("dense.f16"), (0..6).map(|i| i as f32 / 4.0 - 0.5).collect::<Vec<_>>());
    assert_eq!(rows("dense.bf16"), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(rows("one"), [7.0]);
    for (i, x) in rows("blocks.q8_0").iter().enumerate() {
        // within half a step of 8 bits and the rounding of the scale to f16
        assert!((x - (i as f32 / 32.0 - 3.0)).abs() < 3.0 / 127.0 * 0.51 + 3.0 / 2048.0, "{i}: {x}");
    }
}

#[test]
fn written_again_it_is_the_same_file() {
    let directory = parse(FILE).unwrap();
    let mut builder = Builder::new();
    builder.copy(directory.metadata(FILE));
    for t in directory.tensors() {
        builder.tensor(t.name(FILE), t.kind(), t.dims(), t.data(FILE));
    }
    let mut again = Vec::new();
    builder.write(&mut again).unwrap();
    assert!(again == FILE, "the bytes differ");
}

#[test]
fn version_2_has_the_same_layout() {
    let mut old = FILE.to_vec();
    old[4] = 2;
    let (two, three) = (parse(&old).unwrap(), parse(FILE).unwrap());
    assert_eq!((two.version(), two.tensors()), (2, three.tensors()));
    assert!(two.metadata(&old).keys().eq(three.metadata(FILE).keys()));
}
