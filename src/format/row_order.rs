//! Tensors whose stored row order differs from the order that readers expect.

use super::source::ByteSource;
use super::zeroed;
use crate::error::Result;
use std::ops::Range;

/// Maps the expected row order of a tensor to its stored row order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// Stored as expected.
    #[default]
    Plain,
    /// In blocks of `block` rows, an even number. The first half of a block is stored at even positions, the second
    /// half at odd ones. GGUF files of the `llama` architecture store the heads of q and k this way, for RoPE on
    /// adjacent elements.
    Interleaved {
        /// Rows per block: the head dimension.
        block: u64,
        /// Bytes per row.
        row_bytes: u64,
    },
}

impl RowOrder {
    /// The stored position of row `row` within its block.
    fn stored(block: u64, row: u64) -> u64 {
        let half = block / 2;
        2 * (row % half) + row / half
    }

    /// Fills `out` with the bytes `bytes` of the tensor that starts at `start` of the source, in the expected order.
    ///
    /// # Errors
    /// `out_of_memory` if a block does not fit; errors of the source.
    pub(super) async fn read(
        self,
        source: &dyn ByteSource,
        start: u64,
        bytes: Range<u64>,
        out: &mut [u8],
    ) -> Result<()> {
        let Self::Interleaved { block, row_bytes } = self else {
            return source.read_at(start + bytes.start, out).await;
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let block_bytes = block * row_bytes;
        let mut stored = zeroed(block_bytes)?;
        for index in bytes.start / block_bytes..bytes.end.div_ceil(block_bytes) {
            source.read_at(start + index * block_bytes, &mut stored).await?;
            for row in 0..block {
                let wanted = index * block_bytes + row * row_bytes;
                // The requested part of the row.
                let from = wanted.max(bytes.start);
                let to = (wanted + row_bytes).min(bytes.end);
                if from < to {
                    let at = Self::stored(block, row) * row_bytes + (from - wanted);
                    let len = (to - from) as usize;
                    let target = (from - bytes.start) as usize;
                    out[target..target + len].copy_from_slice(&stored[at as usize..at as usize + len]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::source::MemorySource;
    use crate::task::block_on;
    use proptest::prelude::*;

    /// llama.cpp's converter: `reshape(heads, 2, dim / 2, width).swapaxes(1, 2)`.
    fn permute(rows: &[Vec<u8>], head_dim: usize) -> Vec<Vec<u8>> {
        let mut stored = Vec::new();
        for head in rows.chunks(head_dim) {
            for j in 0..head_dim / 2 {
                for half in 0..2 {
                    stored.push(head[half * head_dim / 2 + j].clone());
                }
            }
        }
        stored
    }

    proptest! {
        #[test]
        fn any_range_is_read_as_it_was_before_the_permutation(
            (heads, half, row_bytes) in (1usize..4, 1usize..5, 1usize..6),
            (from, to) in (0usize..200, 0usize..200),
        ) {
            let rows: Vec<Vec<u8>> = (0..heads * half * 2)
                .map(|row| (0..row_bytes).map(|byte| (row * 7 + byte) as u8).collect())
                .collect();
            let wanted = rows.concat();
            let mut file = vec![0xff; 3];
            file.extend(permute(&rows, half * 2).concat());
            let (from, to) = (from % (wanted.len() + 1), to % (wanted.len() + 1));
            let range = from.min(to)..from.max(to);
            let mut out = vec![0; range.len()];
            let order = RowOrder::Interleaved { block: half as u64 * 2, row_bytes: row_bytes as u64 };
            let source = MemorySource::new("file", file);
            block_on(order.read(&source, 3, range.start as u64..range.end as u64, &mut out)).unwrap();
            prop_assert_eq!(&out, &wanted[range]);
        }
    }
}
