//! The common floating-point type of a folder whose loaders do not mix types.
//!
//! transformers runs BitNet's layers in the type of their scale, and everything else in that of the other tensors.
//! If these differ, it loads the folder and then fails.

use crate::dtype::DType;
use crate::error::Result;
use crate::format::shard_index::TensorStore;
use crate::layout::TargetLayout;
use crate::quant::ScaleType;
use serde_json::Value;
use std::collections::BTreeSet;

/// The type of all `copied` tensors and the scales of a folder in `layout`. `None` if the layout's loaders accept
/// mixed types. `scales` are the types of existing scales, which are never rounded.
///
/// The common 16-bit type of all tensors and scales, if they have one. Otherwise `F16`, or `F32` if a scale has another
/// type than `F16` or a tensor is among the `wide` ones, whose values exceed half precision.
pub(super) fn one_type(
    layout: TargetLayout,
    store: &TensorStore,
    copied: &[&str],
    scales: &[ScaleType],
    wide: &BTreeSet<String>,
) -> Result<Option<DType>> {
    let Some(exact) = one_exact_type(layout, store, copied, scales)? else { return Ok(None) };
    let narrows = exact == DType::F32
        && scales.iter().all(|scale_type| *scale_type == ScaleType::F16)
        && !copied.iter().any(|name| wide.contains(*name));
    Ok(Some(if narrows { DType::F16 } else { exact }))
}

/// As [`one_type`], but lossless: the common type, or `F32`.
pub(super) fn one_exact_type(
    layout: TargetLayout,
    store: &TensorStore,
    copied: &[&str],
    scales: &[ScaleType],
) -> Result<Option<DType>> {
    if layout != TargetLayout::BitNet {
        return Ok(None);
    }
    let mut types: Vec<DType> = scales.iter().map(|scale_type| scale_type.dtype()).collect();
    for name in copied {
        types.push(store.require(name)?.dtype);
    }
    types.retain(|dtype| dtype.is_float());
    let first = types.first().copied().unwrap_or(DType::F32);
    Ok(Some(if types.iter().all(|dtype| *dtype == first) { first } else { DType::F32 }))
}

/// The corresponding type of scales.
pub(super) fn scale_type(dtype: DType) -> ScaleType {
    ScaleType::from_dtype(dtype).expect("types of floating-point numbers are types of scales")
}

/// The changes of config.json for a type. The file names its type under one or both of two keys.
pub(super) fn config_changes(config: &Value, dtype: DType) -> Vec<(&'static str, Value)> {
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    ["torch_dtype", "dtype"]
        .into_iter()
        .filter(|key| config.get(key).is_some())
        .map(|key| (key, Value::from(name)))
        .collect()
}
