//! Rows that judge: what they become, what is refused, and runs over them: deterministic, continued to the bit, and better at
//! the end.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/runs.rs"]
mod runs;
mod support;
use onlay::model::Model;
use onlay::train::objective::named;
use onlay::train::{
    Data, Encoder, Event, Example, Flow, Length, Long, Origin, Outcome, Recipe, Role, Run, RunOptions,
    RunPlan, Set, Signal, split,
};
use onlay_kernels::Level;
use rows::{bytes_tokenizer, encode, encoder, findings, parse, template, texts};
use runs::{Disk, MODEL, end, finish, layer, small};
use serde_json::{Value, json};
use std::sync::Arc;
use support::*;

#[test]
fn of_judged_rows_the_answers_are_learned() {
    let t = bytes_tokenizer(true);
    let plain = json!({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5!"});
    let set = encode(&encoder(&t, None), &parse(plain.to_string()).unwrap()).unwrap();
    assert_eq!(texts(&set, 0, &t), ("<s>2 + 2 = 4</s>".into(), " 4</s>".into()));
    assert_eq!(texts(&set, 1, &t), ("<s>2 + 2 = 5!</s>".into(), " 5!</s>".into()));
    assert_eq!(set.origins.iter().map(|o| o.role).collect::<Vec<_>>(), [Role::Chosen, Role::Rejected]);
    assert_eq!((set.signal(), set.units(), set.facts().rows), (Signal::Pairs, 1, 1));

    // an implicit prompt is what both begin with, as TRL finds it
    let implicit = json!({"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5!"});
    assert_eq!(encode(&encoder(&t, None), &parse(implicit.to_string()).unwrap()).unwrap(), set);

    let t = bytes_tokenizer(false);
    let chat = template("chatml.jinja", &t);
    let say = |role: &str, text: &str| json!({"role": role, "content": text});
    let prompt = [say("user", "One?"), say("assistant", "Two."), say("user", "Three?")];
    let explicit = json!({"prompt": prompt, "chosen": [say("assistant", "Four.")], "rejected": [say("assistant", "Go.")]});
    let whole = |answer: &str| [&prompt[..], &[say("assistant", answer)]].concat();
    let implicit = json!({"chosen": whole("Four."), "rejected": whole("Go.")});
    let of = |row: &Value| encode(&encoder(&t, Some(&chat)), &parse(row.to_string()).unwrap()).unwrap();
    let set = of(&explicit);
    // what the assistant said in the prompt is not judged
    assert_eq!(texts(&set, 0, &t).1, "Four.<|im_end|>");
    assert_eq!(texts(&set, 1, &t).1, "Go.<|im_end|>");
    assert!(texts(&set, 0, &t).0.contains("Two.<|im_end|>"));
    assert_eq!(of(&implicit), set);

    let row =
        |label: bool| json!({"prompt": prompt, "completion": [say("assistant", "Four.")], "label": label});
    let set = of(&json!([row(true), row(false)]));
    assert_eq!(set.examples[0], set.examples[1]);
    assert_eq!(texts(&set, 0, &t).1, "Four.<|im_end|>");
    assert_eq!(set.origins.iter().map(|o| o.role).collect::<Vec<_>>(), [Role::Desirable, Role::Undesirable]);
    // what is said of them is part of their identity
    assert_ne!(set.hash(), of(&json!([row(false), row(true)])).hash());
}

#[test]
fn everything_wrong_with_judged_rows_is_listed_with_its_line() {
    let cases: &[(&str, &[(u64, &str)])] = &[
        (
            "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}\n{\"prompt\": \"a\", \"chosen\": \" \", \"rejected\": 1}",
            &[
                (1, "chosen and rejected are the same"),
                (2, "chosen: empty"),
                (2, "rejected: expected a text or messages, found a number"),
            ],
        ),
        (
            "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}",
            &[(2, "format of the row: expected preference, as the rows before, found completion")],
        ),
        (
            "{\"prompt\": \"a\", \"chosen\": [{\"role\": \"assistant\", \"content\": \"b\"}], \"rejected\": \"c\"}\n{\"prompt\": 1, \"chosen\": \"b\", \"rejected\": \"c\"}\n{\"chosen\": [], \"rejected\": \"c\"}\n{\"chosen\": [{\"role\": \"assistant\", \"content\": \"b\"}], \"rejected\": \"c\"}",
            &[
                (1, "chosen: expected a text as the prompt is, found a list"),
                (2, "prompt: expected a text or messages, found a number"),
                (2, "prompt: expected a text or messages, found a number"),
                (3, "chosen: empty"),
                (4, "prompt: missing"),
            ],
        ),
        (
            "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": 1}\n{\"prompt\": \"a\", \"completion\": \"\", \"label\": \"yes\"}\n{\"prompt\": \"a\", \"completion\": \"b\", \"label\": null}",
            &[
                (1, "label: expected true or false, found 1"),
                (2, "completion: empty"),
                (2, "label: expected true or false, found a text"),
                (3, "label: expected true or false, found null"),
            ],
        ),
    ];
    for (file, expected) in cases {
        let error = parse(file).expect_err(file);
        let found = findings(&error);
        assert_eq!(found.len(), expected.len(), "{error}");
        for ((line, text), (expected_line, words)) in found.iter().zip(*expected) {
            assert!(line == expected_line && text.contains(words), "{text}\n{expected_line} {words}");
        }
    }

    // what only the tokens show
    let t = bytes_tokenizer(false);
    let chat = template("chatml.jinja", &t);
    let refused = |encoder: &Encoder<'_>, file: &str, expected: &[(u64, &str)]| {
        let error = encode(encoder, &parse(file).unwrap()).expect_err(file);
        assert!(error.to_string().starts_with("data.jsonl: "), "{error}");
        let found = findings(&error);
        assert_eq!(found.len(), expected.len(), "{error}");
        for ((line, text), (expected_line, words)) in found.iter().zip(expected) {
            assert!(line == expected_line && text.contains(words), "{text}\n{expected_line} {words}");
        }
    };
    let same = "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": true}\n";
    refused(&encoder(&t, None), &same.repeat(3), &[(1, "all 3 rows from here on say true")]);
    let short = Encoder { context: 3, long: Long::Truncate, ..encoder(&t, None) };
    let row = |chosen: &str, rejected: &str| json!({"prompt": "ab", "chosen": chosen, "rejected": rejected});
    let file = format!("{}\n{}\n", row("cde", "cdf"), row("cd", "ef"));
    refused(&short, &file, &[(1, "the same tokens in the tokens that fit the context")]);
    let tight = Encoder { context: 3, ..encoder(&t, None) };
    refused(&tight, &file, &[(1, "chosen"), (1, "rejected"), (2, "chosen"), (2, "rejected")]);
    let silent = json!({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "chosen": [{"role": "user", "content": "c"}], "rejected": [{"role": "assistant", "content": "d"}]});
    let text = silent.to_string();
    refused(&encoder(&t, Some(&chat)), &text, &[(1, "chosen: nothing of the row is learned")]);
}

