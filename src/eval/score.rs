//! How probable a text is to a model.
//!
//! ```text
//! score[0] = None        score[t] = log p(token t | tokens 0 … t−1) = z[token t] − log Σ e^z
//! ```
//! z are the logits after token t−1: one forward pass in steps of as many rows as the runner was planned for. As every
//! row is computed alike whatever its company, the numbers are the same to the bit however the text is cut.

use crate::error::{Error, Kind, Result};
use crate::model::{Runner, Sequence, Wanted};
use crate::ops::Delta;
use onlay_kernels::softmax::log_sum_exp;

/// The natural-log probability of each token given those before it; nothing comes before the first.
///
/// # Errors
/// `Argument` for a token outside the vocabulary or more tokens than the runner's context has positions (the last
/// needs none); `Memory` if its cache is full; `Numeric` if a logit is not finite.
pub fn score(runner: &mut Runner, tokens: &[u32], delta: Option<&dyn Delta>) -> Result<Vec<Option<f64>>> {
    let mut scores = Vec::with_capacity(tokens.len());
    scores.extend(tokens.first().map(|_| None));
    runner.model().check_tokens(tokens)?;
    let mut sequence = runner.sequence();
    let done = continue_scoring(runner, &mut sequence, tokens, 1, delta, &mut |p| scores.push(Some(p)));
    runner.forget(&mut sequence);
    done.map(|()| scores)
}

/// Feeds `tokens`, all but the last, to an empty sequence, and gives the log-probabilities of those from `from` (at
/// least 1) on.
pub(super) fn continue_scoring(
    runner: &mut Runner,
    sequence: &mut Sequence,
    tokens: &[u32],
    from: usize,
    delta: Option<&dyn Delta>,
    take: &mut dyn FnMut(f64),
) -> Result<()> {
    let Some(fed) = tokens.len().checked_sub(1) else { return Ok(()) };
    let level = runner.options().level;
    // The logits after token t are about token t + 1: before `from` − 1 nobody wants them.
    let unscored = (from - 1).min(fed);
    runner.feed(sequence, &tokens[..unscored], delta, Wanted::Nothing, &mut |_, _| {})?;
    let mut bad = None;
    runner.feed(sequence, &tokens[unscored..fed], delta, Wanted::All, &mut |t, z| {
        let target = unscored + t + 1;
        let p = f64::from(z[tokens[target] as usize]) - log_sum_exp(level, z);
        if !p.is_finite() {
            bad.get_or_insert(target);
        }
        take(p);
    })?;
    match bad {
        None => Ok(()),
        Some(target) => {
            let what = format!("log-probability of token {target}");
            Err(Error::expected(Kind::Numeric, &what, "a finite number", "logits that are not"))
        }
    }
}
