//! [`PackedTensor`]s to ggml's blocks, code by code, where a type holds what the scheme says.

use super::blocks;
use super::quantize::{push_half, push_nibbles, push_ternary};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::format::safetensors::TensorInfo;
use crate::quant::{Bits, Coding, Granularity, PackedTensor, QuantizedTensor, Scheme, column_order, packing};

/// Columns that share a scale in the small blocks.
pub(in crate::layout) const SMALL_BLOCK: usize = 32;
/// And in those of ternary codes.
const TERNARY_BLOCK: usize = 256;

/// The type whose blocks hold the codes of a `cols` wide matrix; `None` where none does. A group of several
/// blocks repeats its scale. Scales become halves, and zero points minimums: see [`own_scales`](crate::layout::TargetLayout::own_scales).
pub fn block_type(coding: Coding, cols: usize) -> Option<TensorType> {
    let Some(scheme) = coding.affine() else { return blocks::type_of(coding, cols) };
    let fits = |block: usize| {
        let group = scheme.granularity().group_size(cols);
        // The last group may be shorter, but ends with a block too.
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

/// The type whose blocks hold the codes of this matrix, as [`block_type`]; groups of columns that lie apart from each other
/// (act-order) have none.
fn affine_type(tensor: &PackedTensor) -> Option<TensorType> {
    let grouped = matches!(tensor.scheme().granularity(), Granularity::Group(_));
    if grouped && tensor.column_order().is_some() {
        return None;
    }
    block_type(tensor.scheme().into(), tensor.cols())
}

/// Whether [`encode`] has a type for rows of `cols` columns.
pub(in crate::layout) fn can_hold(cols: usize, coding: Coding) -> Result<(), String> {
    match block_type(coding, cols) {
        Some(_) => Ok(()),
        None => Err(format!("no type holds {coding} rows of {cols} columns")),
    }
}

/// The one tensor that a matrix becomes: blocks are rows of bytes.
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

/// What stands in a `Q4_1` block's place for a minimum.
fn minimum(tensor: &PackedTensor, index: usize) -> Option<f32> {
    match (tensor.minimums(), tensor.zero_points()) {
        (Some(minimums), _) => Some(minimums.get(index)),
        (None, Some(zeros)) => Some(-f32::from(zeros[index]) * tensor.scales().get(index)),
        (None, None) => None,
    }
}

/// The blocks of a matrix, rows first to last, in the type whose blocks hold them.
///
/// # Errors
/// `unsupported_format` where there is none; `non_finite` for a scale that a half cannot hold.
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
    // What 4-bit codes are counted from, where there is no minimum: Q4_0's 8, Q8_0's 128.
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
                // Two's complement of the code minus 128.
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
