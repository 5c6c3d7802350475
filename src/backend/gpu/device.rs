//! Adapters, the device that is opened on one of them, and what went wrong on it. Floor 4.

use super::kernels::Kernel;
use crate::error::{Error, ErrorCode, Result};
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Which adapter a [`GpuBackend`](super::GpuBackend) runs on.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of the adapter's name, in any case; `None` for the fastest that there is.
    pub adapter: Option<String>,
    /// Whether an adapter that computes on the processor serves where none is named. It is slower than the CPU backend.
    pub software: bool,
    /// Bytes that one binding may have, where that shall be less than the adapter allows: weights are split there.
    pub max_binding_bytes: Option<u64>,
    /// A kernel that does nothing, to see whether anybody notices.
    #[cfg(test)]
    pub broken_kernel: Option<&'static str>,
}

/// What an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU behind virtualization.
    Virtual,
    /// Not known, as in browsers.
    Other,
    /// A program that computes on the processor.
    Software,
}

impl AdapterKind {
    /// The spelling in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Other => "other",
            Self::Software => "software",
        }
    }
}

/// An adapter as `lowbit devices` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterDescription {
    /// Its name, as its driver gives it.
    pub name: String,
    /// The interface that reaches it: `vulkan`, `metal`, `dx12`, `webgpu`.
    pub api: String,
    /// What it is.
    pub kind: AdapterKind,
    /// Driver and version, where they are known.
    pub driver: String,
    /// Bytes that one binding may have; larger weights are split.
    pub max_binding_bytes: u64,
}

impl fmt::Display for AdapterDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.api, self.kind.name())
    }
}

/// The adapters of this machine, the fastest kind first.
pub async fn adapters() -> Vec<AdapterDescription> {
    all().await.iter().map(describe).collect()
}

async fn all() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        // Not the debug layers that a debug build would ask for: they slow every call down.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    // Stable: among equals the driver's order stays.
    adapters.sort_by_key(|adapter| kind(adapter.get_info().device_type));
    adapters
}

fn kind(device_type: wgpu::DeviceType) -> AdapterKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

fn describe(adapter: &wgpu::Adapter) -> AdapterDescription {
    let info = adapter.get_info();
    AdapterDescription {
        name: info.name,
        api: info.backend.to_str().to_owned(),
        kind: kind(info.device_type),
        driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
        max_binding_bytes: adapter.limits().max_storage_buffer_binding_size,
    }
}

/// An open device, and the first thing that went wrong on it.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) description: AdapterDescription,
    /// Bytes that one binding may have.
    pub(super) max_binding_bytes: u64,
    failure: Arc<Mutex<Option<Error>>>,
    #[cfg(test)]
    broken_kernel: Option<&'static str>,
}

impl Device {
    /// Opens the adapter that `options` ask for.
    ///
    /// # Errors
    /// `no_device` when there is none, or it cannot be opened.
    pub(super) async fn open(options: &GpuOptions) -> Result<Self> {
        let adapter = choose(all().await, options)?;
        let description = describe(&adapter);
        let offered = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lowbit"),
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
        let failure = Arc::new(Mutex::new(None));
        let (uncaptured, lost) = (failure.clone(), failure.clone());
        device.on_uncaptured_error(Arc::new(move |error| keep_first(&uncaptured, from_wgpu(&error))));
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                keep_first(&lost, Error::new(ErrorCode::DeviceLost, format!("the GPU was lost: {message}")));
            }
        });
        let limits = device.limits();
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let max_binding_bytes = options.max_binding_bytes.unwrap_or(most).min(most);
        Ok(Self {
            device,
            queue,
            description,
            max_binding_bytes,
            failure,
            #[cfg(test)]
            broken_kernel: options.broken_kernel,
        })
    }

    /// The text of a kernel.
    pub(super) fn source(&self, kernel: &Kernel) -> Cow<'static, str> {
        #[cfg(test)]
        if self.broken_kernel == Some(kernel.name) {
            let begin = kernel.source.find("fn main(").expect("an entry point");
            let body = begin + kernel.source[begin..].find(") {").expect("its body") + 3;
            let (head, tail) = kernel.source.split_at(body);
            return format!("{head} if true {{ return; }} {tail}").into();
        }
        kernel.source.into()
    }

    /// The first thing that went wrong since the device was opened; it stays, because results after it are worth nothing.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// As [`Device::check`], with the code of a shader that was refused.
    pub(super) fn check_shader(&self, kernel: &str) -> Result<()> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = &*failure else { return Ok(()) };
        let error = if error.code() == ErrorCode::DeviceError {
            Error::new(ErrorCode::ShaderError, format!("kernel {kernel} was refused: {}", error.message()))
        } else {
            error.clone()
        };
        *failure = Some(error.clone());
        Err(error)
    }
}

fn keep_first(failure: &Mutex<Option<Error>>, error: Error) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

fn from_wgpu(error: &wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::new(ErrorCode::OutOfMemory, "the GPU is out of memory"),
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
            Error::new(ErrorCode::DeviceError, format!("the GPU refused a command: {description}"))
        }
    }
}

fn choose(adapters: Vec<wgpu::Adapter>, options: &GpuOptions) -> Result<wgpu::Adapter> {
    let names: Vec<String> = adapters.iter().map(|adapter| describe(adapter).to_string()).collect();
    let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let fits = |adapter: &wgpu::Adapter| match &options.adapter {
        Some(name) => describe(adapter).to_string().to_lowercase().contains(&name.to_lowercase()),
        None => options.software || describe(adapter).kind != AdapterKind::Software,
    };
    adapters.into_iter().find(fits).ok_or_else(|| {
        let expected = match &options.adapter {
            Some(name) => format!("a GPU adapter named `{name}`"),
            None => "a GPU adapter".to_owned(),
        };
        Error::new(ErrorCode::NoDevice, format!("expected {expected} but found {found}"))
    })
}
