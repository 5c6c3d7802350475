//! Folds the division by AWQ's scales into the preceding norm or the rows of the preceding linear layer.
//!
//! `calibrate` chooses the module.

use crate::dtype::{DType, decode_f32, encode_f32};
use crate::error::{Error, Result};
use crate::quant::packed_tensor::{PackedTensor, Scales};

/// Largest relative rounding of a scale. Half precision rounds normal numbers by less than 0.0005,
/// `BF16` by less than 0.004. More means that a number is beyond its type's range.
const MOST_ROUNDING: f32 = 0.01;

fn stays_near(rounded: f32, wanted: f32) -> bool {
    rounded.is_finite() && (rounded - wanted).abs() <= MOST_ROUNDING * wanted.abs()
}

/// Divides the weight of a norm by `scales`, rounds it to `dtype`, and updates the scales to match the rounded norm.
///
/// If a quotient is out of range, or the norm is 0, the scale becomes 1.
///
/// # Errors
/// As [`encode_f32`], for a type that is not floating point.
///
/// # Panics
/// When the lengths differ.
pub fn divide_norm(norm: &[f32], dtype: DType, scales: &mut [f32]) -> Result<Vec<f32>> {
    assert_eq!(norm.len(), scales.len(), "one scale for each feature");
    let quotients: Vec<f32> = norm.iter().zip(&*scales).map(|(norm, scale)| norm / scale).collect();
    let mut divided = vec![0.0; norm.len()];
    for ((divided, &wanted), &norm) in divided.iter_mut().zip(&quotients).zip(norm) {
        // One at a time, because a type refuses numbers beyond its range.
        let mut bytes = Vec::new();
        let mut rounded = [f32::NAN];
        if encode_f32(dtype, &[wanted], &mut bytes).is_ok() {
            decode_f32(dtype, &bytes, &mut rounded)?;
        }
        *divided = if norm != 0.0 && stays_near(rounded[0], wanted) { rounded[0] } else { norm };
    }
    for ((scale, norm), divided) in scales.iter_mut().zip(norm).zip(&divided) {
        *scale = if *divided == *norm { 1.0 } else { norm / divided };
    }
    Ok(divided)
}

/// Divides each row of a quantized matrix by its scale. Only group scales change; codes stay the same.
///
/// # Errors
/// `non_finite` if a group's scale leaves its type's range.
///
/// # Panics
/// When there is not one scale for each row, or group scales are not by row.
pub fn divide_rows(tensor: &PackedTensor, scales: &[f32]) -> Result<PackedTensor> {
    assert_eq!(tensor.rows(), scales.len(), "one scale for each row");
    assert_eq!(tensor.scales().len() % scales.len(), 0, "scales are by row");
    let groups = tensor.scales().len() / scales.len();
    let scale_type = tensor.scales().scale_type();
    let mut divided = Scales::with_capacity(scale_type, tensor.scales().len());
    for (index, scale) in (0..tensor.scales().len()).map(|index| (index, scales[index / groups])) {
        let wanted = tensor.scales().get(index) / scale;
        let rounded = scale_type.round(wanted)?;
        if !stays_near(rounded, wanted) {
            return Err(Error::new(
                crate::error::ErrorCode::NonFinite,
                format!("row {}: {} cannot hold a scale of {wanted:e}", index / groups, scale_type.dtype()),
            ));
        }
        divided.push(rounded);
    }
    let divided = PackedTensor::new(
        tensor.scheme(),
        tensor.rows(),
        tensor.cols(),
        tensor.codes().to_vec(),
        divided,
        tensor.zero_points().map(<[u8]>::to_vec),
    )?;
    match tensor.column_order() {
        Some(order) => divided.with_column_order(order.to_vec()),
        None => Ok(divided),
    }
}

/// The sharing of v's rows among attention heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadGrouping {
    /// Heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
}

impl HeadGrouping {
    /// The row of v for a feature of attention's output.
    fn row(self, feature: usize) -> usize {
        let (head, place) = (feature / self.head_dim, feature % self.head_dim);
        head / (self.heads / self.kv_heads) * self.head_dim + place
    }

    /// Averages values, `[heads * head_dim]`, over the features that share a row of v.
    pub fn average(self, values: &mut [f32]) {
        let mut sums = vec![0.0; self.kv_heads * self.head_dim];
        for (feature, value) in values.iter().enumerate() {
            sums[self.row(feature)] += value;
        }
        for (feature, value) in values.iter_mut().enumerate() {
            *value = sums[self.row(feature)] / (self.heads / self.kv_heads) as f32;
        }
    }

    /// One value for each row of v, from averaged values.
    pub fn of_rows(self, values: &[f32]) -> Vec<f32> {
        let mut rows = vec![0.0; self.kv_heads * self.head_dim];
        for (feature, value) in values.iter().enumerate() {
            rows[self.row(feature)] = *value;
        }
        rows
    }
}
