//! Memory for the inside of operations, planned once.

use super::linear::FEW_WIDTH;
use crate::tensor::Slots;
use onlay_kernels::Level;
use onlay_kernels::acts::{self, Acts, ActsMut, Grain};
use onlay_kernels::attention::{self, Running, TILE};
use onlay_kernels::dense::PIECE;
use onlay_kernels::panel::PanelMut;
use onlay_kernels::{dense_panel, gemm, panel};

/// Memory that layers want around products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Hidden numbers per row around the products of one input.
    pub hidden: usize,
    /// The longest input of a product in front of which a layer stands.
    pub entered: usize,
    /// Positions in front of every sequence ([`Delta::lead`](super::Delta::lead)).
    pub lead: usize,
}

impl Room {
    /// Whether there is as much of everything.
    pub fn holds(&self, other: Room) -> bool {
        self.hidden >= other.hidden && self.entered >= other.entered && self.lead >= other.lead
    }

    /// The most of both.
    pub fn or(self, other: Room) -> Room {
        Room {
            hidden: self.hidden.max(other.hidden),
            entered: self.entered.max(other.entered),
            lead: self.lead.max(other.lead),
        }
    }
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hidden numbers and {} entering ones a row", self.hidden, self.entered)?;
        if self.lead > 0 { write!(f, ", {} positions in front", self.lead) } else { Ok(()) }
    }
}

/// What the operations of a program will ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The most rows of a batch.
    pub rows: usize,
    /// The longest input of a product.
    pub inputs: usize,
    /// The longest output of a product inside a segment that has a backward pass; 0 without one.
    pub outputs: usize,
    /// Rows and outputs of the head's backward pass, which takes fewer rows at a time.
    pub head_back: (usize, usize),
    /// For the layers.
    pub room: Room,
    /// Columns per head.
    pub head: usize,
    /// Query heads per key head.
    pub group: usize,
    /// Numbers of the keys in front of a sequence that get gradients.
    pub lead_back: usize,
    /// Members of the team.
    pub members: usize,
    /// Some base matrix has 32-weight blocks.
    pub small: bool,
    /// Some base matrix has 256-weight blocks.
    pub large: bool,
    /// Some base matrix is not quantized.
    pub dense: bool,
}

impl Needs {
    pub(crate) fn back(&self) -> bool {
        self.outputs > 0 || self.head_back.0 > 0
    }
    /// Whether many rows meet unquantized weights.
    fn panels(&self) -> bool {
        self.dense && self.rows >= super::dense::MANY
    }
}

/// Rows of weights that one task of a large product takes.
pub(super) const TASK: usize = 64;
/// Elements of the reduction that a task lays into panels at a time.
pub(super) const PANEL: usize = 2048;
/// Rows of activations that one task of a large product takes at most: a multiple of [`GROUP`].
pub(super) const ROWS: usize = 516;
/// A multiple of every level's columns.
const GROUP: usize = 12;
/// Rows of the base that a backward task decodes at a time, and columns it takes.
pub(super) const BACK: (usize, usize) = (128, 256);
/// What the rows of a decoded piece lie apart: not a power of two, so that they do not share cache sets.
pub(super) const BACK_STRIDE: usize = BACK.1 + 16;

/// Quantized activations of one group of rows: as rows while there are few, packed when there are many.
#[derive(Debug)]
pub(super) struct Group {
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i32>,
    wide: Vec<i32>,
}

impl Group {
    fn new(grain: Grain, columns: usize, k: usize) -> Self {
        let k = k.next_multiple_of(grain.len());
        Group {
            q: vec![0; columns * k],
            d: vec![0.0; columns * k / grain.len()],
            sums: vec![0; columns * k / 32],
            wide: vec![0; if grain == Grain::Large { columns * k / 64 } else { 0 }],
        }
    }
    pub(super) fn read(&self, grain: Grain, n: usize, k: usize) -> Acts<'_> {
        Acts {
            k,
            q: &self.q[..n * k],
            d: &self.d[..n * k / grain.len()],
            sums: &self.sums[..n * k / 32],
            wide: &self.wide[..self.wide.len().min(n * k / 64)],
        }
    }
    pub(super) fn write(&mut self, grain: Grain, n: usize, k: usize) -> ActsMut<'_> {
        ActsMut {
            q: &mut self.q[..n * k],
            d: &mut self.d[..n * k / grain.len()],
            sums: &mut self.sums[..n * k / 32],
            wide: &mut self.wide,
        }
    }
}

