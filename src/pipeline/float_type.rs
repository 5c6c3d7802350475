//! The one type of floating-point numbers in a folder whose loaders mix none.
//!
//! transformers runs BitNet's layers in the type of their scale, and everything around them in that of the other tensors:
//! where these differ it loads the folder and then fails.

use crate::dtype::DType;
use crate::error::Result;
use crate::format::shard_index::TensorStore;
use crate::layout::TargetLayout;
use crate::quant::ScaleType;
use serde_json::Value;
use std::collections::BTreeSet;

/// The type for all of the `copied` tensors and the scales of a folder in `layout`; `None` where the layout's loaders take
/// each tensor as it is. `scales` are the types of scales that are there already, which are never rounded.
///
/// 16 bits unless a tensor is among the `wide` ones, whose numbers are beyond half precision: those of the model where it has
/// one type.
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

/// As [`one_type`], of which every number is a value: the one that all have, or `F32`.
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

/// As the type of scales.
pub(super) fn scale_type(dtype: DType) -> ScaleType {
    ScaleType::from_dtype(dtype).expect("types of floating-point numbers are types of scales")
}

/// What config.json, which names the type under one or both of two keys, has to say then.
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
