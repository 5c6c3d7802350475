//! Losses of predictions, and their derivatives by the logits `z`. With `p = softmax(z / t)` and the teacher's
//! probabilities `q`:
//! - Cross-entropy (`t` is 1): loss `-ln p[target]`, derivative `p - onehot(target)`.
//! - Divergence: loss `sum q (ln q - ln p)`, derivative `(p - q) / t`.

use crate::backend::NO_INDEX;
use crate::backend::cpu::exp::exp;
use crate::backend::cpu::parallel::Workers;
use crate::error::{Error, Result};
use multiversion::multiversion;

/// Rows per task.
const BAND: usize = 8;
/// Accumulators of a sum. They are in double precision, so that a large vocabulary costs no digits.
const LANES: usize = 16;

/// Rows of logits with their targets.
pub(super) struct Predictions<'a> {
    /// `[count, vocabulary]`
    pub(super) logits: &'a [f32],
    /// `[count]`; [`NO_INDEX`] for a row that does not count
    pub(super) targets: &'a [u32],
    pub(super) vocabulary: usize,
    /// Weight of a row in the loss.
    pub(super) share: f32,
}

impl Predictions<'_> {
    /// Writes each row's loss, and adds to `dlogits`.
    ///
    /// # Errors
    /// `invalid_argument` for a target outside the vocabulary.
    pub(super) fn cross_entropy(
        &self,
        workers: &Workers,
        dlogits: &mut [f32],
        losses: &mut [f32],
    ) -> Result<()> {
        let Self { logits, targets, vocabulary, share } = *self;
        if let Some(target) = targets.iter().find(|&&t| t != NO_INDEX && t as usize >= vocabulary) {
            return Err(Error::invalid_argument(format!(
                "target {target} is outside the vocabulary of {vocabulary}"
            )));
        }
        self.each(workers, dlogits, losses, |row, dlogits, p| {
            let logits = &logits[row * vocabulary..][..vocabulary];
            let target = targets[row] as usize;
            let Softmax { most, sum } = softmax(logits, 1.0, p);
            add(dlogits, p, (f64::from(share) / sum) as f32);
            dlogits[target] -= share;
            (libm::log(sum) + f64::from(most) - f64::from(logits[target])) as f32
        });
        Ok(())
    }

    /// As [`Self::cross_entropy`], for the divergence from a teacher with logits `teacher`, `[count, vocabulary]`.
    pub(super) fn divergence(
        &self,
        workers: &Workers,
        teacher: &[f32],
        temperature: f32,
        dlogits: &mut [f32],
        losses: &mut [f32],
    ) {
        let Self { logits, vocabulary, share, .. } = *self;
        let inverse = 1.0 / temperature;
        self.each(workers, dlogits, losses, |row, dlogits, p| {
            let logits = &logits[row * vocabulary..][..vocabulary];
            let teacher = &teacher[row * vocabulary..][..vocabulary];
            let found = softmax(logits, inverse, p);
            let factor = share * inverse;
            add(dlogits, p, (f64::from(factor) / found.sum) as f32);
            let expected = softmax(teacher, inverse, p);
            add(dlogits, p, (-f64::from(factor) / expected.sum) as f32);
            let mut sums = [0.0f64; LANES];
            for (index, ((&q, &teacher), &logit)) in p.iter().zip(teacher).zip(logits).enumerate() {
                // A token with teacher probability 0 contributes nothing, whatever the student's probability.
                if q > 0.0 {
                    let difference = (f64::from(teacher) - f64::from(expected.most))
                        - (f64::from(logit) - f64::from(found.most));
                    sums[index % LANES] += f64::from(q) * difference;
                }
            }
            let mean = sums.iter().sum::<f64>() / expected.sum * f64::from(inverse);
            (mean + libm::log(found.sum) - libm::log(expected.sum)) as f32
        });
    }

    /// Calls `row(index, dlogits, memory)` for the rows that count, and stores the losses that it returns.
    fn each(
        &self,
        workers: &Workers,
        dlogits: &mut [f32],
        losses: &mut [f32],
        row: impl Fn(usize, &mut [f32], &mut [f32]) -> f32 + Sync + Send,
    ) {
        let Self { targets, vocabulary, .. } = *self;
        if vocabulary == 0 {
            return;
        }
        let bands = dlogits.chunks_mut(BAND * vocabulary).zip(losses.chunks_mut(BAND));
        let mut bands: Vec<_> = bands.collect();
        workers.run_chunks(&mut bands, 1, self.logits.len() * 8, |band, rows| {
            let mut memory = vec![0.0; vocabulary];
            for (dlogits, losses) in rows {
                for (index, (dlogits, loss)) in dlogits.chunks_mut(vocabulary).zip(&mut **losses).enumerate()
                {
                    let index = band * BAND + index;
                    *loss = if targets[index] == NO_INDEX { 0.0 } else { row(index, dlogits, &mut memory) };
                }
            }
        });
    }
}

struct Softmax {
    /// The largest logit.
    most: f32,
    /// Sum of `exp((logit - most) * inverse)`.
    sum: f64,
}

