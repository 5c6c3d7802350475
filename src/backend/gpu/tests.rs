//! Every kernel against its CPU twin and an `f64` reference, and the shaders' texts against what the host assumes.
//!
//! Where there is no adapter, not even a software one, the tests that need one say so and do nothing. Floor 4.

mod kernels;
mod linear;
mod operands;
mod recording;
mod self_check;
mod shaders;

use super::{GpuBackend, GpuOptions};
use crate::error::ErrorCode;
use crate::task::block_on;

/// A GPU, or `None` with a word on the terminal.
fn gpu() -> Option<GpuBackend> {
    gpu_with(&GpuOptions { software: true, ..GpuOptions::default() })
}

fn gpu_with(options: &GpuOptions) -> Option<GpuBackend> {
    match block_on(GpuBackend::new(options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::NoDevice, "{error}");
            eprintln!("skipped: no adapter");
            None
        }
    }
}
