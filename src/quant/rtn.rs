//! Rounding to nearest: scales from each group's range, and the nearest code for each weight.
//!
//! The baseline and fallback of other methods. The rules are in [`qparams`](super::qparams).
//! [`ParamsEncoder`] encodes with given scales: dequantized weights get their former codes.

use super::builder::PackedBuilder;
use super::column_order;
use super::packed_tensor::{PackedTensor, Scales};
use super::qparams::{QParams, ScaleType, encode_group, non_finite_weight, range};
use super::scheme::{Granularity, Scheme};
use super::ternary::TernaryQuantizer;
use crate::error::{Context, Error, Result};

/// Quantizes a matrix as its rows arrive.
#[derive(Debug)]
pub struct RtnQuantizer {
    builder: PackedBuilder,
    scale_type: ScaleType,
    /// `[cols]`: the codes of the current row.
    codes: Vec<u8>,
}

impl RtnQuantizer {
    /// Starts a `[rows, cols]` matrix. The last group of a row may be shorter than the others.
    ///
    /// # Errors
    /// `invalid_argument` for a ternary scheme, for one scale per tensor, and for an empty matrix or group.
    pub fn new(scheme: Scheme, rows: usize, cols: usize, scale_type: ScaleType) -> Result<Self> {
        match scheme {
            Scheme::Integer { granularity: Granularity::Channel | Granularity::Group(_), .. } => {}
            _ => {
                return Err(Error::invalid_argument(format!(
                    "rounding to nearest makes integer codes per channel or per group, not {scheme}"
                )));
            }
        }
        let builder = PackedBuilder::new(scheme, rows, cols, scale_type)?;
        Ok(Self { builder, scale_type, codes: vec![0; cols] })
    }

    /// Quantizes the next rows: `weights` is `[n, cols]`.
    ///
    /// # Errors
    /// `non_finite` with row and column of a NaN, an infinity, or a group whose scale is out of range.
    ///
    /// # Panics
    /// When `weights` is not whole rows or has more rows than the matrix.
    pub fn push_rows(&mut self, weights: &[f32]) -> Result<()> {
        let Scheme::Integer { bits, granularity, symmetric } = self.builder.scheme() else {
            unreachable!("`new` takes integer schemes only");
        };
        let cols = self.builder.cols();
        assert_eq!(weights.len() % cols, 0, "weights come in whole rows");
        let group_size = granularity.group_size(cols);
        for row in weights.chunks_exact(cols) {
            let row_index = self.builder.rows_done();
            for (group, (weights, codes)) in
                row.chunks(group_size).zip(self.codes.chunks_mut(group_size)).enumerate()
            {
                let first_col = group * group_size;
                let (min, max) = range(weights)
                    .map_err(|index| non_finite_weight(weights[index], row_index, first_col + index))?;
                let q = QParams::from_range(min, max, bits, symmetric, self.scale_type)
                    .context_with(|| format!("row {row_index}, columns from {first_col}"))?;
                encode_group(weights, q.scale, q.zero_point, bits.midpoint(), bits.max_code(), codes);
                self.builder.push_scale(q.scale);
                if !symmetric {
                    self.builder.push_zero_point(q.zero_point);
                }
            }
            self.builder.push_codes(&self.codes);
        }
        Ok(())
    }

    /// Finished rows.
    pub fn rows_done(&self) -> usize {
        self.builder.rows_done()
    }

    /// Copies the last `rows` rows into a matrix.
    ///
    /// # Errors
    /// None in practice; the type of [`PackedTensor::new`].
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn last_rows(&self, rows: usize) -> Result<PackedTensor> {
        self.builder.last_rows(rows)
    }

    /// The quantized matrix.
    ///
    /// # Errors
    /// `invalid_checkpoint` when rows are missing.
    pub fn finish(self) -> Result<PackedTensor> {
        self.builder.finish()
    }
}

