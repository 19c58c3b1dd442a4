//! Training: a run from options in C to an adapter.

use super::adapter::Layer;
use super::boundary::{Handle, HandleOut, StructIn, StructOut, export};
use super::failure::{Done, Failure};
use super::layer::layer;
use super::model::Base;
use super::session::room_for;
use super::structs::{
    self, Progress, TrainOptions, Trained, context, count, flag, path, precision, threads, utf8,
};
use crate::error::{Error, Kind, Place};
use crate::format::files::check_target;
use crate::model::Model;
use crate::tensor::{Team, Threads};
use crate::train::{
    CONTEXT, Data, Encoder, Event, Files, Flow, Format, Length, Long, Optimizer, Outcome, Recipe, Rows, Run,
    RunOptions, RunPlan, Set, Shape, Start, Summary, objective, split,
};
use onlay_kernels::Level;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

type ProgressCallback = Option<extern "C" fn(*mut c_void, *const Progress) -> c_int>;

const ENCODING: u32 = 1;
const STARTED: u32 = 2;
const STEP: u32 = 3;
const EVALUATING: u32 = 4;
const EVALUATED: u32 = 5;
const CHECKPOINTED: u32 = 6;

/// Who watches, and what was told last.
struct Watch {
    callback: ProgressCallback,
    user: *mut c_void,
    last: Progress,
}

impl Watch {
    fn tell(&mut self, phase: u32) -> Flow {
        self.last.phase = phase;
        match self.callback {
            Some(callback) if callback(self.user, &self.last) != 0 => Flow::Stop,
            _ => Flow::Go,
        }
    }

    fn encoding(&mut self, done: usize, of: usize) -> Flow {
        (self.last.step, self.last.steps) = (done as u64, of as u64);
        self.tell(ENCODING)
    }

    fn event(&mut self, event: &Event<'_>) -> Flow {
        let last = &mut self.last;
        match event {
            Event::Started(s) => {
                (last.step, last.steps, last.planned_bytes) = (s.done, s.steps, s.memory.total());
                self.tell(STARTED)
            }
            Event::Step(s) => {
                (last.step, last.steps, last.tokens) = (s.step, s.of, s.report.tokens as u64);
                (last.loss, last.lr, last.grad_norm) = (s.report.loss, s.report.rate, s.report.grad_norm);
                (last.tokens_per_second, last.seconds_left) = (s.tokens_per_second, s.seconds_left);
                last.peak_bytes = s.peak_memory.unwrap_or(0);
                if let Some(r) = s.rewards {
                    (last.margin, last.accuracy) = (r.margins().unwrap_or(f64::NAN), r.accuracies);
                }
                self.tell(STEP)
            }
            Event::Evaluating { .. } => self.tell(EVALUATING),
            Event::Evaluated(e) => {
                last.eval_loss = e.loss;
                last.eval_accuracy = e.accuracy.unwrap_or(f64::NAN);
                self.tell(EVALUATED)
            }
            Event::Checkpointed { .. } => self.tell(CHECKPOINTED),
            _ => Flow::Go,
        }
    }
}

/// The options of a run, from C's.
fn run_options(o: &TrainOptions) -> Done<RunOptions> {
    let level = Level::chosen().map_err(Failure::argument)?;
    let every = |n: u64| (n > 0).then_some(n);
    let after = match o.checkpoint_seconds {
        0.0 => None,
        // a run longer than a century writes its checkpoint at the end
        s if s > 0.0 => Some(Duration::from_secs_f64(s.min(3e9))),
        s => {
            return Err(Failure::argument(format!(
                "checkpoint_seconds: expected a number from 0, found {s}"
            )));
        }
    };
    let numbers = [
        ("beta", o.beta),
        ("label-smoothing", o.label_smoothing),
        ("simpo-gamma", o.simpo_gamma),
        ("desirable-weight", o.desirable_weight),
        ("undesirable-weight", o.undesirable_weight),
    ];
    structs::reserved(o.reserved)?;
    Ok(RunOptions {
        objective: match utf8(o.objective.bytes("objective")?, "objective")? {
            "" => None,
            name => Some(objective::named(name)?),
        },
        numbers: numbers.into_iter().filter(|(_, v)| !v.is_nan()).collect(),
        length: if o.max_steps > 0 { Length::Steps(o.max_steps) } else { Length::Epochs(o.epochs) },
        batch_size: count(o.batch_size, 1, 1 << 20, "batch_size")?,
        grad_accumulation: count(o.grad_accumulation, 1, 1 << 20, "grad_accumulation")?,
        recipe: Recipe {
            rate: o.learning_rate,
            shape: match o.schedule {
                structs::SCHEDULE_CONSTANT => Shape::Constant,
                structs::SCHEDULE_LINEAR => Shape::Linear,
                structs::SCHEDULE_COSINE => Shape::Cosine,
                n => {
                    let text = format!("schedule: expected ONLAY_SCHEDULE_..., found {n}");
                    return Err(Failure::argument(text));
                }
            },
            warmup: o.warmup_steps,
            decay: o.weight_decay,
            max_norm: o.max_grad_norm,
            ..Recipe::default()
        },
        optimizer: match utf8(o.optimizer.bytes("optimizer")?, "optimizer")? {
            "" => Optimizer::default(),
            name => Optimizer::named(name)?,
        },
        dropout: o.dropout,
        seed: o.seed,
        shuffle: flag(o.shuffle, "shuffle")?,
        pack: flag(o.pack, "pack")?,
        eval_every: every(o.eval_every),
        checkpoint_every: every(o.checkpoint_every),
        checkpoint_after: after,
        start: match o.start {
            structs::START_NEW => Start::New,
            structs::START_RESUME => Start::Resume,
            structs::START_OVER => Start::Over,
            n => return Err(Failure::argument(format!("start: expected ONLAY_START_..., found {n}"))),
        },
        kv: precision(o.kv)?,
        device: structs::device(&o.device, o.gpu_memory)?,
        ..RunOptions::new(level, team(o)?)
    })
}

