//! Checks the gradients of a model. The checks are in `train::gradients`.

use super::train::TrainOptions;
use crate::backend::Train;
use crate::dtype::DType;
use crate::error::Result;
use crate::train::corpus::{Corpus, Position};
use crate::train::gradients::{GradientReport, check};
use crate::train::run::rows;
use crate::train::start::Start;
use crate::train::{Origin, Precision, TrainedModel};

/// Checks the gradients of the first batch of a text. Without quantization everything is `F32`, so that nothing is
/// rounded.
///
/// # Errors
/// As [`train`](super::train::train()) before its first step, and as [`check`].
pub async fn check_gradients<B: Train>(
    backend: B,
    origin: Origin<'_>,
    corpus: &mut Corpus,
    options: &TrainOptions,
) -> Result<GradientReport> {
    let mut precision = options.precision(origin)?;
    if precision.scheme.is_none() {
        precision = Precision { float: Some(DType::F32), ..precision };
    }
    let mut model = TrainedModel::new(backend, origin, precision, options.capacity).await?;
    if precision.scheme.is_some() && options.learned_scales {
        Start::Nearest.initialize(&mut model, true).await?;
        model.refresh_weights().await?;
    }
    let (batch, _) = corpus.batch(options.seed, Position::default(), options.capacity.tokens)?;
    check(&mut model, &rows(&batch), options.seed).await
}