/// Answers that go on with a motif, and others; as pairs, or as rows with a label.
fn judged(signal: Signal, rows: usize) -> Set {
    let mut set = Set::default();
    for row in 0..rows {
        let motif: Vec<u32> = (0..4).map(|i| (row * 7 + i * 3) as u32 % 200).collect();
        let prompt: Vec<u32> = motif.iter().cycle().take(6 + row % 5).copied().collect();
        let answer = |good: bool| -> Vec<u32> {
            let n = 4 + (row + usize::from(good)) % 6;
            (0..n)
                .map(|i| if good { motif[(prompt.len() + i) % 4] } else { (row * 31 + i * 17) as u32 % 200 })
                .collect()
        };
        let mut push = |role: Role| {
            let answer = answer(role.is_good());
            let trained = (0..prompt.len() + answer.len()).map(|i| i >= prompt.len()).collect();
            set.examples.push(Example { tokens: [prompt.clone(), answer].concat(), trained });
            set.origins.push(Origin { row, role, lost: 0 });
        };
        match signal {
            Signal::Pairs => [Role::Chosen, Role::Rejected].map(&mut push).into_iter().for_each(drop),
            _ => push(if row % 2 == 0 { Role::Desirable } else { Role::Undesirable }),
        }
    }
    set
}

