//! Characters of text that may not be UTF-8, with the classes that tokenizer rules ask about.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// A set of classes; a character carries one general category and perhaps [`Class::SPACE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u16);

impl Class {
    pub const UPPER: Class = Class(1);
    pub const LOWER: Class = Class(1 << 1);
    pub const TITLE: Class = Class(1 << 2);
    pub const MODIFIER: Class = Class(1 << 3);
    pub const OTHER_LETTER: Class = Class(1 << 4);
    /// Marks that take no room of their own (Mn).
    pub const ACCENT: Class = Class(1 << 5);
    pub const OTHER_MARK: Class = Class(1 << 6);
    /// Decimal digits (Nd).
    pub const DIGIT: Class = Class(1 << 7);
    pub const OTHER_NUMBER: Class = Class(1 << 8);
    pub const PUNCTUATION: Class = Class(1 << 9);
    pub const SYMBOL: Class = Class(1 << 10);
    pub const SEPARATOR: Class = Class(1 << 11);
    pub const CONTROL: Class = Class(1 << 12);
    /// Characters that are none yet (Cn).
    pub const UNASSIGNED: Class = Class(1 << 14);
    /// The property White_Space, which regular expressions call `\s`.
    pub const SPACE: Class = Class(1 << 13);

    pub const LETTER: Class =
        Class::UPPER.or(Class::LOWER).or(Class::TITLE).or(Class::MODIFIER).or(Class::OTHER_LETTER);
    pub const MARK: Class = Class::ACCENT.or(Class::OTHER_MARK);
    pub const NUMBER: Class = Class::DIGIT.or(Class::OTHER_NUMBER);

    /// The union of two sets.
    pub const fn or(self, other: Class) -> Class {
        Class(self.0 | other.0)
    }

    /// Whether the sets share a member.
    pub const fn has(self, other: Class) -> bool {
        self.0 & other.0 != 0
    }

    /// The class of one character.
    pub fn of(c: char) -> Class {
        const ASCII: [Class; 128] = ascii();
        match ASCII.get(c as usize) {
            Some(&class) => class,
            None => Class::look_up(c),
        }
    }

    fn look_up(c: char) -> Class {
        use GeneralCategory::*;
        let class = match c.general_category() {
            UppercaseLetter => Class::UPPER,
            LowercaseLetter => Class::LOWER,
            TitlecaseLetter => Class::TITLE,
            ModifierLetter => Class::MODIFIER,
            OtherLetter => Class::OTHER_LETTER,
            NonspacingMark => Class::ACCENT,
            SpacingMark | EnclosingMark => Class::OTHER_MARK,
            DecimalNumber => Class::DIGIT,
            LetterNumber | OtherNumber => Class::OTHER_NUMBER,
            ConnectorPunctuation | DashPunctuation | OpenPunctuation | ClosePunctuation
            | InitialPunctuation | FinalPunctuation | OtherPunctuation => Class::PUNCTUATION,
            MathSymbol | CurrencySymbol | ModifierSymbol | OtherSymbol => Class::SYMBOL,
            SpaceSeparator | LineSeparator | ParagraphSeparator => Class::SEPARATOR,
            Unassigned => Class::UNASSIGNED,
            Control | Format | Surrogate | PrivateUse => Class::CONTROL,
        };
        if c.is_whitespace() { class.or(Class::SPACE) } else { class }
    }
}

/// The table for the characters that nearly all text is made of.
const fn ascii() -> [Class; 128] {
    let mut table = [Class::CONTROL; 128];
    let mut i = 0;
    while i < 128 {
        let c = i as u8;
        table[i] = match c {
            b'A'..=b'Z' => Class::UPPER,
            b'a'..=b'z' => Class::LOWER,
            b'0'..=b'9' => Class::DIGIT,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => Class::SYMBOL,
            b' ' => Class::SEPARATOR.or(Class::SPACE),
            b'\t' | b'\n' | 0x0b | 0x0c | b'\r' => Class::CONTROL.or(Class::SPACE),
            0x21..=0x7e => Class::PUNCTUATION,
            _ => Class::CONTROL,
        };
        i += 1;
    }
    table
}

/// One character, or one byte that belongs to none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Char {
    /// The character; U+FFFD for a stray byte.
    pub c: char,
    /// What it is; a stray byte counts as a symbol, as U+FFFD does.
    pub class: Class,
    /// How many bytes of the text it takes.
    pub width: u8,
    /// Whether it is a stray byte.
    pub stray: bool,
}

impl Char {
    /// Whether it is of any class in the set.
    pub fn is(self, class: Class) -> bool {
        self.class.has(class)
    }
}

/// Reads text character by character; bytes that are not UTF-8 come one by one. The widths always sum to the
/// text's length.
pub(super) struct Chars<'a>(pub &'a [u8]);

impl Iterator for Chars<'_> {
    type Item = Char;

    fn next(&mut self) -> Option<Char> {
        let (&first, _) = self.0.split_first()?;
        let found = if first < 0x80 { Some((first as char, 1)) } else { multi_byte(self.0) };
        let (c, width) = found.unwrap_or((char::REPLACEMENT_CHARACTER, 1));
        self.0 = &self.0[width..];
        Some(Char { c, class: Class::of(c), width: width as u8, stray: found.is_none() })
    }
}

/// The character of two to four bytes at the start of `text`.
fn multi_byte(text: &[u8]) -> Option<(char, usize)> {
    let width = match text[0] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let c = std::str::from_utf8(text.get(..width)?).ok()?.chars().next()?;
    Some((c, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ascii_table_agrees_with_the_properties() {
        for c in '\0'..='\x7f' {
            assert_eq!(Class::of(c), Class::look_up(c), "{c:?}");
        }
    }

    #[test]
    fn stray_bytes_come_one_by_one_and_nothing_is_lost() {
        let text = b"a\xc3\xa4\xff\xe2\x82\xf0\x9f\x98\x81\xed\xa0\x80";
        let chars: Vec<Char> = Chars(text).collect();
        assert_eq!(chars.iter().map(|c| c.width as usize).sum::<usize>(), text.len());
        assert_eq!(chars.iter().filter(|c| c.stray).count(), 6);
        assert_eq!(chars.iter().filter(|c| !c.stray).map(|c| c.c).collect::<String>(), "aä😁");
        assert!(chars[2].is(Class::SYMBOL));
    }
}
