//! The device that is opened on an adapter, and what went wrong on it.

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

/// An open device, and the first thing that went wrong on it.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) description: AdapterDescription,
    /// Bytes that one binding may have.
    pub(super) max_binding_bytes: u64,
    /// The variants that it has.
    pub(super) variants: Variants,
    failure: Failure,
    watch: Watch,
    sabotage: Option<Sabotage>,
}

/// What kernels need of a device beside WebGPU's core.
fn features(variants: Variants) -> wgpu::Features {
    let mut features = wgpu::Features::empty();
    features.set(wgpu::Features::SUBGROUP, variants.subgroups.is_some());
    features.set(wgpu::Features::SHADER_F16, variants.half_tiles);
    features
}

impl Device {
    /// Opens the adapter that `options` ask for.
    ///
    /// # Errors
    /// `no_device` when there is none, or it cannot be opened.
    pub(super) async fn open(options: &GpuOptions) -> Result<Self> {
        let AvailableAdapter { adapter, description, variants } = adapter::choose(options).await?;
        let variants = if options.base_kernels { Variants::default() } else { variants };
        let offered = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lowbit"),
            required_features: features(variants),
            // Kernels keep to WebGPU's defaults; only buffers may be larger.
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
        // Also where the device was destroyed: whoever still hears of it has not let it go.
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

    /// The text of a kernel.
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

    /// What is known to have gone wrong since the device was opened. Natively that is everything; in a browser, what
    /// went wrong before the last [`Device::settle`].
    pub(super) fn check(&self) -> Result<()> {
        self.failure.check()
    }

    /// As [`Failure::forget_refused`].
    pub(super) fn forget_refused(&self) -> bool {
        self.failure.forget_refused()
    }

    /// Calls `compile`; what goes wrong then is the error of a kernel.
    pub(super) fn compiling<T>(&self, kernel: &'static str, compile: impl FnOnce() -> T) -> T {
        self.watch.set_work(Work::Kernel(kernel));
        let compiled = compile();
        self.watch.set_work(Work::Commands);
        compiled
    }

    /// Waits until everything that went wrong so far is known; natively also until everything submitted is done.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub(super) async fn settle(&self) -> Result<()> {
        self.settle_until(None).await
    }

    /// As [`Device::settle`], but of what was submitted only up to one submission, where one is given.
    pub(super) async fn settle_until(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let settled = self.watch.settle(submission).await;
        // A failure on the way is the cause of what came after it.
        self.check()?;
        settled
    }
}

/// Nothing collects garbage on a GPU: what JavaScript still refers to would stay there, and keep Node from ending.
#[cfg(target_arch = "wasm32")]
impl Drop for Device {
    fn drop(&mut self) {
        self.device.destroy();
    }
}
