//! The seam between codings of weights and everything that stores, runs or compares them.
//!
//! A coding is a file below here, a line in the list, and the shader that the line names. [`Coding`] is what is known
//! before the tensors of a matrix are read, [`QuantizedTensor`] the matrix. Floors above ask these two, and never which coding it is: the CPU
//! decodes rows and multiplies unless it has kernels for a coding, the GPU's kernels read values through the shader.

mod affine;
mod codebook;

pub use codebook::{Codebook, CodebookTensor};

use super::packed_tensor::PackedTensor;
use super::scheme::{Granularity, Scheme};
use crate::dtype::DType;
use crate::error::{Error, Result};
use std::fmt;
use std::ops::{Deref, Range};
use std::str::FromStr;

/// The codings: format and matrix, the piece of shader in `shaders/shared` that reads values, and what is added to the name
/// of a kernel that is linked with it.
macro_rules! codings {
    ($then:ident) => {
        $then! {
            /// Integer codes with scales, and zero points or minimums.
            Affine(Scheme) PackedTensor, "weights_affine" + "";
            /// Codes that name values of a fixed table, with scales.
            Codebook(Codebook) CodebookTensor, "weights_codebook" + ".codebook";
        }
    };
}
#[cfg(feature = "gpu")]
pub(crate) use codings;

/// What a number format answers.
pub trait Format: fmt::Display {
    /// How many weights share a scale.
    fn granularity(&self) -> Granularity;

    /// Bits of a code in memory.
    fn code_bits(&self) -> u32;

    /// How many values a code can have.
    fn levels(&self) -> u32;

    /// The scheme of integer codes that are scaled and shifted, for who needs just these; `None` for other codings.
    fn affine(&self) -> Option<Scheme> {
        None
    }

    /// A matrix of codes and scales that `below(end)`, a number in `0..end`, chooses: for checks of kernels.
    ///
    /// # Errors
    /// `invalid_argument`, `invalid_checkpoint` for a shape that the format does not have.
    fn sample(&self, rows: usize, cols: usize, below: &mut dyn FnMut(u32) -> u32) -> Result<QuantizedTensor>;

    /// The matrix that wrote these [`sections`](Coded::sections).
    ///
    /// # Errors
    /// `invalid_checkpoint` when one is missing or does not fit the shape.
    fn join(&self, rows: usize, cols: usize, sections: &[Section]) -> Result<QuantizedTensor>;

    /// The format of that name.
    fn named(name: &str) -> Option<Self>
    where
        Self: Sized;
}

/// What a quantized matrix `[rows, cols]` = `[out_features, in_features]` answers.
pub trait Coded: fmt::Debug {
    /// The number format.
    fn coding(&self) -> Coding;

    /// The matrix of integer codes that are scaled and shifted, for who needs just these; `None` for other codings.
    fn affine(&self) -> Option<&PackedTensor> {
        None
    }

    /// Output features.
    fn rows(&self) -> usize;

    /// Input features.
    fn cols(&self) -> usize;

    /// Writes the weights of `rows` to `out`, `[rows.len(), cols]`, columns in the order of the input.
    ///
    /// # Panics
    /// When the rows are not in the matrix or `out` has another length.
    fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]);

    /// Writes the codes of a row, a byte each, columns in the order of the input; `codes` is `[cols]`.
    ///
    /// # Panics
    /// As [`decode_rows`](Self::decode_rows).
    fn codes_of_row(&self, row: usize, codes: &mut [u8]);

    /// The scale of a group of a row.
    fn scale(&self, row: usize, group: usize) -> f32;

    /// Some rows as a matrix of their own.
    ///
    /// # Panics
    /// When the rows are not in the matrix.
    fn take_rows(&self, rows: Range<usize>) -> QuantizedTensor;

    /// All that it consists of, beside format and shape: the arrays that a file keeps.
    fn sections(&self) -> Vec<Section>;

    /// Bytes of its sections, which are not made for that.
    fn bytes(&self) -> u64;

    /// Mean bits of a weight, with all that belongs to it.
    fn bits_per_weight(&self) -> f64 {
        self.bytes() as f64 * 8.0 / (self.rows() as f64 * self.cols() as f64)
    }
}

/// An array of a quantized matrix, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `codes`, `scales`, and what else the coding has.
    pub name: String,
    /// Type of its elements.
    pub dtype: DType,
    /// All of them.
    pub bytes: Vec<u8>,
}

macro_rules! define {
    ($($(#[$doc:meta])* $name:ident($format:ident) $tensor:ident, $shader:literal + $suffix:literal;)*) => {
        /// How the weights of a matrix are coded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Coding {
            $($(#[$doc])* $name($format),)*
        }

        /// A quantized matrix in memory, whatever file it comes from or goes to.
        #[derive(Clone, Debug, PartialEq)]
        pub enum QuantizedTensor {
            $($(#[$doc])* $name($tensor),)*
        }

        $(
            impl From<$format> for Coding {
                fn from(format: $format) -> Self {
                    Self::$name(format)
                }
            }

            impl From<$tensor> for QuantizedTensor {
                fn from(tensor: $tensor) -> Self {
                    Self::$name(tensor)
                }
            }
        )*

        impl Deref for Coding {
            type Target = dyn Format;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$name(format) => format,)*
                }
            }
        }

        impl Deref for QuantizedTensor {
            type Target = dyn Coded;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$name(tensor) => tensor,)*
                }
            }
        }

        impl Coding {
            /// The piece of shader that reads its values.
            pub fn shader(self) -> &'static str {
                match self {
                    $(Self::$name(_) => $shader,)*
                }
            }

            fn named(name: &str) -> Option<Self> {
                None$(.or_else(|| $format::named(name).map(Self::$name)))*
            }
        }
    };
}
codings!(define);

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl FromStr for Coding {
    type Err = Error;

    /// Reads what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self> {
        Self::named(text).ok_or_else(|| {
            Error::unsupported_format(format!("expected a coding as int4-g32-sym but found `{text}`"))
        })
    }
}

impl QuantizedTensor {
    /// A borrowed run of rows, as backends take them.
    ///
    /// # Panics
    /// When the rows are not in the matrix.
    pub fn rows_view(&self, rows: Range<usize>) -> QuantizedRows<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "row range outside the matrix");
        QuantizedRows { tensor: self, rows }
    }
}

/// A run of rows of a [`QuantizedTensor`].
#[derive(Clone, Debug)]
pub struct QuantizedRows<'a> {
    /// The whole matrix.
    pub tensor: &'a QuantizedTensor,
    /// The rows meant.
    pub rows: Range<usize>,
}

/// The section of that name.
///
/// # Errors
/// `invalid_checkpoint` where there is none.
fn section<'a>(sections: &'a [Section], name: &str) -> Result<&'a Section> {
    sections
        .iter()
        .find(|section| section.name == name)
        .ok_or_else(|| Error::invalid_checkpoint(format!("expected {name} but found none")))
}
