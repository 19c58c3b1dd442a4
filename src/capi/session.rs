//! Sessions: what was said, what is attached, and generating.

use super::adapter::Layer;
use super::boundary::{
    Buffer, Handle, HandleOut, In, Place, StructIn, StructOut, Text, export, export_plain,
};
use super::failure::{BUSY, Done, Failure, PANIC};
use super::model::{Base, encode};
use super::structs::{
    CONTEXT, GenerateOptions, Generated, SessionOptions, context, count, device, flag, precision, reserved,
    threads, utf8,
};
use crate::adapter::{Adapter, Worn};
use crate::backend::Device;
use crate::engine::{Choice, End, Engine, EngineOptions, Flow, Limits, Sampler, Session};
use crate::error::{Error, Kind};
use crate::model::{Memory, Model};
use crate::ops::{Delta, Room};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

type TextCallback = Option<extern "C" fn(*mut c_void, *const u8, usize) -> c_int>;

/// Stop strings of one call.
const MOST_STOPS: u64 = 1024;

/// An `onlay_session`: an engine of one session, behind a lock that is only ever tried.
pub struct Seat {
    model: Arc<Model>,
    /// What the engine has for layers.
    room: Room,
    state: Mutex<State>,
}

/// What a call on a session works with.
pub struct State {
    engine: Engine,
    session: Session,
    /// What is attached, in this order.
    stack: Vec<(Arc<Adapter>, f32)>,
}

impl Seat {
    pub(super) fn lock(&self) -> Done<MutexGuard<'_, State>> {
        self.state.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Failure::new(BUSY, "the session is in another call"),
            TryLockError::Poisoned(_) => {
                Failure::new(PANIC, "an earlier call on this session broke off; it can only be freed")
            }
        })
    }

    /// Changes what is attached, if all of it can be worn.
    fn wear(&self, state: &mut State, stack: Vec<(Arc<Adapter>, f32)>) -> Done {
        let program = self.model.program();
        let worn = Worn::new(&self.model, stack)?;
        let room = worn.room(program);
        // positions in front that are not planned for are taken from the context
        if !self.room.holds(Room { lead: 0, ..room }) {
            let most = format!("at most {} (adapter_rank of the session)", self.room);
            return Err(Error::expected(Kind::Argument, "adapters", most, room).into());
        }
        state.stack = worn.stack().to_vec();
        state.session.wear(worn.delta().is_some().then(|| Arc::new(worn.clone()) as Arc<dyn Delta>));
        Ok(())
    }
}

/// Virtual tokens of adapters that a session has positions for.
const LEAD: usize = 64;

fn plan(model: &Model, options: &StructIn<SessionOptions>) -> Done<(EngineOptions, Memory)> {
    let o = options.read("options")?;
    let rank = count(o.adapter_rank.into(), 0, 1 << 16, "adapter_rank")?;
    let hidden = model.program().widest(|_| rank);
    let device = device(&o.device, o.gpu_memory)?;
    let longest = model.program().sites.iter().map(|s| s.inputs).max().unwrap_or(0);
    let options = EngineOptions {
        threads: threads(o.threads)?,
        polite: flag(o.polite, "polite")?,
        context: context(o.context, CONTEXT, model)?,
        sessions: 1,
        rows: count(o.rows, 1, 1 << 16, "rows")?,
        kv: precision(o.kv)?,
        // what a layer of this rank around every product would need
        room: match (rank, device) {
            (0, _) => Room::default(),
            (_, Device::Host) => Room { hidden, entered: longest, lead: LEAD },
            // where nothing else than such layers can be worn
            _ => Room { hidden, ..Room::default() },
        },
        device,
    };
    let memory = Engine::plan(model, &options)?;
    Ok((options, memory))
}

/// Refuses what the system would not give, before any part of it is asked for.
pub(super) fn room_for(memory: &Memory) -> Done {
    let bytes = memory.total();
    let there = usize::try_from(bytes).is_ok_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok());
    if there {
        return Ok(());
    }
    Err(Error::new(Kind::Memory, format!("the system does not give {bytes} bytes")).into())
}

fn choice(o: &GenerateOptions) -> Done<Choice> {
    Ok(Choice {
        temperature: o.temperature,
        top_k: count(o.top_k, 0, u64::MAX, "top_k")?,
        top_p: o.top_p,
        min_p: o.min_p,
        repeat_penalty: o.repeat_penalty,
        repeat_window: count(o.repeat_window, 0, u64::MAX, "repeat_window")?,
        bias: Vec::new(),
        seed: o.seed,
    })
}

fn limits(o: &GenerateOptions) -> Done<Limits> {
    let n = count(o.stop_len as u64, 0, MOST_STOPS, "stop_len")?;
    let stop = Text::list(&o.stop, n, "stop")?;
    let stop = stop.iter().map(|t| Ok(utf8(t.bytes("stop")?, "stop")?.to_owned()));
    Ok(Limits {
        tokens: count(o.max_tokens, 0, u64::MAX, "max_tokens")?,
        stop: stop.collect::<Done<_>>()?,
        raw: flag(o.raw, "raw")?,
    })
}

