//! The rules of the floors test. Each is a function from a source's path and text to its violations.
//!
//! The rules see tokens, so comments and strings are not taken for code, and macro bodies count.
//! They do not see paths that a macro assembles, and names that a lower module re-exports.

use super::{CONFINED, FLOORS, NEIGHBOURS};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::fmt;

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Violation {
    path: String,
    message: String,
}

impl Violation {
    pub fn new(path: &str, message: String) -> Violation {
        Violation { path: path.to_owned(), message }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.message)
    }
}

/// One file of `src/`.
pub struct Source<'a> {
    path: &'a str,
    text: &'a str,
    tokens: TokenStream,
    /// `quant`, `rtn` for `src/quant/rtn.rs`; empty for `src/lib.rs`.
    modules: Vec<&'a str>,
}

impl<'a> Source<'a> {
    /// Parses a source, given its path relative to the root (with `/`) and its text.
    pub fn new(path: &'a str, text: &'a str) -> Result<Source<'a>, Violation> {
        let tokens =
            text.parse().map_err(|error| Violation::new(path, format!("does not parse: {error}")))?;
        let inside =
            path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")).expect("a path in src/");
        let modules = if inside == "lib" { Vec::new() } else { inside.split('/').collect() };
        Ok(Source { path, text, tokens, modules })
    }

    fn violation(&self, message: String) -> Violation {
        Violation::new(self.path, message)
    }
}

/// The floor of a module of `src/`.
pub fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// All rules about one source.
pub fn all(source: &Source) -> Vec<Violation> {
    [header(source), imports(source), confined(source)].concat()
}

/// A source begins with a `//!` header, and the table has its module. `lib.rs` is above all floors.
fn header(source: &Source) -> Vec<Violation> {
    if !source.text.lines().next().is_some_and(|line| line.starts_with("//!")) {
        return vec![source.violation("does not begin with a //! header".into())];
    }
    match source.modules.first() {
        Some(module) if floor_of(module).is_none() => {
            vec![
                source
                    .violation(format!("has no floor: `{module}` is not in the table of tests/it/floors.rs")),
            ]
        }
        _ => Vec::new(),
    }
}

/// A source uses only modules of lower floors, its own module, and allowed neighbours.
fn imports(source: &Source) -> Vec<Violation> {
    let Some(own) = source.modules.first() else { return Vec::new() };
    let Some(own_floor) = floor_of(own) else { return Vec::new() };
    let mut named = Vec::new();
    crate_paths(&source.tokens, source.modules.len(), &mut named);
    let mut violations = Vec::new();
    for name in named {
        let problem = match floor_of(&name) {
            _ if name == *own => continue,
            Some(floor) if floor < own_floor => continue,
            Some(floor) if floor > own_floor => {
                format!("is on floor {floor}, above `{own}` on floor {own_floor}")
            }
            Some(_) if NEIGHBOURS.contains(&(own, &name)) => continue,
            Some(floor) => format!("is on the same floor as `{own}`, {floor}"),
            None if name == "*" => "is the whole crate: name the modules".into(),
            None => "is not a module with a floor: import from the module that defines it".into(),
        };
        violations.push(source.violation(format!("names `crate::{name}`, which {problem}")));
    }
    violations
}

/// Collects the name after every `crate::` and after every chain of `super::` that reaches the crate's root; `*` means
/// all names. `depth` is the number of enclosing modules.
fn crate_paths(tokens: &TokenStream, depth: usize, found: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let word = |at: usize| match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        Some(TokenTree::Punct(punct)) => punct.to_string(),
        _ => String::new(),
    };
    let separator = |at: usize| word(at) == ":" && word(at + 1) == ":";
    let mut at = 0;
    while at < tokens.len() {
        if let TokenTree::Group(group) = &tokens[at] {
            // `mod name { ... }` is one module deeper.
            let module = group.delimiter() == Delimiter::Brace && at >= 2 && word(at - 2) == "mod";
            crate_paths(&group.stream(), depth + usize::from(module), found);
        }
        let mut steps = 0;
        while word(at + 3 * steps) == "super" && separator(at + 3 * steps + 1) {
            steps += 1;
        }
        if word(at) == "crate" && word(at + 1) == "as" {
            found.push("*".into());
        } else if word(at) == "crate" && separator(at + 1) {
            names_at(tokens.get(at + 3), found);
        } else if steps > 0 && steps == depth {
            names_at(tokens.get(at + 3 * steps), found);
        }
        at += (3 * steps).max(1);
    }
}

/// The next names of a path: one, or those of a `{a::b, c}` group.
fn names_at(token: Option<&TokenTree>, found: &mut Vec<String>) {
    match token {
        Some(TokenTree::Ident(name)) => found.push(name.to_string()),
        Some(TokenTree::Punct(_)) => found.push("*".into()),
        Some(TokenTree::Group(group)) => {
            let mut first = true;
            for token in group.stream() {
                if first {
                    names_at(Some(&token), found);
                }
                first = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',');
            }
        }
        _ => {}
    }
}

/// A source does not use a library that is confined to other modules.
fn confined(source: &Source) -> Vec<Violation> {
    let mut identifiers = Vec::new();
    collect_identifiers(&source.tokens, &mut identifiers);
    let here = source.modules.join("/");
    let mut violations = Vec::new();
    for (name, homes) in CONFINED {
        let at_home = homes.iter().any(|home| here == *home || here.starts_with(&format!("{home}/")));
        if !at_home && identifiers.iter().any(|identifier| identifier == name) {
            violations
                .push(source.violation(format!("names `{name}`, which belongs to {}", homes.join(" and "))));
        }
    }
    violations
}

/// Every name, and every pair of names in a path: `Scheme::Integer`.
fn collect_identifiers(tokens: &TokenStream, found: &mut Vec<String>) {
    let mut before: Option<String> = None;
    let mut colons = 0;
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(ident) => {
                let ident = ident.to_string();
                found.extend(before.filter(|_| colons == 2).map(|before| format!("{before}::{ident}")));
                found.push(ident.clone());
                (before, colons) = (Some(ident), 0);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                collect_identifiers(&group.stream(), found);
                before = None;
            }
            _ => before = None,
        }
    }
}

/// Every shader has a CPU twin with the same stem, up to the first dot: `linear_float.matvec.wgsl` and
/// `linear_float.matmul.wgsl` share one. `shaders/shared/` holds pieces of kernels.
pub fn twins(shaders: &[String], sources: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for shader in shaders {
        let kernel = shader.strip_prefix("shaders/").filter(|rest| !rest.contains('/'));
        let Some((stem, _)) = kernel.and_then(|name| name.split_once('.')) else { continue };
        let twin = format!("src/backend/cpu/{stem}.rs");
        if !sources.contains(&twin) {
            violations.push(Violation::new(shader, format!("has no CPU twin: {twin} is not there")));
        }
    }
    violations
}

/// The number of lines before the `mod tests { ... }` at a file's end.
pub fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let guards = ["#[cfg(test)]", "#[cfg(all(test,"];
    let begins =
        |pair: &[&str]| pair[1] == "mod tests {" && guards.iter().any(|guard| pair[0].starts_with(guard));
    lines.windows(2).position(begins).unwrap_or(lines.len())
}
