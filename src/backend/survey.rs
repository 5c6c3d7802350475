//! What models can run on here, each adapter checked against the CPU.

use super::DeviceOps;
use super::cpu::CpuBackend;
use serde::Serialize;

/// The processor and the GPU adapters.
#[derive(Debug, Serialize)]
pub struct Devices {
    /// The processor in words.
    pub cpu: String,
    /// None where there is no GPU, or this build has no support for them.
    pub adapters: Vec<Adapter>,
}

/// A GPU adapter.
#[derive(Debug, Serialize)]
pub struct Adapter {
    /// As its driver calls it.
    pub name: String,
    /// What it is driven through: `vulkan`, `metal`, `webgpu`.
    pub api: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// The driver in words; browsers do not tell.
    pub driver: String,
    /// Larger weights are split.
    pub max_binding_bytes: u64,
    /// Kernels that run because this adapter has more than WebGPU's core.
    pub fast_kernels: Vec<&'static str>,
    /// Fast kernels that failed the self-check and gave way to simpler ones: a sentence each.
    pub replaced: Vec<String>,
    /// Why no model can run on it; null where its kernels compute what the CPU computes.
    pub error: Option<String>,
}

/// Looks at everything that models could run on.
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
