//! A model's files, mapped and never written.

use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::gguf::{Directory, Encoded, Metadata, Tensor, parse, split};
use crate::format::types::Type;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One tensor of a file: what the table says of it, and its bytes.
#[derive(Clone, Copy)]
pub struct TensorRef<'a> {
    tensor: &'a Tensor,
    name: &'a str,
    bytes: &'a [u8],
    path: &'a Path,
}

impl<'a> TensorRef<'a> {
    /// The tensor of a directory, with the bytes the directory was parsed from and the path that errors name.
    pub fn new(tensor: &'a Tensor, file: &'a [u8], path: &'a Path) -> Self {
        TensorRef { tensor, name: tensor.name(file), bytes: tensor.data(file), path }
    }

    /// The name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The type of the weights.
    pub fn kind(&self) -> Type {
        self.tensor.kind()
    }

    /// 1 to 4 lengths, none of them 0; the first is that of a row.
    pub fn dims(&self) -> &'a [usize] {
        self.tensor.dims()
    }

    /// How many weights.
    pub fn elements(&self) -> usize {
        self.tensor.elements()
    }

    /// The weights: whole blocks, row after row.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Where the weights begin, in bytes from the start of their file.
    pub fn offset(&self) -> usize {
        self.tensor.offset()
    }

    /// The file it lies in.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// An error about this tensor, which names it and its file.
    pub fn error(&self, kind: Kind, text: impl Into<String>) -> Error {
        Error::new(kind, text).at(Place::Tensor(self.name.into())).in_file(self.path)
    }
}

impl fmt::Debug for TensorRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.kind(), self.dims())
    }
}

/// What makes a base that base, in two degrees.
///
/// Both are SHA-256. Strings are hashed with their length as `u64` before them, numbers little-endian:
///
/// ```text
/// shape   "onlay base shape 1"
///         n, then every key `general.architecture` and `ARCHITECTURE.*` in byte order: key, u32 type, value
///         as in the file, with its length before it
///         n, then every tensor in byte order of names: name, u32 number of dims, u64 dims
/// exact   "onlay base exact 1", shape (32 bytes)
///         every tensor in the same order: u32 type, and its bytes: all of them up to 128 KiB, else the first and the
///         last 64 KiB
/// ```
///
/// How a model is cut into files changes neither. Requantizing a model changes `exact` and keeps `shape`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Architecture, hyper-parameters, tensor names and dims, types, and a sample of the weights.
    pub exact: [u8; 32],
    /// The same without types and weights: equal for all quantizations of one model (and for its finetunes).
    pub shape: [u8; 32],
}

impl Identity {
    const SAMPLE: usize = 64 << 10;

    /// The identity of a model with this metadata and these tensors, in any order.
    pub fn of<'a>(metadata: Metadata<'a>, tensors: impl Iterator<Item = TensorRef<'a>>) -> Identity {
        fn text(hash: &mut Sha256, bytes: &[u8]) {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        let mut tensors: Vec<_> = tensors.collect();
        tensors.sort_unstable_by_key(|t| t.name);
        let own = metadata.text("general.architecture").ok().flatten().unwrap_or_default();
        let counts = |key: &str| {
            key == "general.architecture" || key.strip_prefix(own).is_some_and(|rest| rest.starts_with('.'))
        };
        let mut keys: Vec<_> = metadata.iter().filter(|(key, _)| counts(key)).collect();
        keys.sort_unstable_by_key(|(key, _)| *key);

        let mut hash = Sha256::new();
        text(&mut hash, b"onlay base shape 1");
        hash.update((keys.len() as u64).to_le_bytes());
        for (key, value) in keys {
            text(&mut hash, key.as_bytes());
            let value = Encoded::from(value);
            hash.update(value.kind().id().to_le_bytes());
            text(&mut hash, value.bytes());
        }
        hash.update((tensors.len() as u64).to_le_bytes());
        for t in &tensors {
            text(&mut hash, t.name.as_bytes());
            hash.update((t.dims().len() as u32).to_le_bytes());
            t.dims().iter().for_each(|&d| hash.update((d as u64).to_le_bytes()));
        }
        let shape: [u8; 32] = hash.finalize().into();

        let mut hash = Sha256::new();
        text(&mut hash, b"onlay base exact 1");
        hash.update(shape);
        for t in &tensors {
            hash.update(t.kind().id().to_le_bytes());
            if t.bytes.len() <= 2 * Self::SAMPLE {
                hash.update(t.bytes);
            } else {
                hash.update(&t.bytes[..Self::SAMPLE]);
                hash.update(&t.bytes[t.bytes.len() - Self::SAMPLE..]);
            }
        }
        Identity { exact: hash.finalize().into(), shape }
    }

