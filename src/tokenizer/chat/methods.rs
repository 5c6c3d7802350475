//! Python's methods of text, lists and dicts, for templates.
//!
//! Methods that `minijinja-contrib` implements as Python does are taken from there. Methods that change a value are
//! refused, as in transformers' sandbox.

use super::{MOST_BYTES, failure};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls a method that `minijinja` does not find on `value`.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            from_args::<()>(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Whether Python counts a character as white space.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let one = || from_args::<(&str,)>(args).map(|(text,)| text);
    let width = || -> Result<(usize, char), Error> {
        let (width, fill): (i64, Option<&str>) = from_args(args)?;
        let mut fill = fill.unwrap_or(" ").chars();
        match (fill.next(), fill.next()) {
            (Some(letter), None) => Ok((checked(width, letter.len_utf8())?, letter)),
            _ => Err(failure(format!("{method}: expected one character to fill with"))),
        }
    };
    let len = || text.chars().count();
    let filled = |left: usize, right: usize, fill: char| {
        let side = |count| std::iter::repeat_n(fill, count);
        Value::from(side(left).chain(text.chars()).chain(side(right)).collect::<String>())
    };
    let none = || from_args::<()>(args);
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (letters,): (Option<&str>,) = from_args(args)?;
            let out = |letter: char| letters.map_or(is_space(letter), |letters| letters.contains(letter));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(out) };
            Value::from(if method == "lstrip" { text } else { text.trim_end_matches(out) })
        }
        "split" | "rsplit" => {
            let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.map_or_else(|| named.get("sep"), |given| Ok(Some(given)))?;
            let most = most.map_or_else(|| named.get("maxsplit"), |given| Ok(Some(given)))?;
            named.assert_all_used()?;
            let separator = separator.filter(|separator| !separator.is_none());
            let separator = match &separator {
                None => None,
                Some(value) => match value.as_str() {
                    Some("") => return Err(failure(format!("{method}: empty separator"))),
                    Some(text) => Some(text),
                    None => return Err(failure(format!("{method}: expected a separator that is text"))),
                },
            };
            // Negative means no limit.
            let most = most.filter(|most| *most >= 0).map_or(usize::MAX, |most| most as usize);
            pieces(text, separator, most, method == "rsplit")
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.map_or_else(|| named.get::<Option<bool>>("keepends"), |given| Ok(Some(given)))?;
            named.assert_all_used()?;
            lines(text, keep.unwrap_or(false))
        }
        "partition" | "rpartition" => {
            let separator = one()?;
            if separator.is_empty() {
                return Err(failure(format!("{method}: empty separator")));
            }
            let parts = match method {
                "partition" => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
                _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "removeprefix" => Value::from(text.strip_prefix(one()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(one()?).unwrap_or(text)),
        "ljust" => {
            let (width, fill) = width()?;
            filled(0, width.saturating_sub(len()), fill)
        }
        "rjust" => {
            let (width, fill) = width()?;
            filled(width.saturating_sub(len()), 0, fill)
        }
        "center" => {
            let (width, fill) = width()?;
            let room = width.saturating_sub(len());
            // For odd room, Python decides by the width which side gets one more.
            let left = room / 2 + (room & width & 1);
            filled(left, room - left, fill)
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let zeros = checked(width, 1)?.saturating_sub(len());
            let sign = text.starts_with(['+', '-']) as usize;
            Value::from([&text[..sign], &"0".repeat(zeros), &text[sign..]].concat())
        }
        "expandtabs" => {
            let (size, named): (Option<i64>, Kwargs) = from_args(args)?;
            let size = size.map_or_else(|| named.get::<Option<i64>>("tabsize"), |given| Ok(Some(given)))?;
            named.assert_all_used()?;
            expand_tabs(text, checked(size.unwrap_or(8), text.len().max(1))?)?
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            return search(text, method, args).map(Some);
        }
        "casefold" => {
            none()?;
            Value::from(text.chars().map(folded).collect::<Result<String, Error>>()?)
        }
        "title" | "capitalize" => {
            none()?;
            Value::from(titled(text, method == "title"))
        }
        "swapcase" => {
            none()?;
            if text.contains('Σ') {
                // Its lower case depends on the letters around it.
                return Err(failure("swapcase: `Σ` is not supported"));
            }
            let swapped = |letter: char| -> String {
                if letter.is_uppercase() {
                    letter.to_lowercase().collect()
                } else {
                    letter.to_uppercase().collect()
                }
            };
            Value::from(text.chars().map(swapped).collect::<String>())
        }
        "isspace" => {
            none()?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        "isalpha" | "isalnum" | "isdigit" | "isnumeric" | "isdecimal" | "isidentifier" | "isprintable" => {
            none()?;
            Value::from(is_all(text, method)?)
        }
        "istitle" => {
            none()?;
            Value::from(is_title(text))
        }
        "format_map" => {
            let (map,): (Value,) = from_args(args)?;
            let named: Kwargs = map
                .try_iter()?
                .map(|key| Ok((key.to_string(), map.get_item(&key)?)))
                .collect::<Result<_, Error>>()?;
            return formatted(text, &[Value::from(named)]).map(Some);
        }
        "format" => return formatted(text, args).map(Some),
        _ => return Ok(None),
    }))
}

