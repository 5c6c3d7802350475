//! `str` and `repr` of values, as in Python.

use super::MOST_BYTES;
use super::json::float;
use minijinja::value::ValueKind;
use minijinja::{Error, Output, State, Value};

/// Nesting limit; deeper values print as `...`. Python's limit is near a thousand.
const MOST_DEPTH: usize = 200;

/// `str(value)`
pub(super) fn text(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, false, 0);
    out
}

/// `repr(value)`
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, true, 0);
    out
}

/// What `{{ value }}` prints.
pub(super) fn print(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&text(value)),
    }
    .map_err(Error::from)
}

fn write(out: &mut String, value: &Value, quoted: bool, depth: usize) {
    // A small list can print large when it holds the same list many times.
    if depth > MOST_DEPTH || out.len() > MOST_BYTES {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::String if quoted => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
            // `json.dumps` names non-finite numbers differently.
            out.push_str(&float(number).replace("NaN", "nan").replace("Infinity", "inf"));
        }
        ValueKind::Seq | ValueKind::Iterable if value.try_iter().is_ok() => {
            let [open, close] = if value.is_tuple() { ['(', ')'] } else { ['[', ']'] };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write(out, &item, true, depth + 1);
                count += 1;
            }
            if count == 1 && value.is_tuple() {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write(out, &key, true, depth + 1);
                out.push_str(": ");
                write(out, &value.get_item(&key).unwrap_or_default(), true, depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for letter in text.chars() {
        let code = letter as u32;
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if letter == mark => out.extend(['\\', mark]),
            _ if !is_hidden(letter) => out.push(letter),
            _ if code < 0x100 => out.push_str(&format!("\\x{code:02x}")),
            _ if code < 0x1_0000 => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out.push(mark);
}

/// Whether `repr` escapes a character: control, format and private-use characters, and white space except ' '.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || (letter.is_whitespace() && letter != ' ')
        || matches!(letter,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..)
}
