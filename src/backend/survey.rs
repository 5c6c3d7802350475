//! The devices of this machine. Each adapter is checked against the CPU.

use super::DeviceOps;
use super::cpu::CpuBackend;
use serde::Serialize;

/// The CPU and the GPU adapters.
#[derive(Debug, Serialize)]
pub struct Devices {
    /// Description of the CPU.
    pub cpu: String,
    /// Empty without a GPU, or if this build has no GPU support.
    pub adapters: Vec<Adapter>,
}

/// A GPU adapter.
#[derive(Debug, Serialize)]
pub struct Adapter {
    /// Name that the driver reports.
    pub name: String,
    /// Graphics API: `vulkan`, `metal`, `dx12`, `webgpu`.
    pub api: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// Description of the driver; empty in browsers.
    pub driver: String,
    /// Largest size of one binding; larger weights are split.
    pub max_binding_bytes: u64,
    /// Names of the fast kernel variants in use.
    pub fast_kernels: Vec<&'static str>,
    /// One sentence for each fast kernel that failed the self-check and was replaced by a simpler one.
    pub replaced: Vec<String>,
    /// Why no model can run on it; null if its kernels pass the self-check.
    pub error: Option<String>,
}

/// Lists all devices that models can run on.
pub async fn devices() -> Devices {
    Devices { cpu: CpuBackend::new().capabilities().device.clone(), adapters: adapters().await }
}

#[cfg(feature = "gpu")]
async fn adapters() -> Vec<Adapter> {
    use super::gpu::{GpuBackend, GpuOptions};
    use crate::error::Result;

    let mut adapters = Vec::new();
    for adapter in super::gpu::adapters().await {
        let checked = async || -> Result<GpuBackend> {
            let options = GpuOptions { adapter: Some(adapter.to_string()), ..GpuOptions::default() };
            let mut gpu = GpuBackend::new(&options).await?;
            gpu.check_formats().await?;
            Ok(gpu)
        };
        let gpu = checked().await;
        let replaced = gpu.as_ref().map(|gpu| gpu.capabilities().replaced.clone());
        adapters.push(Adapter {
            fast_kernels: gpu.as_ref().map(GpuBackend::fast_kernels).unwrap_or_default(),
            replaced: replaced.unwrap_or_default(),
            error: gpu.err().map(|error| error.to_string()),
            name: adapter.name,
            api: adapter.api,
            kind: adapter.kind.name(),
            driver: adapter.driver,
            max_binding_bytes: adapter.max_binding_bytes,
        });
    }
    adapters
}

#[cfg(not(feature = "gpu"))]
async fn adapters() -> Vec<Adapter> {
    Vec::new()
}
