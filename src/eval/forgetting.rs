//! What a layer changes where nothing was to change: forgetting as a number.
//!
//! ```text
//! loss   −(1/n) Σ log p(token | those before)            of the base, and with the layer on
//! KL     (1/n) Σ Σᵥ p_base(v)·(log p_base(v) − log p_layer(v))          0 where both say the same
//! ```
//! over the n trained tokens of control rows, in nats per token. The base is the same pass with the layer off: same
//! weights, same memory.

use crate::error::{Error, Kind, Result};
use crate::model::{Runner, Wanted};
use crate::ops::Delta;
use crate::train::{Example, Flow};
use onlay_kernels::softmax::log_sum_exp;

/// The most memory for logits of the base that wait for those of the layer.
const WAITING: usize = 16 << 20;

/// Scales that are tried are multiples of 1/256.
const FINEST: u32 = 256;

/// What came out, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forgetting {
    /// Tokens that were counted.
    pub tokens: usize,
    /// Loss of the base.
    pub before: f64,
    /// Loss with the layer.
    pub after: f64,
    /// Mean divergence of the layer's answers from the base's.
    pub kl: f64,
}

/// Measures a layer on control rows. The runner must be planned for two sequences of the longest row.
/// `progress(done, of)` is asked after every row whether to go on.
///
/// # Errors
/// `Data` if no token is counted; `Numeric` if a probability is not a number; `Cancelled`; as
/// [`score`](super::score()).
pub fn forgetting(
    runner: &mut Runner,
    rows: &[Example],
    layer: &dyn Delta,
    progress: &mut dyn FnMut(usize, usize) -> Flow,
) -> Result<Forgetting> {
    let mut all = Forgetting { tokens: 0, before: 0.0, after: 0.0, kl: 0.0 };
    for (i, row) in rows.iter().enumerate() {
        let mut both = [runner.sequence(), runner.sequence()];
        let done = one(runner, &mut both, row, layer, &mut all);
        both.iter_mut().for_each(|sequence| runner.forget(sequence));
        done.map_err(|e| Error::new(e.kind(), format!("control sequence {i}: {e}")))?;
        if progress(i + 1, rows.len()) == Flow::Stop && i + 1 < rows.len() {
            return Err(Error::new(Kind::Cancelled, "stopped while the control rows were read"));
        }
    }
    if all.tokens == 0 {
        return Err(Error::expected(Kind::Data, "trained tokens of the control rows", "at least 1", 0));
    }
    let n = all.tokens as f64;
    // rounding may leave less than nothing
    Ok(Forgetting { before: all.before / n, after: all.after / n, kl: (all.kl / n).max(0.0), ..all })
}

/// Adds one row: in pieces, each through the base and then through the layer.
fn one(
    runner: &mut Runner,
    [base, worn]: &mut [crate::model::Sequence; 2],
    row: &Example,
    layer: &dyn Delta,
    all: &mut Forgetting,
) -> Result<()> {
    runner.model().check_tokens(&row.tokens)?;
    let (level, vocabulary) = (runner.options().level, runner.model().program().vocabulary);
    let piece = (WAITING / (4 * vocabulary)).clamp(1, 64);
    let mut waiting: Vec<f32> = Vec::new();
    for first in (0..row.rows()).step_by(piece) {
        let last = row.rows().min(first + piece);
        let tokens = &row.tokens[first..last];
        // The logits after a token are about the one after it.
        let counted: Vec<bool> = row.trained[first + 1..=last].to_vec();
        if !counted.contains(&true) {
            runner.feed(base, tokens, None, Wanted::Nothing, &mut |_, _| {})?;
            runner.feed(worn, tokens, Some(layer), Wanted::Nothing, &mut |_, _| {})?;
            continue;
        }
        waiting.clear();
        runner.feed(base, tokens, None, Wanted::All, &mut |t, z| {
            if counted[t] {
                waiting.extend_from_slice(z);
            }
        })?;
        let mut was = waiting.chunks_exact(vocabulary);
        runner.feed(worn, tokens, Some(layer), Wanted::All, &mut |t, z| {
            let Some(b) = counted[t].then(|| was.next()).flatten() else { return };
            let target = row.tokens[first + t + 1] as usize;
            let (sum_b, sum_z) = (log_sum_exp(level, b), log_sum_exp(level, z));
            all.tokens += 1;
            all.before += sum_b - f64::from(b[target]);
            all.after += sum_z - f64::from(z[target]);
            let terms = b.iter().zip(z).map(|(b, z)| {
                let (b, z) = (f64::from(*b) - sum_b, f64::from(*z) - sum_z);
                b.exp() * (b - z)
            });
            all.kl += terms.sum::<f64>();
        })?;
        if ![all.before, all.after, all.kl].iter().all(|v| v.is_finite()) {
            return Err(Error::expected(
                Kind::Numeric,
                "log-probabilities",
                "finite numbers",
                "some that are not",
            ));
        }
    }
    Ok(())
}

/// Looks for the largest scale of a layer at which its divergence stays within `limit`, by halving: the whole layer
/// first, then eight scales between. `measure(scale)` says what a scale does. `None` if not even 1/256 of it does.
///
/// # Errors
/// As `measure`; `Argument` for a limit that is not above 0.
pub fn within(
    limit: f64,
    measure: &mut dyn FnMut(f32) -> Result<Forgetting>,
) -> Result<Option<(f32, Forgetting)>> {
    if !(limit > 0.0 && limit.is_finite()) {
        return Err(Error::expected(Kind::Argument, "max-forgetting", "a finite number above 0", limit));
    }
    let whole = measure(1.0)?;
    if whole.kl <= limit {
        return Ok(Some((1.0, whole)));
    }
    let (mut fits, mut breaks, mut found) = (0, FINEST, None);
    while breaks - fits > 1 {
        let at = (fits + breaks) / 2;
        let scale = at as f32 / FINEST as f32;
        let there = measure(scale)?;
        if there.kl <= limit {
            (fits, found) = (at, Some((scale, there)));
        } else {
            breaks = at;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_scale_that_keeps_the_limit() {
        let mut asked = 0;
        let mut square = |s: f32| {
            asked += 1;
            let kl = f64::from(s * s);
            Ok(Forgetting { tokens: 1, before: 1.0, after: 1.0, kl })
        };
        let (scale, found) = within(0.25, &mut square).unwrap().unwrap();
        assert_eq!((scale, found.kl), (0.5, 0.25));
        assert_eq!(within(0.2, &mut square).unwrap().unwrap().0, 114.0 / 256.0);
        assert_eq!(within(1.0, &mut square).unwrap().unwrap().0, 1.0);
        assert!(within(1e-9, &mut square).unwrap().is_none());
        assert!(within(0.0, &mut square).is_err() && within(f64::NAN, &mut square).is_err());
        assert_eq!(asked, 9 + 9 + 1 + 9);
    }
}
