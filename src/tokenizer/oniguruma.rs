//! Patterns of tokenizer.json, which are made for Oniguruma, as the library here reads them.
//!
//! The Python package of `tokenizers` has Oniguruma with its own syntax; in WebAssembly, and so everywhere here, the library
//! runs `fancy-regex`, which spells some things otherwise and takes others for something else without a word: `^` is the
//! start of every line there, `\w` has no joiners, `[[:alpha:]]` is Unicode's. Each pattern is parsed by Oniguruma's rules and
//! written anew, so that both mean the same; what has no such spelling is refused by name. The sets of characters were
//! compared one by one (both know Unicode 16).
//!
//! 1. The file is searched for the key `Regex` alone: vocabularies of megabytes are not read twice.
//! 2. Oniguruma ignores case with foldings of more characters than one (`ss` and `ß`), the engine here of one; what could
//!    meet those is refused.
//! 3. Groups are kept only for patterns that refer back to them.

mod class;
mod escape;
mod parser;

use parser::Parser;

/// The text of tokenizer.json with every pattern in it translated.
///
/// # Errors
/// A sentence that names the pattern and what of it cannot be translated.
pub(super) fn translate_file(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    const KEY: &str = "\"Regex\"";
    let text = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
    let mut out: Option<String> = None;
    let mut copied = 0;
    for (at, _) in text.match_indices(KEY) {
        // The end of a longer string; or a string that is no key, or the key of a token's id.
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

/// A pattern of Oniguruma's as `fancy-regex` spells it.
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
