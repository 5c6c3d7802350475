//! Writes [`PackedTensor`]s as compressed-tensors modules, with their config.

use super::CompressedNames;
use crate::dtype::DType;
use crate::format::safetensors::TensorInfo;
use crate::layout::stored::word_bytes;
use crate::layout::{PackedFormat, is_embedding};
use crate::quant::{Activations, Bits, Granularity, PackedTensor, Scheme, packing};
use crate::sort;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(in crate::layout) fn can_hold(cols: usize, scheme: Scheme) -> Result<(), String> {
    match scheme {
        Scheme::Integer { granularity: Granularity::Tensor, symmetric: false, .. } => {
            Err("one zero point for a whole tensor has no packed form".to_owned())
        }
        Scheme::IntegerMinimum { .. } => Err("it has zero points but no minimums".to_owned()),
        Scheme::Ternary { granularity: Granularity::Group(_) } => {
            Err("ternary weights have a scale per tensor or per channel".to_owned())
        }
        Scheme::Integer { granularity: Granularity::Group(size), .. }
            if size == 0 || !cols.is_multiple_of(size) =>
        {
            Err(format!("groups of {size} do not divide {cols} columns"))
        }
        _ => Ok(()),
    }
}

/// Ternary codes are stored as 2-bit codes: -1, 0, 1 with zero point 2.
fn stored_scheme(scheme: Scheme) -> Scheme {
    match scheme {
        Scheme::Ternary { granularity } => Scheme::Integer { bits: Bits::Two, granularity, symmetric: true },
        other => other,
    }
}

/// Whether codes are written as bytes (`int-quantized`): only for an 8-bit embedding table, where this takes no more
/// space.
fn as_bytes(module: &str, scheme: Scheme) -> bool {
    is_embedding(module) && scheme.storage_bits() == 8
}

/// The scales' shape.
fn scale_shape(scheme: Scheme, rows: usize, cols: usize) -> Vec<u64> {
    match scheme.granularity() {
        Granularity::Tensor => vec![1],
        granularity => vec![rows as u64, granularity.groups_per_row(cols) as u64],
    }
}

pub(in crate::layout) fn planned_tensors(
    module: &str,
    rows: usize,
    cols: usize,
    format: PackedFormat,
) -> Vec<(String, TensorInfo)> {
    let scheme = stored_scheme(format.scheme());
    let names = CompressedNames::new(module);
    let (rows_u64, cols_u64) = (rows as u64, cols as u64);
    let groups = scheme.granularity().groups_per_row(cols) as u64;
    let asymmetric = scheme.constant_zero_point().is_none();
    let scales = TensorInfo::new(format.scale_type.dtype(), scale_shape(scheme, rows, cols));
    let mut tensors = Vec::new();
    if format.reordered {
        tensors.push((names.g_idx, TensorInfo::new(DType::I32, [cols_u64])));
    }
    if as_bytes(module, scheme) {
        tensors.push((names.weight, TensorInfo::new(DType::I8, [rows_u64, cols_u64])));
        tensors.push((names.scale, scales));
        if asymmetric {
            tensors.push((names.zero_point, TensorInfo::new(DType::I8, [rows_u64, groups])));
        }
        return tensors;
    }
    let words = scheme.words_per_row(cols) as u64;
    tensors.push((names.packed, TensorInfo::new(DType::I32, [rows_u64, words])));
    tensors.push((names.scale, scales));
    tensors.push((names.shape, TensorInfo::new(DType::I64, [2])));
    if asymmetric {
        let words = packing::words(rows, scheme.storage_bits()) as u64;
        tensors.push((names.zero_point, TensorInfo::new(DType::I32, [words, groups])));
    }
    tensors
}

pub(in crate::layout) fn encode(
    module: &str,
    tensor: &PackedTensor,
    format: PackedFormat,
) -> Vec<(String, Vec<u8>)> {
    let names = CompressedNames::new(module);
    let scales = (names.scale, tensor.scales().to_bytes());
    let zero_points = tensor.zero_points();
    let mut tensors = Vec::new();
    if format.reordered {
        let bytes = tensor.g_idx().iter().flat_map(|group| group.to_le_bytes()).collect();
        tensors.push((names.g_idx, bytes));
    }
    if as_bytes(module, tensor.scheme()) {
        tensors.extend([(names.weight, signed_bytes(tensor)), scales]);
        if let Some(zero_points) = zero_points {
            let midpoint = 1u8 << (tensor.scheme().storage_bits() - 1);
            let signed = zero_points.iter().map(|zero| zero.wrapping_sub(midpoint)).collect();
            tensors.push((names.zero_point, signed));
        }
        return tensors;
    }
    let shape =
        [tensor.rows() as i64, tensor.cols() as i64].iter().flat_map(|dim| dim.to_le_bytes()).collect();
    tensors.extend([(names.packed, packed_bytes(tensor)), scales, (names.shape, shape)]);
    if let Some(zero_points) = zero_points {
        let groups = zero_points.len() / tensor.rows();
        let packed = pack_columns(zero_points, tensor.rows(), groups, tensor.scheme().storage_bits());
        tensors.push((names.zero_point, word_bytes(&packed)));
    }
    tensors
}

