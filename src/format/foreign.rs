//! Recognizes by its first bytes a file that is not what its name says.
//!
//! Downloads leave such files behind: an HTML error page, or a Git LFS pointer. A parser's error about their content
//! does not help.

use super::source::ByteSource;
use crate::error::{Error, Result};

/// Enough bytes to recognize every kind.
const HEAD_BYTES: usize = 512;

/// Recognizes a kind by first bytes, and describes it.
type Kind = (fn(&[u8]) -> bool, &'static str);

/// The kinds that are recognized, each with advice.
const KINDS: [Kind; 8] = [
    (
        is_git_lfs_pointer,
        "found a Git LFS pointer instead of the file that it stands for; fetch that with `git lfs pull`",
    ),
    (
        is_html,
        "found an HTML page; the server or the download put it in place of the file, which may not exist or may \
         need a login",
    ),
    (|bytes| bytes.starts_with(b"GGUF"), "found a GGUF file; open that file itself, not a folder with it"),
    (
        |bytes| matches!(bytes, [0x80, 2..=5, ..]),
        "found a Python pickle; convert it to safetensors with the tool that wrote it",
    ),
    (
        |bytes| bytes.starts_with(b"PK\x03\x04"),
        "found a zip archive, as PyTorch's .bin and .pth files are; convert it to safetensors, or unpack it",
    ),
    (|bytes| bytes.starts_with(b"\x1f\x8b"), "found gzip-compressed data; decompress it first"),
    (
        |bytes| bytes.starts_with(b"\x89HDF"),
        "found an HDF5 file, as TensorFlow writes; convert it to safetensors",
    ),
    (
        |bytes| bytes.starts_with(b"<?xml"),
        "found an XML document; storage servers answer this for a file that does not exist or may not be read",
    ),
];

fn is_git_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Whether text is an HTML page. A chat template may begin with `<`, but not with one of these tags.
fn is_html(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    ["<!doctype html", "<html>", "<html ", "<head>"].iter().any(|start| {
        bytes.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start.as_bytes()))
    })
}

/// What the first bytes reveal about a file, as one sentence; `None` if nothing is recognized.
pub fn describe(head: &[u8]) -> Option<&'static str> {
    KINDS.iter().find(|(is, _)| is(head)).map(|(_, sentence)| *sentence)
}

/// Replaces a parser's error by a description of the file, if the file is recognized as foreign.
pub async fn explain(source: &dyn ByteSource, error: Error) -> Error {
    let mut head = [0; HEAD_BYTES];
    let len = source.len().min(HEAD_BYTES as u64) as usize;
    match source.read_at(0, &mut head[..len]).await {
        Ok(()) => describe(&head[..len])
            .map_or(error, |sentence| Error::invalid_checkpoint(sentence).context(source.name())),
        Err(_) => error,
    }
}

/// Refuses a small file, `bytes`, whose content is of a foreign kind.
///
/// # Errors
/// `invalid_checkpoint` with the recognized kind.
pub fn refuse(bytes: &[u8]) -> Result<()> {
    describe(bytes).map_or(Ok(()), |sentence| Err(Error::invalid_checkpoint(sentence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
        let cases: &[(&[u8], Option<&str>)] = &[
            (pointer, Some("Git LFS")),
            (b"<!DOCTYPE html>\n<html>", Some("HTML")),
            (b"\xef\xbb\xbf \n <HTML lang=\"en\">", Some("HTML")),
            (b"GGUF\x03\0\0\0", Some("GGUF")),
            (b"PK\x03\x04", Some("zip")),
            (b"\x80\x02}q\0", Some("pickle")),
            (b"\x1f\x8b\x08", Some("gzip")),
            (b"<?xml version=\"1.0\"?><Error>", Some("XML")),
            // Templates and JSON.
            (b"<|im_start|>{{ messages }}", None),
            (b"<htmlish>", None),
            (b"{\"a\": 1}", None),
            (b"", None),
        ];
        for (bytes, expected) in cases {
            let found = describe(bytes);
            assert_eq!(found.is_some(), expected.is_some(), "{bytes:?}");
            assert!(found.unwrap_or("").contains(expected.unwrap_or("")), "{found:?}");
            assert_eq!(refuse(bytes).is_err(), expected.is_some());
        }
    }
}
