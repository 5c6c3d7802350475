//! Finds the codes of one module, chunk of rows by chunk of rows. Floor 8.

use super::calibrated::Found;
use super::select::ModulePlan;
use crate::artifact::records::{CalibrationRecord, DequantizationRecord, DequantizedModule, TensorReference};
use crate::dtype::{DType, decode_f32};
use crate::error::{Context, Error, Result};
use crate::format::passing::Held;
use crate::format::shard_index::TensorStore;
use crate::format::source::SourceDir;
use crate::layout::{ModuleStorage, PackedFormat};
use crate::model::Checkpoint;
use crate::model::weights::DenseRows;
use crate::quant::rtn::{ParamsEncoder, RtnQuantizer};
use crate::quant::ternary::TernaryQuantizer;
use crate::quant::{PackedTensor, ScaleType, Scales, Scheme, WeightError, column_order, regroup};
use crate::task::{self, Control};
use std::ops::Range;

/// How the codes of a module are found.
pub(super) enum Encoder<'a> {
    /// From the weights alone: to nearest, or BitNet with the share of the scale below which weights become 0.
    Direct { sparsity_threshold: Option<f32> },
    /// By calibration, beforehand; modules outside the blocks are rounded to nearest.
    Calibrated(Found<'a>),
    /// On the grid that the weights were on before they were dequantized.
    Restore { record: &'a DequantizationRecord, parameters: &'a TensorStore },
}

/// The type of the scales. Half precision is far finer than the codes, and a ternary weight times such a scale is exact
/// in half precision, so that a dequantized model computes with the very same weights.
pub(super) const SCALE_TYPE: ScaleType = ScaleType::F16;

impl Encoder<'_> {
    /// What this module will be. `one_type` is that of all scales, where the layout has one.
    pub fn format(&self, module: &str, scheme: Scheme, one_type: Option<ScaleType>) -> Result<PackedFormat> {
        let rounded = |scale_type| PackedFormat { scheme, scale_type, reordered: false };
        match self {
            Self::Restore { record, parameters } => {
                let described = described(record, module)?;
                let stored = stored_scale_type(parameters, &described.scales)?;
                let reordered = described.g_idx.is_some();
                Ok(PackedFormat { scheme, scale_type: one_type.unwrap_or(stored), reordered })
            }
            Self::Calibrated(found) => Ok(found.format(module).unwrap_or(rounded(SCALE_TYPE))),
            Self::Direct { .. } => Ok(rounded(one_type.unwrap_or(SCALE_TYPE))),
        }
    }

    /// How calibration found the codes of a module, where it did.
    pub fn calibration(&self, module: &str) -> Option<&CalibrationRecord> {
        match self {
            Self::Calibrated(found) => found.record(module),
            _ => None,
        }
    }

    /// What became of a norm or a bias; `None` where it stays as it is.
    pub async fn changed_vector(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Calibrated(found) if found.has_vector(tensor) => Ok(Some(found.vector(tensor).await?)),
            _ => Ok(None),
        }
    }

    /// Quantizes one module, and tells how far its weights are from the original ones.
    pub async fn encode(
        &self,
        checkpoint: &Checkpoint,
        plan: &ModulePlan,
        (scheme, one_type): (Scheme, Option<ScaleType>),
        control: &dyn Control,
    ) -> Result<(PackedTensor, WeightError)> {
        let (rows, cols) = (plan.rows, plan.cols);
        let scale_type = one_type.unwrap_or(SCALE_TYPE);
        match self {
            Self::Calibrated(found) => match found.weight_error(&plan.module) {
                Some(error) => Ok((found.load(&plan.module).await?, error.clone())),
                None => encode_directly(checkpoint, plan, scheme, None, SCALE_TYPE, control).await,
            },
            Self::Direct { sparsity_threshold } => {
                encode_directly(checkpoint, plan, scheme, *sparsity_threshold, scale_type, control).await
            }
            Self::Restore { record, parameters } => {
                let described = described(record, &plan.module)?;
                let scales = read_scales(parameters, &described.scales).await?;
                let zero_points = match &described.zero_points {
                    Some(reference) => Some(parameters.read(&reference.tensor).await?),
                    None => None,
                };
                let mut encoder = ParamsEncoder::new(scheme, rows, cols, scales, zero_points)?;
                if let Some(reference) = &described.g_idx {
                    let g_idx = read_g_idx(parameters, reference).await?;
                    let group_size = scheme.granularity().group_size(cols);
                    let order = column_order::order_of_groups(&g_idx, group_size)
                        .context_with(|| format!("tensor `{}`", reference.tensor))?;
                    encoder = encoder.with_column_order(order)?;
                }
                let _held = hold(checkpoint, plan)?;
                for_each_chunk(checkpoint, plan, control, |_, values| encoder.push_rows(values)).await?;
                let mut restored = encoder.finish()?;
                if let Some(other) = one_type.filter(|other| *other != restored.scales().scale_type()) {
                    restored = regroup::round_scales(&restored, other)?;
                }
                let error = weight_error(checkpoint, plan, &restored, control).await?;
                Ok((restored, error))
            }
        }
    }
}