/// Quantizes a whole matrix, `[rows, cols]`, without calibration: to nearest, or ternary by mean magnitude.
///
/// # Errors
/// As [`RtnQuantizer`] and [`TernaryQuantizer`].
///
/// # Panics
/// When `weights` is not `[rows, cols]`.
pub fn to_nearest(
    scheme: Scheme,
    (rows, cols): (usize, usize),
    scale_type: ScaleType,
    weights: &[f32],
) -> Result<PackedTensor> {
    assert_eq!(weights.len(), rows * cols, "as many weights as the shape says");
    if scheme.is_ternary() {
        let mut quantizer = TernaryQuantizer::new(scheme.granularity(), rows, cols, scale_type, None)?;
        quantizer.observe_rows(weights)?;
        quantizer.push_rows(weights)?;
        return quantizer.finish();
    }
    let mut quantizer = RtnQuantizer::new(scheme, rows, cols, scale_type)?;
    quantizer.push_rows(weights)?;
    quantizer.finish()
}

/// Encodes a matrix with given scales and zero points.
///
/// Weights that were dequantized from a [`PackedTensor`] and stored as `F32` or `F16` get their former codes, with two
/// exceptions in which the stored weight is ambiguous: groups with scale 0 whose codes are not
/// their zero point, and `F16` weights below 2^-24.
#[derive(Debug)]
pub struct ParamsEncoder {
    builder: PackedBuilder,
    /// `[rows, groups_per_row]` or `[1]`
    scales: Scales,
    /// `[rows, groups_per_row]`
    zero_points: Option<Vec<u8>>,
    /// `[cols]`; see [`PackedTensor::column_order`]
    column_order: Option<Vec<u32>>,
    /// `[cols]`: a row in stored order, if columns are reordered
    stored: Vec<f32>,
    codes: Vec<u8>,
}

impl ParamsEncoder {
    /// Starts a `[rows, cols]` matrix of any scheme.
    ///
    /// # Errors
    /// `invalid_argument` for an empty matrix or group; `invalid_checkpoint` if the number of scales or zero points
    /// is wrong; `non_finite` for a scale that is NaN or infinite; `unsupported_format` for a scheme with minimums.
    pub fn new(
        scheme: Scheme,
        rows: usize,
        cols: usize,
        scales: Scales,
        zero_points: Option<Vec<u8>>,
    ) -> Result<Self> {
        if scheme.has_minimums() {
            return Err(Error::unsupported_format(format!(
                "weights cannot be encoded as {scheme} again: its minimums are not recorded"
            )));
        }
        let builder = PackedBuilder::new(scheme, rows, cols, scales.scale_type())?;
        let expected = scheme.granularity().scale_count(rows, cols);
        let zeros = if scheme.constant_zero_point().is_none() { expected } else { 0 };
        let found_zeros = zero_points.as_ref().map_or(0, Vec::len);
        if scales.len() != expected || found_zeros != zeros {
            return Err(Error::invalid_checkpoint(format!(
                "expected {expected} scales and {zeros} zero points for a {scheme} matrix of {rows} x {cols} but \
                 found {} and {found_zeros}",
                scales.len()
            )));
        }
        if let Some(index) = (0..scales.len()).find(|&index| !scales.get(index).is_finite()) {
            return Err(Error::new(
                crate::error::ErrorCode::NonFinite,
                format!("expected finite scales but found {} at index {index}", scales.get(index)),
            ));
        }
        Ok(Self {
            builder,
            scales,
            zero_points,
            column_order: None,
            stored: Vec::new(),
            codes: vec![0; cols],
        })
    }

    /// Sets the stored order of columns, as [`PackedTensor::with_column_order`].
    ///
    /// # Errors
    /// `invalid_checkpoint` unless `order` is a permutation of `0..cols`.
    pub fn with_column_order(mut self, order: Vec<u32>) -> Result<Self> {
        self.column_order = column_order::checked(order, self.builder.cols())?;
        self.stored = vec![0.0; self.column_order.as_ref().map_or(0, Vec::len)];
        Ok(self)
    }

