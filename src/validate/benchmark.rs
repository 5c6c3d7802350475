//! Multiple-choice benchmarks: the file format, and the score from log-likelihoods.
//!
//! A file is JSON lines, one item per line; blank lines are skipped:
//!
//! ```json
//! {"prompt": "The opposite of hot is", "choices": ["cold", "loud", "late"], "answer": 0}
//! ```
//!
//! - `prompt` (also `question`, `query` or `ctx`): the text before the choice; may be empty.
//! - `choices` (also `endings`): at least two texts, none empty.
//! - `answer` (also `label` or `gold`): the index of the right choice, from 0.
//!
//! Other fields are ignored. The model scores each choice by the log-likelihood of its tokens after the prompt (see
//! [`Item::continuation`]), and predicts the choice with the highest score. This follows EleutherAI's
//! lm-evaluation-harness: `acc` takes the plain sum, `acc_norm` divides it by the choice's bytes. Not here: running the
//! model.

use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::json;
use serde::Deserialize;

/// Most choices of one item; more indicate a mistake in the file.
const MAX_CHOICES: usize = 256;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Item {
    /// The text before the choice.
    #[serde(alias = "question", alias = "query", alias = "ctx")]
    pub prompt: String,
    /// The texts to choose from.
    #[serde(alias = "endings")]
    pub choices: Vec<String>,
    /// The index of the right choice.
    #[serde(alias = "label", alias = "gold")]
    pub answer: usize,
}

impl Item {
    /// The text of choice `index` after the prompt. A space separates them, unless there is white space already or the
    /// prompt is empty.
    ///
    /// # Panics
    /// When there is no such choice.
    pub fn continuation(&self, index: usize) -> String {
        let choice = &self.choices[index];
        let joined = self.prompt.is_empty()
            || self.prompt.ends_with(char::is_whitespace)
            || choice.starts_with(char::is_whitespace);
        if joined { choice.clone() } else { format!(" {choice}") }
    }

    fn check(&self) -> Result<()> {
        let count = self.choices.len();
        if !(2..=MAX_CHOICES).contains(&count) {
            return Err(invalid(format!("expected 2 to {MAX_CHOICES} choices but found {count}")));
        }
        if let Some(index) = self.choices.iter().position(|choice| choice.trim().is_empty()) {
            return Err(invalid(format!("expected a text but choice {index} is empty")));
        }
        if self.answer >= count {
            return Err(invalid(format!("expected an answer below {count} but found {}", self.answer)));
        }
        Ok(())
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}

/// Reads a whole file of items.
///
/// # Errors
/// `invalid_argument` naming a line that is not UTF-8, not JSON or not an item, and for a file without items.
pub fn parse_jsonl(bytes: &[u8]) -> Result<Vec<Item>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut items = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let item = parse_line(line).context_with(|| format!("line {}", index + 1))?;
        items.push(item);
    }
    if items.is_empty() {
        return Err(invalid("expected at least one benchmark item but found none".to_owned()));
    }
    Ok(items)
}

fn parse_line(line: &[u8]) -> Result<Item> {
    if std::str::from_utf8(line).is_err() {
        return Err(invalid("expected UTF-8 text".to_owned()));
    }
    let item: Item =
        json::parse(line).map_err(|error| invalid(format!("expected a benchmark item: {error}")))?;
    item.check()?;
    Ok(item)
}

/// A model's score of one choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChoiceScore {
    /// The sum over the choice's tokens, in nats.
    pub log_likelihood: f64,
    /// Tokens of the choice.
    pub tokens: usize,
    /// Bytes of the choice's text.
    pub bytes: usize,
}

/// The divisor of a log-likelihood before choices are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Normalization {
    /// None: the harness's `acc`. Favours short choices.
    #[default]
    None,
    /// Bytes: the harness's `acc_norm`.
    Bytes,
    /// Tokens: depends on the tokenizer.
    Tokens,
}

