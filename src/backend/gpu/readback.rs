//! From the device to the host: the only place that waits.

use super::GpuBackend;
use super::buffers::Memory;
use super::device::Device;
use super::signal::Signal;
use crate::backend::DeviceOps;
use crate::error::{Error, ErrorCode, Result};
use std::ops::Range;

/// Buffers that are kept: one for the step that is awaited, one for the step that runs meanwhile.
const MOST_KEPT: usize = 2;

/// Buffers that the host can read, kept for the next time.
#[derive(Debug, Default)]
pub(super) struct Staging {
    free: Vec<wgpu::Buffer>,
}

impl Staging {
    /// A buffer of at least `bytes`, to copy into.
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

    /// Keeps a buffer that is no longer mapped; of too many the smallest goes.
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

/// Bytes on their way to the host.
pub struct GpuReading {
    /// Gone when they have arrived.
    buffer: Option<wgpu::Buffer>,
    bytes: u64,
    mapped: Signal,
    /// The submission that copies them.
    submission: Option<wgpu::SubmissionIndex>,
}

impl GpuReading {
    /// Asks for the front of `buffer`, into which `submission` copies.
    pub(super) fn begin(buffer: wgpu::Buffer, bytes: u64, submission: Option<wgpu::SubmissionIndex>) -> Self {
        let mapped = Signal::default();
        let sender = mapped.clone();
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            sender.send(result.map_err(|error| unreadable(&error)));
        });
        Self { buffer: Some(buffer), bytes, mapped, submission }
    }

    /// How many bytes come.
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Waits until the bytes have come, not for what was submitted later, and copies them into `out`.
    ///
    /// # Errors
    /// What went wrong on the device; `device_lost` where it cannot be mapped.
    pub(super) async fn finish(
        mut self,
        device: &Device,
        staging: &mut Staging,
        out: &mut [u8],
    ) -> Result<()> {
        // Before the answer itself: where a command failed, there may be none.
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
    /// Copies ranges of 32-bit elements to memory that the host can read, and asks for it.
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

    /// Reads 32-bit elements from `offset` on.
    pub(super) async fn read_bytes(&mut self, memory: &Memory, offset: usize, out: &mut [u8]) -> Result<()> {
        let reading = self.begin_copies(&[(memory, offset..offset + out.len() / 4)])?;
        reading.finish(&self.device, &mut self.staging, out).await
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::DeviceLost, format!("the GPU's answer cannot be read: {error}"))
}

/// Waits until the queue has done everything that was submitted.
pub(super) async fn finish(device: &Device) -> Result<()> {
    let done = Signal::default();
    let sender = done.clone();
    device.queue.on_submitted_work_done(move || sender.send(Ok(())));
    device.settle().await?;
    done.await?;
    device.check()
}