    /// Encodes the next rows: `weights` is `[n, cols]`.
    ///
    /// # Errors
    /// `non_finite` naming row and column of a NaN or an infinity.
    ///
    /// # Panics
    /// When `weights` is not whole rows or has more rows than the matrix.
    pub fn push_rows(&mut self, weights: &[f32]) -> Result<()> {
        let scheme = self.builder.scheme();
        let granularity = scheme.granularity();
        let midpoint = match scheme {
            Scheme::Integer { bits, .. } => bits.midpoint(),
            Scheme::IntegerMinimum { .. } => 0,
            Scheme::Ternary { .. } => 1,
        };
        let cols = self.builder.cols();
        assert_eq!(weights.len() % cols, 0, "weights come in whole rows");
        let group_size = granularity.group_size(cols);
        let groups = granularity.groups_per_row(cols);
        for row in weights.chunks_exact(cols) {
            let row_index = self.builder.rows_done();
            if let Some(col) = row.iter().position(|w| !w.is_finite()) {
                return Err(non_finite_weight(row[col], row_index, col));
            }
            let row = match &self.column_order {
                None => row,
                Some(order) => {
                    column_order::gather(row, order, &mut self.stored);
                    &self.stored
                }
            };
            for (group, (weights, codes)) in
                row.chunks(group_size).zip(self.codes.chunks_mut(group_size)).enumerate()
            {
                let index = if granularity == Granularity::Tensor { 0 } else { row_index * groups + group };
                let zero_point = self.zero_points.as_ref().map_or(midpoint as u8, |z| z[index]);
                encode_group(weights, self.scales.get(index), zero_point, midpoint, scheme.max_code(), codes);
            }
            self.builder.push_codes(&self.codes);
        }
        Ok(())
    }

    /// The encoded matrix with the given scales and zero points.
    ///
    /// # Errors
    /// `invalid_checkpoint` when rows are missing or a zero point is above the largest code.
    pub fn finish(self) -> Result<PackedTensor> {
        let tensor = self.builder.finish_with(self.scales, self.zero_points)?;
        match self.column_order {
            None => Ok(tensor),
            Some(order) => tensor.with_column_order(order),
        }
    }
}

