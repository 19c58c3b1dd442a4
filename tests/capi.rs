//! The C interface from C: what `include/onlay.h` promises, with the library that this very build made.
#![cfg(feature = "capi")]

mod support;
use onlay::format::gguf::{Builder, parse};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;
use support::vectors;

/// The system's libraries, as the header says.
const LINK: &[&str] = &["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"];
const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn header() -> String {
    std::fs::read_to_string(root("include/onlay.h")).unwrap()
}

/// A folder that goes when the test does.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("onlay-capi-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether there is such a program; says so if not.
fn there(program: &str, what: &str) -> bool {
    if !cfg!(target_os = "linux") {
        println!("skipped: the system's libraries are those of Linux here");
        return false;
    }
    let there = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        println!("skipped: no {what}");
    }
    there
}

fn must(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}\n{}{}", text(&out.stdout), text(&out.stderr));
    out
}

/// A library file of this build. Cargo makes it beside this test; an old one would prove nothing.
fn built(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    let time = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified());
    let made = time(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    fn newest(folder: &Path, found: &mut Option<(SystemTime, PathBuf)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("src/cli") || path.ends_with("src/main.rs") {
                continue; // the command, no part of the library
            }
            if path.is_dir() {
                newest(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let time = std::fs::metadata(&path).unwrap().modified().unwrap();
                *found = found.take().filter(|(t, _)| *t >= time).or(Some((time, path)));
            }
        }
    }
    let mut found = None;
    newest(&root("src"), &mut found);
    newest(&root("kernels/src"), &mut found);
    let (source, which) = found.unwrap();
    assert!(made >= source, "{} is older than {}", path.display(), which.display());
    path
}

/// A model of random weights with a tokenizer and a template, and other files that the C program is given.
fn files(folder: &Path) {
    const TEMPLATE: &str = "{{ bos_token }}{% if tone is defined %}({{ tone }}){% endif %}\
        {% if not messages %}{{ raise_exception('nobody speaks') }}{% endif %}\
        {% for m in messages %}{{ m.role }}: {{ m.content }}\
        {% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}";
    let bytes = std::fs::read(vectors().join("llama/F32.gguf")).unwrap();
    let directory = parse(&bytes).unwrap();
    let mut builder = Builder::new();
    builder.copy(directory.metadata(&bytes)).set("tokenizer.chat_template", TEMPLATE);
    for t in directory.tensors() {
        builder.tensor(t.name(&bytes), t.kind(), t.dims(), t.data(&bytes));
    }
    builder.write(&mut std::fs::File::create(folder.join("model.gguf")).unwrap()).unwrap();
    let other = vectors().join("llama-tied-bias");
    std::fs::copy(other.join("F32.gguf"), folder.join("other.gguf")).unwrap();
    std::fs::copy(other.join("lora-all/adapter.gguf"), folder.join("unsigned.gguf")).unwrap();
    let row = |i: usize| {
        let land = ["the land and the sea", "the tall and the small", "in the sand", "the end"][i % 4];
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"say {i}\"}},\
             {{\"role\":\"assistant\",\"content\":\"{land} {land}\"}}]}}\n"
        )
    };
    ["whole", "parts"].iter().for_each(|f| std::fs::create_dir(folder.join(f)).unwrap());
    let text = |i: usize| format!("{{\"text\":\"the land {i}\"}}\n");
    std::fs::write(folder.join("text.jsonl"), (0..8).map(text).collect::<String>()).unwrap();
    std::fs::write(folder.join("train.jsonl"), (0..16).map(row).collect::<String>()).unwrap();
    std::fs::write(folder.join("bad.jsonl"), format!("{}{{\"messages\":5}}\n", row(0))).unwrap();
}

fn compile(source: &Path, to: &Path) {
    let mut cc = Command::new("cc");
    cc.arg("-std=c99").args(STRICT).arg("-I").arg(root("include")).arg(source).arg(built("libonlay.a"));
    must(cc.args(LINK).arg("-o").arg(to));
}

/// Compiles and runs one of the programs, which prints nothing but `done` and what it skips: the library itself must not.
fn program(name: &str) {
    if !there("cc", "C compiler") {
        return;
    }
    let scratch = Scratch::new(name);
    files(&scratch.0);
    let program = scratch.0.join(name);
    compile(&root("tests/capi").join(name).with_extension("c"), &program);
    let out = must(Command::new(&program).arg(&scratch.0));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.lines().all(|l| l == "done" || l.starts_with("skipped: ")), "{text}");
    assert!(text.contains("done") && out.stderr.is_empty(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    print!("{}", text.replace("done\n", ""));
}

#[test]
fn serving_from_c() {
    program("smoke");
}

#[test]
fn learning_from_c() {
    program("learn");
}

/// The program in docs/c.md is compiled as it stands there, and run.
#[test]
fn the_example_of_the_documentation_works() {
    if !there("cc", "C compiler") {
        return;
    }
    let scratch = Scratch::new("example");
    files(&scratch.0);
    let text = std::fs::read_to_string(root("docs/c.md")).unwrap();
    let code = text.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    let (source, program) = (scratch.0.join("example.c"), scratch.0.join("example"));
    std::fs::write(&source, code).unwrap();
    compile(&source, &program);
    let out = must(Command::new(&program).arg(scratch.0.join("model.gguf")).arg("hello"));
    assert!(!out.stdout.is_empty());
    let out = Command::new(&program).arg("nothing-here.gguf").arg("hello").output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("io: nothing-here.gguf: "), "{out:?}");
}

#[test]
fn the_header_is_also_cpp() {
    if !there("c++", "C++ compiler") {
        return;
    }
    let scratch = Scratch::new("cpp");
    let source = scratch.0.join("header.cpp");
    std::fs::write(
        &source,
        "#include \"onlay.h\"\nint main() { return onlay_abi_version() != ONLAY_ABI_VERSION; }\n",
    )
    .unwrap();
    let program = scratch.0.join("header");
    let mut cpp = Command::new("c++");
    cpp.arg("-std=c++11").args(STRICT).arg("-I").arg(root("include")).arg(&source).arg(built("libonlay.a"));
    must(cpp.args(LINK).arg("-o").arg(&program));
    must(&mut Command::new(&program));
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = header();
    let code: String = header.split("/*").map(|part| part.split("*/").last().unwrap()).collect();
    let mut names = BTreeSet::new();
    for (i, _) in code.match_indices("onlay_") {
        let name: String = code[i..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if code[i + name.len()..].starts_with('(') {
            names.insert(name);
        }
    }
    assert!(names.len() > 25, "{names:?}");
    names
}

#[test]
fn the_shared_library_exports_the_header_and_nothing_else() {
    if !there("nm", "nm") {
        return;
    }
    let out = must(Command::new("nm").args(["-D", "--defined-only"]).arg(built("libonlay.so")));
    let text = String::from_utf8(out.stdout).unwrap();
    let exported: BTreeSet<String> =
        text.lines().filter_map(|l| l.split_whitespace().nth(2)).map(str::to_owned).collect();
    assert_eq!(exported, declared());
}
