//! Cutting text into words before byte pairs are merged: the rules that `tokenizer.ggml.pre` names.
//!
//! Every rule is a list of stages, and each stage cuts the pieces of the one before. The stages are the regular
//! expressions of the models' own tokenizers, written out by hand over Unicode classes ([`patterns`]): they run in
//! linear time and cannot be made to backtrack without end. Where other readers of GGUF approximate an expression
//! (letter case beyond ASCII, combining marks), the model's own expression is what is followed here.

mod patterns;

use super::unicode::{Char, Class};
use patterns as p;

/// What one pre-tokenizer name stands for.
#[derive(Debug)]
pub(super) struct Rule {
    stages: &'static [Stage],
    /// A word that is itself a token is taken whole, whatever the merges would make of it.
    pub whole_words: bool,
    /// Whether a beginning-of-text token is added unless the file says otherwise.
    pub add_bos: bool,
}

/// One cut over every piece there is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Each match of a pattern becomes a piece, and so does each stretch between two matches. The function gives
    /// the length of the match at the start of its argument, or 0.
    Matches(fn(&[Char]) -> usize),
    /// White space at the end of a piece is cut off (`\s+$`).
    Trailing,
}

use Stage::{Matches, Trailing};

/// GPT-2's expression; the others are built like it.
const GPT2: &[Stage] = &[Matches(p::gpt2)];
const DIGITS_GPT2: &[Stage] = &[Matches(p::digits::<1>), Matches(p::gpt2)];
const LLAMA3: &[Stage] = &[Matches(|t| p::words(t, &p::Words { digits: 3, ..p::Words::COMMON }))];
const QWEN2: &[Stage] = &[Matches(|t| p::words(t, &p::Words::COMMON))];
const DEEPSEEK3: &[Stage] = &[
    Matches(p::digits::<3>),
    Matches(|t| p::within(t, &[('一', '龥'), ('\u{3040}', '\u{309f}'), ('\u{30a0}', '\u{30ff}')])),
    Matches(p::deepseek3),
];
const BLOOM: Stage = Matches(p::bloom);

const PLAIN: Rule = Rule { stages: GPT2, whole_words: false, add_bos: false };

/// Names, and the rule they share. The names are those that converters write.
const RULES: &[(&[&str], Rule)] = &[
    (
        &["default"],
        Rule {
            stages: &[
                Matches(|t| p::punctuation(t, "$+<=>^~|")),
                Matches(p::gpt2),
                Matches(p::digits::<{ usize::MAX }>),
                Matches(p::three_ascii_digits),
            ],
            ..PLAIN
        },
    ),
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
        ],
        PLAIN,
    ),
    (
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        Rule { stages: DIGITS_GPT2, ..PLAIN },
    ),
    (
        &["falcon"],
        Rule {
            stages: &[
                Matches(|t| p::punctuation(t, "$+<=>^~|`")),
                Matches(p::gpt2),
                Matches(p::three_ascii_digits),
            ],
            ..PLAIN
        },
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        Rule { stages: LLAMA3, whole_words: true, add_bos: true },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], Rule { stages: LLAMA3, ..PLAIN }),
    (&["glm4", "glm5"], Rule { stages: LLAMA3, whole_words: true, ..PLAIN }),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
            "kormo",
            "f2llmv2",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ],
        Rule { stages: QWEN2, ..PLAIN },
    ),
    (
        &["qwen35"],
        Rule { stages: &[Matches(|t| p::words(t, &p::Words { marks: true, ..p::Words::COMMON }))], ..PLAIN },
    ),
    (
        &["seed-coder"],
        Rule {
            stages: &[Matches(|t| {
                p::words(t, &p::Words { newlines_after_symbols: false, ..p::Words::COMMON })
            })],
            ..PLAIN
        },
    ),
    (
        &["ufakzeka"],
        Rule {
            stages: &[Matches(|t| p::words(t, &p::Words { contractions: false, ..p::Words::COMMON }))],
            ..PLAIN
        },
    ),
    (
        &["minicpm5"],
        Rule {
            stages: &[
                Matches(p::digits::<3>),
                Matches(|t| p::words(t, &p::Words { digits: usize::MAX, ..p::Words::COMMON })),
            ],
            whole_words: true,
            ..PLAIN
        },
    ),
    (&["laguna"], Rule { stages: &[Matches(p::lines), QWEN2[0]], ..PLAIN }),
    (
        &["deepseek-llm"],
        Rule {
            stages: &[
                Matches(p::newline),
                Matches(|t| p::spaced(t, p::cased_letter)),
                Matches(|t| p::spaced(t, p::wide_punctuation)),
                Trailing,
                Matches(|t| p::within(t, p::DEEPSEEK_IDEOGRAPHS)),
                Matches(p::digits::<{ usize::MAX }>),
            ],
            ..PLAIN
        },
    ),
    (
        &["deepseek-coder"],
        Rule {
            stages: &[
                Matches(p::newline),
                Matches(|t| p::spaced(t, |c| c.is(Class::LETTER))),
                Matches(|t| p::spaced(t, |c| c.is(Class::PUNCTUATION))),
                Matches(|t| p::within(t, p::DEEPSEEK_IDEOGRAPHS)),
                Matches(p::digits::<1>),
            ],
            ..PLAIN
        },
    ),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], Rule { stages: DEEPSEEK3, ..PLAIN }),
    (
        &["tekken"],
        Rule { stages: &[Matches(|t| p::cased_words(t, 1, false))], whole_words: true, add_bos: true },
    ),
    (
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        Rule { stages: &[Matches(|t| p::cased_words(t, 3, true))], ..PLAIN },
    ),
    (
        &["granite-embed-multi-97m"],
        Rule { stages: &[Matches(|t| p::cased_words(t, 3, true))], whole_words: true, ..PLAIN },
    ),
    (&["poro-chat", "bloom", "gpt3-finnish"], Rule { stages: &[BLOOM], ..PLAIN }),
    (&["viking"], Rule { stages: &[BLOOM, Matches(p::digits::<1>)], ..PLAIN }),
    (
        &["chameleon"],
        Rule {
            stages: &[
                Matches(p::chameleon_sentinel),
                Matches(p::chameleon_image),
                Matches(p::tab_newline_or_spaces),
                Matches(p::digits::<1>),
                Matches(p::one_punctuation),
                Matches(p::gpt2),
            ],
            add_bos: true,
            ..PLAIN
        },
    ),
];

