//! Transfers from the device to the host: the only module that waits for work.

use super::GpuBackend;
use super::buffers::Memory;
use super::device::Device;
use super::signal::Signal;
use crate::backend::DeviceOps;
use crate::error::{Error, ErrorCode, Result};
use std::ops::Range;

/// Most buffers kept: one for the awaited step, one for the step that runs meanwhile.
const MOST_KEPT: usize = 2;

/// Staging buffers that the host can read, kept for reuse.
#[derive(Debug, Default)]
pub(super) struct Staging {
    free: Vec<wgpu::Buffer>,
}

impl Staging {
    /// A staging buffer of at least `bytes`.
    pub(super) fn take(&mut self, device: &Device, bytes: u64) -> wgpu::Buffer {
        if let Some(at) = self.free.iter().position(|buffer| buffer.size() >= bytes) {
            return self.free.swap_remove(at);
        }
        device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes.max(4096).next_power_of_two(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Keeps an unmapped buffer for reuse. Above the limit, the smallest is destroyed.
    fn put_back(&mut self, buffer: wgpu::Buffer) {
        self.free.push(buffer);
        self.free.sort_by_key(wgpu::Buffer::size);
        if self.free.len() > MOST_KEPT {
            self.free.remove(0).destroy();
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for buffer in &self.free {
            buffer.destroy();
        }
    }
}

/// A pending read of bytes.
pub struct GpuReading {
    /// `None` once the bytes have been read.
    buffer: Option<wgpu::Buffer>,
    bytes: u64,
    mapped: Signal,
    /// The submission that copies the bytes.
    submission: Option<wgpu::SubmissionIndex>,
}

impl GpuReading {
    /// Begins to map the front of `buffer`, which `submission` fills.
    pub(super) fn begin(buffer: wgpu::Buffer, bytes: u64, submission: Option<wgpu::SubmissionIndex>) -> Self {
        let mapped = Signal::default();
        let sender = mapped.clone();
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            sender.send(result.map_err(|error| unreadable(&error)));
        });
        Self { buffer: Some(buffer), bytes, mapped, submission }
    }

    /// Number of bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Waits for the bytes and copies them to `out`. Does not wait for later submissions.
    ///
    /// # Errors
    /// Errors of the device; `device_lost` if the buffer cannot be mapped.
    pub(super) async fn finish(
        mut self,
        device: &Device,
        staging: &mut Staging,
        out: &mut [u8],
    ) -> Result<()> {
        // Settle before the mapping is awaited: after a failed command it may never complete.
        device.settle_until(self.submission.take()).await?;
        self.mapped.clone().await?;
        let Some(buffer) = self.buffer.take() else { return Ok(()) };
        let view = buffer.get_mapped_range(0..self.bytes).map_err(|error| unreadable(&error))?;
        out.copy_from_slice(&view);
        drop(view);
        buffer.unmap();
        staging.put_back(buffer);
        Ok(())
    }
}

impl Drop for GpuReading {
    fn drop(&mut self) {
        if let Some(buffer) = &self.buffer {
            buffer.destroy();
        }
    }
}

impl GpuBackend {
    /// Copies ranges of 32-bit elements to a staging buffer and begins to map it.
    pub(super) fn begin_copies(&mut self, ranges: &[(&Memory, Range<usize>)]) -> Result<GpuReading> {
        let bytes = |range: &Range<usize>| range.len() as u64 * 4;
        let staging = self.staging.take(&self.device, ranges.iter().map(|(_, range)| bytes(range)).sum());
        let mut at = 0;
        for (memory, range) in ranges {
            self.recording.copy((memory, range.start as u64 * 4), (&staging, at), bytes(range));
            at += bytes(range);
        }
        self.flush()?;
        Ok(GpuReading::begin(staging, at, self.submitter.last()))
    }

    /// Reads 32-bit elements, from `offset` on.
    pub(super) async fn read_bytes(&mut self, memory: &Memory, offset: usize, out: &mut [u8]) -> Result<()> {
        let reading = self.begin_copies(&[(memory, offset..offset + out.len() / 4)])?;
        reading.finish(&self.device, &mut self.staging, out).await
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::DeviceLost, format!("the GPU's results cannot be read: {error}"))
}

/// Waits until the queue has completed all submitted work.
pub(super) async fn finish(device: &Device) -> Result<()> {
    let done = Signal::default();
    let sender = done.clone();
    device.queue.on_submitted_work_done(move || sender.send(Ok(())));
    device.settle().await?;
    done.await?;
    device.check()
}
