//! Batched generation: each step of the model makes one token of every active text.
//!
//! A step reads the weights once for all texts; for a single text this is most of the work. Batching is continuous, as
//! in Orca (Yu et al. 2022): a text that ends leaves the batch, and the next waiting prompt takes its place while the
//! others go on. On the CPU each text equals that of [`Generation`](super::Generation) to the bit. A GPU runs other
//! kernels for several tokens, whose last bits differ.

use super::generator::{GenerateOptions, Piece};
use super::sequence::Sequence;
use crate::backend::Backend;
use crate::error::Result;
use crate::model::decoder::{LogitsRequest, Pending, Run};
use crate::model::{CausalLm, KvCache};
use crate::task::Control;
use crate::tokenizer::TextCodec;

/// A prompt of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchPrompt<'a> {
    /// Its tokens.
    pub ids: &'a [u32],
    /// Options of its generation.
    pub options: &'a GenerateOptions,
}

/// The output of one step for one prompt.
#[derive(Debug)]
pub struct Said {
    /// Index of the prompt.
    pub prompt: usize,
    /// The next piece of its text. The [last piece](Piece::finished) or an error ends the prompt.
    pub piece: Result<Piece>,
}

/// The generation of several texts. Dropping it stops it.
pub struct Batch<'m, B: Backend> {
    model: &'m mut CausalLm<B>,
    cache: KvCache<B>,
    /// One for each prompt.
    sequences: Vec<Sequence<'m>>,
    /// Index of the first waiting prompt.
    waiting: usize,
    /// The prompt in each place of the cache; `None`: the place is free.
    places: Vec<Option<usize>>,
    step: Option<Step<B>>,
}

/// A submitted step.
struct Step<B: Backend> {
    pending: Pending<B>,
    /// The cache places of its rows.
    places: Vec<usize>,
}

