//! Files that lie. Whatever the bytes, parsing ends soon, in an error or in a directory that keeps its promises.
//!
//! The corpus is made here, by script: known classes of parser vulnerabilities one by one with the words the error must
//! carry, then every truncation, interesting numbers at every offset, and random damage from a seed.

use onlay::error::{Kind, Result};
use onlay::format::gguf::{Directory, Value, parse};
use onlay::rng::Rng;
use onlay::tensor::Weights;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_millis(100);

/// A file put together without any checks.
#[derive(Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_keys: Option<u64>,
    /// Key, type, value as encoded.
    keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<Line>,
    alignment: usize,
    data: Vec<u8>,
}

#[derive(Clone)]
struct Line {
    name: Vec<u8>,
    n_dims: Option<u32>,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn array(kind: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
}

fn key(name: &str, kind: u32, value: impl AsRef<[u8]>) -> (Vec<u8>, u32, Vec<u8>) {
    (name.into(), kind, value.as_ref().into())
}

fn line(name: &str, dims: &[u64], kind: u32, offset: u64) -> Line {
    Line { name: name.into(), n_dims: None, dims: dims.into(), kind, offset }
}

impl File {
    /// Small, valid, and with something of everything.
    fn valid() -> File {
        let words = [string(b"<s>"), string(b""), string(b"\xff\xfe")].concat();
        File {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_keys: None,
            keys: vec![
                key("general.architecture", 8, string(b"llama")),
                key("llama.block_count", 4, 1u32.to_le_bytes()),
                key("flag", 7, [1]),
                key("words", 9, array(8, 3, &words)),
                key("rates", 9, array(6, 2, &[0; 8])),
                key("flags", 9, array(7, 2, &[0, 1])),
                key("nested", 9, array(9, 2, &[array(0, 3, &[1, 2, 3]), array(5, 0, &[])].concat())),
            ],
            tensors: vec![
                line("a", &[8, 2], 0, 0),
                line("b", &[32, 1, 2, 1], 8, 64),
                line("c", &[256], 12, 160),
            ],
            alignment: 32,
            data: vec![7; 160 + 144],
        }
    }

