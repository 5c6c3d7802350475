//! What went wrong on a device, and how natively it becomes known; `web` has how in a browser.

use crate::error::{Error, ErrorCode, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// The first thing that went wrong. It stays, because results after it are worth nothing. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    pub(super) fn keep_first(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Forgets that a kernel or a command was refused: what did not run harmed nothing. Whether nothing else went wrong.
    pub(super) fn forget_refused(&self) -> bool {
        let mut failure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |error: &Error| matches!(error.code(), ErrorCode::ShaderError | ErrorCode::DeviceError);
        if failure.as_ref().is_some_and(refused) {
            *failure = None;
        }
        failure.is_none()
    }

    /// # Errors
    /// What went wrong.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// What the device is doing: it decides what an error is called.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Work {
    #[default]
    Commands,
    /// Compiling the kernel of this name.
    Kernel(&'static str),
}

/// The kinds of errors that WebGPU tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    OutOfMemory,
    /// The implementation or the driver cannot do what is allowed.
    Internal,
    /// What was asked for is not allowed.
    Validation,
}

/// The error of `work`; `description` is the device's.
pub(super) fn error(kind: Kind, work: Work, description: &str) -> Error {
    let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    match (kind, work) {
        (Kind::OutOfMemory, _) => Error::new(ErrorCode::OutOfMemory, "the GPU is out of memory"),
        (_, Work::Kernel(name)) => {
            Error::new(ErrorCode::ShaderError, format!("kernel {name} was refused: {description}"))
        }
        (_, Work::Commands) => {
            Error::new(ErrorCode::DeviceError, format!("the GPU refused a command: {description}"))
        }
    }
}

/// Writes a device's errors into a [`Failure`]. Natively they are known when the call that makes them returns.
#[cfg(not(target_arch = "wasm32"))]
pub(super) struct Watch {
    device: wgpu::Device,
    work: Arc<Mutex<Work>>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Watch {
    pub(super) fn new(device: &wgpu::Device, failure: &Failure) -> Self {
        let work = Arc::new(Mutex::new(Work::default()));
        let (current, failure) = (work.clone(), failure.clone());
        device.on_uncaptured_error(Arc::new(move |found| {
            let work = *current.lock().unwrap_or_else(PoisonError::into_inner);
            let (kind, description) = match &found {
                wgpu::Error::OutOfMemory { .. } => (Kind::OutOfMemory, ""),
                wgpu::Error::Internal { description, .. } => (Kind::Internal, &description[..]),
                wgpu::Error::Validation { description, .. } => (Kind::Validation, &description[..]),
            };
            failure.keep_first(error(kind, work, description));
        }));
        Self { device: device.clone(), work }
    }

    /// What the calls from here on are for.
    pub(super) fn set_work(&self, work: Work) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = work;
    }

    /// Waits until the device has done everything up to a submission, or all that was submitted, and the callbacks for that
    /// have run.
    ///
    /// # Errors
    /// `device_lost` where it does not answer.
    pub(super) async fn settle(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait =
            |submission_index| self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        // A submission that a lost device refused never ends: waiting for the others tells why.
        match wait(submission_index).or_else(|_| wait(None)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::new(ErrorCode::DeviceLost, format!("the GPU does not answer: {error}"))),
        }
    }
}
