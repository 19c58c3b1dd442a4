//! Tokens given by hand, and texts that become tokens.

use super::text;
use anyhow::Result;
use clap::Args;
use onlay::tensor::Weights;
use onlay::text::{Encode, Tokenizer};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Token ids as one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids(pub Vec<u32>);

/// `1,2,3` or `1 2 3`, as `tokenize` prints them.
pub fn ids(list: &str) -> Result<Ids, String> {
    let apart = |c: char| c == ',' || c.is_ascii_whitespace();
    let words = list.trim().split(apart).filter(|w| !w.is_empty());
    let one = |w: &str| w.parse().map_err(|_| format!("expected numbers such as 1,2,3, found {w:?}"));
    words.map(one).collect::<Result<_, _>>().map(Ids)
}

/// How text becomes tokens.
#[derive(Args, Clone, Copy)]
pub struct Special {
    /// Add no tokens that begin or end a text
    #[arg(long)]
    pub no_special: bool,
    /// Control tokens written out in the text (such as <|im_end|>) become those tokens; otherwise they are plain text
    #[arg(long)]
    pub parse_special: bool,
}

impl Special {
    pub fn options(self) -> Encode {
        Encode { special: !self.no_special, parse_special: self.parse_special }
    }
}

/// A text on the command line or in a file.
#[derive(Args, Clone)]
#[group(multiple = false)]
pub struct Text {
    /// The text; its bytes are taken as they are
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Option<OsString>,
    /// A file with the text, every byte of it taken as it is; - is stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

impl Text {
    /// Its bytes; `None` if neither was given.
    pub fn bytes(&self) -> Result<Option<Vec<u8>>> {
        match (&self.text, &self.file) {
            (Some(text), _) => Ok(Some(text.as_encoded_bytes().to_vec())),
            (None, Some(path)) => text::read(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The file and its tokenizer; the file may hold nothing else.
pub fn vocabulary(path: &Path) -> Result<(Weights, Tokenizer)> {
    let weights = Weights::open(path)?;
    let tokenizer = Tokenizer::from_metadata(weights.metadata()).map_err(|e| e.in_file(path))?;
    Ok((weights, tokenizer))
}

/// Checks tokens given by hand against a vocabulary of `n`.
pub fn known(ids: &[u32], n: usize) -> Result<()> {
    match ids.iter().enumerate().find(|(_, t)| **t as usize >= n) {
        None => Ok(()),
        Some((i, t)) => anyhow::bail!("token {i}: expected below {n}, the size of the vocabulary, found {t}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_by_hand() {
        assert_eq!(ids("1,2, 3"), Ok(Ids(vec![1, 2, 3])));
        assert_eq!(ids("1 2\n"), Ok(Ids(vec![1, 2])));
        assert_eq!(ids(""), Ok(Ids(vec![])));
        assert!(
            ids("1,x").unwrap_err().contains("\"x\"") && ids("-1").is_err() && ids("4294967296").is_err()
        );
    }
}
