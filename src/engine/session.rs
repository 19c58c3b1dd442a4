//! An engine and its sessions.
//!
//! A session's cached keys and values belong to the layer they were computed with. When it puts on another layer, or
//! takes it off, what was cached is computed again: outputs are those of a session that had worn it from the start. What a
//! layer has in front of a sequence is no token of the session's, and nobody sees it.

use crate::backend::Device;
use crate::error::{Error, Kind, Result};
use crate::model::{Memory, Model, Options, Request, Runner, Sequence, Wanted};
use crate::ops::kv::Precision;
use crate::ops::{Delta, Room};
use crate::tensor::{Team, Threads};
use onlay_kernels::Level;
use std::sync::Arc;

/// A layer that sessions share.
pub type Layer = Arc<dyn Delta>;

/// What an engine is planned for.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Threads; `None`: as many as there are cores, up to 16.
    pub threads: Option<usize>,
    /// They let every other program go first ([`Threads`]).
    pub polite: bool,
    /// Tokens of each session. Positions that a layer has in front of it do not count where `room` has them; where it does
    /// not, the session has so many tokens less.
    pub context: usize,
    /// Sessions at once.
    pub sessions: usize,
    /// Rows of a step: how much of a prompt is computed at a time.
    pub rows: usize,
    /// Rounding of keys and values.
    pub kv: Precision,
    /// For the largest adapters that will be worn together (`Worn::room`).
    pub room: Room,
    /// What computes.
    pub device: Device,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            threads: None,
            polite: false,
            context: 2048,
            sessions: 1,
            rows: 512,
            kv: Precision::F16,
            room: Room::default(),
            device: Device::Host,
        }
    }
}

impl EngineOptions {
    fn runner(&self, level: Level) -> Options {
        Options {
            level,
            threads: Threads { count: self.threads.unwrap_or_else(Team::default_len), polite: self.polite },
            positions: self.context * self.sessions,
            sequences: self.sessions,
            context: self.context,
            // a step of all sessions' next tokens must fit too
            rows: self.rows.min(self.context).max(self.sessions),
            kv: self.kv,
            room: self.room,
            device: self.device,
        }
    }
}

/// A model with memory and threads to run sessions.
#[derive(Debug)]
pub struct Engine {
    pub(super) runner: Runner,
}

/// What one conversation has said so far. Give it back with [`Engine::close`].
pub struct Session {
    pub(super) tokens: Vec<u32>,
    pub(super) sequence: Sequence,
    layer: Option<Layer>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session of {} tokens, {} cached", self.tokens.len(), self.sequence.len())
    }
}

impl Session {
    /// Everything said so far, by whomever.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Puts a layer on, or takes it off. What is cached belongs to the old one and will be computed again, with what the new
    /// one has in front of sequences.
    pub fn wear(&mut self, layer: Option<Layer>) {
        let same = match (&self.layer, &layer) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if !same {
            self.layer = layer;
            self.sequence.truncate(0);
        }
    }

    /// The layer it wears.
    pub fn layer(&self) -> Option<&Layer> {
        self.layer.as_ref()
    }

    /// Forgets everything after the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.sequence.truncate(len);
    }
}

impl Engine {
    /// The bytes [`Engine::new`] will hold, besides the map.
    ///
    /// # Errors
    /// `Argument` if `ONLAY_LEVEL` names a level this machine does not execute.
    pub fn plan(model: &Model, options: &EngineOptions) -> Result<Memory> {
        Ok(Runner::plan(model, &options.runner(level()?)))
    }

    /// Allocates what the plan says.
    ///
    /// # Errors
    /// `Argument` for options out of range, `Memory` if the system does not give it.
    pub fn new(model: Arc<Model>, options: &EngineOptions) -> Result<Self> {
        Ok(Engine { runner: Runner::new(model, options.runner(level()?))? })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.runner.model()
    }

    /// The memory and threads themselves, for scoring.
    pub fn runner(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Tokens of a session.
    pub fn context(&self) -> usize {
        self.runner.options().context
    }

    /// A new session that wears nothing.
    pub fn session(&self) -> Session {
        Session { tokens: Vec::with_capacity(self.context()), sequence: self.runner.sequence(), layer: None }
    }

    /// Takes a session's place in the cache back.
    pub fn close(&mut self, mut session: Session) {
        self.runner.forget(&mut session.sequence);
    }

    /// Appends tokens to what a session has said; they are computed when the next token is asked for.
    ///
    /// # Errors
    /// `Argument` if they are not in the vocabulary or the session would outgrow its context.
    pub fn append(&self, session: &mut Session, tokens: &[u32]) -> Result<()> {
        self.model().check_tokens(tokens)?;
        let len = session.tokens.len() + tokens.len();
        let most = self.runner.options().most_tokens(session.layer.as_deref());
        if len > most {
            let most = format!("at most {most} tokens (--ctx)");
            return Err(Error::expected(Kind::Argument, "length of the session", most, len));
        }
        session.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Computes what sessions have said and are not yet cached, all together, and gives each one's logits after its
    /// last token to `take(session, logits)`.
    ///
    /// # Errors
    /// `Argument` if a session has said nothing; otherwise as [`Runner::step`].
    pub fn advance(
        &mut self,
        sessions: &mut [&mut Session],
        take: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<()> {
        let rows = self.runner.options().rows;
        for session in sessions.iter_mut() {
            if session.tokens.is_empty() {
                return Err(Error::expected(Kind::Argument, "tokens of a session", "at least 1", 0));
            }
            // The last token is always computed: its logits are wanted.
            session.sequence.truncate(session.tokens.len() - 1);
            // Prompts that are longer than a step go ahead alone; what is left goes together, with the last token: a
            // step for that alone would read all weights once more.
            while session.tokens.len() - session.sequence.len() > rows {
                let from = session.sequence.len();
                let request = Request {
                    sequence: &mut session.sequence,
                    tokens: &session.tokens[from..from + rows],
                    delta: session.layer.as_deref(),
                    wanted: Wanted::Nothing,
                };
                self.runner.step(&mut [request], &mut |_, _, _| {})?;
            }
        }
        let mut first = 0;
        while first < sessions.len() {
            let mut sum = 0;
            let mut fits = |s: &&mut Session| {
                sum += s.tokens.len() - s.sequence.len();
                sum <= rows
            };
            let n =
                sessions[first..].iter().take(crate::model::MOST_SEQUENCES).take_while(|s| fits(s)).count();
            let part = &mut sessions[first..first + n];
            self.together(part, &mut |i, z| take(first + i, z))?;
            first += n;
        }
        Ok(())
    }

    /// One step of sessions whose missing tokens fit it.
    fn together(
        &mut self,
        sessions: &mut [&mut Session],
        take: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<()> {
        if let [session] = sessions {
            return self.runner.step(&mut [request(session)], &mut |i, _, z| take(i, z));
        }
        let mut requests: Vec<Request<'_>> = sessions.iter_mut().map(|s| request(s)).collect();
        self.runner.step(&mut requests, &mut |i, _, z| take(i, z))
    }
}

fn request<'a>(session: &'a mut Session) -> Request<'a> {
    let from = session.sequence.len();
    Request {
        sequence: &mut session.sequence,
        tokens: &session.tokens[from..],
        delta: session.layer.as_deref(),
        wanted: Wanted::Last,
    }
}

fn level() -> Result<Level> {
    Level::chosen().map_err(|text| Error::new(Kind::Argument, text))
}
