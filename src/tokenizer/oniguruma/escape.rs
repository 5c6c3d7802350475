//! Escape sequences.

use super::class::property;
use super::parser::{Parsed, Parser};

/// The characters of `\w` in brackets.
pub(super) const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";

/// The characters of `\w` outside of brackets and of words for `\b`: six more characters of Latin-1.
pub(super) const WORD_ALONE: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}²³¹¼-¾";

/// The meaning of an escape sequence.
pub(super) enum Escaped {
    Char(char),
    /// A set of characters, written for its place inside or outside of brackets.
    Set(String),
    /// A back-reference to a group.
    Reference(String),
    /// A zero-width assertion.
    Assertion(String),
}

impl Parser {
    /// An escape sequence, after its backslash.
    pub(super) fn escape(&mut self, in_class: bool) -> Parsed<Escaped> {
        let letter = self.next().ok_or("a backslash at the end")?;
        let assertion = |text: &str| Ok(Escaped::Assertion(text.to_owned()));
        let refused = |what: &str| Err(format!("`\\{what}`, which is not supported"));
        Ok(match (letter, in_class) {
            ('t', _) => Escaped::Char('\t'),
            ('n', _) => Escaped::Char('\n'),
            ('r', _) => Escaped::Char('\r'),
            ('f', _) => Escaped::Char('\u{c}'),
            ('v', _) => Escaped::Char('\u{b}'),
            ('a', _) => Escaped::Char('\u{7}'),
            ('e', _) => Escaped::Char('\u{1b}'),
            ('b', true) => Escaped::Char('\u{8}'),
            ('x' | 'u', _) => Escaped::Char(self.hexadecimal(letter)?),
            ('0', _) => Escaped::Char(self.octal(0, 2)),
            ('1'..='7', true) => Escaped::Char(self.octal(letter as u32 - '0' as u32, 2)),
            ('8' | '9', true) => return refused(&letter.to_string()),
            ('1'..='9', false) => {
                self.at -= 1;
                let number = self.number().unwrap_or(0) as usize;
                if !self.ended.contains(&number) {
                    return refused(&number.to_string());
                }
                self.refers_back = true;
                // `(?:...)` separates it from a following digit.
                Escaped::Reference(format!("(?:\\{number})"))
            }
            ('d' | 'D' | 's' | 'S', _) => Escaped::Set(format!("\\{letter}")),
            ('w', true) => Escaped::Set(format!("[{WORD}]")),
            ('W', true) => Escaped::Set(format!("[^{WORD}]")),
            ('w', false) => Escaped::Set(format!("[{WORD_ALONE}]")),
            ('W', false) => Escaped::Set(format!("[^{WORD_ALONE}]")),
            ('h', _) => Escaped::Set("[0-9A-Fa-f]".to_owned()),
            ('H', _) => Escaped::Set("[^0-9A-Fa-f]".to_owned()),
            ('p' | 'P', _) => {
                if !self.eat("{") {
                    return refused(&letter.to_string());
                }
                let negated = self.eat("^") != (letter == 'P');
                let name = self.until("}")?;
                Escaped::Set(property(&name, negated, in_class)?)
            }
            ('R', false) => Escaped::Set("(?>\\r\\n|[\\n\u{b}\u{c}\\r\u{85}\u{2028}\u{2029}])".to_owned()),
            ('N', false) => Escaped::Set("[^\\n]".to_owned()),
            ('O', false) => Escaped::Set("(?s:.)".to_owned()),
            ('A' | 'z', false) => return assertion(&format!("\\{letter}")),
            ('Z', false) => return assertion(r"(?=\n?\z)"),
            ('b' | 'B', false) => {
                let (word, not) = (format!("(?<=[{WORD_ALONE}])"), format!("(?<![{WORD_ALONE}])"));
                let (next, none) = (format!("(?=[{WORD_ALONE}])"), format!("(?![{WORD_ALONE}])"));
                Escaped::Assertion(match letter {
                    'b' => format!("(?:{word}{none}|{not}{next})"),
                    _ => format!("(?:{word}{next}|{not}{none})"),
                })
            }
            // The engines differ on where a search starts after an empty match (`\G`), and on `\K`.
            ('G' | 'K', false) => return refused(&letter.to_string()),
            ('X' | 'y' | 'Y' | 'k' | 'g' | 'o', false) | ('c' | 'C' | 'M', _) => {
                return refused(&letter.to_string());
            }
            _ => Escaped::Char(letter),
        })
    }

    fn hexadecimal(&mut self, kind: char) -> Parsed<char> {
        let mut digits = String::new();
        let in_braces = kind == 'x' && self.eat("{");
        let most = if in_braces {
            8
        } else if kind == 'x' {
            2
        } else {
            4
        };
        while let Some(digit) = self.peek().filter(char::is_ascii_hexdigit).filter(|_| digits.len() < most) {
            digits.push(digit);
            self.at += 1;
        }
        let code = u32::from_str_radix(&digits, 16).ok();
        let is_whole = match (in_braces, kind) {
            (true, _) => self.eat("}"),
            // Larger values are bytes of a character, not characters.
            (false, 'x') => code.is_some_and(|code| code < 0x80),
            _ => digits.len() == 4,
        };
        code.filter(|_| is_whole)
            .and_then(char::from_u32)
            .ok_or_else(|| format!("`\\{kind}{digits}`, which is not a character"))
    }

    fn octal(&mut self, first: u32, more: usize) -> char {
        let mut code = first;
        for _ in 0..more {
            let Some(digit) =
                self.peek().and_then(|letter| letter.to_digit(8)).filter(|digit| code * 8 + digit < 0x80)
            else {
                break;
            };
            code = code * 8 + digit;
            self.at += 1;
        }
        char::from_u32(code).unwrap_or_default()
    }
}
