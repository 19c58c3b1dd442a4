//! Models in several files.
//!
//! The shards of one model are called `NAME-00001-of-00003.gguf`, and so on, and carry `split.no` (from 0),
//! `split.count` and `split.tensors.count` (of all shards together). The first carries the model's metadata, each
//! its own tensors (llama.cpp, `tools/gguf-split`).

use super::{Directory, Metadata};
use crate::error::{Error, Findings, Kind, Place, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// This shard's number, from 0.
pub const NUMBER_KEY: &str = "split.no";
/// How many shards there are.
pub const COUNT_KEY: &str = "split.count";
/// How many tensors all shards have together.
pub const TENSORS_KEY: &str = "split.tensors.count";

/// The name of one of several files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    directory: PathBuf,
    prefix: String,
    /// From 1, as in the name.
    pub number: u32,
    /// How many there are.
    pub count: u32,
}

impl ShardName {
    /// Takes a path apart; `None` where it does not follow the pattern.
    pub fn of(path: &Path) -> Option<ShardName> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits =
            |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?;
        let name = ShardName {
            directory: path.into(),
            prefix: prefix.into(),
            number: digits(number)?,
            count: digits(count)?,
        };
        let directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
        (1..=name.count).contains(&name.number).then_some(ShardName { directory, ..name })
    }

    /// The path of shard `number`, from 1.
    pub fn path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count))
    }
}

/// The paths of all files of the model that `path` belongs to, in order; only `path` where it is not split.
///
/// `metadata` is that of the file at `path`, which may be any of the shards.
///
/// # Errors
/// [`Kind::Format`] where the split keys are not numbers in range or contradict the file's name.
pub fn shards(path: &Path, metadata: Metadata<'_>) -> Result<Vec<PathBuf>> {
    let count = match metadata.u32(COUNT_KEY)? {
        None | Some(0 | 1) => return Ok(vec![path.into()]),
        Some(count) => count,
    };
    if count > 99_999 {
        return Err(metadata.error(COUNT_KEY, format!("expected at most 99999, found {count}")));
    }
    let number = metadata.need_u32(NUMBER_KEY)?;
    if number >= count {
        return Err(
            metadata.error(NUMBER_KEY, format!("expected less than the count of {count}, found {number}"))
        );
    }
    match ShardName::of(path) {
        Some(name) if name.count == count && name.number == number + 1 => {
            Ok((1..=count).map(|n| name.path(n)).collect())
        }
        _ => {
            let text = format!(
                "the file says that it is shard {} of {count}: its name must end in -{:05}-of-{count:05}.gguf, so that the others can be found",
                number + 1,
                number + 1
            );
            Err(Error::new(Kind::Format, text).at(Place::Path(path.into())))
        }
    }
}

/// Checks that opened shards make up one model. `all` holds path, directory and bytes of each, in order.
///
/// # Errors
/// [`Kind::Format`], listing every shard whose numbers contradict its place, every tensor that two shards have, and a
/// number of tensors other than the first shard promises.
pub fn check(all: &[(&Path, &Directory, &[u8])]) -> Result<()> {
    if all.len() < 2 {
        return Ok(());
    }
    let mut wrong = Findings::default();
    let mut owner: HashMap<&str, &Path> = HashMap::new();
    for (i, &(path, directory, bytes)) in all.iter().enumerate() {
        let metadata = directory.metadata(bytes);
        for (key, expected) in [(NUMBER_KEY, i), (COUNT_KEY, all.len())] {
            match metadata.need_u64(key) {
                Ok(found) if found == expected as u64 => {}
                Ok(found) => wrong
                    .push(metadata.error(key, format!("expected {expected}, found {found}")).in_file(path)),
                Err(e) => wrong.push(e.in_file(path)),
            }
        }
        for tensor in directory.tensors() {
            let name = tensor.name(bytes);
            if let Some(other) = owner.insert(name, path) {
                let text = format!("the tensor is also in {}", other.display());
                wrong.push(Error::new(Kind::Format, text).at(Place::Tensor(name.into())).in_file(path));
            }
        }
    }
    let total: usize = all.iter().map(|(_, d, _)| d.tensors().len()).sum();
    let (path, directory, bytes) = all[0];
    let metadata = directory.metadata(bytes);
    match metadata.u64(TENSORS_KEY) {
        Ok(Some(promised)) if promised != total as u64 => {
            let text = format!("{promised} tensors in all shards together, found {total}");
            wrong.push(metadata.error(TENSORS_KEY, text).in_file(path));
        }
        Ok(_) => {}
        Err(e) => wrong.push(e.in_file(path)),
    }
    wrong.refuse("the shards do not belong together")
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, parse};
    use super::*;
    use crate::format::types::Type;

    fn shard(number: u16, count: u16, total: i32, names: &[&str]) -> Vec<u8> {
        let mut b = Builder::new();
        b.set(NUMBER_KEY, number).set(COUNT_KEY, count).set(TENSORS_KEY, total);
        for name in names {
            b.tensor(name, Type::I8, &[4], &[0; 4]);
        }
        let mut out = Vec::new();
        b.write(&mut out).unwrap();
        out
    }

    #[test]
    fn names() {
        let name = ShardName::of(Path::new("dir/big-model-00002-of-00010.gguf")).unwrap();
        assert_eq!((name.number, name.count), (2, 10));
        assert_eq!(name.path(10), Path::new("dir").join("big-model-00010-of-00010.gguf"));
        for no in [
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-2-of-3.gguf",
            "m-00001-of-0000x.gguf",
            "m.gguf",
        ] {
            assert_eq!(ShardName::of(Path::new(no)), None, "{no}");
        }
    }

    #[test]
    fn any_shard_leads_to_all() {
        let bytes = shard(1, 3, 0, &[]);
        let d = parse(&bytes).unwrap();
        let all = |path: &str| shards(Path::new(path), d.metadata(&bytes));
        assert_eq!(
            all("m-00002-of-00003.gguf").unwrap(),
            ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"].map(PathBuf::from)
        );
        let text = all("m-00001-of-00003.gguf").unwrap_err().to_string();
        assert!(text.contains("shard 2 of 3") && text.contains("-00002-of-00003.gguf"), "{text}");
        let one = shard(0, 1, 0, &[]);
        let d = parse(&one).unwrap();
        assert_eq!(shards(Path::new("m.gguf"), d.metadata(&one)).unwrap(), [PathBuf::from("m.gguf")]);
        let bad = shard(5, 3, 0, &[]);
        let d = parse(&bad).unwrap();
        assert!(shards(Path::new("m-00001-of-00003.gguf"), d.metadata(&bad)).is_err());
    }

    #[test]
    fn shards_that_contradict_each_other_are_all_named() {
        let files = [shard(0, 3, 9, &["a", "b"]), shard(2, 3, 9, &["b"]), shard(2, 4, 9, &["c"])];
        let directories: Vec<_> = files.iter().map(|f| parse(f).unwrap()).collect();
        let paths = ["1.gguf", "2.gguf", "3.gguf"].map(PathBuf::from);
        let all: Vec<_> =
            (0..3).map(|i| (paths[i].as_path(), &directories[i], files[i].as_slice())).collect();
        let text = check(&all).unwrap_err().to_string();
        for part in [
            "2.gguf: split.no: expected 1, found 2",
            "3.gguf: split.count: expected 3, found 4",
            "2.gguf: tensor b: the tensor is also in 1.gguf",
            "9 tensors in all shards together, found 4",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(check(&all[..1]).is_ok());
    }
}
