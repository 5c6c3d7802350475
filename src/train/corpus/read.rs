//! Documents from files: plain text, JSON lines, token ids.
//!
//! Not here: opening files, and conversations, which need a chat template (`chats`).

use super::Document;
use crate::calibrate::samples::{binary_ids, json_rows};
use crate::error::{Error, Result};
use crate::tokenizer::{TextCodec, unify_line_ends};
use serde_json::Value;

/// Running text as one document. Line ends are read as `\n`.
///
/// # Errors
/// `tokenizer` for text that cannot be encoded.
pub fn running_text(text: &str, codec: &dyn TextCodec) -> Result<Document> {
    Ok(Document::text(codec.encode(&unify_line_ends(text))?))
}

/// The rows of a JSON-lines file: the string under `field` of each line. Line ends in it are read as `\n`.
///
/// # Errors
/// `invalid_argument` naming a line that is not a JSON object, lacks the string, or has one without a token;
/// `tokenizer` for text that cannot be encoded.
pub fn text_rows(text: &str, field: &str, codec: &dyn TextCodec) -> Result<Vec<Document>> {
    json_rows(text, |line| match text_of(line, field) {
        Some(text) => row(text, codec),
        None => Err(Error::invalid_argument(format!("expected a text under `{field}` but found none"))),
    })
}

/// The raw texts of a JSON-lines file, to train a tokenizer on: of each line the string under `field`, or its `prompt`
/// and `answer`, or the contents of its `messages`. Line ends in them are read as `\n`.
///
/// # Errors
/// `invalid_argument` naming a line that is not a JSON object or has none of these.
pub fn texts(text: &str, field: &str) -> Result<Vec<String>> {
    let lines = json_rows(text, |line| {
        if let Some(text) = text_of(line, field) {
            return Ok(vec![unify_line_ends(text).into_owned()]);
        }
        if let (Some(prompt), Some(answer)) = (text_of(line, "prompt"), text_of(line, "answer")) {
            return Ok(vec![unify_line_ends(&format!("{prompt}{answer}")).into_owned()]);
        }
        let Some(messages) = line.get("messages").and_then(Value::as_array) else {
            return Err(Error::invalid_argument(format!(
                "expected `messages` or a text under `{field}` but found neither"
            )));
        };
        let said = messages.iter().filter_map(|message| text_of(message, "content"));
        Ok(said.map(|text| unify_line_ends(text).into_owned()).collect())
    })?;
    Ok(lines.into_iter().flatten().collect())
}

/// Running text as one document of token ids: little-endian, `size` bytes each (2 or 4).
///
/// # Errors
/// `invalid_argument` for a length that is not a multiple of the size.
pub fn token_ids(bytes: &[u8], size: usize) -> Result<Document> {
    Ok(Document::text(binary_ids(bytes, size)?))
}

/// The string under `field` of a line.
pub(super) fn text_of<'a>(line: &'a Value, field: &str) -> Option<&'a str> {
    line.get(field)?.as_str()
}

/// A text as a row.
pub(super) fn row(text: &str, codec: &dyn TextCodec) -> Result<Document> {
    let tokens = codec.encode(&unify_line_ends(text))?;
    if tokens.is_empty() {
        return Err(Error::invalid_argument("expected a text but found no token in it"));
    }
    Ok(Document::row(tokens))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::corpus::DocumentKind;

    /// One token per byte.
    struct Bytes;

    impl TextCodec for Bytes {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            Ok(text.bytes().map(u32::from).collect())
        }

        fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
            self.encode(text)
        }

        fn decode(&self, ids: &[u32]) -> Result<String> {
            Ok(ids.iter().map(|&id| id as u8 as char).collect())
        }

        fn bos_token_id(&self) -> Option<u32> {
            None
        }

        fn vocab_size(&self) -> usize {
            256
        }
    }

    #[test]
    fn files_become_documents() {
        assert_eq!(
            running_text("a\r\nb\rc", &Bytes).unwrap(),
            Document::text(b"a\nb\nc".map(u32::from).into())
        );
        let lines = "{\"text\": \"a\\r\\n\"}\n\n{\"text\": \"bc\", \"messages\": 1}\n";
        let rows = [Document::row(vec![97, 10]), Document::row(vec![98, 99])];
        assert_eq!(text_rows(lines, "text", &Bytes).unwrap(), rows);
        let ids = token_ids(&[1, 0, 2, 1], 2).unwrap();
        assert_eq!((ids.tokens, ids.kind), (vec![1, 258], DocumentKind::Text));
        assert!(token_ids(&[1, 0, 2], 2).is_err());
        for (text, expected) in [
            ("{\"text\": \"a\"}\n\n{\"other\": 1}", "line 3: expected a text under `text` but found none"),
            ("{\"text\": 5}", "line 1: expected a text under `text` but found none"),
            ("[\"a\"]", "line 1: expected a text under `text` but found none"),
            ("{\"text\": \"\"}", "line 1: expected a text but found no token in it"),
            ("{\"text\": \"a\"}\n{\"text\": ", "line 2: EOF"),
        ] {
            let error = text_rows(text, "text", &Bytes).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
