//! Every block format and both 16-bit types against the references, from vectors made by `data/make_formats.py`.

use onlay_kernels::Level;
use onlay_kernels::dense::{self, Dense};
use onlay_kernels::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use onlay_kernels::quant::{FORMATS, Format};
use std::process::Command;

const BLOCKS: usize = 192;
const WEIGHTS: usize = 64 * 256;

/// In the order of `make_formats.py`, with the places of the f16 numbers in a block.
const NAMES: [(&str, &[usize]); 12] = [
    ("Q4_0", &[0]),
    ("Q4_1", &[0, 2]),
    ("Q5_0", &[0]),
    ("Q5_1", &[0, 2]),
    ("Q8_0", &[0]),
    ("Q2_K", &[80, 82]),
    ("Q3_K", &[108]),
    ("Q4_K", &[0, 2]),
    ("Q5_K", &[0, 2]),
    ("Q6_K", &[208]),
    ("IQ4_NL", &[0]),
    ("IQ4_XS", &[0]),
];

const DISTRIBUTIONS: [&str; 13] = [
    "normal", "uniform", "heavy", "outliers", "sparse", "mixed", "positive", "ternary", "constant", "zero",
    "tiny", "small", "large",
];

/// The i-th 64-bit number of a stream: splitmix64's finaliser over a counter.
fn word(stream: u64, i: u64) -> u64 {
    let z = ((stream << 32) + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Nearly normal integers: the sum of eight 16-bit numbers, centred.
fn bell(stream: u64, i: u64) -> i64 {
    let quarters = |w: u64| [w, w >> 16, w >> 32, w >> 48].iter().map(|v| (v & 0xffff) as i64).sum::<i64>();
    quarters(word(stream, 2 * i)) + quarters(word(stream, 2 * i + 1)) - 262_140
}

fn scaled(integer: i64, exponent: i32) -> f32 {
    (integer as f64 * 2f64.powi(exponent)) as f32
}

/// The twin of `weights_of` in `make_formats.py`, where each distribution is described.
fn weights_of(name: &str) -> Vec<f32> {
    let stream = 1000 + DISTRIBUTIONS.iter().position(|d| *d == name).expect("a known distribution") as u64;
    let one = |i: u64| {
        let (normal, other) = (bell(stream, i), word(stream + 100, i));
        match name {
            "normal" => scaled(normal, -20),
            "uniform" => scaled((other & 0xffff) as i64 - 32768, -19),
            "heavy" => scaled(normal << ((other | 1 << 16).trailing_zeros() / 2), -20),
            "outliers" => scaled(if other % 256 == 0 { normal * 32 } else { normal }, -20),
            "sparse" => {
                let kept = if other % 10 == 0 { normal } else { 0 };
                scaled(if other % 1000 == 0 { normal * 64 } else { kept }, -20)
            }
            "mixed" => scaled(normal << (word(stream + 100, i / 32) % 6), -23),
            "positive" => scaled((other & 0xffff) as i64 + 8192, -20),
            "ternary" => {
                let c = (word(stream + 100, (1 << 20) + i / 256) % 1000) as i64 + 1;
                scaled(((other % 3) as i64 - 1) * c, -12)
            }
            "constant" => scaled(bell(stream, i / 256), -20),
            "zero" => 0.0,
            "tiny" => scaled(normal, -120),
            "small" => scaled(normal, -36),
            "large" => scaled(normal, -2),
            other => panic!("unknown distribution {other}"),
        }
    };
    (0..WEIGHTS as u64).map(one).collect()
}

/// The twin of `blocks_of` in `make_formats.py`: random bytes with finite f16 numbers, special ones first.
fn blocks_of(format: &Format) -> Vec<u8> {
    const SPECIAL: [u16; 12] =
        [0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x3c00, 0xbc00, 0x7bff, 0xfbff];
    let stream = NAMES.iter().position(|(n, _)| *n == format.name).expect("a known format") as u64;
    let mut out: Vec<u8> =
        (0..(BLOCKS * format.bytes) as u64).map(|i| (word(stream, i) >> 40) as u8).collect();
    for (b, block) in out.chunks_exact_mut(format.bytes).enumerate() {
        for (field, &place) in NAMES[stream as usize].1.iter().enumerate() {
            let mut h = word(stream + 100, (2 * b + field) as u64) as u16;
            if h & 0x7c00 == 0x7c00 {
                h ^= 0x4000;
            }
            if b < SPECIAL.len() * SPECIAL.len() {
                h = SPECIAL[b / SPECIAL.len().pow(field as u32) % SPECIAL.len()];
            }
            block[place..place + 2].copy_from_slice(&h.to_le_bytes());
        }
    }
    out
}

/// FNV-1a, 64 bits.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// The sums of (w − v)² and of w²(w − v)².
fn errors(weights: &[f32], values: &[f32]) -> [f64; 2] {
    let mut sums = [0.0; 2];
    for (&w, &v) in weights.iter().zip(values) {
        let (w, e) = (f64::from(w), f64::from(w) - f64::from(v));
        sums[0] += e * e;
        sums[1] += w * w * e * e;
    }
    sums
}

fn encode_and_decode(format: &Format, weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut blocks = vec![0xa5; weights.len() / format.len * format.bytes];
    (format.encode)(weights, &mut blocks);
    let mut values = vec![f32::NAN; weights.len()];
    (format.decode)(&blocks, &mut values);
    (blocks, values)
}

#[test]
fn decode_has_the_bits_of_the_references() {
    for line in include_str!("data/decode.txt").lines() {
        let mut words = line.split(' ');
        let name = words.next().expect("a name");
        let format = FORMATS.iter().find(|f| f.name == name).expect("a known format");
        let blocks = blocks_of(format);
        let mut values = vec![f32::NAN; BLOCKS * format.len];
        (format.decode)(&blocks, &mut values);
        for (b, values) in values.chunks_exact(format.len).enumerate() {
            let want = u64::from_str_radix(words.next().expect("a hash per block"), 16).expect("a hash");
            let got = fnv(values.iter().flat_map(|v| v.to_le_bytes()));
            assert_eq!(got, want, "{name} block {b}: {values:?}");
        }
        assert_eq!(words.next(), None);
    }
}

/// `cargo test --release --test formats -- --nocapture` prints, per format and distribution, our root mean square
/// error over the reference's: of every weight alike / weighted with w².
#[test]
fn encode_errs_no_more_than_the_reference() {
    let mut worse = Vec::new();
    for (n, line) in include_str!("data/encode.txt").lines().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let format = FORMATS.iter().find(|f| f.name == words[0]).expect("a known format");
        let want = [2, 3].map(|i: usize| words[i].parse::<f64>().expect("a number"));
        let weights = weights_of(words[1]);
        let (_, values) = encode_and_decode(format, &weights);
        let got = errors(&weights, &values);
        let ratio = |i: usize| if got[i] == want[i] { 1.0 } else { (got[i] / want[i]).sqrt() };
        if n % DISTRIBUTIONS.len() == 0 {
            print!("\n{:6}", words[0]);
        }
        print!("  {} {:.4}/{:.4}", words[1], ratio(0), ratio(1));
        if ratio(0).is_nan() || ratio(0) > 1.0 + 1e-6 {
            worse.push(format!("{} {}: {:.6} of the reference's", words[0], words[1], ratio(0)));
        }
    }
    println!();
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn wild_weights_do_no_harm() {
    let zero = |weights: &[f32]| errors(weights, &vec![0.0; weights.len()])[0];
    for format in FORMATS {
        let normal = &weights_of("normal")[..512];
        for wild in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = normal.to_vec();
            weights[3] = 0.0;
            let (want, _) = encode_and_decode(format, &weights);
            weights[3] = wild;
            let (got, values) = encode_and_decode(format, &weights);
            assert_eq!(got, want, "{format:?}: {wild} is encoded as zero would be");
            assert!(values.iter().all(|v| v.is_finite()));
            weights.fill(wild);
            let (_, values) = encode_and_decode(format, &weights);
            assert!(values.iter().all(|v| *v == 0.0), "{format:?}");
        }
        // at every order of magnitude zeros would be no better
        for exponent in -149..128 {
            let top = 2f64.powi(exponent) as f32;
            for shape in 0..4 {
                let weights: Vec<f32> = (0..512)
                    .map(|i| match shape {
                        0 => top,
                        1 => -top,
                        2 => normal[i] * top,
                        _ => [0.0, top, -top / 2.0][i % 3],
                    })
                    .collect();
                let (_, values) = encode_and_decode(format, &weights);
                assert!(values.iter().all(|v| v.is_finite()), "{format:?} 2^{exponent}");
                let error = errors(&weights, &values)[0];
                assert!(error <= zero(&weights) * (1.0 + 1e-6), "{format:?} 2^{exponent} {shape}");
            }
        }
        // too large for any scale: the largest of both signs
        let (_, values) = encode_and_decode(format, &[[f32::MAX, f32::MIN]; 256].concat());
        assert!(values.iter().zip([1.0, -1.0].iter().cycle()).all(|(v, sign)| v * sign > 6e4), "{format:?}");
    }
}

/// The FNV-1a hash of our bytes, all distributions one after the other.
const BYTES: [(&str, u64); 12] = [
    ("Q4_0", 0xb220_68aa_0584_fec7),
    ("Q4_1", 0xc566_9903_2eb4_2742),
    ("Q5_0", 0xcee9_77be_36f2_0cc3),
    ("Q5_1", 0xc646_a39c_7632_064a),
    ("Q8_0", 0x573c_70b6_72cb_6162),
    ("Q2_K", 0x5c9b_85aa_f0c2_cb34),
    ("Q3_K", 0x2531_b640_8689_fc6c),
    ("Q4_K", 0x4aef_59b0_1432_05a4),
    ("Q5_K", 0x487e_a009_1270_b82b),
    ("Q6_K", 0xb10a_4a0a_bbe1_45ed),
    ("IQ4_NL", 0xb3b1_62ba_3b70_2597),
    ("IQ4_XS", 0x3cc4_188d_4366_ee82),
];

#[test]
fn encoded_bytes_are_these() {
    let got: Vec<(&str, u64)> = FORMATS
        .iter()
        .map(|f| (f.name, fnv(DISTRIBUTIONS.iter().flat_map(|d| encode_and_decode(f, &weights_of(d)).0))))
        .collect();
    assert_eq!(got, BYTES, "at level {:?}", Level::chosen());
}

/// The level is chosen once per process, so each gets its own. An emulator that runs this test must run that one too:
/// `ONLAY_TEST_RUNNER` is its command.
#[test]
fn encoded_bytes_are_these_at_every_level() {
    let this = std::env::current_exe().expect("a path to this test");
    let runner = std::env::var("ONLAY_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().map(Into::into).chain([this.into_os_string()]);
    let (program, rest) = (words.next().expect("this test at least"), words.collect::<Vec<_>>());
    for level in Level::available() {
        let out = Command::new(&program)
            .args(&rest)
            .args(["--exact", "encoded_bytes_are_these"])
            .env(Level::VARIABLE, level.name())
            .output()
            .expect("this test runs itself");
        assert!(out.status.success(), "{level:?}: {}", String::from_utf8_lossy(&out.stdout));
        assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
    }
}

/// f32 patterns around every 16-bit magnitude of `widen` below `end` and around the midpoints between neighbours, then
/// random ones, then all again with the sign set: the inputs of `halves.txt`.
fn halves(widen: fn(u16) -> f32, end: u16) -> Vec<u32> {
    let mut out = Vec::new();
    for h in 0..end - 1 {
        let (a, b) = (widen(h), widen(h + 1));
        for point in [a, ((f64::from(a) + f64::from(b)) / 2.0) as f32] {
            out.extend([0, 1, 2].map(|step| point.to_bits().wrapping_add(step).wrapping_sub(1)));
        }
    }
    out.remove(0); // the pattern below zero
    out.extend((0..65536).map(|i| (word(900, i) >> 32) as u32));
    for i in 0..out.len() {
        out.push(out[i] | 0x8000_0000);
    }
    out.truncate(out.len() / 4096 * 4096);
    out
}

#[test]
fn sixteen_bit_floats_convert_as_the_references_do() {
    // a NaN's payload is the platform's business in F16
    let f16 = |x: f32| if x.is_nan() { 0x7e00 } else { f32_to_f16(x) };
    let narrow = |convert: fn(f32) -> u16, dense: Dense, inputs: Vec<u32>| -> Vec<Vec<u8>> {
        let inputs: Vec<f32> = inputs.into_iter().map(f32::from_bits).collect();
        let mut slices = vec![0; 2 * inputs.len()];
        dense::encode(dense, &inputs, &mut slices);
        for (x, slice) in inputs.iter().zip(slices.as_chunks().0) {
            let one = if dense == Dense::F16 { f32_to_f16(*x) } else { f32_to_bf16(*x) };
            assert_eq!(u16::from_le_bytes(*slice), one, "{x}");
        }
        let bytes = |c: &[f32]| c.iter().flat_map(|x| convert(*x).to_le_bytes()).collect();
        inputs.chunks_exact(4096).map(bytes).collect()
    };
    for line in include_str!("data/halves.txt").lines() {
        let mut words = line.split(' ');
        let chunks: Vec<Vec<u8>> = match words.next().expect("a name") {
            "f16-to-f32" => (0..16u16)
                .map(|c| {
                    let one = |v: f32| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
                    (0..4096).flat_map(|i| one(f16_to_f32(4096 * c + i)).to_le_bytes()).collect()
                })
                .collect(),
            "f32-to-f16" => narrow(f16, Dense::F16, halves(f16_to_f32, 0x7c00)),
            "f32-to-bf16" => narrow(f32_to_bf16, Dense::Bf16, halves(bf16_to_f32, 0x7f80)),
            other => panic!("unknown conversion {other}"),
        };
        for (c, bytes) in chunks.into_iter().enumerate() {
            let want = u64::from_str_radix(words.next().expect("a hash"), 16).expect("a hash");
            assert_eq!(fnv(bytes), want, "{line:.12} chunk {c}");
        }
        assert_eq!(words.next(), None);
    }
}
