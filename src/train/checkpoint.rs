//! Checkpoints: everything a run needs to go on as if it had never stopped, bit for bit.
//!
//! A GGUF file with the numbers of the layer, both moments, how far the run is, and its [`Terms`]: every option that
//! changes numbers, as text.
//!
//! ```text
//! general.type               "onlay.checkpoint"
//! onlay.checkpoint.version   2
//! onlay.checkpoint.sha256    of the whole file with 64 zeros in this place
//! onlay.run.*                the terms
//! onlay.progress.*           steps, the place in the data, losses, what the guard has seen
//! SITE.layer  SITE.first  SITE.second    F32, as they lie in memory
//! SITE.first.codes  SITE.second.codes    I8: moments in 8 bits, whose F32 are then what blocks are multiplied with
//! SITE.good   SITE.best                  layers that the run may have to return to
//! ```
//! There are two slots, `OUT.checkpoint` and `OUT.checkpoint.2`, written in turn, so that the one before survives
//! whatever happens to a file. The newest that is whole counts.

use super::Cursor;
use super::guard::Baseline;
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::format::files::write_atomically;
use crate::format::gguf::{Builder, Directory, Encoded, Metadata, Value, parse};
use crate::format::types::Type;
use crate::tensor::Slots;
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

const TYPE: &str = "onlay.checkpoint";
const VERSION: u32 = 2;
const HASH: &str = "onlay.checkpoint.sha256";
const RUN: &str = "onlay.run.";
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Slots that are written in turn.
pub const SLOTS: usize = 2;

/// Where checkpoints are kept. [`Files`] keeps them beside the output; a host may keep them elsewhere.
pub trait Store {
    /// Where a slot is, for messages.
    fn place(&self, slot: usize) -> &Path;

    /// Replaces a slot by what `content` writes: as a whole or not at all.
    ///
    /// # Errors
    /// What the system refuses, and what `content` returns. The slot is then as it was.
    fn write(&mut self, slot: usize, content: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()>;

    /// The bytes of a slot; `None` if nothing was written yet.
    ///
    /// # Errors
    /// `Io`; `Format` if there are more than `most`.
    fn read(&mut self, slot: usize, most: u64) -> Result<Option<Vec<u8>>>;

    /// Empties a slot.
    ///
    /// # Errors
    /// `Io`.
    fn remove(&mut self, slot: usize) -> Result<()>;
}

/// Checkpoints as files beside the output.
#[derive(Clone, Debug)]
pub struct Files {
    paths: [PathBuf; SLOTS],
}

impl Files {
    /// `OUT.checkpoint` and `OUT.checkpoint.2`.
    pub fn beside(output: impl AsRef<Path>) -> Self {
        let named = |end: &str| {
            let mut path = output.as_ref().as_os_str().to_owned();
            path.push(end);
            PathBuf::from(path)
        };
        Files { paths: [named(".checkpoint"), named(".checkpoint.2")] }
    }
}

impl Store for Files {
    fn place(&self, slot: usize) -> &Path {
        &self.paths[slot]
    }

    fn write(&mut self, slot: usize, content: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
        write_atomically(&self.paths[slot], true, |out| content(out))
    }

    fn read(&mut self, slot: usize, most: u64) -> Result<Option<Vec<u8>>> {
        let path = &self.paths[slot];
        let file = match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io("open", path, e))?,
        };
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        if bytes.len() as u64 > most {
            let error = Error::expected(Kind::Format, "size", format!("at most {most} bytes"), "more");
            return Err(error.in_file(path));
        }
        Ok(Some(bytes))
    }

    fn remove(&mut self, slot: usize) -> Result<()> {
        match std::fs::remove_file(&self.paths[slot]) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &self.paths[slot], e)),
            _ => Ok(()),
        }
    }
}

/// Everything that decides a run's numbers, by name: options, base, data. Two runs with equal terms are the same run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms(Vec<(String, String)>);