fn formatted(text: &str, args: &[Value]) -> Result<Value, Error> {
    super::percent::check_widths(text)?;
    minijinja::formatting::format(minijinja::formatting::FormatStyle::StrFormat, text, args).map(Value::from)
}

/// Refuses a width that makes a text larger than [`MOST_BYTES`].
fn checked(width: i64, bytes_each: usize) -> Result<usize, Error> {
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    match width.checked_mul(bytes_each) {
        Some(bytes) if bytes <= MOST_BYTES => Ok(width),
        _ => Err(failure(format!("a width of {width} makes too large a text"))),
    }
}

fn pieces(text: &str, separator: Option<&str>, most: usize, from_right: bool) -> Value {
    let mut found: Vec<&str> = Vec::new();
    let mut rest = text;
    if separator.is_none() {
        rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
    }
    while found.len() < most {
        let cut = match (separator, from_right) {
            (Some(separator), false) => rest.split_once(separator),
            (Some(separator), true) => rest.rsplit_once(separator),
            (None, false) => rest.split_once(is_space).map(|(a, b)| (a, b.trim_start_matches(is_space))),
            (None, true) => rest.rsplit_once(is_space).map(|(a, b)| (a.trim_end_matches(is_space), b)),
        };
        let Some((left, right)) = cut else { break };
        let (piece, others) = if from_right { (right, left) } else { (left, right) };
        found.push(piece);
        rest = others;
    }
    if separator.is_some() || !rest.is_empty() {
        found.push(rest);
    }
    if from_right {
        found.reverse();
    }
    found.into_iter().map(Value::from).collect()
}

fn lines(text: &str, keep_ends: bool) -> Value {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        found.push(Value::from(&rest[..if keep_ends { at + end } else { at }]));
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        found.push(Value::from(rest));
    }
    Value::from(found)
}

fn expand_tabs(text: &str, size: usize) -> Result<Value, Error> {
    let (mut out, mut column) = (String::new(), 0);
    for letter in text.chars() {
        match letter {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                column += spaces;
                out.extend(std::iter::repeat_n(' ', spaces));
            }
            '\t' => {}
            _ => {
                column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
                out.push(letter);
            }
        }
        checked(out.len() as i64, 1)?;
    }
    Ok(Value::from(out))
}

/// Converts a slice in characters (negative bounds count from the end) to bytes: start and end in bytes, then the start
/// in characters. `None`: the start is after the end of the slice or text.
fn window(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, usize, usize)> {
    let len = text.chars().count() as i64;
    let bound = |at: i64| if at < 0 { (len + at).max(0) } else { at };
    let (start, end) = (bound(start.unwrap_or(0)), bound(end.unwrap_or(len)).min(len));
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    (start <= len && start <= end).then(|| (byte(start), byte(end), start as usize))
}

fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (sought, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let window = window(text, start, end);
    let inside = window.map(|(from, to, _)| &text[from..to]);
    if matches!(method, "startswith" | "endswith") {
        let fits = |one: &Value| match one.as_str() {
            Some(one) if method == "startswith" => Ok(inside.is_some_and(|text| text.starts_with(one))),
            Some(one) => Ok(inside.is_some_and(|text| text.ends_with(one))),
            None => Err(failure(format!("{method}: expected text or a tuple of texts"))),
        };
        if !sought.is_tuple() {
            return fits(&sought).map(Value::from);
        }
        for one in sought.try_iter()? {
            if fits(&one)? {
                return Ok(Value::from(true));
            }
        }
        return Ok(Value::from(false));
    }
    let Some(sought) = sought.as_str() else { return Err(failure(format!("{method}: expected text"))) };
    if method == "count" {
        let found = inside.map_or(0, |text| match sought {
            "" => text.chars().count() + 1,
            _ => text.matches(sought).count(),
        });
        return Ok(Value::from(found));
    }
    let found =
        inside.and_then(|text| if method.starts_with('r') { text.rfind(sought) } else { text.find(sought) });
    match (found, window) {
        (Some(byte), Some((from, _, start))) => {
            Ok(Value::from(start + text[from..from + byte].chars().count()))
        }
        _ if method.ends_with("index") => Err(failure(format!("{method}: the text was not found"))),
        _ => Ok(Value::from(-1)),
    }
}

