//! What templates expect of Python: its JSON and its dates.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};

/// The filter `tojson` as Hugging Face defines it: `json.dumps` with `ensure_ascii=False`, so that keys keep their
/// order, separators are `", "` and `": "`, and nothing is escaped for HTML.
pub(super) fn tojson(value: Value, positional: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let value = serde_json::to_value(&value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "the value has no JSON form").with_source(e))?;
    // The order of json.dumps's arguments in that filter.
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let option = |name: &str| -> Result<Value, Error> {
        let place = NAMES.iter().position(|n| *n == name).unwrap_or(NAMES.len());
        match positional.get(place) {
            Some(value) => Ok(value.clone()),
            None => Ok(options.get::<Option<Value>>(name)?.unwrap_or_default()),
        }
    };
    let indent = option("indent")?;
    let indent = if indent.is_none() || indent.is_undefined() {
        None
    } else if let Some(text) = indent.as_str() {
        Some(text.to_string())
    } else {
        Some(" ".repeat(usize::try_from(indent)?.min(64)))
    };
    let separators = option("separators")?;
    let (item, key) = if separators.is_none() || separators.is_undefined() {
        (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string())
    } else {
        let part = |i: usize| separators.get_item_by_index(i).map(|v| v.to_string());
        (part(0)?, part(1)?)
    };
    let mut writer = Writer {
        out: String::new(),
        indent,
        item,
        key,
        ascii: option("ensure_ascii")?.is_true(),
        sort: option("sort_keys")?.is_true(),
    };
    options.assert_all_used()?;
    writer.value(&value, 0);
    Ok(Value::from_safe_string(writer.out))
}

/// Writes JSON as Python's `json.dumps` does.
struct Writer {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Writer {
    fn value(&mut self, value: &serde_json::Value, depth: usize) {
        use serde_json::Value::{Array, Number, Object, String};
        match value {
            String(text) => self.string(text),
            Number(number) => self.number(number),
            Array(items) => self.list(['[', ']'], items.len(), depth, |w, i| w.value(&items[i], depth + 1)),
            Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort {
                    entries.sort_by_key(|entry| entry.0);
                }
                self.list(['{', '}'], entries.len(), depth, |w, i| {
                    w.string(entries[i].0);
                    w.out.push_str(&w.key.clone());
                    w.value(entries[i].1, depth + 1);
                });
            }
            other => _ = write!(self.out, "{other}"),
        }
    }

    fn list(&mut self, ends: [char; 2], n: usize, depth: usize, one: impl Fn(&mut Writer, usize)) {
        self.out.push(ends[0]);
        for i in 0..n {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            one(self, i);
        }
        if n > 0 {
            self.line(depth);
        }
        self.out.push(ends[1]);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.out.extend(['\\', c]),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn number(&mut self, number: &serde_json::Number) {
        match number.as_f64() {
            Some(float) if number.is_f64() => self.out.push_str(&float_repr(float)),
            _ => _ = write!(self.out, "{number}"),
        }
    }
}

/// A float as Python writes it: in powers of ten from 1e16 and below 1e-4.
fn float_repr(x: f64) -> String {
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, power) = match power.strip_prefix('-') {
            Some(power) => ('-', power),
            None => ('+', power),
        };
        format!("{digits}e{sign}{power:0>2}")
    } else {
        format!("{x:?}")
    }
}

/// `strftime_now(format)` at a number of seconds since 1970, in UTC.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let name = DAYS[days.rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        _ = match rest.next() {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year.rem_euclid(100)),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{name}"),
            Some('a') => write!(out, "{}", &name[..3]),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('j') => write!(out, "{:03}", days - from_civil(year) + 1),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => write!(out, "UTC"),
            Some('z') => write!(out, "+0000"),
            Some('%') => write!(out, "%"),
            other => {
                let what = format!("strftime_now: %{} is not known here", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01. (Howard Hinnant, "chrono-compatible low-level date algorithms".)
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// The day since 1970 on which a year begins.
fn from_civil(year: i64) -> i64 {
    let before = year - 1;
    let leaps = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    before * 365 + leaps - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds, format| strftime(format, seconds).unwrap();
        assert_eq!(at(0, "%A %d %B %Y %H:%M:%S %j"), "Thursday 01 January 1970 00:00:00 001");
        assert_eq!(at(951_827_696, "%a %d %b %y %I:%M %p %j"), "Tue 29 Feb 00 12:34 PM 060");
        assert_eq!(at(1_735_689_599, "%F %T %j%%"), "2024-12-31 23:59:59 366%");
        assert_eq!(at(-1, "%e %B %Y"), "31 December 1969");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn floats() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (123456789012345.0, "123456789012345.0"),
            (0.0001, "0.0001"),
            (-2.5e100, "-2.5e+100"),
        ] {
            assert_eq!(float_repr(x), text);
        }
    }
}
