//! The segment table of a batch, which all workgroups of a dispatch read.

use super::buffers::Memory;
use super::select::PREFILL_QUERIES;
use super::{GpuBackend, Scratch};
use crate::backend::{Mask, Segment};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// A segment, with the fields of `shaders/shared/segments.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Entry {
    /// Index of its first row.
    row: u32,
    /// Index of its first tile.
    tile: u32,
    count: u32,
    past: u32,
    start: u32,
    full: u32,
}

impl Entry {
    /// Names and offsets of the fields.
    #[cfg(test)]
    pub(super) const FIELDS: &[(&str, usize)] = &[
        ("row", std::mem::offset_of!(Self, row)),
        ("tile", std::mem::offset_of!(Self, tile)),
        ("count", std::mem::offset_of!(Self, count)),
        ("past", std::mem::offset_of!(Self, past)),
        ("start", std::mem::offset_of!(Self, start)),
        ("full", std::mem::offset_of!(Self, full)),
    ];
}

/// Division of a batch's rows into tiles of [`PREFILL_QUERIES`]. No tile spans two segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tiling {
    pub(super) rows: usize,
    pub(super) tiles: usize,
    /// Rows of the longest segment.
    pub(super) longest: usize,
}

impl Tiling {
    /// The tiling of segments with the given numbers of rows.
    #[cfg(test)]
    pub(super) fn of(counts: impl Iterator<Item = usize>) -> Self {
        counts.fold(Self::default(), Self::and)
    }

    fn and(self, count: usize) -> Self {
        Self {
            rows: self.rows + count,
            tiles: self.tiles + count.div_ceil(PREFILL_QUERIES),
            longest: self.longest.max(count),
        }
    }
}

/// The table of the last batch; all layers of a model share it.
#[derive(Default)]
pub(super) struct Table {
    memory: Scratch,
    written: Vec<Entry>,
}

/// A table on the device, and the kernel parameters that describe it.
pub(super) struct Segments {
    pub(super) table: Memory,
    pub(super) count: u32,
    pub(super) tiling: Tiling,
}

impl GpuBackend {
    /// The table of `segments`. It is written only if it differs from the last one. Commands recorded with the last one
    /// are submitted first.
    pub(super) fn segments(&mut self, segments: &[Segment]) -> Result<Segments> {
        let (entries, tiling) = entries(segments);
        if entries != self.segments.written || self.segments.memory.0.is_none() {
            // If the write fails, the contents are unknown.
            self.segments.written.clear();
            let bytes: &[u8] = bytemuck::cast_slice(&entries);
            let memory = self.segments.memory.reserve(&self.device, &self.pool, bytes.len() as u64)?;
            self.overwrite(&memory, bytes)?;
            self.segments.written = entries;
        }
        let count = self.segments.written.len() as u32;
        let table = self.segments.memory.0.clone().expect("reserved before it was written");
        Ok(Segments { table, count, tiling })
    }
}

/// Entries of the segments that have rows. Values fit in 32 bits: callers have checked that the buffers hold the rows.
fn entries(segments: &[Segment]) -> (Vec<Entry>, Tiling) {
    let mut tiling = Tiling::default();
    let mut entries = Vec::with_capacity(segments.len());
    for &Segment { count, past, start, mask } in segments.iter().filter(|segment| segment.count > 0) {
        entries.push(Entry {
            row: tiling.rows as u32,
            tile: tiling.tiles as u32,
            count: count as u32,
            past: past as u32,
            start: start as u32,
            full: u32::from(mask == Mask::Full),
        });
        tiling = tiling.and(count);
    }
    (entries, tiling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_where_the_segments_before_them_end() {
        let segments = [
            (3, 0, 0, Mask::Causal),
            (0, 9, 10, Mask::Full),
            (17, 5, 20, Mask::Full),
            (1, 2, 50, Mask::Causal),
        ]
        .map(|(count, past, start, mask)| Segment { count, past, start, mask });
        let (entries, tiling) = entries(&segments);
        let entry = |row, tile, count, past, start, full| Entry { row, tile, count, past, start, full };
        assert_eq!(entries, [entry(0, 0, 3, 0, 0, 0), entry(3, 1, 17, 5, 20, 1), entry(20, 4, 1, 2, 50, 0)]);
        assert_eq!(tiling, Tiling { rows: 21, tiles: 5, longest: 17 });
        assert_eq!(tiling, Tiling::of(segments.iter().map(|segment| segment.count)));
    }
}
