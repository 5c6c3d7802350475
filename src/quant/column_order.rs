//! Column orders of matrices with act-order.
//!
//! GPTQ with `desc_act` has groups of non-adjacent columns. A file stores the group of each input
//! column, `g_idx`. A stable sort by group makes the columns of a group adjacent.
//! [`PackedTensor`](super::PackedTensor) stores that order.

use crate::error::{Error, Result};

/// Checks an order of columns: stored column `j` holds input column `order[j]`. `None` for the identity.
///
/// # Errors
/// `invalid_checkpoint` unless `order` is a permutation of `0..cols`.
pub(super) fn checked(order: Vec<u32>, cols: usize) -> Result<Option<Vec<u32>>> {
    if order.len() != cols {
        return Err(Error::invalid_checkpoint(format!(
            "expected an order of {cols} columns but found one of {}",
            order.len()
        )));
    }
    let mut seen = vec![false; cols];
    for &column in &order {
        match seen.get_mut(column as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => {
                return Err(Error::invalid_checkpoint(format!(
                    "the order of columns has column {column} twice"
                )));
            }
            None => {
                return Err(Error::invalid_checkpoint(format!(
                    "the order of columns has column {column}, but there are {cols}"
                )));
            }
        }
    }
    let is_identity = order.iter().enumerate().all(|(index, &column)| index == column as usize);
    Ok((!is_identity).then_some(order))
}

/// The order that makes the groups of `g_idx` (the group of each input column) contiguous. It is stable, so a
/// trivial `g_idx` gives the identity.
///
/// # Errors
/// `invalid_checkpoint` for an invalid group; `unsupported_format` for groups that do not have exactly `group_size`
/// columns (the last may have fewer).
pub fn order_of_groups(g_idx: &[i32], group_size: usize) -> Result<Vec<u32>> {
    let cols = g_idx.len();
    let groups = cols.div_ceil(group_size.max(1));
    let mut counts = vec![0usize; groups];
    for (col, &group) in g_idx.iter().enumerate() {
        let count = usize::try_from(group).ok().and_then(|group| counts.get_mut(group)).ok_or_else(|| {
            Error::invalid_checkpoint(format!(
                "expected groups from 0 to {} but found group {group} at column {col}",
                groups.saturating_sub(1)
            ))
        })?;
        *count += 1;
    }
    for (group, &count) in counts.iter().enumerate() {
        let expected = group_size.min(cols - group * group_size);
        if count != expected {
            return Err(Error::unsupported_format(format!(
                "expected group {group} to have {expected} columns but found {count}"
            )));
        }
    }
    // Counting sort: the position of the next column of each group.
    let mut next: Vec<usize> = (0..groups).map(|group| group * group_size).collect();
    let mut order = vec![0u32; cols];
    for (col, &group) in g_idx.iter().enumerate() {
        let at = &mut next[group as usize];
        order[*at] = col as u32;
        *at += 1;
    }
    Ok(order)
}

/// `stored[j] = row[order[j]]`: from input order to stored order.
pub fn gather<T: Copy>(row: &[T], order: &[u32], stored: &mut [T]) {
    for (stored, &column) in stored.iter_mut().zip(order) {
        *stored = row[column as usize];
    }
}

/// `row[order[j]] = stored[j]`: the inverse of [`gather`].
pub fn scatter<T: Copy>(stored: &[T], order: &[u32], row: &mut [T]) {
    for (&stored, &column) in stored.iter().zip(order) {
        row[column as usize] = stored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use proptest::prelude::*;

    #[test]
    fn groups_come_side_by_side_and_keep_their_own_order() {
        assert_eq!(order_of_groups(&[1, 0, 1, 0, 2], 2).unwrap(), [1, 3, 0, 2, 4]);
        assert_eq!(order_of_groups(&[0, 0, 1, 1, 2], 2).unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(order_of_groups(&[0, 0, 0], usize::MAX).unwrap(), [0, 1, 2]);
        assert_eq!(order_of_groups(&[], 4).unwrap(), [0u32; 0]);
    }

    #[test]
    fn groups_of_other_sizes_are_errors_that_name_the_group() {
        let cases: [(&[i32], usize, &str, ErrorCode); 5] = [
            (
                &[0, 0, 0, 1],
                2,
                "expected group 0 to have 2 columns but found 3",
                ErrorCode::UnsupportedFormat,
            ),
            (
                &[0, 0, 1, 2, 2],
                2,
                "expected group 1 to have 2 columns but found 1",
                ErrorCode::UnsupportedFormat,
            ),
            (&[0, 0, 2, 1], 2, "from 0 to 1 but found group 2 at column 2", ErrorCode::InvalidCheckpoint),
            (&[0, -1], 1, "from 0 to 1 but found group -1 at column 1", ErrorCode::InvalidCheckpoint),
            (&[i32::MIN, i32::MAX], 2, "found group -2147483648 at column 0", ErrorCode::InvalidCheckpoint),
        ];
        for (g_idx, group_size, message, code) in cases {
            let error = order_of_groups(g_idx, group_size).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(error.code(), code);
        }
    }

    proptest! {
        #[test]
        fn scatter_undoes_gather(order in Just((0u32..20).collect::<Vec<_>>()).prop_shuffle()) {
            let row: Vec<u32> = (100..120).collect();
            let (mut stored, mut back) = (vec![0; 20], vec![0; 20]);
            gather(&row, &order, &mut stored);
            scatter(&stored, &order, &mut back);
            prop_assert_eq!(back, row);
        }
    }
}
