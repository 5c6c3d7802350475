//! The training attempt of `auto`: self-distillation on the calibration texts, within a time limit.

use super::{SearchCandidate, Trained, Trainer};
use crate::backend::Train;
use crate::error::{Error, Result};
use crate::format::scratch::Scratch;
use crate::format::sink::{MemorySinkDir, SinkDir};
use crate::model::ModelConfig;
use crate::pipeline::train::{TimeLimit, TrainContext, TrainInputs, TrainOptions, train};
use crate::quant::Scheme;
use crate::task::{BoxFuture, Control};
use crate::train::Origin;
use crate::train::corpus::{Corpus, Document};
use crate::train::run::Event;
use crate::train::state::StateFolder;

/// Trains on backends from a function.
pub struct QatTrainer<'a, B: Train> {
    /// Creates the backends of model and teacher.
    pub new_backend: &'a dyn Fn() -> Result<B>,
    /// The options for training to a scheme.
    pub options: &'a dyn Fn(Scheme, &ModelConfig) -> Result<TrainOptions>,
    /// The time limit for one checkpoint in seconds.
    pub seconds: f64,
    /// The clock.
    pub clock: &'a dyn Fn() -> f64,
    /// Scratch space for hidden states.
    pub scratch: &'a dyn Scratch,
    /// Receives events.
    pub tell: &'a dyn Fn(Event),
}

impl<B: Train> Trainer for QatTrainer<'_, B> {
    fn train<'a>(
        &'a self,
        candidate: &'a SearchCandidate<'a>,
        scheme: Scheme,
        target: &'a dyn SinkDir,
        control: &'a dyn Control,
    ) -> BoxFuture<'a, Result<Trained>> {
        Box::pin(self.work(candidate, scheme, target, control))
    }
}

impl<B: Train> QatTrainer<'_, B> {
    async fn work(
        &self,
        candidate: &SearchCandidate<'_>,
        scheme: Scheme,
        target: &dyn SinkDir,
        control: &dyn Control,
    ) -> Result<Trained> {
        let limit = TimeLimit { clock: self.clock, end: (self.clock)() + self.seconds };
        let checkpoint = candidate.checkpoint;
        let config = checkpoint.config();
        let options = (self.options)(scheme, config)?;
        let text = vec![Document::text(candidate.calibration.to_vec())];
        let eos = config.eos_token_ids.first().copied();
        let context = options.capacity.context;
        let mut corpus = Corpus::new(text, candidate.bos_token_id, eos, context, config.vocab_size)?;
        // The state is not saved, because a new search starts from the beginning.
        let folder = MemorySinkDir::new("the state");
        let inputs = TrainInputs {
            origin: Origin::Checkpoint(checkpoint),
            config_json: checkpoint.config_json(),
            files: &crate::artifact::output::side_files(checkpoint.dir().as_ref()).await?,
            name: checkpoint.name(),
            corpus: &mut corpus,
            held_out: &[],
            curriculum: None,
            sha256: String::new(),
            teacher: Some(checkpoint),
        };
        let context = TrainContext {
            target,
            file: None,
            state: StateFolder(&folder),
            scratch: self.scratch,
            limit: Some(limit),
            tell: self.tell,
            control,
        };
        let outcome = train(self.new_backend, inputs, &options, context).await?;
        let tokens = outcome.result.tokens;
        let quantized =
            outcome.quantized.ok_or_else(|| Error::invalid_argument("expected a scheme of codes"));
        Ok(Trained { outcome: quantized?, tokens })
    }
}
