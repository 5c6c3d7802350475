//! Writes [`PackedTensor`]s as GPTQ modules, with their config.

use super::zeros::{GptqZeros, Storage};
use super::{GptqNames, QUANTIZER};
use crate::dtype::DType;
use crate::format::safetensors::TensorInfo;
use crate::layout::PackedFormat;
use crate::layout::stored::{transpose, transpose_scales, word_bytes};
use crate::quant::{Bits, Granularity, PackedTensor, Scheme, packing};
use crate::sort;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Group sizes that GPTQModel's kernels accept.
const GROUP_SIZES: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];

pub(in crate::layout) fn can_hold(rows: usize, cols: usize, scheme: Scheme) -> Result<(), String> {
    let Scheme::Integer { bits, granularity, .. } = scheme else {
        return Err(format!("it holds integer codes, not {scheme}"));
    };
    match granularity {
        Granularity::Tensor => {
            return Err("it has one scale per output or group, not one per tensor".to_owned());
        }
        Granularity::Group(size) if !GROUP_SIZES.contains(&size) => {
            return Err(format!("its tools take groups of 16, 32, 64, ..., 1024 columns, not of {size}"));
        }
        Granularity::Group(size) if !cols.is_multiple_of(size) => {
            return Err(format!("groups of {size} do not divide {cols} columns"));
        }
        _ => {}
    }
    // 32 codes of 3 bits fill 3 words.
    let codes_at_once = if bits == Bits::Three { 32 } else { 32 / bits.get() as usize };
    for (count, what) in [(cols, "columns"), (rows, "rows")] {
        if !count.is_multiple_of(codes_at_once) {
            return Err(format!("{} bits of {count} {what} do not fill whole words", bits.get()));
        }
    }
    Ok(())
}

/// The parts of a scheme that [`can_hold`] accepted.
fn integer(scheme: Scheme) -> (Bits, Granularity, bool) {
    match scheme {
        Scheme::Integer { bits, granularity, symmetric } => (bits, granularity, symmetric),
        Scheme::IntegerMinimum { .. } | Scheme::Ternary { .. } => unreachable!("the layout cannot hold it"),
    }
}

pub(in crate::layout) fn planned_tensors(
    module: &str,
    rows: usize,
    cols: usize,
    format: PackedFormat,
) -> Vec<(String, TensorInfo)> {
    let (bits, granularity, _) = integer(format.scheme());
    let names = GptqNames::new(module);
    let groups = granularity.groups_per_row(cols) as u64;
    let words = |count| packing::words(count, bits.get()) as u64;
    vec![
        (names.qweight, TensorInfo::new(DType::I32, [words(cols), rows as u64])),
        (names.qzeros, TensorInfo::new(DType::I32, [groups, words(rows)])),
        (names.scales, TensorInfo::new(format.scale_type.dtype(), [groups, rows as u64])),
        (names.g_idx, TensorInfo::new(DType::I32, [cols as u64])),
    ]
}

pub(in crate::layout) fn encode(
    module: &str,
    tensor: &PackedTensor,
    zeros: GptqZeros,
) -> Vec<(String, Vec<u8>)> {
    let (bits, granularity, _) = integer(tensor.scheme());
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let groups = granularity.groups_per_row(cols);
    let names = GptqNames::new(module);

    let words_down = packing::words(cols, bits.get());
    let mut qweight = vec![0u32; words_down * rows];
    let (mut codes, mut stream) = (vec![0u8; cols], vec![0u32; words_down]);
    for row in 0..rows {
        tensor.unpack_row(row, &mut codes);
        packing::pack_row(&codes, bits.get(), &mut stream);
        for (out, &word) in qweight[row..].iter_mut().step_by(rows).zip(&stream) {
            *out = word;
        }
    }

    let storage = match zeros {
        GptqZeros::V1 => Storage::V1Words,
        GptqZeros::V2 => Storage::V2,
    };
    let constant = tensor.scheme().constant_zero_point().map(|zero| vec![zero as u8; rows]);
    let by_group = tensor.zero_points().map(|zeros| transpose(zeros, rows)).unwrap_or_default();
    let words_across = packing::words(rows, bits.get());
    let mut qzeros = vec![0u32; groups * words_across];
    for (group, out) in qzeros.chunks_exact_mut(words_across).enumerate() {
        let zeros = constant.as_deref().unwrap_or_else(|| &by_group[group * rows..(group + 1) * rows]);
        storage.encode(zeros, bits, out);
    }

    let g_idx = tensor.g_idx().iter().flat_map(|group| group.to_le_bytes()).collect();
    vec![
        (names.qweight, word_bytes(&qweight)),
        (names.qzeros, word_bytes(&qzeros)),
        (names.scales, transpose_scales(tensor.scales(), rows).to_bytes()),
        (names.g_idx, g_idx),
    ]
}