/// Encodes a whole `[rows, cols]` matrix with known scales and zero points; see [`ParamsEncoder`].
///
/// # Errors
/// As [`ParamsEncoder`].
///
/// # Panics
/// When `weights` is not `rows * cols` long.
pub fn encode_with_params(
    scheme: Scheme,
    rows: usize,
    cols: usize,
    weights: &[f32],
    scales: Scales,
    zero_points: Option<Vec<u8>>,
) -> Result<PackedTensor> {
    let mut encoder = ParamsEncoder::new(scheme, rows, cols, scales, zero_points)?;
    encoder.push_rows(weights)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::super::dequantize;
    use super::super::scheme::Bits;
    use super::*;
    use crate::error::ErrorCode;
    use proptest::prelude::*;

    fn quantize(scheme: Scheme, cols: usize, weights: &[f32], scale_type: ScaleType) -> PackedTensor {
        let mut quantizer = RtnQuantizer::new(scheme, weights.len() / cols, cols, scale_type).unwrap();
        // Row by row and all at once must be the same; the property test below compares.
        quantizer.push_rows(weights).unwrap();
        quantizer.finish().unwrap()
    }

    fn integer(bits: Bits, granularity: Granularity, symmetric: bool) -> Scheme {
        Scheme::Integer { bits, granularity, symmetric }
    }

    #[test]
    fn a_small_matrix_by_hand() {
        let scheme = integer(Bits::Four, Granularity::Group(2), true);
        // Two groups and a tail of one column; scales 0.2, 1 (all zero) and 0.4.
        let tensor = quantize(scheme, 5, &[1.5, -0.3, 0.0, 0.0, -3.0], ScaleType::F32);
        let codes: Vec<u32> = (0..5).map(|col| tensor.code(0, col)).collect();
        // 1.5/0.2 = 7.5 rounds to 8 and is clamped to 7; -0.3/0.2 = -1.5 rounds to -2; -3/0.4 = -7.5 rounds to -8.
        assert_eq!(codes, [15, 6, 8, 8, 0]);
        assert_eq!(tensor.scales(), &Scales::F32(vec![0.2, 1.0, 0.4]));
    }

    #[test]
    fn what_cannot_be_quantized_is_an_error_that_says_where() {
        let scheme = integer(Bits::Four, Granularity::Group(2), true);
        let mut quantizer = RtnQuantizer::new(scheme, 2, 3, ScaleType::F16).unwrap();
        let error = quantizer.push_rows(&[0.0, 1.0, 2.0, 0.0, 0.0, f32::NAN]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NonFinite);
        assert_eq!(error.to_string(), "expected finite weights but found NaN at row 1, column 2");

        let mut quantizer = RtnQuantizer::new(scheme, 1, 3, ScaleType::F16).unwrap();
        let error = quantizer.push_rows(&[0.0, 1.0, 1e9]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NonFinite);
        assert!(
            error.to_string().starts_with("row 0, columns from 2: the weights need a scale of 1.3"),
            "{error}"
        );

        assert!(
            RtnQuantizer::new(Scheme::Ternary { granularity: Granularity::Tensor }, 1, 3, ScaleType::F16)
                .is_err()
        );
        assert!(
            RtnQuantizer::new(integer(Bits::Four, Granularity::Tensor, true), 1, 3, ScaleType::F16).is_err()
        );
        assert!(
            RtnQuantizer::new(integer(Bits::Four, Granularity::Group(0), true), 1, 3, ScaleType::F16)
                .is_err()
        );
        assert!(RtnQuantizer::new(scheme, 0, 3, ScaleType::F16).is_err());
        assert!(RtnQuantizer::new(scheme, 1, 3, ScaleType::F16).unwrap().finish().is_err());
    }

    fn any_scheme() -> impl Strategy<Value = Scheme> {
        let bits = prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]);
        let granularity = prop_oneof![Just(Granularity::Channel), (1usize..9).prop_map(Granularity::Group)];
        (bits, granularity, any::<bool>())
            .prop_map(|(bits, granularity, symmetric)| integer(bits, granularity, symmetric))
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter_and_dequantized_weights_get_their_codes_back(
            scheme in any_scheme(),
            scale_type in prop::sample::select(vec![ScaleType::F16, ScaleType::BF16, ScaleType::F32]),
            cols in 1usize..20,
            rows in 1usize..4,
            exponent in -12i32..8,
            seed in prop::collection::vec(-1f32..1.0, 80),
        ) {
            let weights: Vec<f32> = seed[..rows * cols].iter().map(|w| w * 2f32.powi(exponent)).collect();
            let tensor = quantize(scheme, cols, &weights, scale_type);
            let mut by_rows = RtnQuantizer::new(scheme, rows, cols, scale_type).unwrap();
            for row in weights.chunks(cols) {
                by_rows.push_rows(row).unwrap();
            }
            prop_assert_eq!(&by_rows.finish().unwrap(), &tensor);

            let mut restored = vec![0.0; weights.len()];
            dequantize::rows(&tensor, 0..rows, &mut restored);
            let again = |weights: &[f32]| encode_with_params(
                scheme, rows, cols, weights, tensor.scales().clone(), tensor.zero_points().map(<[u8]>::to_vec),
            ).unwrap();
            prop_assert_eq!(&again(&restored), &tensor);
            let order: Vec<u32> = (0..cols as u32).rev().collect();
            let reordered = tensor.clone().with_column_order(order.clone()).unwrap();
            dequantize::rows(&reordered, 0..rows, &mut restored);
            let mut encoder = ParamsEncoder::new(
                scheme, rows, cols, tensor.scales().clone(), tensor.zero_points().map(<[u8]>::to_vec),
            ).unwrap().with_column_order(order).unwrap();
            encoder.push_rows(&restored).unwrap();
            prop_assert_eq!(encoder.finish().unwrap(), reordered);
            dequantize::rows(&tensor, 0..rows, &mut restored);
            if scale_type == ScaleType::F16 {
                let halves: Vec<f32> = restored.iter().map(|&w| half::f16::from_f32(w).to_f32()).collect();
                prop_assert_eq!(&again(&halves), &tensor);
            }
        }
    }
}
