//! The layer that a run begins with, from C's options.
//!
//! Numbers that only some methods have come as a JSON object, `layer_options`, by the names of `onlay train`'s flags:
//!
//! ```text
//! "rank-pattern" "alpha-pattern" "init" "activation" "scale"    texts, as there
//! "rslora"                                                      true or false
//! "virtual-tokens" "encoder" "target-rank" "tinit" "tfinal" "delta-t"     integers
//! "orthogonality"                                               a number
//! "tokens"                                                      a list of token numbers
//! ```

use super::failure::{Done, Failure};
use super::structs::{TrainOptions, count, path, utf8};
use crate::adapter::manifest::Hash;
use crate::adapter::{Activation, Adapter, Init, Lora, Method, New, Places, Scaling, Targets};
use crate::error::{Error, Findings, Kind, Place, Result};
use crate::model::Model;
use crate::tensor::Threads;
use onlay_kernels::Level;
use serde_json::{Map, Value};

/// The rank that options begin with.
const RANK: u64 = 16;

/// The layer before the first step, the same in a run that is resumed, and the id of the one that it continues.
pub(super) fn layer(o: &TrainOptions, model: &Model, threads: Threads) -> Done<(Lora, Option<Hash>)> {
    let from = o.init_adapter.bytes("init_adapter")?;
    if !from.is_empty() {
        let (parent, _) = Adapter::open(path(from, "init_adapter")?, model)?;
        return Ok((parent.to_lora(), Some(*parent.id())));
    }
    let method = match utf8(o.method.bytes("method")?, "method")? {
        "" => Method::named("lora")?,
        name => Method::named(name)?,
    };
    if !method.ranked && o.rank != RANK {
        return Err(Failure::argument(format!("rank: {} has none", method.name)));
    }
    let mut new = New::of(method);
    new.rank = count(o.rank, 1, 1 << 16, "rank")?;
    new.alpha = (o.alpha != 0.0).then_some(o.alpha);
    new.seed = o.seed;
    let targets = utf8(o.targets.bytes("targets")?, "targets")?;
    if !targets.is_empty() {
        new.targets = Some(Targets::parse(targets)?);
    }
    let options = utf8(o.layer_options.bytes("layer_options")?, "layer_options")?;
    if !options.is_empty() {
        read(&mut new, options).map_err(|e| e.at(Place::Key("layer_options".into())))?;
    }
    let level = Level::chosen().map_err(Failure::argument)?;
    Ok((new.layer(model, level, threads)?, None))
}

/// Reads `layer_options` into what is asked for: everything wrong with them at once.
fn read(new: &mut New, text: &str) -> Result<()> {
    let all: Map<String, Value> = serde_json::from_str(text)
        .map_err(|e| Error::new(Kind::Argument, format!("expected a JSON object: {e}")))?;
    let mut wrong = Findings::default();
    for (key, value) in &all {
        wrong.keep(one(new, key, value).map_err(|e| e.at(Place::Key(key.chars().take(80).collect()))));
    }
    wrong.refuse("the layer cannot be made")
}

fn one(new: &mut New, key: &str, value: &Value) -> Result<()> {
    let bad = |expected: &str| {
        let found: String = value.to_string().chars().take(80).collect();
        Error::expected(Kind::Argument, "value", expected, found)
    };
    let text = || value.as_str().ok_or_else(|| bad("a text"));
    let number = || value.as_u64().ok_or_else(|| bad("an integer from 0"));
    let size = || usize::try_from(number()?).map_err(|_| bad("a smaller integer"));
    let budget = |new: &mut New| new.budget.unwrap_or_default();
    match key {
        "rank-pattern" => new.ranks = Places::parse(text()?)?,
        "alpha-pattern" => new.alphas = Places::parse(text()?)?,
        "init" => new.init = Init::named(text()?)?,
        "activation" => {
            let named = Activation::named(text()?).ok_or_else(|| bad("tanh, relu, gelu or silu"))?;
            new.activation = Some(named);
        }
        "scale" => new.scaling = Some(Scaling::parse(text()?)?),
        "rslora" => new.stabilised = value.as_bool().ok_or_else(|| bad("true or false"))?,
        "virtual-tokens" => new.virtual_tokens = Some(size()?),
        "encoder" => new.encoder = Some(size()?),
        "target-rank" => new.budget = Some(crate::adapter::Budget { target: Some(size()?), ..budget(new) }),
        "tinit" => new.budget = Some(crate::adapter::Budget { tinit: Some(number()?), ..budget(new) }),
        "tfinal" => new.budget = Some(crate::adapter::Budget { tfinal: Some(number()?), ..budget(new) }),
        "delta-t" => new.budget = Some(crate::adapter::Budget { every: Some(number()?), ..budget(new) }),
        "orthogonality" => {
            let weight = value.as_f64().ok_or_else(|| bad("a number"))?;
            new.budget = Some(crate::adapter::Budget { orthogonality: weight, ..budget(new) });
        }
        "tokens" => {
            let one = |v: &Value| v.as_u64().and_then(|t| u32::try_from(t).ok());
            let all = value.as_array().and_then(|all| all.iter().map(one).collect::<Option<_>>());
            new.tokens = all.ok_or_else(|| bad("a list of token numbers"))?;
        }
        _ => {
            let known = "rank-pattern, alpha-pattern, init, activation, scale, rslora, virtual-tokens, encoder, \
                         target-rank, tinit, tfinal, delta-t, orthogonality, tokens";
            return Err(Error::new(Kind::Argument, format!("is not known; there are {known}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_wrong_is_said_at_once() {
        let mut new = New::of(Method::named("prefix").unwrap());
        read(&mut new, r#"{"virtual-tokens": 5, "encoder": 7, "tokens": [1, 2], "tinit": 3}"#).unwrap();
        assert_eq!((new.virtual_tokens, new.encoder, &new.tokens[..]), (Some(5), Some(7), &[1, 2][..]));
        assert_eq!(new.budget.unwrap().tinit, Some(3));
        let error = read(&mut new, r#"{"virtual-tokens": -1, "scale": "x", "tokens": [-1], "colour": 1}"#);
        let error = error.unwrap_err();
        assert_eq!(error.findings().len(), 4, "{error}");
        assert!(read(&mut new, "[]").is_err() && read(&mut new, "{").is_err());
    }
}
