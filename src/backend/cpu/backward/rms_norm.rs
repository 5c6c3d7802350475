//! RMS normalization, backward. With `r = 1 / sqrt(mean(x^2) + eps)` and `n = x r`: `dg += dy * n`, and
//! `dx += r (dy * g - n mean(dy * g * n))`. Floor 4.

use crate::backend::cpu::parallel::Workers;

/// Columns of the weight's derivative that one task adds up.
const BAND: usize = 64;

/// `x`, `dy` and `dx` are `[count, width]`, where `width` is the length of `weight`.
pub(super) fn rms_norm(
    workers: &Workers,
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    epsilon: f32,
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let width = weight.len();
    if width == 0 {
        return;
    }
    let work = x.len() * 8;
    let mut factors = vec![0.0f64; x.len() / width];
    let mut rows: Vec<_> = dx.chunks_exact_mut(width).zip(&mut factors).collect();
    workers.run_chunks(&mut rows, 1, work, |row, rows| {
        let span = row * width..(row + 1) * width;
        for (dx, factor) in rows {
            **factor = add_row(&x[span.clone()], &dy[span.clone()], weight, epsilon, dx);
        }
    });
    workers.run_chunks(dweight, BAND, work, |band, dweight| {
        let first = band * BAND;
        let mut sums = [0.0f64; BAND];
        for ((x, dy), factor) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(&factors) {
            let (x, dy) = (&x[first..], &dy[first..]);
            for ((sum, x), dy) in sums[..dweight.len()].iter_mut().zip(x).zip(dy) {
                *sum += f64::from(*dy) * f64::from(*x) * factor;
            }
        }
        for (dweight, sum) in dweight.iter_mut().zip(sums) {
            *dweight += sum as f32;
        }
    });
}

/// One row; gives `r`.
fn add_row(x: &[f32], dy: &[f32], weight: &[f32], epsilon: f32, dx: &mut [f32]) -> f64 {
    let width = x.len() as f64;
    // In double precision: it costs nothing beside the linear layers, and a row may be long.
    let mean_square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width;
    let factor = 1.0 / (mean_square + f64::from(epsilon)).sqrt();
    let along = x.iter().zip(dy).zip(weight);
    let along: f64 = along.map(|((&x, &dy), &g)| f64::from(dy) * f64::from(g) * f64::from(x) * factor).sum();
    let mean = along / width;
    for (i, dx) in dx.iter_mut().enumerate() {
        let normalized = f64::from(x[i]) * factor;
        *dx += (factor * (f64::from(dy[i]) * f64::from(weight[i]) - normalized * mean)) as f32;
    }
    factor
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
