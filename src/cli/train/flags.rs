//! The flags of `onlay train`.

use crate::cli::options::{Kv, Machine, size};
use onlay::adapter::{ACTIVATIONS, Activation, Budget, Init, Method, Places, Scaling};
use onlay::train::objective::{self, Objective};
use onlay::train::{Balance, Format, Optimizer, Shape};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The base: a GGUF file, or the first of a split one
    pub model: PathBuf,

    /// Rows to learn from: JSON lines, a JSON list, or a .txt file
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data: PathBuf,
    /// text, completion, messages, conversations, instruction, tokens, preference or feedback [default: what the rows look
    /// like]
    #[arg(long, value_name = "FORMAT", value_parser = format, help_heading = "Data")]
    pub data_format: Option<Format>,
    /// Rows to evaluate on, before the first step and after the last
    #[arg(long, value_name = "FILE", conflicts_with = "eval_split", help_heading = "Data")]
    pub eval_data: Option<PathBuf>,
    /// Hold this share of the rows out to evaluate on
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub eval_split: Option<f64>,
    /// Leave training rows out that are evaluation rows too
    #[arg(long, help_heading = "Data")]
    pub drop_overlap: bool,
    /// Rows on which nothing is to change: the loss before and after, and how far the answers are from the base's
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub control: Option<PathBuf>,
    /// Scale the layer down until it is at most X nats a token (KL) away from the base on the control rows
    #[arg(long, value_name = "X", requires = "control", help_heading = "Data")]
    pub max_forgetting: Option<f64>,
    /// Only show rows as tokens, with what is trained of them: the first N of each file, 4 unless told
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "4", help_heading = "Data")]
    pub show_mask: Option<usize>,
    /// Also evaluate every N steps
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub eval_every: Option<u64>,
    /// End after N evaluations without a better one (with --eval-every)
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub early_stop: Option<u64>,
    /// Write the layer of the best evaluation instead of the last (with --eval-every)
    #[arg(long, help_heading = "Data")]
    pub keep_best: bool,
    /// none, sqrt or inverse: rows whose answer is rare, where there are few answers, count more, by the root of how rare it
    /// is or by all of it; the mean weight is 1
    #[arg(long, value_name = "HOW", default_value = "none", value_parser = balance, help_heading = "Data")]
    pub balance: Balance,
    /// The longest row, in tokens [default: the model's context, up to 1024]
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Data")]
    pub ctx: Option<usize>,
    /// Cut the end off rows that are longer, instead of refusing them
    #[arg(long, help_heading = "Data")]
    pub truncate: bool,
    /// Control tokens written in texts become those tokens
    #[arg(long, help_heading = "Data")]
    pub parse_special: bool,
    /// Fill passes up with short rows (the default); learned is the same
    #[arg(long, overrides_with = "no_pack", help_heading = "Data")]
    pack: bool,
    /// Take rows into passes in their order
    #[arg(long, overrides_with = "pack", help_heading = "Data")]
    pub no_pack: bool,
    /// Another order in every epoch (the default)
    #[arg(long, overrides_with = "no_shuffle", help_heading = "Data")]
    shuffle: bool,
    /// Rows in their order
    #[arg(long, overrides_with = "shuffle", help_heading = "Data")]
    pub no_shuffle: bool,

    /// lora; dora: LoRA with a length of its own for every row; ia3: factors of outputs and inputs; vera: one random pair for all, two vectors each; full: whole matrices; hft: half of them; norms: their weights; tokens: embeddings of some; parallel, series: bottlenecks beside, or before and behind; bias: a vector added; prefix: keys and values in front; prompt, ptuning: rows in front; loha: the product of two low-rank matrices, number by number; lokr: a Kronecker product; adalora: triplets, of which the less important are given up
    #[arg(long, value_name = "METHOD", default_value = "lora", value_parser = method, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub method: &'static Method,
    /// Rank, of methods that have one; of series and parallel the width of the bottleneck [default: 16]
    #[arg(long, value_name = "R", value_parser = at_least_1, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub rank: Option<usize>,
    /// The layer counts alpha/rank [default: 2·rank]
    #[arg(long, value_name = "A", conflicts_with = "init_adapter", help_heading = "Layer")]
    pub alpha: Option<f64>,
    /// Ranks of some places, such as q=8,blk.0-3.down=32; the first that fits counts
    #[arg(long, value_name = "LIST", value_parser = places, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub rank_pattern: Option<Places>,
    /// Alphas of some places, as --rank-pattern
    #[arg(long, value_name = "LIST", value_parser = places, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub alpha_pattern: Option<Places>,
    /// What a low-rank layer begins with: zero; pissa, the base's largest singular vectors; olora, its first QR columns; bert, of
    /// series and parallel, both matrices random [default: zero; of series and parallel bert]
    #[arg(long, value_name = "START", value_parser = init, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub init: Option<Init>,
    /// What series and parallel do to their hidden numbers: tanh, relu, gelu or silu [default: tanh]
    #[arg(long, value_name = "NAME", value_parser = activation, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub activation: Option<Activation>,
    /// What series and parallel multiply their sum with: a number, or learned [default: 1]
    #[arg(long, value_name = "S", value_parser = Scaling::parse, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub scale: Option<Scaling>,
    /// Mean rank at the end (--method adalora) [default: two thirds of --rank]
    #[arg(long, value_name = "R", conflicts_with = "init_adapter", help_heading = "Layer")]
    target_rank: Option<usize>,
    /// Weight of orthogonality in the loss (--method adalora) [default: 0.5]
    #[arg(long, value_name = "W", conflicts_with = "init_adapter", help_heading = "Layer")]
    orthogonality: Option<f64>,
    /// Steps before the first rank is given up (--method adalora) [default: a tenth of all]
    #[arg(long, value_name = "N", conflicts_with = "init_adapter", help_heading = "Layer")]
    tinit: Option<u64>,
    /// Steps after the last one was (--method adalora) [default: three tenths of all]
    #[arg(long, value_name = "N", conflicts_with = "init_adapter", help_heading = "Layer")]
    tfinal: Option<u64>,
    /// Steps from one choice of ranks to the next (--method adalora) [default: a hundredth of all]
    #[arg(long, value_name = "N", conflicts_with = "init_adapter", help_heading = "Layer")]
    delta_t: Option<u64>,
    /// The layer counts alpha/√rank
    #[arg(long, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub rslora: bool,
    /// Share of its inputs that is dropped while learning
    #[arg(long, value_name = "D", default_value_t = 0.0, help_heading = "Layer")]
    pub dropout: f64,
    /// Where it is fastened: all, attn, mlp, head, or names between commas such as q,v or blk.2-5.attn [default: the method's: all, or k,v,down (ia3), q,k,v (parallel), gate,up,down (series), v (bias), norms, tokens, front (prefix, prompt, ptuning)]
    #[arg(long, value_name = "LIST", conflicts_with = "init_adapter", help_heading = "Layer")]
    pub targets: Option<String>,
    /// The tokens whose embeddings learn (--method tokens), between commas: numbers, or tokens as the vocabulary spells them
    #[arg(long, value_name = "LIST", conflicts_with = "init_adapter", help_heading = "Layer")]
    pub tokens: Option<String>,
    /// Virtual tokens in front of every sequence: prefix, prompt, ptuning [default: 20]
    #[arg(long, value_name = "N", value_parser = at_least_1, conflicts_with = "init_adapter", help_heading = "Layer")]
    pub virtual_tokens: Option<usize>,
    /// Learn prefix or ptuning through a network with N hidden numbers, 0: without [default: 0; of ptuning the model's width]
    #[arg(long, value_name = "N", conflicts_with = "init_adapter", help_heading = "Layer")]
    pub encoder: Option<usize>,
    /// Begin with this layer instead of a new one
    #[arg(long, value_name = "PATH", help_heading = "Layer")]
    pub init_adapter: Option<PathBuf>,
    /// Another round of half fine-tuning: draw another half of the matrices by --seed, and keep what was trained before
    #[arg(long, requires = "init_adapter", help_heading = "Layer")]
    pub next_half: bool,

    /// sft, dpo, ipo, orpo, simpo or kto [default: what the rows are for: preferences dpo, feedback kto, others sft]
    #[arg(long, value_name = "NAME", value_parser = objective, help_heading = "Objective")]
    pub objective: Option<&'static Objective>,
    /// How far from the base it may lead, or how much a difference counts: dpo, ipo, orpo, simpo, kto [default: 0.1]
    #[arg(long, value_name = "B", help_heading = "Objective")]
    beta: Option<f64>,
    /// Share of pairs that are the wrong way round: dpo, simpo [default: 0]
    #[arg(long, value_name = "E", help_heading = "Objective")]
    label_smoothing: Option<f64>,
    /// The margin between chosen and rejected: simpo [default: 0.5]
    #[arg(long, value_name = "G", visible_aliases = ["gamma", "simpo-margin"], help_heading = "Objective")]
    simpo_gamma: Option<f64>,
    /// Weight of rows labelled true: kto [default: 1]
    #[arg(long, value_name = "W", help_heading = "Objective")]
    desirable_weight: Option<f64>,
    /// Weight of rows labelled false: kto [default: 1]
    #[arg(long, value_name = "W", help_heading = "Objective")]
    undesirable_weight: Option<f64>,

    /// Peak learning rate [default: 5e-4·(2000/width)^0.781, a fit over Llama models; 20 times that for ia3, vera and bias, 5 times for norms and tokens, a tenth for full and hft, 3 times for series and parallel, 6 times for loha, lokr and adalora,
    /// 100 times for prefix and prompt, 3 times with an encoder, a twentieth for judged rows]
    #[arg(long, value_name = "L", help_heading = "Recipe")]
    pub learning_rate: Option<f64>,
    /// LoRA+: B learns so many times as fast as A
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, help_heading = "Recipe")]
    pub lora_plus_ratio: f64,
    /// constant, linear or cosine
    #[arg(long = "lr-schedule", value_name = "SHAPE", default_value = "cosine", value_parser = shape, help_heading = "Recipe")]
    pub schedule: Shape,
    /// adamw, or adamw8bit: moments in 8 bits, block by block (arXiv 2110.02861) [default: adamw]
    #[arg(long, value_name = "NAME", value_parser = optimizer, help_heading = "Recipe")]
    pub optimizer: Option<Optimizer>,
    /// Steps until the peak
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Recipe")]
    pub warmup_steps: u64,
    /// Decoupled weight decay; 0: none
    #[arg(long, value_name = "W", default_value_t = 0.0, help_heading = "Recipe")]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0: never
    #[arg(long, value_name = "G", default_value_t = 1.0, help_heading = "Recipe")]
    pub max_grad_norm: f64,
    /// How often every row is seen
    #[arg(long, value_name = "E", default_value_t = 3.0, conflicts_with = "steps", help_heading = "Recipe")]
    pub epochs: f64,
    /// Optimiser steps, instead of epochs
    #[arg(long = "max-steps", value_name = "N", help_heading = "Recipe")]
    pub steps: Option<u64>,
    /// Rows of a step, times --grad-accumulation; only the product counts
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = at_least_1, help_heading = "Recipe")]
    pub batch_size: usize,
    /// See --batch-size
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = at_least_1, help_heading = "Recipe")]
    pub grad_accumulation: usize,
    /// Of the new layer, the order of rows and dropout: the same seed gives the same bytes
    #[arg(long, value_name = "S", default_value_t = 0, help_heading = "Recipe")]
    pub seed: u64,

    /// The layer: OUT.gguf is a GGUF file, OUT/ a PEFT directory
    #[arg(short = 'o', long, value_name = "OUT", help_heading = "Run")]
    pub output: PathBuf,
    /// Replace OUT, and begin again where a checkpoint is
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    pub overwrite: bool,
    /// Go on from the checkpoint beside OUT, if there is one
    #[arg(long, help_heading = "Run")]
    pub resume: bool,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub checkpoint_every: Option<u64>,
    /// Seconds between checkpoints; there is always one at the end and at Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 300, help_heading = "Run")]
    pub checkpoint_seconds: u64,
    /// Go on even where the loss stays far above its mean. Otherwise 8 steps in a row above mean + max(1, 6·deviation),
    /// over the last 50, end the run, and the layer goes back to before them
    #[arg(long, help_heading = "Run")]
    pub no_divergence_guard: bool,
    /// The most memory to plan with, besides the mapped base, such as 6GiB [default: 2GiB, or what is needed]
    #[arg(long, value_name = "BYTES", value_parser = size, help_heading = "Run")]
    pub memory: Option<u64>,
    /// Only show what the run would take, in memory and time: two steps are taken and thrown away
    #[arg(long, help_heading = "Run")]
    pub plan: bool,
    /// Only try learning rates, from small ones to such that nothing is learned any more, and suggest one; nothing is written
    #[arg(long, conflicts_with_all = ["plan", "show_mask"], help_heading = "Run")]
    pub find_rate: bool,
    /// Before the run, look for a rank and a rate that do best on the held-out rows, for so many minutes: half, once and twice
    /// the rank, a third, once and three times the rate, by successive halving
    #[arg(long, value_name = "MINUTES", conflicts_with_all = ["plan", "show_mask", "find_rate", "init_adapter"], help_heading = "Run")]
    pub search: Option<f64>,
    /// One JSON object per step
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Run")]
    pub log: Option<PathBuf>,
    /// A page that tells the run: curves, answers before and after, recipe, data, environment
    #[arg(long, value_name = "FILE.html", help_heading = "Run")]
    pub report: Option<PathBuf>,
    /// Prompts, one a line, answered without and with the layer at the end [default: NAME.prompts.txt beside the data]
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub samples: Option<PathBuf>,
    /// No sample answers
    #[arg(long, conflicts_with = "samples", help_heading = "Run")]
    pub no_samples: bool,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub kv: Kv,
    /// One JSON object at the end
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// The numbers of the objective that were given.
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        let all = [
            ("beta", self.beta),
            ("label-smoothing", self.label_smoothing),
            ("simpo-gamma", self.simpo_gamma),
            ("desirable-weight", self.desirable_weight),
            ("undesirable-weight", self.undesirable_weight),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Whether it was said in which steps ranks are given up.
    pub fn schedules_ranks(&self) -> bool {
        self.tinit.or(self.tfinal).or(self.delta_t).is_some()
    }

    /// How ranks are given up, if anything was said of it or the method does so.
    pub fn budget(&self) -> Option<Budget> {
        let of = Budget::default();
        let budget = Budget {
            target: self.target_rank,
            tinit: self.tinit,
            tfinal: self.tfinal,
            every: self.delta_t,
            orthogonality: self.orthogonality.unwrap_or(of.orthogonality),
            ..of
        };
        let said = budget != of || self.orthogonality.is_some();
        (said || self.method.allocates()).then_some(budget)
    }

    /// Whether a layer that is there may be replaced: if it was said, or when a run goes on that was told so, or that
    /// ended between writing its layer and removing its checkpoint.
    pub fn replaces(&self) -> bool {
        self.overwrite || (self.resume && super::output::checkpoint(&self.output).is_some())
    }
}

fn objective(name: &str) -> Result<&'static Objective, String> {
    objective::named(name).map_err(|e| e.to_string())
}

fn format(name: &str) -> Result<Format, String> {
    Format::named(name).map_err(|e| e.to_string())
}

fn method(name: &str) -> Result<&'static Method, String> {
    Method::named(name).map_err(|e| e.to_string())
}

fn places(list: &str) -> Result<Places, String> {
    Places::parse(list).map_err(|e| e.to_string())
}

fn init(name: &str) -> Result<Init, String> {
    Init::named(name).map_err(|e| e.to_string())
}

fn activation(name: &str) -> Result<Activation, String> {
    Activation::named(name).ok_or_else(|| {
        let all: Vec<_> = ACTIVATIONS.iter().map(|(_, name)| *name).collect();
        format!("expected {}", all.join(", "))
    })
}

fn balance(name: &str) -> Result<Balance, String> {
    Balance::named(name).map_err(|e| e.to_string())
}

fn optimizer(name: &str) -> Result<Optimizer, String> {
    Optimizer::named(name).map_err(|e| e.to_string())
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::named(name).map_err(|e| e.to_string())
}

fn at_least_1(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number from 1".into())
}
