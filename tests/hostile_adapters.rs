//! Adapter files that lie: every one gets an error that names what and where, and nothing panics.

mod support;
use onlay::adapter::Adapter;
use onlay::error::{Error, Kind};
use onlay::format::gguf::{Builder, Encoded};
use onlay::format::types::Type;
use onlay::model::Model;
use onlay::rng::Rng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-hostile-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        let _ = std::fs::remove_file(&path); // some file systems flush what is rewritten in place
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn model() -> Arc<Model> {
    open(vectors().join("llama/F32.gguf"))
}

fn refused(path: &Path, model: &Model) -> Error {
    match Adapter::open(path, model) {
        Err(e) => {
            assert!(
                e.to_string().contains(&*path.file_name().unwrap().to_string_lossy()),
                "names no file: {e}"
            );
            e
        }
        Ok((a, w)) => panic!("accepted: {a:?} {w:?}"),
    }
}

/// All findings, also of a refusal with one.
fn all(error: &Error) -> Vec<String> {
    match error.findings() {
        [] => vec![error.to_string()],
        some => some.iter().map(Error::to_string).collect(),
    }
}

const A: [f32; 128] = [0.5; 128];
const B: [f32; 128] = [0.25; 128];

/// A good file: rank 2 on blk.0.attn_q (64 inputs, 64 outputs).
fn good() -> Builder<'static> {
    let mut b = Builder::new();
    b.set("general.architecture", "llama").set("general.type", "adapter").set("adapter.type", "lora");
    b.set("adapter.lora.alpha", 4f32);
    b
}

fn pair<'a>(b: &mut Builder<'a>, a: &'a [f32], bb: &'a [f32]) {
    b.tensor_f32("blk.0.attn_q.weight.lora_a", &[64, 2], a);
    b.tensor_f32("blk.0.attn_q.weight.lora_b", &[2, 64], bb);
}

/// A good pair, and a note of ours that may not be one.
fn noted(b: &mut Builder<'static>, key: &str, value: impl Into<Encoded<'static>>) {
    pair(b, &A, &B);
    b.set("onlay.scale.blk.0.attn_q.weight", 2f32).set(&format!("onlay.{key}.blk.0.attn_q.weight"), value);
}

fn bytes(b: Builder<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    b.write(&mut out).unwrap();
    out
}

