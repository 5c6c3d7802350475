//! Dequantizes packed rows to `f32`.
//!
//! A weight is `(code - zero_point) * scale`, with exact factors and one rounding. With minimums it is
//! `code * scale + minimum`, where the sum is rounded too.

use super::column_order;
use super::packed_tensor::PackedTensor;
use super::packing;
use super::scheme::Granularity;
use std::ops::Range;

/// Writes the weights of `rows` to `out`, `[rows.len(), cols]`, columns in the order of the input.
///
/// # Panics
/// When the rows are not in the matrix or `out` has another length.
pub fn rows(tensor: &PackedTensor, rows: Range<usize>, out: &mut [f32]) {
    let cols = tensor.cols();
    assert!(rows.start <= rows.end && rows.end <= tensor.rows(), "row range outside the matrix");
    assert_eq!(out.len(), rows.len() * cols, "one value for each weight of the rows");
    if cols == 0 {
        return;
    }
    let scheme = tensor.scheme();
    let granularity = scheme.granularity();
    let group_size = granularity.group_size(cols);
    let groups = granularity.groups_per_row(cols);
    let words = scheme.words_per_row(cols);
    let constant = scheme.constant_zero_point();
    let mut codes = vec![0u8; cols];
    // A row in stored order, if columns are reordered.
    let mut stored = vec![0f32; if tensor.column_order().is_some() { cols } else { 0 }];
    for (row, input_order) in rows.zip(out.chunks_exact_mut(cols)) {
        let out = if tensor.column_order().is_some() { &mut stored[..] } else { &mut *input_order };
        packing::unpack_row(
            &tensor.codes()[row * words..(row + 1) * words],
            scheme.storage_bits(),
            &mut codes,
        );
        for (group, (codes, out)) in codes.chunks(group_size).zip(out.chunks_mut(group_size)).enumerate() {
            let index = if granularity == Granularity::Tensor { 0 } else { row * groups + group };
            let scale = tensor.scales().get(index);
            let zero = match (constant, tensor.zero_points()) {
                (Some(zero), _) => zero as i32,
                (None, zero_points) => zero_points.map_or(0, |z| i32::from(z[index])),
            };
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = (i32::from(code) - zero) as f32 * scale;
            }
            if let Some(minimums) = tensor.minimums() {
                let minimum = minimums.get(index);
                for out in out {
                    *out += minimum;
                }
            }
        }
        if let Some(order) = tensor.column_order() {
            column_order::scatter(&stored, order, input_order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packed_tensor::Scales;
    use super::super::scheme::{Bits, Scheme};
    use super::*;
    use proptest::prelude::*;

    fn any_scheme() -> impl Strategy<Value = Scheme> {
        let granularity = prop_oneof![
            Just(Granularity::Tensor),
            Just(Granularity::Channel),
            (1usize..9).prop_map(Granularity::Group)
        ];
        let bits = prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]);
        (granularity, bits, any::<bool>(), any::<bool>()).prop_map(|(granularity, bits, symmetric, other)| {
            match (other, symmetric) {
                (true, true) => Scheme::Ternary { granularity },
                (true, false) => Scheme::IntegerMinimum { bits, granularity },
                (false, symmetric) => Scheme::Integer { bits, granularity, symmetric },
            }
        })
    }

    proptest! {
        #[test]
        fn agrees_with_one_code_at_a_time(
            scheme in any_scheme(),
            rows_and_cols in (1usize..5, 1usize..40),
            random in prop::collection::vec(any::<u8>(), 200),
            reordered: bool,
        ) {
            let (row_count, cols) = rows_and_cols;
            let codes: Vec<u8> =
                (0..row_count * cols).map(|i| (u32::from(random[i % 200]) % (scheme.max_code() + 1)) as u8).collect();
            let words = scheme.words_per_row(cols);
            let mut packed = vec![0; row_count * words];
            for (codes, out) in codes.chunks(cols).zip(packed.chunks_mut(words)) {
                packing::pack_row(codes, scheme.storage_bits(), out);
            }
            let count = scheme.granularity().scale_count(row_count, cols);
            let scales = Scales::F32((0..count).map(|i| f32::from(random[i]) / 16.0 - 8.0).collect());
            let minimums = Scales::F32((0..count).map(|i| f32::from(random[(50 + i) % 200]) / 32.0 - 4.0).collect());
            let zeros: Vec<u8> =
                (0..count).map(|i| (u32::from(random[(100 + i) % 200]) % (scheme.max_code() + 1)) as u8).collect();
            let zeros = scheme.constant_zero_point().is_none().then_some(zeros);
            let tensor = if scheme.has_minimums() {
                PackedTensor::with_minimums(scheme, row_count, cols, packed, scales, minimums)
            } else {
                PackedTensor::new(scheme, row_count, cols, packed, scales, zeros.clone())
            };
            let mut order: Vec<u32> = (0..cols as u32).collect();
            if reordered {
                order.sort_by_key(|&col| random[col as usize]);
            }
            let tensor = tensor.unwrap().with_column_order(order).unwrap();
            let g_idx = tensor.g_idx();

            let first = usize::from(random[199]) % row_count;
            let mut out = vec![f32::NAN; (row_count - first) * cols];
            rows(&tensor, first..row_count, &mut out);
            for row in first..row_count {
                for col in 0..cols {
                    let index = tensor.scale_index(row, g_idx[col] as usize);
                    let zero = scheme.constant_zero_point().unwrap_or_else(|| u32::from(zeros.as_ref().unwrap()[index]));
                    let mut expected = (tensor.code(row, col) as f32 - zero as f32) * tensor.scales().get(index);
                    if let Some(minimums) = tensor.minimums() {
                        expected += minimums.get(index);
                    }
                    prop_assert_eq!(out[(row - first) * cols + col], expected);
                }
            }
        }
    }
}
