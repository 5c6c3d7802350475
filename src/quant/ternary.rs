//! BitNet b1.58: weights become -1, 0 or 1 times their mean magnitude.
//!
//! Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits" (2024). For a matrix `W`
//!
//! 1. `s = max(mean |W|, 1e-5)`
//! 2. `code = clamp(round(W * (1 / s)), -1, 1)`, rounding half to even
//! 3. the quantized weight is `code * s`
//!
//! Departures:
//!
//! 1. `s` is rounded to its stored type before step 2. Use [`ScaleType::F32`] for one scale per tensor: it
//!    costs four bytes and avoids rounding.
//! 2. `s` may belong to a row instead of the whole matrix ([`Granularity::Channel`]).
//! 3. A sparsity threshold `t` replaces the rounding: weights with `|w| < t * s` become 0, all others the sign of `w`.
//!    Plain rounding is a threshold of 0.5 at which ties become 0. The scale stays the mean over all weights.
//!
//! The mean needs all rows before the first code, so every row is passed twice. The method is for
//! weights that were trained for it and ruins an ordinary checkpoint.

use super::builder::PackedBuilder;
use super::packed_tensor::PackedTensor;
use super::qparams::{ScaleType, non_finite_weight};
use super::scheme::{Granularity, Scheme};
use crate::error::{Error, Result};
use multiversion::multiversion;

/// The smallest mean magnitude, so that an all-zero matrix has a scale.
pub const MIN_ABS_MEAN: f32 = 1e-5;

/// Makes ternary codes in two passes over a matrix: [`observe_rows`](Self::observe_rows) for all rows, then
/// [`push_rows`](Self::push_rows) for all rows.
#[derive(Debug)]
pub struct TernaryQuantizer {
    builder: PackedBuilder,
    scale_type: ScaleType,
    sparsity_threshold: Option<f32>,
    rows_observed: usize,
    /// Sum of magnitudes: of the whole matrix, or `[rows]` per channel.
    sums: Vec<f64>,
    codes: Vec<u8>,
}

impl TernaryQuantizer {
    /// Starts a `[rows, cols]` matrix.
    ///
    /// # Errors
    /// `invalid_argument` for scales per group, an empty matrix, or a threshold that is negative or not finite.
    pub fn new(
        granularity: Granularity,
        rows: usize,
        cols: usize,
        scale_type: ScaleType,
        sparsity_threshold: Option<f32>,
    ) -> Result<Self> {
        if let Granularity::Group(_) = granularity {
            return Err(Error::invalid_argument(
                "ternary weights have a scale per tensor or per channel, not per group",
            ));
        }
        if let Some(threshold) = sparsity_threshold.filter(|t| !t.is_finite() || *t < 0.0) {
            return Err(Error::invalid_argument(format!(
                "expected a sparsity threshold of 0 or more but found {threshold}"
            )));
        }
        let builder = PackedBuilder::new(Scheme::Ternary { granularity }, rows, cols, scale_type)?;
        let sums = if granularity == Granularity::Tensor { vec![0.0] } else { Vec::with_capacity(rows) };
        Ok(Self { builder, scale_type, sparsity_threshold, rows_observed: 0, sums, codes: vec![0; cols] })
    }

    /// First pass: adds the next rows, `[n, cols]`.
    ///
    /// # Errors
    /// `non_finite` with row and column of a NaN or an infinity.
    ///
    /// # Panics
    /// When `weights` is not whole rows or has more rows than the matrix.
    pub fn observe_rows(&mut self, weights: &[f32]) -> Result<()> {
        let cols = self.builder.cols();
        assert_eq!(weights.len() % cols, 0, "weights come in whole rows");
        for row in weights.chunks_exact(cols) {
            assert!(self.rows_observed < self.builder.rows(), "more rows than the matrix has");
            if let Some(col) = row.iter().position(|w| !w.is_finite()) {
                return Err(non_finite_weight(row[col], self.rows_observed, col));
            }
            let sum = sum_of_magnitudes(row);
            match self.granularity() {
                Granularity::Tensor => self.sums[0] += sum,
                _ => self.sums.push(sum),
            }
            self.rows_observed += 1;
        }
        Ok(())
    }

    /// Second pass: encodes the next rows, `[n, cols]`.
    ///
    /// # Errors
    /// `non_finite` for a NaN, an infinity, or a scale beyond its type's range.
    ///
    /// # Panics
    /// When the first pass is incomplete, or `weights` is not whole rows or has more rows than the matrix.
    pub fn push_rows(&mut self, weights: &[f32]) -> Result<()> {
        let (rows, cols) = (self.builder.rows(), self.builder.cols());
        assert_eq!(self.rows_observed, rows, "every row is observed before the first is encoded");
        assert_eq!(weights.len() % cols, 0, "weights come in whole rows");
        for row in weights.chunks_exact(cols) {
            let row_index = self.builder.rows_done();
            if let Some(col) = row.iter().position(|w| !w.is_finite()) {
                return Err(non_finite_weight(row[col], row_index, col));
            }
            let (mean, first) = match self.granularity() {
                Granularity::Tensor => (self.sums[0] / (rows as f64 * cols as f64), row_index == 0),
                _ => (self.sums[row_index] / cols as f64, true),
            };
            let scale = self.scale_type.round((mean as f32).max(MIN_ABS_MEAN))?;
            if first {
                self.builder.push_scale(scale);
            }
            encode_row(row, scale, self.sparsity_threshold, &mut self.codes);
            self.builder.push_codes(&self.codes);
        }
        Ok(())
    }

    /// The quantized matrix.
    ///
    /// # Errors
    /// `invalid_checkpoint` if rows are missing.
    pub fn finish(self) -> Result<PackedTensor> {
        self.builder.finish()
    }

