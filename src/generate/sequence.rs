//! The state of one text: sampler, stop rules and text stream. Independent of the model and of other texts in a batch.

use super::generator::{GenerateOptions, Piece};
use super::sampler::Sampler;
use super::stop::{FinishReason, StopOptions, StopRules, StopStep};
use super::text_stream::{Detokenize, TextStream};
use crate::error::{Error, ErrorCode, Result};
use crate::model::ModelConfig;
use crate::model::decoder::{LogitsRequest, Next};
use crate::tokenizer::TextCodec;

/// A prompt and its output so far.
pub(super) struct Sequence<'m> {
    sampler: Sampler,
    stop: StopRules,
    stream: TextStream<Codec<'m>>,
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Cache positions that it needs in total.
    positions: usize,
    wanted: LogitsRequest,
}

struct Codec<'a>(&'a dyn TextCodec);

impl Detokenize for Codec<'_> {
    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids)
    }
}

impl<'m> Sequence<'m> {
    /// A prompt without output yet.
    ///
    /// # Errors
    /// `invalid_argument` for an empty prompt or options out of range; `context_overflow` when prompt and `max_tokens`
    /// together are longer than the model's context.
    pub(super) fn new(
        config: &ModelConfig,
        codec: &'m dyn TextCodec,
        prompt_ids: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        if prompt_ids.is_empty() {
            return Err(Error::invalid_argument("expected a prompt of at least one token"));
        }
        // The last new token is never fed back, so it needs no room.
        let positions = prompt_ids.len().saturating_add(options.max_tokens.saturating_sub(1));
        let longest = config.max_position_embeddings;
        if positions > longest {
            return Err(Error::new(
                ErrorCode::ContextOverflow,
                format!(
                    "a prompt of {} tokens and {} new ones need {positions} positions but the model has {longest} (max_position_embeddings)",
                    prompt_ids.len(),
                    options.max_tokens
                ),
            ));
        }
        let eos_token_ids = if options.ignore_eos { Vec::new() } else { config.eos_token_ids.clone() };
        let stop = StopRules::new(StopOptions {
            max_tokens: options.max_tokens,
            eos_token_ids,
            stop_strings: options.stop.clone(),
        })?;
        let sampler = Sampler::new(options.sampler)?;
        let stream = if options.continue_prompt {
            TextStream::after(Codec(codec), prompt_ids)?
        } else {
            TextStream::new(Codec(codec))
        };
        let wanted = sampler.wanted(config.vocab_size);
        let (tokens, prompt_len) = (prompt_ids.to_vec(), prompt_ids.len());
        Ok(Self { sampler, stop, stream, tokens, prompt_len, positions, wanted })
    }

    /// Cache positions that it needs in total.
    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    /// What the sampler needs of the next logits.
    pub(super) fn wanted(&self) -> LogitsRequest {
        self.wanted
    }

    /// Whether more than one token may follow.
    pub(super) fn may_go_on(&self) -> bool {
        self.stop.tokens_left() > 1
    }

    /// Prompt and output.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The output.
    pub(super) fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Chooses the next token and returns its text.
    ///
    /// # Errors
    /// `non_finite` when the model's logits are NaN or infinite; errors of the tokenizer. An error ends the text.
    pub(super) fn accept(&mut self, mut next: Next) -> Result<Piece> {
        let token_id = self.sampler.choose(&mut next, &self.tokens)?;
        self.tokens.push(token_id);
        let step = if self.stop.is_end_of_sequence(token_id) {
            let rest = self.stream.finish()?;
            self.stop.finish(&rest, FinishReason::EndOfSequence)
        } else {
            let piece = self.stream.push(token_id)?;
            let step = self.stop.accept(&piece);
            match step.finished {
                // The stream may still hold an incomplete character.
                Some(FinishReason::MaxTokens) => {
                    let rest = self.stream.finish()?;
                    let last = self.stop.finish(&rest, FinishReason::MaxTokens);
                    StopStep { text: step.text + &last.text, finished: last.finished }
                }
                _ => step,
            }
        };
        Ok(Piece { token_id, text: step.text, finished: step.finished })
    }

    /// Prompt and output, by value.
    pub(super) fn into_tokens(self) -> Vec<u32> {
        self.tokens
    }
}
