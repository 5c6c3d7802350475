//! Backward step of a gated MLP's gate: `dup = dy * act(gate)`, `dgate = dy * up * act'(gate)`.

use crate::backend::GateActivation;
use crate::backend::cpu::exp::exp;
use crate::backend::cpu::parallel::Workers;
use multiversion::multiversion;

/// `gate_up` and `dx` are `[count, 2 * width]`, gate first; `dy` is `[count, width]`.
pub(super) fn gate(
    workers: &Workers,
    gate_up: &[f32],
    dy: &[f32],
    width: usize,
    activation: GateActivation,
    dx: &mut [f32],
) {
    if width == 0 {
        return;
    }
    workers.run_chunks(dx, 2 * width, gate_up.len() * 8, |row, dx| {
        let operands =
            (&gate_up[row * 2 * width..(row + 1) * 2 * width], &dy[row * width..(row + 1) * width]);
        // One loop per activation, so that no loop has a branch.
        match activation {
            GateActivation::Silu => silu(operands, dx),
            GateActivation::SquaredRelu => squared_relu(operands, dx),
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn silu(operands: (&[f32], &[f32]), dx: &mut [f32]) {
    gate_row(operands, dx, |gate| {
        let sigmoid = 1.0 / (1.0 + exp(-gate));
        (gate * sigmoid, sigmoid * (1.0 + gate * (1.0 - sigmoid)))
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn squared_relu(operands: (&[f32], &[f32]), dx: &mut [f32]) {
    gate_row(operands, dx, |gate| {
        // Written so that NaN propagates.
        let positive = if gate < 0.0 { 0.0 } else { gate };
        (positive * positive, 2.0 * positive)
    });
}

/// One row; `activated` returns value and slope of the activation.
#[inline(always)]
fn gate_row((gate_up, dy): (&[f32], &[f32]), dx: &mut [f32], activated: impl Fn(f32) -> (f32, f32)) {
    let width = dy.len();
    let ((gate, up), (dgate, dup)) = (gate_up.split_at(width), dx.split_at_mut(width));
    for ((((dgate, dup), &gate), up), dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
        let (value, slope) = activated(gate);
        *dup = dy * value;
        *dgate = dy * up * slope;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, check};
    use crate::backend::{BackwardStep, GateActivation};

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for activation in [GateActivation::Silu, GateActivation::SquaredRelu] {
            for (count, width) in [(1, 1), (3, 17)] {
                check(
                    Case::new(&[count * 2 * width], count * width),
                    |inputs| {
                        let row = |row: &[f64]| -> Vec<f64> {
                            let (gate, up) = row.split_at(width);
                            let act = |z: f64| match activation {
                                GateActivation::Silu => z / (1.0 + (-z).exp()),
                                GateActivation::SquaredRelu => z.max(0.0) * z.max(0.0),
                            };
                            gate.iter().zip(up).map(|(&gate, up)| act(gate) * up).collect()
                        };
                        inputs[0].chunks(2 * width).flat_map(row).collect()
                    },
                    |backend, inputs, dy, derivatives| {
                        let dy = super::super::testing::buffer(backend, dy);
                        let [dx] = derivatives else { unreachable!() };
                        let gate_up = &inputs[0];
                        backend.backward_checked(BackwardStep::Gate {
                            gate_up,
                            dy: &dy,
                            count,
                            width,
                            activation,
                            dx,
                        });
                    },
                );
            }
        }
    }
}
