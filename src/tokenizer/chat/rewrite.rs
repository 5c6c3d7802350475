//! Rewrites template constructs that `minijinja` does not have.
//!
//! - `{% generation %}` and `{% endgeneration %}` mark the assistant's words for training in transformers. They are a
//!   block with its own variables, so `with` and `endwith` replace them. White-space control of the tags is kept.
//! - `a % b` formats text in Python. `minijinja` can do this only as a filter, so every `%` becomes our filter:
//!   `(a)|f(b)`. `a` is the whole product so far, `b` the next operand with its calls, attributes, filters and tests.
//!
//! Templates are read as by Jinja2's lexer: comments, raw blocks and strings stay unchanged. Syntax that this module
//! does not understand stays too, and the parser refuses it.

use std::ops::Range;

/// The filter that implements Python's `%`.
pub(super) const PERCENT: &str = "_lowbit_percent";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Name,
    /// A number or a string.
    Constant,
    Operator,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    at: Range<usize>,
}

/// Rewrites a template.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let rest = &source[start..];
        let end = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'%') => match raw_block(rest) {
                Some(end) => end,
                None => {
                    out.push_str(&source[at..start]);
                    at = start + tag(rest, "%}", &mut out);
                    continue;
                }
            },
            Some(b'{') => {
                out.push_str(&source[at..start]);
                at = start + tag(rest, "}}", &mut out);
                continue;
            }
            _ => 1,
        };
        out.push_str(&source[at..start + end]);
        at = start + end;
    }
    out.push_str(&source[at..]);
    out
}

/// The end of a tag with nothing but `name` at the start of `rest`.
fn plain_tag(rest: &str, name: &str) -> Option<usize> {
    let inside = rest.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let after = inside.trim_start().strip_prefix(name)?.trim_start();
    let after = after.strip_prefix(['-', '+']).unwrap_or(after).strip_prefix("%}")?;
    Some(rest.len() - after.len())
}

/// The end of a raw block at the start of `rest`.
fn raw_block(rest: &str) -> Option<usize> {
    let mut at = plain_tag(rest, "raw")?;
    while let Some(found) = rest[at..].find("{%") {
        at += found;
        match plain_tag(&rest[at..], "endraw") {
            Some(end) => return Some(at + end),
            None => at += 2,
        }
    }
    Some(rest.len())
}

/// Writes the tag at the start of `rest` and returns its length. A tag without an end is left to the parser.
fn tag(rest: &str, close: &str, out: &mut String) -> usize {
    let Some((tokens, end)) = tokens(rest, close) else {
        out.push_str(rest);
        return rest.len();
    };
    let text = |token: &Token| &rest[token.at.clone()];
    if let ("%}", [only]) = (close, tokens.as_slice()) {
        let replaced = match text(only) {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        if let Some(replaced) = replaced {
            out.push_str(&rest[..only.at.start]);
            out.push_str(replaced);
            out.push_str(&rest[only.at.end..end]);
            return end;
        }
    }
    let percents = Percents::new(rest, &tokens);
    let mut copied = 0;
    for (index, token) in tokens.iter().enumerate() {
        out.push_str(&rest[copied..token.at.start]);
        (0..percents.opens[index]).for_each(|_| out.push('('));
        match percents.is_filter[index] {
            true => out.extend([")|", PERCENT, "("]),
            false => out.push_str(text(token)),
        }
        (0..percents.closes[index]).for_each(|_| out.push(')'));
        copied = token.at.end;
    }
    out.push_str(&rest[copied..end]);
    end
}

/// The tokens of a tag, and its end. Inside brackets the closing mark does not end it.
fn tokens(rest: &str, close: &str) -> Option<(Vec<Token>, usize)> {
    let bytes = rest.as_bytes();
    let mut tokens = Vec::new();
    let mut open = 0usize;
    let mut at = if matches!(bytes.get(2), Some(b'-' | b'+')) { 3 } else { 2 };
    loop {
        let first = *bytes.get(at)?;
        let start = at;
        if open == 0 && rest[at..].starts_with(close) {
            return Some((tokens, at + close.len()));
        }
        // A sign before the closing mark belongs to the mark.
        if open == 0 && matches!(first, b'-' | b'+') && rest[at + 1..].starts_with(close) {
            return Some((tokens, at + 1 + close.len()));
        }
        let kind = match first {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'"' | b'\'' => {
                at += 1;
                while *bytes.get(at)? != first {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
                Kind::Constant
            }
            b'0'..=b'9' => {
                let part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                while bytes.get(at).is_some_and(part)
                    || (bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit))
                {
                    at += 1;
                }
                Kind::Constant
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' | 0x80.. => {
                while bytes
                    .get(at)
                    .is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80)
                {
                    at += 1;
                }
                Kind::Name
            }
            _ => {
                match first {
                    b'(' | b'[' | b'{' => open += 1,
                    b')' | b']' | b'}' => open = open.checked_sub(1)?,
                    _ => {}
                }
                let two = rest
                    .get(at..at + 2)
                    .is_some_and(|two| ["**", "//", "==", "!=", "<=", ">="].contains(&two));
                at += if two { 2 } else { 1 };
                Kind::Operator
            }
        };
        tokens.push(Token { kind, at: start..at });
    }
}

