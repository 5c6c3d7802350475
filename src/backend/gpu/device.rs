//! The device opened on an adapter, and the errors that occur on it.

use super::adapter::{self, AdapterDescription, AvailableAdapter, GpuOptions, Sabotage};
#[cfg(not(target_arch = "wasm32"))]
use super::failure::Watch;
use super::failure::{Failure, Work};
use super::kernels::Kernel;
use super::variants::Variants;
#[cfg(target_arch = "wasm32")]
use super::web::Watch;
use crate::error::{Error, ErrorCode, Result};
use std::borrow::Cow;

/// An open device and its first error.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) description: AdapterDescription,
    /// Largest size of one binding.
    pub(super) max_binding_bytes: u64,
    /// The kernel variants that it supports.
    pub(super) variants: Variants,
    failure: Failure,
    watch: Watch,
    sabotage: Option<Sabotage>,
}

/// The device features beyond WebGPU's core that variants require.
fn features(variants: Variants) -> wgpu::Features {
    let mut features = wgpu::Features::empty();
    features.set(wgpu::Features::SUBGROUP, variants.subgroups.is_some());
    features.set(wgpu::Features::SHADER_F16, variants.half_tiles);
    features
}

impl Device {
    /// Opens the adapter that `options` request.
    ///
    /// # Errors
    /// `no_device` if there is none or it cannot be opened.
    pub(super) async fn open(options: &GpuOptions) -> Result<Self> {
        let AvailableAdapter { adapter, description, variants } = adapter::choose(options).await?;
        let variants = if options.base_kernels { Variants::default() } else { variants };
        let offered = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lowbit"),
            required_features: features(variants),
            // Kernels stay within WebGPU's default limits, except for buffer sizes.
            required_limits: wgpu::Limits {
                max_buffer_size: offered.max_buffer_size,
                max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
                ..wgpu::Limits::default()
            },
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|error| {
            Error::new(ErrorCode::NoDevice, format!("the adapter {description} cannot be opened: {error}"))
        })?;
        let failure = Failure::default();
        let watch = Watch::new(&device, &failure);
        let lost = failure.clone();
        // Also called when the device is destroyed: whoever sees this error still holds the device.
        device.set_device_lost_callback(move |_, message| {
            lost.keep_first(Error::new(ErrorCode::DeviceLost, format!("the GPU was lost: {message}")));
        });
        let limits = device.limits();
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let max_binding_bytes = options.max_binding_bytes.unwrap_or(most).min(most);
        Ok(Self {
            device,
            queue,
            description,
            max_binding_bytes,
            variants,
            failure,
            watch,
            sabotage: options.sabotage,
        })
    }

    /// The source of a kernel.
    pub(super) fn source(&self, kernel: &Kernel) -> Cow<'static, str> {
        match self.sabotage {
            Some(Sabotage::Idle(name)) if name == kernel.name => {
                let begin = kernel.source.find("fn main(").expect("an entry point");
                let body = begin + kernel.source[begin..].find(") {").expect("its body") + 3;
                let (head, tail) = kernel.source.split_at(body);
                format!("{head} if true {{ return; }} {tail}").into()
            }
            Some(Sabotage::Invalid(name)) if name == kernel.name => {
                format!("{}\nfn broken() -> u32 {{ return nothing_of_this_name; }}\n", kernel.source).into()
            }
            _ => kernel.source.into(),
        }
    }

    /// Returns the first known error since the device was opened. Natively all errors are known; in a browser, those
    /// before the last [`Device::settle`].
    pub(super) fn check(&self) -> Result<()> {
        self.failure.check()
    }

    /// As [`Failure::forget_refused`].
    pub(super) fn forget_refused(&self) -> bool {
        self.failure.forget_refused()
    }

    /// Calls `compile` and attributes errors during it to the kernel.
    pub(super) fn compiling<T>(&self, kernel: &'static str, compile: impl FnOnce() -> T) -> T {
        self.watch.set_work(Work::Kernel(kernel));
        let compiled = compile();
        self.watch.set_work(Work::Commands);
        compiled
    }

    /// Waits until all errors so far are known; natively also until all submitted work is done.
    ///
    /// # Errors
    /// The first error.
    pub(super) async fn settle(&self) -> Result<()> {
        self.settle_until(None).await
    }

    /// As [`Device::settle`], but waits only for work up to a submission, if one is given.
    pub(super) async fn settle_until(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let settled = self.watch.settle(submission).await;
        // A recorded failure is the cause of an error of `settle`, so it takes precedence.
        self.check()?;
        settled
    }
}

/// JavaScript's garbage collection does not free GPU objects. Without this, live references would keep GPU memory and
/// prevent Node from exiting.
#[cfg(target_arch = "wasm32")]
impl Drop for Device {
    fn drop(&mut self) {
        self.device.destroy();
    }
}
