//! Errors of a device, and how they are caught natively. `web` catches them in browsers.

use crate::error::{Error, ErrorCode, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// The first error of a device. It is kept, because later results are invalid. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    pub(super) fn keep_first(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Clears the error if it is a refused kernel or command: what did not run did no harm. Returns whether no error
    /// remains.
    pub(super) fn forget_refused(&self) -> bool {
        let mut failure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |error: &Error| matches!(error.code(), ErrorCode::ShaderError | ErrorCode::DeviceError);
        if failure.as_ref().is_some_and(refused) {
            *failure = None;
        }
        failure.is_none()
    }

    /// # Errors
    /// The first error.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// The current work of the device. It determines the code of an error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Work {
    #[default]
    Commands,
    /// Compiling the kernel of this name.
    Kernel(&'static str),
}

/// The kinds of errors that WebGPU distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    OutOfMemory,
    /// The implementation or the driver fails at a valid operation.
    Internal,
    /// The operation is invalid.
    Validation,
}

/// The error for `work`; `description` is the device's message.
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

/// Records a device's errors in a [`Failure`]. Natively an error is known when the call that causes it returns.
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

    /// Sets the work that later errors belong to.
    pub(super) fn set_work(&self, work: Work) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = work;
    }

    /// Waits until all work up to a submission is done, or all submitted work if none is given, and its callbacks have
    /// run.
    ///
    /// # Errors
    /// `device_lost` if the device does not respond.
    pub(super) async fn settle(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait =
            |submission_index| self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        // A submission that a lost device refused never completes. Waiting for the others reveals the reason.
        match wait(submission_index).or_else(|_| wait(None)) {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(Error::new(ErrorCode::DeviceLost, format!("the GPU does not respond: {error}")))
            }
        }
    }
}
