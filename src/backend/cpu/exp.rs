//! The exponential function, the same bits on every target.
//!
//! 1. `x = n ln 2 + r` with `n` an integer and `|r| <= ln(2) / 2`; `ln 2` is taken in two pieces (Cody and Waite 1980).
//! 2. The Taylor polynomial of degree 7 gives `exp(r)`; its truncation error is below `6e-9` of the result.
//! 3. The result is multiplied by `2^n` in two steps, so that subnormal results are correct too.
//!
//! There is no branch and no fused multiply-add, so compilers vectorize loops over it at any width.

/// `e^x`: 0 below -104, infinity above 89, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// `ln 2` to 11 bits, so that its product with `n` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    /// The rest of `ln 2`.
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Adding this rounds off the fraction: the sum's last bits are the nearest integer.
    const MAGIC: f32 = 12_582_912.0;

    // Written so that NaN propagates.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::exp;

    /// Largest relative error for normal results. Measured 1.0e-7, less than two units in the last place.
    const TOLERANCE: f64 = 1.5e-7;

    #[test]
    fn agrees_with_the_f64_function_everywhere() {
        let mut worst = 0.0f64;
        let steps = 2_000_000;
        for step in 0..=steps {
            let x = -87.3 + 176.0 * (f64::from(step) / f64::from(steps));
            let x = x as f32;
            let expected = f64::from(x).exp();
            if expected < f64::from(f32::MAX) {
                worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
            }
        }
        println!("worst relative error {worst:e}");
        assert!(worst < TOLERANCE, "{worst}");
    }

    #[test]
    fn the_edges_are_what_they_should_be() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!((exp(-100.0) / libm::expf(-100.0) - 1.0).abs() < 0.05, "a subnormal result");
    }
}
