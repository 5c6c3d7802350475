//! Element types of stored tensors, and conversion between floating-point bytes and `f32`.
//!
//! Packed integer weights are in `quant`.

use crate::error::{Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::fmt;

/// The element type of a stored tensor, with safetensors' name.
#[allow(missing_docs, reason = "the names are the documentation")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
    F64,
}

impl DType {
    const ALL: [(DType, &'static str, usize); 15] = [
        (DType::Bool, "BOOL", 1),
        (DType::U8, "U8", 1),
        (DType::I8, "I8", 1),
        (DType::U16, "U16", 2),
        (DType::I16, "I16", 2),
        (DType::U32, "U32", 4),
        (DType::I32, "I32", 4),
        (DType::U64, "U64", 8),
        (DType::I64, "I64", 8),
        (DType::F8E4M3, "F8_E4M3", 1),
        (DType::F8E5M2, "F8_E5M2", 1),
        (DType::F16, "F16", 2),
        (DType::BF16, "BF16", 2),
        (DType::F32, "F32", 4),
        (DType::F64, "F64", 8),
    ];

    /// The type with safetensors' `name`, if supported.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, spelling, _)| *spelling == name).map(|(dtype, ..)| *dtype)
    }

    /// The spelling in a safetensors header.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// Whether [`decode_f32`] reads it: the floating-point types of weights.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads little-endian `F32`, `F16` or `BF16` elements into `out`.
///
/// # Errors
/// Another type is an `unsupported_format`.
///
/// # Panics
/// When `bytes` does not hold exactly `out.len()` elements.
pub fn decode_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    assert_eq!(bytes.len(), out.len() * dtype.size(), "byte length and element count disagree");
    match dtype {
        DType::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*b);
            }
        }
        DType::F16 => {
            /// Values are converted in blocks, because each single conversion is a function call.
            const HALVES: usize = 64;
            let mut halves = [f16::ZERO; HALVES];
            for (values, bytes) in out.chunks_mut(HALVES).zip(bytes.as_chunks::<2>().0.chunks(HALVES)) {
                for (half, b) in halves.iter_mut().zip(bytes) {
                    *half = f16::from_le_bytes(*b);
                }
                halves[..values.len()].convert_to_f32_slice(values);
            }
        }
        DType::BF16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*b).to_f32();
            }
        }
        other => {
            return Err(Error::unsupported_format(format!(
                "expected F32, F16 or BF16 values but found {other}"
            )));
        }
    }
    Ok(())
}

/// The index of the first NaN or infinity among `F32`, `F16` or `BF16` elements. `None` for other types.
pub fn first_non_finite(dtype: DType, bytes: &[u8]) -> Option<usize> {
    match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
        DType::F16 => bytes.as_chunks::<2>().0.iter().position(|b| !f16::from_le_bytes(*b).is_finite()),
        DType::BF16 => bytes.as_chunks::<2>().0.iter().position(|b| !bf16::from_le_bytes(*b).is_finite()),
        _ => None,
    }
}

/// Appends `values` to `out` as little-endian `dtype` elements, rounding to nearest even.
///
/// # Errors
/// A type other than `F32`, `F16` and `BF16` is an `unsupported_format`. A finite value that becomes infinite in
/// `dtype` is a `non_finite`.
pub fn encode_f32(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let overflow = |value: f32| {
        Error::new(
            crate::error::ErrorCode::NonFinite,
            format!("{value} is too large for {dtype}; write F32 instead"),
        )
    };
    out.reserve(values.len() * dtype.size());
    match dtype {
        DType::F32 => {
            for value in values {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        DType::F16 => {
            for &value in values {
                let rounded = f16::from_f32(value);
                if value.is_finite() && !rounded.is_finite() {
                    return Err(overflow(value));
                }
                out.extend_from_slice(&rounded.to_le_bytes());
            }
        }
        DType::BF16 => {
            for &value in values {
                let rounded = bf16::from_f32(value);
                if value.is_finite() && !rounded.is_finite() {
                    return Err(overflow(value));
                }
                out.extend_from_slice(&rounded.to_le_bytes());
            }
        }
        other => return Err(Error::unsupported_format(format!("values cannot be written as {other}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, (dtype, name, _)) in DType::ALL.iter().enumerate() {
            assert_eq!(*dtype as usize, index);
            assert_eq!(DType::from_name(name), Some(*dtype));
        }
        assert_eq!(DType::from_name("F4"), None);
    }

    #[test]
    fn floats_survive_the_types_that_hold_them() {
        let values = [0.0, -1.5, 65504.0, 2f32.powi(-14)];
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut bytes = Vec::new();
            let values = if dtype == DType::BF16 { [0.0, -1.5, 65536.0, 2f32.powi(-100)] } else { values };
            encode_f32(dtype, &values, &mut bytes).unwrap();
            let mut back = [f32::NAN; 4];
            decode_f32(dtype, &bytes, &mut back).unwrap();
            assert_eq!(back, values, "{dtype}");
        }
        assert!(encode_f32(DType::F16, &[65520.0], &mut Vec::new()).is_err());
    }

    #[test]
    fn the_first_value_that_is_no_number_is_found() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut bytes = Vec::new();
                encode_f32(dtype, &[1.0, -2.0, broken, broken], &mut bytes).unwrap();
                assert_eq!(first_non_finite(dtype, &bytes), Some(2), "{dtype} {broken}");
                assert_eq!(first_non_finite(dtype, &bytes[..2 * dtype.size()]), None);
            }
        }
        assert_eq!(first_non_finite(DType::U8, &[255; 8]), None);
    }
}
