//! Searches the scale of a group with the least weighted error, instead of spanning its range.
//!
//! Clipping a few large weights makes the steps of all others finer. The error is `sum of importance * (w - q)^2`.
//! The steps:
//!
//! 1. the scale of the range, then scales of shrunk and slightly stretched ranges, in equal steps. Symmetric codes
//!    reach one step further below zero than above. Symmetric schemes therefore also try negative scales, so that the
//!    longer side of the group can have the additional code;
//! 2. from the best of them, least-squares fits of the scale to its codes, while the error falls.
//!
//! Step 1 is the "mse" option of GPTQ's code, with weights. Step 2 is the refinement of llama.cpp's K-quants.
//! llama.cpp's `Q4_0` has negative scales too, and in auto-round's GPTQ files half of the scales are negative.

use super::qparams::{QParams, ScaleType, encode_group};
use super::scheme::Bits;
use crate::error::Result;

/// The smallest share of the range, small enough for 2 bits, where clipping helps most. Not tuned.
const SMALLEST: f32 = 0.4;
/// The largest share: `2^b / (2^b - 2)` at 4 bits, where the largest weight gets its own code on either side.
const LARGEST: f32 = 1.08;
/// Number of ranges.
const STEPS: usize = 34;
/// Number of least-squares fits.
const FITS: usize = 3;

/// Scale and zero point for `weights` with the range `min..=max`.
///
/// # Errors
/// As [`QParams::from_range`].
pub(super) fn search(
    weights: &[f32],
    importance: &[f32],
    (min, max): (f32, f32),
    bits: Bits,
    symmetric: bool,
    scale_type: ScaleType,
) -> Result<QParams> {
    let mut trial = Trial { weights, importance, bits, codes: vec![0; weights.len()] };
    let mut best = QParams::from_range(min, max, bits, symmetric, scale_type)?;
    let mut least = trial.error(best);
    if min == max {
        return Ok(best);
    }
    for step in 0..STEPS {
        let part = SMALLEST + (LARGEST - SMALLEST) * step as f32 / (STEPS - 1) as f32;
        let params = QParams::from_range(min * part, max * part, bits, symmetric, scale_type)?;
        let turned = symmetric.then_some(QParams { scale: -params.scale, ..params });
        for params in [Some(params), turned].into_iter().flatten() {
            let error = trial.error(params);
            if error < least {
                (best, least) = (params, error);
            }
        }
    }
    for _ in 0..FITS {
        let Some(scale) = trial.fitted_scale(best) else { break };
        let params = QParams { scale: scale_type.round(scale)?, ..best };
        let error = trial.error(params);
        if error >= least {
            break;
        }
        (best, least) = (params, error);
    }
    Ok(best)
}

struct Trial<'a> {
    weights: &'a [f32],
    importance: &'a [f32],
    bits: Bits,
    codes: Vec<u8>,
}

impl Trial<'_> {
    fn encode(&mut self, params: QParams) {
        let QParams { scale, zero_point } = params;
        let (midpoint, max_code) = (self.bits.midpoint(), self.bits.max_code());
        encode_group(self.weights, scale, zero_point, midpoint, max_code, &mut self.codes);
    }

    fn error(&self, params: QParams) -> f32 {
        params.weighted_error(self.weights, self.importance, self.bits)
    }

    /// The best scale for the codes of `params`. `None` if all codes are the zero point, or if the sign changes.
    fn fitted_scale(&mut self, params: QParams) -> Option<f32> {
        self.encode(params);
        let (mut top, mut bottom) = (0.0, 0.0);
        for ((&w, &code), &importance) in self.weights.iter().zip(&self.codes).zip(self.importance) {
            let steps = f32::from(code) - f32::from(params.zero_point);
            top += importance * w * steps;
            bottom += importance * steps * steps;
        }
        (bottom > 0.0 && top * params.scale > 0.0).then_some(top / bottom)
    }
}

#[cfg(test)]
mod tests {
    use super::super::qparams::range;
    use super::*;
    use proptest::prelude::*;

    fn error(weights: &[f32], importance: &[f32], params: QParams, bits: Bits) -> f64 {
        let square = |(w, i): (&f32, &f32)| {
            let error = f64::from(w - params.decode(params.encode(*w, bits)));
            f64::from(*i) * error * error
        };
        weights.iter().zip(importance).map(square).sum()
    }

    #[test]
    fn an_outlier_that_does_not_matter_is_clipped() {
        let mut weights: Vec<f32> = (0..31).map(|i| (i as f32 - 15.0) / 100.0).collect();
        weights.push(0.5);
        let mut importance = vec![1.0; 32];
        importance[31] = 1e-3;
        let range = range(&weights).unwrap();
        let found = search(&weights, &importance, range, Bits::Four, true, ScaleType::F32).unwrap();
        let spanning = QParams::from_range(range.0, range.1, Bits::Four, true, ScaleType::F32).unwrap();
        assert!(found.scale < 0.6 * spanning.scale, "{} of {}", found.scale, spanning.scale);
    }

    #[test]
    fn the_longer_side_gets_the_code_more() {
        for sign in [1.0, -1.0] {
            // Eight steps to one side and seven to the other.
            let weights: Vec<f32> = (-8..8).map(|i| sign * i as f32 / 16.0).collect();
            let range = range(&weights).unwrap();
            let found = search(&weights, &[1.0; 16], range, Bits::Four, true, ScaleType::F16).unwrap();
            assert_eq!(found.scale, sign / 16.0);
            assert_eq!(error(&weights, &[1.0; 16], found, Bits::Four), 0.0);
            let found = search(&weights, &[1.0; 16], range, Bits::Four, false, ScaleType::F16).unwrap();
            assert!(found.scale > 0.0);
        }
    }

    proptest! {
        #[test]
        fn never_worse_than_the_range_itself(
            weights in prop::collection::vec(-4f32..4.0, 1..40),
            random in prop::collection::vec(0f32..2.0, 40),
            bits in prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]),
            symmetric: bool,
        ) {
            let importance = &random[..weights.len()];
            let range = range(&weights).unwrap();
            let found = search(&weights, importance, range, bits, symmetric, ScaleType::F16).unwrap();
            let spanning = QParams::from_range(range.0, range.1, bits, symmetric, ScaleType::F16).unwrap();
            prop_assert!(found.scale.is_finite() && (found.scale > 0.0 || symmetric && found.scale < 0.0));
            // Sums in f32 and in f64 may differ in their last digits.
            let (found, spanning) = (error(&weights, importance, found, bits), error(&weights, importance, spanning, bits));
            prop_assert!(found <= spanning * 1.00001 + 1e-9, "{found} above {spanning}");
        }
    }
}
