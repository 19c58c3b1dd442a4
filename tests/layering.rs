//! Each floor uses only what is below it, and each dependency lives on its floor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Floors from the ground; what is on one line may use each other.
const FLOORS: &[&[&str]] = &[
    &["error", "rng"],
    &["format", "text"],
    &["tensor"],
    &["ops"],
    &["backend"],
    &["model"],
    &["adapter"],
    &["train"],
    &["eval"],
    &["engine"],
    &["capi", "cli"],
];

/// Where a dependency may be named.
const HOMES: &[(&str, &[&str])] = &[
    ("memmap2", &["tensor"]),
    ("libc", &["tensor"]),
    ("libloading", &["backend"]),
    ("safetensors", &["adapter"]),
    ("minijinja", &["text"]),
    ("minijinja_contrib", &["text"]),
    ("unicode_normalization", &["text"]),
    ("unicode_properties", &["text"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli"]),
    ("ctrlc", &["cli"]),
];

fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
}

/// The source without comments and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&module))
}

#[test]
fn floors_use_only_what_is_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut wrong = Vec::new();
    let mut seen = BTreeMap::new();
    for path in all {
        let inside = path.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs");
        if ["lib", "main", "bin"].contains(&module) {
            continue;
        }
        let here = floor(module).unwrap_or_else(|| panic!("{} is on no floor", inside.display()));
        *seen.entry(module.to_owned()).or_insert(0) += 1;
        let text = code(&path);
        for start in ["crate::", "onlay::"] {
            for (i, _) in text.match_indices(start) {
                let before = text[..i].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                    continue;
                }
                let rest = &text[i + start.len()..];
                // `use crate::{a, b::c}` names several
                let names: Vec<&str> = match rest.strip_prefix('{') {
                    Some(list) => list.split('}').next().unwrap().split(',').map(str::trim).collect(),
                    None => vec![rest],
                };
                for name in names {
                    let name: String =
                        name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    let name =
                        if ["Error", "Kind", "Result"].contains(&name.as_str()) { "error" } else { &name };
                    match floor(name) {
                        Some(there) if there > here => {
                            wrong.push(format!(
                                "{} ({module}) uses {name}, which is above it",
                                inside.display()
                            ));
                        }
                        Some(there) if there == here && name != module && here > 1 => {
                            wrong.push(format!("{} ({module}) uses its neighbour {name}", inside.display()));
                        }
                        _ => {}
                    }
                }
            }
        }
        for (dependency, homes) in HOMES {
            if text.contains(&format!("{dependency}::")) && !homes.contains(&module) {
                wrong.push(format!("{} uses {dependency}, which lives in {homes:?}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(seen.len() >= 8, "the test looked at {seen:?}");
}

#[test]
fn unsafe_is_lifted_only_where_the_plan_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(&root.join("src"), &mut all);
    files(&root.join("kernels/src"), &mut all);
    // the map, blocks of one matrix, the team's borrowed job, the C boundary, a device's driver, dispatch by level, instructions without a name in Rust
    let allowed = [
        "tensor/weights.rs",
        "tensor/mat.rs",
        "tensor/team.rs",
        "capi/boundary.rs",
        "backend/cuda/driver.rs",
        "backend/cuda/queue.rs",
        "src/level.rs",
        "src/narrow.rs",
        "src/half.rs",
        "src/simd/neon.rs",
    ];
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.to_string_lossy().replace('\\', "/");
        if text.contains("allow(unsafe_code)") {
            assert!(allowed.iter().any(|a| name.contains(a)), "{name} lifts the ban on unsafe");
        }
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && (code.contains("unsafe {") || code.contains("unsafe impl")) {
                let near = lines[i.saturating_sub(4)..=i].join("\n");
                assert!(near.contains("SAFETY"), "{name}:{}: unsafe without its sentence", i + 1);
            }
        }
    }
}
