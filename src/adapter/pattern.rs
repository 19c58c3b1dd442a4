//! The part of regular expressions that PEFT's configurations use to name modules: characters, `.`, `\d`, `\w`, escaped
//! characters, `[sets]`, groups, `|`, `*`, `+`, `?`, `^`, `$`.
//!
//! A pattern comes from a file that nobody has vouched for, so it is matched by keeping the set of all states (Thompson,
//! "Regular Expression Search Algorithm", 1968): time is the pattern's length times the text's, whatever it says.

use std::iter::Peekable;
use std::str::Chars;

/// The longest pattern, in characters; every module of a large model, joined by `|`, is shorter.
const LONGEST: usize = 20_000;
/// The deepest nesting of groups.
const DEEPEST: usize = 50;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern(Vec<Op>);

#[derive(Debug)]
enum Op {
    /// A character in one of these ranges, or in none of them.
    Set { ranges: Vec<(char, char)>, inside: bool },
    /// Go on at both.
    Fork(usize, usize),
    /// Go on there.
    Jump(usize),
    /// Only at the start of the text.
    Start,
    /// Only at its end.
    End,
}

enum Node {
    Leaf(Op),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat { node: Box<Node>, once: bool, many: bool },
}

impl Pattern {
    /// Reads a pattern; `None` if it is not one, or uses more than this module knows.
    pub(super) fn new(text: &str) -> Option<Pattern> {
        if text.chars().count() > LONGEST {
            return None;
        }
        let mut text = text.chars().peekable();
        let node = choice(&mut text, 0)?;
        let mut ops = Vec::new();
        emit(node, &mut ops);
        text.next().is_none().then_some(Pattern(ops))
    }

    /// Whether the whole text is what the pattern says.
    pub(super) fn matches(&self, text: &str) -> bool {
        let last = text.chars().count();
        let mut now = States::new(self.0.len() + 1);
        let mut next = States::new(self.0.len() + 1);
        self.reach(0, 0, last, &mut now);
        for (i, c) in text.chars().enumerate() {
            for &at in &now.list {
                if let Some(Op::Set { ranges, inside }) = self.0.get(at)
                    && ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) == *inside
                {
                    self.reach(at + 1, i + 1, last, &mut next);
                }
            }
            std::mem::swap(&mut now, &mut next);
            next.clear();
        }
        now.seen[self.0.len()]
    }

    /// Adds `at` and all that follows from it without a character.
    fn reach(&self, at: usize, position: usize, last: usize, states: &mut States) {
        let mut open = vec![at];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut states.seen[at], true) {
                continue;
            }
            states.list.push(at);
            match self.0.get(at) {
                Some(Op::Fork(a, b)) => open.extend([*a, *b]),
                Some(Op::Jump(a)) => open.push(*a),
                Some(Op::Start) if position == 0 => open.push(at + 1),
                Some(Op::End) if position == last => open.push(at + 1),
                _ => {}
            }
        }
    }
}

/// A set of places in a pattern; the one behind the last op is the end.
struct States {
    seen: Vec<bool>,
    list: Vec<usize>,
}

impl States {
    fn new(n: usize) -> Self {
        States { seen: vec![false; n], list: Vec::new() }
    }
    fn clear(&mut self) {
        self.list.drain(..).for_each(|at| self.seen[at] = false);
    }
}

/// `a|b|c`
fn choice(text: &mut Peekable<Chars<'_>>, depth: usize) -> Option<Node> {
    let mut all = vec![sequence(text, depth)?];
    while text.next_if_eq(&'|').is_some() {
        all.push(sequence(text, depth)?);
    }
    Some(Node::Choice(all))
}

fn sequence(text: &mut Peekable<Chars<'_>>, depth: usize) -> Option<Node> {
    let mut all = Vec::new();
    while !matches!(text.peek(), None | Some('|' | ')')) {
        let node = item(text, depth)?;
        let Some(repeat) = text.next_if(|c| matches!(c, '*' | '+' | '?')) else {
            all.push(node);
            continue;
        };
        text.next_if_eq(&'?'); // lazy: as a whole the same texts match
        if matches!(text.peek(), Some('*' | '+' | '?')) {
            return None;
        }
        all.push(Node::Repeat { node: Box::new(node), once: repeat == '+', many: repeat != '?' });
    }
    Some(Node::Sequence(all))
}

