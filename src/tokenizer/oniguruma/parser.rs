//! Parser of Oniguruma's syntax; writes the translation in the same pass.

use super::escape::Escaped;

pub(super) type Parsed<T> = Result<T, String>;

/// Nesting limit of groups and brackets; `fancy-regex`'s own limit is 64.
const MOST_DEPTH: usize = 60;

/// Oniguruma's limit of repeats.
const MOST_REPEATS: u32 = 100_000;

/// The options in effect.
#[derive(Clone, Copy, Default)]
pub(super) struct Options {
    pub(super) ignore_case: bool,
    dot_is_any: bool,
    extended: bool,
}

/// A part of a branch.
struct Piece {
    text: String,
    /// The character, if it is a single literal one.
    letter: Option<char>,
    /// Whether a quantifier may follow.
    repeats: bool,
    /// Whether it may match nothing.
    may_be_empty: bool,
}

impl Piece {
    /// A set of characters.
    fn set(text: impl Into<String>) -> Self {
        Self { text: text.into(), letter: None, repeats: true, may_be_empty: false }
    }

    fn assertion(text: impl Into<String>) -> Self {
        Self { text: text.into(), letter: None, repeats: false, may_be_empty: true }
    }
}

pub(super) struct Parser {
    letters: Vec<char>,
    pub(super) at: usize,
    depth: usize,
    /// Whether groups are captured, for back-references.
    keeps_groups: bool,
    groups: usize,
    /// Numbers of the groups that are complete.
    pub(super) ended: Vec<usize>,
    has_names: bool,
    pub(super) refers_back: bool,
}

impl Parser {
    pub(super) fn new(pattern: &str, keeps_groups: bool) -> Self {
        Self {
            letters: pattern.chars().collect(),
            at: 0,
            depth: 0,
            keeps_groups,
            groups: 0,
            ended: Vec::new(),
            has_names: false,
            refers_back: false,
        }
    }

