//! `onlay train`, killed at random moments and continued, writes the bytes of a run that nobody disturbed.
//!
//! `ONLAY_TEST_KILLS` sets how many kills there are of every kind of layer.
#![cfg(feature = "cli")]

#[path = "support/cli.rs"]
mod cli;
mod support;
use cli::*;
use onlay::rng::Rng;
use std::process::Stdio;
use std::time::Instant;
use support::vectors;

/// A run with everything that must survive: dropout, shuffling, evaluations, the best layer, a log and a report.
fn train(folder: &Scratch, threads: usize, layer: &str) -> std::process::Command {
    let mut command = onlay();
    let vectors = vectors();
    command.arg("train").arg(vectors.join("llama/F32.gguf"));
    command.arg("--data").arg(vectors.join("llama/curve/data.jsonl")).arg("-o").arg(folder.join("my.gguf"));
    command.arg("--log").arg(folder.join("log.jsonl")).arg("--report").arg(folder.join("report.html"));
    command.args(
        "--ctx 100 --batch-size 4 --max-steps 20 --eval-split 0.2 --eval-every 6 --keep-best".split(' '),
    );
    command.args("--learning-rate 1e-2 --checkpoint-every 2 --resume --json".split(' '));
    command.args(layer.split(' '));
    command.args(["--threads", &threads.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn killed_at_any_moment_it_writes_the_same_bytes() {
    kill("--rank 2 --dropout 0.1", 20);
}

/// Layers with more to remember than numbers, gradients and moments; and moments in 8 bits.
#[test]
fn so_does_every_other_kind_of_layer() {
    for layer in [
        "--method adalora --rank 3 --dropout 0.1",
        "--method ptuning --virtual-tokens 4",
        "--method hft --optimizer adamw8bit",
        "--method dora --rank 2 --dropout 0.1",
        "--method series --rank 2 --scale learned",
    ] {
        kill(layer, 4);
    }
}

/// Kills runs so many times.
fn kill(layer: &str, usual: usize) {
    let name = layer.replace([' ', '-'], "");
    let whole = Scratch::new(&format!("kill-{name}"));
    let start = Instant::now();
    let first = train(&whole, 2, layer).output().unwrap();
    assert!(first.status.success(), "{layer}: {}", String::from_utf8_lossy(&first.stderr));
    let span = start.elapsed();
    let want = std::fs::read(whole.join("my.gguf")).unwrap();
    let log = std::fs::read_to_string(whole.join("log.jsonl")).unwrap();
    let wanted = std::env::var("ONLAY_TEST_KILLS").map_or(usual, |n| n.parse().expect("a number"));
    let mut rng = Rng::new(u64::from(std::process::id()));
    let (mut kills, mut runs, mut written) = (0, 0, 0);
    while kills < wanted {
        let folder = Scratch::new(&format!("kill-{name}-{runs}"));
        runs += 1;
        loop {
            let mut child = train(&folder, 1 + rng.below(2) as usize, layer).spawn().unwrap();
            std::thread::sleep(span.mul_f32(1.1 * rng.uniform()));
            let _ = child.kill();
            let done = child.wait_with_output().unwrap();
            match done.status.code() {
                Some(0) => break,
                None => kills += 1,
                Some(code) => {
                    panic!("exit {code} after {kills} kills: {}", String::from_utf8_lossy(&done.stderr))
                }
            }
            // Whatever the moment, a layer that is there is the whole one.
            if let Ok(found) = std::fs::read(folder.join("my.gguf")) {
                written += 1;
                assert!(found == want, "after {kills} kills");
                if !folder.join("my.gguf.checkpoint").exists()
                    && !folder.join("my.gguf.checkpoint.2").exists()
                {
                    break; // it had only to end
                }
            }
        }
        assert!(want == std::fs::read(folder.join("my.gguf")).unwrap(), "after {kills} kills");
        assert_eq!(log, std::fs::read_to_string(folder.join("log.jsonl")).unwrap(), "after {kills} kills");
        // What was half written when a process died is swept up by the next.
        let left = folder.names().into_iter().filter(|n| n != "my.gguf.lock").collect::<Vec<_>>();
        assert_eq!(left, ["log.jsonl", "my.gguf", "report.html"], "after {kills} kills");
    }
    println!("{kills} kills of {runs} runs, {written} of them after the layer was written");
}