impl Terms {
    /// Adds one. Numbers are written so that different ones never look alike.
    pub fn set(&mut self, name: impl Into<String>, value: impl Display) {
        self.0.push((name.into(), value.to_string()));
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    /// The value of a term.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Every term in which `other`, a checkpoint's, differs.
    fn differences(&self, other: &Terms, wrong: &mut Findings) {
        let mut differ = |name: &str, here: &str, there: &str| {
            let text = format!("{here:?} now, {there:?} in the checkpoint");
            wrong.push(Error::new(Kind::Mismatch, text).at(Place::Key(name.into())));
        };
        for (name, here) in self.iter() {
            let there = other.get(name);
            if there != Some(here) {
                differ(name, here, there.unwrap_or("nothing"));
            }
        }
        for (name, there) in other.iter().filter(|(name, _)| self.get(name).is_none()) {
            differ(name, "nothing", there);
        }
    }
}

/// A loss over the evaluation rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Steps taken before it.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
    /// Tokens it is the mean of; of judged rows, which it is the mean of instead, the tokens judged.
    pub tokens: u64,
    /// Of judged rows: the share on the right side.
    pub accuracy: Option<f64>,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Optimiser steps taken.
    pub steps: u64,
    /// The place in the data.
    pub cursor: Cursor,
    /// Trained tokens learned from.
    pub trained: u64,
    /// Rows computed.
    pub rows: u64,
    /// Loss of the first step, and of the last.
    pub losses: Option<(f64, f64)>,
    /// Evaluations so far.
    pub evaluations: Vec<Evaluation>,
    /// What the guard has seen.
    pub baseline: Baseline,
    /// Updates behind the layer of the last good step, once there was one.
    pub good: Option<u64>,
}

impl Progress {
    /// The best evaluation, by its place among them: the first of the lowest loss.
    pub fn best(&self) -> Option<usize> {
        let all = self.evaluations.iter().enumerate();
        all.min_by(|(_, a), (_, b)| a.loss.total_cmp(&b.loss)).map(|(i, _)| i)
    }
}

/// The arrays of a run, one slot per site; slots of length 0 are left out.
#[derive(Clone)]
pub struct Arrays<'a> {
    /// The places' names.
    pub names: &'a [String],
    /// What they are called and where they lie.
    pub sets: Vec<(&'static str, &'a Slots<Vec<f32>>)>,
    /// The same of bytes.
    pub codes: Vec<(&'static str, &'a Slots<Vec<u8>>)>,
}

/// One array of a checkpoint.
#[derive(Clone, Copy)]
enum Array<'a> {
    Floats(&'a Slots<Vec<f32>>),
    Codes(&'a Slots<Vec<u8>>),
}

impl Array<'_> {
    fn len(&self, i: usize) -> usize {
        match self {
            Array::Floats(slots) => slots.read(i).len(),
            Array::Codes(slots) => slots.read(i).len(),
        }
    }

    fn kind(&self) -> Type {
        if let Array::Floats(_) = self { Type::F32 } else { Type::I8 }
    }
}

impl Arrays<'_> {
    fn each(&self) -> impl Iterator<Item = (String, usize, Array<'_>)> {
        let floats = self.sets.iter().map(|(end, slots)| (*end, Array::Floats(slots)));
        let all = floats.chain(self.codes.iter().map(|(end, slots)| (*end, Array::Codes(slots))));
        all.flat_map(move |(end, array)| {
            let some = self.names.iter().enumerate().filter(move |(i, _)| array.len(*i) > 0);
            some.map(move |(i, name)| (format!("{name}.{end}"), i, array))
        })
    }

    /// The most bytes that a checkpoint of them may have.
    pub fn most_bytes(&self, terms: &Terms) -> u64 {
        let numbers: usize = self.each().map(|(_, i, array)| array.len(i) + 64).sum();
        let text: usize = terms.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
        // and the history of evaluations
        4 * numbers as u64 + text as u64 + (16 << 20)
    }
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hex(hash: Sha256) -> String {
    crate::tensor::Identity::hex(&hash.finalize().into())
}

