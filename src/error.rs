//! The one public error type: a stable code for programs, one sentence for people.
//!
//! Some modules have private error enums, which they convert to this type.

use std::fmt;
use std::sync::Arc;

/// The result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of a failure. The names of [`ErrorCode::as_str`] are part of the public interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// An invalid option or argument, or a contradiction between several.
    InvalidArgument,
    /// A file, folder or tensor is missing.
    NotFound,
    /// Reading or writing failed.
    Io,
    /// The output's disk or storage is full.
    StorageFull,
    /// The bytes contradict the format or each other.
    InvalidCheckpoint,
    /// An unfinished folder.
    UnfinishedOutput,
    /// A setting of a model's configuration that the decoder does not implement.
    UnsupportedModel,
    /// A data type, container or layout that is not supported, or cannot hold the tensors.
    UnsupportedFormat,
    /// NaN or infinity in place of a finite number.
    NonFinite,
    /// The tokenizer's files are broken, or text cannot be encoded.
    Tokenizer,
    /// More tokens than the context of the model or cache.
    ContextOverflow,
    /// The work needs more memory than it may use.
    OutOfMemory,
    /// No suitable GPU adapter, or it cannot be opened.
    NoDevice,
    /// The GPU was lost: unplugged, reset, or its driver failed.
    DeviceLost,
    /// The GPU refused a kernel.
    ShaderError,
    /// The GPU refused a command.
    DeviceError,
    /// A device's results differ from the CPU's.
    WrongResult,
    /// The caller cancelled the work.
    Cancelled,
    /// A file changed while it was being read.
    Changed,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 19] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::Io,
        Self::StorageFull,
        Self::InvalidCheckpoint,
        Self::UnfinishedOutput,
        Self::UnsupportedModel,
        Self::UnsupportedFormat,
        Self::NonFinite,
        Self::Tokenizer,
        Self::ContextOverflow,
        Self::OutOfMemory,
        Self::NoDevice,
        Self::DeviceLost,
        Self::ShaderError,
        Self::DeviceError,
        Self::WrongResult,
        Self::Cancelled,
        Self::Changed,
    ];

    /// The code of a name, for errors from JavaScript.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == name)
    }

    /// Whether another device may succeed: the GPU is missing, lost, wrong, or cannot hold or run this model.
    pub fn is_of_device(self) -> bool {
        matches!(
            self,
            Self::NoDevice
                | Self::DeviceLost
                | Self::DeviceError
                | Self::ShaderError
                | Self::OutOfMemory
                | Self::UnsupportedFormat
                | Self::UnsupportedModel
                | Self::WrongResult
        )
    }

    /// The stable name, as in JavaScript and `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::Io => "io",
            Self::StorageFull => "storage_full",
            Self::InvalidCheckpoint => "invalid_checkpoint",
            Self::UnfinishedOutput => "unfinished_output",
            Self::UnsupportedModel => "unsupported_model",
            Self::UnsupportedFormat => "unsupported_format",
            Self::NonFinite => "non_finite",
            Self::Tokenizer => "tokenizer",
            Self::ContextOverflow => "context_overflow",
            Self::OutOfMemory => "out_of_memory",
            Self::NoDevice => "no_device",
            Self::DeviceLost => "device_lost",
            Self::ShaderError => "shader_error",
            Self::DeviceError => "device_error",
            Self::WrongResult => "wrong_result",
            Self::Cancelled => "cancelled",
            Self::Changed => "changed",
        }
    }
}

/// An error: a code, one lower-case sentence, and its location. Cloning is cheap.
///
/// ```
/// use lowbit::{Error, ErrorCode};
/// let error = Error::new(ErrorCode::InvalidCheckpoint, "expected 8 bytes but found 3")
///     .context("tensor `model.norm.weight`")
///     .context("model.safetensors");
/// assert_eq!(error.to_string(), "model.safetensors: tensor `model.norm.weight`: expected 8 bytes but found 3");
/// assert_eq!(error.code().as_str(), "invalid_checkpoint");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    code: ErrorCode,
    message: String,
    /// Innermost first.
    context: Vec<String>,
}

impl Error {
    /// An error with `message`: one lower-case sentence that says what was expected and what was found.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { code, message: message.into(), context: Vec::new() }))
    }

    /// Shorthand for [`ErrorCode::InvalidArgument`].
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Shorthand for [`ErrorCode::InvalidCheckpoint`].
    pub fn invalid_checkpoint(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidCheckpoint, message)
    }

    /// Shorthand for [`ErrorCode::UnsupportedModel`].
    pub fn unsupported_model(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnsupportedModel, message)
    }

    /// Shorthand for [`ErrorCode::UnsupportedFormat`].
    pub fn unsupported_format(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnsupportedFormat, message)
    }

    /// Adds a location: a file, a tensor, a module. The outermost context is added last and shown first.
    #[must_use]
    pub fn context(mut self, place: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.0).context.push(place.into());
        self
    }

    /// Adds the folder, unless the error already names it or a file in it.
    #[must_use]
    pub fn within(mut self, folder: &str) -> Self {
        let folder = folder.trim_end_matches(['/', std::path::MAIN_SEPARATOR]);
        let places = &mut Arc::make_mut(&mut self.0).context;
        places.retain(|place| place != folder);
        let is_inside = |place: &String| {
            place.strip_prefix(folder).is_some_and(|rest| rest.starts_with(['/', std::path::MAIN_SEPARATOR]))
        };
        if !places.iter().any(is_inside) {
            places.push(folder.to_owned());
        }
        self
    }

    /// The kind of failure.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The sentence without its context.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.0.context.iter().rev() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.0.code.as_str())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let code = match error.kind() {
            ErrorKind::NotFound => ErrorCode::NotFound,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                ErrorCode::StorageFull
            }
            _ => ErrorCode::Io,
        };
        Self::new(code, error.to_string().to_lowercase())
    }
}

/// Adds context to the error of a [`Result`].
pub trait Context<T> {
    /// As [`Error::context`]. `place` is called only on errors.
    fn context_with<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context_with<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().context(place()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_once() {
        let error = |places: &[&str]| {
            places.iter().fold(Error::invalid_argument("no"), |error, place| error.context(*place))
        };
        for (places, folder, expected) in [
            (&[][..], "a/b", "a/b: no"),
            (&["tensor `t`"], "a/b", "a/b: tensor `t`: no"),
            (&["a/b", "module `m`"], "a/b", "a/b: module `m`: no"),
            (&["a/b/file"], "a/b", "a/b/file: no"),
            (&["a/b/file"], "a/b/", "a/b/file: no"),
            // Another folder with the same prefix.
            (&["a/bc/file"], "a/b", "a/b: a/bc/file: no"),
        ] {
            assert_eq!(error(places).within(folder).to_string(), expected);
        }
    }
}