    /// 32 bytes as 64 lower-case hexadecimal digits.
    pub fn hex(bytes: &[u8; 32]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The exact identity in hexadecimal.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Identity::hex(&self.exact))
    }
}

struct Shard {
    path: PathBuf,
    /// Kept open so that a change of length can be seen even if the name now stands for another file.
    file: File,
    map: Mmap,
    directory: Directory,
}

impl Shard {
    fn open(path: &Path) -> Result<Shard> {
        // Asked first: opening a pipe would wait for its writer.
        let found = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if !found.is_file() {
            let what = if found.is_dir() { "a directory" } else { "something else" };
            return Err(Error::expected(Kind::Argument, "path", "a file", what).in_file(path));
        }
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        #[allow(unsafe_code)]
        // SAFETY: the map is read-only and its bytes are lent only as shared slices that it outlives; that nobody
        // truncates or rewrites the file meanwhile is the condition under which `Weights::open` may be called.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        // Pages that are read from the disk from now on are read, and mapped, two megabytes at a time where the file system
        // can: plain reading of a mapped file was 1.2 times as fast (docs/performance.md). A hint; pages that
        // are cached already stay as they are.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let directory = parse(&map).map_err(|e| e.in_file(path))?.in_file(path);
        Ok(Shard { path: path.into(), file, map, directory })
    }

    fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        self.directory.tensors().iter().map(|t| TensorRef::new(t, &self.map, &self.path))
    }
}

/// Where a tensor's bytes lie: found once, when a program is bound, and used at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    shard: usize,
    first: usize,
    len: usize,
}

/// A model's files, mapped read-only, with their directories. One map per file; shared between threads freely.
///
/// # While it is open
/// The files must not be truncated or written in place. The operating system gives no protection against that: a read
/// of a page that is gone ends the process (SIGBUS on Unix, an in-page error on Windows), and rewritten weights give
/// other outputs. Metadata that was rewritten reads as empty or gives an error; it never leads outside the file.
/// Replacing a file by renaming another over it, or deleting it, is harmless: the map keeps the old one. That is how
/// [`write_atomically`](crate::format::files::write_atomically) works. [`Weights::unchanged`] tells in time in the
/// ordinary cases.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: usize,
    path: PathBuf,
    identity: OnceLock<Identity>,
}

