//! Quantization schemes: bits, granularity, symmetry.
//!
//! Methods are in `rtn`, `ternary`, ...; file encodings in `layout`.

use crate::error::{Error, Result};
use crate::options::named;
use std::fmt;
use std::str::FromStr;

/// Bits of one integer code.
#[allow(missing_docs, reason = "the names are the documentation")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bits {
    Two = 2,
    Three = 3,
    Four = 4,
    Eight = 8,
}

impl Bits {
    /// The number of bits.
    pub fn get(self) -> u32 {
        self as u32
    }

    /// The largest unsigned code, `2^bits - 1`.
    pub fn max_code(self) -> u32 {
        (1 << self.get()) - 1
    }

    /// The zero point of a symmetric scheme, `2^(bits-1)`.
    pub fn midpoint(self) -> u32 {
        1 << (self.get() - 1)
    }

    /// The default granularity: groups of 128, or a whole row for 8 bits.
    pub fn usual_granularity(self) -> Granularity {
        if self == Self::Eight { Granularity::Channel } else { Granularity::Group(128) }
    }
}

impl TryFrom<u32> for Bits {
    type Error = Error;

    fn try_from(bits: u32) -> Result<Self> {
        match bits {
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            4 => Ok(Self::Four),
            8 => Ok(Self::Eight),
            other => Err(Error::unsupported_format(format!("expected 2, 3, 4 or 8 bits but found {other}"))),
        }
    }
}

/// Granularity of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale for the whole matrix.
    Tensor,
    /// One scale for each output row.
    Channel,
    /// One scale for each group of this many input columns of a row. The last group of a row may be shorter.
    Group(usize),
}

impl Granularity {
    /// The granularity of a group size in other tools' spelling, where -1 means one scale for each output row.
    ///
    /// # Errors
    /// `invalid_argument` for 0 and other negative numbers.
    pub fn from_group_size(size: i64) -> Result<Self> {
        match usize::try_from(size) {
            Ok(size) if size > 0 => Ok(Self::Group(size)),
            _ if size == -1 => Ok(Self::Channel),
            _ => {
                Err(Error::invalid_argument(format!("expected a positive group size or -1 but found {size}")))
            }
        }
    }

    /// Groups in a row of `cols` columns.
    pub fn groups_per_row(self, cols: usize) -> usize {
        match self {
            Self::Tensor | Self::Channel => 1,
            Self::Group(size) => cols.div_ceil(size),
        }
    }

    /// Columns of one scale in a row of `cols` columns.
    pub fn group_size(self, cols: usize) -> usize {
        match self {
            Self::Tensor | Self::Channel => cols,
            Self::Group(size) => size,
        }
    }

    /// The number of scales of a `[rows, cols]` matrix.
    pub fn scale_count(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 1,
            _ => rows * self.groups_per_row(cols),
        }
    }
}

/// A number format for weight matrices. A weight is `(code - zero_point) * scale` with an unsigned code, or
/// `code * scale + minimum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Integer codes.
    Integer {
        /// Bits of a code.
        bits: Bits,
        /// Granularity of scales and zero points.
        granularity: Granularity,
        /// Symmetric: the zero point is [`Bits::midpoint`] and is not stored.
        symmetric: bool,
    },
    /// Integer codes with a stored floating-point minimum: a weight is `code * scale + minimum`, as in GGUF's
    /// `Q4_1` and `Q4_K`. No zero point expresses such a minimum exactly.
    IntegerMinimum {
        /// Bits of a code.
        bits: Bits,
        /// Granularity of scales and minimums.
        granularity: Granularity,
    },
    /// BitNet: weights -1, 0 and 1 as codes 0, 1 and 2 of two bits, times a scale.
    Ternary {
        /// `Tensor`, as in BitNet b1.58, or `Channel`.
        granularity: Granularity,
    },
}

impl Scheme {
    /// Integer codes with a constant zero point in the middle.
    pub const fn symmetric(bits: Bits, granularity: Granularity) -> Self {
        Self::Integer { bits, granularity, symmetric: true }
    }

    /// Integer codes with a zero point for each scale.
    pub const fn asymmetric(bits: Bits, granularity: Granularity) -> Self {
        Self::Integer { bits, granularity, symmetric: false }
    }

    /// The same scheme with another symmetry. Other codes are unchanged.
    #[must_use]
    pub const fn with_symmetry(self, symmetric: bool) -> Self {
        match self {
            Self::Integer { bits, granularity, .. } => Self::Integer { bits, granularity, symmetric },
            other => other,
        }
    }

    /// Weights -1, 0 and 1 times a scale.
    pub const fn ternary(granularity: Granularity) -> Self {
        Self::Ternary { granularity }
    }

