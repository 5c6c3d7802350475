//! The shape of a stored tensor.
//!
//! Dimensions are `u64`: a file may describe more elements than a 32-bit `usize` counts.

use std::fmt;

/// Dimensions, outermost first. A weight matrix is `[out_features, in_features]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<u64>);

impl Shape {
    /// A shape of these dimensions. No dimensions: a scalar.
    pub fn new(dims: impl Into<Vec<u64>>) -> Self {
        Self(dims.into())
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[u64] {
        &self.0
    }

    /// The number of elements, or `None` on overflow.
    pub fn element_count(&self) -> Option<u64> {
        self.0.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))
    }

    /// Rows and columns of a matrix as memory indices, or `None` for another rank or a dimension that does not fit.
    pub fn as_matrix(&self) -> Option<(usize, usize)> {
        match self.0[..] {
            [rows, cols] => Some((usize::try_from(rows).ok()?, usize::try_from(cols).ok()?)),
            _ => None,
        }
    }
}

impl From<&[u64]> for Shape {
    fn from(dims: &[u64]) -> Self {
        Self(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
