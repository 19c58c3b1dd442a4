//! Writing files so that nothing is ever half there.

use crate::error::{Error, Findings, Kind, Place, Result};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes a file as a whole or not at all.
///
/// `write` gets a temporary file in the target's directory. When it returns, the file is flushed to the disk, put in
/// the target's place in one step, and the directory is flushed. At every moment the target is either what it was
/// before or complete; readers that have the old file open or mapped keep it. On any failure, and if `write` panics,
/// the temporary file is removed. A process that is killed leaves it behind, as `.NAME.….tmp`.
///
/// Writers of the same target do not disturb each other: the last one wins, or with `overwrite` off the first. A
/// symbolic link at `path` is replaced, not followed. A file that is overwritten passes on its permissions.
///
/// # Errors
/// [`Kind::Argument`] if there is a file and `overwrite` is off, or something that is not a file; [`Kind::Io`] for a
/// missing directory and for whatever the system refuses; what `write` returns.
pub fn write_atomically<T>(
    path: &Path,
    overwrite: bool,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<T>,
) -> Result<T> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(Kind::Argument, "the path names no file").at(Place::Path(path.into())));
    };
    let directory = directory_of(path);
    if !directory.is_dir() {
        let text = format!("the directory to write {} into does not exist", name.display());
        return Err(Error::new(Kind::Io, text).at(Place::Path(directory.into())));
    }
    let old = refuse_existing(path, overwrite)?;

    let (file, temporary) = create_beside(directory, &name.to_string_lossy())?;
    let mut out = BufWriter::new(file);
    let answer = write(&mut out).map_err(|e| e.in_file(path))?;
    let file = settled(out).map_err(|e| Error::io("write", path, e))?;
    if let Some(permissions) = old {
        let set = allowed("permissions").and_then(|()| file.set_permissions(permissions));
        set.map_err(|e| Error::io("set the permissions of", path, e))?;
    }
    drop(file); // Windows does not rename an open file
    temporary.put_at(path, overwrite)?;
    flush_directory(directory)?;
    Ok(answer)
}

/// Whether [`write_atomically`] could put a file there, known before the work whose result it is. What that work reads
/// (each with a name for messages) is never its output, whatever `overwrite` says.
///
/// # Errors
/// [`Kind::Argument`] and [`Kind::Io`]: everything that stands in the way.
pub fn check_target(path: &Path, overwrite: bool, reads: &[(&str, &Path)]) -> Result<()> {
    let mut wrong = Findings::default();
    let mut push = |kind, text: String| wrong.push(Error::new(kind, text).at(Place::Path(path.into())));
    match path.file_name() {
        None => push(Kind::Argument, "the path names no file".into()),
        Some(name) if !directory_of(path).is_dir() => {
            push(Kind::Io, format!("the directory to write {} into does not exist", name.display()));
        }
        Some(_) => {}
    }
    let place = fs::canonicalize(path).ok();
    for (what, _) in reads.iter().filter(|(_, p)| place.is_some() && fs::canonicalize(p).ok() == place) {
        push(Kind::Argument, format!("is also {what}, which is read"));
    }
    wrong.keep(refuse_existing(path, overwrite));
    wrong.refuse("this cannot be the output")
}

/// The directory that a path's last name lies in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The permissions of a file that may be overwritten; `None` if there is nothing.
fn refuse_existing(path: &Path, overwrite: bool) -> Result<Option<fs::Permissions>> {
    let refuse = |text: &str| Err(Error::new(Kind::Argument, text).at(Place::Path(path.into())));
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("look at", path, e)),
        // a dangling link has nothing to lose
        Ok(link) if link.is_symlink() => fs::metadata(path).unwrap_or(link),
        Ok(found) => found,
    };
    if !found.is_file() && !found.is_symlink() {
        return refuse("exists and is not a file");
    }
    if !overwrite {
        return refuse("exists already; overwrite replaces it");
    }
    Ok(found.is_file().then(|| found.permissions()))
}

