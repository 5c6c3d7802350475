//! Compares derivatives with central differences of the forward step, in double precision.

use super::super::testing::{Random, backend, f32_buffer, read};
use super::super::{CpuBackend, CpuBuffer, CpuWeight};
use crate::backend::{BackwardStep, Train};

/// Largest deviation of a derivative, relative to the largest of its input (or 1). Measured 2.2e-7.
const TOLERANCE: f64 = 2e-6;
/// Step of the differences. Their own error is about its square.
const STEP: f64 = 1e-5;
/// Initial value of every derivative: steps that accumulate must keep it.
const BEFORE: f32 = 0.125;

/// Inputs of a step, and the derivative of the loss by its output.
pub(super) struct Case {
    pub(super) inputs: Vec<Vec<f32>>,
    pub(super) dy: Vec<f32>,
}

impl Case {
    /// Random inputs and output derivative of these lengths.
    pub(super) fn new(inputs: &[usize], output: usize) -> Self {
        let mut random = Random::new(inputs.iter().sum::<usize>() as u64);
        Self { inputs: inputs.iter().map(|&len| random.floats(len)).collect(), dy: random.floats(output) }
    }
}

/// A backend whose backward steps must not fail.
pub(super) trait Checked {
    fn backward_checked(&mut self, step: BackwardStep<'_, CpuBuffer, CpuWeight>);
}

impl Checked for CpuBackend {
    fn backward_checked(&mut self, step: BackwardStep<'_, CpuBuffer, CpuWeight>) {
        self.backward(step).unwrap();
    }
}

pub(super) fn buffer(backend: &mut CpuBackend, data: &[f32]) -> CpuBuffer {
    f32_buffer(backend, data)
}

/// Compares the derivatives of `step` with central differences of `sum of dy * forward(inputs)`. Runs with one thread
/// and with three, which must give the same bits. A step may overwrite derivatives or accumulate.
pub(super) fn check(
    case: Case,
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    step: impl Fn(&mut CpuBackend, &[CpuBuffer], &[f32], &mut [CpuBuffer]),
) {
    let Case { inputs, dy } = case;
    let wide: Vec<Vec<f64>> =
        inputs.iter().map(|input| input.iter().map(|&value| f64::from(value)).collect()).collect();
    let loss = |inputs: &[Vec<f64>]| -> f64 {
        forward(inputs).iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
    };
    let found = [1, 3].map(|threads| {
        let mut backend = backend(threads, true);
        let buffers: Vec<CpuBuffer> = inputs.iter().map(|input| buffer(&mut backend, input)).collect();
        let mut derivatives: Vec<CpuBuffer> =
            inputs.iter().map(|input| buffer(&mut backend, &vec![BEFORE; input.len()])).collect();
        step(&mut backend, &buffers, &dy, &mut derivatives);
        derivatives.iter().map(|derivative| read(&mut backend, derivative)).collect::<Vec<_>>()
    });
    assert_eq!(found[0], found[1], "bits depend on the threads");
    for (index, found) in found[0].iter().enumerate() {
        let expected: Vec<f64> = (0..found.len())
            .map(|element| {
                let mut moved = wide.clone();
                moved[index][element] += STEP;
                let above = loss(&moved);
                moved[index][element] -= 2.0 * STEP;
                (above - loss(&moved)) / (2.0 * STEP)
            })
            .collect();
        let largest = expected.iter().fold(1.0f64, |most, value| most.max(value.abs()));
        let off = |before: f64| {
            let errors =
                found.iter().zip(&expected).map(|(&f, e)| (f64::from(f) - before - e).abs() / largest);
            errors.fold(0.0, |most: f64, error| if error.is_nan() { f64::INFINITY } else { most.max(error) })
        };
        let worst = off(0.0).min(off(f64::from(BEFORE)));
        println!("input {index}: largest deviation {worst:.1e}");
        assert!(worst < TOLERANCE, "input {index}: {worst:e}, {found:?}, not {expected:?}");
    }
}
