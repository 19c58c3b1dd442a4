//! Layers on a device: the numbers of low-rank pairs, and their gradients while they learn.
//!
//! A layer takes one of [`SLOTS`] slots when a row is to wear it, and keeps it until another needs the room. Kernels find
//! its pair at a site in a table `[sites][SLOTS]`, by the slot that each row names.

use super::driver::Card;
use super::queue::{Memory, Region, Stream};
use crate::error::{Error, Kind, Result};
use crate::ops::{Backward, Delta, Pairs, Site};
use std::sync::Arc;

/// Layers at once: as many as there can be sequences in a step.
const SLOTS: usize = 64;

/// A pair as kernels read it: two addresses, a rank, a scale.
const PAIR: usize = 24;

/// A pair on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// A, B
    numbers: [Region; 2],
    /// dA, dB of the units that learn
    pub grads: [Region; 2],
    pub rank: usize,
    pub learned: usize,
    pub scale: f32,
}

#[derive(Debug)]
struct Held {
    stamp: [u64; 2],
    numbers: Memory,
    at: Vec<Option<At>>,
    /// The step that wore it last.
    used: u64,
    /// Where it learns.
    learning: Option<Learning>,
}

/// Gradients of the layer that learns, and where they come to on the host.
#[derive(Debug)]
struct Learning {
    memory: Memory,
    host: Vec<f32>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Layers {
    card: Arc<Card>,
    /// Inputs and outputs of every site.
    sites: Vec<[usize; 2]>,
    slots: Vec<Option<Held>>,
    table: Memory,
    mirror: Vec<u8>,
    /// Bytes that layers may still take.
    left: u64,
    step: u64,
    /// How often layers have come or gone.
    changes: u64,
}

impl Layers {
    /// Bytes of the table.
    pub fn bytes(sites: usize) -> u64 {
        (sites * SLOTS * PAIR) as u64
    }

    pub fn new(card: &Arc<Card>, sites: Vec<[usize; 2]>, left: u64) -> Result<Layers> {
        Ok(Layers {
            card: Arc::clone(card),
            slots: (0..SLOTS).map(|_| None).collect(),
            table: Memory::new(card, Self::bytes(sites.len()))?,
            mirror: vec![0; sites.len() * SLOTS * PAIR],
            sites,
            left,
            step: 0,
            changes: 0,
        })
    }

    /// Pairs of a site, as kernels take them.
    pub fn pairs(&self, site: Site) -> Region {
        let row = (SLOTS * PAIR) as u64;
        self.table.whole().part(u64::from(site.0) * row, row)
    }

    /// The slot of a layer that was let in.
    pub fn slot(&self, delta: &dyn Delta) -> Result<usize> {
        // its numbers are those of its admission, whoever has changed them meanwhile
        let layer = delta.pairs().map(|p| p.stamp()[0]);
        let found = self.slots.iter().position(|s| s.as_ref().is_some_and(|h| Some(h.stamp[0]) == layer));
        found.ok_or_else(|| Error::new(Kind::Internal, "a layer is worn that was not let in"))
    }

    /// A layer's pair at a site.
    pub fn at(&self, slot: usize, site: Site) -> Option<At> {
        self.slots[slot].as_ref()?.at.get(usize::from(site)).copied().flatten()
    }

    /// Whether any layer has a pair at a site.
    pub fn has(&self, site: Site) -> bool {
        self.slots.iter().flatten().any(|h| h.at[usize::from(site)].is_some())
    }

    /// How often layers have come or gone: which sites have pairs may have changed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// A step is done: what it wore may make room.
    pub fn done(&mut self) {
        self.step += 1;
    }

    /// Brings a layer's numbers to the device, with gradients if it `learns`.
    ///
    /// # Errors
    /// `Unsupported` if it is more than low-rank pairs at products; `Memory` if there is no room for it.
    pub fn admit(&mut self, stream: &Stream, delta: &dyn Delta, learns: bool) -> Result<()> {
        let Some(pairs) = delta.pairs() else {
            let text =
                "layers other than LoRA around products cannot be worn on a GPU yet; --device cpu wears all";
            return Err(Error::new(Kind::Unsupported, text));
        };
        let stamp = pairs.stamp();
        if let Some(held) = self.slots.iter_mut().flatten().find(|h| h.stamp[0] == stamp[0]) {
            held.used = self.step;
            if held.stamp != stamp {
                fill(stream, pairs, &held.at)?;
                held.stamp = stamp;
            }
            return Ok(());
        }
        let at = self.lay_out(pairs);
        let numbers: u64 = at.iter().flatten().map(|a| a.numbers[0].bytes() + a.numbers[1].bytes()).sum();
        let grads: u64 = at.iter().flatten().map(|a| a.grads[0].bytes() + a.grads[1].bytes()).sum();
        let grads = if learns { grads } else { 0 };
        while self.left < numbers + grads || self.slots.iter().all(Option::is_some) {
            self.evict(stream, numbers + grads)?;
        }
        let numbers = Memory::new(&self.card, numbers)?;
        let mut held = Held { stamp, at, numbers, used: self.step, learning: None };
        if learns {
            let memory = Memory::new(&self.card, grads)?;
            held.learning = Some(Learning { host: vec![0.0; grads as usize / 4], memory });
        }
        place(&mut held.at, held.numbers.whole(), held.learning.as_ref().map(|l| l.memory.whole()));
        fill(stream, pairs, &held.at)?;
        let slot = self.slots.iter().position(Option::is_none).expect("one was made free");
        for (i, at) in held.at.iter().enumerate() {
            let from = (i * SLOTS + slot) * PAIR;
            self.mirror[from..from + PAIR].copy_from_slice(&pair(at.as_ref()));
        }
        stream.upload(&self.mirror, self.table.whole())?;
        self.left -= held.bytes();
        self.slots[slot] = Some(held);
        self.changes += 1;
        Ok(())
    }

