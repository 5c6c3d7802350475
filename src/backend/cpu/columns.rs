//! Memory layout of the columns of a matrix row: units of 32 columns, with every group in units of its own.
//!
//! Kernels process whole units only. A group whose length is not a multiple of 32 is padded with zeros, in the weights
//! and in the activations they multiply, so the padding adds nothing to any sum. Common sizes need no padding.

/// Columns of a unit: 32 bytes of INT8, four AVX2 or two AVX-512 vectors of `f32`.
pub(super) const UNIT: usize = 32;

/// The layout of a row. Parts with equal layouts can share a prepared input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// Columns of the matrix.
    pub(super) cols: usize,
    /// Columns that share a scale; the last group may have fewer.
    pub(super) group_size: usize,
    /// Groups of a row.
    pub(super) groups: usize,
    /// Units of every group but the last.
    pub(super) units_per_group: usize,
    /// Units of a row.
    pub(super) units: usize,
}

impl Columns {
    /// The layout of `cols` columns in groups of `group_size`; both are positive.
    pub(super) fn new(cols: usize, group_size: usize) -> Self {
        let group_size = group_size.min(cols);
        let groups = cols.div_ceil(group_size);
        let units_per_group = group_size.div_ceil(UNIT);
        let last = cols - (groups - 1) * group_size;
        Self {
            cols,
            group_size,
            groups,
            units_per_group,
            units: (groups - 1) * units_per_group + last.div_ceil(UNIT),
        }
    }

    /// Elements of a padded row.
    pub(super) fn padded(&self) -> usize {
        self.units * UNIT
    }

    /// Whether rows need no padding.
    pub(super) fn is_plain(&self) -> bool {
        self.padded() == self.cols
    }

    /// For each group: its columns, and the offset of its first element in a padded row.
    pub(super) fn group_spans(self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
        (0..self.groups).map(move |group| {
            let start = group * self.group_size;
            (start..(start + self.group_size).min(self.cols), group * self.units_per_group * UNIT)
        })
    }

    /// Copies a row into its padded form. The padding of `padded` is not written.
    pub(super) fn spread<T: Copy>(self, row: &[T], padded: &mut [T]) {
        for (span, at) in self.group_spans() {
            padded[at..at + span.len()].copy_from_slice(&row[span]);
        }
    }

    /// The units of group `group`.
    pub(super) fn group_units(&self, group: usize) -> std::ops::Range<usize> {
        let start = group * self.units_per_group;
        start..(start + self.units_per_group).min(self.units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_start_at_units_and_keep_their_columns() {
        for (cols, group, units) in [
            (64, 64, 2),
            (172, 172, 6),
            (172, 86, 6),
            (172, 43, 8),
            (172, 32, 6),
            (100, 20, 5),
            (1, 128, 1),
            (96, 64, 3),
        ] {
            let columns = Columns::new(cols, group);
            assert_eq!(columns.units, units, "{cols} columns in groups of {group}");
            let row: Vec<usize> = (1..=cols).collect();
            let mut padded = vec![0; columns.padded()];
            columns.spread(&row, &mut padded);
            assert_eq!(padded.iter().filter(|&&v| v != 0).copied().collect::<Vec<_>>(), row);
            for (index, (span, at)) in columns.group_spans().enumerate() {
                assert_eq!(at, columns.group_units(index).start * UNIT);
                assert!(span.len() <= columns.group_units(index).len() * UNIT);
            }
        }
    }
}
