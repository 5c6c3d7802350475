//! The in-memory form of an affine quantized matrix, independent of files.
//!
//! File layouts are in `layout`, device layouts in `backend`.

use super::qparams::ScaleType;
use super::scheme::Scheme;
use super::{column_order, packing};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::ops::Range;

/// Scales in their stored type, which avoids double rounding.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// IEEE half precision, as this crate's quantizers write.
    F16(Vec<f16>),
    /// bfloat16, as some tools write it.
    BF16(Vec<bf16>),
    /// Single precision, as some tools write it.
    F32(Vec<f32>),
}

impl Scales {
    /// The number of scales.
    pub fn len(&self) -> usize {
        match self {
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range of scales.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::F16(v) => Self::F16(v[range].to_vec()),
            Self::BF16(v) => Self::BF16(v[range].to_vec()),
            Self::F32(v) => Self::F32(v[range].to_vec()),
        }
    }

    /// Little-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::F16(v) => v.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            Self::BF16(v) => v.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            Self::F32(v) => v.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
        }
    }

    /// Decodes scales. Bytes after the last whole one are ignored.
    pub fn from_bytes(scale_type: ScaleType, bytes: &[u8]) -> Self {
        match scale_type {
            ScaleType::F16 => Self::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
            ScaleType::BF16 => {
                Self::BF16(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
            }
            ScaleType::F32 => Self::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        }
    }

    /// Scale `index` as `f32`, exactly.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F16(v) => v[index].to_f32(),
            Self::BF16(v) => v[index].to_f32(),
            Self::F32(v) => v[index],
        }
    }

    /// Bits of a stored scale.
    pub fn bits(&self) -> u32 {
        match self {
            Self::F16(_) | Self::BF16(_) => 16,
            Self::F32(_) => 32,
        }
    }
}

/// A quantized matrix `[rows, cols]` = `[out_features, in_features]`: weight = `(code - zero_point) * scale`, or
/// `code * scale + minimum` for schemes with minimums.
///
/// Codes are unsigned. The codes of a row are a dense bit stream, least significant bit first, in 32-bit words. The
/// stream of every row starts at a word, and the bits after its last code are zero.
///
/// Columns are in input order, unless [`column_order`](Self::column_order) has another one. Groups are
/// contiguous in stored order.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTensor {
    scheme: Scheme,
    rows: usize,
    cols: usize,
    /// `[rows, words_per_row]`
    codes: Vec<u32>,
    /// `[rows, groups_per_row]`, or `[1]` per tensor
    scales: Scales,
    /// `[rows, groups_per_row]`; only for asymmetric schemes
    zero_points: Option<Vec<u8>>,
    /// `[cols]`: stored column `j` holds input column `column_order[j]`; `None` for the identity
    column_order: Option<Vec<u32>>,
    /// As many as scales; only for schemes with minimums
    minimums: Option<Scales>,
}

impl PackedTensor {
    /// Assembles a matrix and checks its parts.
    ///
    /// # Errors
    /// `invalid_checkpoint` if a length does not match scheme and shape, if a zero point or (for ternary
    /// codes) a code is out of range, or if a padding bit is set.
    pub fn new(
        scheme: Scheme,
        rows: usize,
        cols: usize,
        codes: Vec<u32>,
        scales: Scales,
        zero_points: Option<Vec<u8>>,
    ) -> Result<Self> {
        Self::assemble(scheme, rows, cols, codes, scales, zero_points, None)
    }

    /// As [`new`](Self::new), for a scheme with minimums.
    ///
    /// # Errors
    /// As [`new`](Self::new), and `invalid_checkpoint` if the numbers of minimums and scales differ.
    pub fn with_minimums(
        scheme: Scheme,
        rows: usize,
        cols: usize,
        codes: Vec<u32>,
        scales: Scales,
        minimums: Scales,
    ) -> Result<Self> {
        Self::assemble(scheme, rows, cols, codes, scales, None, Some(minimums))
    }