fn end(end: End) -> i32 {
    match end {
        End::Model => 1,
        End::StopString => 2,
        End::Length => 3,
        End::Context => 4,
        End::Caller => 5,
    }
}

export! {
    fn onlay_session_plan(model: Handle<Base>, options: StructIn<SessionOptions>, bytes: Place<u64>) {
        let (_, memory) = plan(&model.get("model")?.model, &options)?;
        bytes.set(memory.total(), "bytes")
    }

    fn onlay_session_new(model: Handle<Base>, options: StructIn<SessionOptions>, session: HandleOut<Seat>) {
        session.clear("session")?;
        let model = Arc::clone(&model.get("model")?.model);
        let (options, memory) = plan(&model, &options)?;
        room_for(&memory)?;
        let engine = Engine::new(Arc::clone(&model), &options)?;
        let state = State { session: engine.session(), engine, stack: Vec::new() };
        session.put(Arc::new(Seat { model, room: options.room, state: Mutex::new(state) }));
        Ok(())
    }

    fn onlay_session_append_tokens(session: Handle<Seat>, tokens: In<u32>, tokens_len: usize) {
        let seat = session.get("session")?;
        let tokens = tokens.slice(tokens_len, "tokens")?;
        let state = &mut *seat.lock()?;
        Ok(state.engine.append(&mut state.session, tokens)?)
    }

    fn onlay_session_append_text(session: Handle<Seat>, text: In<u8>, text_len: usize, flags: u32) {
        let seat = session.get("session")?;
        let state = &mut *seat.lock()?;
        let tokens = encode(&seat.model, text.slice(text_len, "text")?, flags)?;
        Ok(state.engine.append(&mut state.session, &tokens)?)
    }

    fn onlay_session_tokens(
        session: Handle<Seat>,
        tokens: Buffer<u32>,
        tokens_capacity: usize,
        tokens_len: Place<usize>,
    ) {
        let seat = session.get("session")?;
        let state = seat.lock()?;
        tokens.give(state.session.tokens(), tokens_capacity, &tokens_len, "tokens")
    }

    fn onlay_session_truncate(session: Handle<Seat>, len: usize) {
        let seat = session.get("session")?;
        seat.lock()?.session.truncate(len);
        Ok(())
    }

    fn onlay_session_generate(
        session: Handle<Seat>,
        options: StructIn<GenerateOptions>,
        callback: TextCallback,
        user: *mut c_void,
        result: StructOut<Generated>,
    ) {
        let seat = session.get("session")?;
        result.check("result")?;
        let o = options.read("options")?;
        reserved(o.reserved)?;
        let (limits, choice) = (limits(&o)?, choice(&o)?);
        let state = &mut *seat.lock()?;
        let mut sampler = Sampler::new(choice, seat.model.program().vocabulary)?;
        let done = state.engine.generate(&mut state.session, &mut sampler, &limits, &mut |piece| {
            match callback {
                Some(take) if take(user, piece.as_ptr(), piece.len()) != 0 => Flow::Stop,
                _ => Flow::Go,
            }
        })?;
        let told = Generated { tokens: done.tokens as u64, end: end(done.end), ..Generated::default() };
        result.write(told, "result")
    }

    fn onlay_session_attach(session: Handle<Seat>, adapter: Handle<Layer>, scale: f32) {
        let (seat, layer) = (session.get("session")?, adapter.get("adapter")?);
        if !Arc::ptr_eq(&seat.model, &layer.model) {
            let text = "the adapter was opened over another model than the session's; open it over that one";
            return Err(Error::new(Kind::Mismatch, text).into());
        }
        let state = &mut *seat.lock()?;
        let mut stack = state.stack.clone();
        match stack.iter_mut().find(|(a, _)| Arc::ptr_eq(a, &layer.adapter)) {
            Some((_, old)) if *old == scale => return Ok(()),
            Some((_, old)) => *old = scale,
            None => stack.push((Arc::clone(&layer.adapter), scale)),
        }
        seat.wear(state, stack)
    }

    fn onlay_session_detach(session: Handle<Seat>, adapter: Handle<Layer>) {
        let seat = session.get("session")?;
        let layer = if adapter.is_null() { None } else { Some(adapter.get("adapter")?) };
        let state = &mut *seat.lock()?;
        let mut stack = state.stack.clone();
        match layer {
            None => stack.clear(),
            Some(layer) => {
                stack.retain(|(a, _)| !Arc::ptr_eq(a, &layer.adapter));
                if stack.len() == state.stack.len() {
                    return Err(Failure::argument("adapter: it is not attached to this session"));
                }
            }
        }
        seat.wear(state, stack)
    }
}

export_plain! {
    fn onlay_session_free(session: Handle<Seat>) {
        session.free();
    }
}

/// A session is made on one thread, used on another, and two may try at once.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Seat>();
};
