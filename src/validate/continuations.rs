//! Lets models continue prompts and looks for text that is plainly broken.

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

/// Texts that are continued at once. Each needs a cache of its own, and more of them gain little: on two threads 16 prompts took
/// 1/1.6 of their time one by one with 8 at once as with 16 (the shipped model), 1/1.7 and 1/2.0 (another of 0.7M parameters).
const MOST_AT_ONCE: usize = 8;
/// Bytes of keys and values that texts under way may take together; one may take more. The default passages and new tokens of
/// eight texts need 42 MiB in a model of 1B parameters with grouped heads, and 640 MiB in one of 7B without.
const MOST_CACHE_BYTES: u64 = 256 << 20;

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
            // Short contexts leave less room; a prompt without any is the caller's error.
            let room = (longest + 1).saturating_sub(prompt.token_ids.len()).max(1);
            GenerateOptions { max_tokens: max_tokens.min(room), ..GenerateOptions::default() }
        })
        .collect();
    let batch = prompts.iter().zip(&options);
    let batch: Vec<_> =
        batch.map(|(prompt, options)| BatchPrompt { ids: &prompt.token_ids, options }).collect();
    let positions = prompts.iter().zip(&options).map(|(prompt, o)| prompt.token_ids.len() + o.max_tokens);
    let mut batch = Batch::new(model, codec, &batch, at_once(&config, positions.max().unwrap_or(0)))?;

    let mut spoken: Vec<Spoken> = Vec::new();
    spoken.resize_with(prompts.len(), Spoken::default);
    loop {
        let done = spoken.iter().filter(|spoken| spoken.ended).count();
        let next = spoken.iter().position(|spoken| !spoken.ended);
        control.progress(&Progress {
            phase: "generate",
            done: done as u64,
            total: prompts.len() as u64,
            item: next.map_or("", |next| &prompts[next].text),
        });
        let Some(said) = batch.next(control).await? else { break };
        for Said { prompt, piece } in said {
            spoken[prompt].take(piece)?;
        }
    }
    let continuations = spoken.into_iter().enumerate();
    Ok(continuations
        .map(|(prompt, spoken)| spoken.judge(batch.token_ids(prompt).to_vec(), &config.eos_token_ids))
        .collect())
}

/// How many texts of up to `positions` positions are continued at once.
fn at_once(config: &ModelConfig, positions: usize) -> usize {
    let fit = MOST_CACHE_BYTES / cache_bytes(config, positions).max(1);
    usize::try_from(fit).unwrap_or(MOST_AT_ONCE).clamp(1, MOST_AT_ONCE)
}

/// What a model has made of a prompt so far.
#[derive(Default)]
struct Spoken {
    text: String,
    finish_reason: Option<FinishReason>,
    non_finite_logits: bool,
    ended: bool,
}

impl Spoken {
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
        let spoken = match token_ids.split_last() {
            Some((last, rest)) if eos.contains(last) => rest,
            _ => &token_ids,
        };
        let failures =
            failures::detect(&Generated { token_ids: spoken, text: &text, finish_reason, non_finite_logits });
        Continuation { text, finish_reason: finish_reason.map(FinishReason::name), failures, token_ids }
    }
}
