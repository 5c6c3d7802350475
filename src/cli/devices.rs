//! `lowbit devices`: lists devices.

use super::Outcome;
use super::terminal::Terminal;
use crate::backend::survey::{Adapter, devices};
use crate::error::Result;
use crate::task::block_on;
use std::fmt::Write as _;

/// List the CPU and the GPU adapters that can run models
#[derive(clap::Args)]
pub struct DevicesArgs {}

pub fn run(_: &DevicesArgs, terminal: &Terminal) -> Result<Outcome> {
    let document = block_on(devices());
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
