//! A real model, if the shared data is there: greedy text equals that of llama2.c.

mod support;
use onlay::engine::{Choice, Engine, EngineOptions, Flow, Limits, Sampler};
use onlay::ops::kv::Precision;
use support::*;

#[test]
fn greedy_text_of_stories260k() {
    let (Some(path), Some(want)) =
        (shared("models/stories260K.gguf"), shared("models/stories260K.greedy200.txt"))
    else {
        return;
    };
    let want = std::fs::read_to_string(want).unwrap();
    let model = open(path);
    for (threads, polite) in [(1, false), (2, false), (1, true), (2, true)] {
        let threads = Some(threads);
        let options =
            EngineOptions { threads, polite, context: 512, kv: Precision::F32, ..Default::default() };
        let mut engine = Engine::new(model.clone(), &options).unwrap();
        let mut session = engine.session();
        let bos = model.tokenizer().unwrap().bos().unwrap();
        engine.append(&mut session, &[bos]).unwrap();
        let mut sampler = Sampler::new(Choice::greedy(), model.program().vocabulary).unwrap();
        let limits = Limits { tokens: 200, ..Default::default() };
        let mut text = String::new();
        let done = engine.generate(&mut session, &mut sampler, &limits, &mut |piece| {
            text.push_str(piece);
            Flow::Go
        });
        assert_eq!(text.trim(), want.trim());
        assert!(done.unwrap().tokens <= 200);
        engine.close(session);
    }
}
