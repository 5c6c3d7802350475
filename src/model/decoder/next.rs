//! The step of decoding: what of the logits after the last token comes back to the host, and when.
//!
//! A device that runs ahead of its caller is given the next step before the host has read the last one's token. Floor 5.

use super::{CausalLm, KvCache};
use crate::backend::{Backend, Element, NO_INDEX, TopK};
use crate::error::{Error, Result};
use crate::task::{self, Control};

/// What the sampler needs to know of the logits after the last token. The less, the less comes back from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The largest.
    Largest,
    /// This many of the largest, and whatever equals the last of them; at least one, at most the vocabulary's size.
    TopK(usize),
    /// All of them.
    Logits,
}

/// What is known of the logits after the last token.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The id of the largest, the lowest among equals. All of them are finite, or minus infinity.
    Token(u32),
    /// Ids and values of the largest, in the order of their ids; as for `Token`.
    Candidates(Vec<(u32, f32)>),
    /// All of them, also where a NaN or an infinity is among them.
    Logits(Vec<f32>),
}

/// A step that runs, and what of its logits is on its way. Of one model at most one has begun after another that is not finished:
/// see [`CausalLm::finish_next`].
pub struct Pending<B: Backend> {
    reading: B::Reading,
    wanted: Wanted,
    /// Whether its logits are in the second buffer.
    is_ahead: bool,
}

/// Room beyond `k` for logits that equal the k-th largest; where there are more, all logits are read.
const ROOM_FOR_TIES: usize = 64;