/// Lower case with a capital at the start of each word (`each`), or of the whole text.
fn titled(text: &str, each: bool) -> String {
    // The text as a whole, because a final sigma has its own lower case.
    let small = text.to_lowercase();
    let mut after_cased = false;
    let mut out = String::with_capacity(small.len());
    for letter in small.chars() {
        if after_cased {
            out.push(letter);
        } else {
            out.extend(letter.to_uppercase());
        }
        after_cased = !each || letter.is_lowercase() || letter.is_uppercase();
    }
    out
}

/// Case-folds a letter that folds to a single one; others are refused.
fn folded(letter: char) -> Result<char, Error> {
    let plain = match letter {
        _ if letter.is_ascii() => Ok(letter.to_ascii_lowercase()),
        'ß' | 'ŉ' | 'ſ' | 'ǰ' | 'İ' | 'ς' => Err(()),
        // All other Latin, Greek and Cyrillic letters fold to one letter.
        'À'..='ɏ' | 'Α'..='Ω' | 'α'..='ω' | 'Ѐ'..='ҁ' => {
            Ok(letter.to_lowercase().next().unwrap_or(letter))
        }
        _ if !letter.is_uppercase()
            && !letter.is_lowercase()
            && !('\u{2b0}'..='\u{36f}').contains(&letter) =>
        {
            Ok(letter)
        }
        _ => Err(()),
    };
    plain.map_err(|()| failure(format!("casefold: `{letter}` is not supported")))
}

/// Whether Python counts a character as a letter. `None`: the standard library's properties may differ from Python's.
fn is_letter(letter: char) -> Option<bool> {
    match letter {
        _ if letter.is_ascii() => Some(letter.is_ascii_alphabetic()),
        'À'..='ɏ' => Some(!matches!(letter, '×' | '÷')),
        'Α'..='Ρ' | 'Σ'..='ω' | 'А'..='я' | 'ぁ'..='ゖ' | 'ァ'..='ヺ' | '一'..='鿿' | '가'..='힣' => {
            Some(true)
        }
        _ if !letter.is_alphabetic() && !letter.is_numeric() => Some(false),
        _ => None,
    }
}

fn is_all(text: &str, method: &str) -> Result<bool, Error> {
    let letter_or = |letter: char, digit: bool, also: char| match (is_letter(letter), letter.is_ascii()) {
        (Some(true), _) => Some(true),
        (_, true) => Some((digit && letter.is_ascii_digit()) || letter == also),
        (found, false) => found,
    };
    let mut all = true;
    for (index, letter) in text.chars().enumerate() {
        let fits = match method {
            "isalpha" => is_letter(letter),
            "isalnum" => letter_or(letter, true, 'a'),
            "isidentifier" => letter_or(letter, index > 0, '_'),
            "isprintable" => match letter.is_ascii() {
                true => Some((' '..='~').contains(&letter)),
                false => is_letter(letter).filter(|is| *is),
            },
            _ if letter.is_ascii() => Some(letter.is_ascii_digit()),
            _ => (!letter.is_numeric() && !letter.is_alphabetic())
                .then_some(false)
                .or(is_letter(letter).map(|_| false)),
        };
        match fits {
            Some(fits) => all &= fits,
            None => return Err(failure(format!("{method}: `{letter}` is not supported"))),
        }
    }
    Ok(all && (!text.is_empty() || method == "isprintable"))
}

fn is_title(text: &str) -> bool {
    let (mut after_cased, mut any) = (false, false);
    for letter in text.chars() {
        if letter.is_uppercase() {
            if after_cased {
                return false;
            }
            (after_cased, any) = (true, true);
        } else if letter.is_lowercase() {
            if !after_cased {
                return false;
            }
            any = true;
        } else {
            after_cased = false;
        }
    }
    any
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "index" => {
            let (sought, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
            let items: Vec<Value> = list.try_iter()?.collect();
            let bound = |at: i64| {
                let at = if at < 0 { items.len() as i64 + at } else { at };
                at.clamp(0, items.len() as i64) as usize
            };
            let (start, end) = (bound(start.unwrap_or(0)), bound(end.unwrap_or(i64::MAX)));
            let found = items.get(start..end).and_then(|items| items.iter().position(|item| *item == sought));
            Value::from(start + found.ok_or_else(|| failure("index: the value was not found"))?)
        }
        "count" => {
            let (sought,): (Value,) = from_args(args)?;
            Value::from(list.try_iter()?.filter(|item| *item == sought).count())
        }
        "copy" if !list.is_tuple() => {
            from_args::<()>(args)?;
            list.clone()
        }
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" => {
            return Err(Error::new(
                ErrorKind::UnknownMethod,
                format!("{method}: templates cannot change a list"),
            ));
        }
        _ => return Ok(None),
    }))
}
