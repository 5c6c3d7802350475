//! The largest elements of each row.

use super::argmax::NONE;

/// Finds the elements of each row of `x`, `[rows, width]`, that are at least the `k`-th largest. Writes them in the
/// order of their indices to `ids` and `values`, `[rows, capacity]`, as far as there is room. `found[row]` is their
/// number, or [`NONE`] if an element is NaN or plus infinity. `k` is in `1..=width`.
pub(super) fn top_k(
    x: &[f32],
    width: usize,
    k: usize,
    capacity: usize,
    ids: &mut [u32],
    values: &mut [f32],
    found: &mut [u32],
) {
    let outputs = ids.chunks_exact_mut(capacity).zip(values.chunks_exact_mut(capacity)).zip(found);
    for (row, ((ids, values), found)) in x.chunks_exact(width).zip(outputs) {
        let mut sorted = row.to_vec();
        let (_, threshold, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let threshold = *threshold;
        let largest = || row.iter().enumerate().filter(|&(_, &value)| value >= threshold);
        for ((index, &value), (id, out)) in largest().zip(ids.iter_mut().zip(values)) {
            *id = index as u32;
            *out = value;
        }
        let broken = row.iter().any(|value| value.is_nan() || *value == f32::INFINITY);
        *found = if broken { NONE } else { largest().count() as u32 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_with_the_last_are_counted() {
        let row = [3.0, 1.0, 2.0, 2.0, f32::NEG_INFINITY, 2.0];
        // `k`, the number of elements found, and the indices that fit.
        let cases: [(usize, u32, &[u32]); 5] =
            [(1, 1, &[0]), (2, 4, &[0, 2, 3]), (4, 4, &[0, 2, 3]), (5, 5, &[0, 1, 2]), (6, 6, &[0, 1, 2])];
        for (k, count, expected) in cases {
            let (mut ids, mut values, mut found) = ([99; 3], [0.0; 3], [0]);
            top_k(&row, 6, k, 3, &mut ids, &mut values, &mut found);
            assert_eq!(found, [count], "{k}");
            assert_eq!(&ids[..expected.len()], expected, "{k}");
            for (&id, &value) in ids[..expected.len()].iter().zip(&values) {
                assert_eq!(value, row[id as usize]);
            }
        }
        for broken in [f32::NAN, f32::INFINITY] {
            let mut found = [0];
            top_k(&[1.0, broken], 2, 1, 2, &mut [0; 2], &mut [0.0; 2], &mut found);
            assert_eq!(found, [NONE]);
        }
    }
}
