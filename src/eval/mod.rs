//! How good a model is: probabilities of given texts, and what a layer changes where nothing was to change.

mod forgetting;
mod perplexity;
mod score;

pub use forgetting::{Forgetting, forgetting, within};
pub use perplexity::{Perplexity, Windows, perplexity};
pub use score::score;
