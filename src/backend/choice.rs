//! Which device a run asks for, and what becomes of the run where that device fails.

use super::any::AnyBackend;
use super::cpu::CpuBackend;
#[cfg(feature = "gpu")]
use super::gpu::{GpuBackend, GpuOptions};
#[cfg(any(test, not(feature = "gpu")))]
use crate::error::ErrorCode;
use crate::error::{Error, Result};
use crate::options::{named, options};

named! {
    /// Where a model is to run.
    #[derive(Default)]
    pub enum DeviceChoice {
        /// On a GPU where there is one that can, otherwise on the CPU; not on a software adapter, which is slower
        #[default]
        Auto = "auto",
        /// On the CPU
        Cpu = "cpu",
        /// On a GPU
        Gpu = "gpu",
    }
}

options! {
    /// The device that runs a model.
    pub struct DeviceRequest {
        /// Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU
        pub device: DeviceChoice = DeviceChoice::Auto;
        /// Run on the GPU adapter with this in its name, as the list of devices has it
        pub gpu: Option<String> = None;
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct DeviceOutcome<T> {
    /// Its result.
    pub result: T,
    /// Why it was on the CPU although no device was asked for.
    pub fallback_reason: Option<Error>,
}

impl DeviceRequest {
    /// The CPU.
    pub(crate) fn cpu() -> Self {
        Self { device: DeviceChoice::Cpu, gpu: None }
    }

    /// Whether anything but the usual is asked for.
    pub(crate) fn is_given(&self) -> bool {
        self.device != DeviceChoice::Auto || self.gpu.is_some()
    }

    /// Whether the CPU takes over after `error`, which a GPU gave: nobody asked for the GPU, and the CPU may do better.
    fn may_fall_back(&self, error: &Error) -> bool {
        !self.is_given() && error.code().is_of_device()
    }

    /// Opens the device. Where none is asked for and no GPU can be used, it is the CPU, with the reason.
    ///
    /// # Errors
    /// `no_device` when a GPU is asked for and there is none that fits; `invalid_argument` for an adapter of the CPU.
    pub(crate) async fn open(&self) -> Result<(AnyBackend, Option<Error>)> {
        if self.device == DeviceChoice::Cpu {
            if let Some(name) = &self.gpu {
                return Err(Error::invalid_argument(format!("the CPU has no adapter `{name}`")));
            }
            return Ok((CpuBackend::new().into(), None));
        }
        match self.open_gpu().await {
            Ok(gpu) => Ok((gpu, None)),
            Err(error) if self.may_fall_back(&error) => Ok((CpuBackend::new().into(), Some(error))),
            Err(error) => Err(error),
        }
    }

    /// Does `work` on the device. Where none is asked for and a GPU fails at it, the CPU does it from the beginning: what one
    /// device measured is not mixed with what another one did. `tell` hears why the CPU takes over.
    ///
    /// # Errors
    /// As [`DeviceRequest::open`], and those of `work`.
    pub(crate) async fn run<T>(
        &self,
        tell: impl Fn(&Error),
        work: impl AsyncFn(AnyBackend) -> Result<T>,
    ) -> Result<DeviceOutcome<T>> {
        let (backend, fallback_reason) = self.open().await?;
        fallback_reason.iter().for_each(&tell);
        let on_cpu = matches!(backend, AnyBackend::Cpu(_));
        match work(backend).await {
            Err(error) if !on_cpu && self.may_fall_back(&error) => {
                tell(&error);
                Ok(DeviceOutcome {
                    result: work(CpuBackend::new().into()).await?,
                    fallback_reason: Some(error),
                })
            }
            result => Ok(DeviceOutcome { result: result?, fallback_reason }),
        }
    }

    #[cfg(feature = "gpu")]
    async fn open_gpu(&self) -> Result<AnyBackend> {
        let options = GpuOptions {
            adapter: self.gpu.clone(),
            software: self.device == DeviceChoice::Gpu,
            ..GpuOptions::default()
        };
        Ok(GpuBackend::new(&options).await?.into())
    }

    #[cfg(not(feature = "gpu"))]
    async fn open_gpu(&self) -> Result<AnyBackend> {
        Err(Error::new(ErrorCode::NoDevice, "this lowbit was built without GPU support"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_asked_for_falls_back() {
        let request = |device, gpu: Option<&str>| DeviceRequest { device, gpu: gpu.map(str::to_owned) };
        let auto = request(DeviceChoice::Auto, None);
        for code in
            [ErrorCode::NoDevice, ErrorCode::WrongResult, ErrorCode::OutOfMemory, ErrorCode::DeviceLost]
        {
            let error = Error::new(code, "no");
            assert!(auto.may_fall_back(&error), "{code:?}");
            assert!(!request(DeviceChoice::Gpu, None).may_fall_back(&error));
            assert!(!request(DeviceChoice::Auto, Some("x")).may_fall_back(&error));
        }
        // The CPU would fail too.
        for code in
            [ErrorCode::NonFinite, ErrorCode::Cancelled, ErrorCode::InvalidCheckpoint, ErrorCode::NotFound]
        {
            assert!(!auto.may_fall_back(&Error::new(code, "no")), "{code:?}");
        }
    }
}
