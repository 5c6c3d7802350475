//! Whether both checkpoints are read completely and alike: tensors that nothing reads, the ids of a text, and the prompt
//! of a chat.
//!
//! Good perplexity does not show such differences: it is measured with the original's tokenizer, and a tensor that is
//! not read may matter only in the programs for which the checkpoint was made.

use crate::error::Result;
use crate::model::Checkpoint;
use crate::options::named;
use crate::tokenizer::TextCodec;
use serde::{Deserialize, Serialize};

/// A text on which tokenizers differ: cases, digits, runs of white space, line ends, accents, other scripts, emoji.
const PROBE: &str = "Hello, World! It's 12345.678 at 3:45 PM -- isn't it?\n\n  two spaces,\ttab\r\nnaïve café ÅÄÖ ß œ\n\
                     Привет мир. 你好，世界！ こんにちは مرحبا नमस्ते 👋🏽\n```py\nfor i in range(10):\n    print(f\"{i:>4}\")\n```\n";

/// Most tensors that are named, of each checkpoint.
const NAMED_TENSORS: usize = 20;

named! {
    /// Kinds of problems in reading a checkpoint
    pub enum ReadingProblemKind {
        /// Nothing reads a tensor
        UnreadTensor = "unread_tensor",
        /// The two tokenizers encode a text differently
        Tokenizer = "tokenizer",
        /// The two chat templates write a chat differently
        ChatTemplate = "chat_template",
    }
}

/// A problem in reading a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingProblem {
    /// The kind.
    pub kind: ReadingProblemKind,
    /// What was found, in a sentence.
    pub detail: String,
}

/// Finds the problems of a pair. `other` is the quantized checkpoint's tokenizer, or why it cannot be read; without it,
/// tokenizers and templates are not compared.
///
/// # Errors
/// Errors of a page's own tokenizer.
pub fn problems(
    original: &Checkpoint,
    quantized: &Checkpoint,
    codec: &dyn TextCodec,
    other: Option<&Result<&dyn TextCodec>>,
) -> Result<Vec<ReadingProblem>> {
    let mut problems = unread(original);
    problems.extend(unread(quantized));
    match other {
        None => {}
        Some(Ok(other)) => {
            problems.extend(tokenizers(codec, *other)?);
            problems.extend(templates(codec, *other));
        }
        Some(Err(error)) => problems.push(ReadingProblem {
            kind: ReadingProblemKind::Tokenizer,
            detail: format!("the quantized model's tokenizer cannot be read: {}", error.message()),
        }),
    }
    Ok(problems)
}

fn unread(checkpoint: &Checkpoint) -> Vec<ReadingProblem> {
    let tensors = checkpoint.unread_tensors();
    let more = tensors.len().saturating_sub(NAMED_TENSORS);
    let named = tensors.iter().take(NAMED_TENSORS).map(|tensor| format!("{}: `{tensor}`", checkpoint.name()));
    let rest = (more > 0).then(|| format!("{}: {more} more tensors", checkpoint.name()));
    let problem = |detail| ReadingProblem { kind: ReadingProblemKind::UnreadTensor, detail };
    named.chain(rest).map(problem).collect()
}

fn tokenizers(a: &dyn TextCodec, b: &dyn TextCodec) -> Result<Option<ReadingProblem>> {
    let problem = |detail| Ok(Some(ReadingProblem { kind: ReadingProblemKind::Tokenizer, detail }));
    for (what, first, second) in [
        ("a text", a.encode(PROBE)?, b.encode(PROBE)?),
        ("a prompt", a.encode_prompt(PROBE)?, b.encode_prompt(PROBE)?),
    ] {
        if first != second {
            let same = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
            let id = |ids: &[u32]| ids.get(same).map_or_else(|| "its end".to_owned(), u32::to_string);
            return problem(format!(
                "{what} is {} tokens for the original and {} for the quantized model; token {same} is {} and {}",
                first.len(),
                second.len(),
                id(&first),
                id(&second)
            ));
        }
        if a.decode(&first)? != b.decode(&first)? {
            return problem(format!("the tokens of {what} are different texts"));
        }
    }
    Ok(None)
}

fn templates(a: &dyn TextCodec, b: &dyn TextCodec) -> Option<ReadingProblem> {
    // A template that refuses the chat has a message instead of a prompt.
    let [first, second] = [a, b].map(|codec| {
        codec.probe_chat().map(|prompt| prompt.unwrap_or_else(|error| format!("error: {}", error.message())))
    });
    let detail = match (&first, &second) {
        (None, None) => return None,
        (Some(first), Some(second)) if first == second => return None,
        (Some(_), None) => "only the original has a chat template".to_owned(),
        (None, Some(_)) => "only the quantized model has a chat template".to_owned(),
        (Some(first), Some(second)) => {
            let same = first.chars().zip(second.chars()).take_while(|(a, b)| a == b).count();
            let rest = |prompt: &str| prompt.chars().skip(same).take(40).collect::<String>();
            format!(
                "a chat's prompt differs after {same} characters: {:?} and {:?}",
                rest(first),
                rest(second)
            )
        }
    };
    Some(ReadingProblem { kind: ReadingProblemKind::ChatTemplate, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// Encodes characters, each plus `shift`.
    struct Characters {
        shift: u32,
        chat: Option<&'static str>,
    }

    impl TextCodec for Characters {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            Ok(text.chars().map(|c| c as u32 + self.shift * u32::from(c.is_ascii_digit())).collect())
        }

        fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
            self.encode(text)
        }

        fn decode(&self, ids: &[u32]) -> Result<String> {
            Ok(ids.iter().filter_map(|&id| char::from_u32(id)).collect())
        }

        fn bos_token_id(&self) -> Option<u32> {
            None
        }

        fn vocab_size(&self) -> usize {
            usize::MAX
        }

        fn probe_chat(&self) -> Option<Result<String>> {
            self.chat.map(|prompt| match prompt {
                "" => Err(Error::invalid_argument("no system message")),
                prompt => Ok(prompt.to_owned()),
            })
        }
    }

    #[test]
    fn different_tokenizers_and_templates_are_found() {
        let codec = |shift, chat| Characters { shift, chat };
        let same = codec(0, Some("<user>Hi"));
        assert_eq!(tokenizers(&same, &codec(0, None)).unwrap(), None);
        let found = tokenizers(&same, &codec(1, None)).unwrap().unwrap();
        assert!(found.detail.contains("token 19 is 49 and 50"), "{}", found.detail);
        for (other, says) in [
            (Some("<user>Hi"), None),
            (Some("<user> Hi"), Some("after 6 characters: \"Hi\" and \" Hi\"")),
            (Some(""), Some("\"error: no system message\"")),
            (None, Some("only the original")),
        ] {
            let found = templates(&same, &codec(0, other)).map(|problem| problem.detail);
            match says {
                None => assert_eq!(found, None),
                Some(says) => assert!(found.as_ref().unwrap().contains(says), "{found:?}"),
            }
        }
        assert_eq!(templates(&codec(0, None), &codec(0, None)), None);
    }
}
