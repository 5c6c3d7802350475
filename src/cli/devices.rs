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
    /// Why no model can run on it; null where its kernels compute what the CPU computes.
    error: Option<String>,
}

pub fn run(_: &Args, terminal: &Terminal) -> Result<Outcome> {
    let document = Document { cpu: CpuBackend::new().capabilities().device.clone(), adapters: adapters() };
    let mut text = format!("{}\n", document.cpu);
    // Writing to a string cannot fail.
    for adapter in &document.adapters {
        let Adapter { name, api, kind, driver, max_binding_bytes, error } = adapter;
        let check = match error {
            None => "self-check passed".to_owned(),
            Some(error) => format!("not usable: {error}"),
        };
        let binding = max_binding_bytes >> 20;
        let _ = writeln!(text, "gpu: {name} ({api}, {kind}), {driver}, {binding} MiB a binding; {check}");
    }
    if document.adapters.is_empty() {
        text.push_str("no GPU adapter\n");
    }
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<Adapter> {
    use crate::backend::gpu::{GpuBackend, GpuOptions};
    use crate::task::block_on;

    block_on(crate::backend::gpu::adapters())
        .into_iter()
        .map(|adapter| Adapter {
            error: {
                let options = GpuOptions { adapter: Some(adapter.to_string()), ..GpuOptions::default() };
                block_on(GpuBackend::new(&options)).err().map(|error| error.to_string())
            },
            name: adapter.name,
            api: adapter.api,
            kind: adapter.kind.name(),
            driver: adapter.driver,
            max_binding_bytes: adapter.max_binding_bytes,
        })
        .collect()
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<Adapter> {
    Vec::new()
}