/// The edits that turn each `%` into a filter: for each token the brackets to add before and after it, and whether to
/// replace it.
struct Percents {
    opens: Vec<usize>,
    closes: Vec<usize>,
    is_filter: Vec<bool>,
}

impl Percents {
    fn new(rest: &str, tokens: &[Token]) -> Self {
        let count = tokens.len();
        let mut found = Self { opens: vec![0; count], closes: vec![0; count], is_filter: vec![false; count] };
        let is_percent = |index: &usize| &rest[tokens[*index].at.clone()] == "%";
        if !(0..count).any(|index| is_percent(&index)) {
            return found;
        }
        let tag = Tag { rest, tokens, partner: partners(rest, tokens) };
        // The start of the product of each `%`, found once for a long product.
        let mut starts = vec![None; count];
        for index in (0..count).filter(is_percent) {
            let start = tag.product_start(index, &starts);
            let end = tag.operand_end(index + 1);
            starts[index] = Some(start);
            // Without an operand it is a syntax error, left to the parser.
            if start < index && end > index + 1 {
                found.opens[start] += 1;
                found.is_filter[index] = true;
                found.closes[end - 1] += 1;
            }
        }
        found
    }
}

/// For each bracket the index of its partner.
fn partners(rest: &str, tokens: &[Token]) -> Vec<usize> {
    let mut partner: Vec<usize> = (0..tokens.len()).collect();
    let mut open = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match (token.kind, &rest[token.at.clone()]) {
            (Kind::Operator, "(" | "[" | "{") => open.push(index),
            (Kind::Operator, ")" | "]" | "}") => {
                if let Some(first) = open.pop() {
                    (partner[first], partner[index]) = (index, first);
                }
            }
            _ => {}
        }
    }
    partner
}

/// Keywords, which are no operands: a product ends at them.
const WORDS: [&str; 9] = ["and", "or", "not", "in", "is", "if", "else", "elif", "for"];

struct Tag<'a> {
    rest: &'a str,
    tokens: &'a [Token],
    partner: Vec<usize>,
}

impl Tag<'_> {
    fn text(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| &self.rest[token.at.clone()])
    }

    fn is_operand(&self, index: usize) -> bool {
        match self.tokens.get(index) {
            Some(Token { kind: Kind::Constant, .. }) => true,
            Some(Token { kind: Kind::Name, .. }) => !WORDS.contains(&self.text(index)),
            _ => false,
        }
    }

    /// The first token of the product that ends before the token `index`.
    fn product_start(&self, index: usize, known: &[Option<usize>]) -> usize {
        let mut start = index;
        while start > 0 {
            let before = start - 1;
            let is_part = match (self.tokens[before].kind, self.text(before)) {
                (Kind::Operator, ")" | "]" | "}") => {
                    start = self.partner[before];
                    continue;
                }
                (Kind::Operator, "%") => return known[before].unwrap_or(before),
                (Kind::Operator, "." | "|" | "*" | "/" | "//" | "**") => true,
                // A unary sign is part of the operand; a binary one ends the product.
                (Kind::Operator, "-" | "+") => {
                    before > 0
                        && !self.is_operand(before - 1)
                        && !(self.tokens[before - 1].kind == Kind::Operator
                            && matches!(self.text(before - 1), ")" | "]" | "}"))
                }
                _ => self.is_operand(before),
            };
            // A sign at the start of an output tag.
            let is_first_sign = before == 0 && matches!(self.text(0), "-" | "+");
            if !(is_part || is_first_sign) {
                break;
            }
            start = before;
        }
        start
    }

    /// The token after the operand that begins at `index`, with its calls, attributes, filters and tests.
    fn operand_end(&self, index: usize) -> usize {
        let mut at = index;
        loop {
            while matches!(self.text(at), "-" | "+") {
                at += 1;
            }
            at = self.postfix_end(self.primary_end(at));
            loop {
                match self.text(at) {
                    "|" => {
                        at = self.postfix_end(self.primary_end(at + 1));
                    }
                    "is" => {
                        at += 1;
                        if self.text(at) == "not" {
                            at += 1;
                        }
                        at = self.postfix_end(self.primary_end(at));
                        // A test's argument needs no brackets.
                        let takes = self.is_operand(at) || matches!(self.text(at), "[" | "{");
                        if takes {
                            at = self.postfix_end(self.primary_end(at));
                        }
                    }
                    _ => break,
                }
            }
            if self.text(at) != "**" {
                return at;
            }
            at += 1;
        }
    }

    fn primary_end(&self, index: usize) -> usize {
        match self.text(index) {
            "(" | "[" | "{" => self.partner[index] + 1,
            _ if self.is_operand(index) || matches!(self.text(index), "in") => {
                let mut at = index + 1;
                let is_string = |at: usize| self.text(at).starts_with(['"', '\'']);
                while is_string(index) && is_string(at) {
                    at += 1;
                }
                at
            }
            _ => index,
        }
    }

    fn postfix_end(&self, index: usize) -> usize {
        let mut at = index;
        loop {
            match self.text(at) {
                "." => at += 2,
                "(" | "[" => at = self.partner[at] + 1,
                _ => return at.min(self.tokens.len()),
            }
        }
    }
}
