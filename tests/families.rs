//! Every family against transformers: tiny random models, converted by llama.cpp's own script (see
//! `tests/oracles/README.md`).

mod support;
use support::*;

/// Largest and mean difference of log-probabilities, over the three sequences of a file.
fn compare(model: &str, kind: &str) -> (f64, f64) {
    let folder = vectors().join(model);
    let answers = Answers::open(folder.join(format!("{kind}.safetensors")));
    let model = open(folder.join(format!("{kind}.gguf")));
    let mut runner = runner(&model, options(2));
    let (mut most, mut sum, mut count) = (0f64, 0f64, 0);
    for i in 0..3 {
        let tokens = answers.tokens(&format!("tokens.{i}"));
        let z = logits(&mut runner, &tokens, None);
        let got = log_probabilities(&z, &tokens);
        let want = answers.numbers(&format!("logprobs.{i}"));
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            most = most.max((g - w).abs());
            sum += (g - w).abs();
            count += 1;
        }
        if kind == "F32" {
            for (g, w) in z.last().unwrap().iter().zip(answers.numbers(&format!("last.{i}"))) {
                assert!((f64::from(*g) - w).abs() < 1e-3, "last logits: {g} against {w}");
            }
        }
    }
    println!("{kind:5} largest {most:.2e}, mean {:.2e}", sum / count as f64);
    (most, sum / count as f64)
}

macro_rules! families { ($($test:ident $model:literal $($kind:literal)*;)*) => { $(
    #[test]
    fn $test() {
        $(
            let (most, mean) = compare($model, $kind);
            match $kind {
                "F32" => assert!(most < 1e-3),
                "F16" => assert!(most < 5e-3),
                "Q8_0" => assert!(mean < 2e-2),
                _ => assert!(mean < 5e-2),
            }
        )*
    }
)* } }
families! {
    llama "llama" "F32" "F16";
    llama_tied_with_biases "llama-tied-bias" "F32" "F16";
    mistral "mistral" "F32" "F16";
    qwen2 "qwen2" "F32" "F16";
    qwen3 "qwen3" "F32" "F16";
    quantized_llama "llama-wide" "Q8_0" "Q6_K" "Q4_K" "Q4_0";
    quantized_qwen3 "qwen3-wide" "Q8_0" "Q4_K";
}
