//! The step of decoding: what of the logits after the last tokens comes back to the host, and when.
//!
//! A device that runs ahead of its caller is given the next step before the host has read the last one's tokens.

use super::runs::{Piece, check_room};
use super::{CausalLm, KvCache, Run};
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
    /// Whose they are, row by row.
    sequences: Vec<usize>,
}

/// What has room for so many rows.
pub(super) struct Rows<T> {
    rows: usize,
    of: T,
}

/// Room beyond `k` for logits that equal the k-th largest; where there are more, all logits are read.
const ROOM_FOR_TIES: usize = 64;

impl<B: Backend> CausalLm<B> {
    /// Runs `tokens`, at least one, which follow what the cache of one sequence has seen, and tells what is `wanted` of the
    /// logits after the last of them: more than that where they are not finite or too many are equal.
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
        let pending = self.start_next(&[Run::only(tokens)], cache, wanted, control).await?;
        Ok(self.results(pending).await?.remove(0))
    }

    /// As [`CausalLm::forward_next`] with at least one token of each of some sequences, and without waiting for the result.
    /// There may be as many sequences as [a chunk has tokens](crate::model::runner::chunk_tokens).
    ///
    /// # Errors
    /// As [`CausalLm::forward_runs`].
    pub async fn start_next(
        &mut self,
        runs: &[Run<'_>],
        cache: &mut KvCache<B>,
        wanted: Wanted,
        control: &dyn Control,
    ) -> Result<Pending<B>> {
        self.check_runs(runs, cache)?;
        if runs.is_empty() || runs.iter().any(|run| run.tokens.is_empty()) {
            return Err(Error::invalid_argument("expected at least one token"));
        }
        if runs.len() > self.runner.work.tokens {
            return Err(Error::invalid_argument(format!(
                "expected at most {} sequences at once but found {}",
                self.runner.work.tokens,
                runs.len()
            )));
        }
        let (without, last) = Piece::split(runs, 1);
        self.run_without_head(without, cache, control).await?;
        task::yield_point(control).await?;
        self.run_blocks(&last, cache)?;
        self.begin_reading(wanted, false, runs.iter().map(|run| run.sequence).collect())
    }

    /// Waits for the results of the step that began last, one for each of its sequences. Where another one `follows` for all of
    /// them, the largest logits are wanted and the device runs ahead, that one begins before: its tokens are those that are found,
    /// which are on the device before anybody knows them. Whoever then wants no other step drops it; the cache has one position
    /// more of each sequence, of that very token.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub async fn finish_next(
        &mut self,
        pending: Pending<B>,
        cache: &mut KvCache<B>,
        follows: bool,
        control: &dyn Control,
    ) -> Result<(Vec<Next>, Option<Pending<B>>)> {
        let runs_ahead = self.runner.backend.capabilities().runs_ahead;
        if !(follows && runs_ahead && pending.wanted == Wanted::Largest) {
            return Ok((self.results(pending).await?, None));
        }
        task::yield_point(control).await?;
        let ahead = self.start_after(&pending, cache)?;
        match self.results(pending).await {
            Ok(nexts) if nexts.iter().all(|next| matches!(next, Next::Token(_))) => Ok((nexts, Some(ahead))),
            // Nothing follows broken logits.
            other => {
                for sequence in ahead.sequences {
                    cache.truncate(sequence, cache.len(sequence) - 1);
                }
                Ok((other?, None))
            }
        }
    }

    /// Starts the step that the tokens of `pending` are put into.
    fn start_after(&mut self, pending: &Pending<B>, cache: &mut KvCache<B>) -> Result<Pending<B>> {
        let sequences = pending.sequences.clone();
        for &sequence in &sequences {
            check_room(cache, sequence, 1)?;
        }
        self.runner.embed_ids(&self.ends, Some(&self.largest), sequences.len())?;
        self.run_embedded(sequences.iter().map(|&sequence| (sequence, 1)), cache)?;
        self.begin_reading(pending.wanted, !pending.is_ahead, sequences)
    }

    /// Begins to read what is `wanted` of the logits of the tokens that have run through the blocks, one of each sequence.
    fn begin_reading(&mut self, wanted: Wanted, is_ahead: bool, sequences: Vec<usize>) -> Result<Pending<B>> {
        let Self { runner, ends, logits, logits_ahead, largest, top_k, .. } = self;
        let (rows, vocab) = (sequences.len(), runner.config.vocab_size);
        let logits = match logits_ahead {
            _ if !is_ahead => logits,
            Some(ahead) if ahead.rows >= rows => &mut ahead.of,
            _ => {
                let of = runner.backend.buffer(Element::F32, rows * vocab)?;
                &mut logits_ahead.insert(Rows { rows, of }).of
            }
        };
        runner.head(ends, logits)?;
        let backend = &mut runner.backend;
        let reading = match wanted {
            Wanted::Largest => {
                backend.argmax(logits, rows, vocab, largest)?;
                backend.begin_read(&[(&*largest, 0..rows)])?
            }
            Wanted::TopK(k) => {
                let capacity = k + ROOM_FOR_TIES;
                let top_k = match top_k {
                    Some(top_k) if top_k.rows >= rows && top_k.of.capacity == capacity => top_k,
                    _ => top_k.insert(Rows {
                        rows,
                        of: TopK {
                            ids: backend.buffer(Element::U32, rows * capacity)?,
                            values: backend.buffer(Element::F32, rows * capacity)?,
                            found: backend.buffer(Element::U32, rows)?,
                            capacity,
                        },
                    }),
                };
                backend.top_k(logits, rows, vocab, k, top_k.of.as_mut())?;
                let TopK { found, ids, values, .. } = &top_k.of;
                let all = rows * capacity;
                backend.begin_read(&[(found, 0..rows), (ids, 0..all), (values, 0..all)])?
            }
            Wanted::Logits => backend.begin_read(&[(&*logits, 0..rows * vocab)])?,
        };
        Ok(Pending { reading, wanted, is_ahead, sequences })
    }

    /// What is known of the logits of each row.
    async fn results(&mut self, pending: Pending<B>) -> Result<Vec<Next>> {
        let Pending { reading, wanted, is_ahead, sequences } = pending;
        let rows = sequences.len();
        let words = self.runner.backend.finish_read(reading).await?;
        let mut nexts = Vec::with_capacity(rows);
        for row in 0..rows {
            nexts.push(match in_row(&words, row, rows, wanted, self.runner.config.vocab_size) {
                Some(next) => next,
                None => self.all_logits(row, is_ahead).await?,
            });
        }
        Ok(nexts)
    }

    /// Reads all logits of a row of the last step.
    async fn all_logits(&mut self, row: usize, is_ahead: bool) -> Result<Next> {
        let vocab = self.runner.config.vocab_size;
        let mut logits = vec![0.0; vocab];
        let source = match &self.logits_ahead {
            Some(ahead) if is_ahead => &ahead.of,
            _ => &self.logits,
        };
        self.runner.backend.read(source, row * vocab, &mut logits).await?;
        Ok(Next::Logits(logits))
    }
}

