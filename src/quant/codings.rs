//! The interface between codings of weights and the code that stores, runs or compares them.
//!
//! A coding is a file below this module, a line in the list, and the shader named in that line. [`Coding`] is the
//! format, known before a matrix is read. [`QuantizedTensor`] is the matrix. Higher floors use these two without asking
//! which coding it is. The CPU decodes rows and multiplies unless it has kernels for a coding. The GPU's kernels read
//! values through the shader.

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

/// The codings: format and matrix, the shader in `shaders/shared` that reads values, and the name suffix of kernels
/// linked with it.
macro_rules! codings {
    ($then:ident) => {
        $then! {
            /// Integer codes with scales, and zero points or minimums.
            Affine(Scheme) PackedTensor, "weights_affine" + "";
            /// Indices into a fixed table of values, with scales.
            Codebook(Codebook) CodebookTensor, "weights_codebook" + ".codebook";
        }
    };
}
#[cfg(feature = "gpu")]
pub(crate) use codings;

/// A number format.
pub trait Format: fmt::Display {
    /// Granularity of scales.
    fn granularity(&self) -> Granularity;

    /// Bits of a code in memory.
    fn code_bits(&self) -> u32;

    /// The number of code values.
    fn levels(&self) -> u32;

    /// The scheme of scaled integer codes; `None` for other codings.
    fn affine(&self) -> Option<Scheme> {
        None
    }

    /// A random matrix for kernel checks. `below(end)` returns a number in `0..end`.
    ///
    /// # Errors
    /// `invalid_argument`, `invalid_checkpoint` for an impossible shape.
    fn sample(&self, rows: usize, cols: usize, below: &mut dyn FnMut(u32) -> u32) -> Result<QuantizedTensor>;

    /// The matrix from its [`sections`](Coded::sections).
    ///
    /// # Errors
    /// `invalid_checkpoint` if one is missing or does not fit the shape.
    fn join(&self, rows: usize, cols: usize, sections: &[Section]) -> Result<QuantizedTensor>;

    /// The format named `name`.
    fn named(name: &str) -> Option<Self>
    where
        Self: Sized;
}

/// A quantized matrix `[rows, cols]` = `[out_features, in_features]`.
pub trait Coded: fmt::Debug {
    /// The number format.
    fn coding(&self) -> Coding;

    /// The matrix of scaled integer codes; `None` for other codings.
    fn affine(&self) -> Option<&PackedTensor> {
        None
    }

    /// Output features.
    fn rows(&self) -> usize;

    /// Input features.
    fn cols(&self) -> usize;

    /// Writes the weights of `rows` to `out`, `[rows.len(), cols]`, columns in input order.
    ///
    /// # Panics
    /// When the rows are not in the matrix or `out` has another length.
    fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]);

    /// Writes the codes of a row as bytes, columns in input order; `codes` is `[cols]`.
    ///
    /// # Panics
    /// As [`decode_rows`](Self::decode_rows).
    fn codes_of_row(&self, row: usize, codes: &mut [u8]);

    /// The scale of a group of a row.
    fn scale(&self, row: usize, group: usize) -> f32;

    /// Copies rows into a matrix.
    ///
    /// # Panics
    /// When the rows are not in the matrix.
    fn take_rows(&self, rows: Range<usize>) -> QuantizedTensor;

    /// The arrays that a file stores, besides format and shape.
    fn sections(&self) -> Vec<Section>;

    /// Bytes of its sections, computed without creating them.
    fn bytes(&self) -> u64;

    /// Mean bits per weight, including scales and zero points.
    fn bits_per_weight(&self) -> f64 {
        self.bytes() as f64 * 8.0 / (self.rows() as f64 * self.cols() as f64)
    }
}

/// An array of a quantized matrix, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `codes`, `scales`, or another name of the coding.
    pub name: String,
    /// Type of its elements.
    pub dtype: DType,
    /// The elements.
    pub bytes: Vec<u8>,
}

macro_rules! define {
    ($($(#[$doc:meta])* $name:ident($format:ident) $tensor:ident, $shader:literal + $suffix:literal;)*) => {
        /// The coding of a matrix's weights.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Coding {
            $($(#[$doc])* $name($format),)*
        }

        /// A quantized matrix in memory, independent of file layouts.
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
            /// The shader that reads its values.
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

    /// Parses the output of [`Display`](fmt::Display).
    fn from_str(text: &str) -> Result<Self> {
        Self::named(text).ok_or_else(|| {
            Error::unsupported_format(format!("expected a coding such as int4-g32-sym but found `{text}`"))
        })
    }
}

impl QuantizedTensor {
    /// Borrows rows, for backends.
    ///
    /// # Panics
    /// When the rows are not in the matrix.
    pub fn rows_view(&self, rows: Range<usize>) -> QuantizedRows<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "row range outside the matrix");
        QuantizedRows { tensor: self, rows }
    }
}

/// A range of rows of a [`QuantizedTensor`].
#[derive(Clone, Debug)]
pub struct QuantizedRows<'a> {
    /// The whole matrix.
    pub tensor: &'a QuantizedTensor,
    /// The range.
    pub rows: Range<usize>,
}

/// Finds a section by name.
///
/// # Errors
/// `invalid_checkpoint` if it is missing.
fn section<'a>(sections: &'a [Section], name: &str) -> Result<&'a Section> {
    sections
        .iter()
        .find(|section| section.name == name)
        .ok_or_else(|| Error::invalid_checkpoint(format!("expected {name} but found none")))
}