impl<'m, B: Backend> Batch<'m, B> {
    /// Prepares to generate a text for each of `prompts`, at most `at_once` (at least one) at a time. The cache has
    /// that many places, each with room for the longest text.
    ///
    /// # Errors
    /// `invalid_argument` for an empty prompt or options out of range; `context_overflow` when a prompt and its
    /// `max_tokens` together are longer than the model's context; `out_of_memory`.
    pub fn new(
        model: &'m mut CausalLm<B>,
        codec: &'m dyn TextCodec,
        prompts: &[BatchPrompt<'_>],
        at_once: usize,
    ) -> Result<Self> {
        let config = model.config();
        let sequences = prompts.iter().map(|prompt| Sequence::new(config, codec, prompt.ids, prompt.options));
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        let longest = sequences.iter().map(Sequence::positions).max().unwrap_or(0);
        let places = at_once.min(sequences.len()).max(1);
        let cache = model.new_batch_cache(places, longest)?;
        Ok(Self { model, cache, sequences, waiting: 0, places: vec![None; places], step: None })
    }

    /// The next piece of each active text, in any order; `None` after the last. On an asynchronous device that can
    /// choose all next tokens itself, the following step is already submitted when this returns.
    ///
    /// # Errors
    /// Errors of running the model; `cancelled`. The error of a single text is in its [`Said::piece`].
    pub async fn next(&mut self, control: &dyn Control) -> Result<Option<Vec<Said>>> {
        let step = match self.step.take() {
            Some(step) => step,
            None => match self.start(control).await? {
                Some(step) => step,
                None => return Ok(None),
            },
        };
        let Step { pending, places } = step;
        // The last allowed token is never fed to the model.
        let follows = places
            .iter()
            .all(|&place| self.places[place].is_some_and(|prompt| self.sequences[prompt].may_go_on()));
        let (nexts, ahead) = self.model.finish_next(pending, &mut self.cache, follows, control).await?;
        let mut said = Vec::with_capacity(places.len());
        for (&place, next) in places.iter().zip(nexts) {
            // The text may have ended after this step was submitted.
            let Some(prompt) = self.places[place] else { continue };
            let piece = self.sequences[prompt].accept(next);
            if piece.as_ref().map_or(true, |piece| piece.finished.is_some()) {
                self.places[place] = None;
            }
            said.push(Said { prompt, piece });
        }
        // When all texts have ended, the step ahead is dropped.
        if self.places.iter().any(Option::is_some) {
            self.step = ahead.map(|pending| Step { pending, places });
        }
        Ok(Some(said))
    }

    /// The new tokens of a prompt so far.
    pub fn token_ids(&self, prompt: usize) -> &[u32] {
        self.sequences[prompt].new_tokens()
    }

    /// Fills free places with waiting prompts and submits a step of all places. A step runs the tokens that the cache
    /// does not hold yet: a whole prompt, or one token. `None` when all texts have ended.
    async fn start(&mut self, control: &dyn Control) -> Result<Option<Step<B>>> {
        let Self { model, cache, sequences, waiting, places, .. } = self;
        let mut runs = Vec::new();
        let mut wanted = None;
        for (place, prompt) in places.iter_mut().enumerate() {
            if prompt.is_none() && *waiting < sequences.len() {
                cache.truncate(place, 0);
                *prompt = Some(*waiting);
                *waiting += 1;
            }
            let Some(prompt) = *prompt else { continue };
            let sequence = &sequences[prompt];
            runs.push(Run { sequence: place, tokens: &sequence.tokens()[cache.len(place)..] });
            wanted = match wanted {
                None => Some(sequence.wanted()),
                Some(wanted) if wanted == sequence.wanted() => Some(wanted),
                // Enough for every sampler.
                Some(_) => Some(LogitsRequest::Logits),
            };
        }
        let Some(wanted) = wanted else { return Ok(None) };
        let pending = model.start_next(&runs, cache, wanted, control).await?;
        let places = runs.iter().map(|run| run.sequence).collect();
        Ok(Some(Step { pending, places }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::error::ErrorCode;
    use crate::format::source::FsDir;
    use crate::model::{Checkpoint, LoadOptions};
    use crate::task::{Silent, block_on};

    struct Numbers;

    impl TextCodec for Numbers {
        fn encode(&self, _: &str) -> Result<Vec<u32>> {
            unreachable!("prompts are tokens")
        }

        fn encode_prompt(&self, _: &str) -> Result<Vec<u32>> {
            unreachable!("prompts are tokens")
        }

        fn bos_token_id(&self) -> Option<u32> {
            None
        }

        fn vocab_size(&self) -> usize {
            2048
        }

        fn decode(&self, ids: &[u32]) -> Result<String> {
            Ok(ids.iter().map(|id| format!("{id} ")).collect())
        }
    }

    #[test]
    fn a_text_that_breaks_leaves_the_others_alone() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tale-llama");
        let checkpoint =
            block_on(Checkpoint::open(std::sync::Arc::new(FsDir::open(folder).unwrap()))).unwrap();
        let model = CausalLm::load(CpuBackend::new(), &checkpoint, LoadOptions::default(), &Silent);
        let mut model = block_on(model).unwrap();
        let options = GenerateOptions { max_tokens: 6, ..GenerateOptions::default() };
        let prompts = [[0, 5, 9], [0, 700, 3], [0, 90, 91], [0, 8, 1000]];
        let prompts = prompts.each_ref().map(|ids| BatchPrompt { ids, options: &options });
        let mut run = |breaks: bool| {
            let mut batch = Batch::new(&mut model, &Numbers, &prompts, 2).unwrap();
            let mut errors = Vec::new();
            let mut step = 0;
            while let Some(said) = block_on(batch.next(&Silent)).unwrap() {
                for Said { prompt, piece } in said {
                    if let Err(error) = piece {
                        errors.push((step, prompt, error.code()));
                    }
                }
                if breaks && step == 1 {
                    // Position 0 of head 0, in place 0.
                    let values = &mut batch.cache.layer_mut(0).values;
                    CpuBackend::new().write_f32(values, &[f32::NAN]).unwrap();
                }
                step += 1;
            }
            ([0, 1, 2, 3].map(|prompt| batch.token_ids(prompt).to_vec()), errors)
        };
        let (whole, none) = run(false);
        let (broken, errors) = run(true);
        assert_eq!(none, []);
        assert_eq!(errors, [(2, 0, ErrorCode::NonFinite)]);
        assert_eq!(broken[0], whole[0][..2]);
        // This includes the text that takes the broken one's place.
        assert_eq!(broken[1..], whole[1..]);
    }
}
