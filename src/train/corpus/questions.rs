//! Questions as documents: only the answer counts.
//!
//! The prompt is encoded by itself, as when the model is asked, and the answer is what encoding both adds to it, or is encoded by itself
//! too where the tokens of both do not begin with the prompt's. An answer that ends with a line end is over there. Behind any other the
//! token at which the model stops is put, where it has one: without an end a longer answer would be as good.

use super::read::text_of;
use super::{Document, DocumentKind};
use crate::calibrate::samples::json_rows;
use crate::error::{Error, Result};
use crate::tokenizer::{TextCodec, unify_line_ends};
use serde_json::Value;

/// A question, and how hard it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graded {
    /// From 1, where the file says it.
    pub level: Option<usize>,
    /// Prompt and answer.
    pub document: Document,
}

/// The questions of a JSON-lines file: the strings under `prompt` and `answer` of each line, and the whole number under `level` where there is
/// one.
///
/// # Errors
/// `invalid_argument` naming the line that is no JSON object or has no such values, and what [`question`] refuses.
pub fn graded_rows(text: &str, codec: &dyn TextCodec, stops: &[u32]) -> Result<Vec<Graded>> {
    json_rows(text, |line| {
        let text = |name: &str| {
            text_of(line, name).ok_or_else(|| {
                Error::invalid_argument(format!("expected a text under `{name}` but found none"))
            })
        };
        let level = match line.get("level") {
            None | Some(Value::Null) => None,
            Some(level) => match level.as_u64().and_then(|level| usize::try_from(level).ok()) {
                Some(level @ 1..) => Some(level),
                _ => {
                    return Err(Error::invalid_argument(format!(
                        "expected `level` to be a whole number from 1 but found {level}"
                    )));
                }
            },
        };
        Ok(Graded { level, document: question(text("prompt")?, text("answer")?, codec, stops)? })
    })
}

/// A question and its answer as the model is trained on it, and asked. It stops at `stops`, its configuration's `eos_token_ids`.
///
/// # Errors
/// `invalid_argument` for a prompt or an answer without a token; `tokenizer` for what cannot be encoded.
pub fn question(prompt: &str, answer: &str, codec: &dyn TextCodec, stops: &[u32]) -> Result<Document> {
    let (prompt, answer) = (unify_line_ends(prompt), unify_line_ends(answer));
    let mut tokens = codec.encode_prompt(&prompt)?;
    if tokens.is_empty() {
        return Err(Error::invalid_argument("expected a prompt but found no token in it"));
    }
    let both = codec.encode_prompt(&format!("{prompt}{answer}"))?;
    let mut behind = behind(&tokens, both, || codec.encode(&answer))?;
    if behind.is_empty() {
        return Err(Error::invalid_argument("expected an answer but found no token in it"));
    }
    if !answer.ends_with('\n') {
        behind.extend(stops.first().filter(|stop| behind.last() != Some(stop)).copied());
    }
    let mut counts = vec![false; tokens.len()];
    tokens.append(&mut behind);
    counts.resize(tokens.len(), true);
    Ok(Document { tokens, counts, kind: DocumentKind::Complete })
}

/// What stands behind a prompt: what the tokens of both have more, or the answer's own.
pub(super) fn behind(
    prompt: &[u32],
    mut both: Vec<u32>,
    answer: impl FnOnce() -> Result<Vec<u32>>,
) -> Result<Vec<u32>> {
    if both.starts_with(prompt) { Ok(both.split_off(prompt.len())) } else { answer() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for each byte, but one for `ab`; 0 in front of prompts.
    struct Bytes;

    impl TextCodec for Bytes {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            Ok(text.replace("ab", "\u{7f}").bytes().map(u32::from).collect())
        }

        fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
            Ok([&[0], &self.encode(text)?[..]].concat())
        }

        fn decode(&self, ids: &[u32]) -> Result<String> {
            Ok(ids.iter().map(|&id| id as u8 as char).collect())
        }

        fn bos_token_id(&self) -> Option<u32> {
            Some(0)
        }

        fn vocab_size(&self) -> usize {
            256
        }
    }

    #[test]
    fn the_answer_counts_and_has_an_end() {
        const END: u32 = 1;
        let [a, b, c, line] = [97, 98, 99, 10];
        type Case<'a> = (&'a str, &'a str, &'a [u32], &'a [u32], usize);
        let cases: [Case<'_>; 5] = [
            ("c", "b", &[END], &[0, c, b, END], 2),
            ("c", "b\r\n", &[END], &[0, c, b, line], 2),
            ("c", "b", &[], &[0, c, b], 2),
            ("c", "ab", &[END, 2], &[0, c, 0x7f, END], 2),
            // The prompt's own tokens, though both together have others.
            ("a", "b", &[END], &[0, a, b, END], 2),
        ];
        for (prompt, answer, stops, tokens, first) in cases {
            let found = question(prompt, answer, &Bytes, stops).unwrap();
            assert_eq!(
                (found.kind, &found.tokens[..]),
                (DocumentKind::Complete, tokens),
                "{prompt} {answer:?}"
            );
            let counts: Vec<bool> = (0..tokens.len()).map(|index| index >= first).collect();
            assert_eq!(found.counts, counts, "{prompt} {answer:?}");
        }
        let error = question("c", "", &Bytes, &[END]).unwrap_err();
        assert_eq!(error.to_string(), "expected an answer but found no token in it");
    }
}
