//! The adapters of this machine, and the choice of one of them.

use super::variants::Variants;
use crate::error::{Error, ErrorCode, Result};
use crate::options::named;
use crate::sort;
use std::fmt;

/// The adapter of a [`GpuBackend`](super::GpuBackend), and limits on its use.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of the adapter's name, case-insensitive; `None` for the fastest adapter.
    pub adapter: Option<String>,
    /// Allows a software adapter if none is named. It is slower than the CPU backend.
    pub software: bool,
    /// Bytes per binding, if less than the adapter allows; larger weights are split.
    pub max_binding_bytes: Option<u64>,
    /// Uses base kernels only, without variants.
    pub base_kernels: bool,
    /// An injected fault, to test that it is detected; for tests here and of packages.
    #[doc(hidden)]
    pub sabotage: Option<Sabotage>,
}

/// A fault in the kernel of the given name.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The kernel does nothing.
    Idle(&'static str),
    /// Its source does not compile.
    Invalid(&'static str),
}

named! {
    /// Kind of an adapter
    #[derive(PartialOrd, Ord)]
    pub enum AdapterKind {
        /// A GPU with its own memory
        Discrete = "discrete",
        /// A GPU that shares the CPU's memory
        Integrated = "integrated",
        /// A virtualized GPU
        Virtual = "virtual",
        /// Unknown, as in browsers
        Other = "other",
        /// A software adapter that computes on the CPU
        Software = "software",
    }
}

/// An adapter as `lowbit devices` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterDescription {
    /// Name that the driver reports; browsers reveal little.
    pub name: String,
    /// Graphics API: `vulkan`, `metal`, `dx12`, `webgpu`.
    pub api: String,
    /// Kind of the adapter.
    pub kind: AdapterKind,
    /// Driver and version, if known.
    pub driver: String,
    /// Largest size of one binding; larger weights are split.
    pub max_binding_bytes: u64,
}

impl fmt::Display for AdapterDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.api, self.kind.name())
    }
}

/// The adapters of this machine, the fastest kind first. A browser lists at most two: its high-performance and its
/// low-power adapter, if they differ.
pub async fn adapters() -> Vec<AdapterDescription> {
    let candidates = all().await.unwrap_or_default();
    candidates.into_iter().map(|candidate| candidate.description).collect()
}

/// An adapter and its properties. It can be opened once.
pub(super) struct AvailableAdapter {
    pub(super) adapter: wgpu::Adapter,
    pub(super) description: AdapterDescription,
    /// The kernel variants that it supports.
    pub(super) variants: Variants,
}

/// The kernel variants that an adapter supports. Some need a WGSL language feature, some a device feature.
#[cfg(not(target_arch = "wasm32"))]
fn variants(instance: &wgpu::Instance, adapter: &wgpu::Adapter) -> Variants {
    let language = instance.wgsl_language_features();
    let packed_dot = language.contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct);
    let info = adapter.get_info();
    let subgroups = adapter
        .features()
        .contains(wgpu::Features::SUBGROUP)
        .then(|| least_subgroup(info.subgroup_min_size, info.backend, &info.name));
    Variants { packed_dot, rounding_norm: true, subgroups, half_tiles: has_f16(adapter) }
}

fn has_f16(adapter: &wgpu::Adapter) -> bool {
    adapter.features().contains(wgpu::Features::SHADER_F16)
}

