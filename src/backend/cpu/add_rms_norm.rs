//! Residual addition and RMS normalization.

use super::parallel::Workers;

/// Accumulators of a mean of squares. The number is fixed, so every target gives the same bits.
const LANES: usize = 16;

/// `residual += delta` (if given), then `out = residual / sqrt(mean(residual^2) + epsilon) * weight`, row by row of
/// `[count, width]`. `width` is the length of `weight`.
///
/// Zhang and Sennrich 2019. As in transformers' Llama, the reciprocal root is multiplied first, then the weight.
pub(super) fn add_rms_norm(
    workers: &Workers,
    residual: &mut [f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    let work = residual.len() * 4;
    let mut rows: Vec<_> = residual.chunks_exact_mut(width).zip(out.chunks_exact_mut(width)).collect();
    workers.run_chunks(&mut rows, 1, work, |row, rows| {
        for (residual, out) in rows {
            if let Some(delta) = delta {
                for (residual, delta) in residual.iter_mut().zip(&delta[row * width..]) {
                    *residual += delta;
                }
            }
            normalize(residual, weight, epsilon, out);
        }
    });
}

/// One row: `out = x / sqrt(mean(x^2) + epsilon) * weight`.
pub(super) fn normalize(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let factor = inverse_rms(x, epsilon);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

/// As [`normalize`], in place.
pub(super) fn normalize_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let factor = inverse_rms(x, epsilon);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * factor * weight;
    }
}

fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += x * x;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    1.0 / (lanes[0] / x.len() as f32 + epsilon).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, backend, f32_buffer, read};
    use crate::backend::{Backend, DeviceOps, Element, Norm};

    /// Largest deviation from the `f64` oracle for outputs of about 1. Measured 2.5e-7.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn agrees_with_the_oracle_and_updates_the_residual() {
        let mut random = Random::new(1);
        for (count, width) in [(1, 1), (1, 7), (3, 16), (2, 172), (5, 331), (300, 768)] {
            for with_delta in [false, true] {
                let (x, delta, w) =
                    (random.floats(count * width), random.floats(count * width), random.floats(width));
                let mut results = Vec::new();
                for threads in [1, 3] {
                    let mut backend = backend(threads, true);
                    let norm = Norm { weight: f32_buffer(&mut backend, &w), width, epsilon: 1e-5 };
                    let mut residual = f32_buffer(&mut backend, &x);
                    let delta_buffer = f32_buffer(&mut backend, &delta);
                    let mut out = backend.buffer(Element::F32, count * width).unwrap();
                    let given = with_delta.then_some(&delta_buffer);
                    backend.add_rms_norm(&mut residual, given, count, norm.as_ref(), &mut out).unwrap();
                    results.push((read(&mut backend, &residual), read(&mut backend, &out)));
                }
                assert_eq!(results[0], results[1], "threads must not change bits");
                let (residual, out) = &results[0];
                for row in 0..count {
                    let at = row * width..(row + 1) * width;
                    let sums: Vec<f32> = x[at.clone()]
                        .iter()
                        .zip(&delta[at.clone()])
                        .map(|(x, d)| if with_delta { x + d } else { *x })
                        .collect();
                    assert_eq!(residual[at.clone()], sums);
                    let mean = sums.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let expected = f64::from(sums[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                        let found = f64::from(out[row * width + i]);
                        assert!((found - expected).abs() < TOLERANCE, "{found}, not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn short_operands_are_named() {
        let mut backend = backend(1, true);
        let norm = Norm { weight: f32_buffer(&mut backend, &[1.0; 8]), width: 8, epsilon: 1e-5 };
        let mut residual = backend.buffer(Element::F32, 16).unwrap();
        let mut out = backend.buffer(Element::F32, 15).unwrap();
        let error = backend.add_rms_norm(&mut residual, None, 2, norm.as_ref(), &mut out).unwrap_err();
        assert_eq!(error.to_string(), "add_rms_norm: out needs 16 elements but the buffer holds 15");
    }
}
