//! `--device` and `--adapter`: picks the backend that a command runs on. Floor 9.

use super::terminal::Terminal;
use crate::backend::cpu::CpuBackend;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{GpuBackend, GpuOptions};
use crate::error::{Error, ErrorCode, Result};
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
pub enum DeviceArg {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

/// A backend. Each command matches once, and what it calls is compiled for either.
pub enum Device {
    Cpu(CpuBackend),
    #[cfg(feature = "gpu")]
    Gpu(Box<GpuBackend>),
}

/// What was picked, and why it is not what was hoped for.
pub struct Picked {
    pub device: Device,
    /// Why `auto` took the CPU.
    pub why_cpu: Option<Error>,
}

impl DeviceArgs {
    /// Opens the device that is asked for. `auto` takes the CPU where there is no GPU; a software adapter has to be
    /// asked for, because it is slower than the CPU backend.
    ///
    /// # Errors
    /// `no_device` when a GPU is asked for and there is none that fits; `invalid_argument` for an adapter of the CPU.
    pub async fn pick(&self, terminal: &Terminal) -> Result<Picked> {
        let cpu = |why_cpu| Picked { device: Device::Cpu(CpuBackend::new()), why_cpu };
        if self.device == DeviceArg::Cpu {
            if let Some(name) = &self.adapter {
                return Err(Error::invalid_argument(format!("the CPU has no adapter `{name}`")));
            }
            return Ok(cpu(None));
        }
        match self.open_gpu().await {
            Ok(device) => Ok(Picked { device, why_cpu: None }),
            Err(error) if self.may_fall_back(&error) => {
                // That a machine has no GPU is no news; that it has one that cannot be used is.
                if error.code() != ErrorCode::NoDevice {
                    note_cpu(terminal, &error);
                }
                Ok(cpu(Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether anything but the usual was asked for.
    pub fn is_given(&self) -> bool {
        self.device != DeviceArg::Auto || self.adapter.is_some()
    }

    /// Whether the CPU takes over after `error`, which a GPU gave: nobody asked for the GPU, and the CPU may do better.
    pub fn may_fall_back(&self, error: &Error) -> bool {
        self.device == DeviceArg::Auto && self.adapter.is_none() && error.code().is_of_device()
    }

    #[cfg(feature = "gpu")]
    async fn open_gpu(&self) -> Result<Device> {
        let options = GpuOptions {
            adapter: self.adapter.clone(),
            software: self.device == DeviceArg::Gpu,
            ..GpuOptions::default()
        };
        Ok(Device::Gpu(Box::new(GpuBackend::new(&options).await?)))
    }

    #[cfg(not(feature = "gpu"))]
    async fn open_gpu(&self) -> Result<Device> {
        Err(Error::new(ErrorCode::NoDevice, "this lowbit was built without GPU support"))
    }
}

/// Says on standard error that the CPU takes over, and why.
pub fn note_cpu(terminal: &Terminal, error: &Error) {
    terminal.note(format!("note: running on the CPU, because the GPU cannot be used: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_asked_for_falls_back() {
        let args = |device, adapter: Option<&str>| DeviceArgs { device, adapter: adapter.map(str::to_owned) };
        let auto = args(DeviceArg::Auto, None);
        for code in
            [ErrorCode::NoDevice, ErrorCode::WrongResult, ErrorCode::OutOfMemory, ErrorCode::DeviceLost]
        {
            let error = Error::new(code, "no");
            assert!(auto.may_fall_back(&error), "{code:?}");
            assert!(!args(DeviceArg::Gpu, None).may_fall_back(&error));
            assert!(!args(DeviceArg::Auto, Some("x")).may_fall_back(&error));
        }
        // The CPU would fail too.
        for code in
            [ErrorCode::NonFinite, ErrorCode::Cancelled, ErrorCode::InvalidCheckpoint, ErrorCode::NotFound]
        {
            assert!(!auto.may_fall_back(&Error::new(code, "no")), "{code:?}");
        }
    }
}