fn item(text: &mut Peekable<Chars<'_>>, depth: usize) -> Option<Node> {
    let one = |c| Op::Set { ranges: vec![(c, c)], inside: true };
    Some(Node::Leaf(match text.next()? {
        '(' => {
            let plain = text.next_if_eq(&'?').is_none() || text.next_if_eq(&':').is_some();
            let node = if plain && depth < DEEPEST { choice(text, depth + 1)? } else { return None };
            return text.next_if_eq(&')').map(|_| node);
        }
        '[' => set(text)?,
        '.' => Op::Set { ranges: vec![('\n', '\n')], inside: false },
        '^' => Op::Start,
        '$' => Op::End,
        '\\' => Op::Set { ranges: escaped(text)?, inside: true },
        '*' | '+' | '?' | '{' | '}' | ']' => return None,
        c => one(c),
    }))
}

/// What stands behind a backslash.
fn escaped(text: &mut Peekable<Chars<'_>>) -> Option<Vec<(char, char)>> {
    match text.next()? {
        'd' => Some(vec![('0', '9')]),
        'w' => Some(vec![('0', '9'), ('A', 'Z'), ('a', 'z'), ('_', '_')]),
        c => (!c.is_alphanumeric()).then(|| vec![(c, c)]),
    }
}

fn set(text: &mut Peekable<Chars<'_>>) -> Option<Op> {
    let inside = text.next_if_eq(&'^').is_none();
    let mut ranges = Vec::new();
    loop {
        match text.next()? {
            ']' if ranges.is_empty() => return None,
            ']' => return Some(Op::Set { ranges, inside }),
            '[' => return None,
            '\\' => ranges.extend(escaped(text)?),
            low => {
                let mut high = low;
                if text.next_if_eq(&'-').is_some() {
                    high = text.next().filter(|c| *c >= low && !matches!(c, '\\' | '[' | ']'))?;
                }
                ranges.push((low, high));
            }
        }
    }
}

fn emit(node: Node, ops: &mut Vec<Op>) {
    match node {
        Node::Leaf(op) => ops.push(op),
        Node::Sequence(all) => all.into_iter().for_each(|n| emit(n, ops)),
        Node::Choice(all) => {
            let (mut ends, last) = (Vec::new(), all.len() - 1);
            for (i, node) in all.into_iter().enumerate() {
                let fork = ops.len();
                if i < last {
                    ops.push(Op::Jump(0));
                }
                emit(node, ops);
                if i < last {
                    ends.push(ops.len());
                    ops.push(Op::Jump(0));
                    ops[fork] = Op::Fork(fork + 1, ops.len());
                }
            }
            for at in ends {
                ops[at] = Op::Jump(ops.len());
            }
        }
        Node::Repeat { node, once, many } => {
            let start = ops.len();
            if !once {
                ops.push(Op::Jump(0));
            }
            emit(*node, ops);
            if once {
                ops.push(Op::Fork(start, ops.len() + 1));
            } else {
                if many {
                    ops.push(Op::Jump(start));
                }
                ops[start] = Op::Fork(start + 1, ops.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_configurations_say() {
        let q = "model.layers.11.self_attn.q_proj";
        for (pattern, text, want) in [
            (".*q_proj", q, true),
            (r".*\.(q|v)_proj", q, true),
            (r".*\.(k|v)_proj", q, false),
            (r"(.*\.)?(q_proj)", q, true),
            (r"(.*\.)?(model.layers.1.self_attn.q_proj)", q, false),
            (r"(.*\.)?(^model\.layers\.\d+\.self_attn\.q_proj$)", q, true),
            (r"(.*\.)?(^layers\.\d+\.self_attn\.q_proj)", q, false),
            (r"model\.layers\.(?:1|11)\..*", q, true),
            (r"model\.layers\.1?\..*", q, false),
            (r"model\.layers\.[0-9]+\.[^.]*\.\w+", q, true),
            (r"model\.layers\.[2-9]\..*", q, false),
            ("(a|b)*c?", "abba", true),
            ("(a|b)*c?", "abbacc", false),
            ("(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("()*x+?", "xx", true),
            ("", "", true),
            ("|a", "a", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(text), want, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_is_no_pattern_or_too_much() {
        for text in
            ["(", ")", "a**", "*", "[", "[]", "[z-a]", "a{2}", r"\b", "(?=a)", "(?P<n>a)", "a++", "x???"]
        {
            assert!(Pattern::new(text).is_none(), "{text}");
        }
        assert!(Pattern::new(&"(".repeat(10_000)).is_none());
        assert!(Pattern::new(&"a".repeat(LONGEST + 1)).is_none());
        assert!(!Pattern::new(&"(a*)*".repeat(4_000)).unwrap().matches(&"ab".repeat(50)));
    }
}
