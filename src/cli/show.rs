//! Text of unknown origin made safe to show, and columns that line up.
//!
//! Names, metadata and tokens come from files nobody has vouched for. On a terminal a control character is a command,
//! so none gets there: it is written out as `\n` or `\u{1b}`.

use super::terminal::line;
use std::io;

/// Whether a terminal would obey the character instead of showing it: controls, and what turns the direction of text
/// around.
pub fn obeyed(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() || c == '\u{feff}'
}

/// The text with everything that a terminal would obey written out.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Bytes between quotes: what is not visible, and what is not UTF-8, is written out.
pub fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        let text = format!("{:?}", chunk.valid());
        out.push_str(&text[1..text.len() - 1]);
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out.push('"');
    out
}

/// The same of at most about `most` bytes.
pub fn quoted_short(bytes: &[u8], most: usize) -> String {
    if bytes.len() <= most {
        return quoted(bytes);
    }
    // not in the middle of a character
    let end = (most.saturating_sub(3)..=most).rev().find(|i| bytes[*i] & 0xc0 != 0x80).unwrap_or(most);
    format!("{}… ({} bytes)", quoted(&bytes[..end]), bytes.len())
}

/// `1,234,567`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `0.43%`, with two digits that count.
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0%".into(),
        p if p.abs() < 1e-3 => format!("{p:.0e}%"),
        p if p.abs() < 0.1 => format!("{p:.3}%"),
        p if p.abs() < 10.0 => format!("{p:.2}%"),
        p => format!("{p:.0}%"),
    }
}

/// On which side a column lines up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// Rows whose columns line up.
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; those that begin with `>` are over numbers, which line up on the right.
    pub fn new(headings: &[&str]) -> Self {
        let side = |h: &&str| if h.starts_with('>') { Side::Right } else { Side::Left };
        let first = headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        Table { sides: headings.iter().map(side).collect(), rows: vec![first] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, each after `indent` spaces.
    pub fn lines(&self, indent: usize) -> Vec<String> {
        let wide = |i| self.rows.iter().filter_map(|r| r.get(i)).map(|c: &String| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.sides.len()).map(|i| wide(i).unwrap_or(0)).collect();
        let each = self.rows.iter().map(|row| {
            let mut text = " ".repeat(indent);
            for ((cell, width), side) in row.iter().zip(&widths).zip(&self.sides) {
                let gap = " ".repeat(width - cell.chars().count());
                match side {
                    Side::Left => text.extend([cell, &gap[..], "  "]),
                    Side::Right => text.extend([&gap[..], cell, "  "]),
                }
            }
            text.trim_end().to_owned()
        });
        each.collect()
    }

    /// On stdout.
    pub fn print(&self, indent: usize) -> io::Result<()> {
        self.lines(indent).iter().try_for_each(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        assert_eq!(plain("it's \"é\"\x1b[2J\u{202e}\n"), "it's \"é\"\\u{1b}[2J\\u{202e}\\n");
        assert_eq!(quoted(b"a\xff\"\x07\xc3\xa9"), "\"a\\xff\\\"\\u{7}é\"");
        assert_eq!(quoted_short("ééé".as_bytes(), 3), "\"é\"… (6 bytes)");
        assert_eq!(quoted_short(b"abc", 3), "\"abc\"");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", ">n"]);
        table.row(["é".into(), "1".into()]);
        table.row(["longer".into(), "1000".into()]);
        assert_eq!(table.lines(1), [" name       n", " é          1", " longer  1000"]);
    }

    #[test]
    fn numbers() {
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"].map(String::from));
        assert_eq!([0.0, 0.5, 0.012345, 0.0001].map(percent), ["0%", "50%", "1.23%", "0.010%"]);
    }
}
