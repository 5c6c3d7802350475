//! Which rows of a batch belong to which sequence, and what each of them sees.

use super::AttentionShape;
use crate::error::{Error, ErrorCode, Result};

/// What a row of a segment sees of its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Everything up to itself, as a language model that predicts the next token does.
    Causal,
    /// Everything up to the last row of its segment.
    Full,
}

/// Some rows of a batch that follow each other in one sequence.
///
/// The segments of a batch stand one after the other: the first has its first `count` rows, the next one those after them.
/// The keys and values of all its sequences are in one buffer, each sequence's in a run of positions of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows.
    pub count: usize,
    /// Positions that the sequence has before the first of them.
    pub past: usize,
    /// The place in the cache of the sequence's first position.
    pub start: usize,
    /// What the rows see.
    pub mask: Mask,
}

impl Segment {
    /// `count` causal rows after `past` positions of the only sequence of a cache.
    pub fn causal(past: usize, count: usize) -> Self {
        Self { count, past, start: 0, mask: Mask::Causal }
    }

    /// Positions of the sequence up to the last row.
    pub fn end(&self) -> usize {
        self.past + self.count
    }

    /// How many positions the segment's row `index` sees.
    pub fn seen(&self, index: usize) -> usize {
        match self.mask {
            Mask::Causal => self.past + index + 1,
            Mask::Full => self.end(),
        }
    }
}

/// What the segments of a batch need of buffers.
pub(super) struct Extent {
    /// Rows of all segments.
    pub(super) rows: usize,
    /// Positions of the longest sequence.
    pub(super) positions: usize,
}

/// What is checked before a step over segments runs.
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
        // Many segments may see one sequence, so their rows together are not bounded by the cache.
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
