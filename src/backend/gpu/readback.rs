//! From the device to the host: the only place that waits. Floor 4.

use super::device::Device;
use crate::error::{Error, ErrorCode, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

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
    wait(device)?;
    let result = mapped.await;
    // A failure on the way is the cause of what came after it.
    device.check()?;
    result?;
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
    wait(device)?;
    done.await?;
    device.check()
}

/// Natively, drives the device until it is done; in a browser the event loop does.
fn wait(device: &Device) -> Result<()> {
    match device.device.poll(wgpu::PollType::wait_indefinitely()) {
        Ok(_) => Ok(()),
        Err(error) => {
            device.check()?;
            Err(Error::new(ErrorCode::DeviceLost, format!("the GPU does not answer: {error}")))
        }
    }
}

/// Something that will be known once.
#[derive(Clone, Default)]
struct Signal(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    waker: Option<Waker>,
}

impl Signal {
    fn send(&self, result: Result<()>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.result = Some(result);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl Future for Signal {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
