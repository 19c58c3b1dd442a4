//! The methods there are: what `--method` says, what a manifest names, and which effects a layer of each consists of.

use super::layer::{Effect, Part};
use super::names::Names;
use crate::error::{Error, Kind, Result};
use crate::model::program::Spot;

/// One kind of layer.
#[derive(Debug)]
pub struct Method {
    /// Its name, everywhere.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// What PEFT calls it.
    pub peft: &'static str,
    /// Where it is fastened unless told.
    pub targets: &'static str,
    /// By how much to learn faster than LoRA, to begin with: vectors want more than matrices (VeRA's paper has 10 to 25
    /// times LoRA's rate, T-Few's (IA)³ 15 times). LoHa, LoKr and AdaLoRA were best at 4 to 8 times LoRA's best rate, and
    /// diverged at 16 times it (bundled model and rows, rank 16, 40 steps).
    pub pace: f64,
    /// Whether it has a rank.
    pub ranked: bool,
    /// Whether every place has a rank, an α and a B of its own.
    pub paired: bool,
    /// What its parts do.
    pub(super) effects: &'static [Effect],
    /// Which of them at a place whose module path ends in this word.
    part: fn(&str) -> Effect,
}

/// All of them.
pub static METHODS: &[Method] = &[
    Method {
        name: "lora",
        about: "a low-rank sum beside the product",
        peft: "LORA",
        targets: "all",
        pace: 1.0,
        ranked: true,
        paired: true,
        effects: &[Effect::Lora],
        part: |_| Effect::Lora,
    },
    Method {
        name: "dora",
        about: "a low-rank sum, and a length of its own for every row",
        peft: "LORA",
        targets: "all",
        pace: 1.0,
        ranked: true,
        paired: true,
        effects: &[Effect::Dora],
        part: |_| Effect::Dora,
    },
    Method {
        name: "ia3",
        about: "a factor for every output; in front of the MLP's last product, for every input",
        peft: "IA3",
        targets: "k,v,down",
        pace: 20.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Outputs, Effect::Inputs],
        part: |word| if word == "down_proj" { Effect::Inputs } else { Effect::Outputs },
    },
    Method {
        name: "vera",
        about: "one random pair for all products, and two vectors for each",
        peft: "VERA",
        targets: "all",
        pace: 20.0,
        ranked: true,
        paired: false,
        effects: &[Effect::Vera],
        part: |_| Effect::Vera,
    },
    Method {
        name: "full",
        about: "whole matrices in place of the base's, in f32",
        peft: "FULL",
        targets: "all",
        pace: 0.1,
        ranked: false,
        paired: false,
        effects: &[Effect::Whole],
        part: |_| Effect::Whole,
    },
    Method {
        name: "hft",
        about: "the same of half of every block's matrices, another half in every round",
        peft: "HFT",
        targets: "all",
        pace: 0.1,
        ranked: false,
        paired: false,
        effects: &[Effect::Whole],
        part: |_| Effect::Whole,
    },
    Method {
        name: "norms",
        about: "the weights of norms",
        peft: "LN_TUNING",
        targets: "norms",
        pace: 5.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Norm],
        part: |_| Effect::Norm,
    },
    Method {
        name: "tokens",
        about: "the embeddings of some tokens",
        peft: "TRAINABLE_TOKENS",
        targets: "tokens",
        pace: 5.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Rows],
        part: |_| Effect::Rows,
    },
    // LLM-Adapters learn prefixes at 100 times LoRA's rate (3e-2, 3e-4); 40 steps on models/parrot.jsonl learned more the
    // faster they were, up to 500 times, prompts too
    Method {
        name: "prefix",
        about: "keys and values in front of a sequence's own, in every layer",
        peft: "PREFIX_TUNING",
        targets: "front",
        pace: 100.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Prefix],
        part: |_| Effect::Prefix,
    },
    Method {
        name: "prompt",
        about: "rows in front of a sequence's embeddings",
        peft: "PROMPT_TUNING",
        targets: "front",
        pace: 100.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Prompt],
        part: |_| Effect::Prompt,
    },
    Method {
        name: "ptuning",
        about: "rows in front of a sequence's embeddings, learned through a small network",
        peft: "P_TUNING",
        targets: "front",
        pace: 100.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Ptuning],
        part: |_| Effect::Ptuning,
    },
    Method {
        name: "loha",
        about: "the element-wise product of two low-rank matrices",
        peft: "LOHA",
        targets: "all",
        pace: 6.0,
        ranked: true,
        paired: false,
        effects: &[Effect::Hadamard],
        part: |_| Effect::Hadamard,
    },
    Method {
        name: "lokr",
        about: "the Kronecker product of two small matrices",
        peft: "LOKR",
        targets: "all",
        pace: 6.0,
        ranked: true,
        paired: false,
        effects: &[Effect::Kronecker],
        part: |_| Effect::Kronecker,
    },
    // 60 steps of fable-15m on ten of BANKING77's intents: 1, 3, 6, 12 times LoRA's rate gave held-out losses of 0.99, 0.25, 0.22, 0.21
    // (series) and 2.88, 0.77, 0.34, 0.26 (parallel), and a divergence from the base elsewhere of 0.8, 1.4, 3.0, 5.1 and 1.1, 1.5,
    // 1.8, 2.5 nats a token
    Method {
        name: "parallel",
        about: "a bottleneck with an activation beside the product",
        peft: "BOTTLENECK",
        targets: "q,k,v",
        pace: 3.0,
        ranked: true,
        paired: false,
        effects: &[Effect::Beside],
        part: |_| Effect::Beside,
    },
    Method {
        name: "series",
        about: "a bottleneck with an activation in front of gate and up, behind all others",
        peft: "BOTTLENECK",
        targets: "gate,up,down",
        pace: 3.0,
        ranked: true,
        paired: false,
        effects: &[Effect::Before, Effect::Behind],
        part: |word| if matches!(word, "gate_proj" | "up_proj") { Effect::Before } else { Effect::Behind },
    },
    Method {
        name: "bias",
        about: "a vector added to the product",
        peft: "BEFT",
        targets: "v",
        pace: 20.0,
        ranked: false,
        paired: false,
        effects: &[Effect::Bias],
        part: |_| Effect::Bias,
    },
    Method {
        name: "adalora",
        about: "triplets near to a singular value decomposition; the less important ones are given up",
        peft: "ADALORA",
        targets: "all",
        pace: 6.0,
        ranked: true,
        paired: false,
        effects: &[Effect::Triplets],
        part: |_| Effect::Triplets,
    },
];