fn build<'a>(terms: &Terms, progress: &Progress, arrays: &'a Arrays<'a>, hash: &str) -> Builder<'a> {
    let mut file = Builder::new();
    file.set("general.type", TYPE).set("onlay.checkpoint.version", VERSION).set(HASH, hash);
    for (name, value) in terms.iter() {
        file.set(&format!("{RUN}{name}"), value);
    }
    let p = progress;
    file.set("onlay.progress.steps", p.steps);
    file.set("onlay.progress.epoch", p.cursor.epoch).set("onlay.progress.row", p.cursor.row);
    file.set("onlay.progress.trained", p.trained).set("onlay.progress.rows", p.rows);
    if let Some((first, last)) = p.losses {
        file.set("onlay.progress.first_loss", first).set("onlay.progress.last_loss", last);
    }
    let of = |f: fn(&Evaluation) -> u64| Encoded::array(&p.evaluations.iter().map(f).collect::<Vec<_>>());
    file.set("onlay.progress.evaluated.steps", of(|e| e.step));
    file.set("onlay.progress.evaluated.losses", of(|e| e.loss.to_bits()));
    file.set("onlay.progress.evaluated.tokens", of(|e| e.tokens));
    file.set("onlay.progress.evaluated.accuracies", of(|e| e.accuracy.unwrap_or(f64::NAN).to_bits()));
    let b = &p.baseline;
    file.set("onlay.progress.guard.steps", b.steps).set("onlay.progress.guard.high", b.high);
    file.set("onlay.progress.guard.highest", b.highest);
    file.set("onlay.progress.guard.mean", b.mean).set("onlay.progress.guard.deviation", b.deviation);
    if let Some(steps) = p.good {
        file.set("onlay.progress.good", steps);
    }
    for (name, i, array) in arrays.each() {
        file.tensor_from(&name, array.kind(), &[array.len(i)], move |sink| match array {
            Array::Floats(slots) => sink.put_f32s(&slots.read(i)),
            Array::Codes(slots) => sink.put(&slots.read(i)),
        });
    }
    file
}

/// A checkpoint that was read and is whole.
#[derive(Debug)]
pub struct Checkpoint {
    terms: Terms,
    progress: Progress,
    directory: Directory,
    bytes: Vec<u8>,
}

impl Checkpoint {
    /// Writes a checkpoint.
    ///
    /// # Errors
    /// As the writer says.
    pub fn write(out: &mut dyn Write, terms: &Terms, progress: &Progress, arrays: &Arrays<'_>) -> Result<()> {
        // Once through the hash and once into the file: both have the same bytes but for the hash itself.
        let mut hash = Hashing(Sha256::new());
        build(terms, progress, arrays, NO_HASH).write(&mut hash)?;
        build(terms, progress, arrays, &hex(hash.0)).write(out).map(|_| ())
    }

    /// Reads a checkpoint and proves by its hash that no byte has changed.
    ///
    /// # Errors
    /// `Format` if it is damaged or something else; `Unsupported` for another version.
    pub fn read(bytes: Vec<u8>) -> Result<Checkpoint> {
        let directory = parse(&bytes)?;
        let metadata = directory.metadata(&bytes);
        if metadata.text("general.type")? != Some(TYPE) {
            return Err(Error::new(Kind::Format, "not a checkpoint"));
        }
        let said = metadata.need_text(HASH)?;
        let at = said.as_ptr() as usize - bytes.as_ptr() as usize; // where the text lies in the file
        let mut hash = Sha256::new();
        hash.update(&bytes[..at]);
        hash.update(&NO_HASH[..said.len().min(64)]);
        hash.update(&bytes[at + said.len()..]);
        if said != hex(hash) {
            return Err(Error::new(Kind::Format, "damaged: its bytes do not have the hash that it names"));
        }
        let version = metadata.need_u32("onlay.checkpoint.version")?;
        if version != VERSION {
            return Err(Error::expected(Kind::Unsupported, "version of the checkpoint", VERSION, version));
        }
        let mut terms = Terms::default();
        for (key, value) in metadata.iter() {
            if let (Some(name), Value::Text(text)) = (key.strip_prefix(RUN), value) {
                terms.set(name, text);
            }
        }
        let progress = progress(metadata)?;
        Ok(Checkpoint { terms, progress, directory, bytes })
    }