/// What one member of the team works with.
#[derive(Debug)]
pub(super) struct Worker {
    /// Rows of activations before they are packed.
    pub staged: Option<(Group, Group)>,
    /// Panels of weights.
    pub panel: Vec<u32>,
    /// Outputs of a task.
    pub tile: Vec<f32>,
    /// Anything else; grows to what it is asked for during the first step.
    pub spare: Vec<f32>,
    /// Attention.
    pub attend: Attending,
}

/// A member's memory for attention.
#[derive(Debug)]
pub(super) struct Attending {
    pub q: Vec<f32>,
    pub o: Vec<f32>,
    pub d_out: Vec<f32>,
    pub dq: Vec<f32>,
    pub kt: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub vt: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
    pub state: Vec<Running>,
    pub log_sum: Vec<f32>,
    pub delta: Vec<f32>,
    pub valid: Vec<usize>,
    pub kernel: attention::Scratch,
}

impl Attending {
    fn new(head: usize, back: bool) -> Self {
        let (rows, tile) = (attention::ROWS, head * TILE);
        let only = |n: usize| vec![0.0; if back { n } else { 0 }];
        Attending {
            q: vec![0.0; rows * head],
            o: vec![0.0; rows * head],
            d_out: only(rows * head),
            dq: only(rows * head),
            kt: vec![0.0; tile],
            k: only(tile),
            v: vec![0.0; tile],
            vt: only(tile),
            dk: only(tile),
            dv: only(tile),
            state: vec![Running::START; rows],
            log_sum: vec![0.0; rows],
            delta: vec![0.0; rows],
            valid: vec![0; rows],
            kernel: attention::Scratch::new(head, back),
        }
    }
}

/// Memory for the inside of operations; see [`Needs`].
#[derive(Debug)]
pub struct Scratch {
    needs: Needs,
    pub(super) small: Slots<Group>,
    pub(super) large: Slots<Group>,
    pub(super) workers: Slots<Worker>,
    pub(super) hidden: Slots<Vec<f32>>,
    /// What layers let into a product.
    pub(super) entered: Slots<Vec<f32>>,
    /// Gradients of keys and of values in front of sequences; they grow for a layer that was not planned for.
    pub(super) lead: Slots<[Vec<f32>; 2]>,
    /// Gradients of outputs for the backward product, or inputs of unquantized ones, packed: one slot per group of rows.
    pub(super) packed: Slots<Vec<f32>>,
}

impl Scratch {
    /// Allocates what `needs` says.
    pub fn new(level: Level, needs: Needs) -> Self {
        let columns = acts::columns(level).max(onlay_kernels::dot::COLUMNS);
        let groups = needs.rows.div_ceil(acts::columns(level)).max(1);
        let some = |on: bool, grain: Grain| {
            Slots::new(if on { groups } else { 0 }, |_| Group::new(grain, columns, needs.inputs))
        };
        let back = needs.back();
        let many = needs.rows > super::FEW;
        let panel = Self::panel(level, needs);
        let tile = Self::tile(needs);
        Scratch {
            needs,
            small: some(needs.small, Grain::Small),
            large: some(needs.large, Grain::Large),
            workers: Slots::new(needs.members, |_| Worker {
                staged: (many && (needs.small || needs.large)).then(|| {
                    let group = |grain| Group::new(grain, columns, needs.inputs);
                    (group(Grain::Small), group(Grain::Large))
                }),
                panel: vec![0; panel],
                tile: vec![0.0; tile],
                spare: Vec::with_capacity(if back { BACK.0 * BACK_STRIDE } else { 16 * TASK }),
                attend: Attending::new(needs.head, back),
            }),
            hidden: Slots::new(1, |_| vec![0.0; needs.rows * needs.room.hidden]),
            entered: Slots::new(1, |_| vec![0.0; needs.rows * needs.room.entered]),
            lead: Slots::new(1, |_| [(); 2].map(|()| vec![0.0; needs.lead_back])),
            packed: Slots::new(Self::groups(level, needs), |i| vec![0.0; Self::packed(level, needs, i)]),
        }
    }