/// Writes `exp((logits - most) * inverse)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn softmax(logits: &[f32], inverse: f32, out: &mut [f32]) -> Softmax {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (out, &logit) in out.iter_mut().zip(logits) {
        *out = exp((logit - most) * inverse);
    }
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = out.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(chunk[lane]);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value);
    }
    Softmax { most, sum: sums.iter().sum() }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add(sums: &mut [f32], values: &[f32], factor: f32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Random, backend, f32_buffer, read, u32_buffer};
    use super::super::testing::{Case, Checked, check};
    use crate::backend::{Backend, BackwardStep, NO_INDEX, Train};
    use crate::task::block_on;

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        let (count, vocabulary, share) = (3, 5, 0.25f32);
        let targets = [4u32, NO_INDEX, 0];
        // The outputs are the losses. Each has the weight `share`, so that is `dy`.
        let case = Case { dy: vec![share; count], ..Case::new(&[count * vocabulary], count) };
        check(
            case,
            |inputs| {
                let loss = |(row, &target): (&[f64], &u32)| {
                    let sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
                    if target == NO_INDEX { 0.0 } else { sum - row[target as usize] }
                };
                inputs[0].chunks(vocabulary).zip(&targets).map(loss).collect()
            },
            |backend, inputs, _, derivatives| {
                let targets = u32_buffer(backend, &targets);
                let mut losses = f32_buffer(backend, &[f32::NAN; 3]);
                let [dlogits] = derivatives else { unreachable!() };
                backend.backward_checked(BackwardStep::CrossEntropy {
                    logits: &inputs[0],
                    targets: &targets,
                    count,
                    vocabulary,
                    share,
                    dlogits,
                    losses: &mut losses,
                });
                let mut row = vec![0.0; 3];
                block_on(backend.read(&losses, 0, &mut row)).unwrap();
                assert!(row[0] > 0.0 && row[1] == 0.0 && row[2] > 0.0, "{row:?}");
            },
        );
    }

    /// Largest deviation of a loss from what double precision gives, in nats. Measured 6e-8.
    const LOSS_ERROR: f64 = 1e-6;

    #[test]
    fn so_are_those_of_the_divergence_from_a_teacher() {
        let (count, vocabulary, share) = (3, 19, 0.25f32);
        let targets = [4u32, NO_INDEX, 0];
        let mut random = Random::new(5);
        for temperature in [1.0f32, 5.0, 0.5] {
            let teacher: Vec<f32> = random.floats(count * vocabulary).iter().map(|z| z * 3.0).collect();
            let divergences = |logits: &[f64]| -> Vec<f64> {
                let probabilities = |z: &[f64]| -> Vec<f64> {
                    let exps: Vec<f64> = z.iter().map(|z| (z / f64::from(temperature)).exp()).collect();
                    exps.iter().map(|exp| exp / exps.iter().sum::<f64>()).collect()
                };
                let rows = logits.chunks(vocabulary).zip(teacher.chunks(vocabulary)).zip(&targets);
                rows.map(|((logits, teacher), &target)| {
                    let teacher: Vec<f64> = teacher.iter().map(|&z| f64::from(z)).collect();
                    let terms = probabilities(&teacher).into_iter().zip(probabilities(logits));
                    let sum = terms.map(|(q, p)| q * (q / p).ln()).sum();
                    if target == NO_INDEX { 0.0 } else { sum }
                })
                .collect()
            };
            let case = Case { dy: vec![share; count], ..Case::new(&[count * vocabulary], count) };
            check(
                case,
                |inputs| divergences(&inputs[0]),
                |backend, inputs, _, derivatives| {
                    let (targets, teacher) = (u32_buffer(backend, &targets), f32_buffer(backend, &teacher));
                    let mut losses = f32_buffer(backend, &[f32::NAN; 3]);
                    let [dlogits] = derivatives else { unreachable!() };
                    backend.backward_checked(BackwardStep::Distill {
                        logits: &inputs[0],
                        teacher: &teacher,
                        targets: &targets,
                        count,
                        vocabulary,
                        temperature,
                        share,
                        dlogits,
                        losses: &mut losses,
                    });
                    let logits: Vec<f64> = read(backend, &inputs[0]).iter().map(|&z| f64::from(z)).collect();
                    for (found, expected) in read(backend, &losses).iter().zip(divergences(&logits)) {
                        assert!((f64::from(*found) - expected).abs() < LOSS_ERROR, "{found}, not {expected}");
                    }
                },
            );
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_wrong_targets_are_named() {
        let mut backend = backend(1, true);
        let logits = f32_buffer(&mut backend, &[1e4, -1e4]);
        let (mut dlogits, mut losses) =
            (f32_buffer(&mut backend, &[0.0; 2]), f32_buffer(&mut backend, &[0.0]));
        for (target, expected) in [(1, Some([2e4, 1.0, -1.0])), (2, None)] {
            let targets = u32_buffer(&mut backend, &[target]);
            let result = backend.backward(BackwardStep::CrossEntropy {
                logits: &logits,
                targets: &targets,
                count: 1,
                vocabulary: 2,
                share: 1.0,
                dlogits: &mut dlogits,
                losses: &mut losses,
            });
            match expected {
                Some([loss, first, second]) => {
                    result.unwrap();
                    assert_eq!(read(&mut backend, &losses), [loss]);
                    assert_eq!(read(&mut backend, &dlogits), [first, second]);
                }
                None => assert_eq!(
                    result.unwrap_err().to_string(),
                    "cross_entropy: target 2 is outside the vocabulary of 2"
                ),
            }
        }
    }
}
