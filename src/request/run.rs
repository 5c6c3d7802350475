//! Runs requests for every edge, with the files and devices that the edge has opened.

use super::{ConvertRequest, Machine, PerplexityRequest, QuantizeRequest, ValidateRequest};
use crate::artifact::records::read_quantization_record;
use crate::backend::Backend;
use crate::backend::any::AnyBackend;
use crate::calibrate::Samples;
use crate::error::{Error, Result};
use crate::format::scratch::Scratch;
use crate::format::sink::SinkDir;
use crate::model::{CausalLm, Checkpoint};
use crate::pipeline::convert::{ConversionPlan, ConvertOutcome, convert, plan_conversion};
use crate::pipeline::{Calibration, QuantizeContext, QuantizeOutcome, quantize_checkpoint, restore};
use crate::task::Control;
use crate::tokenizer::TextCodec;
use crate::validate::report::ValidationReport;
use crate::validate::run::{RunContext, ValidateOptions, validate};
use crate::validate::walk::score;

/// Resources of a run that may calibrate.
pub struct CalibrationHost<'a> {
    /// Calibration samples, if the request has texts.
    pub samples: Option<&'a Samples>,
    /// Scratch space for hidden states and finished matrices.
    pub scratch: &'a dyn Scratch,
    /// Upper limit of memory in bytes.
    pub heap_bytes: Option<u64>,
    /// Receives the reason for a fallback to the CPU.
    pub on_cpu: &'a dyn Fn(&Error),
}

impl QuantizeRequest {
    /// Quantizes a checkpoint.
    ///
    /// # Errors
    /// As [`options`](Self::options), [`quantize_checkpoint`] and [`restore`]; `no_device`.
    pub(crate) async fn run(
        &self,
        checkpoint: &Checkpoint,
        context: &QuantizeContext<'_>,
        host: &CalibrationHost<'_>,
    ) -> Result<QuantizeOutcome> {
        let mut options = self.options()?;
        if self.from_metadata {
            return restore(checkpoint, context.target, context.control).await;
        }
        let Some(samples) = host.samples else {
            // The same backend type as calibration, so that generic code is compiled once.
            return quantize_checkpoint::<AnyBackend>(checkpoint, &options, None, context).await;
        };
        if let Some(most) = host.heap_bytes {
            options.memory = Some(options.memory.map_or(most, |memory| memory.min(most)));
        }
        let work = async |backend: AnyBackend| {
            let new_backend = || backend.sibling();
            let calibration = Calibration { samples, new_backend: &new_backend, scratch: host.scratch };
            quantize_checkpoint(checkpoint, &options, Some(calibration), context).await
        };
        Ok(self.calibration_device().run(host.on_cpu, work).await?.result)
    }
}

impl ConvertRequest {
    /// Converts a checkpoint. `tell` receives the plan before anything is written.
    ///
    /// # Errors
    /// As [`options`](Self::options), [`plan_conversion`] and [`convert`].
    pub(crate) async fn run(
        &self,
        checkpoint: &Checkpoint,
        target: &dyn SinkDir,
        tell: impl FnOnce(&ConversionPlan),
        control: &dyn Control,
    ) -> Result<(ConversionPlan, ConvertOutcome)> {
        let plan = plan_conversion(checkpoint, &self.options()?, control).await?;
        tell(&plan);
        let outcome = convert(checkpoint, &plan, target, control).await?;
        Ok((plan, outcome))
    }
}

/// How well a model predicts a text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Perplexity {
    /// The exponential of the mean negative log-likelihood of a token; finite.
    pub perplexity: f64,
    /// Predicted tokens.
    pub tokens: u64,
    /// Tokens in a window.
    pub context: usize,
    /// Tokens from the start of one window to the next; `None`: no overlap.
    pub stride: Option<usize>,
    /// The text's name.
    pub text: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub text_sha256: String,
}

impl PerplexityRequest {
    /// Measures the perplexity of the text.
    ///
    /// # Errors
    /// `non_finite` if logits are NaN; errors of reading and running.
    pub(crate) async fn run<B: Backend>(
        &self,
        model: &mut CausalLm<B>,
        codec: &dyn TextCodec,
        control: &dyn Control,
    ) -> Result<Perplexity> {
        let dataset = self.dataset(codec)?;
        let windows = self.windows.windows(model.config());
        let sum = score(model, &dataset, &windows, control).await?;
        Ok(Perplexity {
            perplexity: sum.finite_perplexity()?,
            tokens: sum.tokens(),
            context: windows.context,
            stride: windows.stride,
            text: dataset.name,
            text_sha256: dataset.sha256,
        })
    }
}

impl ValidateRequest {
    /// Validates a quantized model against its original. `tell` receives what will be measured.
    ///
    /// # Errors
    /// As [`options`](Self::options) and [`validate`]; `no_device`.
    pub(crate) async fn run(
        &self,
        original: &Checkpoint,
        quantized: &Checkpoint,
        machine: Machine,
        context: &RunContext<'_>,
        tell: impl Fn(&ValidateOptions) -> Result<()>,
        on_cpu: impl Fn(&Error),
    ) -> Result<ValidationReport> {
        let data = self.text.dataset(context.codec)?;
        let mut options = self.options(&data, original.config(), context.codec, machine)?;
        if let Some(record) = read_quantization_record(quantized.dir().as_ref()).await? {
            options.method = record.method;
        }
        tell(&options)?;
        let judge = async |backend: AnyBackend| {
            validate(original, quantized, &data, &options, || backend.sibling(), context).await
        };
        Ok(self.device.run(on_cpu, judge).await?.result)
    }
}
