//! The gate of a gated MLP, backward: `dup = dy * act(gate)`, `dgate = dy * up * act'(gate)`. Floor 4.

use crate::backend::GateActivation;
use crate::backend::cpu::exp::exp;
use crate::backend::cpu::parallel::Workers;

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
        let (gate, up) = gate_up[row * 2 * width..(row + 1) * 2 * width].split_at(width);
        let dy = &dy[row * width..(row + 1) * width];
        let (dgate, dup) = dx.split_at_mut(width);
        for i in 0..width {
            let (value, slope) = match activation {
                GateActivation::Silu => {
                    let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
                    (gate[i] * sigmoid, sigmoid * (1.0 + gate[i] * (1.0 - sigmoid)))
                }
                GateActivation::SquaredRelu => {
                    // Written so that a NaN passes.
                    let positive = if gate[i] < 0.0 { 0.0 } else { gate[i] };
                    (positive * positive, 2.0 * positive)
                }
            };
            dup[i] = dy[i] * value;
            dgate[i] = dy[i] * up[i] * slope;
        }
    });
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