#[test]
fn gguf_files_that_lie() {
    let (scratch, model) = (Scratch::new("gguf"), model());
    let mut n = 0;
    let mut expect = |change: &dyn Fn(&mut Builder<'static>), kind: Kind, count: usize, text: &str| {
        n += 1;
        let mut b = good();
        change(&mut b);
        let error = refused(&scratch.put(&format!("{n}.gguf"), &bytes(b)), &model);
        let list = all(&error);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(list.len() == count && list.iter().any(|e| e.contains(text)), "{text}: {error}");
    };
    let with = |b: &mut Builder<'static>| pair(b, &A, &B);
    expect(&|_| {}, Kind::Format, 1, "at least one pair, found none");
    // tokens are indices once they are in: those of no vocabulary, and one that is there twice
    const ROWS: [f32; 128] = [0.5; 128];
    for (tokens, kind, text) in [
        (&[3.0, -1.0], Kind::Mismatch, "token: expected a whole number"),
        (&[3.0, 0.5], Kind::Mismatch, "token: expected a whole number"),
        (&[3.0, 1e30], Kind::Mismatch, "token: expected a whole number"),
        (&[3.0, 4096.0], Kind::Mismatch, "found 4096"),
        (&[3.0, f32::NAN], Kind::Numeric, "finite"),
        (&[3.0, 3.0], Kind::Format, "token 3 is there twice"),
    ] {
        expect(
            &|b| {
                b.set("adapter.type", "tokens");
                b.tensor_f32("token_embd.weight.token_ids", &[2], tokens);
                b.tensor_f32("token_embd.weight.token_rows", &[64, 2], &ROWS);
            },
            kind,
            1,
            text,
        );
    }
    expect(
        &|b| {
            b.set("general.type", "model");
        },
        Kind::Argument,
        1,
        "expected \"adapter\", found \"model\"",
    );
    expect(
        &|b| {
            b.set("adapter.type", "control_vector");
        },
        Kind::Argument,
        1,
        "adapter.type: file: expected \"lora\"",
    );
    expect(
        &|b| {
            b.unset("general.type");
        },
        Kind::Format,
        1,
        "general.type: missing",
    );
    expect(
        &|b| {
            b.unset("general.architecture");
        },
        Kind::Format,
        1,
        "general.architecture: missing",
    );
    expect(
        &|b| {
            with(b);
            b.set("general.architecture", "qwen3").set("adapter.lora.alpha", f32::NAN);
            b.set("adapter.alora.invocation_tokens", Encoded::array(&[1u32]));
        },
        Kind::Mismatch,
        4,
        "architecture: expected \"llama\", found \"qwen3\"",
    );
    expect(
        &|b| {
            with(b);
            b.set("adapter.lora.alpha", 4u32);
        },
        Kind::Format,
        1,
        "expected a floating-point number",
    );
    expect(
        &|b| {
            with(b);
            b.set("adapter.lora.alpha", f32::INFINITY);
        },
        Kind::Numeric,
        2,
        "expected a finite number",
    );
    expect(
        &|b| {
            b.tensor_f32("blk.0.attn_q.weight.lora_a", &[64, 2], &A);
            b.tensor_f32("blk.1.attn_k.weight.lora_b", &[2, 64], &B);
            b.tensor_f32("blk.2.attn_q.weight.lora_a", &[64, 2], &A);
            b.tensor_f32("blk.0.attn_norm.weight", &[64], &A[..64]);
            b.tensor_f32("token_embd.weight.lora_a", &[2, 64], &A);
            b.tensor_f32("blk.0.ffn_up.weight.lora_a", &[4, 4, 8], &A);
        },
        Kind::Mismatch,
        6,
        "blk.1.attn_k.weight.lora_b: is not complete: lora_a is missing",
    );
    expect(
        &|b| {
            b.tensor_f32("blk.0.attn_q.weight.lora_a", &[32, 4], &A);
            b.tensor_f32("blk.0.attn_q.weight.lora_b", &[1, 128], &B);
        },
        Kind::Mismatch,
        3,
        "blk.0.attn_q.weight.lora_b: outputs: expected 64, found 128",
    );
    expect(
        &|b| {
            b.tensor("blk.0.attn_q.weight.lora_a", Type::I32, &[64, 2], bytemuck::cast_slice(&A));
            b.tensor_f32("blk.0.attn_q.weight.lora_b", &[2, 64], &B);
        },
        Kind::Unsupported,
        1,
        "type I32 is not supported yet",
    );
    expect(
        &|b| {
            b.set("adapter.type", "parallel").set("onlay.activation", "sin");
            b.tensor_f32("blk.0.attn_q.weight.adapter_down", &[64, 2], &A);
            b.tensor_f32("blk.0.attn_q.weight.adapter_up", &[1, 128], &B);
        },
        Kind::Unsupported,
        3,
        "onlay.activation: activation: expected tanh",
    );
    expect(
        &|b| {
            b.set("adapter.type", "bias");
            b.tensor_f32("blk.0.attn_q.weight.beft_bias", &[63], &A[..63]);
        },
        Kind::Mismatch,
        1,
        "outputs: expected 64, found 63",
    );
    static BAD: [f32; 128] = {
        let mut bad = [0.0; 128];
        bad[77] = f32::NAN;
        bad
    };
    expect(
        &|b| pair(b, &BAD, &BAD),
        Kind::Numeric,
        2,
        "lora_b: number at row 38, column 1: expected finite, found NaN",
    );
    let name = "blk.0.attn_q.weight";
    type Change = fn(&mut Builder<'static>);
    let notes: [(Change, &str); 5] = [
        (|b| noted(b, "scale", 3f32), "expected 2 as the rest of the file says, found 3"),
        (|b| noted(b, "scale", f32::NAN), "found NaN"),
        (|b| noted(b, "scale", "2"), "expected a floating-point number"),
        (|b| noted(b, "fold", 0f64), "expected an f64 other than 0"),
        (|b| noted(b, "fold", 2f32), "expected an f64"),
    ];
    for (change, text) in notes {
        expect(&change, Kind::Format, 1, text);
    }
    // a fold by 3 whose numbers are not three times anything
    let folded = |rounding: Encoded<'static>| {
        move |b: &mut Builder<'static>| {
            with(b);
            b.set(&format!("onlay.scale.{name}"), 6f32).set(&format!("onlay.fold.{name}"), 3f64);
            b.set(&format!("onlay.rounding.{name}"), rounding.clone());
        }
    };
    expect(&folded(Encoded::array(&[1i8; 128])), Kind::Format, 1, "was changed: it is not a number times 3");
    expect(&folded(Encoded::array(&[0i8; 127])), Kind::Format, 1, "expected an array of 128 i8");
    expect(&folded(Encoded::array(&[0u8; 128])), Kind::Format, 1, "expected an array of 128 i8");
    expect(
        &|b| {
            with(b);
            b.set("onlay.format", 9u32).set("onlay.method", "magic").set("onlay.seed", "x");
            b.set("onlay.recipe", "[".repeat(100_000)).set("onlay.parent", 3u8);
        },
        Kind::Unsupported,
        5,
        "onlay.method: value: expected lora, dora, ia3",
    );
}

