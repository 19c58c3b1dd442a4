//! What a device will hold, known in bytes before it holds it.

use super::facts::Facts;
use super::layers::Layers;
use super::steps::{PARTED, PARTS};
use crate::backend::{Outline, Plan, STREAMED};
use crate::error::{Error, Findings, Kind, Result};
use crate::ops::{MatrixId, VectorId};

/// Where regions begin.
pub(super) const ALIGN: u64 = 256;

/// Rows of a launch: one of its dimensions has no more.
const MOST_ROWS: usize = 65_535;

/// The longest head that the attention kernels take.
const MOST_HEAD: usize = 256;

/// What of the weights stays on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Residency {
    /// Bytes that stay: the head, and so many segments.
    pub resident: u64,
    /// Segments that stay; the others come when they are wanted.
    pub segments: usize,
    /// Bytes of each of the two slots for those; 0 without any.
    pub slot: u64,
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

/// Floats of some sizes, each beginning where a region may.
pub(super) fn floats(sizes: impl IntoIterator<Item = usize>) -> u64 {
    sizes.into_iter().map(|n| aligned(4 * n as u64)).sum()
}

/// Numbers that products beside base products need: `h`, `dh` and dropped inputs.
pub(super) fn beside(plan: &Plan) -> [usize; 3] {
    let needs = &plan.needs;
    let hidden = needs.rows * needs.room.hidden;
    [hidden, if plan.back { hidden } else { 0 }, if plan.back { needs.rows * needs.inputs } else { 0 }]
}

/// The end of a program: rows of the stream, the same normalised, their logits; the gradients of both; which rows they are,
/// their targets, scales and losses.
pub(super) fn end(plan: &Plan) -> [usize; 9] {
    let (n, wide) = (plan.ends, plan.ends * plan.width());
    let [back, one] = [wide, n].map(|n| if plan.back { n } else { 0 });
    [wide, wide, n * plan.vocabulary, back, back, n, one, one, one]
}

/// What blocks find out that share a token's keys.
pub(super) fn parts(plan: &Plan) -> usize {
    let heads = plan.needs.group * plan.kv.heads;
    PARTED.min(plan.needs.rows) * heads * PARTS * (plan.kv.head + 2)
}

/// Residual streams.
pub(super) fn streams(plan: &Plan) -> impl Iterator<Item = usize> {
    std::iter::repeat_n(plan.needs.rows * plan.width(), plan.streams)
}

/// Everything but weights and layers.
fn fixed(plan: &Plan, outline: &Outline<'_>) -> Vec<(&'static str, u64)> {
    let rows = plan.needs.rows;
    let frame = floats(plan.columns.iter().map(|c| c * rows));
    let lines = rows * plan.needs.group * plan.kv.heads;
    let vectors = (0..outline.vectors).map(|i| outline.tables.vector(VectorId(i as u32)).len());
    let turns = outline.tables.turns();
    vec![
        ("keys and values", plan.kv_bytes()),
        ("activations", frame * (plan.frames as u64 + u64::from(plan.back))),
        (
            "inside operations",
            floats(beside(plan)) + floats([if plan.back { lines } else { 0 }, parts(plan)]),
        ),
        ("residual streams", floats(streams(plan))),
        ("logits", floats(end(plan))),
        ("rotary tables", 2 * aligned(4 * (turns.positions() * turns.half()) as u64)),
        ("norms and biases", floats(vectors)),
        ("facts of a batch", Facts::bytes(rows, plan.tiles) + Facts::bytes(plan.ends, 0)),
        ("tables of layers", Layers::bytes(outline.sites.len())),
    ]
}

/// Bytes of some matrices.
fn weights(outline: &Outline<'_>, ids: &[MatrixId]) -> u64 {
    ids.iter().map(|id| aligned(outline.tables.matrix(*id).bytes.len() as u64)).sum()
}

/// The parts of a device's memory, and what of the weights stays there, within `budget` bytes.
///
/// # Errors
/// `Memory` if it cannot be done, with what is needed at least; `Unsupported` for what the kernels do not do.
pub(super) fn plan(
    plan: &Plan,
    outline: &Outline<'_>,
    budget: u64,
) -> Result<(Vec<(&'static str, u64)>, Residency)> {
    let mut wrong = Findings::default();
    if plan.kv.head > MOST_HEAD {
        let most = format!("at most {MOST_HEAD}");
        wrong.push(Error::expected(Kind::Unsupported, "columns of a head on a GPU", most, plan.kv.head));
    }
    if plan.needs.rows > MOST_ROWS {
        let most = format!("at most {MOST_ROWS}");
        wrong.push(Error::expected(Kind::Argument, "rows of a step on a GPU", most, plan.needs.rows));
    }
    if plan.needs.room.lead > 0 {
        let text = "layers in front of a sequence cannot be worn on a GPU yet; --device cpu wears all";
        wrong.push(Error::new(Kind::Unsupported, text));
    }
    wrong.refuse("this cannot be computed on a GPU")?;
    let mut parts = fixed(plan, outline);
    parts.push(("layers", outline.layers));
    let taken: u64 = parts.iter().map(|p| p.1).sum();
    let head = weights(outline, &[outline.head]);
    let sizes: Vec<u64> = outline.segments.iter().map(|ids| weights(outline, ids)).collect();
    let all: u64 = sizes.iter().sum();
    let most = sizes.iter().copied().max().unwrap_or(0);
    let residency = if taken + head + all <= budget {
        Residency { resident: head + all, segments: sizes.len(), slot: 0 }
    } else {
        let least = taken + head + 2 * most;
        let mut left = budget.checked_sub(least).ok_or_else(|| {
            let largest = parts.iter().max_by_key(|p| p.1).map_or("", |p| p.0);
            let found = format!("{least} bytes at least, most of it besides weights for {largest}");
            Error::expected(Kind::Memory, "memory of the GPU", format!("at most {budget} bytes"), found)
        })?;
        let mut segments = 0;
        for size in &sizes {
            let Some(rest) = left.checked_sub(*size) else { break };
            left = rest;
            segments += 1;
        }
        // one that is alone needs no second slot, but then it would have fitted
        Residency { resident: head + sizes[..segments].iter().sum::<u64>(), segments, slot: most }
    };
    parts.push(("weights that stay", residency.resident));
    parts.push((STREAMED, 2 * residency.slot));
    Ok((parts, residency))
}
