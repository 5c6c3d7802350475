//! Glob patterns for module names.
//!
//! They are translated to regular expressions for a linear-time engine, so matching always ends soon.

use crate::format::quoted;
use regex_lite::Regex;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::iter::Peekable;
use std::str::Chars;

/// Largest length of a pattern; module names are far shorter.
const MAX_CHARS: usize = 512;

/// A pattern for whole module names: `*` matches any text including dots, `?` one character, `[0-3]` and `[!qk]` one
/// character inside or outside a set. Other characters match themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModulePattern {
    text: String,
    regex: Regex,
}

impl ModulePattern {
    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it matches the whole name.
    pub fn matches(&self, module: &str) -> bool {
        self.regex.is_match(module)
    }
}

impl PartialEq for ModulePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl From<ModulePattern> for String {
    fn from(pattern: ModulePattern) -> Self {
        pattern.text
    }
}

impl TryFrom<String> for ModulePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let count = text.chars().count();
        if !(1..=MAX_CHARS).contains(&count) {
            return Err(format!("expected a pattern of 1 to {MAX_CHARS} characters but found {count}"));
        }
        let broken = |reason: &str| format!("pattern {}: {reason}", quoted(&text));
        let expression = expression(&text).map_err(broken)?;
        let regex = Regex::new(&expression).map_err(|error| broken(&error.to_string()))?;
        Ok(Self { text, regex })
    }
}

fn expression(text: &str) -> Result<String, &'static str> {
    let mut out = String::from("(?s)^");
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => {
                while chars.next_if_eq(&'*').is_some() {}
                out.push_str(".*");
            }
            '?' => out.push('.'),
            '[' => set(&mut chars, &mut out)?,
            other => push_char(&mut out, other),
        }
    }
    out.push('$');
    Ok(out)
}

/// The rest of a set, after its `[`.
fn set(chars: &mut Peekable<Chars>, out: &mut String) -> Result<(), &'static str> {
    const OPEN: &str = "expected `]` at the end of a set that begins with `[`";
    out.push('[');
    if chars.next_if_eq(&'!').is_some() {
        out.push('^');
    }
    let mut is_empty = true;
    loop {
        let first = chars.next().ok_or(OPEN)?;
        if first == ']' {
            break;
        }
        is_empty = false;
        push_char(out, first);
        if chars.next_if_eq(&'-').is_some() {
            // At the end of a set it is literal.
            if chars.peek() == Some(&']') {
                push_char(out, '-');
                continue;
            }
            let last = chars.next().ok_or(OPEN)?;
            if last < first {
                return Err("expected the ends of a range in ascending order");
            }
            out.push('-');
            push_char(out, last);
        }
    }
    if is_empty {
        return Err("expected a set to have a character");
    }
    out.push(']');
    Ok(())
}

fn push_char(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || c == '_' {
        out.push(c);
    } else {
        out.push_str(&format!("\\x{{{:x}}}", c as u32));
    }
}

/// A pattern or a list of them.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<ModulePattern>, D::Error> {
    struct OneOrMore;

    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<ModulePattern>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a pattern for module names, or a list of them")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            ModulePattern::try_from(text.to_owned()).map(|pattern| vec![pattern]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut patterns = Vec::new();
            while let Some(pattern) = list.next_element()? {
                patterns.push(pattern);
            }
            Ok(patterns)
        }
    }

    deserializer.deserialize_any(OneOrMore)
}
