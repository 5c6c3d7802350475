//! Layout of matrix rows in device memory.
//!
//! A row is a sequence of units; `shaders/shared/weights.wgsl` defines how a unit holds values. Every group that shares
//! a scale begins at a new unit, and its last unit is padded with zeros.

use crate::backend::WeightFormat;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quant::{Coding, Scheme};

/// Encoding of values; the numbers match the shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Values {
    F32,
    F16,
    BF16,
    /// Codes of 2, 4 or 8 bits.
    Codes(u32),
}

impl Values {
    /// `FORMAT` in the shaders.
    pub(super) fn format(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 2,
            Self::Codes(_) => 3,
        }
    }

    /// `BITS` in the shaders: bits per value.
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::Codes(bits) => bits,
        }
    }

    /// 32-bit words per unit.
    pub(super) fn unit_words(self) -> usize {
        (self.bits() as usize / 8).max(1)
    }

    /// Columns per unit: 4, 8 or 16.
    pub(super) fn unit_columns(self) -> usize {
        32 * self.unit_words() / self.bits() as usize
    }
}

/// The layout of a row. Weights of equal layout can share rounded activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Units {
    pub(super) values: Values,
    /// `None` for dense values.
    pub(super) coding: Option<Coding>,
    pub(super) cols: usize,
    /// Columns that share a scale; the last group may have fewer.
    pub(super) group_size: usize,
    pub(super) groups: usize,
    /// Units of each group except the last.
    pub(super) units_per_group: usize,
    /// Units per row.
    pub(super) units: usize,
}

impl Units {
    /// The layout of `cols` columns.
    ///
    /// # Errors
    /// `invalid_argument` for zero columns, empty groups, or too many columns; `unsupported_format` for a format that
    /// kernels cannot read.
    pub(super) fn new(cols: usize, format: WeightFormat) -> Result<Self> {
        let (values, group_size) = match format {
            WeightFormat::Dense(DType::F32) => (Values::F32, cols),
            WeightFormat::Dense(DType::F16) => (Values::F16, cols),
            WeightFormat::Dense(DType::BF16) => (Values::BF16, cols),
            WeightFormat::Dense(other) => {
                return Err(Error::unsupported_format(format!(
                    "expected a weight of F32, F16 or BF16 values but found {other}"
                )));
            }
            WeightFormat::Packed(coding) if coding.affine().is_some_and(Scheme::has_minimums) => {
                return Err(Error::unsupported_format(format!(
                    "weights with a minimum for each group ({coding}) do not run on a GPU yet"
                )));
            }
            // 3-bit codes are stored in 4 bits.
            WeightFormat::Packed(coding) => {
                (Values::Codes(coding.code_bits().next_power_of_two()), coding.granularity().group_size(cols))
            }
        };
        if cols == 0 || group_size == 0 || cols > u32::MAX as usize / 64 {
            return Err(Error::invalid_argument(format!(
                "a weight cannot have {cols} columns in groups of {group_size}"
            )));
        }
        let group_size = group_size.min(cols);
        let groups = cols.div_ceil(group_size);
        let units_per_group = group_size.div_ceil(values.unit_columns());
        let last = cols - (groups - 1) * group_size;
        let units = (groups - 1) * units_per_group + last.div_ceil(values.unit_columns());
        let coding = match format {
            WeightFormat::Dense(_) => None,
            WeightFormat::Packed(coding) => Some(coding),
        };
        Ok(Self { values, coding, cols, group_size, groups, units_per_group, units })
    }

    /// 32-bit words per row.
    pub(super) fn row_words(&self) -> usize {
        self.units * self.values.unit_words()
    }

    /// Words of four rounded activations per row, including padding.
    pub(super) fn quads(&self) -> usize {
        self.units * self.values.unit_columns() / 4
    }

    /// Whether units can extend beyond their group, or rows of activations can start inside a quad.
    pub(super) fn is_ragged(&self) -> bool {
        let columns = self.values.unit_columns();
        !self.cols.is_multiple_of(columns) || (self.groups > 1 && !self.group_size.is_multiple_of(columns))
    }

    /// Writes a row of little-endian dense values to `words`.
    pub(super) fn arrange_dense(&self, row: &[u8], words: &mut [u32]) {
        words.fill(0);
        for (word, bytes) in words.iter_mut().zip(row.chunks(4)) {
            let mut whole = [0; 4];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_le_bytes(whole);
        }
    }

    /// Packs a row of codes, one per byte, into `words`. Code `c` of a unit goes to byte `c % 4`, at bit `c / 4 * bits`
    /// of that byte.
    pub(super) fn arrange_codes(&self, codes: &[u8], words: &mut [u32]) {
        words.fill(0);
        let bits = self.values.bits() as usize;
        let columns = self.values.unit_columns();
        for (group, codes) in codes.chunks(self.group_size).enumerate() {
            let units = words[group * self.units_per_group..].iter_mut();
            for (word, codes) in units.zip(codes.chunks(columns)) {
                for (c, &code) in codes.iter().enumerate() {
                    *word |= u32::from(code) << (c % 4 * 8 + c / 4 * bits);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bits, Granularity, Scheme};

    #[test]
    fn units_of_every_format() {
        let packed = |bits, group| {
            let granularity = Granularity::Group(group);
            WeightFormat::Packed(Scheme::Integer { bits, granularity, symmetric: true }.into())
        };
        // Format, columns: units, words per row, quads, ragged.
        let cases = [
            (WeightFormat::Dense(DType::F32), 7, 2, 8, 2, true),
            (WeightFormat::Dense(DType::F16), 8, 2, 4, 2, false),
            (WeightFormat::Dense(DType::BF16), 1, 1, 2, 1, true),
            (packed(Bits::Eight, 32), 64, 16, 16, 16, false),
            (packed(Bits::Four, 32), 172, 22, 22, 44, true),
            (packed(Bits::Three, 32), 64, 8, 8, 16, false),
            (packed(Bits::Two, 128), 128, 8, 8, 32, false),
            (packed(Bits::Four, 43), 172, 24, 24, 48, true),
            (packed(Bits::Two, 8), 24, 3, 3, 12, true),
        ];
        for (format, cols, units, words, quads, ragged) in cases {
            let found = Units::new(cols, format).unwrap();
            assert_eq!(
                (found.units, found.row_words(), found.quads(), found.is_ragged()),
                (units, words, quads, ragged),
                "{format:?} {cols}"
            );
        }
    }

    #[test]
    fn groups_with_minimums_are_refused() {
        let scheme = Scheme::IntegerMinimum { bits: Bits::Four, granularity: Granularity::Group(32) };
        let error = Units::new(64, WeightFormat::Packed(scheme.into())).unwrap_err();
        assert_eq!(error.code(), crate::error::ErrorCode::UnsupportedFormat);
    }

    #[test]
    fn codes_lie_four_bytes_apart() {
        let scheme =
            Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(5), symmetric: true };
        let units = Units::new(9, WeightFormat::Packed(scheme.into())).unwrap();
        let mut words = vec![0; units.row_words()];
        units.arrange_codes(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &mut words);
        assert_eq!(words, [0x0403_0251, 0x0908_0706]);
    }
}
