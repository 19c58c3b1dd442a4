//! Texts of every kind and vocabularies that lie: nothing is lost, nothing panics, nothing takes long.

use std::time::{Duration, Instant};

use onlay::Kind;
use onlay::text::{Encode, Stream, Strings, TokenKind, Tokenizer, Vocabulary};

use super::{OWN, PARSED, PLAIN, SPECIAL, check_offsets, load, round_trip};

/// xorshift64*: every run the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Bytes of several kinds: any, characters, words, spaces, and the vocabulary's own special tokens.
    fn text(&mut self) -> Vec<u8> {
        const PARTS: &[&str] = &[
            "a", "the ", " of", "  ", "\n", "\u{301}", "é", "中", "🙂", "▁", "<|end|>", "<s>", "<0x41>",
            "'ll", "12", "Ġ",
        ];
        let mut text = Vec::new();
        for _ in 0..self.below(30) {
            match self.below(3) {
                0 => text.push(self.next() as u8),
                1 => text.extend_from_slice(PARTS[self.below(PARTS.len())].as_bytes()),
                _ => {
                    let c = char::from_u32(self.next() as u32 % 0x11_0000).unwrap_or('x');
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        text
    }
}

#[test]
fn what_is_encoded_decodes_to_itself() {
    let mut random = Random(7);
    for name in ["spm", "bpe"] {
        let t = Tokenizer::new(&load(name).0).unwrap();
        assert!(t.spells_all_bytes());
        for _ in 0..2000 {
            let text = random.text();
            if name == "spm" && text.windows(3).any(|w| w == "▁".as_bytes()) {
                continue; // To SentencePiece a written ▁ is a space.
            }
            for options in [PLAIN, PARSED] {
                round_trip(&t, &text, options);
                check_offsets(&t, &text, options);
            }
        }
    }
}

#[test]
fn no_text_breaks_a_tokenizer() {
    let mut random = Random(11);
    for name in OWN {
        let t = Tokenizer::new(&load(name).0).unwrap();
        for _ in 0..500 {
            let text = random.text();
            check_offsets(&t, &text, SPECIAL);
            let ids: Vec<u32> = (0..20).map(|_| random.next() as u32 % (t.len() as u32 + 3)).collect();
            let text = t.decode(&ids, true);
            let mut stream = Stream::new(&t, true);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id).to_string()).collect();
            streamed.push_str(stream.finish());
            assert_eq!(streamed, String::from_utf8_lossy(&text));
        }
    }
}

/// Changes one thing about a vocabulary.
fn mutate(v: &mut Vocabulary, random: &mut Random) {
    let any = random.next();
    let at = |n: usize| (any >> 8) as usize % n.max(1);
    let edit = |strings: &mut Strings, random: &mut Random| {
        let place = random.below(strings.len().max(1));
        *strings = strings
            .iter()
            .enumerate()
            .map(|(i, text)| match (i == place, any % 5) {
                (false, _) => text.to_vec(),
                (_, 0) => vec![],
                (_, 1) => text[..text.len() / 2].to_vec(),
                (_, 2) => [text, text].concat(),
                (_, 3) => vec![any as u8; 3000],
                _ => random.text(),
            })
            .collect();
    };
    match random.below(16) {
        0 => edit(&mut v.tokens, random),
        1 => edit(&mut v.merges, random),
        2 => v.tokens = v.tokens.iter().take(at(v.tokens.len())).map(<[u8]>::to_vec).collect(),
        3 if !v.scores.is_empty() => {
            let i = at(v.scores.len());
            v.scores[i] = f32::from_bits(random.next() as u32);
        }
        4 => v.scores.truncate(at(v.scores.len())),
        5..=7 if !v.kinds.is_empty() => {
            let i = at(v.kinds.len());
            v.kinds[i] = random.below(9) as i32 - 1;
        }
        8 => v.kinds.truncate(at(v.kinds.len())),
        9 => v.bos = Some(random.below(2 * v.tokens.len() + 2) as u32),
        10 => v.unk = Some(random.below(v.tokens.len() + 2) as u32),
        11 => v.add_bos = Some(any % 2 == 0),
        12 => v.right_strip.push(random.below(v.tokens.len() + 1) as u32),
        13 if !v.charsmap.is_empty() => {
            let i = at(v.charsmap.len());
            v.charsmap[i] ^= 1 << random.below(8);
        }
        14 => v.charsmap.truncate(at(v.charsmap.len())),
        _ => v.model = ["llama", "gpt2", "bert", "t5", "x"][random.below(5)].into(),
    }
}

#[test]
fn no_vocabulary_breaks_a_tokenizer() {
    let mut random = Random(13);
    let (mut built, mut refused) = (0, 0);
    for name in OWN {
        let (original, _) = load(name);
        for _ in 0..120 {
            let mut v = original.clone();
            for _ in 0..1 + random.below(3) {
                mutate(&mut v, &mut random);
            }
            match Tokenizer::new(&v) {
                Ok(t) => {
                    built += 1;
                    for _ in 0..5 {
                        let text = random.text();
                        check_offsets(&t, &text, SPECIAL);
                        t.decode(&t.encode(&text, SPECIAL), true);
                    }
                }
                Err(e) => {
                    refused += 1;
                    assert!(matches!(e.kind(), Kind::Format | Kind::Unsupported), "{e}");
                    assert!(e.to_string().contains("tokenizer.ggml."), "{e}");
                }
            }
        }
    }
    println!("{built} built, {refused} refused");
    assert!(built > 100 && refused > 100);
}

