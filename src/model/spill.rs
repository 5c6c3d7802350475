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

/// Moves rows between the device and scratch, through memory that it keeps: what takes new memory for every run of tokens
/// spends more time on getting it from the system than on moving rows.
#[derive(Debug, Default)]
pub struct Carrier {
    rows: Vec<f32>,
    delta: Vec<f32>,
}

impl Carrier {
    /// `count` rows of `width` elements, on the host.
    pub async fn rows<'r, B: Backend>(
        &'r mut self,
        backend: &mut B,
        rows: &'r B::Buffer,
        count: usize,
        width: usize,
    ) -> Result<&'r [f32]> {
        on_host(backend, rows, count * width, &mut self.rows).await
    }

    /// Keeps `count` rows of `width` elements, and returns them.
    pub async fn save<'r, B: Backend>(
        &'r mut self,
        backend: &mut B,
        rows: &'r B::Buffer,
        count: usize,
        width: usize,
        place: Place<'_>,
    ) -> Result<&'r [f32]> {
        let rows = self.rows(backend, rows, count, width).await?;
        place.scratch.write_at(place.blob, place.offset(width), bytemuck::cast_slice(rows)).await?;
        Ok(rows)
    }

    /// Brings them back to the host.
    pub async fn fetch(&mut self, count: usize, width: usize, place: Place<'_>) -> Result<&[f32]> {
        self.rows.resize(count * width, 0.0);
        let bytes = bytemuck::cast_slice_mut(&mut self.rows);
        place.scratch.read_at(place.blob, place.offset(width), bytes).await?;
        Ok(&self.rows)
    }

    /// Brings them back to the device.
    pub async fn load<B: Backend>(
        &mut self,
        backend: &mut B,
        rows: &mut B::Buffer,
        count: usize,
        width: usize,
        place: Place<'_>,
    ) -> Result<()> {
        self.load_changed(backend, rows, count, width, place, |_| ()).await
    }

    /// Brings them back to the device, after `change` has done something to them.
    pub async fn load_changed<B: Backend>(
        &mut self,
        backend: &mut B,
        rows: &mut B::Buffer,
        count: usize,
        width: usize,
        place: Place<'_>,
        change: impl FnOnce(&mut [f32]),
    ) -> Result<()> {
        if let Some(rows) = backend.in_memory_mut(rows, count * width) {
            let bytes = bytemuck::cast_slice_mut(rows);
            place.scratch.read_at(place.blob, place.offset(width), bytes).await?;
            change(rows);
            return Ok(());
        }
        self.fetch(count, width, place).await?;
        change(&mut self.rows);
        backend.write_f32(rows, &self.rows)
    }

    /// Keeps hidden states: the residual stream and what the last block adds to it, summed as the next norm would.
    pub async fn save_hidden<B: Backend>(
        &mut self,
        backend: &mut B,
        hidden: &Hidden<B>,
        width: usize,
        place: Place<'_>,
    ) -> Result<()> {
        if !hidden.has_delta {
            return self.save(backend, &hidden.residual, hidden.count, width, place).await.map(drop);
        }
        let len = hidden.count * width;
        let Self { rows, delta } = self;
        let delta = on_host(backend, &hidden.delta, len, delta).await?;
        rows.resize(len, 0.0);
        backend.read(&hidden.residual, 0, rows).await?;
        for (value, change) in rows.iter_mut().zip(delta) {
            *value += change;
        }
        place.scratch.write_at(place.blob, place.offset(width), bytemuck::cast_slice(rows)).await
    }

    /// Brings them back.
    pub async fn load_hidden<B: Backend>(
        &mut self,
        backend: &mut B,
        hidden: &mut Hidden<B>,
        count: usize,
        width: usize,
        place: Place<'_>,
    ) -> Result<()> {
        self.load(backend, &mut hidden.residual, count, width, place).await?;
        hidden.has_delta = false;
        hidden.count = count;
        Ok(())
    }
}

/// The first `len` elements of a buffer where they are, or else in `room`.
async fn on_host<'r, B: Backend>(
    backend: &mut B,
    buffer: &'r B::Buffer,
    len: usize,
    room: &'r mut Vec<f32>,
) -> Result<&'r [f32]> {
    if let Some(values) = backend.in_memory(buffer, len) {
        return Ok(values);
    }
    room.resize(len, 0.0);
    backend.read(buffer, 0, room).await?;
    Ok(room)
}
