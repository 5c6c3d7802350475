//! RMS normalization, backward. With `r = 1 / sqrt(mean(x^2) + eps)` and `n = x r`: `dg += dy * n`, and
//! `dx += r (dy * g - n mean(dy * g * n))`. Floor 4.

/// `x`, `dy` and `dx` are `[count, width]`, where `width` is the length of `weight`.
pub(super) fn rms_norm(
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    epsilon: f32,
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let width = weight.len().max(1);
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        add_row(x, dy, weight, epsilon, dx, dweight);
    }
}

/// One row.
pub(super) fn add_row(
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    epsilon: f32,
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let width = x.len() as f64;
    // In double precision: it costs nothing beside the linear layers, and a row may be long.
    let mean_square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width;
    let factor = 1.0 / (mean_square + f64::from(epsilon)).sqrt();
    let along = x.iter().zip(dy).zip(weight);
    let along: f64 = along.map(|((&x, &dy), &g)| f64::from(dy) * f64::from(g) * f64::from(x) * factor).sum();
    let mean = along / width;
    for (i, (dx, dweight)) in dx.iter_mut().zip(dweight).enumerate() {
        let normalized = f64::from(x[i]) * factor;
        *dx += (factor * (f64::from(dy[i]) * f64::from(weight[i]) - normalized * mean)) as f32;
        *dweight += (f64::from(dy[i]) * normalized) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, check};
    use crate::backend::{BackwardStep, Norm};

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for (count, width, epsilon) in [(1, 1, 1e-5f32), (3, 7, 1e-5), (2, 64, 0.5)] {
            check(
                Case::new(&[count * width, width], count * width),
                |inputs| {
                    let (x, g) = (&inputs[0], &inputs[1]);
                    let row = |x: &[f64]| -> Vec<f64> {
                        let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                        let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
                        x.iter().zip(g).map(|(x, g)| x * factor * g).collect()
                    };
                    x.chunks(width).flat_map(row).collect()
                },
                |backend, inputs, dy, derivatives| {
                    let dy = super::super::testing::buffer(backend, dy);
                    let [dx, dweight] = derivatives else { unreachable!() };
                    let norm = Norm { weight: &inputs[1], width, epsilon };
                    backend.backward_checked(BackwardStep::RmsNorm {
                        x: &inputs[0],
                        dy: &dy,
                        count,
                        norm,
                        dx,
                        dweight,
                    });
                },
            );
        }
    }
}
