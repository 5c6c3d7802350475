//! The index of the largest element of each row.

/// Result for a row without a largest element.
pub(super) const NONE: u32 = u32::MAX;

/// `out[row]` is the index of the largest element of `x[row, :]`, the lowest index on a tie. It is [`NONE`] if an
/// element is NaN or plus infinity, or all are minus infinity. `x` is `[rows, width]`.
pub(super) fn argmax(x: &[f32], width: usize, out: &mut [u32]) {
    for (row, out) in x.chunks_exact(width).zip(out) {
        *out = row_argmax(row);
    }
}

fn row_argmax(row: &[f32]) -> u32 {
    let mut best = (NONE, f32::NEG_INFINITY);
    for (index, &value) in row.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return NONE;
        }
        if value > best.1 {
            best = (index as u32, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_the_largest() {
        const INF: f32 = f32::INFINITY;
        let cases: [(&[f32], u32); 9] = [
            (&[1.0], 0),
            (&[1.0, 3.0, 3.0, 2.0], 1),
            (&[-1.0, -0.5, -3.0], 1),
            (&[-0.0, 0.0], 0),
            (&[-INF, -1e30], 1),
            (&[-INF, -INF], NONE),
            (&[1.0, f32::NAN], NONE),
            (&[INF, 1.0], NONE),
            (&[-f32::NAN, 1.0], NONE),
        ];
        for (row, expected) in cases {
            let mut out = [7];
            argmax(row, row.len(), &mut out);
            assert_eq!(out, [expected], "{row:?}");
        }
        let mut out = [0; 3];
        argmax(&[1.0, 2.0, 4.0, 3.0, 5.0, 5.0], 2, &mut out);
        assert_eq!(out, [1, 0, 0]);
    }
}
