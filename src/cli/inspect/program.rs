//! A model's program as text.

use crate::cli::show::{count, plain};
use crate::cli::terminal::line;
use anyhow::Result;
use onlay::model::Model;
use onlay::model::program::Program;
use onlay::ops::{MatrixId, Step, VectorId};
use onlay::tensor::Register;
use serde_json::{Value, json};

/// A program in words.
pub struct Listing {
    width: usize,
    context: usize,
    heads: (usize, usize, usize),
    registers: Vec<(&'static str, usize)>,
    embed: String,
    /// Name and steps of every segment.
    segments: Vec<(String, Vec<String>)>,
    head: String,
    /// Name, inputs, outputs.
    sites: Vec<(String, usize, usize)>,
}

/// The program of a model.
pub fn listing(model: &Model) -> Listing {
    let p = model.program();
    let segment = |s: &onlay::model::program::Segment| {
        (s.name.clone(), s.steps.iter().map(|step| words(p, step)).collect())
    };
    let (norm, matrix) = (vector(p, p.head.norm), matrix(p, p.head.matrix));
    Listing {
        width: p.width,
        context: p.context,
        heads: (p.attention.heads, p.attention.key_heads, p.attention.head),
        registers: p.registers.iter().map(|r| (r.name, r.cols)).collect(),
        embed: words(p, &p.embed),
        segments: p.segments.iter().map(segment).collect(),
        head: format!("logits = norm({}, {norm}) · {matrix}", name(p, p.result)),
        sites: p.sites.iter().map(|s| (s.name.clone(), s.inputs, s.outputs)).collect(),
    }
}

fn name(p: &Program, r: Register) -> &'static str {
    p.registers.get(usize::from(r.0)).map_or("?", |r| r.name)
}

fn matrix(p: &Program, id: MatrixId) -> &str {
    p.matrices.get(id.0 as usize).map_or("?", |m| &m.name)
}

fn vector(p: &Program, id: VectorId) -> &str {
    p.vectors.get(id.0 as usize).map_or("?", |v| &v.name)
}

/// A step as an equation.
fn words(p: &Program, step: &Step) -> String {
    let r = |register| name(p, register);
    match step {
        Step::Embed(s) => format!("{} = {}[token]", r(s.to), matrix(p, s.table)),
        Step::Norm(s) => format!("{} = norm({}, {})", r(s.to), r(s.x), vector(p, s.weight)),
        Step::Linear(s) => {
            let each = s.outputs.iter().map(|o| {
                let bias = o.bias.map(|b| format!(" + {}", vector(p, b))).unwrap_or_default();
                format!("{} = {} · {}{bias}", r(o.to), r(s.x), matrix(p, o.matrix))
            });
            each.collect::<Vec<_>>().join("; ")
        }
        Step::Rotate(s) => format!("{} = rotate({})", r(s.x), r(s.x)),
        Step::Attend(s) => format!("{} = attend({}, {}, {})", r(s.to), r(s.q), r(s.k), r(s.v)),
        Step::Gate(s) => format!("{} = silu({}) * {}", r(s.to), r(s.gate), r(s.up)),
        Step::Add(s) => format!("{} = {} + {}", r(s.to), r(s.a), r(s.b)),
    }
}

impl Listing {
    /// One line.
    pub fn summary(&self) -> String {
        let (heads, key_heads, head) = self.heads;
        format!(
            "{} segments, width {}, {heads} heads ({key_heads} for keys) of {head}, context {}, {} sites",
            self.segments.len(),
            self.width,
            count(self.context as u64),
            self.sites.len()
        )
    }

    /// Sites of the same product in all layers, together.
    pub fn kinds_of_sites(&self) -> Vec<(String, String)> {
        let mut kinds: Vec<(String, usize, usize, usize)> = Vec::new();
        for (name, inputs, outputs) in &self.sites {
            let mut parts: Vec<&str> = name.split('.').collect();
            if parts.len() > 1 && parts[1].bytes().all(|b| b.is_ascii_digit()) {
                parts[1] = "*";
            }
            let name = parts.join(".");
            match kinds.iter_mut().find(|k| (&k.0, k.1, k.2) == (&name, *inputs, *outputs)) {
                Some(kind) => kind.3 += 1,
                None => kinds.push((name, *inputs, *outputs, 1)),
            }
        }
        let width = |f: fn(&(String, usize, usize, usize)) -> usize| {
            kinds.iter().map(|k| f(k).to_string().len()).max().unwrap_or(0)
        };
        let (a, b) = (width(|k| k.1), width(|k| k.2));
        let text = |(name, inputs, outputs, n): &(String, usize, usize, usize)| {
            (name.clone(), format!("{inputs:>a$} -> {outputs:>b$}  x {n}"))
        };
        kinds.iter().map(text).collect()
    }

    /// The program and its sites.
    pub fn json(self) -> (Value, Value) {
        let (heads, key_heads, head) = self.heads;
        let registers = self.registers.iter().map(|(name, cols)| json!({"name": name, "cols": cols}));
        let segments = self.segments.iter().map(|(name, steps)| json!({"name": name, "steps": steps}));
        let program = json!({
            "width": self.width, "context": self.context, "heads": heads, "key_heads": key_heads, "head": head,
            "registers": registers.collect::<Vec<_>>(), "embed": self.embed,
            "segments": segments.collect::<Vec<_>>(), "logits": self.head,
        });
        let sites = self.sites.iter().map(|(name, i, o)| json!({"name": name, "inputs": i, "outputs": o}));
        (program, sites.collect())
    }
}

/// Every step on stdout.
pub fn show(listing: &Listing) -> Result<()> {
    line("registers")?;
    let width = listing.registers.iter().map(|(_, cols)| cols.to_string().len()).max().unwrap_or(0);
    for (name, cols) in &listing.registers {
        line(format_args!("  {cols:>width$}  {name}"))?;
    }
    line("\nprogram")?;
    line(format_args!("  {}", plain(&listing.embed)))?;
    for (name, steps) in &listing.segments {
        line(format_args!("{}", plain(name)))?;
        for step in steps {
            line(format_args!("  {}", plain(step)))?;
        }
    }
    line(format_args!("head\n  {}", plain(&listing.head)))?;
    Ok(())
}
