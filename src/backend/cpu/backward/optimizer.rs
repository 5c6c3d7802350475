//! Steps on known gradients: sum of squares, derivatives of learned scales, AdamW.

use crate::backend::cpu::parallel::Workers;
use crate::backend::{AdamW, Master, ScaledGrid};
use multiversion::multiversion;

/// Elements per task.
const PIECE: usize = 16 * 1024;
/// Accumulators of a sum.
const LANES: usize = 16;

/// The sum of squares, in double precision. Pieces are added in their order, so the number of threads does not matter.
pub(super) fn sum_of_squares(workers: &Workers, x: &[f32]) -> f64 {
    let mut pieces = vec![0.0; x.len().div_ceil(PIECE)];
    workers.run_chunks(&mut pieces, 1, x.len(), |index, sum| {
        sum[0] = squares(&x[index * PIECE..x.len().min((index + 1) * PIECE)]);
    });
    pieces.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn squares(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(chunk[lane]) * f64::from(chunk[lane]);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    sums.iter().sum()
}

/// See [`crate::backend::BackwardStep::LearnedScales`]. `weight` and `dweight` are `[rows, cols]`; `scales` and
/// `dscales` have the shape that `grid` gives.
pub(super) fn learned_scales(
    workers: &Workers,
    weight: Master<&[u32]>,
    scales: &[f32],
    grid: ScaledGrid,
    dweight: &mut [f32],
    dscales: &mut [f32],
) {
    let ScaledGrid { cols, group_size, low, high, .. } = grid;
    if cols == 0 {
        return;
    }
    let (groups, group) = if group_size == 0 { (1, cols) } else { (grid.groups(), group_size) };
    // One sum per row and group, even if all share one scale.
    let mut sums = vec![0.0f64; grid.rows * groups];
    let mut rows: Vec<_> = dweight.chunks_exact_mut(cols).zip(sums.chunks_exact_mut(groups)).collect();
    workers.run_chunks(&mut rows, 1, grid.rows * cols * 4, |row, rows| {
        let mut weights = vec![0.0; cols];
        read(weight, row * cols, &mut weights);
        for (dweight, sums) in rows {
            let parts = dweight.chunks_mut(group).zip(weights.chunks(group)).zip(&mut **sums);
            for (index, ((dweight, weights), sum)) in parts.enumerate() {
                let scale = scales[if group_size == 0 { 0 } else { row * groups + index }];
                for (dweight, &weight) in dweight.iter_mut().zip(weights) {
                    let v = weight / scale;
                    let by_scale = if v <= low {
                        low
                    } else if v >= high {
                        high
                    } else {
                        v.round_ties_even() - v
                    };
                    *sum += f64::from(*dweight) * f64::from(by_scale);
                    if v <= low || v >= high {
                        *dweight = 0.0;
                    }
                }
            }
        }
    });
    if group_size == 0 {
        dscales[0] += sums.iter().sum::<f64>() as f32;
    } else {
        for (dscale, sum) in dscales.iter_mut().zip(sums) {
            *dscale += sum as f32;
        }
    }
}

/// Reads values from `first` on.
fn read(master: Master<&[u32]>, first: usize, out: &mut [f32]) {
    match master {
        Master::Single(bits) => {
            for (out, bits) in out.iter_mut().zip(&bits[first..]) {
                *out = f32::from_bits(*bits);
            }
        }
        Master::Half(words) => {
            for (index, out) in (first..).zip(out) {
                *out = f32::from_bits(if index % 2 == 0 {
                    words[index / 2] << 16
                } else {
                    words[index / 2] & 0xFFFF_0000
                });
            }
        }
    }
}

/// A step of AdamW. All slices are `[len]`, except for half-precision values: two to a word.
pub(super) fn adamw(
    workers: &Workers,
    value: Master<&mut [u32]>,
    gradient: &[f32],
    (context, squares): (&mut [f32], &mut [f32]),
    update: AdamW,
) {
    let step = Step::new(update);
    let work = gradient.len() * 8;
    let pieces = gradient.chunks(PIECE).zip(context.chunks_mut(PIECE).zip(squares.chunks_mut(PIECE)));
    match value {
        Master::Single(values) => {
            let mut pieces: Vec<_> = pieces.zip(values.chunks_mut(PIECE)).collect();
            workers.run_chunks(&mut pieces, 1, work, |_, pieces| {
                for ((gradient, (context, squares)), values) in pieces {
                    adamw_piece(step, bytemuck::cast_slice_mut(values), gradient, context, squares);
                }
            });
        }
        Master::Half(words) => {
            let mut pieces: Vec<_> = pieces.zip(words.chunks_mut(PIECE / 2)).collect();
            workers.run_chunks(&mut pieces, 1, work, |index, pieces| {
                let mut values = vec![0.0; PIECE];
                for ((gradient, (context, squares)), words) in pieces {
                    let values = &mut values[..gradient.len()];
                    read(Master::Half(words), 0, values);
                    adamw_piece(step, values, gradient, context, squares);
                    for (place, (word, pair)) in words.iter_mut().zip(values.chunks(2)).enumerate() {
                        let random =
                            random_bits(update.seed, update.step, (index * PIECE / 2 + place) as u64);
                        let low = rounded(pair[0], random as u16);
                        let high = pair.get(1).map_or(0, |&value| rounded(value, (random >> 16) as u16));
                        *word = u32::from(low) | u32::from(high) << 16;
                    }
                }
            });
        }
    }
}

/// Stochastic rounding to bfloat16: the probability of rounding up is the lower half divided by `2^16`. NaN and
/// infinity stay unchanged.
fn rounded(value: f32, random: u16) -> u16 {
    let bits = value.to_bits();
    let up = if value.is_finite() { bits.saturating_add(u32::from(random)) } else { bits };
    // A value that becomes infinite was within one bfloat16 step of it.
    (up >> 16) as u16
}

/// Random bits for each step and place (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, 2014).
fn random_bits(seed: u64, step: u64, place: u64) -> u64 {
    let mix = |z: u64| {
        let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    };
    mix(mix(seed.wrapping_add(step.wrapping_mul(0x9E37_79B9_7F4A_7C15))).wrapping_add(place))
}

/// Constants of a step, the same for all elements.
#[derive(Clone, Copy)]
struct Step {
    betas: (f32, f32),
    rests: (f32, f32),
    clip: f32,
    kept: f32,
    /// Learning rate with the bias correction of the first moment: `rate / (1 - beta_1^step)`.
    rate: f32,
    /// Bias correction of the second moment's root: `1 / sqrt(1 - beta_2^step)`.
    root: f32,
    epsilon: f32,
}

impl Step {
    fn new(update: AdamW) -> Self {
        let AdamW { rate, betas, epsilon, decay, clip, step, .. } = update;
        let short = |beta: f64| 1.0 - libm::pow(beta, step as f64);
        Self {
            betas: (betas.0 as f32, betas.1 as f32),
            rests: ((1.0 - betas.0) as f32, (1.0 - betas.1) as f32),
            clip: clip as f32,
            kept: (1.0 - rate * decay) as f32,
            rate: (rate / short(betas.0)) as f32,
            root: (1.0 / libm::sqrt(short(betas.1))) as f32,
            epsilon: epsilon as f32,
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn adamw_piece(step: Step, values: &mut [f32], gradient: &[f32], context: &mut [f32], squares: &mut [f32]) {
    let Step { betas, rests, clip, kept, rate, root, epsilon } = step;
    for (((value, gradient), mean), square) in values.iter_mut().zip(gradient).zip(context).zip(squares) {
        let gradient = gradient * clip;
        *mean = betas.0 * *mean + rests.0 * gradient;
        *square = betas.1 * *square + rests.1 * gradient * gradient;
        *value = *value * kept - rate * *mean / (square.sqrt() * root + epsilon);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, check};
    use super::*;
    use crate::backend::cpu::testing::{Random, backend, f32_buffer, read as read_buffer, u32_buffer};
    use crate::backend::{BackwardStep, Train};

    #[test]
    fn a_scale_s_derivative_is_that_of_what_is_rounded() {
        // Small differences do not change the code `q / scale`. What remains of LSQ's derivative by the scale is the
        // derivative of `q` at a fixed code, minus `w / scale` inside the bounds, where the derivative by the weight is
        // 1.
        for (rows, cols, group_size) in [(1, 1, 1), (3, 10, 4), (2, 8, 0)] {
            let grid = ScaledGrid { rows, cols, group_size, low: -2.0, high: 1.0 };
            let mut case = Case::new(&[rows * cols, grid.scales()], rows * cols);
            case.inputs[1].iter_mut().for_each(|scale| *scale = scale.abs() + 0.3);
            let (weights, scales) = (case.inputs[0].clone(), case.inputs[1].clone());
            let at = move |i: usize| {
                let groups = cols.div_ceil(group_size.max(1));
                (i % cols).checked_div(group_size).map_or(0, |group| i / cols * groups + group)
            };
            check(
                case,
                |inputs| {
                    let term = |i: usize| {
                        let (w, s) = (inputs[0][i], inputs[1][at(i)]);
                        let (w0, s0) = (f64::from(weights[i]), f64::from(scales[at(i)]));
                        let v = w0 / s0;
                        let code = v.clamp(-2.0, 1.0).round_ties_even();
                        if -2.0 < v && v < 1.0 { w + (code - v) * s } else { code * s }
                    };
                    (0..rows * cols).map(term).collect()
                },
                |backend, inputs, dy, derivatives| {
                    let [dweight, dscales] = derivatives else { unreachable!() };
                    // The step updates this in place: it begins as the derivative by `q`, not as `BEFORE`.
                    *dweight = f32_buffer(backend, dy);
                    backend.backward_checked(BackwardStep::LearnedScales {
                        weight: Master::Single(&inputs[0]),
                        scales: &inputs[1],
                        grid,
                        dweight,
                        dscales,
                    });
                },
            );
        }
    }

    /// Largest relative deviation from double precision after some steps. Measured 3e-7.
    const STEP_ERROR: f64 = 2e-6;

    fn update(step: u64) -> AdamW {
        AdamW { rate: 0.01, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.1, clip: 0.5, step, seed: 7 }
    }

    #[test]
    fn steps_are_those_of_the_formula_with_any_number_of_threads() {
        let len = PIECE + 3;
        let mut random = Random::new(3);
        let start = random.floats(len);
        let gradients: Vec<Vec<f32>> = (0..3).map(|_| random.floats(len)).collect();
        let (mut value, mut mean, mut square) =
            (start.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), vec![0.0; len], vec![0.0; len]);
        for (index, gradient) in gradients.iter().enumerate() {
            let done = index as i32 + 1;
            for i in 0..len {
                let g = f64::from(gradient[i]) * 0.5;
                value[i] *= 1.0 - 0.01 * 0.1;
                mean[i] = 0.9 * mean[i] + 0.1 * g;
                square[i] = 0.95 * square[i] + 0.05 * g * g;
                let (m, v): (f64, f64) =
                    (mean[i] / (1.0 - 0.9f64.powi(done)), square[i] / (1.0 - 0.95f64.powi(done)));
                value[i] -= 0.01 * m / (v.sqrt() + 1e-8);
            }
        }
        let run = |threads: usize, half: bool| {
            let mut backend = backend(threads, true);
            let words: Vec<u32> = start
                .chunks(2)
                .map(|pair| pair[0].to_bits() >> 16 | pair.get(1).map_or(0, |v| v.to_bits() & 0xFFFF_0000))
                .collect();
            let mut value = if half {
                Master::Half(u32_buffer(&mut backend, &words))
            } else {
                Master::Single(f32_buffer(&mut backend, &start))
            };
            let (mut m, mut v) =
                (f32_buffer(&mut backend, &vec![0.0; len]), f32_buffer(&mut backend, &vec![0.0; len]));
            for (index, gradient) in gradients.iter().enumerate() {
                let gradient = f32_buffer(&mut backend, gradient);
                let moments = (&mut m, &mut v);
                let update = update(index as u64 + 1);
                backend
                    .backward(BackwardStep::AdamW {
                        value: value.as_mut(),
                        gradient: &gradient,
                        moments,
                        len,
                        update,
                    })
                    .unwrap();
            }
            let mut found = vec![0.0; len];
            let (Master::Single(buffer) | Master::Half(buffer)) = &value;
            let bits = buffer.bits();
            read(if half { Master::Half(bits) } else { Master::Single(bits) }, 0, &mut found);
            found
        };
        let found = run(1, false);
        assert_eq!(found, run(3, false), "bits depend on the threads");
        for (found, expected) in found.iter().zip(&value) {
            assert!(
                (f64::from(*found) - expected).abs() < STEP_ERROR * expected.abs().max(1.0),
                "{found}, not {expected}"
            );
        }
        let half = run(1, true);
        assert_eq!(half, run(3, true), "bits depend on the threads");
        // Each value is within 1/32 (four to eight bfloat16 steps), and the rounding has no bias.
        let mut drift = 0.0;
        for (half, value) in half.iter().zip(&value) {
            let off = f64::from(*half) - value;
            assert!(off.abs() < value.abs().max(0.01) / 32.0, "{half}, not {value}");
            drift += off / len as f64;
        }
        assert!(drift.abs() < 1e-4, "{drift:e}");
    }

    #[test]
    fn steps_far_below_the_precision_of_half_values_still_add_up() {
        let (len, steps) = (4096, 100u64);
        let mut backend = backend(1, true);
        let one = f32_buffer(&mut backend, &vec![1.0; len]);
        let mut value = Master::Half(u32_buffer(&mut backend, &vec![0x3F80_3F80; len / 2]));
        let (mut m, mut v) =
            (f32_buffer(&mut backend, &vec![0.0; len]), f32_buffer(&mut backend, &vec![0.0; len]));
        for step in 1..=steps {
            let update = AdamW { rate: 1e-4, decay: 0.0, clip: 1.0, ..update(step) };
            let moments = (&mut m, &mut v);
            backend
                .backward(BackwardStep::AdamW { value: value.as_mut(), gradient: &one, moments, len, update })
                .unwrap();
        }
        // The gradient is always 1, so each step subtracts the rate: 0.01 in total, where bfloat16 steps are 0.004.
        let mut found = vec![0.0; len];
        let Master::Half(words) = &value else { unreachable!() };
        read(Master::Half(words.bits()), 0, &mut found);
        let mean = found.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
        assert!((mean - 0.99).abs() < 2e-4, "{mean}");
    }

    #[test]
    fn squares_are_added_up_in_one_order() {
        let mut random = Random::new(9);
        let x = random.floats(3 * PIECE + 5);
        let expected: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let found = [1, 3].map(|threads| {
            let mut backend = backend(threads, true);
            let (x, mut out) = (f32_buffer(&mut backend, &x), f32_buffer(&mut backend, &[0.0]));
            backend.backward_checked(BackwardStep::SumOfSquares { x: &x, len: 3 * PIECE + 5, out: &mut out });
            read_buffer(&mut backend, &out)[0]
        });
        assert_eq!(found[0], found[1]);
        assert!((f64::from(found[0]) / expected - 1.0).abs() < 1e-6);
    }
}
