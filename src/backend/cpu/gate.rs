//! The gate of a gated MLP.

use super::exp::exp;
use super::parallel::Workers;
use crate::backend::GateActivation;
use multiversion::multiversion;

/// `out[t, i] = act(gate[t, i]) * up[t, i]`; `gate_up` is `[count, 2 * width]`, gate first; `out` is `[count, width]`.
pub(super) fn gate(
    workers: &Workers,
    gate_up: &[f32],
    width: usize,
    activation: GateActivation,
    out: &mut [f32],
) {
    workers.run_chunks(out, width, gate_up.len() * 8, |row, out| {
        let (gate, up) = gate_up[row * 2 * width..(row + 1) * 2 * width].split_at(width);
        gate_row(gate, up, activation, out);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn gate_row(gate: &[f32], up: &[f32], activation: GateActivation, out: &mut [f32]) {
    let operands = out.iter_mut().zip(gate).zip(up);
    match activation {
        GateActivation::Silu => {
            for ((out, &gate), &up) in operands {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
        GateActivation::SquaredRelu => {
            for ((out, &gate), &up) in operands {
                // Written so that NaN propagates.
                let positive = if gate < 0.0 { 0.0 } else { gate };
                *out = positive * positive * up;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, backend, f32_buffer, read};
    use crate::backend::{Backend, DeviceOps, Element, GateActivation};

    /// Largest deviation from the `f64` oracle, relative to `max(1, |expected|)`. Measured 2.4e-7.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn agrees_with_the_oracle_over_the_whole_range() {
        let mut random = Random::new(1);
        for (count, width) in [(1, 1), (2, 7), (3, 172), (200, 333)] {
            let mut gate_up = random.floats(count * 2 * width);
            for (i, value) in gate_up.iter_mut().enumerate() {
                *value *= [1.0, 10.0, 120.0][i % 3];
            }
            for activation in [GateActivation::Silu, GateActivation::SquaredRelu] {
                let mut results = Vec::new();
                for (threads, simd) in [(1, true), (3, true), (1, false)] {
                    let mut backend = backend(threads, simd);
                    let input = f32_buffer(&mut backend, &gate_up);
                    let mut out = backend.buffer(Element::F32, count * width).unwrap();
                    backend.gate(&input, count, width, activation, &mut out).unwrap();
                    results.push(read(&mut backend, &out));
                }
                assert_eq!(results[0], results[1], "threads must not change bits");
                assert_eq!(results[0], results[2], "nor vector instructions");
                for (i, &found) in results[0].iter().enumerate() {
                    let at = i / width * 2 * width + i % width;
                    let (gate, up) = (f64::from(gate_up[at]), f64::from(gate_up[at + width]));
                    let expected = up
                        * match activation {
                            GateActivation::Silu => gate / (1.0 + (-gate).exp()),
                            GateActivation::SquaredRelu => gate.max(0.0).powi(2),
                        };
                    let error = (f64::from(found) - expected).abs() / expected.abs().max(1.0);
                    assert!(error < TOLERANCE, "{activation:?} of {gate}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn broken_numbers_stay_visible() {
        let mut backend = backend(1, true);
        for activation in [GateActivation::Silu, GateActivation::SquaredRelu] {
            let input = f32_buffer(&mut backend, &[f32::NAN, f32::INFINITY, 1.0, 1.0]);
            let mut out = backend.buffer(Element::F32, 2).unwrap();
            backend.gate(&input, 1, 2, activation, &mut out).unwrap();
            assert!(read(&mut backend, &out).iter().all(|v| !v.is_finite()), "{activation:?}");
        }
    }
}