fn team(o: &TrainOptions) -> Done<Threads> {
    let count = threads(o.threads)?.unwrap_or_else(Team::default_len);
    Ok(Threads { count, polite: flag(o.polite, "polite")? })
}

/// Rows as tokens, divided as asked.
fn data(o: &TrainOptions, model: &Model, watch: &mut Watch) -> Done<Data> {
    let format = match utf8(o.data_format.bytes("data_format")?, "data_format")? {
        "" => None,
        name => Some(Format::named(name)?),
    };
    let chat = Encoder::chat_of(model)?;
    let mut encoder = Encoder::new(model, chat.as_ref(), context(o.context, CONTEXT, model)?);
    encoder.long = if flag(o.truncate, "truncate")? { Long::Truncate } else { Long::Refuse };
    let mut read = |file: PathBuf| -> Done<Set> {
        let rows = Rows::read(file, format)?;
        Ok(encoder.encode(&rows, &mut |done, of| watch.encoding(done, of))?)
    };
    let eval = o.eval_data.bytes("eval_data")?;
    if !eval.is_empty() && o.eval_split != 0.0 {
        return Err(Failure::argument("eval_split: not together with eval_data"));
    }
    let train = read(path(o.data.bytes("data")?, "data")?)?;
    if !eval.is_empty() {
        return Ok(Data { train, eval: read(path(eval, "eval_data")?)? });
    }
    if o.eval_split != 0.0 {
        let (train, eval) = split(train, o.eval_split, o.seed)?;
        return Ok(Data { train, eval });
    }
    Ok(Data { train, eval: Set::default() })
}

/// Where the adapter goes; found to be free before hours are spent. What the run reads is never overwritten.
fn output(o: &TrainOptions, model: &Model) -> Done<(PathBuf, bool)> {
    let path = path(o.output.bytes("output")?, "output")?;
    let overwrite = flag(o.overwrite, "overwrite")?;
    let mut reads = vec![("the base", model.weights().path().to_owned())];
    for (what, text) in [("the data", &o.data), ("the evaluation data", &o.eval_data)] {
        let bytes = text.bytes(what)?;
        if !bytes.is_empty() {
            reads.push((what, structs::path(bytes, what)?));
        }
    }
    let reads: Vec<_> = reads.iter().map(|(what, path)| (*what, path.as_path())).collect();
    check_target(&path, overwrite, &reads)?;
    Ok((path, overwrite))
}

fn trained(s: &Summary) -> Trained {
    let (before, after) = s.before_and_after().unwrap_or((f64::NAN, f64::NAN));
    Trained {
        steps: s.steps,
        first_loss: s.first_loss,
        last_loss: s.last_loss,
        eval_before: before,
        eval_after: after,
        seconds: s.seconds,
        peak_bytes: s.peak_memory.unwrap_or(0),
        ..Trained::default()
    }
}

/// What a run that was stopped says.
fn stopped(step: u64, of: u64, checkpoint: Option<PathBuf>) -> Failure {
    let text = format!(
        "stopped after step {step} of {of}; the same options with ONLAY_START_RESUME go on from there"
    );
    let error = Error::new(Kind::Cancelled, text);
    match checkpoint {
        Some(path) => error.at(Place::Path(path)),
        None => error,
    }
    .into()
}

export! {
    fn onlay_train(
        model: Handle<Base>,
        options: StructIn<TrainOptions>,
        callback: ProgressCallback,
        user: *mut c_void,
        adapter: HandleOut<Layer>,
        result: StructOut<Trained>,
    ) {
        adapter.clear_if_wanted();
        let model = Arc::clone(&model.get("model")?.model);
        result.check("result")?;
        let o = options.read("options")?;
        let mut run_options = run_options(&o)?;
        let (path, overwrite) = output(&o, &model)?;
        let (layer, parent) = layer(&o, &model, run_options.threads)?;
        run_options.parent = parent;
        let mut watch = Watch { callback, user, last: Progress::default() };
        let data = data(&o, &model, &mut watch)?;
        if o.learning_rate == 0.0 {
            let (width, signal) = (model.program().width, data.train.signal());
            run_options.recipe.rate = Recipe::rate_for(width, layer.pace(), signal);
        }
        watch.last = Progress::default();
        room_for(&RunPlan::new(&model, &layer, &data, &run_options)?.memory)?;
        let store = Box::new(Files::beside(&path));
        let mut run = Run::new(Arc::clone(&model), layer, data, run_options, Some(store))?;
        let summary = match run.go(&mut |event| watch.event(event))? {
            Outcome::Finished(summary) => summary,
            Outcome::Halted { why, .. } => return Err(why.into()),
            Outcome::Stopped { step, of, checkpoint } => return Err(stopped(step, of, checkpoint)),
        };
        let name = path.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let made = run.adapter(&name, &summary)?;
        let warnings = made.write_gguf(&path, &model, overwrite)?;
        run.remove_checkpoints()?;
        adapter.put(Arc::new(Layer::new(model, made, &warnings)));
        result.write(trained(&summary), "result")
    }
}
