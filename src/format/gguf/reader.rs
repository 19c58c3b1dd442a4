//! Parsing: from bytes that may say anything to a [`Directory`] that can be relied on.
//!
//! What breaks the walk through the file (a truncation, a count that cannot be) ends it; everything else is gathered,
//! so that a refusal lists all that is wrong.

use super::cursor::Cursor;
use super::value::shown;
use super::{
    ALIGNMENT, ALIGNMENT_KEY, Directory, Entry, MAGIC, MAX_KEY, MAX_KEYS, MAX_TENSORS, Span, Tensor,
};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::types::Type;

/// The fewest bytes of one key with its value, and of one line of the tensor table.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads the directory of a GGUF file of version 2 or 3. `bytes` is the whole file.
///
/// Takes time and memory proportional to the metadata and the tensor table, never to what they claim.
///
/// # Errors
/// [`Kind::Format`] for bytes that are not such a file, [`Kind::Unsupported`] for other versions, big-endian files and
/// unknown tensor types. One error lists everything that is wrong with the keys and the tensor table, each with its
/// key, tensor or byte offset; it does not name the file ([`Error::in_file`]).
pub fn parse(bytes: &[u8]) -> Result<Directory> {
    let mut wrong = Wrong::default();
    match read(bytes, &mut wrong) {
        Ok(directory) => wrong.findings.refuse("not a usable GGUF file").map(|()| directory),
        Err(error) => {
            wrong.findings.push(error);
            Err(wrong.findings.refuse("not a usable GGUF file").expect_err("there is a finding"))
        }
    }
}

/// Findings up to a number that no honest file has.
#[derive(Default)]
struct Wrong {
    findings: Findings,
    count: usize,
}

impl Wrong {
    fn push(&mut self, error: Error) -> Result<()> {
        self.count += 1;
        self.findings.push(error);
        if self.count < 1000 { Ok(()) } else { Err(Error::new(Kind::Format, "too much is wrong to go on")) }
    }
}

fn read(bytes: &[u8], wrong: &mut Wrong) -> Result<Directory> {
    let mut cursor = Cursor::new(bytes);
    let version = header(&mut cursor)?;
    let n_tensors = count(&mut cursor, "tensors", MAX_TENSORS)?;
    let n_keys = count(&mut cursor, "keys", MAX_KEYS)?;
    let least = n_keys * LEAST_ENTRY + n_tensors * LEAST_TENSOR; // both counts are limited
    if least > cursor.left() {
        cursor.at = 8;
        let end = bytes.len();
        return Err(cursor
            .error(format!("{n_tensors} tensors and {n_keys} keys do not fit into a file of {end} bytes")));
    }

    let entries = (0..n_keys).map(|i| entry(&mut cursor, i, wrong)).collect::<Result<Vec<_>>>()?;
    let by_key = sorted(entries.iter().map(|e| e.key), bytes, |key, first, again| {
        let text = format!("the key is there twice, at bytes {first} and {again}");
        wrong.push(Error::new(Kind::Format, text).at(Place::Key(shown(key))))
    })?;
    let mut directory = Directory {
        version,
        alignment: ALIGNMENT,
        data_start: 0,
        file_len: bytes.len(),
        entries,
        by_key,
        tensors: Vec::new(),
        by_name: Vec::new(),
        path: None,
    };
    directory.alignment = alignment(&directory, bytes).or_else(|e| wrong.push(e).map(|()| ALIGNMENT))?;

    let mut tensors = Vec::new();
    for i in 0..n_tensors {
        tensors.extend(tensor(&mut cursor, i, directory.alignment, wrong)?);
    }
    let start = (cursor.at as u64).next_multiple_of(directory.alignment); // below 2^63 + 2^31
    directory.data_start = usize::try_from(start).unwrap_or(usize::MAX);
    directory.tensors = placed(tensors, start, bytes, wrong)?;
    directory.by_name = sorted(directory.tensors.iter().map(|t| t.name), bytes, |name, first, again| {
        let text = format!("the name is there twice, at bytes {first} and {again}");
        wrong.push(Error::new(Kind::Format, text).at(Place::Tensor(shown(name))))
    })?;
    Ok(directory)
}

