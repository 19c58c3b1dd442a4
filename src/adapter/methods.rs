//! The methods there are: what `--method` says, what a manifest names, and which effects a layer of each consists of.

use super::layer::{Effect, Part};
use super::names::Names;
use crate::error::{Error, Kind, Result};
use crate::ops::Site;

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
    /// By how much to learn faster than LoRA, to begin with: vectors want more than matrices (VeRA's paper has 10 to 25 times
    /// LoRA's rate, T-Few's (IA)³ 15 times).
    pub pace: f64,
    /// Whether it has a rank.
    pub ranked: bool,
    /// Whether every place has a rank, an α and a B of its own.
    pub paired: bool,
    /// What it is at a site, with rank and scale where it has them.
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
        part: |_| Effect::Vera,
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

    /// The method whose effects these parts have.
    pub(super) fn of<'a>(mut parts: impl Iterator<Item = &'a Part>) -> &'static Method {
        let name = match parts.next().map(|p| p.effect) {
            None | Some(Effect::Lora) => "lora",
            Some(Effect::Dora) => "dora",
            Some(Effect::Outputs | Effect::Inputs) => "ia3",
            Some(Effect::Vera) => "vera",
        };
        METHODS.iter().find(|m| m.name == name).expect("every effect has a method")
    }

    /// What it is at a site.
    pub(super) fn part(
        &self,
        names: &Names,
        site: Site,
        rank: usize,
        scale: f32,
        shape: (usize, usize),
    ) -> Part {
        let effect = (self.part)(names.last(site).unwrap_or_default());
        let (inputs, outputs) = shape;
        match effect {
            Effect::Lora | Effect::Dora => Part { effect, ..Part::lora(rank, inputs, outputs, scale) },
            Effect::Vera => Part { effect, ..Part::lora(rank, inputs, outputs, 1.0) },
            Effect::Outputs | Effect::Inputs => Part { effect, inputs, outputs, ..Part::default() },
        }
    }
}
