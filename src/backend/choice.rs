//! Choice of the device for a run, and the fallback to the CPU.

use super::any::AnyBackend;
use super::cpu::CpuBackend;
#[cfg(feature = "gpu")]
use super::gpu::{GpuBackend, GpuOptions};
#[cfg(any(test, not(feature = "gpu")))]
use crate::error::ErrorCode;
use crate::error::{Error, Result};
use crate::options::{named, options};

named! {
    /// The device to run a model on.
    #[derive(Default)]
    pub enum DeviceChoice {
        /// On a usable GPU, otherwise on the CPU; not on a software adapter, which is slower
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
        /// Where the model runs; `auto`: on a usable GPU, otherwise on the CPU
        pub device: DeviceChoice = DeviceChoice::Auto;
        /// Run on the GPU adapter with this text in its name, as in the list of devices
        pub gpu: Option<String> = None;
    }
}

/// The outcome of a run.
#[derive(Debug)]
pub struct DeviceOutcome<T> {
    /// Its result.
    pub result: T,
    /// Why the run used the CPU although no device was requested.
    pub fallback_reason: Option<Error>,
}

impl DeviceRequest {
    /// The CPU.
    pub(crate) fn cpu() -> Self {
        Self { device: DeviceChoice::Cpu, gpu: None }
    }

    /// Whether a device was requested.
    pub(crate) fn is_given(&self) -> bool {
        self.device != DeviceChoice::Auto || self.gpu.is_some()
    }

    /// Whether the CPU takes over after `error` of a GPU: no device was requested, and it is an error of the device.
    fn may_fall_back(&self, error: &Error) -> bool {
        !self.is_given() && error.code().is_of_device()
    }

    /// Opens the device. If none is requested and no GPU is usable, opens the CPU and returns the reason.
    ///
    /// # Errors
    /// `no_device` if a GPU is requested and none fits; `invalid_argument` for an adapter name with the CPU.
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

    /// Runs `work` on the device. If none is requested and a GPU fails, the CPU repeats the work from the beginning, so
    /// that results of two devices are never mixed. `tell` gets the reason for the fallback.
    ///
    /// # Errors
    /// As [`DeviceRequest::open`], and errors of `work`.
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