impl Weights {
    /// Maps a GGUF file; if it is one of several that make up a model, all of them, whichever is named.
    ///
    /// Reads the metadata and the tensor tables, no weights.
    ///
    /// # Errors
    /// [`Kind::Io`] where a file cannot be opened or mapped, [`Kind::Argument`] where the path is not a file,
    /// [`Kind::Format`] and [`Kind::Unsupported`] as [`parse`], and where shards contradict each other. Shards that
    /// are missing or unusable are all listed.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        let named = Shard::open(path)?;
        let paths = split::shards(path, named.directory.metadata(&named.map))?;
        let mut wrong = Findings::default();
        let mut shards = Vec::new();
        let mut named = Some(named);
        for shard_path in &paths {
            // The named file is in its own place in the list; see split::shards.
            let shard = if shard_path.file_name() == path.file_name() { named.take() } else { None };
            shards.extend(match shard {
                Some(shard) => Some(shard),
                None => wrong.keep(Shard::open(shard_path)),
            });
        }
        wrong.refuse("not all files of the model can be used").map_err(|e| e.in_file(path))?;
        let parts: Vec<_> = shards.iter().map(|s| (s.path.as_path(), &s.directory, &s.map[..])).collect();
        split::check(&parts).map_err(|e| e.in_file(path))?;
        let tensors = shards.iter().map(|s| s.directory.tensors().len()).sum();
        Ok(Weights { shards, tensors, path: path.into(), identity: OnceLock::new() })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|s| s.path.as_path())
    }

    /// The bytes of all files together.
    pub fn file_len(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// The model's metadata: that of the first file.
    pub fn metadata(&self) -> Metadata<'_> {
        self.shards[0].directory.metadata(&self.shards[0].map)
    }

    /// The directory of the first file.
    pub fn directory(&self) -> &Directory {
        &self.shards[0].directory
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.tensors
    }

    /// Whether there are none (a file that only carries a vocabulary).
    pub fn is_empty(&self) -> bool {
        self.tensors == 0
    }

    /// All tensors, in the files' order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        self.shards.iter().flat_map(Shard::tensors)
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        self.shards.iter().find_map(|s| {
            let tensor = s.directory.tensor(name, &s.map)?;
            Some(TensorRef::new(tensor, &s.map, &s.path))
        })
    }

    /// The tensor called `name`, which must be there.
    ///
    /// # Errors
    /// [`Kind::Format`] if it is missing.
    pub fn need(&self, name: &str) -> Result<TensorRef<'_>> {
        self.tensor(name).ok_or_else(|| {
            Error::new(Kind::Format, "missing").at(Place::Tensor(name.into())).in_file(&self.path)
        })
    }

    /// Where the bytes of the tensor called `name` lie, for [`Weights::at`].
    pub fn locate(&self, name: &str) -> Option<Location> {
        self.shards.iter().enumerate().find_map(|(shard, s)| {
            let tensor = s.directory.tensor(name, &s.map)?;
            Some(Location { shard, first: tensor.offset(), len: tensor.byte_len() })
        })
    }

    /// The bytes at a location that [`Weights::locate`] of the same weights gave.
    pub fn at(&self, location: Location) -> &[u8] {
        &self.shards[location.shard].map[location.first..][..location.len]
    }

    /// Which base this is. The first call reads at most 128 KiB of every tensor; later ones are free.
    pub fn identity(&self) -> Identity {
        *self.identity.get_or_init(|| Identity::of(self.metadata(), self.tensors()))
    }

    /// Tells the system that everything will be wanted soon. A hint that costs nothing: where there is no such call
    /// (outside Unix), pages come when they are first touched.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        for shard in &self.shards {
            // Refused where the file lies on something that cannot read ahead; nothing is lost then.
            let _ = shard.map.advise(memmap2::Advice::WillNeed);
        }
    }

    /// Whether the mapped files still have the lengths they had.
    ///
    /// # Errors
    /// [`Kind::Io`] naming every file that was truncated or grew, or that the system no longer tells about.
    pub fn unchanged(&self) -> Result<()> {
        let mut wrong = Findings::default();
        for shard in &self.shards {
            let (was, path) = (shard.map.len() as u64, &shard.path);
            match shard.file.metadata() {
                Ok(now) if now.len() == was => {}
                Ok(now) => wrong.push(
                    Error::expected(Kind::Io, "length of the mapped file", was, now.len()).in_file(path),
                ),
                Err(e) => wrong.push(Error::io("look at", path, e)),
            }
        }
        wrong.refuse("the model's files were changed while they were open")
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({}, {} tensors, {} bytes)", self.path.display(), self.tensors, self.file_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::Builder;
    use crate::tensor::Matrix;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("onlay-weights-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn put(&self, name: &str, builder: Builder<'_>) -> PathBuf {
            let path = self.0.join(name);
            let mut bytes = Vec::new();
            builder.write(&mut bytes).unwrap();
            std::fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const DATA: [u8; 68] = [3; 68];

    fn base<'a>(blocks: u32, weights: &'a [f32]) -> Builder<'a> {
        let mut b = Builder::new();
        b.set("general.architecture", "llama").set("llama.block_count", blocks).set("general.name", "x");
        b.tensor_f32("norm", &[4], weights).tensor("w", Type::Q8_0, &[32, 2], &DATA);
        b
    }

    fn shard(i: u16, n: u16, name: &'static str) -> Builder<'static> {
        let mut b = Builder::new();
        b.set("split.no", i).set("split.count", n).set("split.tensors.count", i32::from(n));
        if i == 0 {
            b.set("general.architecture", "llama").set("llama.block_count", 1u32);
        }
        b.tensor(name, Type::Q8_0, &[32, 2], &DATA);
        b
    }

    #[test]
    fn opens_and_finds() {
        fn shared<T: Send + Sync>(_: &T) {}
        let dir = Scratch::new("open");
        let path = dir.put("m.gguf", base(1, &[1.0, 2.0, 3.0, 4.0]));
        let w = Weights::open(&path).unwrap();
        shared(&w);
        w.prefetch();
        assert_eq!(w.metadata().need_u32("llama.block_count").unwrap(), 1);
        assert_eq!((w.len(), w.tensors().count()), (2, 2));
        assert_eq!(w.file_len(), std::fs::metadata(&path).unwrap().len());
        let mut row = [0.0; 4];
        Matrix::shaped(w.need("norm").unwrap(), 1, 4).unwrap().decode_row(0, &mut row);
        assert_eq!(row, [1.0, 2.0, 3.0, 4.0]);
        let text = w.need("gone").unwrap_err().to_string();
        assert!(text.ends_with("m.gguf: tensor gone: missing"), "{text}");
        let text = w.metadata().need_u32("general.name").unwrap_err().to_string();
        assert!(text.contains("m.gguf: general.name: expected an integer"), "{text}");
    }

    #[test]
    fn identity_tells_weights_and_shapes_apart() {
        let dir = Scratch::new("identity");
        let open = |name: &str, b| Weights::open(dir.put(name, b)).unwrap().identity();
        let one = open("1.gguf", base(1, &[1.0; 4]));
        assert_eq!(
            one,
            open("2.gguf", {
                let mut b = base(1, &[1.0; 4]);
                b.set("general.name", "renamed");
                b
            })
        );
        let weights = open("3.gguf", base(1, &[2.0; 4]));
        assert!(weights.exact != one.exact && weights.shape == one.shape);
        let other = open("4.gguf", base(2, &[1.0; 4]));
        assert!(other.exact != one.exact && other.shape != one.shape);
        assert_eq!(one.to_string().len(), 64);
        // Known answers, made with Python's hashlib: an adapter made today must fit its base tomorrow.
        assert_eq!(Identity::hex(&one.shape)[..16], *"b8a8a66913fdffc7");
        assert_eq!(one.to_string()[..16], *"4278d71c11964f6f");
    }

    #[test]
    fn any_shard_opens_all_and_missing_ones_are_listed() {
        let dir = Scratch::new("split");
        let path = |i| dir.0.join(format!("m-{i:05}-of-00003.gguf"));
        let names = ["a", "b", "c"];
        for i in 0..3 {
            dir.put(&format!("m-{:05}-of-00003.gguf", i + 1), shard(i, 3, names[usize::from(i)]));
        }
        let all: Vec<_> = (1..=3).map(|i| Weights::open(path(i)).unwrap()).collect();
        for w in &all {
            assert_eq!(w.tensors().map(|t| t.name()).collect::<Vec<_>>(), names);
            assert_eq!(w.metadata().need_u32("llama.block_count").unwrap(), 1);
            assert_eq!(w.tensor("b").unwrap().path(), path(2));
            assert_eq!((w.identity(), w.paths().len()), (all[0].identity(), 3));
        }
        let mut whole = Builder::new();
        whole.copy(all[0].metadata());
        for t in all[0].tensors() {
            whole.tensor(t.name(), t.kind(), t.dims(), t.bytes());
        }
        let whole = Weights::open(dir.put("whole.gguf", whole)).unwrap();
        assert_eq!(whole.identity(), all[0].identity());
        drop(all);

        std::fs::remove_file(path(1)).unwrap();
        std::fs::write(path(3), b"GGUF").unwrap();
        let error = Weights::open(path(2)).unwrap_err();
        assert_eq!(error.findings().len(), 2);
        let text = error.to_string();
        assert!(text.contains("m-00001-of-00003.gguf: cannot open"), "{text}");
        assert!(text.contains("m-00003-of-00003.gguf: byte 4: version"), "{text}");
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let dir = Scratch::new("other");
        assert_eq!(Weights::open(&dir.0).unwrap_err().kind(), Kind::Argument);
        assert_eq!(Weights::open(dir.0.join("none")).unwrap_err().kind(), Kind::Io);
        let empty = dir.0.join("empty.gguf");
        std::fs::write(&empty, b"").unwrap();
        assert_eq!(Weights::open(&empty).unwrap_err().kind(), Kind::Format);
    }

    #[cfg(unix)] // elsewhere a mapped file cannot be truncated
    #[test]
    fn truncation_is_seen() {
        let dir = Scratch::new("truncate");
        let path = dir.put("m.gguf", base(1, &[1.0; 4]));
        let w = Weights::open(&path).unwrap();
        w.unchanged().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        let text = w.unchanged().unwrap_err().to_string();
        assert!(text.contains("m.gguf: length of the mapped file: expected "), "{text}");
    }
}
