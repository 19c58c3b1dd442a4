//! Which places a layer is fastened to.
//!
//! A list of names between commas; a name takes every place that has a spelling which ends in it, part by part, and where
//! the layer can be:
//!
//! ```text
//! all                      every product inside the layers; not the head, as PEFT's `all-linear`
//! attn  mlp  head          the groups
//! q k v o gate up down     the products
//! attn_q  blk.0.attn_q.weight  output.weight  token_embd.weight        as GGUF calls them
//! q_proj  self_attn.q_proj  model.layers.0.self_attn.q_proj  lm_head    as PEFT calls them
//! blk.2-5.attn  layers.0.q  blk.*.ffn_*                                 ranges of layers, * inside a part
//! norms  attn_norm  ffn_norm  output_norm  input_layernorm  model.norm  the vectors of norms
//! tokens  front                                                         the embedding table; in front of sequences
//! ```

use super::layer::{Layer, Part};
use super::names::Names;
use crate::error::{Error, Findings, Kind, Result};
use crate::model::program::{Program, Spot};
use std::collections::BTreeSet;
use std::fmt;

/// A parsed list of names; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(Vec<String>);

/// The list as it was given.
impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Targets {
    /// Reads a list.
    ///
    /// # Errors
    /// `Argument` for a list without names or with an empty one.
    pub fn parse(list: &str) -> Result<Targets> {
        let names: Vec<_> = list.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            let expected = "names between commas, such as q,v or all";
            return Err(Error::expected(Kind::Argument, "targets", expected, format!("{list:?}")));
        }
        Ok(Targets(names))
    }

    /// For every place of the program, whether it is meant: products only.
    ///
    /// # Errors
    /// `Argument`: every name that means none, with those that are near it.
    pub fn select(&self, program: &Program) -> Result<Vec<bool>> {
        self.select_where(program, "a product of this model", |i| program.spot(i) == Spot::Product)
    }

    /// The same of the places that `fits` allows; `what` they are called.
    pub(super) fn select_where(
        &self,
        program: &Program,
        what: &str,
        fits: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>> {
        let names = Names::of(program);
        let spellings = |i| if fits(i) { names.spellings(i) } else { vec![] };
        let spellings: Vec<_> = names.places().map(spellings).collect();
        let mut selected = vec![false; spellings.len()];
        let mut wrong = Findings::default();
        for target in &self.0 {
            let pattern = target.strip_suffix(".weight").unwrap_or(target);
            let mut found = false;
            for (selected, spellings) in selected.iter_mut().zip(&spellings) {
                if spellings.iter().any(|s| ends_in(s, pattern)) {
                    (*selected, found) = (true, true);
                }
            }
            if !found {
                let known = spellings.iter().flatten();
                let near = near(pattern, known.map(String::as_str)).join(", ");
                wrong.push(Error::expected(
                    Kind::Argument,
                    "target",
                    format!("{what} (near: {near})"),
                    format!("{target:?}"),
                ));
            }
        }
        wrong.refuse("not all targets exist").map(|()| selected)
    }

    /// A layer of rank `rank` on every site that is meant, all numbers zero; `scale` as [`Part::scale`].
    ///
    /// # Errors
    /// As [`Targets::select`]; `Argument` for a rank or a scale that no product allows.
    pub fn layer(&self, program: &Program, rank: usize, scale: f32) -> Result<Layer> {
        if !(scale.is_finite() && scale != 0.0) {
            return Err(Error::expected(Kind::Argument, "scale", "a finite number other than 0", scale));
        }
        let selected = self.select(program)?;
        let mut wrong = Findings::default();
        let parts: Vec<_> = selected
            .iter()
            .zip(&program.sites) // products alone are meant
            .map(|(on, s)| on.then_some(Part::lora(rank, s.inputs, s.outputs, scale)))
            .collect();
        Part::check_all(&parts, program, &mut wrong);
        wrong.refuse("the layer cannot be made").map(|()| Layer::new(parts))
    }
}

/// Whether the last parts of `spelling` are what `pattern` says.
fn ends_in(spelling: &str, pattern: &str) -> bool {
    let mut have = spelling.rsplit('.');
    pattern.rsplit('.').all(|wanted| have.next().is_some_and(|part| is(part, wanted)))
}