    /// Takes the layer off that was worn longest ago.
    fn evict(&mut self, stream: &Stream, wanted: u64) -> Result<()> {
        let old = self.slots.iter_mut().filter(|s| s.as_ref().is_some_and(|h| h.used < self.step));
        let Some(slot) = old.min_by_key(|s| s.as_ref().map(|h| h.used)) else {
            let expected = format!("at most {} bytes", self.left);
            return Err(Error::expected(Kind::Memory, "room for a layer on the GPU", expected, wanted));
        };
        stream.wait()?; // it may still be read
        self.left += slot.take().map_or(0, |h| h.bytes());
        self.changes += 1;
        Ok(())
    }

    /// Sizes of a layer's pairs; where a site has several they lie one behind the other as one pair.
    fn lay_out(&self, pairs: &dyn Pairs) -> Vec<Option<At>> {
        let of = |(i, [inputs, outputs]): (usize, &[usize; 2])| {
            let (mut rank, mut learned, mut scale, mut count) = (0, 0, 1.0, 0);
            pairs.pairs_at(Site(i as u32), &mut |p| {
                rank += p.rank;
                learned += p.learned;
                count += 1;
                scale = if count == 1 { p.scale } else { 1.0 };
            });
            let sized = |units: usize| [inputs, outputs].map(|n| Region::sized(4 * (units * n) as u64));
            (rank > 0).then(|| At { numbers: sized(rank), grads: sized(learned), rank, learned, scale })
        };
        self.sites.iter().enumerate().map(of).collect()
    }

    /// Clears gradients, before a pass.
    pub fn clear(&self, stream: &Stream) -> Result<()> {
        let learning = self.slots.iter().flatten().filter_map(|h| h.learning.as_ref());
        learning.map(|l| l.memory.whole()).try_for_each(|whole| stream.clear(whole))
    }

    /// Adds the gradients that a pass left on the device to the layer's own.
    pub fn collect(&mut self, stream: &Stream, slot: usize, learner: &dyn Backward) -> Result<()> {
        let Some(held) = &mut self.slots[slot] else { return Ok(()) };
        let Some(learning) = &mut held.learning else { return Ok(()) };
        let whole = learning.memory.whole();
        stream.download(whole, bytemuck::cast_slice_mut(&mut learning.host))?;
        let mut rest = &learning.host[..];
        for (i, at) in held.at.iter().enumerate() {
            let Some(at) = at else { continue };
            let [da, db] = at.grads.map(|g| {
                let (here, behind) = rest.split_at(g.bytes() as usize / 4);
                rest = behind;
                here
            });
            learner.pair_back(Site(i as u32), da, db);
        }
        Ok(())
    }
}

impl Held {
    fn bytes(&self) -> u64 {
        self.numbers.whole().bytes() + self.learning.as_ref().map_or(0, |l| l.memory.whole().bytes())
    }
}

/// Gives every pair its place.
fn place(all: &mut [Option<At>], numbers: Region, grads: Option<Region>) {
    let (mut from, mut grads_from) = (0, 0);
    for at in all.iter_mut().flatten() {
        for region in &mut at.numbers {
            let bytes = region.bytes();
            *region = numbers.part(from, bytes);
            from += bytes;
        }
        for region in &mut at.grads {
            let bytes = region.bytes();
            *region = grads.map_or(Region::NONE, |g| g.part(grads_from, bytes));
            grads_from += bytes;
        }
    }
}

/// Copies numbers to their places. Several pairs at one site share a scale of 1: their own are in B.
fn fill(stream: &Stream, pairs: &dyn Pairs, all: &[Option<At>]) -> Result<()> {
    for (i, at) in all.iter().enumerate() {
        let Some(at) = at else { continue };
        let (mut from, mut done) = ([0, 0], Ok(()));
        pairs.pairs_at(Site(i as u32), &mut |p| {
            let alone = p.rank == at.rank;
            let scaled: Vec<f32>;
            let b = if alone {
                p.b
            } else {
                scaled = p.b.iter().map(|v| p.scale * v).collect();
                &scaled
            };
            for ((part, whole), from) in [p.a, b].into_iter().zip(at.numbers).zip(&mut from) {
                let bytes = 4 * part.len() as u64;
                if done.is_ok() {
                    done = stream.upload(bytemuck::cast_slice(part), whole.part(*from, bytes));
                }
                *from += bytes;
            }
        });
        done?;
    }
    Ok(())
}

/// A pair as kernels read it.
fn pair(at: Option<&At>) -> [u8; PAIR] {
    let mut bytes = [0; PAIR];
    if let Some(at) = at {
        for (to, region) in bytes.chunks_exact_mut(8).zip(at.numbers) {
            to.copy_from_slice(&region.address().to_le_bytes());
        }
        bytes[16..20].copy_from_slice(&(at.rank as i32).to_le_bytes());
        bytes[20..].copy_from_slice(&at.scale.to_le_bytes());
    }
    bytes
}
