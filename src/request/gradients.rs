//! The request of `check-gradients`.

use super::train::{Learns, TrainRequest, TrainedAs, TrainedScales};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::options::{Bounds, Options, options};
use crate::pipeline::train::TrainOptions;
use crate::quant::Granularity;

options! {
    /// How a model would be trained, and the amount of text for the check.
    pub struct CheckGradientsRequest {
        /// Scheme of the blocks' linear layers; none: all in F32, without rounding
        pub bits: TrainedAs = TrainedAs::None;
        /// Weights per scale; -1: a whole row [default: 128, and -1 for 8 bits]
        pub group_size: Option<Granularity> = None;
        /// How scales are determined [default: nearest for ternary weights, learned for others]
        pub scales: Option<TrainedScales> = None;
        /// Tokens in a row [default: the model's context, at most 256]
        pub context: Option<usize> = None, within Bounds::from(2.0);
        /// Tokens in the batch, at least one row [default: 1024, or one row if that is longer]
        pub batch_tokens: Option<usize> = None, within Bounds::from(2.0);
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
        let request = TrainRequest {
            bits: self.bits,
            group_size: self.group_size,
            scales: self.scales,
            context: self.context,
            batch_tokens: self.batch_tokens,
            seed: self.seed,
            ..TrainRequest::default()
        };
        request.options(config, Learns::FromTexts)
    }
}