/// Magic and version.
fn header(cursor: &mut Cursor<'_>) -> Result<u32> {
    let start = cursor.bytes;
    let refuse = |text: &str| Err(Error::new(Kind::Unsupported, text).at(Place::Byte(0)));
    if start.starts_with(b"version https://git-lfs") {
        return refuse("this is a Git LFS pointer, not the file it stands for: fetch it with `git lfs pull`");
    }
    if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|m| start.starts_with(*m)) {
        return refuse("a ggml file from before GGUF (2023): convert the original model again");
    }
    let magic = cursor.take(4, "magic")?;
    if magic != MAGIC {
        let text = format!("magic: expected \"GGUF\", found \"{}\"", magic.escape_ascii());
        return Err(Error::new(Kind::Format, text).at(Place::Byte(0)));
    }
    let version = cursor.u32("version")?;
    let at = |error: Error| Err(error.at(Place::Byte(4)));
    match version {
        2 | 3 => Ok(version),
        1 => at(Error::new(
            Kind::Unsupported,
            "GGUF version 1 (before August 2023) is not read: convert the original model again",
        )),
        v if (1..=3).contains(&v.swap_bytes()) => at(Error::new(
            Kind::Unsupported,
            format!("a big-endian GGUF file (version {}): only little-endian files are read", v.swap_bytes()),
        )),
        v => at(Error::expected(Kind::Unsupported, "GGUF version", "2 or 3", v)),
    }
}

fn count(cursor: &mut Cursor<'_>, what: &str, most: u64) -> Result<u64> {
    let n = cursor.u64("number of keys and tensors")?;
    if n > most {
        cursor.at -= 8;
        return Err(cursor.error(format!("number of {what}: expected at most {most}, found {n}")));
    }
    Ok(n)
}

/// Why `bytes` cannot be a key or a name, if so.
fn unfit(bytes: &[u8]) -> Option<&'static str> {
    match std::str::from_utf8(bytes) {
        Err(_) => Some("is not UTF-8"),
        Ok("") => Some("is empty"),
        Ok(text) if text.chars().any(char::is_control) => Some("carries control characters"),
        Ok(_) => None,
    }
}

/// A key's or name's place. The length is checked before the bytes are looked at.
fn named<'a>(cursor: &mut Cursor<'a>, what: &str, i: u64) -> Result<(Span, &'a [u8], Option<Error>)> {
    let start = cursor.at;
    let bytes = cursor.string(&format!("{what} {i}"))?;
    let place = Place::Byte(start as u64);
    if bytes.len() as u64 > MAX_KEY {
        let text = format!("{what} {i}: expected at most {MAX_KEY} bytes, found {}", bytes.len());
        return Err(Error::new(Kind::Format, text).at(place));
    }
    let span = Span { at: cursor.at - bytes.len(), len: bytes.len() };
    let wrong = unfit(bytes)
        .map(|why| Error::new(Kind::Format, format!("{what} {i} {:?} {why}", shown(bytes))).at(place));
    Ok((span, bytes, wrong))
}

fn entry(cursor: &mut Cursor<'_>, i: u64, wrong: &mut Wrong) -> Result<Entry> {
    let (key, name, unfit) = named(cursor, "key", i)?;
    unfit.map_or(Ok(()), |e| wrong.push(e))?;
    let inside = |e: Error| e.at(Place::Key(shown(name)));
    let kind = cursor.kind("type of the value").map_err(inside)?;
    let at = cursor.at;
    cursor.skip(kind, 0).map_err(inside)?;
    Ok(Entry { key, kind, value: Span { at, len: cursor.at - at } })
}

fn alignment(directory: &Directory, bytes: &[u8]) -> Result<u64> {
    let Some(value) = directory.metadata(bytes).get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    match u32::try_from(value.integer().unwrap_or(-1)) {
        Ok(n) if n.is_power_of_two() && n >= 8 => Ok(n.into()),
        _ => Err(Error::new(Kind::Format, format!("expected a power of two from 8 to 2^31, found {value}"))
            .at(Place::Key(ALIGNMENT_KEY.into()))),
    }
}

/// A line of the table whose place in the file is not checked yet.
struct Line {
    tensor: Tensor,
    offset: u64,
    len: u64,
}

