//! Backward step of RMS normalization. With the weight `g`, `r = 1 / sqrt(mean(x^2) + eps)` and `n = x r`:
//! - `dg += dy * n`
//! - `dx += r (dy * g - n mean(dy * g * n))`

use crate::backend::cpu::parallel::Workers;
use multiversion::multiversion;

/// Columns of the weight's derivative per task.
const BAND: usize = 64;
/// Accumulators of a sum.
const LANES: usize = 8;

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
        add_columns(x, dy, width, &factors, band * BAND, dweight);
    });
}

/// The derivatives by the weights from `first` on.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_columns(x: &[f32], dy: &[f32], width: usize, factors: &[f64], first: usize, dweight: &mut [f32]) {
    let mut sums = [0.0f64; BAND];
    for ((x, dy), factor) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(factors) {
        let (x, dy) = (&x[first..], &dy[first..]);
        for ((sum, x), dy) in sums[..dweight.len()].iter_mut().zip(x).zip(dy) {
            *sum += f64::from(*dy) * f64::from(*x) * factor;
        }
    }
    for (dweight, sum) in dweight.iter_mut().zip(sums) {
        *dweight += sum as f32;
    }
}

/// One row; returns `r`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_row(x: &[f32], dy: &[f32], weight: &[f32], epsilon: f32, dx: &mut [f32]) -> f64 {
    let width = x.len() as f64;
    // In double precision: the cost is negligible beside the linear layers, and rows may be long.
    let (mut squares, mut along) = ([0.0f64; LANES], [0.0f64; LANES]);
    let mut add = |lane: usize, x: f32, dy: f32, g: f32| {
        let x = f64::from(x);
        squares[lane] += x * x;
        along[lane] += f64::from(dy) * f64::from(g) * x;
    };
    let ((xs, x_rest), (dys, dy_rest), (gs, g_rest)) =
        (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>(), weight.as_chunks::<LANES>());
    for ((x, dy), g) in xs.iter().zip(dys).zip(gs) {
        for lane in 0..LANES {
            add(lane, x[lane], dy[lane], g[lane]);
        }
    }
    for (lane, ((x, dy), g)) in x_rest.iter().zip(dy_rest).zip(g_rest).enumerate() {
        add(lane, *x, *dy, *g);
    }
    let factor = 1.0 / (squares.iter().sum::<f64>() / width + f64::from(epsilon)).sqrt();
    let mean = along.iter().sum::<f64>() * factor / width;
    for (((dx, &x), &dy), &g) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
        let normalized = f64::from(x) * factor;
        *dx += (factor * (f64::from(dy) * f64::from(g) - normalized * mean)) as f32;
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
