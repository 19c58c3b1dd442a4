//! Rows whose answers are few and unequal in number, and weights that make up for it.
//!
//! ```text
//! answer c of a row     the tokens that are learned of it, all together; n_c rows have it
//! inverse               w_i ∝ 1/n_c            every answer counts alike
//! sqrt                  w_i ∝ 1/√n_c           halfway there
//!                       Σ w_i = rows           so that the mean weight is 1 and the learning rate means what it did
//! loss of a window      L = (1/N) Σ_i w_i Σ_t −log p(token t of row i)        over its N trained tokens
//! ```
//! N is not weighted: a window that has one answer only would otherwise lose its weight again. Evaluation rows are not
//! weighted; they say how the rows are that will come.

use super::{Set, Signal};
use crate::error::{Error, Kind, Result};
use std::collections::HashMap;

/// The most answers that are counted out to whoever looks on.
const FEW: usize = 32;

/// The most answers that rows can be balanced by.
const MOST: usize = 1024;

/// How much rows of rare answers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// As all others.
    #[default]
    None,
    /// By the root of how rare they are.
    Sqrt,
    /// By how rare they are.
    Inverse,
}

/// An answer and how many rows have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Rows that have it.
    pub rows: usize,
}

/// Answers of the rows of a set.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// From the most frequent on; of those alike in number the first in the set.
    pub all: Vec<Answer>,
    /// For each sequence the number of its answer.
    of: Vec<usize>,
}

impl Answers {
    /// Counts the answers of a set.
    pub fn count(set: &Set) -> Answers {
        let mut known: HashMap<Vec<u32>, usize> = HashMap::new();
        let mut all: Vec<Answer> = Vec::new();
        let mut of = Vec::with_capacity(set.examples.len());
        for e in &set.examples {
            let learned = e.tokens.iter().zip(&e.trained).skip(1).filter(|(_, t)| **t);
            let tokens: Vec<u32> = learned.map(|(token, _)| *token).collect();
            let number = *known.entry(tokens).or_insert_with_key(|tokens| {
                all.push(Answer { tokens: tokens.clone(), rows: 0 });
                all.len() - 1
            });
            all[number].rows += 1;
            of.push(number);
        }
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(all[*i].rows));
        let mut place = vec![0; all.len()];
        order.iter().enumerate().for_each(|(to, from)| place[*from] = to);
        of.iter_mut().for_each(|n| *n = place[*n]);
        Answers { all: order.into_iter().map(|i| all[i].clone()).collect(), of }
    }

    /// The first sequence that has an answer.
    pub fn example_of(&self, number: usize) -> Option<usize> {
        self.of.iter().position(|n| *n == number)
    }

    /// Whether the rows look like those of a classification: 2 to 32 answers, four rows and more for each in the mean.
    pub fn few(&self) -> bool {
        (2..=FEW).contains(&self.all.len()) && 4 * self.all.len() <= self.of.len()
    }
}

impl Balance {
    /// All there are.
    pub const ALL: [Balance; 3] = [Balance::None, Balance::Sqrt, Balance::Inverse];

    /// `none`, `sqrt` or `inverse`.
    pub fn name(self) -> &'static str {
        match self {
            Balance::None => "none",
            Balance::Sqrt => "sqrt",
            Balance::Inverse => "inverse",
        }
    }

    /// The balance of that name.
    ///
    /// # Errors
    /// `Argument` naming all.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|b| b.name() == name);
        found.ok_or_else(|| Error::expected(Kind::Argument, "balance", "none, sqrt or inverse", name))
    }

    /// The weight of each sequence of a set; none without a balance.
    ///
    /// # Errors
    /// `Argument` for judged rows, and for rows whose answers are too many to be balanced.
    pub fn weights(self, set: &Set) -> Result<Vec<f32>> {
        let refuse =
            |expected: &str, found: String| Err(Error::expected(Kind::Argument, "balance", expected, found));
        let power = match self {
            Balance::None => return Ok(Vec::new()),
            Balance::Sqrt => 0.5,
            Balance::Inverse => 1.0,
        };
        match set.signal() {
            Signal::Shown => {}
            Signal::Pairs => {
                return refuse(
                    "supervised rows",
                    "pairs, each of which has a better and a worse answer".into(),
                );
            }
            Signal::Labels => {
                let text = "rows with labels, which desirable-weight and undesirable-weight are for";
                return refuse("supervised rows", text.into());
            }
        }
        let answers = Answers::count(set);
        let (found, n) = (answers.all.len(), set.examples.len());
        if !(2..=MOST).contains(&found) || 2 * found > n {
            let expected = format!("2 to {MOST} answers, two rows and more for each in the mean");
            return refuse(&expected, format!("{found} in {n} rows"));
        }
        let raw = |i: &usize| (answers.all[*i].rows as f64).powf(-power);
        let sum: f64 = answers.of.iter().map(raw).sum();
        Ok(answers.of.iter().map(|i| (raw(i) * n as f64 / sum) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Example, Origin, Role};

    /// Rows with these answers, after prompts that differ.
    fn set(answers: &[u32]) -> Set {
        let example = |(i, a): (usize, &u32)| Example {
            tokens: vec![1, i as u32, *a, 7],
            trained: vec![false, false, true, true],
        };
        let origin = |row| Origin { row, ..Origin::default() };
        Set {
            examples: answers.iter().enumerate().map(example).collect(),
            origins: (0..answers.len()).map(origin).collect(),
        }
    }

    #[test]
    fn answers_are_counted_and_weighed() {
        let rows = set(&[5, 6, 5, 5, 6, 5, 5, 5, 5, 9, 5, 5]);
        let answers = Answers::count(&rows);
        let counts: Vec<_> = answers.all.iter().map(|a| (a.tokens[0], a.rows)).collect();
        assert_eq!(counts, [(5, 9), (6, 2), (9, 1)]);
        assert!(answers.few() && answers.all.iter().all(|a| a.tokens[1] == 7));
        assert!(!Answers::count(&set(&[1; 20])).few() && !Answers::count(&set(&[1, 2, 3])).few());
        for (balance, ratio) in [(Balance::Inverse, 9.0), (Balance::Sqrt, 3.0)] {
            let w = balance.weights(&rows).unwrap();
            let mean = w.iter().map(|w| f64::from(*w)).sum::<f64>() / 12.0;
            assert!((mean - 1.0).abs() < 1e-6);
            assert!((w[9] / w[0] - ratio).abs() < 1e-5, "{w:?}");
            assert_eq!((w[1], w[2]), (w[4], w[0]));
        }
        // every answer counts alike: 12 rows, 3 answers
        let inverse = Balance::Inverse.weights(&rows).unwrap();
        for (i, n) in [(0, 9.0), (1, 2.0), (9, 1.0)] {
            assert!((inverse[i] * n - 4.0).abs() < 1e-5);
        }
        assert!(Balance::None.weights(&rows).unwrap().is_empty());
    }

    #[test]
    fn rows_without_few_answers_are_refused() {
        for rows in [set(&[1, 1, 1]), set(&[1, 2, 3]), set(&[])] {
            assert!(Balance::Sqrt.weights(&rows).is_err());
        }
        let mut judged = set(&[1, 1, 2, 2]);
        for role in [Role::Chosen, Role::Desirable] {
            judged.origins.iter_mut().for_each(|o| o.role = role);
            assert!(Balance::Inverse.weights(&judged).is_err() && Balance::None.weights(&judged).is_ok());
        }
        assert!(Balance::ALL.iter().all(|b| Balance::named(b.name()).unwrap() == *b));
        assert!(Balance::named("log").is_err());
    }
}