/// A power of two: the largest number of invocations that surely share a subgroup, whatever its size. wgpu does not
/// know Metal's subgroup sizes and reports 4; those of Apple's own GPUs are always 32.
#[cfg(not(target_arch = "wasm32"))]
fn least_subgroup(told: u32, api: wgpu::Backend, name: &str) -> u32 {
    if api == wgpu::Backend::Metal && name.starts_with("Apple ") { 32 } else { 1 << told.max(1).ilog2() }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        // No debug layers: in a debug build they would slow down every call.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

#[cfg(not(target_arch = "wasm32"))]
async fn all() -> Result<Vec<AvailableAdapter>> {
    let instance = instance();
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let describe = |adapter: wgpu::Adapter| {
        let variants = variants(&instance, &adapter);
        let info = adapter.get_info();
        let description = AdapterDescription {
            name: info.name,
            api: info.backend.to_str().to_owned(),
            kind: kind(info.device_type),
            driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
            max_binding_bytes: adapter.limits().max_storage_buffer_binding_size,
        };
        AvailableAdapter { adapter, description, variants }
    };
    let mut candidates: Vec<_> = adapters.into_iter().map(describe).collect();
    // The sort is stable: equal kinds keep the driver's order.
    sort::sort_by_key(&mut candidates, |candidate| candidate.description.kind);
    Ok(candidates)
}

#[cfg(not(target_arch = "wasm32"))]
fn kind(device_type: wgpu::DeviceType) -> AdapterKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

#[cfg(target_arch = "wasm32")]
async fn all() -> Result<Vec<AvailableAdapter>> {
    use super::web;

    if !web::has_webgpu() {
        return Err(Error::new(
            ErrorCode::NoDevice,
            "there is no WebGPU here; pages have it only over https and on localhost",
        ));
    }
    let instance = instance();
    let packed_dot = web::has_language_feature("packed_4x8_integer_dot_product");
    let variants = packed_dot.map_or_else(Variants::default, |packed_dot| Variants {
        packed_dot,
        rounding_norm: true,
        ..Variants::default()
    });
    let mut candidates: Vec<AvailableAdapter> = Vec::new();
    for (spelled, preference) in [
        ("high-performance", wgpu::PowerPreference::HighPerformance),
        ("low-power", wgpu::PowerPreference::LowPower),
    ] {
        let Some(web::Info { name, is_fallback }) = web::adapter_info(spelled).await else { continue };
        let name = if name.is_empty() { "unnamed GPU".to_owned() } else { name };
        if candidates.iter().any(|candidate| candidate.description.name == name) {
            continue;
        }
        let options = wgpu::RequestAdapterOptions { power_preference: preference, ..Default::default() };
        let Ok(adapter) = instance.request_adapter(&options).await else { continue };
        let software = is_fallback || is_software(&name);
        let description = AdapterDescription {
            name,
            api: "webgpu".to_owned(),
            kind: if software { AdapterKind::Software } else { AdapterKind::Other },
            driver: String::new(),
            max_binding_bytes: adapter.limits().max_storage_buffer_binding_size,
        };
        // A browser that does not report WGSL features gets base kernels only.
        let half_tiles = packed_dot.is_some() && has_f16(&adapter);
        candidates.push(AvailableAdapter {
            description,
            variants: Variants { half_tiles, ..variants },
            adapter,
        });
    }
    sort::sort_by_key(&mut candidates, |candidate| candidate.description.kind);
    Ok(candidates)
}

/// Whether an adapter of unreported kind computes on the CPU, judged by its name.
#[cfg(any(target_arch = "wasm32", test))]
fn is_software(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["swiftshader", "llvmpipe", "lavapipe", "basic render"].iter().any(|known| name.contains(known))
}

/// The adapter that `options` request.
///
/// # Errors
/// `no_device` if there is none.
pub(super) async fn choose(options: &GpuOptions) -> Result<AvailableAdapter> {
    let candidates = all().await?;
    let names: Vec<String> = candidates.iter().map(|candidate| candidate.description.to_string()).collect();
    let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let fits = |candidate: &AvailableAdapter| fits(&candidate.description, options);
    candidates.into_iter().find(fits).ok_or_else(|| {
        let expected = match &options.adapter {
            Some(name) => format!("a GPU adapter named `{name}`"),
            None => "a GPU adapter".to_owned(),
        };
        Error::new(ErrorCode::NoDevice, format!("expected {expected} but found {found}"))
    })
}

fn fits(description: &AdapterDescription, options: &GpuOptions) -> bool {
    match &options.adapter {
        Some(name) => description.to_string().to_ascii_lowercase().contains(&name.to_ascii_lowercase()),
        None => options.software || description.kind != AdapterKind::Software,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subgroups_are_taken_to_be_no_larger_than_they_surely_are() {
        use wgpu::Backend::{Dx12, Metal, Vulkan};
        for (told, api, name, expected) in [
            (32, Vulkan, "NVIDIA H200", 32),
            (8, Vulkan, "Intel(R) Iris(R) Xe Graphics", 8),
            (4, Dx12, "Microsoft Basic Render Driver", 4),
            (4, Metal, "Apple M3", 32),
            (4, Metal, "AMD Radeon Pro 5500M", 4),
            // Invalid reports.
            (0, Vulkan, "a driver that does not know", 1),
            (24, Vulkan, "no power of two", 16),
        ] {
            assert_eq!(least_subgroup(told, api, name), expected, "{name}");
        }
    }

    #[test]
    fn software_adapters_are_known_by_name_and_have_to_be_asked_for() {
        // Name, and whether it is a known software adapter.
        let cases = [
            ("google swiftshader", true),
            ("llvmpipe (LLVM 15.0.6, 256 bits)", true),
            ("Microsoft Basic Render Driver", true),
            ("nvidia ampere", false),
            ("unnamed GPU", false),
        ];
        for (name, software) in cases {
            assert_eq!(is_software(name), software, "{name}");
            let description = AdapterDescription {
                name: name.to_owned(),
                api: "webgpu".to_owned(),
                kind: if software { AdapterKind::Software } else { AdapterKind::Other },
                driver: String::new(),
                max_binding_bytes: 1 << 27,
            };
            let options = |adapter: Option<&str>, software| GpuOptions {
                adapter: adapter.map(str::to_owned),
                software,
                ..GpuOptions::default()
            };
            assert_eq!(fits(&description, &options(None, false)), !software, "{name}");
            assert!(fits(&description, &options(None, true)), "{name}");
            assert!(fits(&description, &options(Some(&name[2..6].to_uppercase()), false)), "{name}");
            assert!(!fits(&description, &options(Some("voodoo"), true)), "{name}");
        }
    }
}