    /// Groups of packed rows; both uses pack as many rows together.
    fn groups(level: Level, needs: Needs) -> usize {
        if needs.back() || needs.panels() { needs.rows.div_ceil(gemm::rows(level)) } else { 0 }
    }

    /// Numbers in the i-th group of packed rows.
    fn packed(level: Level, needs: Needs, i: usize) -> usize {
        let per = gemm::rows(level);
        let (rows, outputs) = needs.head_back;
        let inputs = if needs.panels() { dense_panel::length(level, needs.inputs) } else { 0 };
        per * needs.outputs.max(inputs).max(if i < rows.div_ceil(per) { outputs } else { 0 })
    }

    /// Words of a member's panels.
    fn panel(level: Level, needs: Needs) -> usize {
        let blocks = if needs.rows > super::FEW {
            let lanes = panel::lanes(level);
            TASK / lanes * PanelMut::words(lanes, PANEL.min(needs.inputs.next_multiple_of(256)))
        } else {
            0
        };
        blocks.max(if needs.panels() {
            TASK * dense_panel::length(level, needs.inputs.min(PIECE))
        } else {
            0
        })
    }

    /// Outputs of a member's largest task: many rows, few rows, or a piece of a gradient.
    fn tile(needs: Needs) -> usize {
        let rows = needs.rows.min(ROWS).next_multiple_of(GROUP);
        let back = if needs.back() { needs.rows * BACK.1 } else { 0 };
        let one = (rows * TASK).max(super::FEW * FEW_WIDTH);
        // where nobody walks back, many rows of two products that a gate makes one of
        one.max(if needs.back() { back } else { 2 * rows * TASK })
    }

    /// Lends `len` numbers of a member's spare memory (whatever they hold).
    pub fn with_spare<T>(&self, member: usize, len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
        let mut worker = self.workers.get(member);
        let spare = &mut worker.spare;
        spare.resize(len.max(spare.len()), 0.0);
        f(&mut spare[..len])
    }

    /// What it was planned for.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Bytes that [`Scratch::new`] takes, by building the sizes it builds.
    pub fn bytes(level: Level, needs: Needs) -> u64 {
        let columns = acts::columns(level).max(onlay_kernels::dot::COLUMNS) as u64;
        let k = needs.inputs.next_multiple_of(256) as u64;
        let group = |grain: Grain| {
            let wide = if grain == Grain::Large { 4 * k / 64 } else { 0 };
            columns * (k + 4 * k / grain.len() as u64 + 4 * k / 32 + wide)
        };
        let groups = needs.rows.div_ceil(acts::columns(level)).max(1) as u64;
        let (back, many) = (needs.back(), needs.rows > super::FEW);
        let mut worker = 4 * (Self::tile(needs) + Self::panel(level, needs));
        worker += 4 * if back { BACK.0 * BACK_STRIDE } else { 16 * TASK };
        worker +=
            4 * needs.head * (if back { 4 } else { 2 } * attention::ROWS + if back { 6 } else { 2 } * TILE);
        worker += 4 * attention::Scratch::len(needs.head, back);
        let mut total = worker as u64 * needs.members as u64;
        if many && (needs.small || needs.large) {
            total += (group(Grain::Small) + group(Grain::Large)) * needs.members as u64;
        }
        total += groups * if needs.small { group(Grain::Small) } else { 0 };
        total += groups * if needs.large { group(Grain::Large) } else { 0 };
        total += 4 * (needs.rows * (needs.room.hidden + needs.room.entered) + 2 * needs.lead_back) as u64;
        let packed = (0..Self::groups(level, needs)).map(|i| Self::packed(level, needs, i) as u64);
        total + 4 * packed.sum::<u64>()
    }
}
