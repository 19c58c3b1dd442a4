//! Flags that several commands share.

use clap::Args;
use onlay::backend::Device;
use onlay::engine::Choice;
use onlay::ops::kv::Precision;
use onlay_kernels::Level;
use std::path::PathBuf;

/// How many threads.
#[derive(Args, Clone)]
pub struct Threads {
    /// Threads [default: as many as there are cores, up to 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

impl Threads {
    pub fn told(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    pub fn count(&self) -> usize {
        self.told().unwrap_or_else(onlay::tensor::Team::default_len)
    }
}

/// Threads, and what computes.
#[derive(Args, Clone)]
pub struct Machine {
    #[command(flatten)]
    threads: Threads,
    /// Let every other program go first: threads of the lowest priority that never wait by spinning
    #[arg(long)]
    pub polite: bool,
    /// What computes: cpu, or an NVIDIA GPU such as cuda:0 [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    device: Option<Device>,
    /// The most memory of the GPU that may be taken [default: seven eighths of what is free]
    #[arg(long, value_name = "BYTES", value_parser = size, requires = "device")]
    gpu_memory: Option<u64>,
}

fn device(name: &str) -> Result<Device, String> {
    Device::named(name).map_err(|e| e.to_string())
}

impl Machine {
    pub fn threads(&self) -> Option<usize> {
        self.threads.told()
    }

    /// What computes.
    pub fn device(&self) -> onlay::Result<Device> {
        let device = self.device.unwrap_or_default();
        self.gpu_memory.map_or(Ok(device), |bytes| device.within(bytes))
    }

    pub fn count(&self) -> usize {
        self.threads.count()
    }

    /// The threads of a run.
    pub fn team(&self) -> onlay::tensor::Threads {
        onlay::tensor::Threads { count: self.count(), polite: self.polite }
    }
}

/// The instructions in use.
pub fn level() -> onlay::Result<Level> {
    Level::chosen().map_err(|text| onlay::Error::new(onlay::Kind::Argument, text))
}

/// How keys and values are kept.
#[derive(Args, Clone)]
pub struct Kv {
    /// How keys and values are kept: f16, f32 or q8_0
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = precision)]
    pub kv: Precision,
}

fn precision(name: &str) -> Result<Precision, String> {
    Precision::named(name).map_err(|e| e.to_string())
}

/// What a session wears.
#[derive(Args, Clone, Default)]
pub struct Wear {
    /// Put this layer on (a GGUF file or a PEFT directory), with this weight; may be given several times
    #[arg(long = "adapter", value_name = "PATH[=SCALE]", value_parser = weighted)]
    pub adapters: Vec<Weighted>,
    /// Refuse a layer that was trained on other weights of the same shape, with another tokenizer or template
    #[arg(long)]
    pub exact_base: bool,
}

/// A layer and its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    pub path: PathBuf,
    pub weight: f32,
}

/// `PATH` or `PATH=SCALE`; what follows the last `=` is a scale only if it is a number.
pub fn weighted(text: &str) -> Result<Weighted, String> {
    if text.is_empty() {
        return Err("expected PATH or PATH=SCALE".into());
    }
    let (path, weight) = match text.rsplit_once('=') {
        Some((path, scale)) if !path.is_empty() => match scale.parse::<f32>() {
            Ok(weight) if weight.is_finite() => (path, weight),
            Ok(weight) => return Err(format!("scale: expected a finite number, found {weight}")),
            Err(_) => (text, 1.0),
        },
        _ => (text, 1.0),
    };
    Ok(Weighted { path: path.into(), weight })
}

/// How tokens are chosen.
#[derive(Args, Clone)]
pub struct Sampling {
    /// Temperature; 0 always takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temp: f32,
    /// Choose among the K most probable; 0: all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Choose among the fewest that together reach this probability; 1: all
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Choose among those with at least this share of the largest probability; 0: all
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Make recent tokens less probable; 1: no
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Tokens that the repeat penalty looks back
    #[arg(long, value_name = "N", default_value_t = 64)]
    repeat_window: usize,
    /// Add to the logit of a token; may be given several times
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// End at this text, which is not shown; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl Sampling {
    pub fn choice(&self) -> Choice {
        Choice {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_window: self.repeat_window,
            bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let both = text.split_once('=').and_then(|(t, b)| Some((t.parse().ok()?, b.parse().ok()?)));
    both.filter(|(_, b): &(u32, f32)| b.is_finite())
        .ok_or_else(|| "expected a token's number, =, a number".into())
}

/// `1500`, `900MB`, `6GiB`: a whole number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("unit: expected KiB, MiB, GiB, kB, MB or GB, found {unit:?}")),
    };
    let value = number.parse::<f64>().map_err(|_| "expected a number such as 6GiB".to_owned())? * factor;
    if (1.0..1e18).contains(&value) { Ok(value as u64) } else { Err("expected at least 1 byte".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let fine = [("6GiB", 6 << 30), ("1.5k", 1536), ("900MB", 900_000_000), ("17", 17)];
        fine.iter().for_each(|(text, n)| assert_eq!(size(text), Ok(*n)));
        ["", "GiB", "-1", "6 XiB", "0", "1e99GiB", "1.2.3"]
            .iter()
            .for_each(|t| assert!(size(t).is_err(), "{t}"));
    }

    #[test]
    fn adapters_with_and_without_scale() {
        let of = |text: &str| weighted(text).map(|w| (w.path.to_str().unwrap().to_owned(), w.weight));
        assert_eq!(of("a.gguf"), Ok(("a.gguf".into(), 1.0)));
        assert_eq!(of("a.gguf=0.5"), Ok(("a.gguf".into(), 0.5)));
        assert_eq!(of("a=b.gguf=-2"), Ok(("a=b.gguf".into(), -2.0)));
        assert_eq!(of("a=b.gguf"), Ok(("a=b.gguf".into(), 1.0)));
        assert!(of("").is_err() && of("a=inf").is_err());
    }
}
