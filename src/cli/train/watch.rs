//! What a run says while it goes.

use super::output::Log;
use crate::cli::terminal::{self, Progress, bytes, duration};
use onlay::train::objective::Goal;
use onlay::train::{Event, Facts, Keep, Signal, Started, Stepped};
use serde_json::Value;

/// Shows events.
pub struct Watch {
    log: Option<Log>,
    progress: Progress,
    /// A running mean of the loss: that of single steps jumps.
    smooth: Option<f64>,
    /// Steps so far, those of a log that is continued among them.
    pub points: Vec<Point>,
    /// Lines about the rows.
    pub rows: Vec<String>,
    /// A line about their answers.
    pub answers: Option<String>,
    /// Evaluation rows that are also trained on.
    pub overlap: usize,
}

/// One step as a report draws it.
pub struct Point {
    pub step: u64,
    pub loss: f64,
    pub rate: f64,
    pub norm: f64,
}

impl Watch {
    pub fn new(log: Option<Log>) -> Self {
        let point = |line: &Value| {
            let number = |key: &str| line.get(key)?.as_f64();
            Some(Point {
                step: line.get("step")?.as_u64()?,
                loss: number("loss")?,
                rate: number("lr")?,
                norm: number("grad_norm")?,
            })
        };
        let points = log.iter().flat_map(|l| &l.old).filter_map(point).collect();
        Watch {
            log,
            progress: Progress::new(),
            smooth: None,
            points,
            rows: Vec::new(),
            answers: None,
            overlap: 0,
        }
    }

    pub fn see(&mut self, event: &Event<'_>) {
        if let (Some(log), Some(line)) = (&mut self.log, event.log_line()) {
            log.add(&line);
        }
        match event {
            Event::Started(s) => self.started(s),
            Event::Step(s) => {
                let smooth = self.smooth.map_or(s.report.loss, |old| 0.9 * old + 0.1 * s.report.loss);
                self.smooth = Some(smooth);
                let r = s.report;
                self.points.push(Point { step: s.step, loss: r.loss, rate: r.rate, norm: r.grad_norm });
                let line = || step(s, smooth);
                if s.step == s.of { self.progress.show_now(&line()) } else { self.progress.show(line) }
            }
            Event::Evaluating { done, of } => {
                self.progress.show(|| format!("evaluating {done} of {of} rows"));
            }
            Event::Evaluated(e) => {
                let right = e.accuracy.map_or(String::new(), |a| format!(", {:.0} % right", 100.0 * a));
                self.progress.note(format_args!("step {}: held-out loss {:.4}{right}", e.step, e.loss))
            }
            Event::Checkpointed { .. } | Event::Finished(_) => {}
            _ => {}
        }
    }

    pub fn end(&mut self) {
        self.progress.clear();
    }

    fn started(&mut self, s: &Started<'_>) {
        s.damaged.iter().for_each(terminal::warn);
        if let Some(place) = s.resumed {
            terminal::note(format_args!("going on after step {} ({})", s.done, place.display()));
        }
        terminal::note(facts("train", &s.train));
        if let Some(eval) = &s.eval {
            terminal::note(facts("eval", eval));
        }
        self.rows = [Some(facts("train", &s.train)), s.eval.map(|e| facts("eval", &e))]
            .into_iter()
            .flatten()
            .collect();
        self.overlap = s.overlap;
        if s.overlap > 0 {
            terminal::warn(format_args!(
                "{} evaluation rows are also trained on; --drop-overlap leaves those out of training",
                s.overlap
            ));
        }
        terminal::note(goal(s.goal));
        terminal::note(format_args!(
            "{} steps, {} numbers are learned, {} planned besides the mapped base",
            s.steps,
            s.parameters,
            bytes(s.memory.total())
        ));
    }
}

fn step(s: &Stepped, smooth: f64) -> String {
    let peak = s.peak_memory.map_or(String::new(), |p| format!("  peak {}", bytes(p)));
    let judged = s.rewards.map_or(String::new(), |r| {
        let margin = r.margins().map_or(String::new(), |m| format!("  margin {m:.3}"));
        format!("{margin}  right {:.0} %", 100.0 * r.accuracies)
    });
    format!(
        "step {}/{}  loss {smooth:.4}{judged}  lr {:.2e}  {:.0} tok/s{peak}  {} left",
        s.step,
        s.of,
        s.report.rate,
        s.tokens_per_second,
        duration(s.seconds_left)
    )
}

/// One line about what a run strives for.
pub fn goal(goal: &Goal) -> String {
    let mut line = format!("objective: {}", goal.objective.name);
    for (name, value) in goal.numbers() {
        line += &format!(", {name} {value}");
    }
    if goal.objective.reference {
        line += "; the reference is the base without the layer";
    }
    line
}

/// One line about a set of rows.
pub fn facts(name: &str, f: &Facts) -> String {
    let mut line = format!(
        "{name}: {} rows, {} tokens, {} of them trained, longest {}",
        f.rows, f.tokens, f.trained, f.longest
    );
    if f.signal == Signal::Pairs {
        line += ", in pairs";
    } else if f.examples != f.rows {
        line += &format!(", in {} pieces", f.examples);
    }
    if f.truncated > 0 {
        line += &format!(", {} rows cut short by {} tokens", f.truncated, f.lost);
    }
    if f.duplicates > 0 {
        line += &format!(", {} duplicates", f.duplicates);
    }
    line
}

/// What is kept for the backward pass.
pub fn keeps(keep: Keep) -> &'static str {
    match keep {
        Keep::Registers => "everything kept",
        Keep::Streams => "layers computed again",
    }
}