    /// Whether weights are -1, 0 and 1.
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::Ternary { .. })
    }

    /// Bits and symmetry of integer codes with zero points; `None` for other codes.
    pub fn as_integer(self) -> Option<(Bits, Granularity, bool)> {
        match self {
            Self::Integer { bits, granularity, symmetric } => Some((bits, granularity, symmetric)),
            Self::IntegerMinimum { .. } | Self::Ternary { .. } => None,
        }
    }

    /// The same with another granularity.
    #[must_use]
    pub fn with_granularity(self, granularity: Granularity) -> Self {
        match self {
            Self::Integer { bits, symmetric, .. } => Self::Integer { bits, granularity, symmetric },
            Self::IntegerMinimum { bits, .. } => Self::IntegerMinimum { bits, granularity },
            Self::Ternary { .. } => Self::Ternary { granularity },
        }
    }

    /// Bits of a code in memory.
    pub fn storage_bits(self) -> u32 {
        match self {
            Self::Integer { bits, .. } | Self::IntegerMinimum { bits, .. } => bits.get(),
            Self::Ternary { .. } => 2,
        }
    }

    /// Granularity of scales.
    pub fn granularity(self) -> Granularity {
        match self {
            Self::Integer { granularity, .. }
            | Self::IntegerMinimum { granularity, .. }
            | Self::Ternary { granularity } => granularity,
        }
    }

    /// The constant zero point, or `None` if groups store their own.
    pub fn constant_zero_point(self) -> Option<u32> {
        match self {
            Self::Integer { symmetric: false, .. } => None,
            Self::Integer { bits, .. } => Some(bits.midpoint()),
            Self::IntegerMinimum { .. } => Some(0),
            Self::Ternary { .. } => Some(1),
        }
    }

    /// Whether scales have minimums.
    pub fn has_minimums(self) -> bool {
        matches!(self, Self::IntegerMinimum { .. })
    }

    /// The same codes with minimums in place of stored zero points.
    pub fn with_minimums(self) -> Self {
        match self {
            Self::Integer { bits, granularity, symmetric: false } => {
                Self::IntegerMinimum { bits, granularity }
            }
            other => other,
        }
    }

    /// The largest valid code.
    pub fn max_code(self) -> u32 {
        match self {
            Self::Integer { bits, .. } | Self::IntegerMinimum { bits, .. } => bits.max_code(),
            Self::Ternary { .. } => 2,
        }
    }

    /// 32-bit words of the codes of a row of `cols` columns.
    pub fn words_per_row(self, cols: usize) -> usize {
        super::packing::words(cols, self.storage_bits())
    }
}

/// `int4-g32-sym`, `int8-channel-asym`, `int4-g32-min`, `ternary-tensor`: the name in reports and on the command line.
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let granularity = match self.granularity() {
            Granularity::Tensor => "tensor".to_owned(),
            Granularity::Channel => "channel".to_owned(),
            Granularity::Group(size) => format!("g{size}"),
        };
        match self {
            Self::Integer { bits, symmetric, .. } => {
                write!(f, "int{}-{granularity}-{}", bits.get(), if *symmetric { "sym" } else { "asym" })
            }
            Self::IntegerMinimum { bits, .. } => write!(f, "int{}-{granularity}-min", bits.get()),
            Self::Ternary { .. } => write!(f, "ternary-{granularity}"),
        }
    }
}

impl FromStr for Scheme {
    type Err = Error;

    /// Parses the output of [`Display`](fmt::Display).
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let granularity = |text: &str| match text {
            "tensor" => Some(Granularity::Tensor),
            "channel" => Some(Granularity::Channel),
            _ => text.strip_prefix('g')?.parse().ok().filter(|&size| size > 0).map(Granularity::Group),
        };
        let symmetric = |text: &str| match text {
            "sym" => Some(true),
            "asym" => Some(false),
            _ => None,
        };
        let scheme = match parts[..] {
            ["ternary", scope] => granularity(scope).map(|granularity| Self::Ternary { granularity }),
            [bits, scope, symmetry] => bits
                .strip_prefix("int")
                .and_then(|bits| Bits::try_from(bits.parse::<u32>().ok()?).ok())
                .zip(granularity(scope))
                .and_then(|(bits, granularity)| match symmetry {
                    "min" => Some(Self::IntegerMinimum { bits, granularity }),
                    _ => Some(Self::Integer { bits, granularity, symmetric: symmetric(symmetry)? }),
                }),
            _ => None,
        };
        scheme.ok_or_else(|| {
            Error::unsupported_format(format!("expected a scheme such as int4-g32-sym but found `{text}`"))
        })
    }
}

named! {
    /// The precision of activations in products with quantized weights. An option of the run, recorded in every report.
    #[derive(Default)]
    pub enum Activations {
        /// Single precision; weights are dequantized on the fly
        #[default]
        F32 = "f32",
        /// Each token's activations are rounded to 8 bits; products are summed as integers
        Int8 = "int8",
    }
}

/// The grid of a token's INT8 activations. It is not an option of the run: the weights were made for
/// one grid, and the checkpoint's layout determines which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ActivationGrid {
    /// `q = round(x * s)` with `s = 127 / max(absmax(x), 1e-5)`, halves to even: BitNet b1.58's published code, and
    /// the default.
    #[default]
    Absmax127,
    /// `q = round(clamp(x / s, -128, 127))` with `s = absmax(x) / 127.5` (`f32::EPSILON` for a token of zeros), halves
    /// to even: compressed-tensors' `dynamic` symmetric 8-bit activations. The lowest
    /// code, -128, is reached. The highest input is clipped by half a step.
    FullRange,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let scopes =
            [Granularity::Tensor, Granularity::Channel, Granularity::Group(1), Granularity::Group(128)];
        for granularity in scopes {
            for bits in [Bits::Two, Bits::Three, Bits::Four, Bits::Eight] {
                let minimum = Scheme::IntegerMinimum { bits, granularity };
                assert_eq!(minimum.to_string().parse::<Scheme>().unwrap(), minimum);
                for symmetric in [true, false] {
                    let scheme = Scheme::Integer { bits, granularity, symmetric };
                    assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
                }
            }
            let scheme = Scheme::Ternary { granularity };
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
        }
        for text in [
            "",
            "int4",
            "int5-g32-sym",
            "int4-g0-sym",
            "int4-g-sym",
            "int4-g32-maybe",
            "ternary",
            "int4-g32-sym-",
        ] {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
    }
}
