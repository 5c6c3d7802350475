//! `lowbit devices`: what models can run on. Floor 9.

use super::Outcome;
use super::terminal::Terminal;
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::error::Result;
use serde::Serialize;
use std::fmt::Write as _;

/// List the processor and the GPU adapters that models can run on
#[derive(clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Document {
    cpu: String,
    adapters: Vec<Adapter>,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    api: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    kind: &'static str,
    driver: String,
    /// Larger weights are split.
    max_binding_bytes: u64,
    /// Kernels that run because this adapter has more than WebGPU's core.
    fast_kernels: Vec<&'static str>,
    /// Fast kernels that failed the self-check and gave way to simpler ones: a sentence each.
    replaced: Vec<String>,
    /// Why no model can run on it; null where its kernels compute what the CPU computes.
    error: Option<String>,
}

pub fn run(_: &Args, terminal: &Terminal) -> Result<Outcome> {
    let document = Document { cpu: CpuBackend::new().capabilities().device.clone(), adapters: adapters() };
    let mut text = format!("{}\n", document.cpu);
    // Writing to a string cannot fail.
    for adapter in &document.adapters {
        let Adapter { name, api, kind, driver, max_binding_bytes, fast_kernels, replaced, error } = adapter;
        let check = match error {
            None if fast_kernels.is_empty() => "self-check passed".to_owned(),
            None => format!("self-check passed, with {}", fast_kernels.join(", ")),
            Some(error) => format!("not usable: {error}"),
        };
        let binding = max_binding_bytes >> 20;
        let _ = writeln!(text, "gpu: {name} ({api}, {kind}), {driver}, {binding} MiB a binding; {check}");
        for replaced in replaced {
            let _ = writeln!(text, "  {replaced}");
        }
    }
    if document.adapters.is_empty() {
        text.push_str("no GPU adapter\n");
    }
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<Adapter> {
    use crate::backend::gpu::{AdapterDescription, GpuBackend, GpuOptions};
    use crate::error::Error;
    use crate::task::block_on;

    let checked = async |adapter: &AdapterDescription| {
        let options = GpuOptions { adapter: Some(adapter.to_string()), ..GpuOptions::default() };
        let mut gpu = GpuBackend::new(&options).await?;
        gpu.check_formats().await?;
        Ok::<_, Error>(gpu)
    };
    block_on(async {
        let mut adapters = Vec::new();
        for adapter in crate::backend::gpu::adapters().await {
            let gpu = checked(&adapter).await;
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
    })
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<Adapter> {
    Vec::new()
}
