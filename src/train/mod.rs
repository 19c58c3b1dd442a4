//! Learning a layer: data, schedules, the optimiser, checkpoints, the plan of a run.
//!
//! ```text
//! rows        data files, in every usual form          examples    rows as tokens, with what is learned of each
//! order       shuffling, windows, passes, splits       schedule    learning rates, the numbers of AdamW
//! trainer     one optimiser step                       plan        what a run will take
//! objective   what judged rows are worth               compare     a step over them
//! checkpoint  what it takes to go on bit for bit       run, event  the loop, and what it tells
//! guard       when a run is going nowhere                 moments     what AdamW remembers, in 32 bits or 8
//! fit         what makes a run fit its memory             balance     weights for rows of rare answers
//! ```

mod balance;
mod checkpoint;
mod compare;
mod event;
mod examples;
mod fields;
mod fit;
mod guard;
mod head;
mod judged;
mod moments;
pub mod objective;
mod order;
mod peak;
mod plan;
mod rows;
mod run;
mod schedule;
mod trainer;

pub use balance::{Answer, Answers, Balance};
pub use checkpoint::{Arrays, Checkpoint, Evaluation, Files, Progress, SLOTS, Store, Terms};
pub use compare::Rewards;
pub use event::{Ending, Event, Flow, Outcome, Started, StepReport, Stepped, Summary};
pub use examples::{DAY, Encoder, Example, Facts, Long, Origin, Role, Set, Signal};
pub use fit::Fit;
pub use guard::Baseline;
pub use moments::{Moments, Optimizer};
pub use order::{Cursor, Limits, Order, Passes, split};
pub use peak::{held_memory, peak_memory};
pub use plan::{CONTEXT, Data, Length, RunOptions, RunPlan, Start};
pub use rows::{Content, Format, Row, Rows};
pub use run::Run;
pub use schedule::{Recipe, Shape};
pub use trainer::{Keep, MOST_SEQUENCES, TrainOptions, Trainer};
