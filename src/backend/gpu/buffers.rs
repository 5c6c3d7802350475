//! Device memory: handles that own it, and the pool that reuses it.

use super::device::Device;
use crate::backend::{Element, Elements};
use crate::error::{Error, ErrorCode, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes that the pool keeps; further buffers are destroyed.
const MOST_POOLED_BYTES: u64 = 256 << 20;
/// Sizes are multiples of this. Kernels may read vectors of 16 bytes, and few distinct sizes make reuse likely.
const GRANULE: u64 = 256;

/// Activations, token ids or a cache on the GPU.
#[derive(Debug)]
pub struct GpuBuffer {
    pub(super) memory: Memory,
    element: Element,
    len: usize,
}

impl GpuBuffer {
    pub(super) fn new(memory: Memory, element: Element, len: usize) -> Self {
        Self { memory, element, len }
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Elements for GpuBuffer {
    fn element(&self) -> Element {
        self.element
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Device memory. Clones share it; dropping the last one returns it to the pool.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    buffer: wgpu::Buffer,
    /// Identifies the `wgpu` buffer; never reused for another buffer.
    id: u64,
    /// `None` for weights, which are destroyed when dropped.
    pool: Option<Arc<Pool>>,
}

impl Memory {
    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.buffer
    }

    pub(super) fn id(&self) -> u64 {
        self.0.id
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.buffer.size()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        match &self.pool {
            Some(pool) => pool.put_back(self.id, &self.buffer),
            None => self.buffer.destroy(),
        }
    }
}

/// Free buffers, kept for reuse.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<(u64, wgpu::Buffer)>>,
    next_id: AtomicU64,
}

/// Memory from a [`Pool`].
pub(super) struct Taken {
    pub(super) memory: Memory,
    /// Whether it holds data of an earlier use.
    pub(super) dirty: bool,
}

impl Pool {
    /// Memory for activations. Reuses a free buffer of the same size if there is one.
    pub(super) fn take(self: &Arc<Self>, device: &Device, bytes: u64) -> Result<Taken> {
        let bytes = checked_size(device, bytes)?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = free.iter().position(|(_, buffer)| buffer.size() == bytes).map(|at| free.remove(at));
        drop(free);
        let dirty = waiting.is_some();
        let (id, buffer) = waiting.unwrap_or_else(|| (self.new_id(), create(device, bytes)));
        device.check()?;
        Ok(Taken { memory: Memory(Arc::new(Allocation { buffer, id, pool: Some(self.clone()) })), dirty })
    }

    /// Memory for weights: newly allocated, and destroyed when no longer used.
    pub(super) fn weight(&self, device: &Device, bytes: u64) -> Result<Memory> {
        let buffer = create(device, checked_size(device, bytes)?);
        device.check()?;
        Ok(Memory(Arc::new(Allocation { buffer, id: self.new_id(), pool: None })))
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn put_back(&self, id: u64, buffer: &wgpu::Buffer) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let held: u64 = free.iter().map(|(_, buffer)| buffer.size()).sum();
        if held + buffer.size() <= MOST_POOLED_BYTES {
            free.push((id, buffer.clone()));
        } else {
            buffer.destroy();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (_, buffer) in self.free.get_mut().unwrap_or_else(PoisonError::into_inner) {
            buffer.destroy();
        }
    }
}

/// The allocated size of a buffer for `bytes`.
fn checked_size(device: &Device, bytes: u64) -> Result<u64> {
    if bytes > device.max_binding_bytes {
        return Err(Error::new(
            ErrorCode::OutOfMemory,
            format!(
                "a buffer of {bytes} bytes exceeds the binding limit of {} bytes on {}",
                device.max_binding_bytes, device.description
            ),
        ));
    }
    let rounded = bytes.max(1).next_multiple_of(GRANULE);
    // The limit itself may not be a multiple of the granule.
    Ok(if rounded > device.max_binding_bytes { bytes.next_multiple_of(16) } else { rounded })
}

fn create(device: &Device, bytes: u64) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
    device.device.create_buffer(&descriptor)
}
