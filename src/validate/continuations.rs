//! Lets models continue prompts and looks for text that is plainly broken. Floor 7.

use super::failures::{self, Failure, Generated};
use super::windows::Dataset;
use crate::backend::Backend;
use crate::error::{Error, ErrorCode, Result};
use crate::generate::{FinishReason, GenerateOptions, Generation};
use crate::model::CausalLm;
use crate::task::{Control, Progress};
use crate::tokenizer::TextCodec;
use serde::Serialize;

/// A text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// As people read it.
    pub text: String,
    /// With the tokens that the model expects in front.
    pub token_ids: Vec<u32>,
}

/// What one model made of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Continuation {
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended; null where the model's logits were not finite.
    pub finish_reason: Option<&'static str>,
    /// What is wrong with it.
    #[serde(skip)]
    pub failures: Vec<Failure>,
}

/// What two models made of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// As people read it.
    pub prompt: String,
    /// What the first made of it.
    pub a: Continuation,
    /// What the second made of it.
    pub b: Continuation,
    /// The first new token, counted from 0, in which they differ; null where they do not.
    pub first_difference: Option<usize>,
}

/// Puts together what two models made of the same prompts.
pub fn pair(prompts: &[&str], first: Vec<Continuation>, second: Vec<Continuation>) -> Vec<Pair> {
    let pairs = prompts.iter().zip(first.into_iter().zip(second)).map(|(prompt, (a, b))| {
        let same = a.token_ids.iter().zip(&b.token_ids).take_while(|(x, y)| x == y).count();
        let first_difference = (a.token_ids != b.token_ids).then_some(same);
        Pair { prompt: (*prompt).to_owned(), a, b, first_difference }
    });
    pairs.collect()
}

/// Prompts from `texts`, one each.
///
/// # Errors
/// `invalid_argument` when there is none.
pub fn from_texts<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    codec: &dyn TextCodec,
) -> Result<Vec<Prompt>> {
    let prompts: Vec<Prompt> = texts
        .into_iter()
        .map(|text| Ok(Prompt { text: text.to_owned(), token_ids: codec.encode_prompt(text)? }))
        .collect::<Result<_>>()?;
    if prompts.is_empty() || prompts.iter().any(|prompt| prompt.token_ids.is_empty()) {
        return Err(Error::invalid_argument("expected prompts but found none, or an empty one"));
    }
    Ok(prompts)
}

/// Prompts of `tokens` tokens each from `count` places of a text, evenly spaced.
pub fn from_dataset(
    data: &Dataset,
    count: usize,
    tokens: usize,
    codec: &dyn TextCodec,
) -> Result<Vec<Prompt>> {
    let spacing = (data.tokens.len() / count).max(1);
    data.tokens
        .chunks(spacing)
        .take(count)
        .map(|part| {
            let ids = &part[..part.len().min(tokens)];
            let token_ids = data.bos_token_id.into_iter().chain(ids.iter().copied()).collect();
            Ok(Prompt { text: codec.decode(ids)?, token_ids })
        })
        .collect()
}

/// Continues each prompt greedily by at most `max_tokens` tokens.
///
/// Broken logits are a finding here, not an error.
///
/// # Errors
/// As [`Generation::start`], but for `non_finite`.
pub async fn continue_all<B: Backend>(
    model: &mut CausalLm<B>,
    codec: &dyn TextCodec,
    prompts: &[Prompt],
    max_tokens: usize,
    control: &dyn Control,
) -> Result<Vec<Continuation>> {
    let longest = model.config().max_position_embeddings;
    let mut continuations = Vec::with_capacity(prompts.len());
    for (done, prompt) in prompts.iter().enumerate() {
        control.progress(&Progress {
            phase: "generate",
            done: done as u64,
            total: prompts.len() as u64,
            item: &prompt.text,
        });
        // Short contexts leave less room; a prompt without any is the caller's error.
        let room = (longest + 1).saturating_sub(prompt.token_ids.len()).max(1);
        let options = GenerateOptions { max_tokens: max_tokens.min(room), ..GenerateOptions::default() };
        continuations.push(continue_one(model, codec, prompt, &options, control).await?);
    }
    Ok(continuations)
}

async fn continue_one<B: Backend>(
    model: &mut CausalLm<B>,
    codec: &dyn TextCodec,
    prompt: &Prompt,
    options: &GenerateOptions,
    control: &dyn Control,
) -> Result<Continuation> {
    let eos = model.config().eos_token_ids.clone();
    let mut text = String::new();
    let mut finish_reason: Option<FinishReason> = None;
    let mut non_finite_logits = false;
    let mut generation = Generation::start(model, codec, &prompt.token_ids, options, control).await?;
    loop {
        match generation.next(control).await {
            Ok(Some(piece)) => {
                text.push_str(&piece.text);
                finish_reason = piece.finished;
            }
            Ok(None) => break,
            Err(error) if error.code() == ErrorCode::NonFinite => {
                non_finite_logits = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let token_ids = generation.token_ids().to_vec();
    let spoken = match token_ids.split_last() {
        Some((last, rest)) if eos.contains(last) => rest,
        _ => &token_ids,
    };
    let failures =
        failures::detect(&Generated { token_ids: spoken, text: &text, finish_reason, non_finite_logits });
    Ok(Continuation { text, finish_reason: finish_reason.map(FinishReason::as_str), failures, token_ids })
}
