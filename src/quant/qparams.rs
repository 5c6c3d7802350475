//! Scales and zero points from the range of a group, and codes from weights.
//!
//! The rules are those of compressed-tensors and llm-compressor. With codes as signed numbers
//! `-2^(b-1) ..= 2^(b-1) - 1` and `z` in the same domain:
//!
//! 1. symmetric: `scale = max|w| / ((2^b - 1) / 2)`, `z = 0`;
//! 2. asymmetric: `scale = (max(w, 0) - min(w, 0)) / (2^b - 1)`, `z = round(clamp(-2^(b-1) - min(w, 0) / scale))`;
//! 3. `code = round(clamp(w / scale + z))`. Rounding is half to even, and every step is in `f32`.
//!
//! Departures:
//!
//! 1. The scale is rounded to its stored type before `z` and the codes are computed, so that file
//!    and memory agree.
//! 2. An all-zero group has scale 1. A scale that would round to zero becomes the smallest positive number: 2^-24 for
//!    `F16` (a subnormal, which kernels must decode exactly), the smallest normal number for `BF16` and `F32`. Scales
//!    are therefore finite and never 0. Scales from a range are positive.
//!
//! The methods (`rtn`, `gptq`, ...) form the groups.

use super::packed_tensor::Scales;
use super::scheme::Bits;
use crate::dtype::DType;
use crate::error::{Error, ErrorCode, Result};
use half::{bf16, f16};
use multiversion::multiversion;

/// The stored type of scales.
#[allow(missing_docs, reason = "the names are the documentation")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ScaleType {
    #[default]
    F16,
    BF16,
    F32,
}

impl ScaleType {
    /// The element type of a stored tensor.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::F32 => DType::F32,
        }
    }

    /// The scale type for a stored tensor of `dtype`, if it is one.
    pub fn from_dtype(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            DType::F32 => Some(Self::F32),
            _ => None,
        }
    }

    /// The smallest absolute value of scales that this crate writes.
    fn smallest(self) -> f32 {
        match self {
            Self::F16 => f16::from_bits(1).to_f32(),
            Self::BF16 | Self::F32 => f32::MIN_POSITIVE,
        }
    }

    /// Rounds `scale` to the type: nearest, ties to even, same sign, never zero. 0 becomes 1.
    ///
    /// # Errors
    /// `non_finite` if the number is too large for the type.
    pub fn round(self, scale: f32) -> Result<f32> {
        if scale == 0.0 {
            return Ok(1.0);
        }
        let rounded = match self {
            Self::F16 => f16::from_f32(scale).to_f32(),
            Self::BF16 => bf16::from_f32(scale).to_f32(),
            Self::F32 => scale,
        };
        if !rounded.is_finite() {
            return Err(Error::new(
                ErrorCode::NonFinite,
                format!("the weights need a scale of {scale:e}, which {} cannot hold", self.dtype()),
            ));
        }
        Ok(rounded.abs().max(self.smallest()).copysign(rounded))
    }
}

impl Scales {
    /// An empty list with room for `capacity`.
    pub fn with_capacity(scale_type: ScaleType, capacity: usize) -> Self {
        match scale_type {
            ScaleType::F16 => Self::F16(Vec::with_capacity(capacity)),
            ScaleType::BF16 => Self::BF16(Vec::with_capacity(capacity)),
            ScaleType::F32 => Self::F32(Vec::with_capacity(capacity)),
        }
    }

    /// Appends a scale. Exact for scales from [`ScaleType::round`] of the same type.
    pub fn push(&mut self, scale: f32) {
        match self {
            Self::F16(v) => v.push(f16::from_f32(scale)),
            Self::BF16(v) => v.push(bf16::from_f32(scale)),
            Self::F32(v) => v.push(scale),
        }
    }

    /// The type of the scales.
    pub fn scale_type(&self) -> ScaleType {
        match self {
            Self::F16(_) => ScaleType::F16,
            Self::BF16(_) => ScaleType::BF16,
            Self::F32(_) => ScaleType::F32,
        }
    }
}

/// Scale and zero point of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    /// The scale, exactly as stored.
    pub scale: f32,
    /// The zero point in the unsigned domain of codes: [`Bits::midpoint`] when symmetric.
    pub zero_point: u8,
}

impl QParams {
    /// Scale and zero point for weights between `min` and `max`.
    ///
    /// # Errors
    /// `non_finite` if the scale is too large for its type.
    pub fn from_range(
        min: f32,
        max: f32,
        bits: Bits,
        symmetric: bool,
        scale_type: ScaleType,
    ) -> Result<Self> {
        let (min, max) = (min.min(0.0), max.max(0.0));
        let steps = bits.max_code() as f32;
        let midpoint = bits.midpoint() as f32;
        if symmetric {
            let scale = scale_type.round(max.max(-min) / (steps / 2.0))?;
            return Ok(Self { scale, zero_point: bits.midpoint() as u8 });
        }
        let scale = scale_type.round((max - min) / steps)?;
        let signed = round_small((-midpoint - min / scale).clamp(-midpoint, midpoint - 1.0));
        Ok(Self { scale, zero_point: (signed + bits.midpoint() as i32) as u8 })
    }