fn data(signal: Signal) -> Data {
    let (train, eval) = split(judged(signal, 16), 0.25, 3).unwrap();
    assert_eq!((train.units(), eval.units()), (12, 4));
    Data { train, eval }
}

fn run(model: &Arc<Model>, objective: &str, options: RunOptions, disk: &Disk) -> onlay::Result<Run> {
    let objective = named(objective).unwrap();
    let options = RunOptions { objective: Some(objective), rows_of_a_pass: None, ..options };
    Run::new(
        model.clone(),
        layer(model, "", 2),
        data(objective.signal),
        options,
        Some(Box::new(disk.clone())),
    )
}

#[test]
fn runs_over_judged_rows_are_continued_to_the_bit() {
    let model = open(vectors().join(MODEL));
    for objective in ["dpo", "orpo", "kto"] {
        let disk = Disk::default();
        let mut whole = run(&model, objective, small(2), &disk).unwrap();
        let want = finish(&mut whole, &disk);
        // one thread, another division of the window, everything kept
        let other = RunOptions {
            batch_size: 4,
            grad_accumulation: 1,
            keep: onlay::train::Keep::Registers,
            ..small(1)
        };
        let disk = Disk::default();
        assert!(want == finish(&mut run(&model, objective, other, &disk).unwrap(), &disk), "{objective}");
        // stopped after some event, and continued
        for events in (0..28).step_by(3) {
            let (disk, mut seen) = (Disk::default(), 0);
            let mut first = run(&model, objective, small(1 + events % 2), &disk).unwrap();
            let outcome = first.go(&mut |_| {
                seen += 1;
                if seen > events { Flow::Stop } else { Flow::Go }
            });
            let found = match outcome.unwrap() {
                Outcome::Finished(summary) => end(&first, &summary, &disk),
                _ => finish(&mut run(&model, objective, small(2), &disk).unwrap(), &disk),
            };
            assert!(want == found, "{objective}, stopped after event {events}");
        }
    }
}

#[test]
fn the_objective_and_its_numbers_are_terms_of_the_run() {
    let model = open(vectors().join(MODEL));
    let disk = Disk::default();
    let mut first = run(&model, "dpo", small(1), &disk).unwrap();
    let mut seen = 0;
    first
        .go(&mut |e| {
            seen += usize::from(matches!(e, Event::Step(_)));
            if seen == 3 { Flow::Stop } else { Flow::Go }
        })
        .unwrap();
    assert_eq!(first.terms().get("objective"), Some("dpo"));
    assert_eq!((first.terms().get("beta"), first.terms().get("label-smoothing")), (Some("0.1"), Some("0")));
    let other = RunOptions { numbers: vec![("beta", 0.2)], ..small(1) };
    let error = run(&model, "dpo", other, &disk).unwrap_err().to_string();
    assert!(error.contains("beta") && !error.contains("objective"), "{error}");
    let error = run(&model, "ipo", small(1), &disk).unwrap_err().to_string();
    assert!(error.contains("objective: \"ipo\" now, \"dpo\" in the checkpoint"), "{error}");
    assert!(error.contains("label-smoothing"), "{error}");

    // and of the manifest
    let Outcome::Finished(summary) =
        run(&model, "dpo", small(2), &disk).unwrap().go(&mut |_| Flow::Go).unwrap()
    else {
        panic!()
    };
    let manifest = summary.manifest(&model);
    let recipe = manifest.recipe.unwrap();
    assert_eq!((&recipe["objective"], &recipe["beta"]), (&json!("dpo"), &json!("0.1")));
    let evaluations = &manifest.metrics.unwrap()["evaluations"];
    assert!(evaluations[0]["eval_rewards/accuracies"].is_number(), "{evaluations}");
}

