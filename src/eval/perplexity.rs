//! How surprised a model is by a text, on average.
//!
//! ```text
//! nll = −(1/n) Σ log p(token | those before it in its window)        perplexity = e^nll
//! ```
//! A text longer than the context is read through windows of `context` tokens; which tokens are counted, and what
//! comes before them, is [`Windows`]. Both read a window from its own position 0.

use super::score::continue_scoring;
use crate::error::{Error, Kind, Result};
use crate::model::Runner;
use crate::ops::Delta;
use crate::train::Flow;

/// How a text is read through windows of `context` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Every token but the first is counted once. Each window begins `stride` (1 to context − 1) tokens after the one
    /// before it and counts the tokens that are new, so that each has at least context − stride before it. A token
    /// that begins the text (`begin`) stands at the front of later windows too, in place of their first.
    Sliding {
        /// Tokens between the beginnings of two windows.
        stride: usize,
    },
    /// llama.cpp's definition: whole windows side by side, what is left of the text unread; the first token of each
    /// replaced by `begin`; only tokens behind the middle counted, from context/2 + 1 on.
    Halves,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// e to the mean.
    pub perplexity: f64,
    /// Mean negative log-probability of the counted tokens, in nats.
    pub nll: f64,
    /// Standard error of the perplexity, as if the tokens were independent.
    pub error: f64,
    /// Tokens that were counted.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

/// One window: where it begins in the text, how many tokens it has, and the first that it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    first: usize,
    len: usize,
    counts: usize,
}

impl Windows {
    fn over(self, n: usize, context: usize) -> Result<Vec<Window>> {
        if context < 2 {
            return Err(Error::expected(Kind::Argument, "ctx", "at least 2", context));
        }
        let argument = |expected: String, found| {
            Err(Error::expected(Kind::Argument, "tokens of the text", expected, found))
        };
        match self {
            Windows::Sliding { stride } => {
                if !(1..context).contains(&stride) {
                    let range = format!("1 to {}", context - 1);
                    return Err(Error::expected(Kind::Argument, "stride", range, stride));
                }
                if n < 2 {
                    return argument("at least 2".into(), n);
                }
                let mut windows = vec![Window { first: 0, len: n.min(context), counts: 1 }];
                let mut end = n.min(context);
                while end < n {
                    let next = end.saturating_add(stride).min(n);
                    let first = next - context;
                    windows.push(Window { first, len: context, counts: end - first });
                    end = next;
                }
                Ok(windows)
            }
            Windows::Halves => {
                if n < 2 * context {
                    return argument(format!("at least {}, two windows", 2 * context), n);
                }
                let window = |i| Window { first: i * context, len: context, counts: context / 2 + 1 };
                Ok((0..n / context).map(window).collect())
            }
        }
    }
}

/// The perplexity of a text of `tokens`, read through windows of `context`. `begin` is the token that begins texts, if
/// the model wants one: `tokens` should then begin with it. `progress(windows done, of, nll so far)` is asked after
/// every window whether to go on.
///
/// The memory is that of one window, whatever the length of the text.
///
/// # Errors
/// `Argument` for a text that is too short, or a context that the runner was not planned for; `Cancelled`; as
/// [`score`](super::score()).
pub fn perplexity(
    runner: &mut Runner,
    tokens: &[u32],
    context: usize,
    windows: Windows,
    begin: Option<u32>,
    delta: Option<&dyn Delta>,
    progress: &mut dyn FnMut(usize, usize, f64) -> Flow,
) -> Result<Perplexity> {
    runner.model().check_tokens(tokens)?;
    runner.model().check_tokens(begin.as_slice())?;
    let halves = windows == Windows::Halves;
    let windows = windows.over(tokens.len(), context)?;
    let mut sequence = runner.sequence();
    let (mut sum, mut squares, mut n) = (0.0, 0.0, 0usize);
    let mut text = Vec::with_capacity(context);
    for (i, w) in windows.iter().enumerate() {
        text.clear();
        text.extend_from_slice(&tokens[w.first..w.first + w.len]);
        if let Some(begin) = begin.filter(|_| w.first > 0 || halves) {
            text[0] = begin;
        }
        let done = continue_scoring(runner, &mut sequence, &text, w.counts, delta, &mut |p| {
            sum -= p;
            squares += p * p;
            n += 1;
        });
        runner.forget(&mut sequence);
        done?;
        if progress(i + 1, windows.len(), sum / n.max(1) as f64) == Flow::Stop && i + 1 < windows.len() {
            return Err(Error::new(Kind::Cancelled, "stopped while the text was read"));
        }
    }
    let nll = sum / n as f64;
    let variance = (squares / n as f64 - nll * nll).max(0.0);
    let perplexity = nll.exp();
    let error = perplexity * (variance / (n.max(2) - 1) as f64).sqrt();
    Ok(Perplexity { perplexity, nll, error, tokens: n, windows: windows.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sliding_windows_count_every_token_once() {
        for n in 2..40 {
            for context in 2..12 {
                for stride in 1..context {
                    let windows = Windows::Sliding { stride }.over(n, context).unwrap();
                    let mut next = 1;
                    for w in &windows {
                        assert_eq!(w.first + w.counts, next);
                        assert!(w.len <= context && w.counts >= 1 && w.counts < w.len);
                        assert!(w.first == 0 || w.counts >= context - stride, "{w:?}");
                        next = w.first + w.len;
                    }
                    assert_eq!(next, n);
                }
            }
        }
        assert!(Windows::Sliding { stride: 4 }.over(9, 4).is_err());
        assert!(Windows::Sliding { stride: 1 }.over(1, 4).is_err());
        assert!(Windows::Sliding { stride: usize::MAX }.over(1, 1).is_err());
    }

    #[test]
    fn halves_are_those_of_llama_cpp() {
        let windows = Windows::Halves.over(1100, 512).unwrap();
        assert_eq!(windows.len(), 2);
        // n_ctx - n_ctx/2 - 1 tokens of each
        assert!(windows.iter().all(|w| w.len - w.counts == 512 - 256 - 1));
        assert!(Windows::Halves.over(1023, 512).is_err());
    }
}