    fn granularity(&self) -> Granularity {
        self.builder.scheme().granularity()
    }
}

/// Eight running sums in a fixed order, so that the loop vectorizes and the result is the same on every target.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_of_magnitudes(row: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (chunks, rest) = row.as_chunks::<8>();
    for chunk in chunks {
        for (lane, w) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(w.abs());
        }
    }
    for (lane, w) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(w.abs());
    }
    lanes.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn encode_row(row: &[f32], scale: f32, sparsity_threshold: Option<f32>, codes: &mut [u8]) {
    match sparsity_threshold {
        None => {
            let inverse = 1.0 / scale;
            for (code, &w) in codes.iter_mut().zip(row) {
                // Half to even: exactly 0.5 is still zero.
                let scaled = w * inverse;
                *code = 1 + u8::from(scaled > 0.5) - u8::from(scaled < -0.5);
            }
        }
        Some(threshold) => {
            let limit = threshold * scale;
            for (code, &w) in codes.iter_mut().zip(row) {
                let kept = w.abs() >= limit;
                *code = 1 + u8::from(kept && w > 0.0) - u8::from(kept && w < 0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packed_tensor::Scales;
    use super::super::rtn::encode_with_params;
    use super::super::{dequantize, stats::WeightError};
    use super::*;
    use proptest::prelude::*;

    fn quantize(
        granularity: Granularity,
        cols: usize,
        weights: &[f32],
        scale_type: ScaleType,
        threshold: Option<f32>,
    ) -> PackedTensor {
        let rows = weights.len() / cols;
        let mut quantizer = TernaryQuantizer::new(granularity, rows, cols, scale_type, threshold).unwrap();
        quantizer.observe_rows(weights).unwrap();
        quantizer.push_rows(weights).unwrap();
        quantizer.finish().unwrap()
    }

    fn signs(tensor: &PackedTensor) -> Vec<i32> {
        (0..tensor.rows())
            .flat_map(|row| (0..tensor.cols()).map(move |col| (row, col)))
            .map(|(row, col)| tensor.code(row, col) as i32 - 1)
            .collect()
    }

    #[test]
    fn small_matrices_by_hand() {
        // mean |W| = 1, so 0.5 is a tie and becomes zero.
        let weights = [0.5, -0.5, 2.0, -1.0, 0.51, -0.51, 1.98, -1.0];
        let tensor = quantize(Granularity::Tensor, 4, &weights, ScaleType::F32, None);
        assert_eq!(tensor.scales(), &Scales::F32(vec![1.0]));
        assert_eq!(signs(&tensor), [0, 0, 1, -1, 1, -1, 1, -1]);

        // At a threshold of 0.5 the ties are kept; at 1 only the large ones are.
        let tensor = quantize(Granularity::Tensor, 4, &weights, ScaleType::F32, Some(0.5));
        assert_eq!(signs(&tensor), [1, -1, 1, -1, 1, -1, 1, -1]);
        let tensor = quantize(Granularity::Tensor, 4, &weights, ScaleType::F32, Some(1.0));
        assert_eq!(signs(&tensor), [0, 0, 1, -1, 0, 0, 1, -1]);

        let tensor = quantize(Granularity::Channel, 2, &[4.0, 2.0, -0.25, 0.75], ScaleType::F16, None);
        assert_eq!((0..2).map(|i| tensor.scales().get(i)).collect::<Vec<_>>(), [3.0, 0.5]);
        assert_eq!(signs(&tensor), [1, 1, 0, 1]);
    }

    #[test]
    fn a_matrix_of_zeros_stays_zero() {
        let tensor = quantize(Granularity::Tensor, 3, &[0.0; 6], ScaleType::F32, None);
        assert_eq!(signs(&tensor), [0; 6]);
        assert_eq!(tensor.scales().get(0), MIN_ABS_MEAN);
    }

    #[test]
    fn bad_arguments_and_weights_are_errors() {
        let new =
            |granularity, threshold| TernaryQuantizer::new(granularity, 1, 2, ScaleType::F32, threshold);
        assert!(new(Granularity::Group(2), None).is_err());
        assert!(new(Granularity::Tensor, Some(-0.1)).is_err());
        assert!(new(Granularity::Tensor, Some(f32::NAN)).is_err());
        let error = new(Granularity::Tensor, None).unwrap().observe_rows(&[1.0, f32::INFINITY]).unwrap_err();
        assert_eq!(error.to_string(), "expected finite weights but found inf at row 0, column 1");
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter_and_codes_come_back(
            weights in prop::collection::vec(-1f32..1.0, 36),
            channel: bool,
            threshold in prop::option::of(0f32..1.5),
        ) {
            let granularity = if channel { Granularity::Channel } else { Granularity::Tensor };
            let tensor = quantize(granularity, 9, &weights, ScaleType::F32, threshold);
            let mut by_rows = TernaryQuantizer::new(granularity, 4, 9, ScaleType::F32, threshold).unwrap();
            for row in weights.chunks(9) {
                by_rows.observe_rows(row).unwrap();
            }
            for row in weights.chunks(9) {
                by_rows.push_rows(row).unwrap();
            }
            prop_assert_eq!(&by_rows.finish().unwrap(), &tensor);

            let mut restored = vec![0.0; 36];
            dequantize::rows(&tensor, 0..4, &mut restored);
            let again =
                encode_with_params(tensor.scheme(), 4, 9, &restored, tensor.scales().clone(), None).unwrap();
            prop_assert_eq!(&again, &tensor);

            let mut stats = WeightError::default();
            stats.add_rows(&weights, &tensor, 0..4);
            let zeros = signs(&tensor).iter().filter(|&&sign| sign == 0).count();
            prop_assert_eq!(stats.sparsity(), zeros as f64 / 36.0);
        }
    }
}