fn tensor(cursor: &mut Cursor<'_>, i: u64, alignment: u64, wrong: &mut Wrong) -> Result<Option<Line>> {
    let (name, text, unfit) = named(cursor, "name of tensor", i)?;
    let mut sound = unfit.is_none();
    unfit.map_or(Ok(()), |e| wrong.push(e))?;
    let inside = |e: Error| e.at(Place::Tensor(shown(text)));
    let n_dims = cursor.u32("number of dimensions").map_err(inside)?;
    if !(1..=4).contains(&n_dims) {
        cursor.at -= 4;
        return Err(inside(cursor.error(format!("number of dimensions: expected 1 to 4, found {n_dims}"))));
    }
    let n_dims = n_dims as usize;
    let mut raw = [1u64; 4];
    for dim in &mut raw[..n_dims] {
        *dim = cursor.u64("dimension").map_err(inside)?;
    }
    let id = cursor.u32("tensor type").map_err(inside)?;
    let offset = cursor.u64("offset of the data").map_err(inside)?;

    let mut bad = |error: Error| {
        sound = false;
        wrong.push(inside(error))
    };
    if offset % alignment != 0 {
        let text = format!("offset of the data: expected a multiple of {alignment}, found {offset}");
        bad(Error::new(Kind::Format, text))?;
    }
    let extent = match Type::from_id(id) {
        Err(e) => bad(e).map(|()| None)?,
        Ok(kind) => match extent(kind, raw, &raw[..n_dims]) {
            Err(text) => bad(Error::new(Kind::Format, text)).map(|()| None)?,
            Ok((dims, len)) => Some((kind, dims, len)),
        },
    };
    Ok(extent.filter(|_| sound).map(|(kind, dims, len)| Line {
        tensor: Tensor { name, kind, dims, n_dims, data: Span { at: 0, len: 0 } },
        offset,
        len,
    }))
}

/// The dims as sizes of this machine, and the bytes they take.
fn extent(kind: Type, raw: [u64; 4], shape: &[u64]) -> std::result::Result<([usize; 4], u64), String> {
    if shape.contains(&0) {
        return Err(format!("shape {shape:?}: a dimension is 0"));
    }
    let elements = raw.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let (Some(elements), [Ok(a), Ok(b), Ok(c), Ok(d)]) = (elements, raw.map(usize::try_from)) else {
        return Err(format!("shape {shape:?}: more weights than can be counted"));
    };
    let block = kind.block_len() as u64;
    if raw[0] % block != 0 {
        return Err(format!("shape {shape:?}: a row of {kind} must be whole blocks of {block}"));
    }
    match (elements / block).checked_mul(kind.block_bytes() as u64) {
        Some(len) if usize::try_from(elements).is_ok() => Ok(([a, b, c, d], len)),
        _ => Err(format!("shape {shape:?}: more bytes than can be counted")),
    }
}

/// Puts every tensor at its place, if that lies in the file and nobody else is there.
fn placed(lines: Vec<Line>, start: u64, bytes: &[u8], wrong: &mut Wrong) -> Result<Vec<Tensor>> {
    let file_len = bytes.len() as u64;
    let mut tensors = Vec::with_capacity(lines.len());
    for line in lines {
        let mut tensor = line.tensor;
        let end = start.checked_add(line.offset).and_then(|at| at.checked_add(line.len));
        if end.is_none_or(|end| end > file_len) {
            let text = format!(
                "{} bytes at offset {} of the data (which begins at byte {start}) do not fit into a file of {file_len} bytes",
                line.len, line.offset
            );
            let name = shown(tensor.name.of(bytes));
            wrong.push(Error::new(Kind::Format, text).at(Place::Tensor(name)))?;
            continue;
        }
        tensor.data = Span { at: (start + line.offset) as usize, len: line.len as usize }; // inside the file
        tensors.push(tensor);
    }
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect(); // at most MAX_TENSORS
    order.sort_unstable_by_key(|&i| tensors[i as usize].data.at);
    let mut before: Option<&Tensor> = None; // the one that reaches furthest so far
    for tensor in order.iter().map(|&i| &tensors[i as usize]) {
        if let Some(other) = before.filter(|b| b.data.at + b.data.len > tensor.data.at) {
            let [a, b] = [other, tensor].map(|t| shown(t.name.of(bytes)));
            let text = format!("its data at byte {} overlaps that of tensor {a}", tensor.data.at);
            wrong.push(Error::new(Kind::Format, text).at(Place::Tensor(b)))?;
        }
        let end = |t: &Tensor| t.data.at + t.data.len;
        before = before.filter(|b| end(b) >= end(tensor)).or(Some(tensor));
    }
    Ok(tensors)
}

