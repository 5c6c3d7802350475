//! How far two folders of one model lie apart, read again from what was written. Floor 8.

use super::{packed_modules, read};
use crate::error::{Error, Result};
use crate::layout::ModuleStorage;
use crate::model::Checkpoint;
use crate::model::weights::DenseRows;
use crate::quant::{PackedTensor, dequantize};
use crate::task::{self, Control};
use std::ops::Range;

/// Elements that are dequantized at a time.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// The largest `|w - w'|` of the modules that are packed in either checkpoint, and where it is.
///
/// # Errors
/// Whatever reading meets.
pub async fn largest_difference(
    source: &Checkpoint,
    converted: &Checkpoint,
    control: &dyn Control,
) -> Result<(f32, String)> {
    let mut largest = (0.0f32, String::new());
    for module in packed_modules(source)? {
        let (mut ours, mut theirs) =
            (Rows::open(source, &module).await?, Rows::open(converted, &module).await?);
        let (rows, cols) = source.module(&module)?.shape();
        let at_once = (CHUNK_ELEMENTS / cols).max(1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(at_once) {
            let range = start..rows.min(start + at_once);
            a.resize(range.len() * cols, 0.0);
            b.resize(range.len() * cols, 0.0);
            ours.next(range.clone(), &mut a).await?;
            theirs.next(range, &mut b).await?;
            let here = a.iter().zip(&b).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
            if here > largest.0 {
                largest = (here, module.clone());
            }
            task::checkpoint(control).await?;
        }
    }
    Ok(largest)
}

/// The weights of a module, some rows at a time, whatever its form.
enum Rows<'a> {
    Packed(PackedTensor),
    Dense(DenseRows<'a>, Vec<f32>),
}

impl<'a> Rows<'a> {
    async fn open(checkpoint: &'a Checkpoint, module: &str) -> Result<Self> {
        Ok(match checkpoint.module(module)? {
            ModuleStorage::Packed { .. } => Self::Packed(read(checkpoint, module).await?),
            ModuleStorage::Dense { .. } => Self::Dense(DenseRows::new(checkpoint, module)?, Vec::new()),
        })
    }

    async fn next(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Packed(tensor) => dequantize::rows(tensor, rows, out),
            Self::Dense(source, held) => {
                while held.len() < out.len() {
                    let Some((_, values)) = source.next().await? else {
                        return Err(Error::invalid_checkpoint("a matrix has fewer rows than its shape says"));
                    };
                    held.extend_from_slice(values);
                }
                out.copy_from_slice(&held[..out.len()]);
                held.drain(..out.len());
            }
        }
        Ok(())
    }
}