/// A new file whose name nobody else has.
fn create_beside(directory: &Path, name: &str) -> Result<(File, Temporary)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // A name may have 255 bytes on most systems; the target's own may already be that long.
    let name: String = name.chars().take(40).collect();
    for _ in 0..100 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".{name}.{}-{n}-{now:08x}.tmp", std::process::id()));
        let open = || File::options().write(true).read(true).create_new(true).open(&path);
        match allowed("open").and_then(|()| open()) {
            Ok(file) => return Ok((file, Temporary(Some(path)))),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create a file in", directory, e)),
        }
    }
    Err(Error::new(Kind::Io, "no free name for a temporary file").at(Place::Path(directory.into())))
}

/// Everything on the disk.
fn settled(out: BufWriter<File>) -> std::io::Result<File> {
    let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    allowed("flush")?;
    file.sync_all()?;
    Ok(file)
}

/// Asked before every operation of a file system, so that a test can refuse each in turn.
#[cfg(not(test))]
#[inline(always)]
fn allowed(_: &str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
use tests::allowed;

/// A file that is removed unless it gets its place.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn put_at(mut self, path: &Path, overwrite: bool) -> Result<()> {
        let from = self.0.as_deref().unwrap_or(Path::new(""));
        if !overwrite {
            // A link is the one way of the standard library to take a name only if it is free.
            match allowed("link").and_then(|()| fs::hard_link(from, path)) {
                Ok(()) => return Ok(()), // the other name goes with self
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    return refuse_existing(path, false).map(|_| ());
                }
                Err(_) => refuse_existing(path, false).map(|_| ())?, // a file system without links
            }
        }
        allowed("rename")
            .and_then(|()| fs::rename(from, path))
            .map_err(|e| Error::io("put the finished file at", path, e))?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// After this the new name survives a loss of power.
#[cfg(unix)]
pub(crate) fn flush_directory(directory: &Path) -> Result<()> {
    match allowed("flush the directory").and_then(|()| File::open(directory)).and_then(|d| d.sync_all()) {
        // Some file systems (network, fuse) have no such call; the file itself is flushed.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        other => other.map_err(|e| Error::io("flush the directory", directory, e)),
    }
}