#[test]
fn truncated_or_changed_at_any_byte() {
    let (scratch, model) = (Scratch::new("fuzz"), model());
    let mut b = good();
    pair(&mut b, &A, &B);
    let name = "blk.0.attn_q.weight";
    b.set(&format!("onlay.scale.{name}"), 2f32).set("onlay.seed", 3u64).set("onlay.format", 1u32);
    let whole = bytes(b);
    let path = scratch.put("whole.gguf", &whole);
    Adapter::open(&path, &model).unwrap();
    for len in 0..whole.len() {
        refused(&scratch.put("cut.gguf", &whole[..len]), &model);
    }
    let peft = vectors().join("llama/lora-all");
    let tensors = std::fs::read(peft.join("adapter_model.safetensors")).unwrap();
    let json = std::fs::read(peft.join("adapter_config.json")).unwrap();
    let directory = scratch.0.join("peft");
    std::fs::create_dir(&directory).unwrap();
    scratch.put("peft/adapter_config.json", &json);
    let header = 8 + u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    for len in (0..tensors.len()).step_by(97).chain(header - 20..header + 20).chain([tensors.len() - 1]) {
        scratch.put("peft/adapter_model.safetensors", &tensors[..len]);
        assert!(matches!(refused(&directory, &model).kind(), Kind::Format), "{len}");
    }
    scratch.put("peft/adapter_model.safetensors", &[&tensors[..], &[0]].concat());
    refused(&directory, &model);

    // random changes are either harmless or refused; the place is whatever they hit
    let mut rng = Rng::new(1);
    let mut change = |bytes: &[u8], end: usize| {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(end as u64) as usize;
            bytes[at] =
                if rng.below(2) == 0 { bytes[at] ^ (1 << rng.below(8)) } else { rng.next_u64() as u8 };
        }
        bytes
    };
    let (mut fine, mut bad) = (0, 0);
    for round in 0..3000 {
        let result = if round % 3 == 0 {
            scratch.put("peft/adapter_model.safetensors", &change(&tensors, header));
            Adapter::open(&directory, &model)
        } else if round % 3 == 1 {
            scratch.put("peft/adapter_model.safetensors", &tensors);
            scratch.put("peft/adapter_config.json", &change(&json, json.len()));
            let result = Adapter::open(&directory, &model);
            scratch.put("peft/adapter_config.json", &json);
            result
        } else {
            Adapter::open(scratch.put("changed.gguf", &change(&whole, whole.len())), &model)
        };
        *(if result.is_ok() { &mut fine } else { &mut bad }) += 1;
    }
    println!("{fine} accepted, {bad} refused");
}

