//! `--device` and `--adapter`: the device that a command runs on. Floor 9.

use super::terminal::Terminal;
use crate::backend::choice::{DeviceChoice, DeviceRequest};
use crate::error::{Error, ErrorCode};
use clap::ValueEnum;

/// Where a model runs.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU
    #[arg(long, value_enum, default_value_t)]
    device: DeviceArg,

    /// Run on the GPU adapter with this in its name, see `lowbit devices`
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

/// `--device`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DeviceArg {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

impl DeviceArgs {
    /// What is asked for.
    pub fn request(&self) -> DeviceRequest {
        let device = match self.device {
            DeviceArg::Auto => DeviceChoice::Auto,
            DeviceArg::Cpu => DeviceChoice::Cpu,
            DeviceArg::Gpu => DeviceChoice::Gpu,
        };
        DeviceRequest { device, adapter: self.adapter.clone() }
    }
}

/// Says on standard error that the CPU takes over, and why.
pub fn note_cpu(terminal: &Terminal, error: &Error) {
    // That a machine has no GPU is no news; that it has one that cannot be used is.
    if error.code() != ErrorCode::NoDevice {
        terminal.note(format!("note: running on the CPU, because the GPU cannot be used: {error}"));
    }
}
