//! Storage for hidden states in scratch space, while a model runs block by block.
//!
//! Always `f32`, so that a memory budget never changes a result. A slot holds one row per token.

use super::block::Hidden;
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;

/// The rows of a slot, starting at a given row.
#[derive(Clone, Copy)]
pub struct StoreSlot<'s> {
    /// The slot's name.
    pub name: &'s str,
    /// The first row.
    pub first: usize,
}

impl StoreSlot<'_> {
    fn offset(&self, width: usize) -> u64 {
        (self.first * width * size_of::<f32>()) as u64
    }
}

/// Moves rows between the device and scratch space. It reuses its buffers, because allocating memory for every run of
/// tokens takes longer than moving the rows.
pub struct HiddenStore<'a> {
    /// A file, memory, or storage that the caller provides.
    pub scratch: &'a dyn Scratch,
    rows: Vec<f32>,
    delta: Vec<f32>,
}

impl<'a> HiddenStore<'a> {
    /// A store in this scratch space.
    pub fn new(scratch: &'a dyn Scratch) -> Self {
        Self { scratch, rows: Vec::new(), delta: Vec::new() }
    }

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

    /// Stores `count` rows of `width` elements, and returns them.
    pub async fn save<'r, B: Backend>(
        &'r mut self,
        backend: &mut B,
        rows: &'r B::Buffer,
        count: usize,
        width: usize,
        slot: StoreSlot<'_>,
    ) -> Result<&'r [f32]> {
        let rows = on_host(backend, rows, count * width, &mut self.rows).await?;
        self.scratch.write_at(slot.name, slot.offset(width), bytemuck::cast_slice(rows)).await?;
        Ok(rows)
    }

    /// Reads stored rows to the host.
    pub async fn fetch(&mut self, count: usize, width: usize, slot: StoreSlot<'_>) -> Result<&mut [f32]> {
        self.rows.resize(count * width, 0.0);
        let bytes = bytemuck::cast_slice_mut(&mut self.rows);
        self.scratch.read_at(slot.name, slot.offset(width), bytes).await?;
        Ok(&mut self.rows)
    }

    /// Reads stored rows, applies `change` to them, and writes them to the device.
    pub async fn load<B: Backend>(
        &mut self,
        backend: &mut B,
        rows: &mut B::Buffer,
        count: usize,
        width: usize,
        slot: StoreSlot<'_>,
        change: impl FnOnce(&mut [f32]),
    ) -> Result<()> {
        if let Some(rows) = backend.in_memory_mut(rows, count * width) {
            let bytes = bytemuck::cast_slice_mut(rows);
            self.scratch.read_at(slot.name, slot.offset(width), bytes).await?;
            change(rows);
            return Ok(());
        }
        let values = self.fetch(count, width, slot).await?;
        change(values);
        backend.write_f32(rows, values)
    }

    /// Stores hidden states: the residual stream plus the last block's output, summed as the next norm would.
    pub async fn save_hidden<B: Backend>(
        &mut self,
        backend: &mut B,
        hidden: &Hidden<B>,
        width: usize,
        slot: StoreSlot<'_>,
    ) -> Result<()> {
        if !hidden.has_delta {
            return self.save(backend, &hidden.residual, hidden.count, width, slot).await.map(drop);
        }
        let len = hidden.count * width;
        let Self { scratch, rows, delta } = self;
        let delta = on_host(backend, &hidden.delta, len, delta).await?;
        rows.resize(len, 0.0);
        backend.read(&hidden.residual, 0, rows).await?;
        for (value, change) in rows.iter_mut().zip(delta) {
            *value += change;
        }
        scratch.write_at(slot.name, slot.offset(width), bytemuck::cast_slice(rows)).await
    }

    /// Reads stored hidden states to the device.
    pub async fn load_hidden<B: Backend>(
        &mut self,
        backend: &mut B,
        hidden: &mut Hidden<B>,
        count: usize,
        width: usize,
        slot: StoreSlot<'_>,
    ) -> Result<()> {
        self.load(backend, &mut hidden.residual, count, width, slot, |_| ()).await?;
        hidden.has_delta = false;
        hidden.count = count;
        Ok(())
    }
}

/// The first `len` elements of a buffer: in place if the host can access them, otherwise copied to `room`.
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
