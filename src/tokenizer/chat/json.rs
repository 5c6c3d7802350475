//! `tojson` as in transformers: Python's `json.dumps`, without escapes for HTML.

use super::failure;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, Value};
use std::cmp::Ordering;
use std::fmt::Write;

/// Nesting limit. Python's is near a thousand; the stack here may be smaller.
const MOST_DEPTH: usize = 200;

/// Options of `json.dumps`.
struct Style {
    ensure_ascii: bool,
    /// Indentation of one level; `None`: all on one line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

/// `value|tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`
pub(super) fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > NAMES.len() {
        return Err(failure("tojson: expected at most four arguments"));
    }
    let argument = |index: usize| -> Result<Option<Value>, Error> {
        let named: Option<Value> = named.get(NAMES[index])?;
        match (positional.get(index), named) {
            (Some(_), Some(_)) => Err(failure(format!("tojson: `{}` is given twice", NAMES[index]))),
            (given, named) => Ok(given.cloned().or(named)),
        }
    };
    let flag = |index| -> Result<bool, Error> { Ok(argument(index)?.is_some_and(|value| value.is_true())) };
    let indent = match argument(1)?.filter(|value| !value.is_none()) {
        None => None,
        Some(value) => Some(indent(&value)?),
    };
    let (between_items, after_key) = match argument(2)?.filter(|value| !value.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => separators(&pair)?,
    };
    let style = Style { ensure_ascii: flag(0)?, indent, between_items, after_key, sort_keys: flag(3)? };
    named.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

fn indent(value: &Value) -> Result<String, Error> {
    const MOST: i64 = 1000;
    match (value.as_str(), value.kind()) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, ValueKind::Bool) => Ok(" ".repeat(usize::from(value.is_true()))),
        (None, ValueKind::Number) if value.is_integer() => match value.as_i64() {
            Some(count @ ..=MOST) => Ok(" ".repeat(count.max(0) as usize)),
            _ => Err(failure(format!("tojson: expected `indent` to be at most {MOST}"))),
        },
        _ => Err(failure("tojson: expected `indent` to be a whole number or text")),
    }
}

fn separators(pair: &Value) -> Result<(String, String), Error> {
    let items: Vec<Value> = pair.try_iter()?.collect();
    match items.as_slice() {
        [items, keys] if items.as_str().is_some() && keys.as_str().is_some() => {
            Ok((items.to_string(), keys.to_string()))
        }
        _ => Err(failure("tojson: expected `separators` to be two texts")),
    }
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MOST_DEPTH {
            return Err(failure(format!("tojson: values nested more than {MOST_DEPTH} deep")));
        }
        match value.kind() {
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.all(out, ['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let held = value.get_item(&key)?;
                    entries.push((Some(key), held));
                }
                if self.sort_keys {
                    sort(&mut entries)?;
                }
                self.all(out, ['{', '}'], entries, depth)?;
            }
            _ => out.push_str(&scalar(value)?),
        }
        Ok(())
    }

    fn all(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: Vec<(Option<Value>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        let is_empty = items.is_empty();
        out.push(open);
        for (index, (key, item)) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.between_items);
            }
            line(out, depth + 1);
            if let Some(key) = key {
                match key.as_str() {
                    Some(text) => self.text(out, text),
                    // JSON keys are always text.
                    None => self.text(out, &scalar(key)?),
                }
                out.push_str(&self.after_key);
            }
            self.write(out, item, depth + 1)?;
        }
        if !is_empty {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                _ if letter < ' ' || (self.ensure_ascii && letter > '~') => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                _ => out.push(letter),
            }
        }
        out.push('"');
    }
}

fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(value.is_true().to_string()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => Ok(float(f64::try_from(value.clone())?)),
        kind => Err(failure(format!("tojson: a value of the kind {kind} cannot be written as JSON"))),
    }
}

/// A number as Python writes it: the shortest digits that round-trip, with an exponent for very large or small values.
pub(super) fn float(value: f64) -> String {
    if !value.is_finite() {
        let name = if value.is_nan() { "NaN" } else { "Infinity" };
        return format!("{}{name}", if value < 0.0 { "-" } else { "" });
    }
    let spelled = format!("{value:e}");
    let (digits, exponent) = spelled.split_once('e').unwrap_or((&spelled, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent @ -4..16 => {
            let _ = exponent;
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
    }
}

fn sort(entries: &mut Vec<(Option<Value>, Value)>) -> Result<(), Error> {
    let kind = |entry: &(Option<Value>, Value)| entry.0.as_ref().map(|key| key.kind());
    if entries.windows(2).any(|pair| kind(&pair[0]) != kind(&pair[1])) {
        return Err(failure("tojson: keys of different kinds cannot be sorted"));
    }
    // A merge sort: the standard library's sort is large in WebAssembly (see `sort.rs`), and this module sorts only
    // here.
    let half = entries.len() / 2;
    if half > 0 {
        let mut right = entries.split_off(half);
        sort(entries)?;
        sort(&mut right)?;
        let (mut left, mut right) =
            (std::mem::take(entries).into_iter().peekable(), right.into_iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let is_right = a.0.partial_cmp(&b.0) == Some(Ordering::Greater);
            entries.extend(if is_right { right.next() } else { left.next() });
        }
        entries.extend(left.chain(right));
    }
    Ok(())
}
