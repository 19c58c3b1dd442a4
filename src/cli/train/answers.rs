//! What rows answer, where that is a few things, and how many of them.

use onlay::model::Model;
use onlay::train::{Answers, Balance, Set, Signal};
use serde_json::{Value, json};

/// An answer in words, the rows that have it, and what each of them counts.
pub struct Counted {
    pub answer: String,
    pub rows: usize,
    pub weight: f64,
}

/// The answers of a set, if they are few; of rows with labels, the labels.
pub fn of(set: &Set, balance: Balance, model: &Model) -> Option<Vec<Counted>> {
    if set.signal() == Signal::Labels {
        let good = set.origins.iter().filter(|o| o.role.is_good()).count();
        let all = [("true", good), ("false", set.origins.len() - good)];
        let counted = |(label, rows): (&str, usize)| Counted { answer: label.into(), rows, weight: 1.0 };
        return Some(all.map(counted).into());
    }
    let answers = Answers::count(set);
    if set.signal() != Signal::Shown || !(answers.few() || balance != Balance::None) {
        return None;
    }
    // Rows that cannot be balanced are refused by the plan.
    let weights = balance.weights(set).unwrap_or_default();
    let tokenizer = model.tokenizer().ok();
    let words = |tokens: &[u32]| match tokenizer {
        Some(t) => String::from_utf8_lossy(&t.decode(tokens, true)).trim().to_owned(),
        None => format!("{tokens:?}"),
    };
    let counted = |(number, a): (usize, &onlay::train::Answer)| Counted {
        answer: words(&a.tokens),
        rows: a.rows,
        weight: answers.example_of(number).and_then(|i| weights.get(i)).map_or(1.0, |w| f64::from(*w)),
    };
    Some(answers.all.iter().enumerate().map(counted).collect())
}

/// One line about them.
pub fn line(answers: &[Counted]) -> String {
    const MOST: usize = 12;
    let one = |a: &Counted| {
        let weight = if a.weight == 1.0 { String::new() } else { format!(" (each counts {:.2})", a.weight) };
        let text: String = a.answer.chars().take(24).collect();
        format!("{text:?} {}{weight}", a.rows)
    };
    let mut text: Vec<String> = answers.iter().take(MOST).map(one).collect();
    if answers.len() > MOST {
        text.push(format!("and {} more", answers.len() - MOST));
    }
    format!("answers: {}", text.join(", "))
}

pub fn json(answers: &[Counted]) -> Value {
    answers.iter().map(|a| json!({"answer": a.answer, "rows": a.rows, "weight": a.weight})).collect()
}
