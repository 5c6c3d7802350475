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
}

pub fn run(_: &Args, terminal: &Terminal) -> Result<Outcome> {
    let document = Document { cpu: CpuBackend::new().capabilities().device.clone(), adapters: adapters() };
    let mut text = format!("{}\n", document.cpu);
    // Writing to a string cannot fail.
    for adapter in &document.adapters {
        let Adapter { name, api, kind, driver, max_binding_bytes } = adapter;
        let _ = writeln!(
            text,
            "gpu: {name} ({api}, {kind}), {driver}, {} MiB a binding",
            max_binding_bytes >> 20
        );
    }
    if document.adapters.is_empty() {
        text.push_str("no GPU adapter\n");
    }
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<Adapter> {
    let found = crate::task::block_on(crate::backend::gpu::adapters());
    found
        .into_iter()
        .map(|adapter| Adapter {
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
