//! Cross-entropy and its derivative, `softmax(logits) - onehot(target)`. Floor 4.

use crate::backend::NO_INDEX;
use crate::error::{Error, Result};

/// `logits` and `dlogits` are `[count, vocabulary]`. Sums are in double precision, so that a large vocabulary costs no digits.
///
/// # Errors
/// `invalid_argument` for a target that is no column.
pub(super) fn cross_entropy(
    logits: &[f32],
    targets: &[u32],
    vocabulary: usize,
    share: f32,
    dlogits: &mut [f32],
    losses: &mut [f32],
) -> Result<()> {
    if vocabulary == 0 {
        return Ok(());
    }
    let rows = logits.chunks_exact(vocabulary).zip(dlogits.chunks_exact_mut(vocabulary));
    for ((logits, dlogits), (&target, loss)) in rows.zip(targets.iter().zip(losses)) {
        if target == NO_INDEX {
            dlogits.fill(0.0);
            *loss = 0.0;
            continue;
        }
        let Some(&at_target) = logits.get(target as usize) else {
            return Err(Error::invalid_argument(format!(
                "target {target} is outside the vocabulary of {vocabulary}"
            )));
        };
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - most)).sum();
        *loss = (libm::log(sum) + most - f64::from(at_target)) as f32;
        for (dlogit, &logit) in dlogits.iter_mut().zip(logits) {
            *dlogit = (libm::exp(f64::from(logit) - most) / sum * f64::from(share)) as f32;
        }
        dlogits[target as usize] -= share;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{backend, f32_buffer, read, u32_buffer};
    use super::super::testing::{Case, Checked, check};
    use crate::backend::{Backend, BackwardStep, NO_INDEX, Train};
    use crate::task::block_on;

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        let (count, vocabulary, share) = (3, 5, 0.25f32);
        let targets = [4u32, NO_INDEX, 0];
        // The output is the losses; each counts `share`, so dy is that.
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