#[test]
fn a_new_layer_begins_at_the_base_and_learns_what_is_better() {
    let model = open(vectors().join(MODEL));
    for (objective, start) in
        [("dpo", Some(2f64.ln())), ("ipo", Some(25.0)), ("kto", Some(0.5)), ("orpo", None), ("simpo", None)]
    {
        let options = RunOptions {
            length: Length::Steps(30),
            batch_size: 6,
            grad_accumulation: 1,
            recipe: Recipe { rate: 3e-3, ..Recipe::default() },
            seed: 1,
            ..RunOptions::new(Level::chosen().unwrap(), 2)
        };
        let mut run = run(&model, objective, options, &Disk::default()).unwrap();
        let mut log = Vec::new();
        let outcome = run
            .go(&mut |e| {
                log.extend(e.log_line());
                Flow::Go
            })
            .unwrap();
        let Outcome::Finished(summary) = outcome else { panic!() };
        let steps: Vec<&Value> = log.iter().filter(|l| l.get("loss").is_some()).collect();
        for name in
            ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"]
        {
            assert!(steps.iter().all(|s| s[name].is_number() || objective == "kto"), "{objective} {name}");
        }
        // B is zero: with and without the layer, every bit is the same
        if let Some(loss) = start {
            assert!((steps[0]["loss"].as_f64().unwrap() - loss).abs() < 1e-12, "{objective}: {}", steps[0]);
            assert_eq!(steps[0]["rewards/chosen"], 0.0, "{}", steps[0]);
        }
        let (before, after) = summary.before_and_after().unwrap();
        let (_, right) = summary.accuracies().unwrap();
        assert!(
            after < before && (right >= 0.5 || objective == "orpo"),
            "{objective}: {before} {after} {right}"
        );
        println!(
            "{objective}: held out {before:.4} → {after:.4}, {right:.2} right; last {}",
            steps.last().unwrap()
        );
    }
}

#[test]
fn rows_that_do_not_fit_their_objective_are_refused_before_anything_is_computed() {
    let model = open(vectors().join(MODEL));
    let refused = |data: &Data, options: &RunOptions, expected: &[&str]| {
        let error = RunPlan::new(&model, &layer(&model, "", 2), data, options).unwrap_err();
        for words in expected {
            assert!(error.to_string().contains(words), "{words} is not in: {error}");
        }
        assert_eq!(error.findings().len().max(1), expected.len(), "{error}");
    };
    let base = RunOptions::new(Level::chosen().unwrap(), 1);
    let with = |objective: &str| RunOptions { objective: Some(named(objective).unwrap()), ..base.clone() };
    refused(&data(Signal::Pairs), &with("sft"), &["rows for sft"]);
    refused(&data(Signal::Pairs), &with("kto"), &["rows for kto"]);
    refused(&data(Signal::Labels), &with("dpo"), &["rows for dpo"]);
    let beta = RunOptions { numbers: vec![("beta", -1.0), ("simpo-gamma", 1.0)], ..base.clone() };
    refused(&data(Signal::Pairs), &beta, &["beta", "simpo-gamma is no number of dpo"]);
    let alone = RunOptions { batch_size: 1, ..base.clone() };
    refused(&data(Signal::Labels), &alone, &["completions change their prompts"]);
    let mut one = data(Signal::Labels);
    one.train.origins.iter_mut().for_each(|o| o.role = Role::Desirable);
    refused(&one, &base, &["all labels"]);
    let mixed = Data { train: data(Signal::Pairs).train, eval: data(Signal::Labels).eval };
    refused(&mixed, &base, &["evaluation rows"]);
    let small = RunOptions { rows_of_a_pass: Some(20), ..base.clone() };
    refused(&data(Signal::Pairs), &small, &["the longest pair"]);
    assert!(split(judged(Signal::Pairs, 1), 0.5, 0).is_err(), "a pair is not divided");
    // the plan counts what judged rows need
    let plan = RunPlan::new(&model, &layer(&model, "", 2), &data(Signal::Labels), &base).unwrap();
    assert_eq!(plan.goal.objective.name, "kto");
    assert!(plan.memory.parts.iter().any(|(name, bytes)| *name == "judged rows" && *bytes > 0));
}
