//! Quantizes floating-point rows to ggml blocks, by the rules of its reference quantizers (`ggml-quants.c`, `_ref`
//! functions).
//!
//! | type | scale | code |
//! |---|---|---|
//! | `Q8_0` | `amax / 127` | nearest, halves away from zero |
//! | `Q4_0` | the value of largest magnitude / -8 | `trunc(x / d + 8.5)`, at most 15 |
//! | `Q4_1` | `(max - min) / 15`, minimum `min` | `trunc((x - min) / d + 0.5)`, at most 15 |
//! | `TQ2_0` | `amax` | nearest, halves away from zero |
//! | `Q4_K` | least squares, see [`fit_group`] | nearest |
//!
//! As in ggml, codes are computed with the scale before it is rounded to half precision; only `Q4_K` computes them
//! again afterwards.
//!
//! Departures: NaN and infinite values, and scales outside the range of half precision, are errors.

use crate::error::{Error, ErrorCode, Result};
use crate::format::gguf::TensorType;
use half::{bf16, f16};

/// Whether [`rows`] can produce this type.
pub fn can_quantize(tensor_type: TensorType) -> bool {
    use TensorType as T;
    [T::F32, T::F16, T::BF16, T::Q8_0, T::Q4_0, T::Q4_1, T::Q4_K, T::TQ2_0].contains(&tensor_type)
}

/// Appends the blocks of `values` to `out`. Rows are whole blocks, so row boundaries do not matter.
///
/// # Errors
/// `non_finite` for a NaN, an infinity, or a number outside the range of half precision.
///
/// # Panics
/// If [`can_quantize`] is false for the type, or if the values are not whole blocks.
pub fn rows(tensor_type: TensorType, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    assert!(can_quantize(tensor_type), "{tensor_type} is not among the types that are made");
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(Error::new(ErrorCode::NonFinite, format!("expected finite weights but found {value}")));
    }
    let elements = tensor_type.block_elements() as usize;
    assert!(values.len().is_multiple_of(elements), "rows are whole blocks");
    for block in values.chunks_exact(elements) {
        match tensor_type {
            TensorType::F32 => out.extend(block[0].to_le_bytes()),
            TensorType::F16 => push_half(block[0], out)?,
            TensorType::BF16 => out.extend(bf16::from_f32(block[0]).to_le_bytes()),
            TensorType::Q8_0 => q8_0(block, out)?,
            TensorType::Q4_0 => q4_0(block, out)?,
            TensorType::Q4_1 => q4_1(block, out)?,
            TensorType::Q4_K => q4_k(block, out)?,
            _ => tq2_0(block, out)?,
        }
    }
    Ok(())
}

/// Appends a number in half precision.
pub(super) fn push_half(value: f32, out: &mut Vec<u8>) -> Result<()> {
    let half = f16::from_f32(value);
    if !half.is_finite() {
        return Err(Error::new(
            ErrorCode::NonFinite,
            format!("{value} is too large for the half precision of the file"),
        ));
    }
    out.extend(half.to_le_bytes());
    Ok(())
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()))
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// 16 bytes: element `j` in the low nibble of byte `j`, element `j + 16` in the high one.
pub(super) fn push_nibbles(codes: &[u8], out: &mut Vec<u8>) {
    let (low, high) = codes.split_at(codes.len() / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
}

fn q8_0(block: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let d = largest(block) / 127.0;
    push_half(d, out)?;
    let scale = inverse(d);
    out.extend(block.iter().map(|value| libm::roundf(value * scale) as i8 as u8));
    Ok(())
}

fn q4_0(block: &[f32], out: &mut Vec<u8>) -> Result<()> {
    // The value of the largest magnitude, with its sign; the first of equal ones.
    let max =
        block.iter().copied().fold(0f32, |max, value| if value.abs() > max.abs() { value } else { max });
    let d = max / -8.0;
    push_half(d, out)?;
    let scale = inverse(d);
    let codes: Vec<u8> = block.iter().map(|value| ((value * scale + 8.5) as u8).min(15)).collect();
    push_nibbles(&codes, out);
    Ok(())
}

fn q4_1(block: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let min = block.iter().copied().fold(f32::INFINITY, f32::min);
    let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    push_half(d, out)?;
    push_half(min, out)?;
    let scale = inverse(d);
    let codes: Vec<u8> = block.iter().map(|value| (((value - min) * scale + 0.5) as u8).min(15)).collect();
    push_nibbles(&codes, out);
    Ok(())
}

fn tq2_0(block: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let d = largest(block);
    let scale = inverse(d);
    let codes: Vec<u8> = block.iter().map(|value| (libm::roundf(value * scale) as i8 + 1) as u8).collect();
    push_ternary(&codes, out);
    push_half(d, out)
}

/// 64 bytes: for each 128 codes, byte `m` holds codes `m`, `m + 32`, `m + 64` and `m + 96`.
pub(super) fn push_ternary(codes: &[u8], out: &mut Vec<u8>) {
    for half in codes.chunks_exact(128) {
        out.extend((0..32).map(|m| half[m] | half[m + 32] << 2 | half[m + 64] << 4 | half[m + 96] << 6));
    }
}

/// Columns per group of `Q4_K`.
const GROUP: usize = 32;

fn q4_k(block: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let fits: Vec<GroupFit> = block.chunks_exact(GROUP).map(fit_group).collect();
    let six_bits = |values: &dyn Fn(&GroupFit) -> f32| -> (f32, Vec<u8>) {
        let largest = fits.iter().map(values).fold(0.0, f32::max);
        let scale = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        (
            largest / 63.0,
            fits.iter().map(|fit| ((scale * values(fit)).round_ties_even() as u8).min(63)).collect(),
        )
    };
    let (d, scales) = six_bits(&|fit| fit.scale);
    let (dmin, minimums) = six_bits(&|fit| fit.minimum);
    push_half(d, out)?;
    push_half(dmin, out)?;
    out.extend(pack_six_bits(&scales, &minimums));
    // Codes for the stored, rounded scales and minimums.
    let (d, dmin) = (f16::from_f32(d).to_f32(), f16::from_f32(dmin).to_f32());
    let mut codes = [0u8; 256];
    for (group, (values, codes)) in block.chunks_exact(GROUP).zip(codes.chunks_exact_mut(GROUP)).enumerate() {
        let scale = d * f32::from(scales[group]);
        if scale != 0.0 {
            let minimum = dmin * f32::from(minimums[group]);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = ((value + minimum) / scale).round_ties_even().clamp(0.0, 15.0) as u8;
            }
        }
    }
    for pair in codes.chunks_exact(2 * GROUP) {
        push_nibbles(pair, out);
    }
    Ok(())
}

