//! Conversations as documents: only the assistant's tokens count.
//!
//! The model's own chat template renders the prompt before each answer, as in generation, and the chat with the answer.
//! The latter must begin with the former; the rest is the answer.
//!
//! 1. The prompt is encoded alone, as in generation. The answer's tokens are those that follow the prompt's when both
//!    are encoded together. If the joint tokens do not begin with the prompt's, the answer is encoded alone.
//! 2. An answer counts up to the first stop token, because what the template writes after it is never generated. If the
//!    template writes no stop token, one is appended.
//! 3. The next answer continues the same row if its prompt begins with all of the row's tokens. Otherwise it starts a
//!    new row, for instance because the template drops the reasoning of earlier answers. Each answer counts in one row.
//!
//! Not here: the template language (`tokenizer::chat`).

use super::questions::{behind, question};
use super::read::{row, text_of};
use super::{Document, DocumentKind};
use crate::calibrate::samples::json_rows;
use crate::error::{Context, Error, Result};
use crate::tokenizer::{HuggingFaceTokenizer, TextCodec};
use serde_json::Value;

/// The chats and texts of a JSON-lines file. A line is one of:
///
/// - a chat: `messages`, a list of objects with `role` and `content`, and optionally `tools`, a list of JSON schemas;
/// - a row: a text under `field`;
/// - a [`question`]: a `prompt` and an `answer`.
///
/// The model stops at `stops`, its configuration's `eos_token_ids`.
///
/// # Errors
/// With the line's number: `invalid_argument` for a line that is not a JSON object or none of these, and the errors of
/// [`chat`] and [`text_rows`](super::read::text_rows).
pub fn chat_rows(
    text: &str,
    field: &str,
    codec: &HuggingFaceTokenizer,
    stops: &[u32],
) -> Result<Vec<Document>> {
    let rows = json_rows(text, |line| match (line.get("messages"), text_of(line, field)) {
        (Some(messages), _) => {
            let Some(messages) = messages.as_array() else {
                return Err(Error::invalid_argument("expected `messages` to be a list"));
            };
            let tools = line.get("tools").filter(|tools| !tools.is_null());
            let tools = match tools.map(Value::as_array) {
                Some(None) => return Err(Error::invalid_argument("expected `tools` to be a list")),
                tools => tools.flatten(),
            };
            chat(messages, tools.map(Vec::as_slice), codec, stops)
        }
        (None, Some(text)) => Ok(vec![row(text, codec)?]),
        (None, None) => match (text_of(line, "prompt"), text_of(line, "answer")) {
            (Some(prompt), Some(answer)) => Ok(vec![question(prompt, answer, codec, stops)?]),
            _ => Err(Error::invalid_argument(format!(
                "expected `messages` or a text under `{field}` but found neither, and no `prompt` with an `answer`"
            ))),
        },
    })?;
    Ok(rows.into_iter().flatten().collect())
}

/// The rows of one chat, rendered with the tokenizer's chat template.
///
/// # Errors
/// `invalid_argument`, with the message's index from 0, for an answer without a message before it, that the template
/// leaves out, or with which the chat does not begin with its prompt; the same for a chat without an answer; errors of
/// rendering and encoding.
pub fn chat(
    messages: &[Value],
    tools: Option<&[Value]>,
    codec: &HuggingFaceTokenizer,
    stops: &[u32],
) -> Result<Vec<Document>> {
    let mut rows: Vec<Document> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if text_of(message, "role") != Some("assistant") {
            continue;
        }
        let (prompt, answer) =
            turn(&messages[..=index], tools, codec).context_with(|| format!("messages[{index}]"))?;
        let goes_on = |row: &Document| {
            prompt.starts_with(&row.tokens) && (stops.is_empty() || ends_with_stop(row, stops))
        };
        if !rows.last().is_some_and(goes_on) {
            rows.push(Document { tokens: Vec::new(), counts: Vec::new(), kind: DocumentKind::Complete });
        }
        let Some(Document { tokens, counts, .. }) = rows.last_mut() else { unreachable!("a row is there") };
        tokens.extend_from_slice(&prompt[tokens.len()..]);
        counts.resize(tokens.len(), false);
        let stop = answer.iter().position(|id| stops.contains(id));
        counts.resize(tokens.len() + stop.map_or(answer.len(), |stop| stop + 1), true);
        tokens.extend(answer);
        counts.resize(tokens.len(), false);
    }
    if rows.is_empty() {
        return Err(Error::invalid_argument("expected an answer of the assistant but found none"));
    }
    for row in &mut rows {
        let is_ended = ends_with_stop(row, stops);
        row.tokens.truncate(counted_until(row));
        if !is_ended {
            row.tokens.extend(stops.first());
        }
        row.counts.resize(row.tokens.len(), true);
    }
    Ok(rows)
}

