//! Everything that can be known before memory is taken.

use super::output::{self, Output};
use super::{Args, answers, mask};
use crate::cli::{open, options, samples, stop, terminal};
use anyhow::Result;
use onlay::adapter::{Adapter, Lora, New, Targets};
use onlay::backend::Device;
use onlay::error::{Error, Findings, Kind, Place};
use onlay::model::Model;
use onlay::train::{
    CONTEXT, Data, Encoder, Fit, Length, Long, Recipe, Rows, RunOptions, Set, Signal, Start, split,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Memory that a run may take for speed unless told.
const COMFORT: u64 = 2 << 30;

/// Everything a run is made of.
pub struct Prepared {
    pub model: Arc<Model>,
    pub layer: Lora,
    pub data: Data,
    pub options: RunOptions,
    pub prompts: Vec<String>,
    /// Rows on which nothing is to change.
    pub control: Set,
    /// What the rows answer, and how many of them, where that is a few things.
    pub answers: Option<Vec<answers::Counted>>,
    /// Training rows that were left out because they are evaluation rows too.
    pub dropped: usize,
}

/// Reads and checks everything that can be known before memory is taken, and reports all of it at once.
pub fn prepare(args: &Args) -> Result<Prepared> {
    let model = open::model(&args.model)?;
    let mut wrong = Findings::default();
    let mut reads = vec![("the base", args.model.as_path()), ("the data", &args.data)];
    reads.extend(args.eval_data.iter().map(|p| ("the evaluation data", p.as_path())));
    reads.extend(args.control.iter().map(|p| ("the control rows", p.as_path())));
    reads.extend(args.init_adapter.iter().map(|p| ("the layer to begin with", p.as_path())));
    // who only looks writes nothing
    let looks = args.plan || args.find_rate || args.show_mask.is_some();
    wrong.keep(Output::check(&args.output, args.replaces() || looks, &reads));
    wrong.keep(output::no_checkpoint(&args.output, args.overwrite || args.resume || looks));
    let log_may_exist = args.overwrite || args.resume || looks;
    wrong.keep(args.log.as_ref().map_or(Ok(()), |log| Output::check(log, log_may_exist, &reads)));
    if let Some(report) = &args.report {
        wrong.keep(Output::check(report, log_may_exist, &reads));
        wrong.keep(output::writable(report));
        let taken = [("the layer", Some(&args.output)), ("the log", args.log.as_ref())];
        for (what, _) in taken.iter().filter(|(_, path)| *path == Some(report)) {
            let text = format!("is also {what}, which is written");
            wrong.push(Error::new(Kind::Argument, text).at(Place::Path(report.clone())));
        }
    }
    if let Some(minutes) = args.search {
        if !(minutes > 0.0 && minutes.is_finite()) {
            let expected = "a number of minutes above 0";
            wrong.push(Error::expected(Kind::Argument, "search", expected, minutes));
        }
        if args.schedules_ranks() {
            let text =
                "search: trials are of other lengths than --tinit, --tfinal and --delta-t are made for";
            wrong.push(Error::new(Kind::Argument, text));
        }
        if args.eval_data.is_none() && args.eval_split.is_none() {
            let text = "search: expected held-out rows to judge by (--eval-data or --eval-split), found none";
            wrong.push(Error::new(Kind::Argument, text));
        }
    }
    if let Some(limit) = args.max_forgetting.filter(|x| !(*x > 0.0 && x.is_finite())) {
        let expected = "a finite number above 0, in nats a token";
        wrong.push(Error::expected(Kind::Argument, "max-forgetting", expected, limit));
    }
    let (layer, parent) = wrong.keep(layer(args, &model, args.rank)).unzip();
    let level = options::level()?;
    let whole = |l: &&Lora| args.max_forgetting.is_some() && l.times(&model, level, 1.0).is_none();
    if let Some(layer) = layer.as_ref().filter(whole) {
        let text = format!("max-forgetting: a {} layer cannot be scaled down", layer.method().name);
        wrong.push(Error::new(Kind::Unsupported, text));
    }
    let mut progress = terminal::Progress::new();
    let mut read = |path: &Path| -> onlay::Result<Set> {
        let format = args.data_format;
        let rows = Rows::read(path, format)?;
        if !rows.ignored.is_empty() {
            let keys: Vec<_> = rows.ignored.iter().map(String::as_str).collect();
            terminal::warn(format_args!("{}: keys that are not used: {}", path.display(), keys.join(", ")));
        }
        let chat = Encoder::chat_of(&model)?;
        let context = args.ctx.unwrap_or(model.program().context.min(CONTEXT));
        let mut encoder = Encoder::new(&model, chat.as_ref(), context);
        encoder.long = if args.truncate { Long::Truncate } else { Long::Refuse };
        encoder.parse_special = args.parse_special;
        let set = encoder.encode(&rows, &mut |done, of| {
            progress.show(|| format!("reading {}: {done} of {of} rows", path.display()));
            stop::flow()
        })?;
        mask::warn_of_open_ends(path, &rows, &set, &model);
        Ok(set)
    };
    let train = wrong.keep(read(&args.data));
    let eval = args.eval_data.as_ref().map(|path| wrong.keep(read(path)));
    let control = args.control.as_ref().and_then(|path| wrong.keep(read(path)));
    progress.clear();
    let mut data = match (train, eval, args.eval_split) {
        (Some(train), None, Some(share)) => {
            wrong.keep(split(train, share, args.seed)).map(|(train, eval)| Data { train, eval })
        }
        (Some(train), eval, _) => Some(Data { train, eval: eval.flatten().unwrap_or_default() }),
        (None, ..) => None,
    };
    let dropped = match &mut data {
        Some(data) if args.drop_overlap => data.train.drop_overlap(&data.eval),
        _ => 0,
    };
    let answers = data.as_ref().and_then(|data| answers::of(&data.train, args.balance, &model));
    if let Some(answers) = &answers {
        terminal::note(answers::line(answers));
    }
    if dropped > 0 {
        terminal::note(format_args!("{dropped} training rows left out: they are evaluation rows too"));
    }
    let rate = args.learning_rate.unwrap_or_else(|| {
        let pace = layer.as_ref().map_or(args.method.pace, Lora::pace);
        let signal = data.as_ref().map_or(Signal::Shown, |d| d.train.signal());
        Recipe::rate_for(model.program().width, pace, signal)
    });
    let mut options = RunOptions {
        length: args.steps.map_or(Length::Epochs(args.epochs), Length::Steps),
        batch_size: args.batch_size,
        grad_accumulation: args.grad_accumulation,
        objective: args.objective,
        numbers: args.numbers(),
        recipe: Recipe {
            rate,
            plus: args.lora_plus_ratio,
            shape: args.schedule,
            warmup: args.warmup_steps,
            decay: args.weight_decay,
            max_norm: args.max_grad_norm,
            ..Recipe::default()
        },
        balance: args.balance,
        optimizer: args.optimizer.unwrap_or_default(),
        dropout: args.dropout,
        seed: args.seed,
        shuffle: !args.no_shuffle,
        pack: !args.no_pack,
        eval_every: args.eval_every,
        checkpoint_every: args.checkpoint_every,
        checkpoint_after: Some(Duration::from_secs(args.checkpoint_seconds)),
        start: match (args.resume, args.overwrite) {
            (true, _) => Start::Resume,
            (_, true) => Start::Over,
            _ => Start::New,
        },
        guard: !args.no_divergence_guard,
        early_stop: args.early_stop,
        keep_best: args.keep_best,
        parent: parent.flatten(),
        kv: args.kv.kv,
        device: args.machine.device()?,
        ..RunOptions::new(options::level()?, args.machine.team())
    };
    let beside = samples::beside(&args.data).filter(|_| !args.no_samples);
    let prompts = args.samples.clone().or(beside).map_or(Ok(Vec::new()), |path| samples::read(&path))?;
    if let (Some(layer), Some(data)) = (&layer, &data) {
        let fit = fit(args, &model, layer, data, &options);
        if let Some(fit) = wrong.keep(fit) {
            if let Some(most) = args.memory {
                let (total, most) = (terminal::bytes(fit.plan.memory.total()), terminal::bytes(most));
                terminal::note(format_args!("to fit {most}: {}; {total} planned", fit.chosen()));
            }
            if let Device::Cuda { memory: Some(most), .. } = options.device {
                let most = terminal::bytes(most);
                terminal::note(format_args!("within {most} of {}: {}", options.device, fit.chosen()));
            }
            options = fit.options;
        }
    }
    wrong.refuse("the run cannot start")?;
    let (layer, data) = (layer.expect("nothing is wrong"), data.expect("nothing is wrong"));
    Ok(Prepared {
        model,
        layer,
        data,
        options,
        prompts,
        control: control.unwrap_or_default(),
        answers,
        dropped,
    })
}

/// The layer before the first step, and the id of the one that it continues.
pub fn layer(args: &Args, model: &Model, rank: Option<usize>) -> onlay::Result<(Lora, Option<[u8; 32]>)> {
    if let Some(path) = &args.init_adapter {
        let (adapter, warnings) = Adapter::open(path, model)?;
        warnings.iter().for_each(|w| terminal::warn(format_args!("{}: {w}", path.display())));
        let layer = match args.next_half {
            true => adapter.to_lora().next_half(model, options::level()?, args.seed)?,
            false => adapter.to_lora(),
        };
        return Ok((layer, Some(*adapter.id())));
    }
    if rank.is_some() && !args.method.ranked {
        return Err(Error::new(Kind::Argument, format!("{} has no rank", args.method.name)));
    }
    let of = New::of(args.method);
    let new = New {
        targets: args.targets.as_deref().map(Targets::parse).transpose()?,
        rank: rank.unwrap_or(of.rank),
        alpha: args.alpha,
        stabilised: args.rslora,
        ranks: args.rank_pattern.clone().unwrap_or_default(),
        alphas: args.alpha_pattern.clone().unwrap_or_default(),
        init: args.init.unwrap_or(of.init),
        activation: args.activation,
        scaling: args.scale,
        tokens: args.tokens.as_deref().map_or(Ok(vec![]), |list| tokens(list, model))?,
        budget: args.budget(),
        virtual_tokens: args.virtual_tokens,
        encoder: args.encoder,
        seed: args.seed,
        ..of
    };
    Ok((new.layer(model, options::level()?, args.machine.team())?, None))
}

/// The tokens of a list: numbers, or names of the vocabulary.
fn tokens(list: &str, model: &Model) -> onlay::Result<Vec<u32>> {
    let mut wrong = Findings::default();
    let one = |name: &str| {
        let known = || Ok(model.tokenizer()?.find(name.as_bytes()));
        match name.parse().map_or_else(|_| known(), |n| Ok(Some(n))) {
            Ok(Some(token)) => Ok(token),
            Ok(None) => Err(Error::expected(
                Kind::Argument,
                "token",
                "its number, or as the vocabulary spells it",
                format!("{name:?}"),
            )),
            Err(e) => Err(e),
        }
    };
    let all = list.split(',').filter_map(|name| wrong.keep(one(name.trim()))).collect();
    wrong.refuse("the tokens cannot be trained").map(|()| all)
}

/// Takes what is fastest within the memory that was promised.
pub fn fit(
    args: &Args,
    model: &Model,
    layer: &Lora,
    data: &Data,
    options: &RunOptions,
) -> onlay::Result<Fit> {
    Fit::new(model, layer, data, options, args.memory, COMFORT, args.optimizer.is_none())
}
