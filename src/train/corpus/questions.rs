//! Questions as documents: only the answer counts.
//!
//! The prompt is encoded alone, as in generation. The answer's tokens are those that follow the prompt's when both are
//! encoded together. If the joint tokens do not begin with the prompt's, the answer is encoded alone. A line end ends
//! an answer. Any other answer gets the model's stop token, if it has one: without an end, the model would learn that a
//! longer answer is as good.

use super::read::text_of;
use super::{Document, DocumentKind};
use crate::calibrate::samples::json_rows;
use crate::error::{Error, Result};
use crate::tokenizer::{TextCodec, unify_line_ends};
use serde_json::Value;

/// A question with its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graded {
    /// From 1; `None` if the file gives none.
    pub level: Option<usize>,
    /// Prompt and answer.
    pub document: Document,
}

/// The questions of a JSON-lines file: the strings `prompt` and `answer` of each line, and optionally the integer
/// `level`.
///
/// # Errors
/// `invalid_argument` naming a line that is not a JSON object or lacks such values, and the errors of [`question`].
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

/// A question and its answer, as the model is trained and evaluated on it. It stops at `stops`, its configuration's
/// `eos_token_ids`.
///
/// # Errors
/// `invalid_argument` for a prompt or an answer without a token; `tokenizer` for text that cannot be encoded.
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

/// The answer's tokens: what `both` has after `prompt`, or else the answer encoded alone.
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

    /// One token per byte, one for `ab`, and 0 before prompts.
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
            // The prompt keeps its own tokens, though the joint text is tokenized differently.
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
