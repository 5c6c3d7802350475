//! The request of `dequantize`: the way back to floating point, and on to training.

use super::{FloatType, WindowRequest};
use crate::artifact::records::DequantizationRecord;
use crate::backend::any::AnyBackend;
use crate::backend::cpu::CpuBackend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::sink::SinkDir;
use crate::model::Checkpoint;
use crate::options::{Bounds, Texts, options};
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::task::Control;
use crate::tokenizer::TextCodec;
use crate::validate::agreement::{self, Agreement, Forms};
use crate::validate::windows::Dataset;
#[cfg(feature = "train")]
use {
    super::gradients::CheckGradientsRequest,
    crate::artifact::records::Fallback,
    crate::pipeline::dequantize::fall_back,
    crate::pipeline::gradients::check_gradients,
    crate::train::Origin,
    crate::train::corpus::{Corpus, read::running_text},
    crate::train::gradients::GradientReport,
};

/// The default minimal share of the original's predictions that must be kept. Below it the result counts as not
/// retained, and training starts from the original instead.
const MIN_RETENTION: f64 = 0.995;
const MIN_RETENTION_FOR_TRAINING: f64 = 0.99;

options! {
    /// The output of dequantizing, and the comparison of its predictions.
    pub struct DequantizeRequest {
        /// Type of the weights [default: f16; f32 where f16 would change the predictions because activations are
        /// rounded]
        pub dtype: Option<FloatType> = None;
        /// Compare predictions on this text
        #[form(By("text"))]
        pub texts: Texts = Texts::default();
        /// Name of the text in results [default: text]
        #[form(By("text"))]
        pub name: Option<String> = None;
        /// The windows of the text.
        #[form(Group)]
        pub windows: WindowRequest = WindowRequest::default();
        /// Minimal share of the original's predictions that the dequantized model must keep [default: 0.995; 0.99 for
        /// training]
        pub min_retention: Option<f64> = None, within Bounds::from(0.0).up_to(1.0);
    }
}

/// What dequantizing reads besides the quantized checkpoint, and where it writes.
pub(crate) struct DequantizeContext<'a> {
    /// The checkpoint that was quantized.
    pub original: Option<&'a Checkpoint>,
    /// The tokenizer, if the request has a text.
    pub codec: Option<&'a dyn TextCodec>,
    /// The output folder.
    pub target: &'a dyn SinkDir,
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// The result of dequantizing.
pub(crate) struct Dequantized {
    /// The written record.
    pub record: DequantizationRecord,
    /// The comparison of predictions, if the request has a text.
    pub agreement: Option<Agreement>,
}

/// The starting point of a training.
#[cfg(feature = "train")]
pub(crate) struct Handoff {
    /// The written record. It has a fallback if the original's weights were written.
    pub record: DequantizationRecord,
    /// The comparison of predictions before a fallback.
    pub agreement: Agreement,
    /// The check of the written model's gradients.
    pub gradients: GradientReport,
}

impl DequantizeRequest {
    /// Writes the weights of a quantized checkpoint as floating point. With a text and its tokenizer it compares
    /// predictions, also with those of the original.
    ///
    /// # Errors
    /// `invalid_argument` for options of the comparison without a text; as [`dequantize_checkpoint`] and
    /// [`agreement::measure`].
    pub(crate) async fn run(
        &self,
        checkpoint: &Checkpoint,
        context: &DequantizeContext<'_>,
    ) -> Result<Dequantized> {
        self.write(checkpoint, self.min_retention.unwrap_or(MIN_RETENTION), context).await
    }

    /// Prepares a checkpoint for training: dequantizes it, writes the original's weights instead if too few of the
    /// original's predictions are kept, and checks the gradients of what was written on the first batch of the text.
    ///
    /// # Errors
    /// `invalid_argument` without a text or an original; as [`run`](Self::run), [`fall_back`] and
    /// [`check_gradients`].
    #[cfg(feature = "train")]
    pub(crate) async fn hand_off(
        &self,
        checkpoint: &Checkpoint,
        context: &DequantizeContext<'_>,
    ) -> Result<Handoff> {
        let (Some(original), Some(codec)) = (context.original, context.codec) else {
            return Err(Error::invalid_argument("preparing for training requires a text and the original"));
        };
        let limit = self.min_retention.unwrap_or(MIN_RETENTION_FOR_TRAINING);
        let Dequantized { mut record, agreement } = self.write(checkpoint, limit, context).await?;
        let agreement = agreement.expect("a tokenizer was given");
        if let (Some(false), Some(retention)) = (agreement.retained, agreement.retention) {
            let fallback = Fallback { retention, min_retention: limit };
            let dtype = self.output_dtype(checkpoint)?;
            record = fall_back(original, dtype, fallback, context.target, context.control).await?;
        }
        let written = Checkpoint::open(context.target.existing()).await?;
        let (config, request) = (written.config(), CheckGradientsRequest::default());
        let options = request.options(config)?;
        let documents = vec![running_text(&self.texts.0, codec)?];
        let (bos, eos) = (codec.bos_token_id(), config.eos_token_ids.first().copied());
        let mut corpus = Corpus::new(documents, bos, eos, options.capacity.context, config.vocab_size)?;
        let origin = Origin::Checkpoint(&written);
        let gradients = check_gradients(CpuBackend::new(), origin, &mut corpus, &options).await?;
        Ok(Handoff { record, agreement, gradients })
    }

    async fn write(
        &self,
        checkpoint: &Checkpoint,
        min_retention: f64,
        context: &DequantizeContext<'_>,
    ) -> Result<Dequantized> {
        let DequantizeContext { original, codec, target, control } = *context;
        self.check_comparison(codec, original)?;
        // An unusable text is reported before the work.
        let name = self.name.as_deref().unwrap_or("text");
        let data = codec.map(|codec| Dataset::new(name, &self.texts.0, codec)).transpose()?;
        let record =
            dequantize_checkpoint(checkpoint, self.output_dtype(checkpoint)?, target, control).await?;
        let Some(data) = data else { return Ok(Dequantized { record, agreement: None }) };
        let dequantized = &Checkpoint::open(target.existing()).await?;
        let forms = Forms { quantized: checkpoint, dequantized, original };
        let windows = self.windows.windows(checkpoint.config());
        // The usual backend type, so that generic code is compiled once.
        let new_backend = || AnyBackend::Cpu(CpuBackend::new());
        let agreement =
            agreement::measure(forms, &data, &windows, min_retention, new_backend, control).await?;
        Ok(Dequantized { record, agreement: Some(agreement) })
    }

    fn output_dtype(&self, checkpoint: &Checkpoint) -> Result<DType> {
        self.dtype.map_or_else(|| default_dtype(checkpoint), |dtype| Ok(dtype.dtype()))
    }

    /// Refuses options of the comparison of predictions if there is no text for it.
    fn check_comparison<T, O>(&self, text: Option<T>, original: Option<O>) -> Result<()> {
        let usual = Self::default();
        let asks =
            original.is_some() || self.windows != usual.windows || self.min_retention != usual.min_retention;
        if asks && text.is_none() {
            return Err(Error::invalid_argument(
                "an original, a context, a stride and a minimal retention require a text to compare predictions on",
            ));
        }
        Ok(())
    }
}
