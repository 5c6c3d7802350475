//! Answers multiple-choice questions with a model, by the likelihood of each choice.

use super::benchmark::{ChoiceScore, Item, Normalization, count_right, predict};
use super::metrics::negative_log_likelihood;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::decoder::Logits;
use crate::model::{CausalLm, KvCache};
use crate::task::{Control, Progress};
use crate::tokenizer::TextCodec;

/// The number of questions that the model answers right.
///
/// Prompt and choice are tokenized together, and the tokens after the prompt's are scored, as in lm-evaluation-harness.
/// An input longer than the model's context is cut at the front.
///
/// # Errors
/// `invalid_argument` for a choice without a token of its own; `cancelled`.
pub async fn answer_all<B: Backend>(
    model: &mut CausalLm<B>,
    codec: &dyn TextCodec,
    items: &[Item],
    control: &dyn Control,
) -> Result<usize> {
    let longest = model.config().max_position_embeddings;
    let mut cache = model.new_cache(longest)?;
    let mut predictions = Vec::with_capacity(items.len());
    for (done, item) in items.iter().enumerate() {
        control.progress(&Progress {
            phase: "benchmark",
            done: done as u64,
            total: items.len() as u64,
            item: &item.prompt,
        });
        let mut scores = Vec::with_capacity(item.choices.len());
        for index in 0..item.choices.len() {
            scores.push(
                score(model, &mut cache, codec, item, index, control)
                    .await
                    .map_err(|error| error.context(format!("benchmark item {}", done + 1)))?,
            );
        }
        predictions.push(predict(&scores, Normalization::None));
    }
    Ok(count_right(items, &predictions))
}

async fn score<B: Backend>(
    model: &mut CausalLm<B>,
    cache: &mut KvCache<B>,
    codec: &dyn TextCodec,
    item: &Item,
    index: usize,
    control: &dyn Control,
) -> Result<ChoiceScore> {
    let continuation = item.continuation(index);
    let whole = codec.encode_prompt(&format!("{}{continuation}", item.prompt))?;
    let prompt = codec.encode_prompt(&item.prompt)?.len().max(1);
    if prompt >= whole.len() {
        return Err(Error::invalid_argument(format!("choice {index} adds no token to its prompt")));
    }
    let tokens = whole.len() - prompt;
    // The last token is predicted but not fed.
    let cut = (whole.len() - 1).saturating_sub(cache.capacity());
    let inputs = &whole[cut..whole.len() - 1];
    let first_scored = prompt.saturating_sub(cut + 1);
    let mut log_likelihood = 0.0;
    cache.truncate(0, 0);
    model
        .forward(inputs, cache, Logits::All, control, |position, logits| {
            if position >= first_scored {
                log_likelihood -= negative_log_likelihood(logits, whole[cut + position + 1] as usize);
            }
            Ok(())
        })
        .await?;
    Ok(ChoiceScore { log_likelihood, tokens, bytes: continuation.len() })
}
