//! A card with all the memory of its plan, and the weights that stay on it.

use super::driver::Card;
use super::facts::Facts;
use super::kernels::Kernels;
use super::layers::Layers;
use super::queue::{Memory, Region, Stream};
use super::weights::Weights;
use super::{Cuda, Ends, GRAPHS, plan};
use crate::backend::device::STAGED;
use crate::backend::{Outline, Plan};
use crate::error::Result;
use crate::ops::VectorId;
use crate::tensor::Team;
use std::sync::Arc;
use std::time::Instant;

/// Of what is free, what is left to others unless told how much to take: an eighth.
const LEFT: u64 = 8;

/// The parts of a card's memory, within `memory` bytes or what is free.
///
/// # Errors
/// As [`Cuda::new`].
pub fn parts(
    index: usize,
    memory: Option<u64>,
    plan: &Plan,
    outline: &Outline<'_>,
) -> Result<Vec<(&'static str, u64)>> {
    let card = Card::open(index)?;
    let _bound = card.bind()?;
    plan::plan(plan, outline, budget(&card, memory)?).map(|(parts, _)| parts)
}

/// Bytes read and written per second while memory is copied: the fastest of some copies.
///
/// # Errors
/// As [`Cuda::new`].
pub fn copied(index: usize, memory: Option<u64>) -> Result<f64> {
    let card = Card::open(index)?;
    let _bound = card.bind()?;
    let bytes = budget(&card, memory)?.min(1 << 29) / 2;
    let (from, to, stream) =
        (Memory::new(&card, bytes)?, Memory::new(&card, bytes)?, Stream::new(&card, STAGED[1])?);
    let mut best = 0f64;
    for _ in 0..4 {
        stream.wait()?;
        let start = Instant::now();
        (0..8).try_for_each(|_| stream.copy(from.whole(), to.whole()))?;
        stream.wait()?;
        best = best.max((16 * bytes) as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn budget(card: &Card, memory: Option<u64>) -> Result<u64> {
    let free = card.free()?;
    Ok(memory.unwrap_or(free - free / LEFT))
}

/// Cuts memory into regions, each beginning where one may.
struct Cut {
    rest: Region,
}

impl Cut {
    fn floats(&mut self, n: usize) -> Region {
        let bytes = 4 * n as u64;
        let taken = bytes.next_multiple_of(plan::ALIGN);
        let region = if bytes == 0 { Region::NONE } else { self.rest.part(0, bytes) };
        self.rest = self.rest.part(taken, self.rest.bytes() - taken);
        region
    }
}

impl Cuda {
    /// Takes the memory of the plan and copies weights to the card.
    ///
    /// # Errors
    /// `Device` if there is no such card or its driver refuses; `Memory` if the plan does not fit into `memory` bytes, or the
    /// card has not so much; `Unsupported` for what the kernels do not do.
    pub fn new(
        index: usize,
        memory: Option<u64>,
        plan: &Plan,
        outline: &Outline<'_>,
        team: Team,
    ) -> Result<Self> {
        plan.kv.check()?;
        let card = Card::open(index)?;
        let same = Arc::clone(&card);
        let _bound = same.bind()?;
        let budget = budget(&card, memory)?;
        let (parts, residency) = plan::plan(plan, outline, budget)?;
        let taken: u64 = parts.iter().filter(|p| p.0 != "layers").map(|p| p.1).sum();
        let stream = Arc::new(Stream::new(&card, STAGED[1])?);
        let mut held = Vec::new();
        let mut cut = |bytes: u64| -> Result<Cut> {
            let memory = Memory::new(&card, bytes)?;
            let rest = memory.whole();
            held.push(memory);
            Ok(Cut { rest })
        };
        let rows = plan.needs.rows;
        let sizes = || plan.columns.iter().map(|c| c * rows);
        let mut registers = || -> Result<Vec<Region>> {
            let mut cut = cut(plan::floats(sizes()))?;
            Ok(sizes().map(|n| cut.floats(n)).collect())
        };
        let frames = (0..plan.frames).map(|_| registers()).collect::<Result<Vec<_>>>()?;
        let grads = if plan.back { registers()? } else { vec![] };
        let beside = plan::beside(plan);
        let mut inside = cut(plan::floats(beside))?;
        let beside = beside.map(|n| inside.floats(n));
        let lines = if plan.back { rows * plan.needs.group * plan.kv.heads } else { 0 };
        let mut attention = cut(plan::floats([lines, plan::parts(plan)]))?;
        let [delta, parts] = [lines, plan::parts(plan)].map(|n| attention.floats(n));
        let mut kept = cut(plan::floats(plan::streams(plan)))?;
        let streams = plan::streams(plan).map(|n| kept.floats(n)).collect();
        let mut ends = cut(plan::floats(plan::end(plan)))?;
        let [stream_rows, x, z, dx, down, which, targets, scales, losses] =
            plan::end(plan).map(|n| ends.floats(n));
        let turns = outline.tables.turns();
        let n = turns.positions() * turns.half();
        let mut tables = cut(plan::floats([n, n]))?;
        let turned = turns.tables().map(|t| (tables.floats(n), t));
        for (to, from) in turned {
            stream.upload(bytemuck::cast_slice(from), to)?;
        }
        let vector = |i: usize| outline.tables.vector(VectorId(i as u32));
        let mut norms = cut(plan::floats((0..outline.vectors).map(|i| vector(i).len())))?;
        let vectors: Vec<Region> = (0..outline.vectors).map(|i| norms.floats(vector(i).len())).collect();
        for (i, to) in vectors.iter().enumerate() {
            stream.upload(bytemuck::cast_slice(vector(i)), *to)?;
        }
        Ok(Cuda {
            level: plan.level,
            team,
            weights: Weights::new(&card, outline, &residency)?,
            layers: Layers::new(&card, outline.sites.clone(), budget.saturating_sub(taken))?,
            frames,
            grads,
            cols: plan.columns.clone(),
            frame: 0,
            down: false,
            rows_at_hand: 0,
            back: plan.back,
            kv: Memory::new(&card, plan.kv_bytes())?,
            shape: plan.kv,
            free: (0..plan.tiles as u32).rev().collect(),
            beside,
            stride: plan.needs.room.hidden,
            sites: outline.sites.clone(),
            delta,
            parts,
            streams,
            end: Ends {
                stream: stream_rows,
                x,
                z,
                dx,
                down,
                rows: which,
                targets,
                scales,
                losses,
                logits: vec![0.0; if plan.back { 0 } else { plan.ends * plan.vocabulary }],
                vocabulary: plan.vocabulary,
                found: vec![0.0; plan.ends],
            },
            turns: turned.map(|t| t.0),
            vectors,
            facts: Facts::new(&card, rows, plan.tiles)?,
            head_facts: Facts::new(&card, plan.ends, 0)?,
            rows: vec![0.0; rows * plan.columns[0]],
            failed: None,
            graphs: Vec::with_capacity(GRAPHS),
            kernels: Kernels::new(&card),
            _memory: held,
            stream,
            card,
        })
    }
}
