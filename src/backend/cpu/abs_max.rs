//! The largest magnitude of each column of activations: what AWQ scales by. Floor 4.

/// `out[column] = max(out[column], |x[t, column]|)` over all tokens; `x` is `[tokens, cols]`. A column with a NaN or an
/// infinity gives NaN or infinity.
pub(super) fn abs_max(x: &[f32], cols: usize, out: &mut [f32]) {
    for token in x.chunks_exact(cols) {
        for (out, value) in out.iter_mut().zip(token) {
            // Magnitudes have the order of their bits, and so NaN is above infinity.
            *out = f32::from_bits(out.to_bits().max(value.abs().to_bits()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_largest_and_what_is_broken() {
        let mut out = [0.5, 0.0, 0.0, 0.0];
        let x = [0.25, -2.0, 1.0, f32::NAN, -0.125, 1.0, f32::NEG_INFINITY, 3.0];
        abs_max(&x, 4, &mut out);
        assert_eq!(out[..3], [0.5, 2.0, f32::INFINITY]);
        assert!(out[3].is_nan());
    }
}