#[test]
fn long_words_take_no_longer_than_they_must() {
    let mut random = Random(17);
    let letters: Vec<u8> = (0..1_000_000).map(|_| b'a' + (random.next() % 26) as u8).collect();
    for name in OWN {
        let t = Tokenizer::new(&load(name).0).unwrap();
        for text in [&letters, &vec![b'a'; 200_000], &vec![b' '; 200_000], &vec![0xff; 200_000]] {
            let started = Instant::now();
            t.encode(text, SPECIAL);
            assert!(started.elapsed() < Duration::from_secs(30), "{name}: {:?}", started.elapsed());
        }
    }
}

#[test]
fn tokens_made_to_be_slow_are_not() {
    // Every length of a's is a token: look-ups always succeed and are always long.
    let tokens: Vec<String> = (1..200).map(|n| "a".repeat(n)).collect();
    for model in ["llama", "t5"] {
        for kind in [1, 3, 4] {
            let v = Vocabulary {
                model: model.into(),
                scores: (0..tokens.len()).map(|i| i as f32 - 1000.0).collect(),
                kinds: vec![kind; tokens.len()],
                tokens: Strings::from_iter(&tokens),
                ..Vocabulary::default()
            };
            let t = Tokenizer::new(&v).unwrap();
            let started = Instant::now();
            t.encode(&[b'a'; 100_000], PARSED);
            assert!(started.elapsed() < Duration::from_secs(30), "{model} {kind}: {:?}", started.elapsed());
        }
    }
}

#[test]
fn special_tokens_in_text() {
    let (mut v, _) = load("spm");
    let n = v.tokens.len() as u32;
    for (text, kind) in [("<|user|>", 3), ("<b>", 4), ("<b><c>", 4), ("<|eot_id|>", 1)] {
        v.tokens.push(text.as_bytes());
        v.kinds.push(kind);
        v.scores.push(0.0);
    }
    let [user, b, bc, eot] = [n, n + 1, n + 2, n + 3];
    v.right_strip.push(user);
    let t = Tokenizer::new(&v).unwrap();
    let the = t.find("▁the".as_bytes()).unwrap();
    // User-defined tokens are always found, the longest first, and each begins anew.
    assert_eq!(t.encode(b"the<b>the<b><c>", PLAIN), [the, b, the, bc]);
    assert!(!t.encode(b"<|user|> the", PLAIN).contains(&user));
    assert_eq!(t.encode(b"<|user|> \n the", PARSED), [user, the]);
    let with_ends = Encode { special: true, parse_special: false };
    assert_eq!(t.encode(b"the", with_ends), [t.bos().unwrap(), the]);
    assert_eq!(t.encode(b"", with_ends), [t.bos().unwrap()]);
    // A token that is known to end turns does so whatever its file calls it.
    assert_eq!((t.kind(eot), t.eot(), t.is_end_of_generation(eot)), (TokenKind::Control, Some(eot), true));
    assert!(t.is_end_of_generation(t.eos().unwrap()) && !t.is_end_of_generation(the));
    assert_eq!(t.decode(&[t.bos().unwrap(), the, user, the], false), b"thethe");
    assert_eq!(t.decode(&[t.bos().unwrap(), the, user, the], true), b"<s>the<|user|>the");
    // Going on after text keeps the space, going on after a special token does not.
    assert_eq!(Stream::after(&t, &[the], false).push(the), " the");
    assert_eq!(Stream::after(&t, &[the, user], false).push(the), "the");
    assert_eq!(t.stream(false).push(the), "the");
    assert_eq!((t.piece(the), t.name(the)), (&b" the"[..], "▁the".as_bytes()));
    assert_eq!((t.piece(u32::MAX), t.kind(u32::MAX)), (&b""[..], TokenKind::Unused));
    assert_eq!(t.hash(), Tokenizer::new(&v).unwrap().hash());
    assert_ne!(t.hash(), Tokenizer::new(&load("spm").0).unwrap().hash());
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let (v, _) = load("bpe");
    let error = |v: Vocabulary| Tokenizer::new(&v).unwrap_err();
    let e = error(Vocabulary { pre: Some("gpt-9".into()), ..v.clone() });
    assert_eq!(e.kind(), Kind::Unsupported);
    let text = e.to_string();
    assert!(text.starts_with("tokenizer.ggml.pre: \"gpt-9\"") && text.contains("llama-bpe, "), "{text}");
    assert_eq!(error(Vocabulary { pre: None, ..v.clone() }).kind(), Kind::Unsupported);
    let e = error(Vocabulary { model: "rwkv".into(), ..v.clone() });
    assert!(e.to_string().contains("known are llama, gpt2, bert, t5"), "{e}");
    // Everything that is wrong is listed.
    let e = error(Vocabulary { bos: Some(9_999_999), eos: Some(u32::MAX), ..v.clone() });
    assert_eq!((e.kind(), e.findings().len()), (Kind::Format, 2));
    let e = error(Vocabulary { add_bos: Some(true), bos: None, ..v });
    assert!(e.to_string().contains("bos_token_id"), "{e}");
}