/// A directory with one pair on q of layer 0, after changes to its configuration and its header.
fn peft(
    scratch: &Scratch,
    name: &str,
    config: &[(&str, Value)],
    tensors: &[(&str, &str, Vec<usize>)],
) -> PathBuf {
    let directory = scratch.0.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let mut json =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"});
    for (key, value) in config {
        json[*key] = value.clone();
    }
    scratch.put(&format!("{name}/adapter_config.json"), json.to_string().as_bytes());
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let mut header = json!({"__metadata__": {"format": "pt"}});
    let mut at = 0;
    let pair = [
        (format!("{q}.lora_A.weight"), "F32", vec![2, 64]),
        (format!("{q}.lora_B.weight"), "F32", vec![64, 2]),
    ];
    let more = tensors.iter().map(|(n, d, s)| ((*n).to_owned(), *d, s.clone()));
    // factors stand instead of the pair
    let instead = |p: &str| {
        tensors.iter().any(|t| t.0 == p || t.0.contains("hada_") || t.0.contains("lokr_"))
            || config.iter().any(|(_, v)| *v == "ADALORA")
    };
    for (name, dtype, shape) in pair.into_iter().filter(|p| !instead(&p.0)).chain(more) {
        let size = if dtype == "F32" || dtype == "I32" { 4 } else { 2 };
        let end = at + size * shape.iter().product::<usize>();
        header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
        at = end;
    }
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + at, 0);
    scratch.put(&format!("{name}/adapter_model.safetensors"), &bytes);
    directory
}

