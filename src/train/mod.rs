//! Learning a layer: data, schedules, the optimiser, checkpoints, the plan of a run.

mod schedule;
mod trainer;

pub use schedule::{Recipe, Shape};
pub use trainer::{Example, Keep, StepReport, TrainOptions, Trainer};
