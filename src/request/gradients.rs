//! A look at gradients: of a model as it would be trained.

use super::train::{Learns, TrainRequest, TrainedAs, TrainedScales};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::options::{Bounds, Options, options};
use crate::pipeline::train::TrainOptions;
use crate::quant::Granularity;

options! {
    /// As what a model's gradients are looked at, and on how much text.
    pub struct CheckGradientsRequest {
        /// What the linear layers of the blocks are trained as; none: everything is F32, and nothing is rounded
        pub bits: TrainedAs = TrainedAs::None;
        /// Weights that share a scale; -1: a whole row [default: 128, and -1 for 8 bits]
        pub group_size: Option<Granularity> = None;
        /// Where scales come from [default: nearest for ternary weights, learned for others]
        pub scales: Option<TrainedScales> = None;
        /// Tokens that the model sees at once [default: what it was made for, at most 256]
        pub context: Option<usize> = None, within Bounds::from(2.0);
        /// Tokens of the batch, a row at least [default: 1024, or a row where that has more]
        pub batch_tokens: Option<usize> = None, within Bounds::from(2.0);
        /// Which batch of the text, which directions, and with what a new model begins
        pub seed: u64 = 0;
    }
}

impl CheckGradientsRequest {
    /// The same as options of training.
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
