//! Translates the regular expressions of tokenizer.json from Oniguruma's syntax to that of `fancy-regex`.
//!
//! The Python package `tokenizers` uses Oniguruma. In WebAssembly, and so on all targets here, the library uses
//! `fancy-regex`. The two differ in syntax, and some patterns silently mean something else: in Oniguruma `^` is the
//! start of every line, `\w` has no joiners, and `[[:alpha:]]` is Unicode's. Each pattern is parsed by Oniguruma's
//! rules and written as an equivalent `fancy-regex` pattern. A pattern without an equivalent is refused with the
//! construct's name. The character sets of both engines were compared one by one (both use Unicode 16).
//!
//! 1. The file is only searched for the key `Regex`, so that a vocabulary of megabytes is not parsed twice.
//! 2. Without case, Oniguruma also folds one character to several (`ß` to `ss`); `fancy-regex` folds single characters
//!    only. Patterns that such a folding could affect are refused.
//! 3. Groups are captured only in patterns with back-references.

mod class;
mod escape;
mod parser;

use parser::Parser;

/// Translates every pattern in the text of a tokenizer.json.
///
/// # Errors
/// A sentence with the pattern and the construct that cannot be translated.
pub(super) fn translate_file(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    const KEY: &str = "\"Regex\"";
    let text = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
    let mut out: Option<String> = None;
    let mut copied = 0;
    for (at, _) in text.match_indices(KEY) {
        // Skip the end of a longer string, a string that is no key, and the key of a token's id.
        if text[..at].ends_with('\\') {
            continue;
        }
        let Some(value) = text[at + KEY.len()..].trim_start().strip_prefix(':').map(str::trim_start) else {
            continue;
        };
        if !value.starts_with('"') {
            continue;
        }
        let mut letters = value.bytes().enumerate().skip(1);
        let mut length = value.len();
        while let Some((index, letter)) = letters.next() {
            match letter {
                b'\\' => _ = letters.next(),
                b'"' => {
                    length = index + 1;
                    break;
                }
                _ => {}
            }
        }
        let start = text.len() - value.len();
        let Ok(serde_json::Value::String(pattern)) = serde_json::from_str(&value[..length]) else { continue };
        let translated = translate(&pattern)?;
        let out = out.get_or_insert_default();
        out.push_str(&text[copied..start]);
        out.push_str(&serde_json::Value::String(translated).to_string());
        copied = start + length;
    }
    match out {
        None => Ok(bytes),
        Some(mut out) => {
            out.push_str(&text[copied..]);
            Ok(out.into_bytes())
        }
    }
}

/// Translates one Oniguruma pattern to `fancy-regex`.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    let named = |problem: String| {
        let shown: String = pattern.chars().take(100).collect();
        format!("the pattern `{shown}` has {problem}")
    };
    let mut parser = Parser::new(pattern, false);
    let translated = parser.pattern().map_err(named)?;
    if !parser.refers_back {
        return Ok(translated);
    }
    Parser::new(pattern, true).pattern().map_err(named)
}

#[cfg(test)]
mod tests;
