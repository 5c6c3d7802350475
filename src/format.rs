//! Containers: byte sources, byte sinks, and the files that hold named tensors.
//!
//! Not here: what the tensors mean (`layout`, `model`).

pub mod foreign;
pub mod gguf;
pub mod json;
pub mod known_keys;
#[cfg(not(target_os = "unknown"))]
pub mod links;
pub mod passing;
pub mod row_order;
pub mod safetensors;
pub mod scratch;
pub mod shard_index;
pub mod sink;
pub mod small_file;
pub mod source;

use crate::error::{Error, ErrorCode, Result};

/// Text from a file, as a message shows it: in backticks, control characters escaped, cut at 120 characters.
///
/// A hostile file can hold a name of 100 MB, or one with escape sequences that move a terminal's cursor.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", clipped(text, 120))
}

/// As [`quoted`], without backticks: for parser messages that repeat their input.
pub(crate) fn clipped(text: &str, max_chars: usize) -> String {
    let mut shown = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == max_chars {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Accepts a plain file name, and refuses every name that leads out of the folder on any operating system.
///
/// # Errors
/// `invalid_argument` for an empty name, `.`, `..`, and names with `/`, `\`, `:` or a control character.
pub fn check_plain_name(file: &str) -> Result<()> {
    let leads_out = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    if file.is_empty() || file == "." || file == ".." || file.contains(leads_out) {
        return Err(Error::invalid_argument(format!(
            "expected a plain file name without folders but found {}",
            quoted(file)
        )));
    }
    Ok(())
}

/// Accepts the path of a file in a folder or its subfolders, with `/` as separator, and refuses paths that lead out.
///
/// # Errors
/// `invalid_argument`, as [`check_plain_name`] for each component.
pub fn check_inner_name(file: &str) -> Result<()> {
    file.split('/').try_for_each(|part| {
        check_plain_name(part).map_err(|_| {
            Error::invalid_argument(format!(
                "expected the name of a file inside the folder but found {}",
                quoted(file)
            ))
        })
    })
}

/// `len` zero bytes, or `out_of_memory` if they cannot be allocated.
///
/// The caller has checked `len` against the length of the source file.
pub(crate) fn zeroed(len: u64) -> Result<Vec<u8>> {
    let too_much = || Error::new(ErrorCode::OutOfMemory, format!("{len} bytes do not fit in memory"));
    let len = usize::try_from(len).map_err(|_| too_much())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| too_much())?;
    bytes.resize(len, 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for name in ["model.safetensors", "model-00001-of-00002.safetensors", "..hidden", "a b", "模型"] {
            check_plain_name(name).unwrap();
        }
        for name in ["", ".", "..", "a/b", "/etc/passwd", "..\\x", "C:x", "x\0", "a\nb", "\\\\server\\share"]
        {
            let error = check_plain_name(name).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{name:?}");
        }
    }

    #[test]
    fn names_of_files_in_subfolders_do_not_lead_out() {
        for name in ["model.safetensors", "weights/a.safetensors", "a/b/c"] {
            check_inner_name(name).unwrap();
        }
        for name in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\\b", "a/C:x", "a/b\0"] {
            let error = check_inner_name(name).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{name:?}");
        }
    }

    #[test]
    fn names_from_files_cannot_flood_or_steer_a_terminal() {
        assert_eq!(quoted("model.norm.weight"), "`model.norm.weight`");
        assert_eq!(quoted("a\u{1b}[2J\n"), "`a\\u{1b}[2J\\n`");
        assert_eq!(quoted(&"ü".repeat(1000)).chars().count(), 123);
    }
}
