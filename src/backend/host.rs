//! The host: this process's processor, with a team of threads.

use super::Backend;
use crate::error::Result;
use crate::ops::kv::{Pool, Shape};
use crate::ops::{
    Backward, Base, Batch, Delta, Host, MatrixId, Needs, Scratch, Site, Step, Tables, back, linear,
};
use crate::tensor::{Frame, Mat, MatMut, Register, Team};
use onlay_kernels::Level;

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
}

impl Machine {
    /// Allocates what `plan` says.
    ///
    /// # Errors
    /// `Memory` if the system does not give it, `Argument` for a shape of keys and values that cannot be kept.
    pub fn new(plan: &Plan, team: Team) -> Result<Self> {
        let rows = plan.needs.rows;
        Ok(Machine {
            level: plan.level,
            team,
            frames: (0..plan.frames).map(|_| Frame::new(&plan.columns, rows)).collect(),
            frame: 0,
            grads: plan.back.then(|| Frame::new(&plan.columns, rows)),
            kv: Pool::new(plan.kv, plan.tiles)?,
            scratch: Scratch::new(plan.level, plan.needs),
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
        self.frames[frame].set_rows(rows);
        if let Some(grads) = &mut self.grads {
            grads.set_rows(rows);
        }
    }

    fn forward(&mut self, tables: &dyn Tables, steps: &[Step], batch: Batch<'_>) {
        let mut host = self.host(tables, batch, None, None);
        for step in steps {
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

    fn copy(&mut self, from: Register, to: Register) {
        let frame = &self.frames[self.frame];
        frame.write(to).mat().data().copy_from_slice(&frame.read(from));
    }

    fn load(&mut self, to: Register, rows: &[f32]) {
        self.frames[self.frame].write(to).mat().data().copy_from_slice(rows);
    }

    fn save(&mut self, from: Register, first: usize, rows: &mut [f32]) {
        let register = self.frames[self.frame].read(from);
        let at = first * register.mat().cols();
        rows.copy_from_slice(&register[at..at + rows.len()]);
    }

    fn clear_grads(&mut self) {
        self.grads.as_mut().expect("planned with gradients").clear();
    }

    fn load_grad(&mut self, to: Register, rows: &[f32]) {
        let grads = self.grads.as_ref().expect("planned with gradients");
        grads.write(to).mat().data().copy_from_slice(rows);
    }

    fn save_grad(&mut self, from: Register, rows: &mut [f32]) {
        rows.copy_from_slice(&self.grads.as_ref().expect("planned with gradients").read(from));
    }

    fn product(
        &mut self,
        tables: &dyn Tables,
        batch: Batch<'_>,
        at: (Site, MatrixId),
        x: &[f32],
        y: &mut [f32],
    ) {
        let matrix = tables.matrix(at.1);
        let y = MatMut::new(y, matrix.rows);
        let mut products = [const { None }; linear::SHARING];
        products[0] = Some(linear::Product { site: at.0, matrix, bias: None, y });
        linear::multiply(&mut self.host(tables, batch, None, None), Mat::new(x, matrix.cols), products);
    }

    fn product_back(
        &mut self,
        tables: &dyn Tables,
        batch: Batch<'_>,
        at: (Site, MatrixId),
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        learner: &dyn Backward,
    ) {
        let matrix = tables.matrix(at.1);
        let (x, dy) = (Mat::new(x, matrix.cols), Mat::new(dy, matrix.rows));
        let dx = dx.map(|dx| MatMut::new(dx, matrix.cols));
        let mut host = self.host(tables, batch, None, Some(learner));
        back::site_back(&mut host, at.0, Base { matrix, bias: None }, x, dy, dx);
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
