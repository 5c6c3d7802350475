//! Continues prompts with a model, and looks for broken text.

use super::failures::{self, Failure, Generated};
use super::windows::Dataset;
use crate::backend::Backend;
use crate::error::{Error, ErrorCode, Result};
use crate::generate::{Batch, BatchPrompt, FinishReason, GenerateOptions, Piece, Said};
use crate::model::runner::cache_bytes;
use crate::model::{CausalLm, ModelConfig};
use crate::task::{Control, Progress};
use crate::tokenizer::TextCodec;
use serde::Serialize;

/// Prompts continued at once. Each needs its own KV cache, and more of them gain little. Measured:
/// `docs/measurements.md`, "Prompts continued at once in validation".
const MOST_AT_ONCE: usize = 8;
/// Most KV cache bytes of all prompts in progress; a single prompt may exceed it. The default prompts and new tokens,
/// eight at once, need 42 MiB in a model of 1B parameters with grouped-query attention, and 640 MiB in one of 7B
/// without.
const MOST_CACHE_BYTES: u64 = 256 << 20;

/// A text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// Its tokens, with leading special tokens.
    pub token_ids: Vec<u32>,
}

/// One model's continuation of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Continuation {
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended; null if the logits were not finite.
    pub finish_reason: Option<&'static str>,
    /// The failures found in it.
    #[serde(skip)]
    pub failures: Vec<Failure>,
}

/// Two models' continuations of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The prompt's text.
    pub prompt: String,
    /// The first model's continuation.
    pub a: Continuation,
    /// The second model's continuation.
    pub b: Continuation,
    /// The index of the first new token in which they differ; null if they are equal.
    pub first_difference: Option<usize>,
}

/// Pairs two models' continuations of the same prompts.
pub fn pair(prompts: &[&str], first: Vec<Continuation>, second: Vec<Continuation>) -> Vec<Pair> {
    let pairs = prompts.iter().zip(first.into_iter().zip(second)).map(|(prompt, (a, b))| {
        let same = a.token_ids.iter().zip(&b.token_ids).take_while(|(x, y)| x == y).count();
        let first_difference = (a.token_ids != b.token_ids).then_some(same);
        Pair { prompt: (*prompt).to_owned(), a, b, first_difference }
    });
    pairs.collect()
}

/// Prompts from texts, one each.
///
/// # Errors
/// `invalid_argument` without prompts, and for an empty one.
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

/// Prompts of `tokens` tokens each, from `count` evenly spaced positions of a text.
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
/// Non-finite logits are a finding here, not an error.
///
/// # Errors
/// As [`Batch::new`] and [`Batch::next`].
pub async fn continue_all<B: Backend>(
    model: &mut CausalLm<B>,
    codec: &dyn TextCodec,
    prompts: &[Prompt],
    max_tokens: usize,
    control: &dyn Control,
) -> Result<Vec<Continuation>> {
    let config = model.config().clone();
    let longest = config.max_position_embeddings;
    let options: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            // Limits the new tokens to the context's room; a prompt that leaves none is the caller's error.
            let room = (longest + 1).saturating_sub(prompt.token_ids.len()).max(1);
            GenerateOptions { max_tokens: max_tokens.min(room), ..GenerateOptions::default() }
        })
        .collect();
    let batch = prompts.iter().zip(&options);
    let batch: Vec<_> =
        batch.map(|(prompt, options)| BatchPrompt { ids: &prompt.token_ids, options }).collect();
    let positions = prompts.iter().zip(&options).map(|(prompt, o)| prompt.token_ids.len() + o.max_tokens);
    let mut batch = Batch::new(model, codec, &batch, at_once(&config, positions.max().unwrap_or(0)))?;

    let mut continuing: Vec<Continuing> = Vec::new();
    continuing.resize_with(prompts.len(), Continuing::default);
    loop {
        let done = continuing.iter().filter(|continuing| continuing.ended).count();
        let next = continuing.iter().position(|continuing| !continuing.ended);
        control.progress(&Progress {
            phase: "generate",
            done: done as u64,
            total: prompts.len() as u64,
            item: next.map_or("", |next| &prompts[next].text),
        });
        let Some(said) = batch.next(control).await? else { break };
        for Said { prompt, piece } in said {
            continuing[prompt].take(piece)?;
        }
    }
    let continuations = continuing.into_iter().enumerate();
    Ok(continuations
        .map(|(prompt, continuing)| continuing.judge(batch.token_ids(prompt).to_vec(), &config.eos_token_ids))
        .collect())
}

/// How many texts of up to `positions` positions are continued at once.
fn at_once(config: &ModelConfig, positions: usize) -> usize {
    let fit = MOST_CACHE_BYTES / cache_bytes(config, positions).max(1);
    usize::try_from(fit).unwrap_or(MOST_AT_ONCE).clamp(1, MOST_AT_ONCE)
}

/// A continuation in progress.
#[derive(Default)]
struct Continuing {
    text: String,
    finish_reason: Option<FinishReason>,
    non_finite_logits: bool,
    ended: bool,
}

impl Continuing {
    fn take(&mut self, piece: Result<Piece>) -> Result<()> {
        match piece {
            Ok(piece) => {
                self.text.push_str(&piece.text);
                self.finish_reason = piece.finished;
                self.ended = piece.finished.is_some();
            }
            Err(error) if error.code() == ErrorCode::NonFinite => {
                self.non_finite_logits = true;
                self.ended = true;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn judge(self, token_ids: Vec<u32>, eos: &[u32]) -> Continuation {
        let Self { text, finish_reason, non_finite_logits, .. } = self;
        let continuing = match token_ids.split_last() {
            Some((last, rest)) if eos.contains(last) => rest,
            _ => &token_ids,
        };
        let failures = failures::detect(&Generated {
            token_ids: continuing,
            text: &text,
            finish_reason,
            non_finite_logits,
        });
        Continuation { text, finish_reason: finish_reason.map(FinishReason::name), failures, token_ids }
    }
}
