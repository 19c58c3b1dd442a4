//! Tokens and chat text.
//!
//! [`Tokenizer`] turns bytes into token ids and back, by the rules in a file's metadata ([`Vocabulary`]):
//!
//! ```text
//! tokenizer.ggml.model   llama   neighbours with the highest score join first       spm
//!                        gpt2    byte pairs join in the order of a list             bpe, split
//!                        bert    the longest piece from the left                    wordpiece
//!                        t5      the likeliest of all spellings                     unigram
//! ```
//!
//! Special tokens are cut out first (`special`), the text between is normalised (`normaliser`), and what the tokens
//! are is kept once (`pieces`, `prefixes`). [`Stream`] gives text out as tokens come, and [`Chat`] writes conversations
//! in the words of the file's own template.
//!
//! A vocabulary comes from a file that nobody has vouched for: it is checked as a whole before it is used, and
//! nothing in it makes encoding or decoding panic or take longer than n·log n.

mod bpe;
mod chat;
mod merge;
mod normaliser;
mod pieces;
mod prefixes;
mod special;
mod split;
mod spm;
mod stream;
mod strings;
mod tokenizer;
mod unicode;
mod unigram;
mod vocabulary;
mod wordpiece;

pub use chat::{Chat, Conversation, Rendered, Turns};
pub use pieces::TokenKind;
pub use stream::Stream;
pub use strings::Strings;
pub use tokenizer::{Encode, TokenSpan, Tokenizer};
pub use vocabulary::Vocabulary;