/// The choice with the highest score, the first among equals. `None`, which counts as wrong, if a score is NaN or none
/// is finite: a broken model must not be right by a default to the first choice.
pub fn predict(scores: &[ChoiceScore], normalization: Normalization) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, score) in scores.iter().enumerate() {
        let divisor = match normalization {
            Normalization::None => 1,
            Normalization::Bytes => score.bytes,
            Normalization::Tokens => score.tokens,
        };
        let value = score.log_likelihood / divisor.max(1) as f64;
        if value.is_nan() || value == f64::INFINITY {
            return None;
        }
        if value > best.map_or(f64::NEG_INFINITY, |(_, value)| value) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

/// The number of right predictions. A count, not a fraction, so that the drop in points is exact at its limit.
///
/// # Panics
/// If there is not one prediction per item.
pub fn count_right(items: &[Item], predictions: &[Option<usize>]) -> usize {
    assert_eq!(items.len(), predictions.len(), "one prediction for each item");
    items.iter().zip(predictions).filter(|(item, guess)| **guess == Some(item.answer)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "{\"prompt\": \"Ice is\", \"choices\": [\"cold\", \"hot\"], \"answer\": 0}";

    #[test]
    fn items_and_their_aliases() {
        let file = format!(
            "\u{feff}{GOOD}\r\n\n  \n{}\n{}",
            r#"{"question": "2 + 2 =", "choices": ["3", "4"], "label": 1, "subject": "sums"}"#,
            r#"{"ctx": "", "endings": [" a", "b", "c"], "gold": 2}"#
        );
        let items = parse_jsonl(file.as_bytes()).unwrap();
        assert_eq!(items.len(), 3);
        assert_eq!((items[0].prompt.as_str(), items[0].answer), ("Ice is", 0));
        assert_eq!((items[1].prompt.as_str(), items[1].answer), ("2 + 2 =", 1));
        assert_eq!((items[2].choices.len(), items[2].answer), (3, 2));
    }

    #[test]
    fn the_line_of_a_mistake_is_named() {
        let many: Vec<String> = (0..=MAX_CHOICES).map(|i| format!("\"{i}\"")).collect();
        let many = format!("{{\"prompt\": \"\", \"choices\": [{}], \"answer\": 0}}", many.join(","));
        let cases: [(&[u8], &str); 14] = [
            (b"not json", "expected a benchmark item"),
            (b"[1, 2]", "expected a benchmark item"),
            (b"{}", "missing field `prompt`"),
            (br#"{"prompt": "a", "choices": ["b", "c"]}"#, "missing field `answer`"),
            (br#"{"prompt": "a", "answer": 0}"#, "missing field `choices`"),
            (br#"{"prompt": "a", "choices": ["b"], "answer": 0}"#, "2 to 256 choices but found 1"),
            (many.as_bytes(), "2 to 256 choices but found 257"),
            (br#"{"prompt": "a", "choices": ["b", " "], "answer": 0}"#, "choice 1 is empty"),
            (br#"{"prompt": "a", "choices": ["b", "c"], "answer": 2}"#, "below 2 but found 2"),
            (br#"{"prompt": "a", "choices": ["b", "c"], "answer": -1}"#, "invalid value"),
            (br#"{"prompt": "a", "choices": ["b", "c"], "answer": "A"}"#, "invalid type"),
            (br#"{"prompt": 7, "choices": ["b", "c"], "answer": 0}"#, "invalid type"),
            (br#"{"prompt": "a", "question": "b", "choices": ["b", "c"], "answer": 0}"#, "duplicate field"),
            (b"\xff\xfe", "UTF-8"),
        ];
        for (line, says) in cases {
            let file = [GOOD.as_bytes(), b"\n\n", line, b"\n"].concat();
            let error = parse_jsonl(&file).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            let text = error.to_string();
            assert!(text.starts_with("line 3: ") && text.contains(says), "{text}");
        }
        for empty in ["", "\n \n"] {
            assert!(parse_jsonl(empty.as_bytes()).unwrap_err().message().contains("at least one"));
        }
    }

    #[test]
    fn choices_follow_the_prompt_with_one_space() {
        let item = |prompt: &str, choice: &str| Item {
            prompt: prompt.to_owned(),
            choices: vec![choice.to_owned(), "x".to_owned()],
            answer: 0,
        };
        for (prompt, choice, expected) in [
            ("Ice is", "cold", " cold"),
            ("Ice is ", "cold", "cold"),
            ("Q\n", "a", "a"),
            ("Q", " a", " a"),
            ("", "a", "a"),
        ] {
            assert_eq!(item(prompt, choice).continuation(0), expected);
        }
    }

    fn scores(sums: &[f64]) -> Vec<ChoiceScore> {
        sums.iter().map(|&log_likelihood| ChoiceScore { log_likelihood, tokens: 1, bytes: 1 }).collect()
    }

    #[test]
    fn predictions_and_ties() {
        let infinite = f64::NEG_INFINITY;
        for (sums, expected) in [
            (vec![-3.0, -1.0, -2.0], Some(1)),
            (vec![-1.0, -1.0], Some(0)),
            (vec![infinite, -9.0], Some(1)),
            (vec![infinite, infinite], None),
            (vec![-1.0, f64::NAN], None),
            (vec![], None),
        ] {
            assert_eq!(predict(&scores(&sums), Normalization::None), expected, "{sums:?}");
        }
        // -6 over 12 bytes and 4 tokens, -4 over 4 bytes and 4 tokens, -5 over 8 bytes and 5 tokens.
        let mixed = [(-6.0, 4, 12), (-4.0, 4, 4), (-4.5, 5, 8)]
            .map(|(log_likelihood, tokens, bytes)| ChoiceScore { log_likelihood, tokens, bytes });
        assert_eq!(predict(&mixed, Normalization::None), Some(1));
        assert_eq!(predict(&mixed, Normalization::Bytes), Some(0));
        assert_eq!(predict(&mixed, Normalization::Tokens), Some(2));
    }

    #[test]
    fn no_prediction_is_a_wrong_one() {
        let items = vec![parse_jsonl(GOOD.as_bytes()).unwrap().remove(0); 4];
        assert_eq!(count_right(&items, &[Some(0), Some(1), None, Some(0)]), 2);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..80) {
            let _ = parse_jsonl(&bytes);
            let mut broken = GOOD.as_bytes()[..cut.min(GOOD.len())].to_vec();
            broken.extend(bytes);
            let _ = parse_jsonl(&broken);
        }
    }
}