impl Rule {
    /// The rule of this name.
    pub fn named(name: &str) -> Option<&'static Rule> {
        RULES.iter().find(|(names, _)| names.contains(&name)).map(|(_, rule)| rule)
    }

    /// Every known name, for the message that refuses an unknown one.
    pub fn names() -> impl Iterator<Item = &'static str> {
        RULES.iter().flat_map(|(names, _)| names.iter().copied())
    }

    /// Where the words of `text` end, as counts of characters from its start; the last is `text.len()`.
    pub fn cut(&self, text: &[Char]) -> Vec<usize> {
        let mut ends = if text.is_empty() { vec![] } else { vec![text.len()] };
        for stage in self.stages {
            let mut finer = Vec::with_capacity(ends.len());
            let mut start = 0;
            for end in ends {
                stage.cut(&text[start..end], start, &mut finer);
                start = end;
            }
            ends = finer;
        }
        ends
    }
}

impl Stage {
    /// Appends the ends of the parts of one piece that begins at `base`.
    fn cut(self, piece: &[Char], base: usize, ends: &mut Vec<usize>) {
        match self {
            Matches(pattern) => {
                let (mut at, mut last) = (0, 0);
                while at < piece.len() {
                    match pattern(&piece[at..]) {
                        0 => at += 1,
                        length => {
                            if at > last {
                                ends.push(base + at);
                            }
                            at += length;
                            last = at;
                            ends.push(base + last);
                        }
                    }
                }
                if last < piece.len() {
                    ends.push(base + piece.len());
                }
            }
            Trailing => {
                let kept = piece.iter().rposition(|c| !c.is(Class::SPACE)).map_or(0, |i| i + 1);
                if kept > 0 && kept < piece.len() {
                    ends.push(base + kept);
                }
                ends.push(base + piece.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::unicode::Chars;
    use super::*;

    fn words(rule: &str, text: &str) -> Vec<String> {
        let chars: Vec<Char> = Chars(text.as_bytes()).collect();
        let mut start = 0;
        let ends = Rule::named(rule).unwrap().cut(&chars);
        ends.into_iter()
            .map(|end| {
                let word = chars[start..end].iter().map(|c| c.c).collect();
                start = end;
                word
            })
            .collect()
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Rule::names().collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_common_rules_cut_as_their_expressions_say() {
        let text = "I'LL pay  $1234\n\n now";
        assert_eq!(words("gpt-2", text), ["I", "'", "LL", " pay", " ", " $", "1234", "\n\n", " now"]);
        assert_eq!(words("llama-bpe", text), ["I", "'LL", " pay", " ", " $", "123", "4", "\n\n", " now"]);
        assert_eq!(words("qwen2", text), ["I", "'LL", " pay", " ", " $", "1", "2", "3", "4", "\n\n", " now"]);
        assert_eq!(words("gpt-4o", text), ["I'LL", " pay", " ", " $", "123", "4", "\n\n", " now"]);
        assert_eq!(words("starcoder", "a12 "), ["a", "1", "2", " "]);
        assert_eq!(words("tekken", "helloWORLDWorld/\n"), ["hello", "WORLDWorld", "/\n"]);
        assert_eq!(words("deepseek-llm", "ab \n  "), ["ab", " ", "\n", "  "]);
    }

    /// The cuts that the models' own expressions make (tests/data/text/make_tokenizers.py).
    #[test]
    fn cuts_are_those_of_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/text/splits.json");
        let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut table = table.as_object().unwrap().clone();
        let texts = table.remove("texts").unwrap();
        let mut checked = 0;
        for (rule, cases) in &table {
            for (text, lengths) in texts.as_array().unwrap().iter().zip(cases.as_array().unwrap()) {
                let text = text[0].as_str().unwrap();
                let expected: Vec<u64> =
                    lengths.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
                let found: Vec<u64> = words(rule, text).iter().map(|w| w.chars().count() as u64).collect();
                assert_eq!(found, expected, "{rule} cuts {text:?} into {:?}", words(rule, text));
                checked += 1;
            }
        }
        assert!(table.len() >= 19 && checked >= 100 * table.len());
    }

    #[test]
    fn every_rule_keeps_every_character_in_linear_time() {
        let long = 50_000;
        for text in
            [" ".repeat(long), "a".repeat(long), "A".repeat(long), "ʰA".repeat(long), " \n".repeat(long)]
        {
            for rule in Rule::names() {
                let ended = text.clone() + "\u{300}x";
                for text in [&text, &ended] {
                    let chars: Vec<Char> = Chars(text.as_bytes()).collect();
                    let ends = Rule::named(rule).unwrap().cut(&chars);
                    assert!(ends.is_sorted_by(|a, b| a < b));
                    assert_eq!(ends.last(), Some(&chars.len()));
                }
            }
        }
    }
}
