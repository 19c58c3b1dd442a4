//! The host: this process's processor, with a team of threads.

use super::{Backend, End, Walk};
use crate::error::Result;
use crate::ops::kv::{Pool, Shape};
use crate::ops::{
    Backward, Base, Batch, Delta, Host, Needs, Scratch, Step, Tables, add_weight_back, back, linear,
};
use crate::tensor::{Chunks, Frame, Mat, MatMut, Register, Slots, Team};
use onlay_kernels::norm::{rms_norm, rms_norm_grad};
use onlay_kernels::{Level, softmax};

/// What a [`Machine`] will hold, known in bytes before it holds it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Instructions to use.
    pub level: Level,
    /// Widths of the registers.
    pub columns: Vec<usize>,
    /// Frames of registers: one, or one for each segment whose registers are kept for the backward pass.
    pub frames: usize,
    /// Gradient registers too.
    pub back: bool,
    /// Insides of operations.
    pub needs: Needs,
    /// Keys and values.
    pub kv: Shape,
    /// Tiles of keys and values.
    pub tiles: usize,
    /// Residual streams that are kept.
    pub streams: usize,
    /// Rows of the program's end at a time.
    pub ends: usize,
    /// Logits of each.
    pub vocabulary: usize,
}

impl Plan {
    /// Bytes of registers and their gradients.
    pub fn frame_bytes(&self) -> u64 {
        Frame::bytes(&self.columns, self.needs.rows) * (self.frames as u64 + u64::from(self.back))
    }

    /// Bytes of keys and values.
    pub fn kv_bytes(&self) -> u64 {
        self.kv.tile_bytes() * self.tiles as u64
    }

    /// Columns of the residual stream, which is the first register.
    pub fn width(&self) -> usize {
        self.columns[0]
    }

    /// Bytes of residual streams.
    pub fn stream_bytes(&self) -> u64 {
        4 * (self.streams * self.needs.rows * self.width()) as u64
    }

    /// Bytes of the program's end.
    pub fn end_bytes(&self) -> u64 {
        let width = self.width() * (1 + usize::from(self.back));
        (self.ends * (4 * (width + self.vocabulary) + 8)) as u64
    }

    /// Bytes of the insides of operations.
    pub fn scratch_bytes(&self) -> u64 {
        Scratch::bytes(self.level, self.needs)
    }
}

/// The host's memory and threads.
#[derive(Debug)]
pub struct Machine {
    level: Level,
    team: Team,
    frames: Vec<Frame>,
    frame: usize,
    grads: Option<Frame>,
    kv: Pool,
    scratch: Scratch,
    streams: Vec<Vec<f32>>,
    end: EndMemory,
    vocabulary: usize,
    /// Nobody walks back: steps may leave out what only that would want.
    forward_only: bool,
}

/// Rows at the end of the program, their gradients, their logits, their losses.
#[derive(Debug, Default)]
struct EndMemory {
    x: Vec<f32>,
    dx: Vec<f32>,
    z: Vec<f32>,
    losses: Slots<f64>,
}

impl Machine {
    /// Allocates what `plan` says.
    ///
    /// # Errors
    /// `Memory` if the system does not give it, `Argument` for a shape of keys and values that cannot be kept.
    pub fn new(plan: &Plan, team: Team) -> Result<Self> {
        let rows = plan.needs.rows;
        assert!(plan.back || !plan.needs.back(), "a plan without gradients has no backward pass");
        Ok(Machine {
            level: plan.level,
            team,
            frames: (0..plan.frames).map(|_| Frame::new(&plan.columns, rows)).collect(),
            frame: 0,
            grads: plan.back.then(|| Frame::new(&plan.columns, rows)),
            kv: Pool::new(plan.kv, plan.tiles)?,
            scratch: Scratch::new(plan.level, plan.needs),
            streams: (0..plan.streams).map(|_| vec![0.0; rows * plan.width()]).collect(),
            end: EndMemory {
                x: vec![0.0; plan.ends * plan.width()],
                dx: vec![0.0; if plan.back { plan.ends * plan.width() } else { 0 }],
                z: vec![0.0; plan.ends * plan.vocabulary],
                losses: Slots::new(plan.ends, |_| 0.0),
            },
            vocabulary: plan.vocabulary,
            forward_only: !plan.back,
        })
    }

    fn host<'a>(
        &'a mut self,
        tables: &'a dyn Tables,
        batch: Batch<'a>,
        wanted: Option<&'a [bool]>,
        learner: Option<&'a dyn Backward>,
    ) -> Host<'a> {
        Host {
            level: self.level,
            team: &mut self.team,
            tables,
            batch,
            frame: &self.frames[self.frame],
            grads: self.grads.as_ref(),
            kv: &mut self.kv,
            scratch: &self.scratch,
            wanted,
            learner,
        }
    }
}