/// One part: the same text, a number in a range `2-5`, or text with `*` for anything.
fn is(part: &str, wanted: &str) -> bool {
    if let Some((low, high)) = wanted.split_once('-')
        && let (Ok(low), Ok(high), Ok(n)) = (low.parse::<u32>(), high.parse::<u32>(), part.parse::<u32>())
    {
        return (low..=high).contains(&n);
    }
    let Some((first, rest)) = wanted.split_once('*') else { return part == wanted };
    let Some(mut part) = part.strip_prefix(first) else { return false };
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return part.ends_with(piece);
        }
        let Some(at) = part.find(piece) else { return false };
        part = &part[at + piece.len()..];
    }
    true
}

/// Up to four of the last parts of `known` that look most like the last part of `name`.
fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let end = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let all: BTreeSet<&str> = known.map(end).collect();
    let name = name.rsplit('.').next().unwrap_or(name);
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|k| distance(name, k));
    all.truncate(4);
    all
}

/// How many characters must be put in, taken out or changed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().take(100).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::names::tests::program;
    use super::*;
    use onlay_kernels::rope::Pairs;

    fn selected(list: &str) -> String {
        let program = program(Pairs::Adjacent, true);
        let on = Targets::parse(list).unwrap().select(&program).unwrap();
        on.iter().take(7).map(|on| if *on { 'x' } else { '-' }).collect()
    }

    #[test]
    fn groups_products_and_layers() {
        // blk.0: q k gate, blk.1: q k gate, head
        for (list, want) in [
            ("all", "xxxxxx-"),
            ("all,head", "xxxxxxx"),
            ("attn", "xx-xx--"),
            ("mlp", "--x--x-"),
            ("q, gate", "x-xx-x-"),
            ("attn_k", "-x--x--"),
            ("k_proj,self_attn.q_proj", "xx-xx--"),
            ("blk.1.attn_q.weight", "---x---"),
            ("model.layers.0.mlp.gate_proj", "--x----"),
            ("base_model.model.model.layers.0.mlp.gate_proj", "--x----"),
            ("blk.1.all", "---xxx-"),
            ("layers.1.attn", "---xx--"),
            ("blk.0-1.q", "x--x---"),
            ("blk.1-9.q", "---x---"),
            ("blk.*.attn_*", "xx-xx--"),
            ("*_proj", "xxxxxx-"),
            ("a*n_*", "xx-xx--"),
            ("lm_head", "------x"),
            ("token_embd.weight", "------x"),
            ("output", "------x"),
        ] {
            assert_eq!(selected(list), want, "{list}");
        }
    }

    #[test]
    fn what_means_nothing_is_listed_with_what_is_near() {
        let program = program(Pairs::Adjacent, false);
        let error = Targets::parse("q_porj,blk.7.attn_q,attn").unwrap().select(&program).unwrap_err();
        assert_eq!((error.kind(), error.findings().len()), (Kind::Argument, 2));
        let text = error.findings()[0].to_string();
        assert!(text.contains("near: q_proj, k_proj"), "{text}");
        assert!(error.findings()[1].to_string().ends_with("found \"blk.7.attn_q\""));
        assert!(Targets::parse("q,,v").is_err() && Targets::parse("").is_err());
        assert!(Targets::parse("weight").unwrap().select(&program).is_err());
    }

    #[test]
    fn layers_are_checked() {
        let program = program(Pairs::Adjacent, false);
        let layer = |list, rank, scale| Targets::parse(list).unwrap().layer(&program, rank, scale);
        assert_eq!(layer("q,head", 2, 1.0).unwrap().len(), 2 * 2 * (12 + 8) + 2 * (12 + 20));
        let error = layer("all", 5, 1.0).unwrap_err();
        assert_eq!(error.findings().len(), 2, "k has 4 outputs: {error}");
        assert!(layer("q", 0, 1.0).is_err() && layer("q", 2, f32::NAN).is_err());
    }

    #[test]
    fn distances() {
        for (a, b, d) in [("", "abc", 3), ("q_porj", "q_proj", 2), ("attn", "attn", 0), ("gat", "gate", 1)] {
            assert_eq!(distance(a, b), d);
        }
    }
}
