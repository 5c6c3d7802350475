//! Builds a [`PackedTensor`] row by row, so that the whole matrix is never in floating point.

use super::packed_tensor::{PackedTensor, Scales};
use super::packing;
use super::qparams::ScaleType;
use super::scheme::{Granularity, Scheme};
use crate::error::{Error, ErrorCode, Result};

/// A packed matrix under construction, from the first row to the last.
#[derive(Debug)]
pub struct PackedBuilder {
    scheme: Scheme,
    rows: usize,
    cols: usize,
    codes: Vec<u32>,
    scales: Scales,
    zero_points: Vec<u8>,
}

impl PackedBuilder {
    /// Starts a `[rows, cols]` matrix.
    ///
    /// # Errors
    /// `invalid_argument` for an empty matrix or group; `out_of_memory` if the codes cannot
    /// be addressed.
    pub fn new(scheme: Scheme, rows: usize, cols: usize, scale_type: ScaleType) -> Result<Self> {
        check_shape(scheme, rows, cols)?;
        let too_large = || {
            Error::new(
                ErrorCode::OutOfMemory,
                format!("a matrix of {rows} x {cols} is too large for this device"),
            )
        };
        // The largest parts are 8-bit codes and 4-byte scales.
        rows.checked_mul(cols).and_then(|n| n.checked_mul(4)).ok_or_else(too_large)?;
        let scale_count = scheme.granularity().scale_count(rows, cols);
        let zero_count = if scheme.constant_zero_point().is_none() { scale_count } else { 0 };
        let mut codes = Vec::new();
        codes.try_reserve_exact(rows * scheme.words_per_row(cols)).map_err(|_| too_large())?;
        Ok(Self {
            scheme,
            rows,
            cols,
            codes,
            scales: Scales::with_capacity(scale_type, scale_count),
            zero_points: Vec::with_capacity(zero_count),
        })
    }

    /// Number format.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Finished rows.
    pub fn rows_done(&self) -> usize {
        self.codes.len() / self.scheme.words_per_row(self.cols)
    }

    /// Appends the codes of a row.
    ///
    /// # Panics
    /// When the matrix is full or the row has another width.
    pub fn push_codes(&mut self, codes: &[u8]) {
        assert_eq!(codes.len(), self.cols, "one code for each column");
        assert!(self.rows_done() < self.rows, "more rows than the matrix has");
        let start = self.codes.len();
        self.codes.resize(start + self.scheme.words_per_row(self.cols), 0);
        packing::pack_row(codes, self.scheme.storage_bits(), &mut self.codes[start..]);
    }

    /// Appends the next scale, ordered by row and group.
    pub fn push_scale(&mut self, scale: f32) {
        self.scales.push(scale);
    }

    /// Appends the next zero point of an asymmetric scheme, in the order of scales.
    pub fn push_zero_point(&mut self, zero_point: u8) {
        self.zero_points.push(zero_point);
    }

    /// Copies the last `rows` rows into a matrix.
    ///
    /// # Errors
    /// `invalid_checkpoint` if scales or zero points are missing.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn last_rows(&self, rows: usize) -> Result<PackedTensor> {
        let start = self.rows_done() - rows;
        let scales_at = |row: usize| match self.scheme.granularity() {
            Granularity::Tensor => 0,
            granularity => row * granularity.groups_per_row(self.cols),
        };
        let codes = self.codes[start * self.scheme.words_per_row(self.cols)..].to_vec();
        let scales = self.scales.part(scales_at(start)..self.scales.len());
        let zero_points =
            (!self.zero_points.is_empty()).then(|| self.zero_points[scales_at(start)..].to_vec());
        PackedTensor::new(self.scheme, rows, self.cols, codes, scales, zero_points)
    }

    /// The finished tensor.
    ///
    /// # Errors
    /// `invalid_checkpoint` if rows, scales or zero points are missing.
    pub fn finish(self) -> Result<PackedTensor> {
        let zero_points = self.scheme.constant_zero_point().is_none().then_some(self.zero_points);
        PackedTensor::new(self.scheme, self.rows, self.cols, self.codes, self.scales, zero_points)
    }

    /// The finished tensor with given scales and zero points, if none were pushed.
    ///
    /// # Errors
    /// As [`PackedBuilder::finish`].
    pub fn finish_with(self, scales: Scales, zero_points: Option<Vec<u8>>) -> Result<PackedTensor> {
        debug_assert!(self.scales.is_empty() && self.zero_points.is_empty(), "pushed scales would be lost");
        PackedTensor::new(self.scheme, self.rows, self.cols, self.codes, scales, zero_points)
    }
}

/// Refuses impossible shapes and groups.
pub(crate) fn check_shape(scheme: Scheme, rows: usize, cols: usize) -> Result<()> {
    if rows == 0 || cols == 0 {
        return Err(Error::invalid_argument(format!(
            "expected a matrix with elements but found {rows} x {cols}"
        )));
    }
    if scheme.granularity() == Granularity::Group(0) {
        return Err(Error::invalid_argument("expected a group size of at least 1 but found 0"));
    }
    Ok(())
}