/// The inverse of the decoder's `six_bits`: groups 0 to 3 have their own bytes, whose upper bits hold those of groups 4
/// to 7.
fn pack_six_bits(scales: &[u8], minimums: &[u8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for group in 0..4 {
        packed[group] = scales[group] | (scales[group + 4] >> 4) << 6;
        packed[group + 4] = minimums[group] | (minimums[group + 4] >> 4) << 6;
        packed[group + 8] = scales[group + 4] & 15 | (minimums[group + 4] & 15) << 4;
    }
    packed
}

/// Scale and minimum of a group: weights are `code * scale - minimum`, neither negative.
#[derive(Clone, Copy, Debug, PartialEq)]
struct GroupFit {
    scale: f32,
    minimum: f32,
}

/// Scale and minimum of 32 values that minimize the weighted squared error, by line search (ggml's `make_qkx2_quants`).
///
/// 1. The weight of a value is the group's root mean square plus the value's magnitude.
/// 2. Start with the line through the smallest value (at most 0) and the largest.
/// 3. In 21 steps, from slightly coarser to slightly finer: round the values to codes, fit a line with a minimum of at
///    most 0 by weighted least squares, and keep it if its error is smaller.
fn fit_group(values: &[f32]) -> GroupFit {
    const MAX_CODE: f32 = 15.0;
    let mean_square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
    let weights: Vec<f32> = values.iter().map(|value| mean_square.sqrt() + value.abs()).collect();
    let min = values.iter().copied().fold(0.0, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max <= min {
        return GroupFit { scale: 0.0, minimum: -min };
    }
    let codes_of = |inverse: f32| -> Vec<f32> {
        values.iter().map(|value| (inverse * (value - min)).round_ties_even().clamp(0.0, MAX_CODE)).collect()
    };
    let error_of = |codes: &[f32], scale: f32, offset: f32| -> f32 {
        let squares = codes.iter().zip(values).zip(&weights);
        squares.map(|((code, value), weight)| weight * (scale * code + offset - value).powi(2)).sum()
    };
    let sum = |of: &dyn Fn(usize) -> f32| (0..values.len()).map(of).sum::<f32>();
    let (weight, weighted) = (sum(&|i| weights[i]), sum(&|i| weights[i] * values[i]));
    let (mut scale, mut offset) = ((max - min) / MAX_CODE, min);
    let mut least = error_of(&codes_of(MAX_CODE / (max - min)), scale, offset);
    for step in 0..=20 {
        let codes = codes_of((MAX_CODE - 1.0 + 0.1 * step as f32) / (max - min));
        let sum_codes = sum(&|i| weights[i] * codes[i]);
        let sum_squares = sum(&|i| weights[i] * codes[i] * codes[i]);
        let sum_products = sum(&|i| weights[i] * codes[i] * values[i]);
        let determinant = weight * sum_squares - sum_codes * sum_codes;
        if determinant <= 0.0 {
            continue;
        }
        let mut this_scale = (weight * sum_products - weighted * sum_codes) / determinant;
        let mut this_offset = (sum_squares * weighted - sum_codes * sum_products) / determinant;
        if this_offset > 0.0 {
            (this_scale, this_offset) = (sum_products / sum_squares, 0.0);
        }
        let error = error_of(&codes, this_scale, this_offset);
        if error < least {
            (least, scale, offset) = (error, this_scale, this_offset);
        }
    }
    GroupFit { scale, minimum: -offset }
}
