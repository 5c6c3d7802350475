//! Generation for one prompt: runs the model step by step and returns a piece of text for each token.
//!
//! Not here: sampling, stopping and detokenizing (`sequence`), several prompts at once (`batch`).

use super::sampler::SamplerOptions;
use super::sequence::Sequence;
use super::stop::FinishReason;
use crate::backend::Backend;
use crate::error::Result;
use crate::model::decoder::{Next, Pending, Run};
use crate::model::{CausalLm, KvCache};
use crate::options::{Bounds, options};
use crate::task::Control;
use crate::tokenizer::TextCodec;

options! {
    /// How text is generated.
    pub struct GenerateOptions {
        /// At most this many new tokens
        pub max_tokens: usize = 100, within Bounds::from(1.0);
        /// How tokens are chosen.
        #[form(Group)]
        pub sampler: SamplerOptions = SamplerOptions::default();
        /// Stop before any of these texts
        pub stop: Vec<String> = Vec::new();
        /// Go on after an end-of-sequence token
        pub ignore_eos: bool = false;
        /// Keep the space between the prompt and the new text; by default the new tokens are decoded alone, as other
        /// tools do
        #[form(By("json"))]
        pub continue_prompt: bool = false;
    }
}

/// One step of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The chosen token.
    pub token_id: u32,
    /// New text in whole characters; may be empty.
    pub text: String,
    /// Why generation ended; `None`: more pieces follow.
    pub finished: Option<FinishReason>,
}

/// The KV cache of a generation, kept for the next one. Where the next prompt starts with the same tokens, as in a
/// chat, only the rest is computed.
pub struct Session<B: Backend> {
    cache: KvCache<B>,
    /// The tokens in the cache.
    tokens: Vec<u32>,
}

/// The smallest cache of a session, in positions.
const LEAST_ROOM: usize = 128;

impl<B: Backend> Session<B> {
    /// Returns a cache with room for `needed` positions, and how many tokens of `prompt` it already holds. At least the
    /// last token of the prompt runs again, because its logits are not kept.
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
            cache.truncate(0, kept);
            return Ok((cache, kept));
        }
        // Rounded up, so that a growing chat does not lose its cache at every turn.
        let capacity = needed.next_power_of_two().max(LEAST_ROOM).min(model.config().max_position_embeddings);
        Ok((model.new_cache(capacity.max(needed))?, 0))
    }
}

/// A generation under way. Dropping it stops it.
pub struct Generation<'m, B: Backend> {
    model: &'m mut CausalLm<B>,
    cache: KvCache<B>,
    sequence: Sequence<'m>,
    reused: usize,
    upcoming: Upcoming<B>,
    decoding: Decoding,
}

/// What the next token is chosen from.
enum Upcoming<B: Backend> {
    Known(Next),
    Runs(Pending<B>),
    /// The generation has ended, or a step failed.
    Nothing,
}

/// Counters for [`Generation::dispatches_per_token`].
#[derive(Default)]
struct Decoding {
    /// The device's dispatches up to the end of prefill.
    dispatches_before: Option<u64>,
    /// Decode steps submitted.
    steps: u64,
}

impl<'m, B: Backend> Generation<'m, B> {
    /// Runs the prompt through the model.
    ///
    /// # Errors
    /// `invalid_argument` for an empty prompt or options out of range; `context_overflow` when prompt and `max_tokens`
    /// together are longer than the model's context; `cancelled`.
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

    /// As [`start`](Self::start), but reuses the [session](Self::into_session) of an earlier generation of the same
    /// model. The reused positions were computed in other chunks than in a fresh run; on a GPU their last bits can
    /// differ.
    ///
    /// # Errors
    /// As [`start`](Self::start); the session is then lost.
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
        let sequence = Sequence::new(model.config(), codec, prompt_ids, options)?;
        let (mut cache, reused) = room(model, sequence.positions())?;
        let next = model.forward_next(&prompt_ids[reused..], &mut cache, sequence.wanted(), control).await?;
        Ok(Self {
            decoding: Decoding { dispatches_before: model.dispatches(), steps: 0 },
            model,
            cache,
            sequence,
            reused,
            upcoming: Upcoming::Known(next),
        })
    }

    /// The next token and its text; `None` after the last piece. On an asynchronous device that can choose the next
    /// token itself, the following step is already submitted when this returns.
    ///
    /// # Errors
    /// `non_finite` when the model's logits are NaN or infinite; `cancelled`. An error ends the generation.
    pub async fn next(&mut self, control: &dyn Control) -> Result<Option<Piece>> {
        let (next, ahead) = match std::mem::replace(&mut self.upcoming, Upcoming::Nothing) {
            Upcoming::Known(next) => (next, None),
            Upcoming::Runs(pending) => {
                // The last allowed token is never fed to the model.
                let follows = self.sequence.may_go_on();
                let (mut next, ahead) =
                    self.model.finish_next(pending, &mut self.cache, follows, control).await?;
                (next.remove(0), ahead)
            }
            Upcoming::Nothing => return Ok(None),
        };
        self.decoding.steps += u64::from(ahead.is_some());
        let piece = self.sequence.accept(next)?;
        if piece.finished.is_none() {
            let Self { model, cache, sequence, .. } = self;
            let pending = match ahead {
                Some(ahead) => ahead,
                None => {
                    self.decoding.steps += 1;
                    let run = Run::only(std::slice::from_ref(&piece.token_id));
                    model.start_next(&[run], cache, sequence.wanted(), control).await?
                }
            };
            self.upcoming = Upcoming::Runs(pending);
        }
        Ok(Some(piece))
    }

    /// Kernel dispatches per decode step. `None` on a device without dispatches, and before the first decode step.
    pub fn dispatches_per_token(&self) -> Option<f64> {
        let Decoding { dispatches_before, steps } = self.decoding;
        let dispatches = self.model.dispatches()? - dispatches_before?;
        (steps > 0).then(|| dispatches as f64 / steps as f64)
    }

    /// Prompt tokens taken from the session's cache.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// Ends the generation and keeps its cache for [`resume`](Self::resume).
    pub fn into_session(self) -> Session<B> {
        let Self { mut cache, sequence, .. } = self;
        let mut tokens = sequence.into_tokens();
        // After a failed step the cache may be longer than the tokens. Otherwise it has all of them, or all but the
        // last.
        cache.truncate(0, tokens.len());
        tokens.truncate(cache.len(0));
        Session { cache, tokens }
    }

    /// The tokens generated so far.
    pub fn token_ids(&self) -> &[u32] {
        self.sequence.new_tokens()
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

/// Generates to the end. `on_piece` gets every piece of text as it comes.
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