    pub(super) fn pattern(&mut self) -> Parsed<String> {
        let (out, _) = self.alternation(Options::default())?;
        if self.peek().is_some() {
            return Err("a `)` without its `(`".to_owned());
        }
        if self.refers_back && self.has_names {
            return Err("groups with names and references by number".to_owned());
        }
        Ok(out)
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    pub(super) fn peek_after(&self, count: usize) -> Option<char> {
        self.letters.get(self.at + count).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let letter = self.peek();
        self.at += usize::from(letter.is_some());
        letter
    }

    pub(super) fn eat(&mut self, expected: &str) -> bool {
        let found =
            expected.chars().enumerate().all(|(index, letter)| self.peek_after(index) == Some(letter));
        if found {
            self.at += expected.chars().count();
        }
        found
    }

    /// The text up to `end`; skips `end` too.
    pub(super) fn until(&mut self, end: &str) -> Parsed<String> {
        let mut out = String::new();
        while !self.eat(end) {
            out.push(self.next().ok_or_else(|| format!("no closing `{end}`"))?);
        }
        Ok(out)
    }

    pub(super) fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MOST_DEPTH {
            return Err(format!("brackets nested more than {MOST_DEPTH} deep"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn skip_extended(&mut self, options: Options) {
        if !options.extended {
            return;
        }
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}') => self.at += 1,
                Some('#') => while self.next().is_some_and(|letter| letter != '\n') {},
                _ => return,
            }
        }
    }

    /// Parses alternatives up to a `)` or the end. Also returns whether one of them may match nothing.
    fn alternation(&mut self, options: Options) -> Parsed<(String, bool)> {
        let mut out = String::new();
        let (mut any_empty, mut is_empty) = (false, true);
        // The previous letter. Without case, two letters may fold to one character.
        let mut before = None;
        loop {
            self.skip_extended(options);
            match self.peek() {
                None | Some(')') => return Ok((out, any_empty || is_empty)),
                Some('|') => {
                    self.at += 1;
                    out.push('|');
                    before = None;
                    any_empty |= is_empty;
                    is_empty = true;
                    continue;
                }
                Some('(') if self.eat("(?#") => {
                    self.until(")")?;
                    continue;
                }
                Some('(') => {
                    if let Some(changed) = self.isolated_options(options)? {
                        // They apply to the end of the group, in later alternatives too.
                        let (rest, rest_empty) = self.deeper(|parser| parser.alternation(changed))?;
                        let open = if changed.ignore_case { "(?i:" } else { "(?-i:" };
                        out.push_str(&[open, &rest, ")"].concat());
                        return Ok((out, any_empty || (is_empty && rest_empty)));
                    }
                }
                Some(_) => {}
            }
            let piece = self.atom(options)?;
            let letter = piece.letter;
            if options.ignore_case
                && let (Some(first), Some(second)) = (before, letter)
                && matches!((first, second), ('s', 's' | 't') | ('f', 'f' | 'i' | 'l'))
            {
                return Err(format!("`{first}{second}` where case is ignored, which may be one character"));
            }
            let unrepeated = self.at;
            let piece = self.repeated(piece, options)?;
            out.push_str(&piece.text);
            is_empty &= piece.may_be_empty;
            before = letter.filter(|_| self.at == unrepeated);
        }
    }

    fn atom(&mut self, options: Options) -> Parsed<Piece> {
        let letter = match self.next() {
            Some('(') => return self.deeper(|parser| parser.group(options)),
            Some('[') => return Ok(Piece::set(self.deeper(|parser| parser.class(options))?)),
            Some('.') => return Ok(Piece::set(if options.dot_is_any { "(?s:.)" } else { "." })),
            // A line starts after a line end, but not at the end of the text.
            Some('^') => return Ok(Piece::assertion(r"(?:\A|(?<=\n)(?!\z))")),
            Some('$') => return Ok(Piece::assertion(r"(?=\n|\z)")),
            Some(letter @ ('*' | '+' | '?')) => return Err(format!("a `{letter}` with nothing to repeat")),
            Some('\\') => match self.escape(false)? {
                Escaped::Char(letter) => letter,
                // Named sets do not ignore case.
                Escaped::Set(text) if options.ignore_case => return Ok(Piece::set(format!("(?-i:{text})"))),
                Escaped::Set(text) => return Ok(Piece::set(text)),
                Escaped::Reference(text) => return Ok(Piece { may_be_empty: true, ..Piece::set(text) }),
                Escaped::Assertion(text) => return Ok(Piece::assertion(text)),
            },
            Some(letter) => letter,
            None => return Err("an unexpected end".to_owned()),
        };
        if options.ignore_case {
            folds_alone(letter)?;
        }
        let text = escaped(letter, r"\.+*?()|[]{}^$");
        Ok(Piece { letter: Some(letter.to_ascii_lowercase()), ..Piece::set(text) })
    }

    /// `piece` with the quantifiers after it.
    fn repeated(&mut self, mut piece: Piece, options: Options) -> Parsed<Piece> {
        let mut is_first = true;
        loop {
            self.skip_extended(options);
            let (quantifier, bounds, is_interval) = match self.peek() {
                Some(letter @ ('?' | '*' | '+')) => {
                    self.at += 1;
                    let bounds = (u32::from(letter == '+'), (letter == '?').then_some(1));
                    (letter.to_string(), bounds, false)
                }
                Some('{') => match self.interval()? {
                    Some((least, most)) => {
                        let end = most.map_or_else(String::new, |most| most.to_string());
                        let both = if most == Some(least) { end } else { format!("{least},{end}") };
                        (format!("{{{both}}}"), (least, most), true)
                    }
                    // Not an interval but a literal bracket.
                    None => return Ok(piece),
                },
                _ => return Ok(piece),
            };
            if !piece.repeats {
                return Err(format!("`{quantifier}` after something that cannot be repeated"));
            }
            // The engines end such loops differently.
            if piece.may_be_empty && bounds.1 != Some(1) {
                return Err(format!("`{quantifier}` after something that may match nothing"));
            }
            if !is_first {
                piece.text = format!("(?:{})", piece.text);
            }
            is_first = false;
            piece.text.push_str(&quantifier);
            piece.may_be_empty |= bounds.0 == 0;
            // In Oniguruma `a{2}?` means two or none, not a lazy two.
            let is_exact = is_interval && bounds.1 == Some(bounds.0);
            if !is_exact && self.eat("?") {
                piece.text.push('?');
            } else if !is_interval && self.eat("+") {
                piece.text = format!("(?>{})", piece.text);
                is_first = true;
            }
        }
    }

    /// `{2}`, `{2,}`, `{,3}` or `{2,3}`. On anything else the position stays.
    fn interval(&mut self) -> Parsed<Option<(u32, Option<u32>)>> {
        let start = self.at;
        self.at += 1;
        let least = self.number();
        let comma = self.eat(",");
        let most = if comma { self.number() } else { least };
        if !self.eat("}") || (least.is_none() && most.is_none()) {
            self.at = start;
            return Ok(None);
        }
        let (least, most) = (least.unwrap_or(0), most);
        if least.max(most.unwrap_or(0)) > MOST_REPEATS {
            return Err(format!("more than {MOST_REPEATS} repeats"));
        }
        if most.is_some_and(|most| most < least) {
            return Err(format!("`{{{least},{}}}`, which is the wrong way round", most.unwrap_or(0)));
        }
        Ok(Some((least, most)))
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        let mut number = None;
        while let Some(digit) = self.peek().and_then(|letter| letter.to_digit(10)) {
            self.at += 1;
            number = Some(number.unwrap_or(0u32).saturating_mul(10).saturating_add(digit));
        }
        number
    }

    /// The options after `(?imx-imx)`, if one is next.
    fn isolated_options(&mut self, options: Options) -> Parsed<Option<Options>> {
        let start = self.at;
        if self.eat("(?") && self.peek().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '-') {
            let changed = self.options(options)?;
            if self.eat(")") {
                return Ok(Some(changed));
            }
        }
        self.at = start;
        Ok(None)
    }