    fn assemble(
        scheme: Scheme,
        rows: usize,
        cols: usize,
        codes: Vec<u32>,
        scales: Scales,
        zero_points: Option<Vec<u8>>,
        minimums: Option<Scales>,
    ) -> Result<Self> {
        let expect = |what: &str, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            Err(Error::invalid_checkpoint(format!(
                "expected {expected} {what} for a {scheme} matrix of {rows} x {cols} but found {found}"
            )))
        };
        let words = scheme.words_per_row(cols);
        expect("code words", rows * words, codes.len())?;
        let scale_count = scheme.granularity().scale_count(rows, cols);
        expect("scales", scale_count, scales.len())?;
        let expected_zeros = if scheme.constant_zero_point().is_none() { scale_count } else { 0 };
        expect("zero points", expected_zeros, zero_points.as_ref().map_or(0, Vec::len))?;
        let expected_minimums = if scheme.has_minimums() { scale_count } else { 0 };
        expect("minimums", expected_minimums, minimums.as_ref().map_or(0, Scales::len))?;
        if let Some(zero) = zero_points.iter().flatten().find(|&&z| u32::from(z) > scheme.max_code()) {
            return Err(Error::invalid_checkpoint(format!(
                "zero point {zero} is above the largest code, {}",
                scheme.max_code()
            )));
        }
        let zero_points = zero_points.filter(|z| !z.is_empty());
        let tensor = Self { scheme, rows, cols, codes, scales, zero_points, minimums, column_order: None };
        tensor.check_codes()?;
        Ok(tensor)
    }

    /// The same codes, but stored column `j` holds input column `order[j]`. The identity is dropped.
    ///
    /// # Errors
    /// `invalid_checkpoint` unless `order` is a permutation of `0..cols`.
    pub fn with_column_order(mut self, order: Vec<u32>) -> Result<Self> {
        self.column_order = column_order::checked(order, self.cols)?;
        Ok(self)
    }

    fn check_codes(&self) -> Result<()> {
        let words = self.scheme.words_per_row(self.cols);
        let used = (self.cols % 32 * self.scheme.storage_bits() as usize) % 32;
        for row in 0..self.rows {
            let stream = &self.codes[row * words..(row + 1) * words];
            if used != 0 && stream[words - 1] >> used != 0 {
                return Err(Error::invalid_checkpoint(format!("row {row} has bits set after its last code")));
            }
            if let Scheme::Ternary { .. } = self.scheme {
                // Both bits set means 3, which is not a ternary code.
                if stream.iter().any(|word| word & (word >> 1) & 0x5555_5555 != 0) {
                    return Err(Error::invalid_checkpoint(format!(
                        "row {row} holds a code above 2, which is not ternary"
                    )));
                }
            }
        }
        Ok(())
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

    /// The code streams, `[rows, words_per_row]`, in stored order.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// The scales, `[rows, groups_per_row]` or `[1]`.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The zero points, `[rows, groups_per_row]`; `None` if the scheme has a constant one.
    pub fn zero_points(&self) -> Option<&[u8]> {
        self.zero_points.as_deref()
    }

    /// The input column of each stored column, `[cols]`; `None` for input order.
    pub fn column_order(&self) -> Option<&[u32]> {
        self.column_order.as_deref()
    }

    /// The group of each input column, `[cols]`, as stored in files with act-order.
    pub fn g_idx(&self) -> Vec<i32> {
        let group_size = self.scheme.granularity().group_size(self.cols).max(1);
        // Files count groups in 32 bits.
        let in_order: Vec<i32> = (0..self.cols).map(|stored| (stored / group_size) as i32).collect();
        let Some(order) = &self.column_order else { return in_order };
        let mut g_idx = vec![0; self.cols];
        column_order::scatter(&in_order, order, &mut g_idx);
        g_idx
    }

    /// The stored position of input column `col`. Slow: for tests and reports.
    pub fn stored_column(&self, col: usize) -> usize {
        match &self.column_order {
            None => col,
            Some(order) => {
                order.iter().position(|&column| column as usize == col).expect("a column of the matrix")
            }
        }
    }

    /// The minimums, as many as scales; `None` if the scheme has none.
    pub fn minimums(&self) -> Option<&Scales> {
        self.minimums.as_ref()
    }

    /// The code of the weight at `(row, col)`, where `col` is an input column. Slow: for tests and reports.
    pub fn code(&self, row: usize, col: usize) -> u32 {
        let col = self.stored_column(col);
        let bits = self.scheme.storage_bits() as usize;
        let words = self.scheme.words_per_row(self.cols);
        let stream = &self.codes[row * words..(row + 1) * words];
        let (word, shift) = (col * bits / 32, col * bits % 32);
        let low = u64::from(stream[word]);
        let high = stream.get(word + 1).map_or(0, |&w| u64::from(w));
        ((((high << 32) | low) >> shift) as u32) & ((1 << bits) - 1)
    }

    /// Writes the codes of a row as bytes in input order; `codes` is `[cols]`.
    ///
    /// # Panics
    /// When the row is not in the matrix or `codes` has another length.
    pub fn unpack_row(&self, row: usize, codes: &mut [u8]) {
        let words = self.scheme.words_per_row(self.cols);
        let stream = &self.codes[row * words..(row + 1) * words];
        match &self.column_order {
            None => packing::unpack_row(stream, self.scheme.storage_bits(), codes),
            Some(order) => {
                let mut stored = vec![0; self.cols];
                packing::unpack_row(stream, self.scheme.storage_bits(), &mut stored);
                column_order::scatter(&stored, order, codes);
            }
        }
    }

    /// The index of scale and zero point for `(row, group)`. Groups are counted in stored order.
    pub fn scale_index(&self, row: usize, group: usize) -> usize {
        match self.scheme.granularity() {
            super::Granularity::Tensor => 0,
            granularity => row * granularity.groups_per_row(self.cols) + group,
        }
    }

    /// Copies rows into a matrix.
    ///
    /// # Panics
    /// When the rows are not in the matrix.
    pub fn copy_rows(&self, rows: Range<usize>) -> Self {
        let words = self.scheme.words_per_row(self.cols);
        let scales = match self.scheme.granularity() {
            super::Granularity::Tensor => 0..1,
            _ => self.scale_index(rows.start, 0)..self.scale_index(rows.end, 0),
        };
        Self {
            scheme: self.scheme,
            rows: rows.len(),
            cols: self.cols,
            codes: self.codes[rows.start * words..rows.end * words].to_vec(),
            scales: self.scales.part(scales.clone()),
            zero_points: self.zero_points.as_ref().map(|zeros| zeros[scales.clone()].to_vec()),
            column_order: self.column_order.clone(),
            minimums: self.minimums.as_ref().map(|minimums| minimums.part(scales)),
        }
    }

    /// Bytes of codes, scales, minimums, zero points (with the bits of codes) and column order.
    pub fn packed_bytes(&self) -> u64 {
        let zero_bits =
            self.zero_points.as_ref().map_or(0, Vec::len) as u64 * u64::from(self.scheme.storage_bits());
        let scale_bytes = |scales: &Scales| scales.len() as u64 * u64::from(scales.bits()) / 8;
        self.codes.len() as u64 * 4
            + scale_bytes(&self.scales)
            + self.minimums.as_ref().map_or(0, scale_bytes)
            + zero_bits.div_ceil(8)
            + self.column_order.as_ref().map_or(0, Vec::len) as u64 * 4
    }
}