/// The most frequent settings, with `dynamic` for modules that differ or stay in floating point.
///
/// transformers does not read `dynamic`; `modules_in_block_to_quantize` tells it which modules are quantized.
pub(in crate::layout) fn quantization_config(
    entries: &[(String, PackedFormat)],
    ignore: &[String],
    zeros: GptqZeros,
) -> Value {
    let mut by_scheme: BTreeMap<String, (Scheme, usize)> = BTreeMap::new();
    for (_, format) in entries {
        by_scheme.entry(format.scheme().to_string()).or_insert((format.scheme(), 0)).1 += 1;
    }
    let mut usual = (entries[0].1.scheme(), 0);
    for &(scheme, count) in by_scheme.values() {
        if count > usual.1 {
            usual = (scheme, count);
        }
    }
    let usual = usual.0;
    let in_blocks = |module: &&String| module.contains(".layers.");
    let mut dynamic = Map::new();
    let mut left_out: Vec<&String> = ignore.iter().filter(in_blocks).collect();
    sort::sort(&mut left_out);
    for module in &left_out {
        dynamic.insert(format!("-:^{}$", escaped(module)), json!({}));
    }
    let mut others: Vec<_> = entries.iter().filter(|(_, format)| format.scheme() != usual).collect();
    sort::sort_by_key(&mut others, |(module, _)| module);
    for (module, format) in others {
        dynamic.insert(format!("+:^{}$", escaped(module)), Value::Object(settings(format.scheme())));
    }
    let label = match zeros {
        GptqZeros::V1 => "gptq",
        GptqZeros::V2 => "gptq_v2",
    };
    let mut config = settings(usual);
    config.insert("checkpoint_format".into(), json!(label));
    config.insert("format".into(), json!(label));
    config.insert("desc_act".into(), json!(entries.iter().any(|(_, format)| format.reordered)));
    config.insert("lm_head".into(), json!(entries.iter().any(|(module, _)| module == "lm_head")));
    let quantizer = format!("{QUANTIZER}:{}", env!("CARGO_PKG_VERSION"));
    config.insert("meta".into(), json!({"quantizer": [quantizer]}));
    config.insert("pack_dtype".into(), json!("int32"));
    config.insert("quant_method".into(), json!("gptq"));
    if let Some(names) = names_in_blocks(entries, &left_out).filter(|_| !left_out.is_empty()) {
        config.insert("modules_in_block_to_quantize".into(), json!([names]));
    }
    if !dynamic.is_empty() {
        config.insert("dynamic".into(), Value::Object(dynamic));
    }
    let mut config: Vec<_> = config.into_iter().collect();
    sort::sort_by(&mut config, |(a, _), (b, _)| a.cmp(b));
    Value::Object(config.into_iter().collect())
}

/// The quantized modules' names within a block (`self_attn.q_proj`); `None` if blocks differ, which transformers cannot
/// represent.
fn names_in_blocks(entries: &[(String, PackedFormat)], left_out: &[&String]) -> Option<Vec<String>> {
    let inside = |module: &str| Some(module.split_once(".layers.")?.1.split_once('.')?.1.to_owned());
    let mut names: Vec<String> = entries.iter().filter_map(|(module, _)| inside(module)).collect();
    sort::sort(&mut names);
    names.dedup();
    let differ = left_out.iter().filter_map(|module| inside(module)).any(|name| names.contains(&name));
    (!differ).then_some(names)
}

/// A module's name as a pattern that matches only this name.
fn escaped(module: &str) -> String {
    module.replace('.', r"\.")
}

fn settings(scheme: Scheme) -> Map<String, Value> {
    let (bits, granularity, symmetric) = integer(scheme);
    let group_size = match granularity {
        Granularity::Group(size) => json!(size),
        _ => json!(-1),
    };
    Map::from_iter([
        ("bits".to_owned(), json!(bits.get())),
        ("group_size".to_owned(), group_size),
        ("sym".to_owned(), json!(symmetric)),
    ])
}
