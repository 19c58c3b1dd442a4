//! The expressions of the pre-tokenizers, each as a function that gives the length of the match at the start of
//! its text, in characters, and 0 where there is none.
//!
//! An expression stands above its function. In all of them alternatives are tried in order and a repetition takes
//! as much as it can, so each function is a straight list of attempts.

use super::super::unicode::{Char, Class};

/// How many characters at the start belong to `set`.
fn run(t: &[Char], set: Class) -> usize {
    t.iter().take_while(|c| c.is(set)).count()
}

/// How many characters at the start satisfy `test`.
fn run_of(t: &[Char], test: impl Fn(Char) -> bool) -> usize {
    t.iter().take_while(|c| test(**c)).count()
}

/// `\r` or `\n`.
fn is_newline(c: Char) -> bool {
    c.c == '\r' || c.c == '\n'
}

/// `[^\s\p{L}\p{N}]`
fn is_other(c: Char) -> bool {
    !c.is(Class::SPACE.or(Class::LETTER).or(Class::NUMBER))
}

/// 1 if the text starts with a space, for ` ?`.
fn space(t: &[Char]) -> usize {
    usize::from(t.first().is_some_and(|c| c.c == ' '))
}

/// `'s|'t|'re|'ve|'m|'ll|'d`, with `fold` applied to the letters first.
fn contraction(t: &[Char], fold: fn(char) -> char) -> usize {
    if t.first().is_none_or(|c| c.c != '\'') {
        return 0;
    }
    let letter = |i: usize| t.get(i).map(|c| fold(c.c));
    match (letter(1), letter(2)) {
        (Some('s' | 't' | 'm' | 'd'), _) => 2,
        (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => 3,
        _ => 0,
    }
}

/// Case folding as `(?i:…)` does it: the long s is an s.
fn any_case(c: char) -> char {
    if c == 'ſ' { 's' } else { c.to_ascii_lowercase() }
}

/// `\s+(?!\S)|\s+`: white space up to the end, or all but the last of it, or the only one there is.
fn blanks(t: &[Char]) -> usize {
    let n = run(t, Class::SPACE);
    if n == t.len() || n < 2 { n } else { n - 1 }
}

/// `\s*[\r\n]+`: white space as far as its last newline.
fn to_newline(t: &[Char]) -> usize {
    let n = run(t, Class::SPACE);
    t[..n].iter().rposition(|c| is_newline(*c)).map_or(0, |i| i + 1)
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub fn gpt2(t: &[Char]) -> usize {
    let short = contraction(t, |c| c);
    if short > 0 {
        return short;
    }
    let lead = space(t);
    let rest = &t[lead..];
    for n in [run(rest, Class::LETTER), run(rest, Class::NUMBER), run_of(rest, is_other)] {
        if n > 0 {
            return lead + n;
        }
    }
    blanks(t)
}

/// What differs between the models whose expression is
/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
pub struct Words {
    /// Whether the English contractions are words.
    pub contractions: bool,
    /// Whether a word may hold combining marks: `[\p{L}\p{M}]+` for `\p{L}+`.
    pub marks: bool,
    /// How many digits stay together at most.
    pub digits: usize,
    /// Whether `[\r\n]*` follows the other characters.
    pub newlines_after_symbols: bool,
}

impl Words {
    /// The expression above.
    pub const COMMON: Words =
        Words { contractions: true, marks: false, digits: 1, newlines_after_symbols: true };
}

/// The expression at [`Words`].
pub fn words(t: &[Char], w: &Words) -> usize {
    let short = if w.contractions { contraction(t, any_case) } else { 0 };
    if short > 0 {
        return short;
    }
    let letters = if w.marks { Class::LETTER.or(Class::MARK) } else { Class::LETTER };
    let n = led_run(t, |c| !is_newline(c) && !c.is(Class::LETTER.or(Class::NUMBER)), letters);
    if n > 0 {
        return n;
    }
    let n = run(t, Class::NUMBER).min(w.digits);
    if n > 0 {
        return n;
    }
    let lead = space(t);
    let n = run_of(&t[lead..], |c| is_other(c) && !(w.marks && c.is(Class::MARK)));
    if n > 0 {
        let tail = if w.newlines_after_symbols { run_of(&t[lead + n..], is_newline) } else { 0 };
        return lead + n + tail;
    }
    match to_newline(t) {
        0 => blanks(t),
        n => n,
    }
}

/// `lead?set+`
fn led_run(t: &[Char], lead: impl Fn(Char) -> bool, set: Class) -> usize {
    match t {
        [first, ..] if first.is(set) => run(t, set),
        [first, rest @ ..] if lead(*first) => match run(rest, set) {
            0 => 0,
            n => 1 + n,
        },
        _ => 0,
    }
}

/// The expression of models whose words end where lower case turns to upper:
/// ```text
/// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
/// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
/// \p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// ```
/// The contraction is there if `contractions` is set.
pub fn cased_words(t: &[Char], digits: usize, contractions: bool) -> usize {
    let leads = t.first().is_some_and(|c| !is_newline(*c) && !c.is(Class::LETTER.or(Class::NUMBER)));
    for word in [ends_in_lower, starts_in_upper] {
        for lead in if leads { [1, 0] } else { [0, 0] } {
            let n = word(&t[lead..]);
            if n > 0 {
                let end = lead + n;
                return end + if contractions { contraction(&t[end..], any_case) } else { 0 };
            }
        }
    }
    let n = run(t, Class::NUMBER).min(digits);
    if n > 0 {
        return n;
    }
    let lead = space(t);
    let n = run_of(&t[lead..], is_other);
    if n > 0 {
        let end = lead + n;
        return end + run_of(&t[end..], |c| is_newline(c) || c.c == '/');
    }
    match to_newline(t) {
        0 => blanks(t),
        n => n,
    }
}

const NEITHER_CASE: Class = Class::MODIFIER.or(Class::OTHER_LETTER).or(Class::MARK);
const UPPER_PART: Class = NEITHER_CASE.or(Class::UPPER).or(Class::TITLE);
const LOWER_PART: Class = NEITHER_CASE.or(Class::LOWER);

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
fn ends_in_lower(t: &[Char]) -> usize {
    let upper = run(t, UPPER_PART);
    let lower = run(&t[upper..], LOWER_PART);
    if lower > 0 {
        return upper + lower;
    }
    // The first part gives back as little as lets the second have one character.
    t[..upper].iter().rposition(|c| c.is(LOWER_PART)).map_or(0, |i| i + 1)
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
fn starts_in_upper(t: &[Char]) -> usize {
    match run(t, UPPER_PART) {
        0 => 0,
        n => n + run(&t[n..], LOWER_PART),
    }
}

/// ```text
/// [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|
///  ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// ```
pub fn deepseek3(t: &[Char]) -> usize {
    if t.first().is_some_and(|c| c.c.is_ascii_punctuation()) {
        let n = run_of(&t[1..], |c| c.c.is_ascii_alphabetic());
        if n > 0 {
            return 1 + n;
        }
    }
    let symbols = Class::PUNCTUATION.or(Class::SYMBOL);
    let n = led_run(t, |c| !is_newline(c) && !c.is(Class::LETTER.or(symbols)), Class::LETTER.or(Class::MARK));
    if n > 0 {
        return n;
    }
    let lead = space(t);
    let n = run(&t[lead..], symbols);
    if n > 0 {
        return lead + n + run_of(&t[lead + n..], is_newline);
    }
    match to_newline(t) {
        0 => blanks(t),
        n => n,
    }
}

/// `\p{N}{1,MOST}`
pub fn digits<const MOST: usize>(t: &[Char]) -> usize {
    run(t, Class::NUMBER).min(MOST)
}

/// `[0-9][0-9][0-9]`
pub fn three_ascii_digits(t: &[Char]) -> usize {
    if t.len() >= 3 && t[..3].iter().all(|c| c.c.is_ascii_digit()) { 3 } else { 0 }
}

/// `[\p{P}…]+` with the characters of `more`
pub fn punctuation(t: &[Char], more: &str) -> usize {
    run_of(t, |c| c.is(Class::PUNCTUATION) || (!c.stray && more.contains(c.c)))
}

/// ``[\p{P}!-/:-@\[-`{-~]``
pub fn one_punctuation(t: &[Char]) -> usize {
    usize::from(t.first().is_some_and(|c| c.is(Class::PUNCTUATION) || c.c.is_ascii_punctuation()))
}

/// `[\r\n]`
pub fn newline(t: &[Char]) -> usize {
    usize::from(t.first().is_some_and(|c| is_newline(*c)))
}

/// `[^\n]+|[\n]+`
pub fn lines(t: &[Char]) -> usize {
    match run_of(t, |c| c.c != '\n') {
        0 => t.iter().take_while(|c| c.c == '\n').count(),
        n => n,
    }
}

/// `\s?[…]+`
pub fn spaced(t: &[Char], member: fn(Char) -> bool) -> usize {
    let lead = usize::from(t.first().is_some_and(|c| c.is(Class::SPACE)));
    // A member may itself be white space (U+3000 is one for DeepSeek): then the lead gives way.
    for lead in [lead, 0] {
        let n = run_of(&t[lead..], member);
        if n > 0 {
            return lead + n;
        }
    }
    0
}

/// `[…]+` over ranges of characters, both ends included
pub fn within(t: &[Char], ranges: &[(char, char)]) -> usize {
    run_of(t, |c| is_within(c, ranges))
}

fn is_within(c: Char, ranges: &[(char, char)]) -> bool {
    !c.stray && ranges.iter().any(|&(first, last)| (first..=last).contains(&c.c))
}

/// `[一-龥ࠀ-一가-퟿]`
pub const DEEPSEEK_IDEOGRAPHS: &[(char, char)] = &[('一', '龥'), ('\u{800}', '一'), ('가', '\u{d7ff}')];

/// ``[!-/:-~！-／：-～‘-‟　-。]``
pub fn wide_punctuation(c: Char) -> bool {
    const RANGES: &[(char, char)] =
        &[('!', '/'), (':', '~'), ('！', '／'), ('：', '～'), ('‘', '‟'), ('\u{3000}', '。')];
    is_within(c, RANGES)
}

/// The letters with case that DeepSeek's first tokenizer lists one by one.
pub fn cased_letter(c: Char) -> bool {
    #[rustfmt::skip]
    const RANGES: &[(char, char)] = &[
        ('A', 'Z'), ('a', 'z'), ('µ', 'µ'), ('À', 'Ö'), ('Ø', 'ö'), ('ø', 'ƺ'), ('Ƽ', 'ƿ'), ('Ǆ', 'ʓ'),
        ('ʕ', 'ʯ'), ('Ͱ', 'ͳ'), ('Ͷ', 'ͷ'), ('ͻ', 'ͽ'), ('Ϳ', 'Ϳ'), ('Ά', 'Ά'), ('Έ', 'Ί'), ('Ό', 'Ό'),
        ('Ύ', 'Ρ'), ('Σ', 'ϵ'), ('Ϸ', 'ҁ'), ('Ҋ', 'ԯ'), ('Ա', 'Ֆ'), ('Ⴀ', 'Ⴥ'), ('Ꭰ', 'Ᏽ'), ('ᏸ', 'ᏽ'),
        ('Ა', 'Ჺ'), ('Ჽ', 'Ჿ'), ('ᴀ', 'ᴫ'), ('ᵫ', 'ᵷ'), ('ᵹ', 'ᶚ'), ('Ḁ', 'ἕ'), ('Ἐ', 'Ἕ'), ('ἠ', 'ὅ'),
        ('Ὀ', 'Ὅ'), ('ὐ', 'ὗ'), ('Ὑ', 'Ὑ'), ('Ὓ', 'Ὓ'), ('Ὕ', 'Ὕ'), ('Ὗ', '\u{1f7d}'), ('ᾀ', 'ᾴ'), ('ᾶ', 'ᾼ'),
        ('\u{1fbe}', '\u{1fbe}'), ('ῂ', 'ῄ'), ('ῆ', 'ῌ'), ('ῐ', '\u{1fd3}'), ('ῖ', '\u{1fdb}'),
        ('ῠ', 'Ῥ'), ('ῲ', 'ῴ'), ('ῶ', 'ῼ'), ('ℂ', 'ℂ'), ('ℇ', 'ℇ'), ('ℊ', 'ℓ'), ('ℕ', 'ℕ'), ('ℙ', 'ℝ'),
        ('ℤ', 'ℤ'), ('\u{2126}', '\u{2126}'), ('ℨ', 'ℨ'), ('\u{212a}', 'ℭ'), ('ℯ', 'ℴ'), ('ℹ', 'ℹ'),
        ('ℼ', 'ℿ'), ('ⅅ', 'ⅉ'), ('ⅎ', 'ⅎ'), ('Ↄ', 'ↄ'), ('Ⰰ', 'ⱻ'), ('Ȿ', 'ⳤ'), ('Ⳬ', 'ⳮ'), ('Ⳳ', 'ⳳ'),
        ('Ꙁ', 'ꙭ'), ('Ꚁ', 'ꚛ'), ('Ꜣ', 'ꝯ'), ('ꝱ', 'ꞇ'), ('Ꞌ', 'ꞎ'), ('ꭰ', 'ꮿ'), ('ﬀ', 'ﬆ'), ('ﬓ', 'ﬗ'),
        ('Ａ', 'Ｚ'), ('ａ', 'ｚ'), ('𐐀', '𐑏'), ('𐒰', '𐓓'), ('𐓘', '𐓻'), ('𐲀', '𐲲'), ('𐳀', '𐳲'),
        ('𑢠', '𑣟'), ('𞤀', '𞥃'),
    ];
    c.c.is_ascii_alphabetic() || (!c.c.is_ascii() && is_within(c, RANGES))
}

/// ` ?[^(\s|.,!?…。，、।۔،)]+`
pub fn bloom(t: &[Char]) -> usize {
    let lead = space(t);
    let n = run_of(&t[lead..], |c| !c.is(Class::SPACE) && !"(|.,!?…。，、।۔،)".contains(c.c));
    if n > 0 { lead + n } else { 0 }
}

/// `<sentinel:[0-9]+>`
pub fn chameleon_sentinel(t: &[Char]) -> usize {
    const OPEN: &str = "<sentinel:";
    if !starts_with(t, OPEN) {
        return 0;
    }
    let n = OPEN.len() + run_of(&t[OPEN.len()..], |c| c.c.is_ascii_digit());
    if n > OPEN.len() && t.get(n).is_some_and(|c| c.c == '>') { n + 1 } else { 0 }
}

/// `(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z`
pub fn chameleon_image(t: &[Char]) -> usize {
    const OPEN: &str = "IMGIMG";
    if !starts_with(t, OPEN) {
        return 0;
    }
    let n = OPEN.len() + run_of(&t[OPEN.len()..], |c| ('A'..='I').contains(&c.c));
    if (1..=4).contains(&(n - OPEN.len())) && t.get(n).is_some_and(|c| c.c == 'Z') { n + 1 } else { 0 }
}

/// `([\t\n]|    |  )`
pub fn tab_newline_or_spaces(t: &[Char]) -> usize {
    match t.first().map(|c| c.c) {
        Some('\t' | '\n') => 1,
        Some(' ') => match t.iter().take(4).take_while(|c| c.c == ' ').count() {
            4 => 4,
            2 | 3 => 2,
            _ => 0,
        },
        _ => 0,
    }
}

fn starts_with(t: &[Char], ascii: &str) -> bool {
    t.len() >= ascii.len() && ascii.chars().zip(t).all(|(a, b)| a == b.c)
}
