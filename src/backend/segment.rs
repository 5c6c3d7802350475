//! Segments: the assignment of a batch's rows to sequences, and their attention masks.

use super::AttentionShape;
use crate::error::{Error, ErrorCode, Result};

/// The positions of its sequence that a row attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All up to the row itself, as in next-token prediction.
    Causal,
    /// All up to the last row of its segment.
    Full,
}

/// Consecutive rows of a batch that are consecutive positions of one sequence.
///
/// The segments of a batch are stored one after the other: the first `count` rows are the first segment's, then the
/// next segment follows. One buffer has the keys and values of all sequences, each in its own run of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows.
    pub count: usize,
    /// Positions of the sequence before the segment's first row.
    pub past: usize,
    /// Cache index of the sequence's first position.
    pub start: usize,
    /// The mask of the rows.
    pub mask: Mask,
}

impl Segment {
    /// `count` causal rows after `past` positions, in a cache with one sequence.
    pub fn causal(past: usize, count: usize) -> Self {
        Self { count, past, start: 0, mask: Mask::Causal }
    }

    /// Positions of the sequence up to the last row, inclusive.
    pub fn end(&self) -> usize {
        self.past + self.count
    }

    /// Number of positions that row `index` of the segment attends to.
    pub fn seen(&self, index: usize) -> usize {
        match self.mask {
            Mask::Causal => self.past + index + 1,
            Mask::Full => self.end(),
        }
    }
}

/// Sizes that the segments of a batch require of buffers.
pub(super) struct Extent {
    /// Rows of all segments.
    pub(super) rows: usize,
    /// Positions of the longest sequence.
    pub(super) positions: usize,
}

/// Checks the shape and segments of a step.
pub(super) fn check_segments(shape: &AttentionShape, segments: &[Segment]) -> Result<Extent> {
    let AttentionShape { heads, kv_heads, head_dim, capacity } = *shape;
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::invalid_argument(format!(
            "{heads} query heads cannot share {kv_heads} key and value heads"
        )));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(Error::invalid_argument(format!("expected an even head size but found {head_dim}")));
    }
    let mut extent = Extent { rows: 0, positions: 0 };
    for &Segment { count, past, start, .. } in segments {
        let room = capacity.saturating_sub(start);
        let end = past.checked_add(count).filter(|&end| end <= room && start <= capacity);
        let Some(end) = end else {
            return Err(Error::new(
                ErrorCode::ContextOverflow,
                format!("{count} tokens after {past} do not fit a cache of {room} positions"),
            ));
        };
        // Segments may share a sequence, so the cache does not limit the total number of rows.
        extent.rows = extent.rows.saturating_add(count);
        extent.positions = extent.positions.max(end);
    }
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_need_what_their_rows_and_the_longest_of_them_need() {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, capacity: 20 };
        let at = |start, past, count| Segment { start, ..Segment::causal(past, count) };
        let cases = [
            (vec![], Some([0, 0])),
            (vec![at(0, 3, 4)], Some([4, 7])),
            (vec![at(0, 3, 4), at(10, 9, 1), at(7, 0, 0)], Some([5, 10])),
            (vec![at(20, 0, 0)], Some([0, 0])),
            (vec![at(0, 3, 4), at(10, 9, 2)], None),
            (vec![at(21, 0, 0)], None),
        ];
        for (segments, expected) in cases {
            let found = check_segments(&shape, &segments);
            assert_eq!(found.ok().map(|extent| [extent.rows, extent.positions]), expected, "{segments:?}");
        }
    }

    #[test]
    fn a_causal_row_sees_itself_last_and_a_full_one_the_whole_segment() {
        let causal = Segment::causal(5, 3);
        let full = Segment { mask: Mask::Full, ..causal };
        assert_eq!([0, 1, 2].map(|row| causal.seen(row)), [6, 7, 8]);
        assert_eq!([0, 1, 2].map(|row| full.seen(row)), [8, 8, 8]);
    }
}
