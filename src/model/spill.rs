//! Activations that wait in scratch while a model is walked through block by block.
//!
//! Always `f32`, so that a memory budget never changes a result. A blob holds the rows of one window of text, one row a
//! token. Floor 5.

use super::block::Hidden;
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;

/// Where a run of tokens is kept.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Scratch space.
    pub scratch: &'a dyn Scratch,
    /// The window's blob.
    pub blob: &'a str,
    /// The run's first token in the window.
    pub first: usize,
}

impl Place<'_> {
    fn offset(&self, width: usize) -> u64 {
        (self.first * width * size_of::<f32>()) as u64
    }
}

/// Keeps `count` rows of `width` elements, and returns them.
pub async fn save<B: Backend>(
    backend: &mut B,
    rows: &B::Buffer,
    count: usize,
    width: usize,
    place: Place<'_>,
) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; count * width];
    backend.read(rows, 0, &mut values).await?;
    place.scratch.write_at(place.blob, place.offset(width), bytemuck::cast_slice(&values)).await?;
    Ok(values)
}

/// Brings them back.
pub async fn load<B: Backend>(
    backend: &mut B,
    rows: &mut B::Buffer,
    count: usize,
    width: usize,
    place: Place<'_>,
) -> Result<()> {
    let mut values = vec![0.0f32; count * width];
    place.scratch.read_at(place.blob, place.offset(width), bytemuck::cast_slice_mut(&mut values)).await?;
    backend.write_f32(rows, &values)
}

/// Keeps hidden states: the residual stream and what the last block adds to it, summed as the next norm would.
pub async fn save_hidden<B: Backend>(
    backend: &mut B,
    hidden: &Hidden<B>,
    width: usize,
    place: Place<'_>,
) -> Result<()> {
    let mut sum = vec![0.0f32; hidden.count * width];
    backend.read(&hidden.residual, 0, &mut sum).await?;
    if hidden.has_delta {
        let mut delta = vec![0.0; sum.len()];
        backend.read(&hidden.delta, 0, &mut delta).await?;
        for (value, change) in sum.iter_mut().zip(&delta) {
            *value += change;
        }
    }
    place.scratch.write_at(place.blob, place.offset(width), bytemuck::cast_slice(&sum)).await
}

/// Brings them back.
pub async fn load_hidden<B: Backend>(
    backend: &mut B,
    hidden: &mut Hidden<B>,
    count: usize,
    width: usize,
    place: Place<'_>,
) -> Result<()> {
    load(backend, &mut hidden.residual, count, width, place).await?;
    hidden.has_delta = false;
    hidden.count = count;
    Ok(())
}