/// What the words that were read say of a row, unless its logits are not finite or too many are equal.
fn in_row(words: &[u32], row: usize, rows: usize, wanted: Wanted, vocab: usize) -> Option<Next> {
    match wanted {
        Wanted::Largest => (words[row] != NO_INDEX).then(|| Next::Token(words[row])),
        Wanted::TopK(k) => {
            let capacity = k + ROOM_FOR_TIES;
            let found = words[row] as usize;
            if found > capacity {
                return None;
            }
            let (ids, values) = words[rows..].split_at(rows * capacity);
            let of_row = row * capacity..row * capacity + found;
            let found = ids[of_row.clone()].iter().zip(&values[of_row]);
            let mut candidates: Vec<_> = found.map(|(&id, &bits)| (id, f32::from_bits(bits))).collect();
            candidates.sort_unstable_by_key(|&(id, _)| id);
            Some(Next::Candidates(candidates))
        }
        Wanted::Logits => {
            let logits = words[row * vocab..(row + 1) * vocab].iter().map(|&bits| f32::from_bits(bits));
            Some(Next::Logits(logits.collect()))
        }
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
    use std::sync::Arc;

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
        let checkpoint = block_on(Checkpoint::open(Arc::new(FsDir::open(folder).unwrap()))).unwrap();
        let model = block_on(CausalLm::load(gpu, &checkpoint, LoadOptions::default(), &Silent));
        let mut model = model.unwrap();
        let mut cache = model.new_cache(8).unwrap();
        block_on(async {
            let first =
                model.start_next(&[Run::only(&[3, 4])], &mut cache, Wanted::Largest, &Silent).await.unwrap();
            let (next, second) = model.finish_next(first, &mut cache, true, &Silent).await.unwrap();
            assert!(matches!(next[..], [Next::Token(_)]), "{next:?}");
            assert_eq!(cache.len(0), 3, "the step after it runs");
            let (next, third) = model.finish_next(second.unwrap(), &mut cache, true, &Silent).await.unwrap();
            assert!(matches!(next[..], [Next::Token(_)]), "{next:?}");
            // From here on every logit is NaN.
            let nan = vec![f32::NAN; model.runner.config.hidden_size];
            model.runner.backend.write_f32(&mut model.ends.final_norm.weight, &nan).unwrap();
            let (_, fourth) = model.finish_next(third.unwrap(), &mut cache, true, &Silent).await.unwrap();
            assert_eq!(cache.len(0), 5);
            let (next, fifth) = model.finish_next(fourth.unwrap(), &mut cache, true, &Silent).await.unwrap();
            let [Next::Logits(logits)] = &next[..] else { panic!("{next:?}") };
            assert!(
                logits.len() == model.runner.config.vocab_size && logits.iter().all(|logit| logit.is_nan())
            );
            assert!(fifth.is_none());
            assert_eq!(cache.len(0), 5);
        });
    }
}