impl<B: Backend> CausalLm<B> {
    /// Runs `tokens`, at least one, which follow what the cache has seen, and tells what is `wanted` of the logits after
    /// the last of them: more than that where they are not finite or too many are equal.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub async fn forward_next(
        &mut self,
        tokens: &[u32],
        cache: &mut KvCache<B>,
        wanted: Wanted,
        control: &dyn Control,
    ) -> Result<Next> {
        let pending = self.start_next(tokens, cache, wanted, control).await?;
        self.result(pending).await
    }

    /// As [`CausalLm::forward_next`], but does not wait for the result.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub async fn start_next(
        &mut self,
        tokens: &[u32],
        cache: &mut KvCache<B>,
        wanted: Wanted,
        control: &dyn Control,
    ) -> Result<Pending<B>> {
        self.check_tokens(tokens, cache)?;
        let Some((last, without)) = tokens.split_last() else {
            return Err(Error::invalid_argument("expected at least one token"));
        };
        self.run_without_head(without, cache, control).await?;
        task::checkpoint(control).await?;
        self.run_blocks(&[*last], cache)?;
        self.begin_reading(wanted, false)
    }

    /// Waits for the result of the step that began last. Where another one `follows`, the largest logit is wanted and the
    /// device runs ahead, that one begins before: its token is the one that is found, which is on the device before anybody
    /// knows it. Whoever then wants no other step drops it; the cache has one position more, of that very token.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub async fn finish_next(
        &mut self,
        pending: Pending<B>,
        cache: &mut KvCache<B>,
        follows: bool,
        control: &dyn Control,
    ) -> Result<(Next, Option<Pending<B>>)> {
        let runs_ahead = self.backend.capabilities().runs_ahead;
        if !(follows && runs_ahead && pending.wanted == Wanted::Largest) {
            return Ok((self.result(pending).await?, None));
        }
        task::checkpoint(control).await?;
        let seen = cache.len();
        let ahead = self.start_after(&pending, cache)?;
        match self.result(pending).await {
            Ok(next @ Next::Token(_)) => Ok((next, Some(ahead))),
            // Nothing follows broken logits.
            other => {
                cache.truncate(seen);
                Ok((other?, None))
            }
        }
    }

    /// Starts the step that the token of `pending` is put into.
    fn start_after(&mut self, pending: &Pending<B>, cache: &mut KvCache<B>) -> Result<Pending<B>> {
        self.check_room(1, cache)?;
        self.ends.embed_ids(&mut self.backend, &self.largest, 1, &mut self.hidden)?;
        self.run_embedded(cache)?;
        self.begin_reading(pending.wanted, !pending.is_ahead)
    }

    /// Begins to read what is `wanted` of the logits of the token that has run through the blocks.
    fn begin_reading(&mut self, wanted: Wanted, is_ahead: bool) -> Result<Pending<B>> {
        let Self { backend, ends, work, hidden, logits, logits_ahead, largest, top_k, config, .. } = self;
        let vocab = config.vocab_size;
        let logits = match logits_ahead {
            _ if !is_ahead => logits,
            Some(logits) => logits,
            None => logits_ahead.insert(backend.buffer(Element::F32, vocab)?),
        };
        ends.head(backend, hidden, work, logits)?;
        let reading = match wanted {
            Wanted::Largest => {
                backend.argmax(logits, 1, vocab, largest)?;
                backend.begin_read(&[(&*largest, 0..1)])?
            }
            Wanted::TopK(k) => {
                let capacity = k + ROOM_FOR_TIES;
                let top_k = match top_k {
                    Some(top_k) if top_k.capacity == capacity => top_k,
                    _ => top_k.insert(TopK {
                        ids: backend.buffer(Element::U32, capacity)?,
                        values: backend.buffer(Element::F32, capacity)?,
                        found: backend.buffer(Element::U32, 1)?,
                        capacity,
                    }),
                };
                backend.top_k(logits, 1, vocab, k, top_k.as_mut())?;
                let TopK { found, ids, values, .. } = top_k;
                backend.begin_read(&[(&*found, 0..1), (&*ids, 0..capacity), (&*values, 0..capacity)])?
            }
            Wanted::Logits => backend.begin_read(&[(&*logits, 0..vocab)])?,
        };
        Ok(Pending { reading, wanted, is_ahead })
    }

    async fn result(&mut self, pending: Pending<B>) -> Result<Next> {
        let Pending { reading, wanted, is_ahead } = pending;
        let words = self.backend.finish_read(reading).await?;
        match wanted {
            Wanted::Largest if words[0] != NO_INDEX => return Ok(Next::Token(words[0])),
            Wanted::TopK(_) if words[0] as usize <= (words.len() - 1) / 2 => {
                let (ids, values) = words[1..].split_at((words.len() - 1) / 2);
                let found = ids.iter().zip(values).take(words[0] as usize);
                let mut candidates: Vec<_> = found.map(|(&id, &bits)| (id, f32::from_bits(bits))).collect();
                candidates.sort_unstable_by_key(|&(id, _)| id);
                return Ok(Next::Candidates(candidates));
            }
            Wanted::Logits => return Ok(Next::Logits(words.into_iter().map(f32::from_bits).collect())),
            Wanted::Largest | Wanted::TopK(_) => {}
        }
        let mut logits = vec![0.0; self.config.vocab_size];
        let source = if is_ahead { self.logits_ahead.as_ref() } else { Some(&self.logits) };
        self.backend.read(source.expect("made when the step began"), 0, &mut logits).await?;
        Ok(Next::Logits(logits))
    }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use super::*;
    use crate::backend::gpu::{GpuBackend, GpuOptions};
    use crate::error::ErrorCode;
    use crate::format::source::FsDir;
    use crate::model::{Checkpoint, LoadOptions};
    use crate::task::{Silent, block_on};
    use std::rc::Rc;

    #[test]
    fn what_follows_broken_logits_is_dropped_and_they_are_known() {
        let gpu = match block_on(GpuBackend::new(&GpuOptions { software: true, ..GpuOptions::default() })) {
            Ok(gpu) => gpu,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::NoDevice, "{error}");
                println!("skipped: no adapter");
                return;
            }
        };
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tale-llama");
        let checkpoint = block_on(Checkpoint::open(Rc::new(FsDir::open(folder).unwrap()))).unwrap();
        let model = block_on(CausalLm::load(gpu, &checkpoint, LoadOptions::default(), &Silent));
        let mut model = model.unwrap();
        let mut cache = model.new_cache(8).unwrap();
        block_on(async {
            let first = model.start_next(&[3, 4], &mut cache, Wanted::Largest, &Silent).await.unwrap();
            let (next, second) = model.finish_next(first, &mut cache, true, &Silent).await.unwrap();
            assert!(matches!(next, Next::Token(_)), "{next:?}");
            assert_eq!(cache.len(), 3, "the step after it runs");
            let (next, third) = model.finish_next(second.unwrap(), &mut cache, true, &Silent).await.unwrap();
            assert!(matches!(next, Next::Token(_)), "{next:?}");
            // From here on every logit is NaN.
            let nan = vec![f32::NAN; model.config.hidden_size];
            model.backend.write_f32(&mut model.ends.final_norm.weight, &nan).unwrap();
            let (_, fourth) = model.finish_next(third.unwrap(), &mut cache, true, &Silent).await.unwrap();
            assert_eq!(cache.len(), 5);
            let (next, fifth) = model.finish_next(fourth.unwrap(), &mut cache, true, &Silent).await.unwrap();
            let Next::Logits(logits) = next else { panic!("{next:?}") };
            assert!(logits.len() == model.config.vocab_size && logits.iter().all(|logit| logit.is_nan()));
            assert!(fifth.is_none());
            assert_eq!(cache.len(), 5);
        });
    }
}