    /// Everything before the padding.
    fn head(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (name, kind, value) in &self.keys {
            out.extend(string(name));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend(t.n_dims.unwrap_or(t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        out
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.head();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// Parses within the limit; a machine that was busy elsewhere gets two more chances.
fn parse_soon(name: &str, bytes: &[u8]) -> Result<Directory> {
    for attempt in 1.. {
        let start = Instant::now();
        let result = parse(bytes);
        let took = start.elapsed();
        if took < LIMIT {
            return result;
        }
        assert!(attempt < 3, "{name}: took {took:?}");
    }
    unreachable!()
}

/// Every value and every tensor is where the directory says; returns how many things were looked at.
fn kept(directory: &Directory, bytes: &[u8]) -> usize {
    fn walk(value: Value<'_>) -> usize {
        match value {
            Value::Array(a) => 1 + a.iter().map(walk).sum::<usize>(),
            _ => 1,
        }
    }
    let m = directory.metadata(bytes);
    let mut seen = 0;
    for name in m.keys() {
        let value = m.get(name).expect("a key has a value");
        seen += walk(value);
        let _ = (m.u32(name), m.u64(name), m.i64(name), m.f32(name), m.bool(name), m.text(name));
        let _ = (m.f32s(name), m.i32s(name), m.u32s(name), m.bools(name));
        if let Ok(Some(texts)) = m.texts(name) {
            assert!(texts.iter().enumerate().all(|(i, t)| texts.get(i) == Some(t)));
        }
    }
    let mut places: Vec<_> = directory.tensors().iter().map(|t| (t.offset(), t.byte_len())).collect();
    for t in directory.tensors() {
        assert_eq!(t.data(bytes).len(), t.byte_len());
        assert!(t.offset() >= directory.data_start() && t.offset() + t.byte_len() <= bytes.len());
        assert_eq!((t.offset() as u64) % directory.alignment(), 0);
        let (len, rows) = (t.dims()[0], t.dims()[1..].iter().product::<usize>());
        assert_eq!(t.kind().row_bytes(len).unwrap() * rows, t.byte_len());
        assert_eq!(directory.tensor(t.name(bytes), bytes), Some(t));
    }
    places.sort_unstable();
    assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
    seen + places.len()
}

type Change = fn(&mut File);

/// What is done to the valid file, and what the error must say.
const CLASSES: &[(&str, &str, Change)] = &[
    // the header
    ("magic", "expected \"GGUF\", found \"GGML\"", |f| f.magic = *b"GGML"),
    ("magic backwards", "expected \"GGUF\"", |f| f.magic = *b"FUGG"),
    ("ggjt", "before GGUF", |f| f.magic = *b"tjgg"),
    ("version 0", "expected 2 or 3, found 0", |f| f.version = 0),
    ("version 1", "version 1", |f| f.version = 1),
    ("version 4", "found 4", |f| f.version = 4),
    ("version 2^32-1", "found 4294967295", |f| f.version = u32::MAX),
    ("big-endian 2", "big-endian", |f| f.version = 2 << 24),
    ("big-endian 3", "big-endian", |f| f.version = 3 << 24),
    ("tensors 2^60", "number of tensors", |f| f.n_tensors = Some(1 << 60)),
    ("tensors 2^63", "number of tensors", |f| f.n_tensors = Some(1 << 63)),
    ("tensors 2^64-1", "number of tensors", |f| f.n_tensors = Some(u64::MAX)),
    ("tensors 2^20", "do not fit", |f| f.n_tensors = Some(1 << 20)),
    ("one tensor more", "byte", |f| f.n_tensors = Some(4)),
    ("keys 2^60", "number of keys", |f| f.n_keys = Some(1 << 60)),
    ("keys 2^63", "number of keys", |f| f.n_keys = Some(1 << 63)),
    ("keys 2^64-1", "number of keys", |f| f.n_keys = Some(u64::MAX)),
    ("keys 2^16", "do not fit", |f| f.n_keys = Some(1 << 16)),
    ("one key more", "byte", |f| f.n_keys = Some(8)),
    ("one key fewer", "", |f| f.n_keys = Some(6)),
    // keys and values
    ("empty key", "is empty", |f| f.keys[1].0.clear()),
    ("key of 65536 bytes", "at most 65535 bytes", |f| f.keys[1].0 = vec![b'k'; 65_536]),
    ("key not UTF-8", "is not UTF-8", |f| f.keys[1].0 = b"\xff\xfe".to_vec()),
    ("key with an escape", "control characters", |f| f.keys[1].0 = b"\x1b[2J".to_vec()),
    ("key with a zero", "control characters", |f| f.keys[1].0 = b"a\0b".to_vec()),
    ("key twice", "there twice", |f| f.keys[3].0 = b"flag".to_vec()),
    ("type 13", "found 13", |f| f.keys[1].1 = 13),
    ("type 2^32-1", "found 4294967295", |f| f.keys[1].1 = u32::MAX),
    ("bool 2", "expected 0 or 1, found 2", |f| f.keys[2].2 = vec![2]),
    ("bool 255 in an array", "found 255", |f| f.keys[5].2 = array(7, 2, &[1, 255])),
    ("string 2^63", "does not fit", |f| f.keys[0].2 = (1u64 << 63).to_le_bytes().into()),
    ("string 2^64-1", "does not fit", |f| f.keys[0].2 = u64::MAX.to_le_bytes().into()),
    ("string 2^64-8", "does not fit", |f| f.keys[0].2 = (u64::MAX - 7).to_le_bytes().into()),
    ("string in an array 2^63", "does not fit", |f| f.keys[3].2 = array(8, 1, &(1u64 << 63).to_le_bytes())),
    ("array of 2^60 u8", "does not fit", |f| f.keys[4].2 = array(0, 1 << 60, &[])),
    ("array of 2^61 u64", "does not fit", |f| f.keys[4].2 = array(10, 1 << 61, &[])),
    ("array of 2^62 f32", "does not fit", |f| f.keys[4].2 = array(6, 1 << 62, &[])),
    ("array of 2^62+1 f32", "does not fit", |f| f.keys[4].2 = array(6, (1 << 62) + 1, &[])),
    ("array of 2^63 bools", "does not fit", |f| f.keys[4].2 = array(7, 1 << 63, &[])),
    ("array of 2^60 strings", "does not fit", |f| f.keys[3].2 = array(8, 1 << 60, &[])),
    ("array of 2^61 strings", "does not fit", |f| f.keys[3].2 = array(8, 1 << 61, &[])),
    ("array of 2^64-1 strings", "does not fit", |f| f.keys[3].2 = array(8, u64::MAX, &[])),
    ("array of 2^60 arrays", "does not fit", |f| f.keys[6].2 = array(9, 1 << 60, &[])),
    ("array of type 13", "found 13", |f| f.keys[4].2 = array(13, 1, &[0; 8])),
    ("array of type 2^32-1", "found 4294967295", |f| f.keys[4].2 = array(u32::MAX, 1, &[0; 8])),
    ("arrays 9 deep", "nested deeper than 8", |f| f.keys[6].2 = nested(9)),
    ("arrays 10000 deep", "nested deeper than 8", |f| f.keys[6].2 = nested(10_000)),
    // the alignment
    ("alignment 0", "general.alignment: expected a power", |f| align(f, 4, 0)),
    ("alignment 1", "general.alignment: expected a power", |f| align(f, 4, 1)),
    ("alignment 3", "general.alignment: expected a power", |f| align(f, 4, 3)),
    ("alignment 33", "general.alignment: expected a power", |f| align(f, 4, 33)),
    ("alignment 2^31", "do not fit into a file", |f| align(f, 4, 1 << 31)),
    ("alignment 2^32", "general.alignment: expected a power", |f| align(f, 10, 1 << 32)),
    ("alignment 2^63", "general.alignment: expected a power", |f| align(f, 10, 1 << 63)),
    ("alignment -32", "general.alignment: expected a power", |f| align(f, 11, (-32i64) as u64)),
    ("alignment 32.0", "general.alignment: expected a power", |f| align(f, 12, 32f64.to_bits())),
    ("alignment of a string", "general.alignment: expected a power", |f| {
        f.keys.push(key("general.alignment", 8, string(b"32")));
    }),
    ("alignment 64 for multiples of 32", "expected a multiple of 64", |f| align(f, 4, 64)),
    // the tensor table
    ("empty name", "is empty", |f| f.tensors[1].name.clear()),
    ("name not UTF-8", "is not UTF-8", |f| f.tensors[1].name = b"\xc3".to_vec()),
    ("name with a line feed", "control characters", |f| f.tensors[1].name = b"a\nb".to_vec()),
    ("name of 65536 bytes", "at most 65535", |f| f.tensors[1].name = vec![b'n'; 65_536]),
    ("name twice", "tensor a: the name is there twice", |f| f.tensors[2].name = b"a".to_vec()),
    ("no dimensions", "expected 1 to 4, found 0", |f| f.tensors[0].dims.clear()),
    ("5 dimensions", "expected 1 to 4, found 5", |f| f.tensors[0].dims = vec![8, 2, 1, 1, 1]),
    ("2^32-1 dimensions", "found 4294967295", |f| f.tensors[0].n_dims = Some(u32::MAX)),
    ("2^31 dimensions", "found 2147483648", |f| f.tensors[0].n_dims = Some(1 << 31)),
    ("row of 0", "a dimension is 0", |f| f.tensors[0].dims = vec![0, 2]),
    ("0 rows", "a dimension is 0", |f| f.tensors[0].dims = vec![8, 0]),
    ("0 and 2^63", "a dimension is 0", |f| f.tensors[0].dims = vec![1 << 63, 0]),
    ("row of 2^64-1", "tensor a", |f| f.tensors[0].dims = vec![u64::MAX]),
    ("product 2^64", "counted", |f| f.tensors[0].dims = vec![1 << 32, 1 << 32]),
    ("product 2^64 + 16", "counted", |f| f.tensors[0].dims = vec![(1 << 60) + 1, 16]),
    ("product 2^128", "counted", |f| f.tensors[0].dims = vec![1 << 32; 4]),
    ("product wraps to 16", "counted", |f| f.tensors[0].dims = vec![16, (1 << 60) + 1, 1, 1]),
    ("bytes wrap to 0", "counted", |f| f.tensors[0].dims = vec![1 << 62]),
    ("bytes wrap to 64", "counted", |f| f.tensors[0].dims = vec![(1 << 62) + 16]),
    ("2^63 in blocks", "do not fit into a file", |f| f.tensors[2].dims = vec![1 << 63]),
    ("an exabyte", "do not fit into a file", |f| f.tensors[0].dims = vec![1 << 58]),
    ("a terabyte", "do not fit into a file", |f| f.tensors[0].dims = vec![1 << 38]),
    ("half a block", "whole blocks of 32", |f| f.tensors[1].dims = vec![16, 4]),
    ("a block and one", "whole blocks of 256", |f| f.tensors[2].dims = vec![257]),
    ("type 4", "Q4_2", |f| f.tensors[0].kind = 4),
    ("type 31", "Q4_0_4_4", |f| f.tensors[0].kind = 31),
    ("type 36", "IQ4_NL_4_4", |f| f.tensors[0].kind = 36),
    ("type 43", "tensor type 43 is unknown", |f| f.tensors[0].kind = 43),
    ("type 2^31", "is unknown", |f| f.tensors[0].kind = 1 << 31),
    ("type 2^32-1", "is unknown", |f| f.tensors[0].kind = u32::MAX),
    // their places
    ("offset 1", "expected a multiple of 32, found 1", |f| f.tensors[0].offset = 1),
    ("offset 2^63", "do not fit into a file", |f| f.tensors[0].offset = 1 << 63),
    ("offset wraps", "do not fit into a file", |f| f.tensors[0].offset = u64::MAX - 31),
    ("offset wraps onto the head", "do not fit into a file", |f| f.tensors[0].offset = (-512i64) as u64),
    ("past the end by one row", "do not fit into a file", |f| f.tensors[2].offset = 192),
    ("past the end by one byte", "do not fit into a file", |f| f.data.truncate(303)),
    ("no data at all", "3 things are wrong", |f| f.data.clear()),
    ("size above the file", "do not fit into a file", |f| f.tensors[2].dims = vec![256, 1000]),
    ("the same place", "overlaps that of tensor", |f| f.tensors[1].offset = 0),
    ("overlap by 32 bytes", "overlaps that of tensor a", |f| f.tensors[1].offset = 32),
    ("one inside another", "overlaps that of tensor a", |f| f.tensors[0].dims = vec![72]),
    ("two inside another", "2 things are wrong", |f| f.tensors[0].dims = vec![76]),
];

fn nested(depth: usize) -> Vec<u8> {
    (1..depth).fold(array(0, 1, &[9]), |inner, _| array(9, 1, &inner))
}

fn align(file: &mut File, kind: u32, value: u64) {
    let value = if kind == 4 { value.to_le_bytes()[..4].to_vec() } else { value.to_le_bytes().to_vec() };
    file.keys.push(key("general.alignment", kind, value));
}

#[test]
fn every_known_class_is_refused_in_its_own_words() {
    let directory = parse(&File::valid().bytes()).unwrap();
    assert!(kept(&directory, &File::valid().bytes()) > 15);
    for (name, words, change) in CLASSES {
        let mut file = File::valid();
        change(&mut file);
        let bytes = file.bytes();
        let Err(error) = parse_soon(name, &bytes) else { panic!("{name}: accepted") };
        assert!(matches!(error.kind(), Kind::Format | Kind::Unsupported), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(words), "{name}: {text}");
        assert!(text.len() < 20_000, "{name}: a message of {} bytes", text.len());
    }
    assert!(CLASSES.len() >= 90);
}

#[test]
fn the_same_classes_as_mapped_files() {
    let directory = std::env::temp_dir().join(format!("onlay-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("hostile.gguf");
    for (name, words, change) in CLASSES {
        let mut file = File::valid();
        change(&mut file);
        std::fs::write(&path, file.bytes()).unwrap();
        let text = Weights::open(&path).expect_err(name).to_string();
        assert!(text.contains("hostile.gguf") && text.contains(words), "{name}: {text}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn every_truncation_is_refused() {
    let bytes = File::valid().bytes();
    for len in 0..bytes.len() {
        let name = format!("the first {len} bytes");
        let Err(error) = parse_soon(&name, &bytes[..len]) else { panic!("{name}: accepted") };
        assert_eq!(error.kind(), Kind::Format, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains("byte") && text.len() < 2_000, "{name}: {text}");
    }
    for len in [0, 3, 4, 7, 8, 16, 23] {
        let counts = [b"GGUF\x03\0\0\0".to_vec(), vec![0xff; 16]].concat();
        assert!(parse_soon("counts", &counts[..len]).is_err());
    }
}

#[test]
fn a_file_of_24_bytes_cannot_ask_for_memory() {
    for exponent in 0..64 {
        for which in [8, 16] {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.resize(24, 0);
            bytes[which..which + 8].copy_from_slice(&(1u64 << exponent).to_le_bytes());
            let text = parse_soon("24 bytes", &bytes).unwrap_err().to_string();
            assert!(text.starts_with("byte 8: ") || text.starts_with("byte 16: "), "{text}");
        }
    }
}

#[test]
fn numbers_that_break_parsers_at_every_offset() {
    let file = File::valid();
    let (bytes, end) = (file.bytes(), file.head().len());
    let len = bytes.len() as u64;
    let mut accepted = 0;
    let numbers = [
        0,
        1,
        2,
        12,
        13,
        31,
        255,
        256,
        1 << 16,
        1 << 31,
        u32::MAX.into(),
        1 << 32,
        1 << 60,
        1 << 61,
        1 << 63,
        u64::MAX,
    ]
    .into_iter()
    .chain([len - 1, len, len + 1, u64::MAX - len, u64::MAX - 7]);
    for number in numbers {
        for at in 0..end {
            for width in [1, 4, 8] {
                let mut damaged = bytes.clone();
                let stop = (at + width).min(end);
                damaged[at..stop].copy_from_slice(&number.to_le_bytes()[..stop - at]);
                if let Ok(directory) = parse_soon("a number", &damaged) {
                    kept(&directory, &damaged);
                    accepted += 1;
                }
            }
        }
    }
    assert!(accepted > 0, "some damage is harmless");
}

#[test]
fn random_damage() {
    let file = File::valid();
    let (bytes, end) = (file.bytes(), file.head().len() as u64);
    let mut rng = Rng::new(0x6767_7566);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..30_000 {
        let mut damaged = bytes.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(end) as usize;
            match rng.below(4) {
                0 => damaged[at] = rng.next_u64() as u8,
                1 => damaged[at] ^= 1 << rng.below(8),
                2 => drop(damaged.remove(at)),
                _ => damaged.insert(at, rng.next_u64() as u8),
            }
        }
        match parse_soon("random damage", &damaged) {
            Ok(directory) => {
                kept(&directory, &damaged);
                accepted += 1;
            }
            Err(error) => {
                assert!(error.to_string().len() < 20_000);
                refused += 1;
            }
        }
    }
    assert!(accepted > 100 && refused > 10_000, "{accepted} accepted, {refused} refused");
}

/// Odd, and allowed.
const ODD: &[(&str, Change)] = &[
    ("version 2", |f| f.version = 2),
    ("nothing", |f| (f.keys, f.tensors, f.data) = Default::default()),
    ("no tensors", |f| (f.tensors, f.data) = Default::default()),
    ("no keys", |f| f.keys.clear()),
    ("more after the data", |f| f.data.extend([1; 1000])),
    ("a hole between tensors", |f| (f.tensors[2].offset, f.data) = (4096, vec![0; 5000])),
    ("tensors backwards", |f| f.tensors.reverse()),
    ("alignment 8", |f| align(f, 4, 8)),
    ("alignment of another integer type", |f| align(f, 11, 32)),
    ("alignment 2^31 without tensors", |f| {
        (f.tensors, f.data) = Default::default();
        align(f, 4, 1 << 31);
    }),
    ("a string that is not UTF-8", |f| f.keys[0].2 = string(b"\xff\xff")),
    ("empty strings and arrays", |f| {
        f.keys[0].2 = string(b"");
        f.keys[3].2 = array(8, 0, &[]);
        f.keys[6].2 = array(9, 0, &[]);
    }),
    ("arrays 8 deep", |f| f.keys[6].2 = nested(8)),
    ("a key of 65535 bytes", |f| f.keys[1].0 = vec![b'k'; 65_535]),
    ("a name longer than ggml takes", |f| f.tensors[1].name = "名".repeat(100).into()),
    ("a tensor called like a key", |f| f.tensors[1].name = b"flag".to_vec()),
    ("types without kernels", |f| (f.tensors[1].kind, f.tensors[2].kind) = (39, 16)),
    ("not a number", |f| f.keys[4].2 = array(6, 2, &[0xff; 8])),
];

#[test]
fn odd_files_are_accepted() {
    for (name, change) in ODD {
        let mut file = File::valid();
        change(&mut file);
        let bytes = file.bytes();
        let directory = parse_soon(name, &bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        kept(&directory, &bytes);
        assert_eq!(directory.tensors().len(), file.tensors.len());
    }
    let mut wide = File::valid();
    align(&mut wide, 4, 4096);
    wide.alignment = 4096;
    wide.tensors.truncate(1);
    let bytes = wide.bytes();
    assert_eq!(parse(&bytes).unwrap().data_start(), 4096);
}

#[test]
fn a_table_full_of_errors_makes_a_short_message_soon() {
    let mut file = File::valid();
    file.tensors = (0..20_000).map(|i| line(&format!("t{i}"), &[7], 99, 3)).collect();
    let text = parse_soon("a bad table", &file.bytes()).unwrap_err().to_string();
    assert!(text.len() < 20_000 && text.contains("and 9"), "{}", &text[..500]);

    file.tensors = (0..20_000).map(|_| line("same", &[1], 24, 0)).collect();
    assert!(parse_soon("one name", &file.bytes()).is_err());

    let mut file = File::valid();
    file.keys = (0..65_537).map(|i| key(&format!("{i}"), 0, [0])).collect();
    assert!(parse_soon("many keys", &file.bytes()).unwrap_err().to_string().contains("at most 65536"));
    file.keys.truncate(20_000);
    assert!(parse_soon("quite many keys", &file.bytes()).is_ok());
}

#[test]
fn memory_stays_small() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let Some(before) = peak() else {
        println!("skipped: no /proc/self/status here");
        return;
    };
    for (name, _, change) in CLASSES {
        let mut file = File::valid();
        change(&mut file);
        let _ = parse_soon(name, &file.bytes());
    }
    // the kernel counts in pieces: what it says of the peak may be a little below what it said before
    let grown = peak().unwrap_or(before).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB above the baseline");
}
