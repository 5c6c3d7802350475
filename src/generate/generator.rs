//! Text from a model: a prompt goes in, pieces of text come out one token at a time.
//!
//! Not here: which token is chosen (`sampler`), when to stop (`stop`), how tokens become text (`text_stream`). Floor 6.

use super::sampler::{Sampler, SamplerOptions};
use super::stop::{FinishReason, StopOptions, StopRules};
use super::text_stream::{Detokenize, TextStream};
use crate::backend::Backend;
use crate::error::{Error, ErrorCode, Result};
use crate::model::decoder::{Next, Pending, Wanted};
use crate::model::{CausalLm, KvCache};
use crate::task::Control;
use crate::tokenizer::TextCodec;

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Stop before any of these.
    pub stop_strings: Vec<String>,
    /// Let the text begin as it follows the prompt, with the space that stands between them. Otherwise the text is that
    /// of the new tokens alone, as other tools report it.
    pub continue_prompt: bool,
}

impl Default for GenerateOptions {
    /// 100 tokens, greedily.
    fn default() -> Self {
        Self {
            sampler: SamplerOptions::default(),
            max_tokens: 100,
            ignore_eos: false,
            stop_strings: Vec::new(),
            continue_prompt: false,
        }
    }
}

/// One step of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The token that was chosen.
    pub token_id: u32,
    /// Whole characters that are certain by now; may be empty.
    pub text: String,
    /// Why this piece is the last one, if it is.
    pub finished: Option<FinishReason>,
}

/// What a model has seen, kept from one generation to the next: where the next prompt begins like it, as that of a chat does,
/// only the rest is computed.
pub struct Session<B: Backend> {
    cache: KvCache<B>,
    /// The tokens in the cache.
    tokens: Vec<u32>,
}

/// Positions that a session has room for at least.
const LEAST_ROOM: usize = 128;

impl<B: Backend> Session<B> {
    /// Room for `needed` positions, with a beginning of `prompt` that is there already, and how long that is. At least the
    /// last token of a prompt is run again: what follows it is not kept.
    fn prepare(
        session: Option<Self>,
        model: &mut CausalLm<B>,
        prompt: &[u32],
        needed: usize,
    ) -> Result<(KvCache<B>, usize)> {
        if let Some(Self { mut cache, tokens }) = session
            && cache.capacity() >= needed
        {
            let same = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
            let kept = same.min(prompt.len() - 1);
            cache.truncate(kept);
            return Ok((cache, kept));
        }
        // More than is needed now, so that a chat that grows does not begin anew at every turn.
        let capacity = needed.next_power_of_two().max(LEAST_ROOM).min(model.config().max_position_embeddings);
        Ok((model.new_cache(capacity.max(needed))?, 0))
    }
}

/// A generation under way. Dropping it stops it.
pub struct Generation<'m, B: Backend> {
    model: &'m mut CausalLm<B>,
    cache: KvCache<B>,
    sampler: Sampler,
    stop: StopRules,
    stream: TextStream<Codec<'m>>,
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_len: usize,
    reused: usize,
    upcoming: Upcoming<B>,
    wanted: Wanted,
    decoding: Decoding,
}

/// What the next token is chosen from.
enum Upcoming<B: Backend> {
    Known(Next),
    Runs(Pending<B>),
    /// The generation is over, or a step failed.
    Nothing,
}

/// What a device has done since the prompt's last token.
#[derive(Default)]
struct Decoding {
    /// Kernels before.
    dispatches_before: Option<u64>,
    steps: u64,
}

struct Codec<'a>(&'a dyn TextCodec);

impl Detokenize for Codec<'_> {
    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids)
    }
}

impl<'m, B: Backend> Generation<'m, B> {
    /// Runs the prompt through the model.
    ///
    /// # Errors
    /// `invalid_argument` for an empty prompt or options out of range; `context_overflow` when prompt and
    /// `max_tokens` together are longer than the model's context; `cancelled`.
    pub async fn start(
        model: &'m mut CausalLm<B>,
        codec: &'m dyn TextCodec,
        prompt_ids: &[u32],
        options: &GenerateOptions,
        control: &dyn Control,
    ) -> Result<Self> {
        Self::begin(model, codec, prompt_ids, options, control, |model, needed| {
            Ok((model.new_cache(needed)?, 0))
        })
        .await
    }

    /// As [`start`](Self::start), with what an earlier generation of the same model has left by
    /// [`into_session`](Self::into_session). Positions that are kept were computed in other chunks than a fresh run would
    /// compute them in; on a GPU their last bits can differ.
    ///
    /// # Errors
    /// As [`start`](Self::start)'s; the session is lost then.
    pub async fn resume(
        model: &'m mut CausalLm<B>,
        codec: &'m dyn TextCodec,
        prompt_ids: &[u32],
        options: &GenerateOptions,
        control: &dyn Control,
        session: Option<Session<B>>,
    ) -> Result<Self> {
        Self::begin(model, codec, prompt_ids, options, control, |model, needed| {
            Session::prepare(session, model, prompt_ids, needed)
        })
        .await
    }

