//! A small run with everything switched on, and a disk for its checkpoints that fails on command.
#![allow(dead_code)]

use super::support::*;
use onlay::adapter::{Lora, Part};
use onlay::error::Kind;
use onlay::model::Model;
use onlay::rng::Rng;
use onlay::train::{
    Checkpoint, Data, Encoder, Flow, Length, Outcome, Recipe, Rows, Run, RunOptions, SLOTS, Start, Store,
    Summary, split,
};
use onlay::{Error, Result};
use onlay_kernels::Level;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub const MODEL: &str = "llama/F32.gguf";

pub fn data(model: &Model) -> Data {
    let path = vectors().join("llama/curve/data.jsonl");
    let rows = Rows::read(path, None).unwrap();
    let set = Encoder::new(model, None, 100).encode(&rows, &mut |_, _| Flow::Go).unwrap();
    let (train, eval) = split(set, 0.2, 5).unwrap();
    assert_eq!((train.examples.len(), eval.examples.len()), (13, 3));
    Data { train, eval }
}

pub fn layer(model: &Model, which: &str, rank: usize) -> Lora {
    let sites = model.program().sites.iter();
    let part = |s: &onlay::model::program::SiteInfo| Part::lora(rank, s.inputs, s.outputs, 2.0);
    let mut layer = Lora::new(sites.map(|s| s.name.contains(which).then(|| part(s))).collect());
    layer.start(&mut Rng::new(3));
    layer
}

/// Nine steps of at most four rows, more than two epochs, with everything that draws numbers switched on.
pub fn small(threads: usize) -> RunOptions {
    RunOptions {
        length: Length::Steps(9),
        batch_size: 2,
        grad_accumulation: 2,
        recipe: Recipe { rate: 5e-3, warmup: 2, decay: 0.01, ..Recipe::default() },
        dropout: 0.1,
        seed: 42,
        eval_every: Some(4),
        checkpoint_every: Some(2),
        checkpoint_after: None,
        start: Start::Resume,
        rows_of_a_pass: Some(70),
        ..RunOptions::new(Level::chosen().unwrap(), threads)
    }
}

/// Checkpoints in memory that outlive a run, and a disk that fails on command.
#[derive(Clone, Default)]
pub struct Disk(pub Arc<Mutex<State>>);

#[derive(Default)]
pub struct State {
    pub slots: [Option<Vec<u8>>; SLOTS],
    pub writes: usize,
    pub fail: Option<(usize, Fault)>,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The disk is full after so many bytes.
    Full(usize),
    /// Everything is written, and the process dies before the file gets its name.
    BeforeRename,
    /// The file has its name, and the process dies before it hears of it.
    AfterRename,
}

impl Store for Disk {
    fn place(&self, slot: usize) -> &Path {
        Path::new(["memory", "memory.2"][slot])
    }
    fn write(&mut self, slot: usize, content: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        state.writes += 1;
        let fault = state.fail.filter(|(at, _)| *at == state.writes).map(|(_, fault)| fault);
        let died = || Err(Error::new(Kind::Io, "died"));
        if let Some(Fault::Full(most)) = fault {
            return content(&mut FullAfter(most));
        }
        let mut bytes = Vec::new();
        content(&mut bytes)?;
        if let Some(Fault::BeforeRename) = fault {
            return died();
        }
        state.slots[slot] = Some(bytes);
        if fault.is_some() { died() } else { Ok(()) }
    }
    fn read(&mut self, slot: usize, most: u64) -> Result<Option<Vec<u8>>> {
        let found = self.0.lock().unwrap().slots[slot].clone();
        assert!(found.as_ref().is_none_or(|f| f.len() as u64 <= most));
        Ok(found)
    }
    fn remove(&mut self, slot: usize) -> Result<()> {
        self.0.lock().unwrap().slots[slot] = None;
        Ok(())
    }
}

struct FullAfter(usize);

impl Write for FullAfter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = bytes.len().min(self.0);
        self.0 -= n;
        if n == 0 && !bytes.is_empty() { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(n) }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn prepare(model: &Arc<Model>, options: RunOptions, disk: &Disk) -> Result<Run> {
    Run::new(model.clone(), layer(model, "", 2), data(model), options, Some(Box::new(disk.clone())))
}

pub fn bits(layer: &Lora) -> Vec<Vec<u32>> {
    let slots = layer.params();
    (0..slots.len()).map(|i| slots.read(i).iter().map(|v| v.to_bits()).collect()).collect()
}

/// What a run ends with: the numbers of the layer, its file, and the last checkpoint.
pub type End = (Vec<Vec<u32>>, Vec<u8>, Vec<u8>);

pub fn end(run: &Run, summary: &Summary, disk: &Disk) -> End {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("onlay-end-{}-{n}.gguf", std::process::id()));
    let model = open(vectors().join(MODEL));
    run.adapter("my", summary).unwrap().write_gguf(&path, &model, false).unwrap();
    let file = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let state = disk.0.lock().unwrap();
    let slots = state.slots.iter().flatten();
    let newest = slots.max_by_key(|b| Checkpoint::read(b.to_vec()).unwrap().progress().steps).unwrap();
    assert_eq!(Checkpoint::read(newest.clone()).unwrap().progress().steps, summary.steps);
    (bits(run.layer()), file, newest.clone())
}

pub fn finish(run: &mut Run, disk: &Disk) -> End {
    match run.go(&mut |_| Flow::Go).unwrap_or_else(|e| panic!("{e}")) {
        Outcome::Finished(summary) => end(run, &summary, disk),
        other => panic!("{other:?}"),
    }
}
