//! Quantization without calibration statistics: round-to-nearest, ternary, or the codes of the checkpoint itself.

use super::method::{CalibratedMethod, InputContext, LayerContext, ModuleTarget, QuantizedLayer};
use super::rows::{quantize_rows, weight_error};
use super::walk::Statistics;
use crate::backend::Backend;
use crate::error::{Context, Error, Result};
use crate::format::passing::ResidentTensors;
use crate::layout::ModuleStorage;
use crate::model::Checkpoint;
use crate::model::weights::{DenseRows, RowMemory};
use crate::quant::awq::{AwqOutcome, AwqQuantizer, Clipping, Measure};
use crate::quant::rtn::RtnQuantizer;
use crate::quant::ternary::TernaryQuantizer;
use crate::quant::{PackedTensor, WeightError, regroup};
use std::cell::Cell;
use std::ops::Range;

/// Quantizes layers without calibration statistics.
#[derive(Clone, Copy, Debug)]
pub struct Uncalibrated {
    /// Ternary: weights below this share of the scale become 0.
    pub sparsity_threshold: Option<f32>,
}

impl CalibratedMethod for Uncalibrated {
    fn wants(&self) -> Statistics {
        Statistics::default()
    }

    async fn quantize_input<B: Backend>(
        &self,
        input: InputContext<'_, '_, B>,
    ) -> Result<Vec<QuantizedLayer>> {
        let InputContext { walk, context, targets, .. } = input;
        let mut layers = Vec::new();
        for (done, (linear, target)) in targets.iter().enumerate() {
            walk.report_quantizing(done as u64, targets.len() as u64, target.module, context.control);
            let quantized = quantize(context, target, self.sparsity_threshold).await;
            let (tensor, error) = quantized
                .context_with(|| format!("{}: module `{}`", context.checkpoint.name(), target.module))?;
            let tensor = tensor.into();
            layers.push(QuantizedLayer { linear: *linear, tensor, record: None, scales: None, error });
        }
        Ok(layers)
    }
}

/// Quantizes one module without calibration statistics. Returns the matrix and its weight error.
///
/// # Errors
/// Errors of reading; `invalid_argument` for a scheme that no method supports.
pub async fn quantize(
    context: LayerContext<'_>,
    target: &ModuleTarget<'_>,
    sparsity_threshold: Option<f32>,
) -> Result<(PackedTensor, WeightError)> {
    let LayerContext { checkpoint, scale_type, control } = context;
    let &ModuleTarget { source, rows, cols, scheme, .. } = target;
    let has_masters = checkpoint.layout().has_masters();
    if scheme.as_integer().is_some() && !has_masters {
        return round(context, target).await;
    }
    let _held = hold(checkpoint, source)?;
    let packed = if has_masters {
        // The model's own codes. Quantizing again would round the scale before the codes.
        let packed = checkpoint.layout().read_packed(checkpoint.store(), source).await?;
        let affine = packed.affine().expect("models with masters have ternary codes");
        regroup::round_scales(affine, scale_type)?
    } else if scheme.is_ternary() {
        let granularity = scheme.granularity();
        let mut quantizer = TernaryQuantizer::new(granularity, rows, cols, scale_type, sparsity_threshold)?;
        let stored = || DenseRows::new(checkpoint, source);
        stored()?.for_each(control, |_, values| quantizer.observe_rows(values)).await?;
        stored()?.for_each(control, |_, values| quantizer.push_rows(values)).await?;
        quantizer.finish()?
    } else {
        return Err(Error::invalid_argument(format!("no method quantizes to {scheme}")));
    };
    let error = weight_error(context, target, &packed).await?;
    Ok((packed, error))
}

/// Rounds one module to nearest. Returns the matrix and its weight error.
///
/// # Errors
/// Errors of reading.
pub async fn round(
    context: LayerContext<'_>,
    target: &ModuleTarget<'_>,
) -> Result<(PackedTensor, WeightError)> {
    let mut quantizer = RtnQuantizer::new(target.scheme, target.rows, target.cols, context.scale_type)?;
    let mut error = WeightError::default();
    let push = |rows: Range<usize>, values: &[f32]| {
        quantizer.push_rows(values)?;
        error.add_rows(values, &quantizer.last_rows(rows.len())?, 0..rows.len());
        Ok(())
    };
    DenseRows::new(context.checkpoint, target.source)?.for_each(context.control, push).await?;
    Ok((quantizer.finish()?, error))
}

/// Rounds one module to nearest, with its columns multiplied by `scales` and its groups clipped, both optional, and
/// takes the measurements of `measure`.
///
/// # Errors
/// Errors of reading and of [`AwqQuantizer`], with the name of the module.
pub async fn round_measured(
    context: LayerContext<'_>,
    target: &ModuleTarget<'_>,
    scales: Option<&[f32]>,
    clipping: Option<&Clipping>,
    measure: Measure<'_>,
    memory: &Cell<RowMemory>,
) -> Result<AwqOutcome> {
    let LayerContext { checkpoint, scale_type, control } = context;
    let ones = if scales.is_none() { vec![1.0; target.cols] } else { Vec::new() };
    let scales = scales.unwrap_or(&ones);
    let run = async {
        let shape = (target.rows, target.cols);
        let mut quantizer = AwqQuantizer::new(target.scheme, shape, scales, measure, clipping, scale_type)?;
        let mut rows = DenseRows::new(checkpoint, target.source)?.with_memory(memory.take());
        quantize_rows(&mut rows, &mut quantizer, control, |_| ()).await?;
        memory.set(rows.into_memory());
        quantizer.finish()
    };
    run.await.context_with(|| format!("module `{}`", target.module))
}

/// Keeps the stored bytes of a dense matrix in memory, for callers that read it more than once.
///
/// # Errors
/// As [`Checkpoint::master`].
pub fn hold(checkpoint: &Checkpoint, source: &str) -> Result<Option<ResidentTensors>> {
    let ModuleStorage::Dense { tensor, .. } = checkpoint.master(source)? else { return Ok(None) };
    Ok(Some(checkpoint.store().hold([tensor])))
}
