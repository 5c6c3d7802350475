//! The request of `check-gradients`.

use super::train::{BatchRequest, LayersRequest, TrainRequest, TrainingSignal};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::options::{Options, options};
use crate::pipeline::train::TrainOptions;

options! {
    /// How a model would be trained, and the amount of text for the check.
    pub struct CheckGradientsRequest {
        /// How linear layers are trained.
        #[form(Group)]
        pub layers: LayersRequest = LayersRequest::default();
        /// The size of the batch.
        #[form(Group)]
        pub batch: BatchRequest = BatchRequest::default();
        /// Seed of the batch, the directions and a new model's weights
        pub seed: u64 = 0;
    }
}

impl CheckGradientsRequest {
    /// The equivalent training options.
    ///
    /// # Errors
    /// As [`TrainRequest::options`].
    pub fn options(&self, config: &ModelConfig) -> Result<TrainOptions> {
        self.check()?;
        let Self { layers, batch, seed } = self.clone();
        TrainRequest { layers, batch, seed, ..TrainRequest::default() }.options(config, TrainingSignal::Texts)
    }
}
