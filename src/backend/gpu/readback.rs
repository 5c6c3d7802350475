//! From the device to the host: the only place that waits. Floor 4.

use super::device::Device;
use super::signal::Signal;
use crate::error::{Error, ErrorCode, Result};

/// Buffers that the host can read, kept for the next time.
#[derive(Debug, Default)]
pub(super) struct Staging {
    buffer: Option<wgpu::Buffer>,
}

impl Staging {
    /// A buffer of at least `bytes`, to copy into.
    pub(super) fn buffer(&mut self, device: &Device, bytes: u64) -> wgpu::Buffer {
        if let Some(buffer) = self.buffer.take_if(|buffer| buffer.size() < bytes) {
            buffer.destroy();
        }
        let create = || {
            device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size: bytes.max(4096).next_power_of_two(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        self.buffer.get_or_insert_with(create).clone()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(buffer) = &self.buffer {
            buffer.destroy();
        }
    }
}

/// Waits until everything submitted is done, and copies the front of `buffer` into `out`.
///
/// # Errors
/// What went wrong on the device; `device_lost` where it cannot be mapped.
pub(super) async fn read(device: &Device, buffer: &wgpu::Buffer, out: &mut [u8]) -> Result<()> {
    let bytes = out.len() as u64;
    let mapped = Signal::default();
    let sender = mapped.clone();
    buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
        sender.send(result.map_err(|error| {
            Error::new(ErrorCode::DeviceLost, format!("the GPU's answer cannot be read: {error}"))
        }));
    });
    // Before the answer itself: where a command failed, there may be none.
    device.settle().await?;
    mapped.await?;
    let view = buffer.get_mapped_range(0..bytes).map_err(|error| {
        Error::new(ErrorCode::DeviceLost, format!("the GPU's answer cannot be read: {error}"))
    })?;
    out.copy_from_slice(&view);
    drop(view);
    buffer.unmap();
    Ok(())
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