    fn options(&mut self, mut options: Options) -> Parsed<Options> {
        let mut on = true;
        while let Some(letter) = self.peek().filter(|letter| !matches!(letter, ')' | ':')) {
            self.at += 1;
            match letter {
                '-' => on = false,
                'i' => options.ignore_case = on,
                'm' => options.dot_is_any = on,
                'x' => options.extended = on,
                other => return Err(format!("the option `{other}`, which is not supported")),
            }
        }
        Ok(options)
    }

    /// A group, after its `(`.
    fn group(&mut self, options: Options) -> Parsed<Piece> {
        if self.peek() == Some('*') {
            return Err("`(*`, which is not supported".to_owned());
        }
        let mut inside = options;
        let mut number = None;
        let mut is_assertion = false;
        let open = if !self.eat("?") {
            self.groups += 1;
            number = Some(self.groups);
            if self.keeps_groups { "(" } else { "(?:" }
        } else if self.eat(":") {
            "(?:"
        } else if self.eat(">") {
            "(?>"
        } else if let Some(open) = [("=", "(?="), ("!", "(?!"), ("<=", "(?<="), ("<!", "(?<!")]
            .iter()
            .find(|(mark, _)| self.eat(mark))
        {
            is_assertion = true;
            open.1
        } else if let Some(quote) = self.peek().filter(|letter| matches!(letter, '<' | '\'')) {
            self.at += 1;
            self.until(if quote == '<' { ">" } else { "'" })?;
            self.has_names = true;
            "(?:"
        } else if self.peek().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '-') {
            inside = self.options(options)?;
            self.eat(":");
            match (options.ignore_case, inside.ignore_case) {
                (false, true) => "(?i:",
                (true, false) => "(?-i:",
                _ => "(?:",
            }
        } else {
            let mark = self.peek().map_or_else(String::new, String::from);
            return Err(format!("`(?{mark}`, which is not supported"));
        };
        let (body, may_be_empty) = self.alternation(inside)?;
        if !self.eat(")") {
            return Err("a `(` without its `)`".to_owned());
        }
        self.ended.extend(number);
        let text = [open, &body, ")"].concat();
        Ok(Piece { letter: None, text, repeats: !is_assertion, may_be_empty: is_assertion || may_be_empty })
    }
}

/// Escapes a letter if it is one of `special`.
pub(super) fn escaped(letter: char, special: &str) -> String {
    if special.contains(letter) { format!("\\{letter}") } else { letter.to_string() }
}

/// Refuses a letter that takes part in a case folding of several characters.
pub(super) fn folds_alone(letter: char) -> Parsed<()> {
    let has_case = letter.is_uppercase() || letter.is_lowercase();
    // No Cyrillic letter does.
    let is_plain = letter.is_ascii()
        || ('\u{400}'..='\u{52f}').contains(&letter)
        || (!has_case && !('\u{2b0}'..='\u{36f}').contains(&letter));
    if is_plain { Ok(()) } else { Err(format!("`{letter}` where case is ignored, which is not supported")) }
}