impl Machine {
    /// Leaves only some rows, ascending, of the registers that are still of use.
    fn narrow(&mut self, live: &[Register], rows: &[u32]) {
        let frame = &mut self.frames[self.frame];
        for register in live {
            let mut numbers = frame.write(*register);
            let mat = numbers.mat();
            let (cols, data) = (mat.cols(), mat.data());
            for (to, from) in rows.iter().map(|r| *r as usize).enumerate() {
                data.copy_within(from * cols..(from + 1) * cols, to * cols);
            }
        }
        frame.set_rows(rows.len());
    }
}

impl Backend for Machine {
    fn name(&self) -> String {
        format!("host, {}, {} threads", self.level.name(), self.team.len())
    }

    /// Every layer can be worn where it lies.
    fn admit(&mut self, _: &dyn Delta) -> Result<()> {
        Ok(())
    }

    /// Nothing can fail.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn begin(&mut self, rows: usize, frame: usize) {
        self.frame = frame;
        self.frames.iter_mut().for_each(|f| f.set_rows(rows));
        if let Some(grads) = &mut self.grads {
            grads.set_rows(rows);
        }
    }

    fn walk(&mut self, tables: &dyn Tables, walk: &Walk<'_>, batch: Batch<'_>) -> bool {
        self.begin(batch.rows(), 0);
        self.forward(tables, std::slice::from_ref(walk.embed), batch);
        for i in 0..walk.segments {
            if i > 0 {
                self.advance(walk.result, walk.residual, 0);
            }
            let steps = (walk.steps)(i);
            let Some(ends) = walk.ends.filter(|_| i + 1 == walk.segments) else {
                self.forward(tables, steps, batch);
                continue;
            };
            // a prompt's rows are there for the keys and values of those behind them: the last layer's end is for nobody
            let (together, apart) = steps.split_at(walk.parting.steps);
            self.forward(tables, together, batch);
            if !ends.rows.is_empty() {
                self.narrow(&walk.parting.live, ends.rows);
                self.forward(tables, apart, ends.batch);
            }
        }
        walk.ends.is_some()
    }

    fn forward(&mut self, tables: &dyn Tables, steps: &[Step], batch: Batch<'_>) {
        let forward_only = self.forward_only;
        let mut host = self.host(tables, batch, None, None);
        let mut steps = steps.iter().peekable();
        while let Some(step) = steps.next() {
            // a pair of products that a gate makes one of
            if let (Step::Linear(linear), Some(Step::Gate(gate)), true) = (step, steps.peek(), forward_only)
                && linear.forward_gated(&mut host, gate)
            {
                steps.next();
                continue;
            }
            step.operation().forward(&mut host);
        }
    }

    fn backward(
        &mut self,
        tables: &dyn Tables,
        steps: &[Step],
        batch: Batch<'_>,
        wanted: Option<&[bool]>,
        learner: &dyn Backward,
    ) {
        let mut host = self.host(tables, batch, wanted, Some(learner));
        for step in steps.iter().rev() {
            step.operation().backward(&mut host);
        }
    }

    /// They are in the layer's memory already.
    fn collect(&mut self, _: &dyn Backward, _: &dyn Delta) {}

    fn advance(&mut self, from: Register, to: Register, frame: usize) {
        let old = &self.frames[self.frame];
        self.frames[frame].write(to).mat().data().copy_from_slice(&old.read(from));
        self.frame = frame;
    }

    fn keep(&mut self, from: Register, stream: usize) {
        let rows = self.frames[self.frame].read(from);
        self.streams[stream][..rows.len()].copy_from_slice(&rows);
    }

    fn recall(&mut self, stream: usize, to: Register) {
        let mut to = self.frames[self.frame].write(to);
        let to = to.mat().data();
        to.copy_from_slice(&self.streams[stream][..to.len()]);
    }

    fn clear_grads(&mut self) {
        self.grads.as_mut().expect("planned with gradients").clear();
    }

    fn descend(&mut self, from: Register, to: Register) {
        let grads = self.grads.as_mut().expect("planned with gradients");
        grads.write(to).mat().data().copy_from_slice(&grads.read(from));
        grads.clear_but(to);
    }

    fn end(&mut self, tables: &dyn Tables, end: &End<'_>) {
        let (level, matrix, n) = (self.level, tables.matrix(end.matrix), end.rows.len());
        let (mut x, mut z) = (std::mem::take(&mut self.end.x), std::mem::take(&mut self.end.z));
        let stream = self.frames[self.frame].read(end.from);
        for ((i, row), x) in end.rows.iter().enumerate().zip(x.chunks_exact_mut(matrix.cols)) {
            let own = end.batch.span_of(i).delta.and_then(|d| d.vector(end.norm));
            let norm = own.as_ref().map_or(tables.vector(end.norm), |own| &own[..]);
            rms_norm(level, stream.mat().row(*row as usize), norm, end.eps, x);
        }
        drop(stream);
        let (rows, y) = (Mat::new(&x[..n * matrix.cols], matrix.cols), &mut z[..n * matrix.rows]);
        let mut products = [const { None }; linear::SHARING];
        let y = MatMut::new(y, matrix.rows);
        products[0] = Some(linear::Product { site: end.site, matrix, bias: None, y: Some(y) });
        linear::multiply(&mut self.host(tables, end.batch, None, None), rows, products);
        if end.shares {
            for (i, z) in z[..n * matrix.rows].chunks_exact_mut(matrix.rows).enumerate() {
                if let Some(delta) = end.batch.span_of(i).delta {
                    delta.head(level, rows.row(i), z);
                }
            }
        }
        (self.end.x, self.end.z) = (x, z);
    }

    fn logits(&mut self, rows: usize) -> Result<&mut [f32]> {
        Ok(&mut self.end.z[..rows * self.vocabulary])
    }

    fn losses(&mut self, targets: &[u32], scales: Option<&[f32]>, losses: &mut [f64]) -> Result<()> {
        let (level, all, vocabulary) = (self.level, &self.end.losses, self.vocabulary);
        let rows = Chunks::new([&mut self.end.z[..targets.len() * vocabulary]], vocabulary);
        self.team.each(targets.len(), |_, _| {
            let Some((i, [z])) = rows.next() else { return };
            let target = targets[i] as usize;
            *all.get(i) = match scales {
                None => softmax::log_sum_exp(level, z) - f64::from(z[target]),
                Some(scales) => softmax::cross_entropy(level, z, target, scales[i]),
            };
        });
        losses.iter_mut().enumerate().for_each(|(i, loss)| *loss = *all.read(i));
        Ok(())
    }

    fn end_back(&mut self, tables: &dyn Tables, end: &End<'_>, learner: &dyn Backward) {
        let (level, matrix, n) = (self.level, tables.matrix(end.matrix), end.rows.len());
        let width = matrix.cols;
        let EndMemory { mut x, mut dx, z, losses } = std::mem::take(&mut self.end);
        let (xs, zs) = (Mat::new(&x[..n * width], width), Mat::new(&z[..n * matrix.rows], matrix.rows));
        let dxs = &mut dx[..n * width];
        dxs.fill(0.0);
        if end.shares {
            for (i, dx) in dxs.chunks_exact_mut(width).enumerate() {
                learner.head_back(level, xs.row(i), zs.row(i), dx);
            }
        }
        let mut host = self.host(tables, end.batch, None, Some(learner));
        let base = Base { matrix, bias: None };
        back::site_back(&mut host, end.site, base, xs, zs, Some(MatMut::new(dxs, width)));
        let stream = self.frames[self.frame].read(end.from);
        if learner.learns_vector(end.norm) {
            let dw = &mut x[..width]; // the rows in it are done with
            dw.fill(0.0);
            for (row, dx) in end.rows.iter().zip(dxs.chunks_exact(width)) {
                add_weight_back(level, stream.mat().row(*row as usize), dx, end.eps, dw);
            }
            learner.vector_back(end.norm, dw);
        }
        let mut down = self.grads.as_ref().expect("planned with gradients").write(end.from);
        let mut down = down.mat();
        for ((i, row), dx) in end.rows.iter().enumerate().zip(dxs.chunks_exact(width)) {
            let own = end.batch.span_of(i).delta.and_then(|d| d.vector(end.norm));
            let norm = own.as_ref().map_or(tables.vector(end.norm), |own| &own[..]);
            let row = *row as usize;
            rms_norm_grad(level, stream.mat().row(row), norm, end.eps, dx, down.row(row));
        }
        self.end = EndMemory { x, dx, z, losses };
    }

    fn each(&mut self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        self.team.each(n, |_, i| f(i));
    }

    fn take_tile(&mut self) -> Option<u32> {
        self.kv.take()
    }

    fn give_tiles(&mut self, tiles: &mut Vec<u32>) {
        self.kv.give(tiles);
    }

    fn free_tiles(&self) -> usize {
        self.kv.free()
    }
}