/// Quantizes one module from its weights alone, and tells how far they are from the original ones.
pub(super) async fn encode_directly(
    checkpoint: &Checkpoint,
    plan: &ModulePlan,
    scheme: Scheme,
    sparsity_threshold: Option<f32>,
    scale_type: ScaleType,
    control: &dyn Control,
) -> Result<(PackedTensor, WeightError)> {
    let (rows, cols) = (plan.rows, plan.cols);
    let has_masters = checkpoint.layout().has_masters();
    if let (Scheme::Integer { .. }, false) = (scheme, has_masters) {
        let mut quantizer = RtnQuantizer::new(scheme, rows, cols, scale_type)?;
        let mut error = WeightError::default();
        for_each_chunk(checkpoint, plan, control, |rows, values| {
            quantizer.push_rows(values)?;
            error.add_rows(values, &quantizer.last_rows(rows.len())?, 0..rows.len());
            Ok(())
        })
        .await?;
        return Ok((quantizer.finish()?, error));
    }
    let _held = hold(checkpoint, plan)?;
    let packed = match scheme {
        // The model's own codes, not those of a scale that is rounded first.
        _ if has_masters => {
            let packed = checkpoint.layout().read_packed(checkpoint.store(), &plan.source).await?;
            regroup::round_scales(&packed, scale_type)?
        }
        Scheme::Ternary { granularity } => {
            let mut quantizer =
                TernaryQuantizer::new(granularity, rows, cols, scale_type, sparsity_threshold)?;
            for_each_chunk(checkpoint, plan, control, |_, values| quantizer.observe_rows(values)).await?;
            for_each_chunk(checkpoint, plan, control, |_, values| quantizer.push_rows(values)).await?;
            quantizer.finish()?
        }
        _ => return Err(Error::invalid_argument(format!("no method makes {scheme} codes"))),
    };
    let error = weight_error(checkpoint, plan, &packed, control).await?;
    Ok((packed, error))
}

/// Keeps the bytes of one matrix, for who goes through it more than once.
fn hold(checkpoint: &Checkpoint, plan: &ModulePlan) -> Result<Option<Held>> {
    let stored = checkpoint.master(&plan.source)?;
    let ModuleStorage::Dense { tensor, .. } = stored else { return Ok(None) };
    Ok(Some(checkpoint.store().hold([tensor])))
}

/// How far packed weights are from the original ones.
pub(super) async fn weight_error(
    checkpoint: &Checkpoint,
    plan: &ModulePlan,
    packed: &PackedTensor,
    control: &dyn Control,
) -> Result<WeightError> {
    let mut error = WeightError::default();
    for_each_chunk(checkpoint, plan, control, |rows, values| {
        error.add_rows(values, packed, rows);
        Ok(())
    })
    .await?;
    Ok(error)
}

async fn for_each_chunk(
    checkpoint: &Checkpoint,
    plan: &ModulePlan,
    control: &dyn Control,
    mut each: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
) -> Result<()> {
    let mut rows = DenseRows::new(checkpoint, &plan.source)?;
    while let Some((range, values)) = rows.next().await? {
        each(range, values)?;
        task::checkpoint(control).await?;
    }
    Ok(())
}

fn described<'a>(record: &'a DequantizationRecord, module: &str) -> Result<&'a DequantizedModule> {
    record.modules.iter().find(|described| described.name == module).ok_or_else(|| {
        Error::invalid_checkpoint(format!("expected module `{module}` in the metadata but found none"))
    })
}

async fn read_g_idx(parameters: &TensorStore, reference: &TensorReference) -> Result<Vec<i32>> {
    let bytes = parameters.read(&reference.tensor).await?;
    Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
}

/// The type of the scales that a dequantized folder keeps.
pub(super) fn stored_scale_type(parameters: &TensorStore, reference: &TensorReference) -> Result<ScaleType> {
    let dtype = parameters.require(&reference.tensor)?.dtype;
    ScaleType::from_dtype(dtype).ok_or_else(|| {
        Error::unsupported_format(format!(
            "tensor `{}`: expected F16, BF16 or F32 scales but found {dtype}",
            reference.tensor
        ))
    })
}

async fn read_scales(parameters: &TensorStore, reference: &TensorReference) -> Result<Scales> {
    let name = &reference.tensor;
    let info = parameters.require(name)?;
    let scale_type = stored_scale_type(parameters, reference)?;
    let bytes = parameters.read(name).await?;
    let mut values = vec![0.0; bytes.len() / info.dtype.size()];
    decode_f32(info.dtype, &bytes, &mut values)?;
    let mut scales = Scales::with_capacity(scale_type, values.len());
    for value in values {
        scales.push(value);
    }
    Ok(scales)
}

/// Opens the file that keeps a dequantized folder's scales and zero points, and checks that the record fits it.
pub(super) async fn open_parameters(
    dir: &dyn SourceDir,
    record: &DequantizationRecord,
    file: &str,
) -> Result<TensorStore> {
    let parameters = TensorStore::open_file(dir, file).await.context_with(|| dir.name().to_owned())?;
    for described in &record.modules {
        parameters.require(&described.scales.tensor)?;
        let typed = [
            (&described.zero_points, DType::U8, "zero points"),
            (&described.g_idx, DType::I32, "groups of columns"),
        ];
        for (reference, dtype, what) in typed {
            let Some(TensorReference { tensor, .. }) = reference else { continue };
            let found = parameters.require(tensor)?.dtype;
            if found != dtype {
                return Err(Error::unsupported_format(format!(
                    "tensor `{tensor}`: expected {dtype} {what} but found {found}"
                )));
            }
        }
    }
    Ok(parameters)
}