    /// The code of `w`, by the rule of [`encode_group`].
    #[inline(always)]
    pub fn encode(self, w: f32, bits: Bits) -> u8 {
        let steps = Steps::new(self.zero_point, bits.midpoint(), bits.max_code());
        if self.scale == 0.0 { self.zero_point } else { steps.code(w, self.scale) }
    }

    /// The sum of `importance * (w - q)^2` over the weights of a group, with `q` the dequantized code of `w`. The scale
    /// must not be 0. Summed in lanes, identically on every target.
    ///
    /// # Panics
    /// When `importance` is shorter than `weights`.
    pub(super) fn weighted_error(self, weights: &[f32], importance: &[f32], bits: Bits) -> f32 {
        weighted_error(self, weights, importance, bits)
    }

    /// The dequantized value of `code`.
    #[inline(always)]
    pub fn decode(self, code: u8) -> f32 {
        (i32::from(code) - i32::from(self.zero_point)) as f32 * self.scale
    }
}

/// The smallest and the largest of `weights` and 0.
///
/// # Errors
/// The index of the first NaN or infinity.
pub fn range(weights: &[f32]) -> std::result::Result<(f32, f32), usize> {
    let (mut min, mut max) = (0f32, 0f32);
    let mut largest_bits = 0u32;
    for &w in weights {
        // Without the sign bit, NaN and infinity have the largest bit patterns. One comparison after the loop finds
        // them.
        largest_bits = largest_bits.max(w.to_bits() & 0x7fff_ffff);
        min = if w < min { w } else { min };
        max = if w > max { w } else { max };
    }
    if largest_bits >= f32::INFINITY.to_bits() {
        return Err(weights.iter().position(|w| !w.is_finite()).unwrap_or(0));
    }
    Ok((min, max))
}

/// Encodes the weights of one group: `code = clamp(round(w / scale + z))` in the unsigned domain `0..=max_code`.
/// `zero_point` and codes are offset by `midpoint` from the signed domain in which the sum is rounded.
///
/// A scale of zero, which some tools write for groups of zeros, gives the zero point.
///
/// # Panics
/// When `codes` and `weights` differ in length.
pub fn encode_group(
    weights: &[f32],
    scale: f32,
    zero_point: u8,
    midpoint: u32,
    max_code: u32,
    codes: &mut [u8],
) {
    assert_eq!(weights.len(), codes.len(), "one code for each weight");
    if scale == 0.0 {
        codes.fill(zero_point);
        return;
    }
    let steps = Steps::new(zero_point, midpoint, max_code);
    for (code, &w) in codes.iter_mut().zip(weights) {
        *code = steps.code(w, scale);
    }
}

/// The range of signed codes for a zero point.
#[derive(Clone, Copy)]
struct Steps {
    low: f32,
    high: f32,
    /// The zero point.
    zero: f32,
    midpoint: i32,
}

impl Steps {
    #[inline(always)]
    fn new(zero_point: u8, midpoint: u32, max_code: u32) -> Self {
        let low = -(midpoint as f32);
        let high = (max_code as i32 - midpoint as i32) as f32;
        Self { low, high, zero: f32::from(zero_point) + low, midpoint: midpoint as i32 }
    }

    /// The signed code of `w`.
    #[inline(always)]
    fn signed(self, w: f32, scale: f32) -> i32 {
        round_small((w / scale + self.zero).clamp(self.low, self.high))
    }

    #[inline(always)]
    fn code(self, w: f32, scale: f32) -> u8 {
        (self.signed(w, scale) + self.midpoint) as u8
    }
}

/// Partial sums of [`weighted_error`].
const LANES: usize = 16;

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn weighted_error(params: QParams, weights: &[f32], importance: &[f32], bits: Bits) -> f32 {
    let steps = Steps::new(params.zero_point, bits.midpoint(), bits.max_code());
    let square = |w: f32, importance: f32| {
        let distance = w - (steps.signed(w, params.scale) as f32 - steps.zero) * params.scale;
        distance * distance * importance
    };
    let importance = &importance[..weights.len()];
    let (weights, last_weights) = weights.as_chunks::<LANES>();
    let (importance, last_importance) = importance.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (weights, importance) in weights.iter().zip(importance) {
        for lane in 0..LANES {
            sums[lane] += square(weights[lane], importance[lane]);
        }
    }
    for (lane, (&w, &importance)) in last_weights.iter().zip(last_importance).enumerate() {
        sums[lane] += square(w, importance);
    }
    sums.iter().sum()
}