    async fn begin(
        model: &'m mut CausalLm<B>,
        codec: &'m dyn TextCodec,
        prompt_ids: &[u32],
        options: &GenerateOptions,
        control: &dyn Control,
        room: impl FnOnce(&mut CausalLm<B>, usize) -> Result<(KvCache<B>, usize)>,
    ) -> Result<Self> {
        if prompt_ids.is_empty() {
            return Err(Error::invalid_argument("expected a prompt of at least one token"));
        }
        // The last new token is never fed back, so it needs no room.
        let needed = prompt_ids.len().saturating_add(options.max_tokens.saturating_sub(1));
        let longest = model.config().max_position_embeddings;
        if needed > longest {
            return Err(Error::new(
                ErrorCode::ContextOverflow,
                format!(
                    "a prompt of {} tokens and {} new ones need {needed} positions but the model has {longest} (max_position_embeddings)",
                    prompt_ids.len(),
                    options.max_tokens
                ),
            ));
        }
        let eos_token_ids =
            if options.ignore_eos { Vec::new() } else { model.config().eos_token_ids.clone() };
        let stop = StopRules::new(StopOptions {
            max_tokens: options.max_tokens,
            eos_token_ids,
            stop_strings: options.stop_strings.clone(),
        })?;
        let sampler = Sampler::new(options.sampler.clone())?;
        let stream = if options.continue_prompt {
            TextStream::after(Codec(codec), prompt_ids)?
        } else {
            TextStream::new(Codec(codec))
        };
        let (mut cache, reused) = room(model, needed)?;
        let wanted = sampler.wanted(model.config().vocab_size);
        let next = model.forward_next(&prompt_ids[reused..], &mut cache, wanted, control).await?;
        Ok(Self {
            decoding: Decoding { dispatches_before: model.dispatches(), steps: 0 },
            model,
            cache,
            sampler,
            stop,
            stream,
            prompt_len: prompt_ids.len(),
            reused,
            tokens: prompt_ids.to_vec(),
            upcoming: Upcoming::Known(next),
            wanted,
        })
    }

    /// The next token and what can be said of its text; `None` after the last piece. On a device that runs ahead of its caller
    /// the step after it has begun by then, where the next token can be chosen there.
    ///
    /// # Errors
    /// `non_finite` when the model's logits are NaN or infinite; `cancelled`. Nothing comes after an error.
    pub async fn next(&mut self, control: &dyn Control) -> Result<Option<Piece>> {
        let (mut next, ahead) = match std::mem::replace(&mut self.upcoming, Upcoming::Nothing) {
            Upcoming::Known(next) => (next, None),
            Upcoming::Runs(pending) => {
                // The last token that is allowed is not put into the model.
                let follows = self.stop.tokens_left() > 1;
                self.model.finish_next(pending, &mut self.cache, follows, control).await?
            }
            Upcoming::Nothing => return Ok(None),
        };
        self.decoding.steps += u64::from(ahead.is_some());
        let token_id = self.sampler.choose(&mut next, &self.tokens)?;
        self.tokens.push(token_id);
        let step = if self.stop.is_end_of_sequence(token_id) {
            let rest = self.stream.finish()?;
            self.stop.finish(&rest, FinishReason::EndOfSequence)
        } else {
            let piece = self.stream.push(token_id)?;
            let step = self.stop.accept(&piece);
            match step.finished {
                // The stream may still hold back the start of a character.
                Some(FinishReason::MaxTokens) => {
                    let rest = self.stream.finish()?;
                    let last = self.stop.finish(&rest, FinishReason::MaxTokens);
                    super::stop::StopStep { text: step.text + &last.text, finished: last.finished }
                }
                _ => step,
            }
        };
        if step.finished.is_none() {
            let Self { model, cache, wanted, .. } = self;
            let pending = match ahead {
                Some(ahead) => ahead,
                None => {
                    self.decoding.steps += 1;
                    model.start_next(&[token_id], cache, *wanted, control).await?
                }
            };
            self.upcoming = Upcoming::Runs(pending);
        }
        Ok(Some(Piece { token_id, text: step.text, finished: step.finished }))
    }

    /// Kernels that the device runs for one token; `None` where it has none, and before there was a token after the first.
    pub fn dispatches_per_token(&self) -> Option<f64> {
        let Decoding { dispatches_before, steps } = self.decoding;
        let dispatches = self.model.dispatches()? - dispatches_before?;
        (steps > 0).then(|| dispatches as f64 / steps as f64)
    }

    /// Tokens of the prompt that were not run again.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// What [`resume`](Self::resume) takes.
    pub fn into_session(self) -> Session<B> {
        let Self { mut cache, mut tokens, .. } = self;
        // Where a step failed the cache may be ahead; otherwise it has all tokens, or all but the last, which nothing needed.
        cache.truncate(tokens.len());
        tokens.truncate(cache.len());
        Session { cache, tokens }
    }

    /// The tokens generated so far.
    pub fn token_ids(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// New tokens, an end-of-sequence token included.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Generates to the end. `on_piece` hears every piece of text as it comes.
///
/// # Errors
/// As [`Generation::start`] and [`Generation::next`].
pub async fn generate<B: Backend>(
    model: &mut CausalLm<B>,
    codec: &dyn TextCodec,
    prompt_ids: &[u32],
    options: &GenerateOptions,
    control: &dyn Control,
    mut on_piece: impl FnMut(&str),
) -> Result<Generated> {
    let mut generation = Generation::start(model, codec, prompt_ids, options, control).await?;
    let mut text = String::new();
    let mut finish_reason = FinishReason::MaxTokens;
    while let Some(piece) = generation.next(control).await? {
        on_piece(&piece.text);
        text.push_str(&piece.text);
        finish_reason = piece.finished.unwrap_or(finish_reason);
    }
    Ok(Generated { token_ids: generation.token_ids().to_vec(), text, finish_reason })
}
