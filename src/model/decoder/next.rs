//! A decoding step: what the host reads of the logits after the last tokens, and when.
//!
//! On an asynchronous device, the next step starts before the host reads the previous step's tokens.

use super::runs::{Piece, check_room};
use super::{CausalLm, KvCache, Run};
use crate::backend::{Backend, Element, NO_INDEX, TopK};
use crate::error::{Error, Result};
use crate::task::{self, Control};

/// The information about the last token's logits that the sampler needs. Smaller requests transfer less data from the
/// device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsRequest {
    /// The id of the largest logit.
    Largest,
    /// This number of the largest logits, and all that equal the last of them; at least one, at most the vocabulary's
    /// size.
    TopK(usize),
    /// All logits.
    Logits,
}

/// The result for the logits after the last token.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The id of the largest logit, the lowest id among equals. All logits are finite or minus infinity.
    Token(u32),
    /// Ids and values of the largest logits, sorted by id. All logits are finite or minus infinity.
    Candidates(Vec<(u32, f32)>),
    /// All logits. They may contain NaN or infinity.
    Logits(Vec<f32>),
}

/// A step in progress and its pending read. At most one step of a model may have started after an unfinished one: see
/// [`CausalLm::finish_next`].
pub struct Pending<B: Backend> {
    reading: B::Reading,
    wanted: LogitsRequest,
    /// Whether its logits are in the second buffer.
    is_ahead: bool,
    /// The sequence of each row.
    sequences: Vec<usize>,
}

/// A buffer for a number of rows.
pub(super) struct Rows<T> {
    rows: usize,
    of: T,
}

/// Extra room beyond `k` for logits that equal the k-th largest. If there are more, all logits are read.
const ROOM_FOR_TIES: usize = 64;

impl<B: Backend> CausalLm<B> {
    /// Runs `tokens`, at least one, which continue the cache's only sequence, and returns the `wanted` part of the
    /// logits after the last one. Returns more if logits are not finite, or if too many are equal.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub async fn forward_next(
        &mut self,
        tokens: &[u32],
        cache: &mut KvCache<B>,
        wanted: LogitsRequest,
        control: &dyn Control,
    ) -> Result<Next> {
        let pending = self.start_next(&[Run::only(tokens)], cache, wanted, control).await?;
        Ok(self.results(pending).await?.remove(0))
    }

    /// As [`CausalLm::forward_next`], for at least one token of each of several sequences, and without waiting for the
    /// result. The number of sequences is at most [the number of tokens in a
    /// chunk](crate::model::runner::chunk_tokens).
    ///
    /// # Errors
    /// As [`CausalLm::forward_runs`].
    pub async fn start_next(
        &mut self,
        runs: &[Run<'_>],
        cache: &mut KvCache<B>,
        wanted: LogitsRequest,
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

    /// Waits for the results of the last started step, one for each of its sequences.
    ///
    /// If `follows` is set, the step wants the largest logit and the device is asynchronous, the next step of all
    /// sequences is started first: its token ids are already on the device. If the caller drops the returned pending
    /// step, each sequence in the cache keeps one extra position, that of the new token.
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
        if !(follows && runs_ahead && pending.wanted == LogitsRequest::Largest) {
            return Ok((self.results(pending).await?, None));
        }
        task::yield_point(control).await?;
        let ahead = self.start_after(&pending, cache)?;
        match self.results(pending).await {
            Ok(nexts) if nexts.iter().all(|next| matches!(next, Next::Token(_))) => Ok((nexts, Some(ahead))),
            // Logits that are not finite have no next token.
            other => {
                for sequence in ahead.sequences {
                    cache.truncate(sequence, cache.len(sequence) - 1);
                }
                Ok((other?, None))
            }
        }
    }

    /// Starts the step whose input tokens are the results of `pending`.
    fn start_after(&mut self, pending: &Pending<B>, cache: &mut KvCache<B>) -> Result<Pending<B>> {
        let sequences = pending.sequences.clone();
        for &sequence in &sequences {
            check_room(cache, sequence, 1)?;
        }
        self.runner.embed_ids(&self.ends, Some(&self.largest), sequences.len())?;
        self.run_embedded(sequences.iter().map(|&sequence| (sequence, 1)), cache)?;
        self.begin_reading(pending.wanted, !pending.is_ahead, sequences)
    }

    /// Computes the logits of the tokens that have run through the blocks, one per sequence, and starts reading the
    /// `wanted` part.
    fn begin_reading(
        &mut self,
        wanted: LogitsRequest,
        is_ahead: bool,
        sequences: Vec<usize>,
    ) -> Result<Pending<B>> {
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
            LogitsRequest::Largest => {
                backend.argmax(logits, rows, vocab, largest)?;
                backend.begin_read(&[(&*largest, 0..rows)])?
            }
            LogitsRequest::TopK(k) => {
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
            LogitsRequest::Logits => backend.begin_read(&[(&*logits, 0..rows * vocab)])?,
        };
        Ok(Pending { reading, wanted, is_ahead, sequences })
    }

    /// The result of each row.
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

/// The result of a row in the words that were read; `None` if its logits are not finite or too many are equal.
fn in_row(words: &[u32], row: usize, rows: usize, wanted: LogitsRequest, vocab: usize) -> Option<Next> {
    match wanted {
        LogitsRequest::Largest => (words[row] != NO_INDEX).then(|| Next::Token(words[row])),
        LogitsRequest::TopK(k) => {
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
        LogitsRequest::Logits => {
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
    fn a_step_after_non_finite_logits_is_dropped() {
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
            let first = model
                .start_next(&[Run::only(&[3, 4])], &mut cache, LogitsRequest::Largest, &Silent)
                .await
                .unwrap();
            let (next, second) = model.finish_next(first, &mut cache, true, &Silent).await.unwrap();
            assert!(matches!(next[..], [Next::Token(_)]), "{next:?}");
            assert_eq!(cache.len(0), 3, "the next step has started");
            let (next, third) = model.finish_next(second.unwrap(), &mut cache, true, &Silent).await.unwrap();
            assert!(matches!(next[..], [Next::Token(_)]), "{next:?}");
            // All later logits are NaN.
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