/// The order of names, calling `twice(name, place, place)` for every one that equals the one before it.
fn sorted(
    names: impl Iterator<Item = Span>,
    bytes: &[u8],
    mut twice: impl FnMut(&[u8], usize, usize) -> Result<()>,
) -> Result<Vec<u32>> {
    let names: Vec<Span> = names.collect();
    let mut order: Vec<u32> = (0..names.len() as u32).collect(); // at most MAX_TENSORS or MAX_KEYS
    order.sort_by_key(|&i| names[i as usize].of(bytes));
    for pair in order.windows(2) {
        let [a, b] = [names[pair[0] as usize], names[pair[1] as usize]];
        if a.of(bytes) == b.of(bytes) {
            twice(a.of(bytes), a.at, b.at)?;
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Value, ValueType};
    use super::*;

    fn small() -> Vec<u8> {
        let mut b = Builder::new();
        b.set("general.architecture", "test");
        b.tensor("a", Type::F32, &[4, 2], &[1; 32]);
        b.tensor("b", Type::Q8_0, &[32], &[2; 34]);
        let mut out = Vec::new();
        b.write(&mut out).unwrap();
        out
    }

    #[test]
    fn finds_what_is_there() {
        let bytes = small();
        let d = parse(&bytes).unwrap();
        assert_eq!((d.version(), d.alignment(), d.tensors().len()), (3, 32, 2));
        let b = d.tensor("b", &bytes).unwrap();
        assert_eq!((b.kind(), b.dims(), b.data(&bytes)), (Type::Q8_0, &[32][..], &[2; 34][..]));
        assert_eq!(d.tensor("a", &bytes).unwrap().offset(), d.data_start());
        assert!(d.tensor("c", &bytes).is_none());
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let text = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        let mut old = small();
        old[4] = 1;
        assert!(text(&old).contains("version 1"));
        old[4] = 4;
        assert_eq!(text(&old), "byte 4: GGUF version: expected 2 or 3, found 4");
        old[4..8].copy_from_slice(&3u32.to_be_bytes());
        assert!(text(&old).contains("big-endian"));
        assert!(text(b"tjgg....").contains("before GGUF"));
        assert!(text(b"version https://git-lfs.github.com/spec/v1\n").contains("LFS"));
        assert_eq!(text(b"PK\x03\x04"), "byte 0: magic: expected \"GGUF\", found \"PK\\x03\\x04\"");
        assert_eq!(text(b""), "byte 0: magic: expected 4 bytes, found 0 up to the end");
    }

    #[test]
    fn everything_wrong_with_the_table_is_listed() {
        let mut bytes = small();
        let a = bytes.windows(9).position(|w| w == b"\x01\0\0\0\0\0\0\0a").unwrap() + 9;
        bytes[a + 4] = 0; // the row length of a
        let b = bytes.windows(9).position(|w| w == b"\x01\0\0\0\0\0\0\0b").unwrap() + 9;
        bytes[b + 12] = 77; // the type of b
        bytes[b + 16] = 33; // and its offset
        let error = parse(&bytes).unwrap_err();
        let texts: Vec<_> = error.findings().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "tensor a: shape [0, 2]: a dimension is 0",
                "tensor b: offset of the data: expected a multiple of 32, found 33",
                "tensor b: tensor type 77 is unknown (the known ones end at 42)",
            ]
        );
    }

    #[test]
    fn a_string_longer_than_the_file_is_where_it_is() {
        let mut bytes = small();
        bytes[24..32].copy_from_slice(&(1u64 << 63).to_le_bytes());
        let text = parse(&bytes).unwrap_err().to_string();
        assert!(text.starts_with("byte 24: key 0: a string of 9223372036854775808 bytes"), "{text}");
    }

    #[test]
    fn the_alignment_must_be_usable() {
        for (n, ok) in [(0u32, false), (3, false), (4, false), (8, true), (64, true), (1 << 31, true)] {
            let mut bytes = Vec::new();
            let mut b = Builder::new();
            b.set(ALIGNMENT_KEY, 32u32);
            b.write(&mut bytes).unwrap();
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&n.to_le_bytes());
            assert_eq!(parse(&bytes).is_ok(), ok, "{n}");
        }
    }

    #[test]
    fn the_fixed_value_types_match_their_sizes() {
        for kind in (0..13).filter_map(ValueType::from_id) {
            let size = kind.size().unwrap_or(0);
            assert!(size == 0 || Value::read(kind, &vec![0; size]).is_some_and(|v| v.kind() == kind));
        }
    }
}