    /// The terms of its run.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How far its run was.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Copies its numbers into the arrays of a run with these terms, and says how far it was.
    ///
    /// # Errors
    /// `Mismatch` listing every term and array that differs; nothing was copied then.
    pub fn restore(&self, terms: &Terms, arrays: &Arrays<'_>) -> Result<Progress> {
        let mut wrong = Findings::default();
        terms.differences(&self.terms, &mut wrong);
        let mut expected = 0;
        for (name, i, array) in arrays.each() {
            expected += 1;
            let (len, kind) = (array.len(i), array.kind());
            let found = self.directory.tensor(&name, &self.bytes);
            if !found.is_some_and(|t| t.kind() == kind && t.dims() == [len]) {
                let place = Place::Tensor(name);
                wrong.push(Error::new(Kind::Mismatch, format!("expected {len} numbers")).at(place));
            }
        }
        if self.directory.tensors().len() > expected {
            let found = self.directory.tensors().len();
            wrong.push(Error::expected(Kind::Mismatch, "arrays", expected, found));
        }
        wrong.refuse("the checkpoint is of another run")?;
        for (name, i, array) in arrays.each() {
            let data = self.directory.tensor(&name, &self.bytes).expect("checked above").data(&self.bytes);
            match array {
                Array::Floats(slots) => {
                    let (words, _) = data.as_chunks::<4>();
                    slots.get(i).iter_mut().zip(words).for_each(|(to, w)| *to = f32::from_le_bytes(*w));
                }
                Array::Codes(slots) => slots.get(i).copy_from_slice(data),
            }
        }
        Ok(self.progress.clone())
    }
}

fn progress(metadata: Metadata<'_>) -> Result<Progress> {
    let count = |name: &str| metadata.need_u64(&format!("onlay.progress.{name}"));
    let counts = |name: &str| -> Result<Vec<u64>> {
        let key = format!("onlay.progress.evaluated.{name}");
        match metadata.get(&key) {
            Some(Value::Array(all)) => {
                let numbers = all.iter().map(|v| v.integer().and_then(|n| u64::try_from(n).ok()));
                numbers.collect::<Option<_>>().ok_or_else(|| metadata.error(&key, "expected integers"))
            }
            _ => Err(metadata.error(&key, "expected an array")),
        }
    };
    let (steps, losses, tokens) = (counts("steps")?, counts("losses")?, counts("tokens")?);
    let accuracies = counts("accuracies")?;
    if [&losses, &tokens, &accuracies].iter().any(|a| a.len() != steps.len()) {
        return Err(metadata.error("onlay.progress.evaluated.steps", "arrays of different lengths"));
    }
    let all = steps.iter().zip(losses).zip(tokens).zip(accuracies);
    let evaluations = all.map(|(((step, loss), tokens), accuracy)| Evaluation {
        step: *step,
        loss: f64::from_bits(loss),
        tokens,
        accuracy: Some(f64::from_bits(accuracy)).filter(|a| !a.is_nan()),
    });
    let loss = |name: &str| match metadata.get(&format!("onlay.progress.{name}")) {
        Some(Value::F64(loss)) => Some(loss),
        _ => None,
    };
    let number = |name: &str| match metadata.get(&format!("onlay.progress.guard.{name}")) {
        Some(Value::F64(n)) => Ok(n),
        _ => Err(metadata.error(&format!("onlay.progress.guard.{name}"), "expected a number")),
    };
    let good = metadata.get("onlay.progress.good").map(|_| count("good")).transpose()?;
    Ok(Progress {
        baseline: Baseline {
            steps: count("guard.steps")?,
            mean: number("mean")?,
            deviation: number("deviation")?,
            highest: number("highest")?,
            high: count("guard.high")?,
        },
        good,
        steps: count("steps")?,
        cursor: Cursor { epoch: count("epoch")?, row: count("row")? },
        trained: count("trained")?,
        rows: count("rows")?,
        losses: loss("first_loss").zip(loss("last_loss")),
        evaluations: evaluations.collect(),
    })
}