impl Method {
    /// The method of that name.
    ///
    /// # Errors
    /// `Argument` naming all there are.
    pub fn named(name: &str) -> Result<&'static Method> {
        METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
            let all: Vec<_> = METHODS.iter().map(|m| m.name).collect();
            Error::expected(Kind::Argument, "method", all.join(", "), format!("{name:?}"))
        })
    }

    /// The first method that has all effects of these parts; LoRA of none.
    pub(super) fn of<'a>(parts: impl Iterator<Item = &'a Part> + Clone) -> &'static Method {
        let all = |m: &&Method| parts.clone().all(|p| m.has(p.effect));
        let first = parts.clone().next().map(|p| p.effect);
        let some = |m: &&Method| first.is_none_or(|e| m.has(e));
        METHODS.iter().find(all).or(METHODS.iter().find(some)).expect("every effect has a method")
    }

    /// Whether there is an α, by whose share of the rank it counts.
    pub fn scaled(&self) -> bool {
        !self.activated() && self.effects.iter().any(|e| e.rules().scaled())
    }

    /// Whether places may have ranks and αs of their own.
    pub fn patterned(&self) -> bool {
        self.scaled() && !self.allocates()
    }

    /// Whether it begins with more rank than it ends with.
    pub fn allocates(&self) -> bool {
        self.has(Effect::Triplets)
    }

    /// Whether it has inputs that can be dropped while it learns.
    pub fn drops(&self) -> bool {
        self.effects.iter().any(|e| e.rules().drops())
    }

    /// Whether it has this effect.
    pub(super) fn has(&self, effect: Effect) -> bool {
        self.effects.contains(&effect)
    }

    /// What it is at a place, which it can be fastened to.
    pub(super) fn part(&self, names: &Names, place: usize, bare: Part) -> Part {
        let effect = self.effect(names, place);
        effect.rules().shaped(Part { effect, ..bare })
    }

    /// Whether it is in front of a sequence, and so has virtual tokens.
    pub fn leads(&self) -> bool {
        self.spot() == Spot::Front
    }

    /// Whether it may learn through an encoder.
    pub fn encodes(&self) -> bool {
        self.leads() && self.effects != [Effect::Prompt]
    }

    /// What tells it from others at a place where files do not: see [`Effect`].
    pub(super) fn effect(&self, names: &Names, place: usize) -> Effect {
        (self.part)(names.last(place).unwrap_or_default())
    }

    /// Whether it has an activation, and a scale that is not an α.
    pub fn activated(&self) -> bool {
        self.effects[0].rules().activated()
    }

    /// Where it can be fastened.
    pub(super) fn spot(&self) -> Spot {
        self.effects[0].rules().spot()
    }
}