/// 1.5 * 2^23. Adding it leaves no fraction bits, so the addition rounds half to even, and the integer is
/// in the low bits of the sum. Unlike `round_ties_even` it needs no library call on targets without a rounding
/// instruction, and it vectorizes everywhere.
const ROUNDER: f32 = 12_582_912.0;

/// `x` rounded half to even, for `|x| <= 2^22`.
#[inline(always)]
fn round_small(x: f32) -> i32 {
    (x + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32
}

/// A `non_finite` error for the weight at `(row, col)`.
pub(crate) fn non_finite_weight(value: f32, row: usize, col: usize) -> Error {
    Error::new(
        ErrorCode::NonFinite,
        format!("expected finite weights but found {value} at row {row}, column {col}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_become_the_documented_parameters() {
        // (min, max, bits, symmetric) -> (scale, zero point); worked out by hand.
        let cases = [
            (-1.5, 0.75, Bits::Four, true, 0.2, 8),
            (-0.5, 1.0, Bits::Four, false, 0.1, 5),
            (0.5, 1.5, Bits::Four, false, 0.1, 0),
            (-1.5, -0.5, Bits::Four, false, 0.1, 15),
            (-127.5, 3.0, Bits::Eight, true, 1.0, 128),
            (0.0, 0.0, Bits::Four, true, 1.0, 8),
            (0.0, 0.0, Bits::Four, false, 1.0, 0),
        ];
        for (min, max, bits, symmetric, scale, zero_point) in cases {
            let found = QParams::from_range(min, max, bits, symmetric, ScaleType::F32).unwrap();
            assert_eq!(found, QParams { scale, zero_point }, "{min} {max} {bits:?} {symmetric}");
        }
    }

    #[test]
    fn stored_scales_are_finite_and_not_zero_or_an_error() {
        for scale_type in [ScaleType::F16, ScaleType::BF16, ScaleType::F32] {
            assert_eq!(scale_type.round(0.0).unwrap(), 1.0);
            assert!(scale_type.round(1e-45).unwrap() > 0.0, "{scale_type:?}");
            assert!(scale_type.round(f32::INFINITY).is_err());
        }
        assert_eq!(ScaleType::F16.round(1e-10).unwrap(), 2f32.powi(-24));
        assert_eq!(ScaleType::F16.round(-1e-10).unwrap(), -2f32.powi(-24));
        assert_eq!(ScaleType::F16.round(65504.0).unwrap(), 65504.0);
        assert_eq!(ScaleType::F16.round(-0.1).unwrap(), -ScaleType::F16.round(0.1).unwrap());
        assert_eq!(ScaleType::F16.round(70000.0).unwrap_err().code(), ErrorCode::NonFinite);
        assert_eq!(ScaleType::BF16.round(70000.0).unwrap(), 70144.0);
    }

    #[test]
    fn the_rounding_trick_is_round_half_to_even() {
        for step in -1024..=1024 {
            for nudge in [-1e-6, 0.0, 1e-6] {
                let x = step as f32 / 8.0 + nudge;
                assert_eq!(round_small(x), x.round_ties_even() as i32, "{x}");
            }
        }
    }

    #[test]
    fn non_finite_weights_are_found_where_they_are() {
        assert_eq!(range(&[1.0, -2.0, 0.5]), Ok((-2.0, 1.0)));
        assert_eq!(range(&[1.0, f32::NAN]), Err(1));
        assert_eq!(range(&[f32::NEG_INFINITY, f32::NAN]), Err(0));
    }

    proptest! {
        #[test]
        fn codes_are_the_nearest_and_stay_in_range(
            weights in prop::collection::vec(-4f32..4.0, 1..40),
            bits in prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]),
            symmetric: bool,
        ) {
            let (min, max) = range(&weights).unwrap();
            let q = QParams::from_range(min, max, bits, symmetric, ScaleType::F16).unwrap();
            let mut codes = vec![0; weights.len()];
            encode_group(&weights, q.scale, q.zero_point, bits.midpoint(), bits.max_code(), &mut codes);
            for (&code, &w) in codes.iter().zip(&weights) {
                prop_assert!(u32::from(code) <= bits.max_code());
                let error = |c: u32| ((c as f32 - f32::from(q.zero_point)) * q.scale - w).abs();
                let best = (0..=bits.max_code()).map(error).fold(f32::INFINITY, f32::min);
                // A tie may round either way.
                prop_assert!(error(u32::from(code)) <= best + q.scale * 1e-5);
            }
        }
    }
}
