//! How good a model is: probabilities of given texts.

mod perplexity;
mod score;

pub use perplexity::{Perplexity, Windows, perplexity};
pub use score::score;
