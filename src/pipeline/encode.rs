//! Encodes one module, in chunks of rows.

use super::select::ModulePlan;
use crate::artifact::records::{DequantizationRecord, DequantizedModule, TensorReference};
use crate::calibrate::CalibrationRecord;
use crate::calibrate::method::LayerContext;
use crate::calibrate::modules::CalibratedModules;
use crate::calibrate::rows::weight_error;
use crate::calibrate::rtn;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::shard_index::TensorStore;
use crate::format::source::SourceDir;
use crate::layout::PackedFormat;
use crate::model::Checkpoint;
use crate::model::weights::DenseRows;
use crate::quant::rtn::ParamsEncoder;
use crate::quant::{
    PackedTensor, QuantizedTensor, ScaleType, Scales, Scheme, WeightError, column_order, regroup,
};
use crate::task::Control;
use std::collections::BTreeMap;

/// The source of a module's codes.
pub(super) enum Encoder<'a> {
    /// The weights alone: rounding to nearest, or BitNet with a threshold relative to the scale.
    Direct { sparsity_threshold: Option<f32> },
    /// Earlier calibration. Modules outside the blocks are rounded to nearest.
    Calibrated(CalibratedModules<'a>),
    /// Training: learned scales, or the weights alone for modules without them.
    #[cfg_attr(not(feature = "train"), allow(dead_code, reason = "made by training"))]
    Trained { scales: BTreeMap<String, Scales> },
    /// The grid of the weights before they were dequantized.
    Restore { record: &'a DequantizationRecord, parameters: &'a TensorStore },
}

/// The type of scales. Half precision is far finer than the codes, and a ternary weight times such a scale is exact
/// in half precision, so a dequantized model has the same weights.
pub(super) const SCALE_TYPE: ScaleType = ScaleType::F16;

impl Encoder<'_> {
    /// The module's format. `one_type` is the layout's common type of scales, if it has one.
    pub fn format(&self, module: &str, scheme: Scheme, one_type: Option<ScaleType>) -> Result<PackedFormat> {
        let rounded = |scale_type| PackedFormat { coding: scheme.into(), scale_type, reordered: false };
        match self {
            Self::Restore { record, parameters } => {
                let described = described(record, module)?;
                let stored = stored_scale_type(parameters, &described.scales)?;
                let reordered = described.g_idx.is_some();
                Ok(PackedFormat { coding: scheme.into(), scale_type: one_type.unwrap_or(stored), reordered })
            }
            Self::Calibrated(found) => {
                Ok(found.get(module).map_or(rounded(SCALE_TYPE), |found| found.format))
            }
            Self::Direct { .. } | Self::Trained { .. } => Ok(rounded(one_type.unwrap_or(SCALE_TYPE))),
        }
    }

    /// The calibration record of a module, if it was calibrated.
    pub fn calibration(&self, module: &str) -> Option<&CalibrationRecord> {
        match self {
            Self::Calibrated(found) => found.get(module)?.record.as_ref(),
            _ => None,
        }
    }

    /// The changed values of a norm or bias. `None`: unchanged.
    pub async fn changed_vector(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Calibrated(found) => found.vector(tensor).await,
            _ => Ok(None),
        }
    }

    /// Quantizes one module, and returns its weight error.
    pub async fn encode(
        &self,
        checkpoint: &Checkpoint,
        plan: &ModulePlan,
        (scheme, one_type): (Scheme, Option<ScaleType>),
        control: &dyn Control,
    ) -> Result<(QuantizedTensor, WeightError)> {
        let (rows, cols) = (plan.rows, plan.cols);
        let context = |scale_type| LayerContext { checkpoint, scale_type, control };
        let target = plan.target(scheme);
        match self {
            Self::Calibrated(found) => match found.get(&plan.module) {
                Some(module) => Ok((found.load(&plan.module).await?, module.error.clone())),
                None => {
                    let (tensor, error) = rtn::quantize(context(SCALE_TYPE), &target, None).await?;
                    Ok((tensor.into(), error))
                }
            },
            Self::Trained { scales } if scales.contains_key(&plan.module) => {
                let scales = scales[&plan.module].clone();
                let encoder = ParamsEncoder::new(scheme, rows, cols, scales, None)?;
                let tensor = encode_rows(context(SCALE_TYPE), plan, encoder, one_type).await?;
                let error = weight_error(context(SCALE_TYPE), &target, &tensor).await?;
                Ok((tensor.into(), error))
            }
            Self::Direct { .. } | Self::Trained { .. } => {
                let sparsity_threshold = match self {
                    Self::Direct { sparsity_threshold } => *sparsity_threshold,
                    _ => None,
                };
                let context = context(one_type.unwrap_or(SCALE_TYPE));
                let (tensor, error) = rtn::quantize(context, &target, sparsity_threshold).await?;
                Ok((tensor.into(), error))
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
                let (context, _held) = (context(SCALE_TYPE), rtn::hold(checkpoint, &plan.source)?);
                let restored = encode_rows(context, plan, encoder, one_type).await?;
                let error = weight_error(context, &target, &restored).await?;
                Ok((restored.into(), error))
            }
        }
    }
}

/// Encodes the rows of a module with given scales.
async fn encode_rows(
    context: LayerContext<'_>,
    plan: &ModulePlan,
    mut encoder: ParamsEncoder,
    one_type: Option<ScaleType>,
) -> Result<PackedTensor> {
    let rows = DenseRows::new(context.checkpoint, &plan.source)?;
    rows.for_each(context.control, |_, values| encoder.push_rows(values)).await?;
    let tensor = encoder.finish()?;
    match one_type.filter(|other| *other != tensor.scales().scale_type()) {
        Some(other) => regroup::round_scales(&tensor, other),
        None => Ok(tensor),
    }
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

/// The type of scales kept by a dequantized folder.
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
    let scale_type = stored_scale_type(parameters, reference)?;
    Ok(Scales::from_bytes(scale_type, &parameters.read(name).await?))
}

/// Opens the file with a dequantized folder's scales and zero points, and checks it against the record.
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
