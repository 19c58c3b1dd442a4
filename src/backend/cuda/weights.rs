//! Base weights on a device: those of as many segments as fit stay, the others come from the map when they are wanted.
//!
//! ```text
//! host        the embedding table, unless the head shares it: a row is decoded when its token comes
//! resident    the head, then the first segments
//! streamed    the rest, through two slots: while the device works with one segment, the next is copied into the other
//! ```
//! A slot is written only after the work that reads it ([`Slot::free`]), and read only after it was written
//! ([`Slot::ready`]).

use super::driver::Card;
use super::plan::Residency;
use super::queue::{Event, Memory, Region, Stream};
use crate::backend::Outline;
use crate::backend::device::STAGED;
use crate::error::{Error, Kind, Result};
use crate::ops::{MatrixId, Tables};
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
enum Place {
    Host,
    Resident(Region),
    /// In a segment, so many bytes from its start.
    Streamed(usize, u64),
}

#[derive(Debug)]
struct Slot {
    region: Region,
    holds: Option<usize>,
    /// It is written.
    ready: Event,
    /// Nothing reads it any more.
    free: Event,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Weights {
    places: Vec<Place>,
    /// The matrices of every segment.
    segments: Vec<Vec<MatrixId>>,
    slots: Vec<Slot>,
    /// The slot of the segment at work.
    current: usize,
    copies: Stream,
    _memory: [Memory; 2],
}

impl Weights {
    /// Copies to the device what stays there.
    pub fn new(card: &Arc<Card>, outline: &Outline<'_>, residency: &Residency) -> Result<Weights> {
        let (tables, copies) = (outline.tables, Stream::new(card, STAGED[0])?);
        let resident = Memory::new(card, residency.resident)?;
        let slots = Memory::new(card, 2 * residency.slot)?;
        let mut weights = Weights {
            places: vec![Place::Host; outline.matrices],
            segments: outline.segments.clone(),
            slots: Vec::new(),
            current: 0,
            copies,
            _memory: [resident, slots],
        };
        if residency.slot > 0 {
            for i in 0..2 {
                let region = weights._memory[1].whole().part(i * residency.slot, residency.slot);
                let (ready, free) = (Event::new(card)?, Event::new(card)?);
                weights.slots.push(Slot { region, holds: None, ready, free });
            }
        }
        let stays = outline.segments[..residency.segments].iter().flatten();
        let mut from = 0;
        for id in [outline.head].iter().chain(stays) {
            if !matches!(weights.places[id.0 as usize], Place::Host) {
                continue;
            }
            let bytes = tables.matrix(*id).bytes;
            let region = weights._memory[0].whole().part(from, bytes.len() as u64);
            from += (bytes.len() as u64).next_multiple_of(super::plan::ALIGN);
            weights.places[id.0 as usize] = Place::Resident(region);
            weights.copies.upload(bytes, region)?;
        }
        for (i, segment) in outline.segments.iter().enumerate().skip(residency.segments) {
            let mut from = 0;
            for id in segment {
                weights.places[id.0 as usize] = Place::Streamed(i, from);
                from += (tables.matrix(*id).bytes.len() as u64).next_multiple_of(super::plan::ALIGN);
            }
        }
        weights.copies.wait()?;
        Ok(weights)
    }

    /// Whether all stay on the device.
    pub fn stay(&self) -> bool {
        self.slots.is_empty()
    }

    /// The segment of a matrix, if it is streamed.
    pub fn streamed(&self, id: MatrixId) -> Option<usize> {
        match self.places[id.0 as usize] {
            Place::Streamed(segment, _) => Some(segment),
            _ => None,
        }
    }

    /// Queues a segment's way into a slot other than the one at work, if it is streamed and not there. Gives its slot.
    fn bring(&mut self, tables: &dyn Tables, segment: usize) -> Result<usize> {
        if let Some(there) = self.slots.iter().position(|s| s.holds == Some(segment)) {
            return Ok(there);
        }
        let to = 1 - self.current;
        self.slots[to].holds = None;
        self.copies.after(&self.slots[to].free)?;
        for i in 0..self.segments[segment].len() {
            let id = self.segments[segment][i];
            let Place::Streamed(_, from) = self.places[id.0 as usize] else { continue };
            let bytes = tables.matrix(id).bytes;
            let to = self.slots[to].region.part(from, bytes.len() as u64);
            self.copies.upload(bytes, to)?;
        }
        self.copies.record(&self.slots[to].ready)?;
        self.slots[to].holds = Some(segment);
        Ok(to)
    }

    /// Makes a streamed segment the one at work: what is queued on `stream` from now on finds it.
    pub fn enter(&mut self, tables: &dyn Tables, stream: &Stream, segment: usize) -> Result<()> {
        self.current = self.bring(tables, segment)?;
        stream.after(&self.slots[self.current].ready)
    }

    /// Says that all work with the segment at work is queued, and sends for the one that is wanted next.
    pub fn leave(&mut self, tables: &dyn Tables, stream: &Stream, next: Option<usize>) -> Result<()> {
        stream.record(&self.slots[self.current].free)?;
        let streamed = |i: &usize| {
            self.segments.get(*i).and_then(|ids| ids.first()).is_some_and(|id| self.streamed(*id).is_some())
        };
        let Some(next) = next.filter(streamed) else { return Ok(()) };
        self.bring(tables, next).map(|_| ())
    }

    /// Where a matrix is on the device.
    pub fn region(&self, tables: &dyn Tables, id: MatrixId) -> Result<Region> {
        match self.places[id.0 as usize] {
            Place::Resident(region) => Ok(region),
            Place::Streamed(segment, from) if self.slots[self.current].holds == Some(segment) => {
                Ok(self.slots[self.current].region.part(from, tables.matrix(id).bytes.len() as u64))
            }
            _ => Err(Error::new(Kind::Internal, format!("matrix {} is not on the device", id.0))),
        }
    }
}