#[test]
fn peft_directories_that_lie_or_want_more() {
    let (scratch, model) = (Scratch::new("peft"), model());
    let open = |name: &str, config: &[(&str, Value)], tensors: &[(&str, &str, Vec<usize>)]| {
        Adapter::open(peft(&scratch, name, config, tensors), &model).map(|(a, _)| a)
    };
    let root = "base_model.model.model.layers.0.";
    let named = |rest: &str| format!("{root}{rest}");
    let q = |half: &str| named(&format!("self_attn.q_proj.lora_{half}.weight"));
    open("good", &[], &[]).unwrap();
    open("halves", &[], &[(&q("A"), "F16", vec![2, 64]), (&q("B"), "BF16", vec![64, 2])]).unwrap();
    open("base", &[], &[(&named("self_attn.q_proj.base_layer.weight"), "F32", vec![64, 64])]).unwrap();

    let mut n = 0;
    let mut expect =
        |config: &[(&str, Value)], tensors: &[(&str, &str, Vec<usize>)], kind: Kind, text: &str| {
            n += 1;
            let error = refused(&peft(&scratch, &format!("bad-{n}"), config, tensors), &model);
            let list = all(&error);
            assert!(list.len() == 1 && error.kind() == kind && list[0].contains(text), "{text}: {error}");
        };
    for (key, value, text) in [
        ("peft_type", json!("OFT"), "peft_type: value: expected one of LORA"),
        ("layer_replication", json!([[0, 2]]), "layer_replication"),
        ("trainable_token_indices", json!([3]), "trainable_token_indices"),
        ("alora_invocation_tokens", json!([3]), "alora_invocation_tokens"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights"),
    ] {
        expect(&[(key, value)], &[], Kind::Unsupported, text);
    }
    expect(&[("r", json!(-1))], &[], Kind::Format, "r: value: expected an integer above 0");
    expect(&[("r", json!(4))], &[], Kind::Mismatch, "rank, as the configuration says: expected 4, found 2");
    expect(&[("rank_pattern", json!({"layers.0.*": 3}))], &[], Kind::Mismatch, "expected 3, found 2");
    expect(&[("lora_alpha", json!(0))], &[], Kind::Format, "lora_alpha");
    expect(
        &[("lora_alpha", json!(1e-300))],
        &[],
        Kind::Numeric,
        "scale: expected a finite number other than 0",
    );
    let lengths = named("self_attn.q_proj.lora_magnitude_vector");
    let method = "matrices of the method: expected";
    expect(&[("use_dora", json!(true))], &[], Kind::Format, &format!("{method} dora, found lora"));
    expect(&[("peft_type", json!("IA3"))], &[], Kind::Format, &format!("{method} ia3, found lora"));
    expect(&[], &[(&lengths, "F32", vec![64])], Kind::Format, &format!("{method} lora, found dora"));
    let two = |rest: &str| vec![(named(rest), "F32", vec![2, 64])];
    for (rest, kind, text) in [
        ("self_attn.q_proj.lora_magnitude_vector", Kind::Mismatch, "lengths: expected 64, found 128"),
        ("self_attn.q_proj.ia3_l", Kind::Format, "do not go together at one place"),
        ("self_attn.q_proj.lora_B.bias", Kind::Unsupported, "trained biases"),
        ("self_attn.q_proj.bias", Kind::Unsupported, "trained biases"),
        ("self_attn.q_proj.weight", Kind::Format, "do not go together at one place"),
        ("embed_tokens.lora_embedding_A", Kind::Unsupported, "around the token embedding"),
        ("self_attn.q_proj.lora_A.default.weight", Kind::Mismatch, "this base has no product"),
        (
            "self_attn.qkv_proj.lora_A.weight",
            Kind::Mismatch,
            "this base has no product model.layers.0.self_attn.qkv_proj",
        ),
        ("self_attn.k_proj.lora_A.weight", Kind::Mismatch, "target_modules do not name it"),
    ] {
        let list = two(rest);
        let list: Vec<_> = list.iter().map(|(n, d, s)| (n.as_str(), *d, s.clone())).collect();
        expect(&[], &list, kind, text);
    }
    expect(
        &[],
        &[("lm_head.lora_A.weight", "F32", vec![2, 64])],
        Kind::Format,
        "begins with base_model.model.",
    );
    expect(&[], &[(&q("A"), "F32", vec![2, 32])], Kind::Mismatch, "inputs: expected 64, found 32");
    expect(
        &[],
        &[(&q("B"), "F32", vec![64, 3])],
        Kind::Mismatch,
        "rank, as in the other half: expected 2, found 3",
    );
    expect(&[], &[(&q("B"), "F32", vec![2, 64, 1])], Kind::Format, "shape: expected rows and columns");
    expect(
        &[],
        &[(&q("B"), "I32", vec![64, 2])],
        Kind::Unsupported,
        "type: expected F32, F16 or BF16, found I32",
    );
    expect(&[], &[(&q("B"), "F32", vec![0, 2])], Kind::Format, "shape");

    // factors
    let loha = [("peft_type", json!("LOHA")), ("alpha", json!(4))];
    let lokr = [("peft_type", json!("LOKR")), ("alpha", json!(4))];
    type Shapes<'a> = &'a [(&'a str, [usize; 2])];
    let mut products = |config: &[(&str, Value)], shapes: Shapes<'_>, kind: Kind, text: &str| {
        let names: Vec<_> = shapes.iter().map(|(n, _)| named(&format!("self_attn.q_proj.{n}"))).collect();
        let list = names.iter().zip(shapes).map(|(name, (_, shape))| (name.as_str(), "F32", shape.to_vec()));
        expect(config, &list.collect::<Vec<_>>(), kind, text);
    };
    let (a1, b1, a2, b2) = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b");
    let sizes = |r: usize| [(a1, [64, r]), (b1, [r, 64]), (a2, [64, r]), (b2, [r, 64])];
    products(&loha, &sizes(3), Kind::Mismatch, "rank, as the configuration says: expected 2, found 3");
    let large = [&loha[..], &[("r", json!(129))]].concat();
    products(&large, &sizes(129), Kind::Unsupported, "rank: expected at most 128");
    products(&loha, &sizes(2)[..3], Kind::Format, "hada_w2_b, is missing");
    products(
        &loha,
        &[&sizes(2)[..3], &[(b2, [3, 64])]].concat(),
        Kind::Mismatch,
        "rank: expected 2, found 3",
    );
    products(&loha, &[(a1, [64, 2])], Kind::Format, "not complete");
    products(&loha[..1], &sizes(2), Kind::Format, "alpha: missing");
    let text = "rows and columns of w1: expected divisors of 64 and 64, found (7, 8)";
    products(&lokr, &[("lokr_w1", [7, 8]), ("lokr_w2", [8, 8])], Kind::Mismatch, text);
    let text = "outputs, over the rows of w1: expected 8, found 9";
    products(&lokr, &[("lokr_w1", [8, 8]), ("lokr_w2", [9, 8])], Kind::Mismatch, text);
    let both = [("lokr_w1", [8, 8]), ("lokr_w1_a", [8, 2]), ("lokr_w1_b", [2, 8]), ("lokr_w2", [8, 8])];
    products(&lokr, &both, Kind::Format, "do not go together");
    let pair = [("lokr_w1", [8, 8]), ("lokr_w2_a", [8, 2]), ("lokr_w2_b", [3, 8])];
    products(&lokr, &pair, Kind::Mismatch, "rank, as in the other half: expected 3, found 2");
    let triplets = [("peft_type", json!("ADALORA")), ("init_r", json!(3)), ("lora_alpha", json!(4))];
    let of = |r: usize| [("lora_A", [r, 64]), ("lora_E", [r, 1]), ("lora_B", [64, r])];
    let masks = |all: Value| [&triplets[..], &[("rank_pattern", all)]].concat();
    let q = "model.layers.0.self_attn.q_proj.lora_E";
    products(&triplets, &of(2), Kind::Mismatch, "rank, as the configuration says: expected 3, found 2");
    products(
        &triplets,
        &[of(3)[0], ("lora_E", [2, 1]), of(3)[2]],
        Kind::Mismatch,
        "rank, as of A: expected 3",
    );
    products(&triplets, &of(3)[..2], Kind::Format, "adalora_b, is missing");
    let negative = [&triplets[..2], &[("lora_alpha", json!(-4))]].concat();
    products(&negative, &of(3), Kind::Format, "lora_alpha: value: expected a finite number above 0");
    products(&triplets, &of(0), Kind::Format, "at least one pair");
    products(&triplets, &[of(0)[0], of(3)[1], of(3)[2]], Kind::Format, "adalora_a is missing");
    let text = "rank, as the configuration says: expected 1, found 2";
    products(&masks(json!({q: [true, false, false]})), &of(2), Kind::Mismatch, text);
    products(&masks(json!({q: [1, 0, 0]})), &of(3), Kind::Format, "a list of true and false");
    products(&masks(json!([true])), &of(3), Kind::Format, "an object of names and masks");

    // files that are no such files
    let directory = peft(&scratch, "files", &[], &[]);
    let header = |text: &str, n: u64| [&n.to_le_bytes(), text.as_bytes()].concat();
    let whole = |text: &str| header(text, text.len() as u64);
    for (bytes, text) in [
        (vec![], "0 bytes are no safetensors file"),
        (header("{}", u64::MAX), "bytes of the header: expected at most 2"),
        (whole("{}"), "at least one pair"),
        (whole("{\"x\":1}"), "the header cannot be read"),
        (whole(&"[".repeat(1000)), "the header cannot be read"),
        (
            whole("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"),
            "bytes of data: expected 4, found 0",
        ),
        (
            whole("{\"x\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}"),
            "the header cannot be read",
        ),
    ] {
        scratch.put("files/adapter_model.safetensors", &bytes);
        let error = refused(&directory, &model);
        assert!(error.to_string().contains(text), "{text}: {error}");
    }
    scratch.put("files/adapter_config.json", b"{");
    assert!(refused(&directory, &model).to_string().contains("adapter_config.json: is not JSON"));
    std::fs::remove_file(directory.join("adapter_config.json")).unwrap();
    assert_eq!(refused(&directory, &model).kind(), Kind::Io);
    std::fs::remove_file(directory.join("adapter_model.safetensors")).unwrap();
    scratch.put("files/adapter_model.bin", b"");
    assert_eq!(refused(&directory, &model).kind(), Kind::Unsupported);
    let loose = vectors().join("llama/lora-all/adapter_model.safetensors");
    assert_eq!(refused(&loose, &model).kind(), Kind::Argument);
    assert_eq!(refused(&scratch.0.join("nothing.gguf"), &model).kind(), Kind::Io);
    // a model is no adapter
    assert_eq!(refused(&vectors().join("llama/F32.gguf"), &model).kind(), Kind::Argument);
}
