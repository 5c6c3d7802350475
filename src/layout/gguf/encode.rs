//! Encodes [`PackedTensor`]s as ggml blocks, code by code, if a block type can represent the scheme.

use super::blocks;
use super::quantize::{push_half, push_nibbles, push_ternary};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::format::safetensors::TensorInfo;
use crate::quant::{Bits, Coding, Granularity, PackedTensor, QuantizedTensor, Scheme, column_order, packing};

/// Columns per scale in small blocks.
pub(in crate::layout) const SMALL_BLOCK: usize = 32;
/// Columns per scale in ternary blocks.
const TERNARY_BLOCK: usize = 256;

/// The block type that holds the codes of a matrix with `cols` columns; `None` if there is none. A group of several
/// blocks repeats its scale. Scales become half precision, and zero points become minimums: see
/// [`own_scales`](crate::layout::TargetLayout::own_scales).
pub fn block_type(coding: Coding, cols: usize) -> Option<TensorType> {
    let Some(scheme) = coding.affine() else { return blocks::type_of(coding, cols) };
    let fits = |block: usize| {
        let group = scheme.granularity().group_size(cols);
        // The last group may be shorter, but must also end at a block boundary.
        cols.is_multiple_of(block) && (group.is_multiple_of(block) || group >= cols)
    };
    match scheme {
        Scheme::Ternary { .. } if fits(TERNARY_BLOCK) => Some(TensorType::TQ2_0),
        _ if !fits(SMALL_BLOCK) => None,
        Scheme::Ternary { .. } => Some(TensorType::Q4_0),
        Scheme::Integer { bits: Bits::Eight, symmetric: true, .. } => Some(TensorType::Q8_0),
        Scheme::Integer { bits: Bits::Eight, .. } | Scheme::IntegerMinimum { bits: Bits::Eight, .. } => None,
        Scheme::Integer { symmetric: true, .. } => Some(TensorType::Q4_0),
        Scheme::Integer { .. } | Scheme::IntegerMinimum { .. } => Some(TensorType::Q4_1),
    }
}

/// The block type of a matrix, as [`block_type`]; `None` for groups of non-adjacent columns (act-order).
fn affine_type(tensor: &PackedTensor) -> Option<TensorType> {
    let grouped = matches!(tensor.scheme().granularity(), Granularity::Group(_));
    if grouped && tensor.column_order().is_some() {
        return None;
    }
    block_type(tensor.scheme().into(), tensor.cols())
}

/// Whether [`encode`] has a block type for rows of `cols` columns.
pub(in crate::layout) fn can_hold(cols: usize, coding: Coding) -> Result<(), String> {
    match block_type(coding, cols) {
        Some(_) => Ok(()),
        None => Err(format!("no GGUF type holds {coding} rows of {cols} columns")),
    }
}

/// The single tensor of a matrix: blocks as rows of bytes.
pub(in crate::layout) fn planned_tensors(
    module: &str,
    rows: usize,
    cols: usize,
    coding: Coding,
) -> Vec<(String, TensorInfo)> {
    let row_bytes = block_type(coding, cols).and_then(|tensor_type| tensor_type.row_bytes(cols as u64));
    let dims = [rows as u64, row_bytes.expect("it can be held")];
    vec![(format!("{module}.weight"), TensorInfo::new(DType::U8, dims))]
}

/// The minimum to store in a `Q4_1` block.
fn minimum(tensor: &PackedTensor, index: usize) -> Option<f32> {
    match (tensor.minimums(), tensor.zero_points()) {
        (Some(minimums), _) => Some(minimums.get(index)),
        (None, Some(zeros)) => Some(-f32::from(zeros[index]) * tensor.scales().get(index)),
        (None, None) => None,
    }
}

/// Encodes a matrix as blocks, row by row, in the type of [`block_type`].
///
/// # Errors
/// `unsupported_format` if there is no block type; `non_finite` for a scale outside the range of half precision.
pub fn encode(tensor: &QuantizedTensor) -> Result<Vec<u8>> {
    match tensor.affine() {
        Some(tensor) => encode_affine(tensor),
        None => blocks::encode(tensor),
    }
}

fn encode_affine(tensor: &PackedTensor) -> Result<Vec<u8>> {
    let (scheme, cols) = (tensor.scheme(), tensor.cols());
    let Some(tensor_type) = affine_type(tensor) else {
        return Err(Error::unsupported_format(format!(
            "no GGUF type holds {scheme} rows of {cols} columns as they are stored"
        )));
    };
    let block = tensor_type.block_elements() as usize;
    let words = scheme.words_per_row(cols);
    // Maps the scheme's zero point to the type's constant one: Q4_0's 8.
    let shift = match tensor_type {
        TensorType::Q4_0 => 8 - scheme.constant_zero_point().unwrap_or(8) as u8,
        _ => 0,
    };
    let mut codes = vec![0u8; cols];
    let mut stored = vec![0u8; if tensor.column_order().is_some() { cols } else { 0 }];
    let mut out = Vec::new();
    for row in 0..tensor.rows() {
        let stream = &tensor.codes()[row * words..(row + 1) * words];
        match tensor.column_order() {
            None => packing::unpack_row(stream, scheme.storage_bits(), &mut codes),
            Some(order) => {
                packing::unpack_row(stream, scheme.storage_bits(), &mut stored);
                column_order::scatter(&stored, order, &mut codes);
            }
        }
        for (number, codes) in codes.chunks_exact_mut(block).enumerate() {
            let index = match scheme.granularity() {
                Granularity::Group(size) => tensor.scale_index(row, number * block / size),
                _ => tensor.scale_index(row, 0),
            };
            let scale = tensor.scales().get(index);
            if tensor_type != TensorType::TQ2_0 {
                push_half(scale, &mut out)?;
            }
            match tensor_type {
                // The code minus 128, in two's complement.
                TensorType::Q8_0 => out.extend(codes.iter().map(|code| code ^ 0x80)),
                TensorType::Q4_0 => {
                    codes.iter_mut().for_each(|code| *code += shift);
                    push_nibbles(codes, &mut out);
                }
                TensorType::Q4_1 => {
                    push_half(minimum(tensor, index).unwrap_or(0.0), &mut out)?;
                    push_nibbles(codes, &mut out);
                }
                _ => {
                    push_ternary(codes, &mut out);
                    push_half(scale, &mut out)?;
                }
            }
        }
    }
    Ok(out)
}
