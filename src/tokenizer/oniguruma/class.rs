//! Character classes: brackets, and named sets.

use super::escape::{Escaped, WORD, WORD_ALONE};
use super::parser::{Options, Parsed, Parser, escaped, folds_alone};

/// Characters that `fancy-regex` needs escaped in brackets.
const SPECIAL: &str = r"\[]^-&~";

/// The POSIX set `name`, by Oniguruma's Unicode definition.
fn posix(name: &str) -> Option<&'static str> {
    Some(match name {
        "alnum" => r"\p{Alphabetic}\p{Nd}",
        "alpha" => r"\p{Alphabetic}",
        "ascii" => r"\x00-\x7f",
        "blank" => r"\p{Zs}\t",
        "cntrl" => r"\p{Cc}",
        "digit" => r"\p{Nd}",
        "graph" => r"[^\s\p{Cc}\p{Cn}]",
        "lower" => r"\p{Lowercase}",
        "print" => r"[^\s\p{Cc}\p{Cn}]\p{Zs}",
        "punct" => r"\p{P}\p{S}",
        "space" => r"\s",
        "upper" => r"\p{Uppercase}",
        "word" => WORD,
        "xdigit" => "0-9A-Fa-f",
        _ => return None,
    })
}

/// `\p{name}`
pub(super) fn property(name: &str, negated: bool, in_class: bool) -> Parsed<String> {
    let plain: String = name.chars().filter(|letter| !matches!(letter, ' ' | '_' | '-')).collect();
    let plain = plain.to_ascii_lowercase();
    let sign = if negated { "^" } else { "" };
    Ok(match plain.as_str() {
        // As a property it is the Unicode category.
        "punct" => format!(r"[{sign}\p{{P}}]"),
        "posixpunct" => format!(r"[{sign}\p{{P}}\p{{S}}]"),
        "word" if !in_class => format!("[{sign}{WORD_ALONE}]"),
        "any" if !negated => r"[\x00-\x{10ffff}]".to_owned(),
        _ => match posix(&plain) {
            Some(set) => format!("[{sign}{set}]"),
            // Both engines use the same names for categories, scripts and properties, but not for blocks.
            None if !plain.is_empty() && plain.chars().all(|letter| letter.is_ascii_alphanumeric()) => {
                format!("\\{}{{{plain}}}", if negated { 'P' } else { 'p' })
            }
            None => return Err(format!("`\\p{{{name}}}`, which is not supported")),
        },
    })
}

impl Parser {
    /// A class, after its `[`.
    pub(super) fn class(&mut self, options: Options) -> Parsed<String> {
        let negated = self.eat("^");
        let mut operands = Vec::new();
        let mut items = String::new();
        let mut is_first = true;
        loop {
            let is_very_first = std::mem::take(&mut is_first);
            let letter = self.next().ok_or("a `[` without its `]`")?;
            let low = match letter {
                ']' if !is_very_first => break,
                '[' if self.peek() == Some(':') => {
                    self.at_colon(&mut items)?;
                    self.no_range()?;
                    continue;
                }
                '[' => {
                    if options.ignore_case {
                        return Err("brackets in brackets where case is ignored".to_owned());
                    }
                    let inner = self.deeper(|parser| parser.class(options))?;
                    items.push_str(&inner);
                    self.no_range()?;
                    continue;
                }
                '&' if self.eat("&") => {
                    if items.is_empty() || options.ignore_case {
                        return Err("`&&` that is not supported".to_owned());
                    }
                    operands.push(std::mem::take(&mut items));
                    continue;
                }
                '\\' => match self.escape(true)? {
                    Escaped::Char(letter) => letter,
                    Escaped::Set(set) => {
                        items.push_str(&set);
                        self.no_range()?;
                        continue;
                    }
                    Escaped::Reference(_) | Escaped::Assertion(_) => {
                        return Err("an assertion in brackets".to_owned());
                    }
                },
                letter => letter,
            };
            if options.ignore_case {
                folds_alone(low)?;
            }
            items.push_str(&escaped(low, SPECIAL));
            if self.peek() == Some('-') && self.peek_after(1).is_some_and(|after| after != ']') {
                self.eat("-");
                let high = match self.next() {
                    Some('[') => return Err("a range to a `[`".to_owned()),
                    Some('\\') => match self.escape(true)? {
                        Escaped::Char(letter) => letter,
                        _ => return Err("a range that ends with a set".to_owned()),
                    },
                    high => high.unwrap_or(low),
                };
                if high < low {
                    return Err(format!("the range `{low}-{high}`, which is the wrong way round"));
                }
                if options.ignore_case && !high.is_ascii() {
                    return Err(format!("the range `{low}-{high}` where case is ignored"));
                }
                items.push('-');
                items.push_str(&escaped(high, SPECIAL));
                // In `[a-c-e]` the second `-` is a plain character.
                if self.peek() == Some('-') && self.peek_after(1).is_some_and(|after| after != ']') {
                    self.eat("-");
                    items.push_str("\\-");
                }
            }
        }
        if items.is_empty() {
            return Err("brackets with nothing in them".to_owned());
        }
        operands.push(items);
        Ok(format!("[{}{}]", if negated { "^" } else { "" }, operands.join("&&")))
    }

    /// `[:name:]` or `[:^name:]`, after the first bracket.
    fn at_colon(&mut self, items: &mut String) -> Parsed<()> {
        self.eat(":");
        let negated = self.eat("^");
        let name = self.until(":]")?;
        let set = posix(&name).ok_or_else(|| format!("`[:{name}:]`, which is not supported"))?;
        items.push_str(&format!("[{}{set}]", if negated { "^" } else { "" }));
        Ok(())
    }

    /// Refuses a `-` after a set, unless it is the last.
    fn no_range(&self) -> Parsed<()> {
        match (self.peek(), self.peek_after(1)) {
            (Some('-'), Some(after)) if after != ']' => Err("a range that starts with a set".to_owned()),
            _ => Ok(()),
        }
    }
}
