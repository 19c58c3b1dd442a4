//! Opening a model file.

use super::bind::Bound;
use super::families::{self, Hyper};
use super::program::Program;
use crate::error::{Error, Kind, Place, Result};
use crate::tensor::Weights;
use crate::text::Tokenizer;
use std::path::Path;
use std::sync::Arc;

/// A program, bound weights and a tokenizer: immutable, shared by everything that serves or trains.
#[derive(Debug)]
pub struct Model {
    weights: Arc<Weights>,
    program: Program,
    bound: Bound,
    tokenizer: Option<Tokenizer>,
}

impl Model {
    /// Maps the file (or the files of a split model), builds its family's program and binds it. Reads metadata and
    /// small vectors; the matrices stay in the map untouched.
    ///
    /// # Errors
    /// `Io`, `Format`; `Unsupported` for an architecture or a tensor type this version does not do; everything that is
    /// wrong with names, shapes and numbers at once.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        let weights = Arc::new(Weights::open(path.as_ref())?);
        Self::from_weights(Arc::clone(&weights)).map_err(|e| e.in_file(weights.path()))
    }

    fn from_weights(weights: Arc<Weights>) -> Result<Model> {
        let metadata = weights.metadata();
        if let Some(kind) = metadata.text("general.type")?
            && kind != "model"
        {
            let place = Place::Key("general.type".into());
            return Err(Error::expected(Kind::Argument, "file", "a model", format!("{kind:?}")).at(place));
        }
        let architecture = metadata.need_text("general.architecture")?;
        let family = families::named(architecture)?;
        let program = (family.build)(&Hyper::new(&weights, architecture))?;
        let bound = Bound::new(&program, Arc::clone(&weights))?;
        let tokenizer = match metadata.text("tokenizer.ggml.model")? {
            None | Some("no_vocab" | "none") => None,
            Some(_) => Some(Tokenizer::from_metadata(metadata)?),
        };
        if let Some(t) = &tokenizer
            && t.len() > program.vocabulary
        {
            let place = Place::Key("tokenizer.ggml.tokens".into());
            let most = format!("at most the {} rows of token_embd.weight", program.vocabulary);
            return Err(Error::expected(Kind::Mismatch, "tokens", most, t.len()).at(place));
        }
        Ok(Model { weights, program, bound, tokenizer })
    }

    /// The mapped file.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Bound weights.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `Unsupported` if the file has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let place = Place::Key("tokenizer.ggml.model".into());
            Error::new(Kind::Unsupported, "the file has no tokenizer").at(place).in_file(self.weights.path())
        })
    }

    /// Whether there is a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Checks token ids that come from outside.
    ///
    /// # Errors
    /// `Argument` naming the first that is not in the vocabulary.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let most = self.program.vocabulary;
        match tokens.iter().enumerate().find(|(_, t)| **t as usize >= most) {
            None => Ok(()),
            Some((i, t)) => {
                Err(Error::expected(Kind::Argument, &format!("token {i}"), format!("below {most}"), t))
            }
        }
    }
}