fn packed_bytes(tensor: &PackedTensor) -> Vec<u8> {
    let ternary = matches!(tensor.scheme(), Scheme::Ternary { .. });
    if !ternary && tensor.column_order().is_none() {
        return word_bytes(tensor.codes());
    }
    let bits = tensor.scheme().storage_bits();
    let words = tensor.scheme().words_per_row(tensor.cols());
    let mut codes = vec![0u8; tensor.cols()];
    let mut repacked = vec![0u32; words];
    let mut bytes = Vec::with_capacity(tensor.codes().len() * 4);
    for row in 0..tensor.rows() {
        tensor.unpack_row(row, &mut codes);
        if ternary {
            codes.iter_mut().for_each(|code| *code += 1);
        }
        packing::pack_row(&codes, bits, &mut repacked);
        bytes.extend(repacked.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

/// Codes as signed bytes, `[rows, cols]`.
fn signed_bytes(tensor: &PackedTensor) -> Vec<u8> {
    let scheme = tensor.scheme();
    let midpoint = 1u8 << (scheme.storage_bits() - 1);
    let mut bytes = vec![0u8; tensor.rows() * tensor.cols()];
    for (index, row) in bytes.chunks_exact_mut(tensor.cols()).enumerate() {
        tensor.unpack_row(index, row);
        row.iter_mut().for_each(|code| *code = code.wrapping_sub(midpoint));
    }
    bytes
}

/// Packs zero points `[rows, groups]` as bit streams down the columns of `[words, groups]`.
fn pack_columns(zero_points: &[u8], rows: usize, groups: usize, bits: u32) -> Vec<u32> {
    let words = packing::words(rows, bits);
    let mut out = vec![0u32; words * groups];
    let mut column = vec![0u8; rows];
    let mut stream = vec![0u32; words];
    for group in 0..groups {
        for (zero, stored) in column.iter_mut().zip(zero_points[group..].iter().step_by(groups)) {
            *zero = *stored;
        }
        packing::pack_row(&column, bits, &mut stream);
        for (out, &word) in out[group..].iter_mut().step_by(groups).zip(&stream) {
            *out = word;
        }
    }
    out
}

/// One config group per storage form. The group with the most linear modules targets the class `Linear`; the others
/// list their modules by name, which takes precedence.
pub(in crate::layout) fn quantization_config(
    entries: &[(String, PackedFormat)],
    ignore: &[String],
    activations: Activations,
) -> Value {
    type Key = (bool, String, bool);
    let mut groups: BTreeMap<Key, (PackedFormat, Vec<&str>)> = BTreeMap::new();
    for (module, format) in entries {
        let key = (is_embedding(module), format.scheme().to_string(), format.reordered);
        groups.entry(key).or_insert_with(|| (*format, Vec::new())).1.push(module);
    }
    let mut largest: Option<(usize, Key)> = None;
    for (key, (_, modules)) in &groups {
        if !key.0 && largest.as_ref().is_none_or(|(count, _)| modules.len() > *count) {
            largest = Some((modules.len(), key.clone()));
        }
    }
    let default_key = largest.map(|(_, key)| key);

    let mut config_groups = Map::new();
    let mut formats = Vec::new();
    // The default group comes first: some readers use the first group for all ordinary layers.
    let (first, others): (Vec<_>, Vec<_>) =
        groups.iter().partition(|(key, _)| Some(*key) == default_key.as_ref());
    for (key, (packed, modules)) in first.into_iter().chain(others) {
        let scheme = packed.scheme();
        let mut modules = modules.clone();
        sort::sort(&mut modules);
        let targets = if Some(key) == default_key.as_ref() { json!(["Linear"]) } else { json!(modules) };
        let format = if as_bytes(modules[0], scheme) { "int-quantized" } else { "pack-quantized" };
        formats.push(format);
        let ternary = matches!(scheme, Scheme::Ternary { .. });
        let int8 = !key.0 && (ternary || activations == Activations::Int8);
        config_groups.insert(
            format!("group_{}", config_groups.len()),
            json!({
                "format": format,
                "input_activations": if int8 { activation_args() } else { Value::Null },
                "output_activations": null,
                "targets": targets,
                "weights": weight_args(scheme, packed.reordered),
            }),
        );
    }
    formats.dedup();
    let mut ignore = ignore.to_vec();
    sort::sort(&mut ignore);
    json!({
        "config_groups": config_groups,
        "format": if formats.len() == 1 { formats[0] } else { "mixed-precision" },
        "global_compression_ratio": null,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

fn weight_args(scheme: Scheme, reordered: bool) -> Value {
    let scheme = stored_scheme(scheme);
    let (strategy, group_size) = match scheme.granularity() {
        Granularity::Tensor => ("tensor", None),
        Granularity::Channel => ("channel", None),
        Granularity::Group(size) => ("group", Some(size)),
    };
    let mut args = json!({
        "dynamic": false,
        "group_size": group_size,
        "num_bits": scheme.storage_bits(),
        "strategy": strategy,
        "symmetric": scheme.constant_zero_point().is_some(),
        "type": "int",
    });
    if reordered {
        args["actorder"] = json!("group");
    }
    args
}

fn activation_args() -> Value {
    json!({"dynamic": true, "num_bits": 8, "strategy": "token", "symmetric": true, "type": "int"})
}
