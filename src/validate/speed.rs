//! Times decoding. The models take turns, so that other load on the machine slows both.

use super::measurements::SpeedRound;
use crate::backend::Backend;
use crate::error::Result;
use crate::model::CausalLm;
use crate::model::decoder::{Logits, LogitsRequest, Next, Run};
use crate::task::{Control, Progress};

/// Seconds since some fixed moment. Injected, because browsers and native programs have different clocks.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// Tokens decoded per turn.
const TOKENS: usize = 32;

/// Runs `rounds` rounds after a warmup round. Of several originals, the fastest counts in each round.
pub async fn measure<B: Backend>(
    originals: &mut [&mut CausalLm<B>],
    quantized: &mut CausalLm<B>,
    rounds: usize,
    clock: Clock<'_>,
    control: &dyn Control,
) -> Result<Vec<SpeedRound>> {
    let mut measured = Vec::with_capacity(rounds);
    for round in 0..=rounds {
        control.progress(&Progress {
            phase: "speed",
            done: round as u64,
            total: rounds as u64 + 1,
            item: "",
        });
        // The order alternates too.
        let early = if round % 2 == 0 { Some(decode(quantized, clock, control).await?) } else { None };
        let mut fastest = 0.0f64;
        for original in originals.iter_mut() {
            fastest = fastest.max(decode(original, clock, control).await?);
        }
        let speed = match early {
            Some(speed) => speed,
            None => decode(quantized, clock, control).await?,
        };
        if round > 0 {
            measured
                .push(SpeedRound { original_tokens_per_second: fastest, quantized_tokens_per_second: speed });
        }
    }
    Ok(measured)
}

/// Tokens per second of one turn: a short prompt, then one token after another.
async fn decode<B: Backend>(model: &mut CausalLm<B>, clock: Clock<'_>, control: &dyn Control) -> Result<f64> {
    let tokens = TOKENS.min(model.config().max_position_embeddings.saturating_sub(1)).max(1);
    let mut cache = model.new_cache(tokens + 1)?;
    model.forward(&[0], &mut cache, Logits::Last, control, |_, _| Ok(())).await?;
    let start = clock();
    for token in 0..tokens {
        let id = (token % model.config().vocab_size) as u32;
        model.forward(&[id], &mut cache, Logits::Last, control, |_, _| Ok(())).await?;
    }
    // The clock may be coarser than the time of a very small model.
    Ok(tokens as f64 / (clock() - start).max(1e-6))
}

/// Greedy tokens per second: a short prompt, then up to `tokens` tokens, each chosen on the device.
///
/// # Errors
/// Errors of running the model; `cancelled`.
pub async fn greedy<B: Backend>(
    model: &mut CausalLm<B>,
    tokens: usize,
    clock: Clock<'_>,
    control: &dyn Control,
) -> Result<f64> {
    let tokens = tokens.min(model.config().max_position_embeddings.saturating_sub(1)).max(1);
    let mut cache = model.new_cache(tokens + 1)?;
    let mut pending =
        model.start_next(&[Run::only(&[0])], &mut cache, LogitsRequest::Largest, control).await?;
    let mut start = clock();
    for left in (0..=tokens).rev() {
        let (next, ahead) = model.finish_next(pending, &mut cache, left > 0, control).await?;
        if left == tokens {
            // The kernels are compiled now.
            start = clock();
        }
        if left == 0 {
            break;
        }
        pending = match (ahead, &next[..]) {
            (Some(ahead), _) => ahead,
            (None, &[Next::Token(last)]) => {
                model.start_next(&[Run::only(&[last])], &mut cache, LogitsRequest::Largest, control).await?
            }
            // Non-finite logits: the speed is the same.
            (None, _) => {
                model.start_next(&[Run::only(&[0])], &mut cache, LogitsRequest::Largest, control).await?
            }
        };
    }
    Ok(tokens as f64 / (clock() - start).max(1e-6))
}
