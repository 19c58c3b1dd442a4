//! Models: opening, tokens and text.

use super::boundary::{Buffer, Handle, HandleOut, In, Place, StructOut, export, export_plain};
use super::failure::{Done, Failure};
use super::structs::{ModelInfo, flags, path, utf8};
use crate::error::{Error, Kind};
use crate::model::Model;
use crate::text::{Chat, Conversation, Encode};
use serde_json::Value;
use std::sync::{Arc, OnceLock};

const ADD_SPECIAL: u32 = 1;
const PARSE_SPECIAL: u32 = 2;
const GENERATION_PROMPT: u32 = 1;

/// An `onlay_model`.
pub struct Base {
    pub model: Arc<Model>,
    /// The chat template, read when it is first used: a model whose template is broken can still be served.
    chat: OnceLock<Option<Chat>>,
}

impl Base {
    /// # Errors
    /// `Unsupported` without a tokenizer or a template, `Template` if that does not parse.
    fn chat(&self) -> Result<&Chat, Error> {
        let weights = self.model.weights();
        let chat = match self.chat.get() {
            Some(chat) => chat,
            None => {
                let chat = Chat::from_metadata(weights.metadata(), self.model.tokenizer()?);
                let chat = chat.map_err(|e| e.in_file(weights.path()))?;
                self.chat.get_or_init(|| chat)
            }
        };
        chat.as_ref().ok_or_else(|| {
            Error::new(Kind::Unsupported, "the model has no chat template").in_file(weights.path())
        })
    }

    fn info(&self) -> ModelInfo {
        let tokenizer = self.model.tokenizer().ok();
        let id = |id: Option<u32>| id.map_or(-1, i64::from);
        let template =
            self.model.weights().metadata().keys().any(|k| k.starts_with("tokenizer.chat_template"));
        ModelInfo {
            vocabulary: self.model.program().vocabulary as u64,
            context: self.model.program().context as u64,
            bos: id(tokenizer.and_then(|t| t.bos())),
            eos: id(tokenizer.and_then(|t| t.eos())),
            has_tokenizer: tokenizer.is_some().into(),
            has_template: (tokenizer.is_some() && template).into(),
            ..ModelInfo::default()
        }
    }
}

/// The tokens of a text, as flags ask.
pub(super) fn encode(model: &Model, text: &[u8], asked: u32) -> Done<Vec<u32>> {
    flags(asked, ADD_SPECIAL | PARSE_SPECIAL)?;
    let options = Encode { special: asked & ADD_SPECIAL != 0, parse_special: asked & PARSE_SPECIAL != 0 };
    Ok(model.tokenizer()?.encode(text, options))
}

/// Messages from JSON: a list, or an object with more than that.
fn conversation(json: &[u8]) -> Done<Conversation> {
    let data = |text: String| Error::new(Kind::Data, text);
    let value: Value = serde_json::from_slice(json).map_err(|e| data(format!("messages: not JSON: {e}")))?;
    let Value::Object(mut object) = value else { return Ok(Conversation::new(value)?) };
    let messages = object.remove("messages").ok_or_else(|| data("messages: the object has none".into()))?;
    let mut talk = Conversation::new(messages)?;
    talk.tools = object.remove("tools");
    match object.remove("variables") {
        None => {}
        Some(Value::Object(variables)) => talk.variables = variables,
        Some(_) => return Err(data("variables: expected an object".into()).into()),
    }
    if let Some(key) = object.keys().next() {
        return Err(data(format!("messages: unknown key {key:?}")).into());
    }
    Ok(talk)
}

export! {
    fn onlay_model_open(path_: In<u8>, path_len: usize, model: HandleOut<Base>) {
        model.clear("model")?;
        let path = path(path_.slice(path_len, "path")?, "path")?;
        let base = Base { model: Arc::new(Model::open(path)?), chat: OnceLock::new() };
        model.put(Arc::new(base));
        Ok(())
    }

    fn onlay_model_info_get(model: Handle<Base>, info: StructOut<ModelInfo>) {
        let model = model.get("model")?;
        info.need("info")?;
        info.write(model.info(), "info")
    }

    fn onlay_model_tokenize(
        model: Handle<Base>,
        text: In<u8>,
        text_len: usize,
        flags: u32,
        tokens: Buffer<u32>,
        tokens_capacity: usize,
        tokens_len: Place<usize>,
    ) {
        let model = model.get("model")?;
        let found = encode(&model.model, text.slice(text_len, "text")?, flags)?;
        tokens.give(&found, tokens_capacity, &tokens_len, "tokens")
    }

    fn onlay_model_detokenize(
        model: Handle<Base>,
        tokens: In<u32>,
        tokens_len: usize,
        asked: u32,
        text: Buffer<u8>,
        text_capacity: usize,
        text_len: Place<usize>,
    ) {
        let model = model.get("model")?;
        flags(asked, PARSE_SPECIAL)?;
        let tokens = tokens.slice(tokens_len, "tokens")?;
        let tokenizer = model.model.tokenizer()?;
        model.model.check_tokens(tokens)?;
        let found = tokenizer.decode(tokens, asked & PARSE_SPECIAL != 0);
        text.give(&found, text_capacity, &text_len, "text")
    }

    fn onlay_model_render(
        model: Handle<Base>,
        messages: In<u8>,
        messages_len: usize,
        asked: u32,
        text: Buffer<u8>,
        text_capacity: usize,
        text_len: Place<usize>,
        tokens: Buffer<u32>,
        tokens_capacity: usize,
        tokens_len: Place<usize>,
    ) {
        let model = model.get("model")?;
        flags(asked, GENERATION_PROMPT)?;
        let json = messages.slice(messages_len, "messages")?;
        utf8(json, "messages")?;
        let chat = model.chat()?;
        let rendered = chat.text(&conversation(json)?, asked & GENERATION_PROMPT != 0)?;
        let spans = chat.encode(model.model.tokenizer()?, &rendered);
        let ids: Vec<u32> = spans.iter().map(|t| t.id).collect();
        // Both lengths are told before either buffer is found too small, and nothing is written then.
        text_len.set(rendered.len(), "text")?;
        tokens_len.set(ids.len(), "tokens")?;
        text.fit(rendered.as_bytes(), text_capacity, "text")?;
        tokens.give(&ids, tokens_capacity, &tokens_len, "tokens")?;
        text.copy(rendered.as_bytes(), text_capacity);
        Ok(())
    }
}

export_plain! {
    fn onlay_model_free(model: Handle<Base>) {
        model.free();
    }
}

/// Models are used by many threads at once.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Base>();
    shared::<Failure>();
};
