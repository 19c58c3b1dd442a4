//! `onlay train`, killed at random moments and continued, writes the bytes of a run that nobody disturbed.
//!
//! `ONLAY_TEST_KILLS` sets how many kills there are.
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
fn train(folder: &Scratch, threads: usize) -> std::process::Command {
    let mut command = onlay();
    let vectors = vectors();
    command.arg("train").arg(vectors.join("llama/F32.gguf"));
    command.arg("--data").arg(vectors.join("llama/curve/data.jsonl")).arg("-o").arg(folder.join("my.gguf"));
    command.arg("--log").arg(folder.join("log.jsonl")).arg("--report").arg(folder.join("report.html"));
    command.args(
        "--rank 2 --ctx 100 --batch-size 4 --max-steps 20 --eval-split 0.2 --eval-every 6 --keep-best"
            .split(' '),
    );
    command.args("--dropout 0.1 --learning-rate 1e-2 --checkpoint-every 2 --resume --json".split(' '));
    command.args(["--threads", &threads.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn killed_at_any_moment_it_writes_the_same_bytes() {
    let whole = Scratch::new("kill-whole");
    let start = Instant::now();
    assert!(train(&whole, 2).output().unwrap().status.success());
    let span = start.elapsed();
    let want = std::fs::read(whole.join("my.gguf")).unwrap();
    let log = std::fs::read_to_string(whole.join("log.jsonl")).unwrap();
    let wanted = std::env::var("ONLAY_TEST_KILLS").map_or(20, |n| n.parse().expect("a number"));
    let mut rng = Rng::new(u64::from(std::process::id()));
    let (mut kills, mut runs, mut written) = (0, 0, 0);
    while kills < wanted {
        let folder = Scratch::new(&format!("kill-{runs}"));
        runs += 1;
        loop {
            let mut child = train(&folder, 1 + rng.below(2) as usize).spawn().unwrap();
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