/// Elsewhere a directory cannot be flushed by itself; the rename goes to the journal of the file system.
#[cfg(not(unix))]
pub(crate) fn flush_directory(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::io::Write;

    thread_local! {
        /// After how many operations of this thread one is refused, and which it was.
        static REFUSE: Cell<Option<usize>> = const { Cell::new(None) };
        static REFUSED: RefCell<String> = const { RefCell::new(String::new()) };
    }

    pub fn allowed(what: &str) -> std::io::Result<()> {
        let left = REFUSE.get();
        REFUSE.set(left.and_then(|n| n.checked_sub(1)));
        match left {
            Some(0) => {
                REFUSED.set(what.into());
                Err(ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    #[test]
    fn whatever_is_refused_the_file_is_the_old_one_or_the_new() {
        let dir = Scratch::new("refused");
        let path = dir.0.join("a.checkpoint");
        let long = vec![7; 100_000]; // more than the buffer: some of it is written before the end
        let mut refused = Vec::new();
        for overwrite in [true, false] {
            for n in 0.. {
                let _ = fs::remove_file(&path);
                if overwrite {
                    put(&path, true, b"old").unwrap();
                }
                REFUSE.set(Some(n));
                let done = write_atomically(&path, overwrite, |out| {
                    for part in long.chunks(1000) {
                        allowed("write")
                            .and_then(|()| out.write_all(part))
                            .map_err(|e| Error::io("write", &path, e))?;
                    }
                    Ok(())
                });
                let over = REFUSE.take().is_some();
                let found = fs::read(&path).ok();
                let names = dir.names();
                assert!(names.len() <= 1, "{names:?}: nothing half written stays");
                if over {
                    done.unwrap();
                    assert_eq!(found, Some(long.clone()));
                    break;
                }
                let what = REFUSED.take();
                let old = if overwrite { Some(b"old".to_vec()) } else { None };
                match &done {
                    // a name can be taken in two ways
                    Ok(()) => assert!(what == "link" && found == Some(long.clone())),
                    Err(e) => {
                        assert_eq!(e.kind(), Kind::Io, "{what}");
                        assert!(
                            e.to_string().contains("a.checkpoint")
                                || what.contains("directory")
                                || what == "open",
                            "{e}"
                        );
                        assert!(e.to_string().contains("cannot "), "{e}");
                        // once it has its name it is whole
                        let new = what == "flush the directory";
                        assert_eq!(found, if new { Some(long.clone()) } else { old }, "{what}");
                    }
                }
                refused.push(what);
            }
        }
        for what in ["open", "write", "flush", "permissions", "rename", "link", "flush the directory"] {
            assert!(refused.iter().any(|r| r == what), "{what}: {refused:?}");
        }
    }

    /// A directory of its own, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("onlay-files-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn put(path: &Path, overwrite: bool, text: &[u8]) -> Result<()> {
        write_atomically(path, overwrite, |out| out.write_all(text).map_err(|e| Error::io("write", path, e)))
    }

    #[test]
    fn writes_and_overwrites_only_when_asked() {
        let dir = Scratch::new("plain");
        let path = dir.0.join("a.gguf");
        put(&path, false, b"one").unwrap();
        let error = put(&path, false, b"two").unwrap_err();
        assert_eq!(error.kind(), Kind::Argument);
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        put(&path, true, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(dir.names(), ["a.gguf"]);
    }

    #[test]
    fn a_failure_leaves_nothing_and_the_old_file_alone() {
        let dir = Scratch::new("failure");
        let path = dir.0.join("a.gguf");
        let fail = |overwrite| {
            write_atomically(&path, overwrite, |out| {
                out.write_all(&[0; 100_000]).unwrap();
                Err::<(), _>(Error::new(Kind::Cancelled, "stopped"))
            })
        };
        assert_eq!(fail(false).unwrap_err().kind(), Kind::Cancelled);
        assert!(dir.names().is_empty());
        put(&path, false, b"old").unwrap();
        assert!(fail(true).unwrap_err().to_string().ends_with("a.gguf: stopped"));
        assert_eq!(dir.names(), ["a.gguf"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");

        let panic = std::panic::catch_unwind(|| {
            write_atomically(&path, true, |_| -> Result<()> { panic!("on purpose") })
        });
        assert!(panic.is_err());
        assert_eq!(dir.names(), ["a.gguf"]);
    }

    #[test]
    fn what_is_missing_or_in_the_way_is_named() {
        let dir = Scratch::new("missing");
        let error = put(&dir.0.join("no").join("a.gguf"), false, b"").unwrap_err().to_string();
        assert!(error.ends_with("no: the directory to write a.gguf into does not exist"), "{error}");
        fs::create_dir(dir.0.join("d")).unwrap();
        let error = put(&dir.0.join("d"), true, b"").unwrap_err().to_string();
        assert!(error.ends_with("exists and is not a file"), "{error}");
        assert_eq!(put(Path::new("/"), true, b"").unwrap_err().kind(), Kind::Argument);
    }

    #[test]
    fn many_writers_of_one_target() {
        let dir = Scratch::new("race");
        for overwrite in [true, false] {
            let path = dir.0.join(format!("{overwrite}.bin"));
            let texts: Vec<Vec<u8>> = (0..8u8).map(|i| vec![i; 50_000 + usize::from(i)]).collect();
            let won: usize = std::thread::scope(|s| {
                let writers: Vec<_> =
                    texts.iter().map(|t| s.spawn(|| put(&path, overwrite, t).is_ok())).collect();
                writers.into_iter().map(|w| usize::from(w.join().unwrap())).sum()
            });
            assert_eq!(won, if overwrite { 8 } else { 1 });
            assert!(texts.contains(&fs::read(&path).unwrap()));
        }
        assert_eq!(dir.names().len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_passed_on() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Scratch::new("mode");
        let path = dir.0.join("secret");
        put(&path, false, b"1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        put(&path, true, b"2").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_noticed_when_the_buffer_is_flushed() {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            println!("skipped: no /dev/full");
            return;
        };
        let mut out = BufWriter::new(full);
        out.write_all(b"fits into the buffer").unwrap();
        assert_eq!(settled(out).unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
