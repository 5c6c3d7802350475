//! Python's operator `%`: the remainder of numbers, and formatting of text.

use super::failure;
use super::python::repr;
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Error, Value};

/// Most digits of a width or precision in a format. No prompt needs a million spaces.
const MOST_DIGITS: usize = 5;

/// `left % right`
pub(super) fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    match left.as_str() {
        Some(text) => formatted(text, right).map(Value::from),
        None => remainder(left, right),
    }
}

/// Refuses a format with a very large width or precision.
pub(super) fn check_widths(text: &str) -> Result<(), Error> {
    let mut digits = 0;
    for byte in text.bytes() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > MOST_DIGITS {
            return Err(failure("a format has too large a number"));
        }
    }
    Ok(())
}

/// Fills in the conversions of `text`. `minijinja` formats each on its own, after its value is converted as in C.
fn formatted(text: &str, values: &Value) -> Result<String, Error> {
    check_widths(text)?;
    let is_map = values.kind() == ValueKind::Map;
    let given: Vec<Value> =
        if values.is_tuple() { values.try_iter()?.collect() } else { vec![values.clone()] };
    let mut used = 0;
    let mut next = || -> Result<Value, Error> {
        used += 1;
        given.get(used - 1).cloned().ok_or_else(|| failure("not enough values for a format"))
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (key, after) = match after.strip_prefix('(') {
            Some(inside) => {
                let (key, after) =
                    inside.split_once(')').ok_or_else(|| failure("a format has a key without a `)`"))?;
                (Some(key), after)
            }
            None => (None, after),
        };
        let end = after.find(|letter: char| !"#0- +.*123456789".contains(letter)).unwrap_or(after.len());
        let Some(conversion) = after[end..].chars().next() else {
            return Err(failure("a format ends within a conversion"));
        };
        let mut flags = String::new();
        for flag in after[..end].chars() {
            if flag == '*' {
                let width = next()?;
                match width.as_i64() {
                    Some(width @ -9999..=9999) => flags.push_str(&width.to_string()),
                    _ => return Err(failure("a format's `*` needs a small whole number")),
                }
            } else {
                flags.push(flag);
            }
        }
        let value = match key {
            Some(key) if is_map => {
                let value = values.get_attr(key)?;
                if value.is_undefined() {
                    return Err(failure(format!("a format's key `{key}` is missing in the values")));
                }
                value
            }
            Some(_) => return Err(failure("a format with keys needs a map")),
            None => next()?,
        };
        let (value, conversion) = match conversion {
            's' => (Value::from(super::python::text(&value)), 's'),
            'r' => (Value::from(repr(&value)), 's'),
            'd' | 'i' | 'u' => (whole(&value)?, 'd'),
            'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'c' => (value, conversion),
            other => return Err(failure(format!("the conversion `%{other}` of a format is not supported"))),
        };
        let length = after[end..].chars().next().map_or(0, char::len_utf8);
        out.push_str(&format(FormatStyle::Printf, &format!("%{flags}{conversion}"), &[value])?);
        rest = &after[end + length..];
    }
    out.push_str(rest);
    if used < given.len() && !is_map {
        return Err(failure("a format has fewer conversions than there are values"));
    }
    Ok(out)
}

/// A number without its fraction, for `%d`.
fn whole(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => {
            let number = f64::try_from(value.clone())?.trunc();
            if number.abs() < 1e18 {
                Ok(Value::from(number as i64))
            } else {
                Err(failure("%d of too large a number"))
            }
        }
        kind => Err(failure(format!("%d needs a number, not a {kind}"))),
    }
}

fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let of_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !of_number(left) || !of_number(right) {
        return Err(failure(format!("tried to use % on a {} and a {}", left.kind(), right.kind())));
    }
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    let by_zero = || failure("% by zero");
    if is_whole(left) && is_whole(right) {
        let (a, b) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let rest = a.checked_rem(b).ok_or_else(by_zero)?;
        // Python's remainder has the sign of the divisor.
        let rest = if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    let number = |value: &Value| f64::try_from(value.clone());
    let (a, b) = (number(left)?, number(right)?);
    if b == 0.0 {
        return Err(by_zero());
    }
    let rest = a % b;
    Ok(Value::from(match rest {
        0.0 => 0.0f64.copysign(b),
        _ if (rest < 0.0) != (b < 0.0) => rest + b,
        _ => rest,
    }))
}
