//! Adapters: opening them over a model.

use super::boundary::{Buffer, Handle, HandleOut, In, Place, export, export_plain};
use super::model::Base;
use super::structs::{flags, path};
use crate::adapter::{Adapter, Warning};
use crate::error::Findings;
use crate::model::Model;
use std::sync::Arc;

const REFUSE_WARNINGS: u32 = 1;

/// An `onlay_adapter`.
pub struct Layer {
    /// The very model it was opened over: a session over another one refuses it.
    pub model: Arc<Model>,
    pub adapter: Arc<Adapter>,
    pub warnings: String,
}

impl Layer {
    pub fn new(model: Arc<Model>, adapter: Adapter, warnings: &[Warning]) -> Layer {
        let warnings: Vec<String> = warnings.iter().map(Warning::to_string).collect();
        Layer { model, adapter: Arc::new(adapter), warnings: warnings.join("\n") }
    }
}

export! {
    fn onlay_adapter_open(
        model: Handle<Base>,
        path_: In<u8>,
        path_len: usize,
        asked: u32,
        adapter: HandleOut<Layer>,
    ) {
        adapter.clear("adapter")?;
        let model = Arc::clone(&model.get("model")?.model);
        flags(asked, REFUSE_WARNINGS)?;
        let path = path(path_.slice(path_len, "path")?, "path")?;
        let (found, warnings) = Adapter::open(&path, &model)?;
        if asked & REFUSE_WARNINGS != 0 {
            let mut wrong = Findings::default();
            warnings.iter().for_each(|w| wrong.push(w.clone().refuse()));
            wrong.refuse("the adapter").map_err(|e| e.in_file(&path))?;
        }
        adapter.put(Arc::new(Layer::new(model, found, &warnings)));
        Ok(())
    }

    fn onlay_adapter_warnings(
        adapter: Handle<Layer>,
        text: Buffer<u8>,
        text_capacity: usize,
        text_len: Place<usize>,
    ) {
        let adapter = adapter.get("adapter")?;
        text.give(adapter.warnings.as_bytes(), text_capacity, &text_len, "text")
    }
}

export_plain! {
    fn onlay_adapter_free(adapter: Handle<Layer>) {
        adapter.free();
    }
}

/// Adapters are used by many threads at once.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Layer>();
};