/// The tokens of the prompt and of the answer, which is the last of `messages`.
fn turn(
    messages: &[Value],
    tools: Option<&[Value]>,
    codec: &HuggingFaceTokenizer,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let before = &messages[..messages.len() - 1];
    if before.is_empty() {
        return Err(Error::invalid_argument("expected a message before the first answer but found none"));
    }
    let prompt = codec.apply_chat_template_with(before, tools, None)?;
    let both = codec.chat_so_far(messages, tools)?;
    let Some(answer) = both.strip_prefix(&prompt) else {
        return Err(Error::invalid_argument(
            "expected the chat with this answer to begin with its prompt but the template writes another one",
        ));
    };
    let prompt = codec.encode(&prompt)?;
    let answer = behind(&prompt, codec.encode(&both)?, || codec.encode(answer))?;
    if answer.is_empty() {
        return Err(Error::invalid_argument("expected the template to write this answer but found nothing"));
    }
    Ok((prompt, answer))
}

/// The position after the last token that counts.
fn counted_until(row: &Document) -> usize {
    row.counts.iter().rposition(|&counts| counts).map_or(0, |last| last + 1)
}

/// Whether the last answer ends with a stop token.
fn ends_with_stop(row: &Document, stops: &[u32]) -> bool {
    row.tokens[..counted_until(row)].last().is_some_and(|last| stops.contains(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::source::MemoryDir;
    use crate::task::block_on;
    use crate::tokenizer::train::{BpeOptions, train_bpe};
    use crate::train::corpus::{Corpus, Position};

    /// One token per byte, and tokens for `<s>`, `</s>`, the chat marks and frequent strings of `texts`.
    fn codec(template: &str, texts: &[&str]) -> HuggingFaceTokenizer {
        let marks = ["<|user|>", "<|bot|>", "<|end|>"].map(String::from);
        let options =
            BpeOptions { special_tokens: marks.into(), ..BpeOptions::new(261 + 4 * (texts.len() - 1)) };
        let made = train_bpe(texts, &options).unwrap();
        let dir = MemoryDir::new("m")
            .with("tokenizer.json", made.tokenizer_json.into_bytes())
            .with("tokenizer_config.json", made.tokenizer_config.into_bytes())
            .with("chat_template.jinja", template.as_bytes().to_vec());
        block_on(HuggingFaceTokenizer::open(&dir, None)).unwrap()
    }

    /// Special tokens around each message, and a line end that is never generated.
    const MARKS: &str = "{{ bos_token }}{% for m in messages %}\
        {{ '<|bot|>' if m.role == 'assistant' else '<|user|>' }}{{ m.content }}<|end|>{{ '\n' }}{% endfor %}\
        {% if add_generation_prompt %}<|bot|>{% endif %}";
    const END: u32 = 4;

    /// Renders rows with the tokens that count in brackets.
    fn shown(rows: &[Document], codec: &HuggingFaceTokenizer) -> Vec<String> {
        const SPECIAL: [&str; 5] = ["<s>", "</s>", "<|user|>", "<|bot|>", "<|end|>"];
        let show = |row: &Document| {
            assert_eq!((row.counts.len(), row.kind), (row.tokens.len(), DocumentKind::Complete));
            let (mut text, mut inside) = (String::new(), false);
            for (&id, &counts) in row.tokens.iter().zip(&row.counts) {
                if counts != inside {
                    text.push(if counts { '[' } else { ']' });
                }
                inside = counts;
                match SPECIAL.get(id as usize) {
                    Some(special) => text.push_str(special),
                    None => text.push_str(&codec.decode(&[id]).unwrap()),
                }
            }
            text + if inside { "]" } else { "" }
        };
        rows.iter().map(show).collect()
    }

    fn messages(turns: &[(&str, &str)]) -> Vec<Value> {
        turns.iter().map(|(role, content)| serde_json::json!({ "role": role, "content": content })).collect()
    }

    const TWO: &[(&str, &str)] = &[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];

    #[test]
    fn only_answers_count_and_each_counts_once() {
        let plain = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}\
            {% if add_generation_prompt %}a: {% endif %}";
        // Leaves out earlier answers.
        let forgets = "{% for m in messages %}{{ '<|bot|>' if m.role == 'assistant' else '<|user|>' }}\
            {{ m.content if loop.last or m.role == 'user' else '' }}<|end|>{% endfor %}\
            {% if add_generation_prompt %}<|bot|>{% endif %}";
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u32], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (MARKS, &TWO[..2], &[END], &["<s><|user|>a<|end|>\n<|bot|>[b<|end|>]"]),
            (MARKS, &TWO[..3], &[END], &["<s><|user|>a<|end|>\n<|bot|>[b<|end|>]"]),
            (
                MARKS,
                TWO,
                &[1, END],
                &["<s><|user|>a<|end|>\n<|bot|>[b<|end|>]\n<|user|>c<|end|>\n<|bot|>[d<|end|>]"],
            ),
            // Without a stop token, all that the template writes counts.
            (
                MARKS,
                TWO,
                &[],
                &["<s><|user|>a<|end|>\n<|bot|>[b<|end|>\n]<|user|>c<|end|>\n<|bot|>[d<|end|>\n]"],
            ),
            (plain, TWO, &[], &["u: a\na: [b\n]u: c\na: [d\n]"]),
            // A missing stop token is appended to each answer.
            (plain, TWO, &[1], &["u: a\na: [b\n</s>]", "u: a\na: b\nu: c\na: [d\n</s>]"]),
            (
                forgets,
                TWO,
                &[END],
                &[
                    "<|user|>a<|end|><|bot|>[b<|end|>]",
                    "<|user|>a<|end|><|bot|><|end|><|user|>c<|end|><|bot|>[d<|end|>]",
                ],
            ),
        ];
        for (template, turns, stops, expected) in cases {
            let codec = codec(template, &["a"]);
            let rows = chat(&messages(turns), None, &codec, stops).unwrap();
            assert_eq!(shown(&rows, &codec), *expected, "{template}");
        }
    }

    #[test]
    fn prompts_are_the_tokens_that_the_model_sees() {
        // ` b` is one token, but a prompt that ends in a space cannot contain it.
        let template = "{{ messages[0].content }} {% if messages[1] %}{{ messages[1].content }}{% endif %}";
        let codec = codec(template, &["a b a b a b", "b"]);
        let rows = chat(&messages(&TWO[..2]), None, &codec, &[]).unwrap();
        assert_eq!(codec.encode("a b").unwrap().len(), 2);
        let [a, space, b] = ["a", " ", "b"].map(|text| codec.encode(text).unwrap()[0]);
        assert_eq!(
            (&rows[0].tokens[..], &rows[0].counts[..]),
            (&[a, space, b][..], &[false, false, true][..])
        );
    }

    #[test]
    fn lines_are_chats_or_texts() {
        let codec = codec(MARKS, &["a"]);
        let lines = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": null}

{"text": "c"}"#;
        let rows = chat_rows(lines, "text", &codec, &[END]).unwrap();
        assert_eq!((rows.len(), rows[1].kind), (2, DocumentKind::Row));
        // An answer with a line end needs no stop token.
        for (answer, end) in [("b", "</s>"), ("b\\n", "\n")] {
            let line = format!("{{\"prompt\": \"a\", \"answer\": \"{answer}\", \"level\": 1}}");
            let asked = chat_rows(&line, "text", &codec, &[1]).unwrap();
            assert_eq!(shown(&asked, &codec), [format!("<s>a[b{end}]")]);
        }
        // The corpus adds nothing to the rendered chat.
        let mut corpus = Corpus::new(rows[..1].to_vec(), Some(0), Some(1), 64, 261).unwrap();
        let (batch, _) = corpus.batch(0, Position::default(), 64).unwrap();
        assert_eq!(batch[0].tokens, rows[0].tokens[..rows[0].tokens.len() - 1]);
        assert_eq!(corpus.predictions(), 2);

        for (line, expected) in [
            (r#"{"prompt": "a"}"#, "expected `messages` or a text under `text` but found neither"),
            (r#"{"messages": "a"}"#, "expected `messages` to be a list"),
            (r#"{"messages": [], "tools": 1}"#, "expected `tools` to be a list"),
            (r#"{"messages": []}"#, "expected an answer of the assistant but found none"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}]}"#,
                "expected an answer of the assistant but",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "a"}]}"#,
                "messages[0]: expected a message before",
            ),
            (
                r#"{"messages": [5, {"role": "assistant", "content": "a"}]}"#,
                "messages[1]: messages[0]: expected",
            ),
            (r#"{"messages": "#, "EOF"),
        ] {
            let error = chat_rows(&format!("{{\"text\": \"a\"}}\n{line}"), "text", &codec, &[]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("line 2: {expected}")), "{error}");
        }
    }

    #[test]
    fn templates_that_write_no_answer_behind_the_prompt_are_refused() {
        for (template, expected) in [
            (
                "{{ messages|length }}",
                "messages[1]: expected the chat with this answer to begin with its prompt",
            ),
            ("{{ messages[0].content }}", "messages[1]: expected the template to write this answer"),
            ("{{ raise_exception('no') }}", "messages[1]: "),
        ] {
            let error = chat(&messages(&TWO[..2]), None, &codec(template, &["a"]), &[]).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }
}
