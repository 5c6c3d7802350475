//! Progress, yielding and cancelling of long work.
//!
//! The same code runs in a browser worker, where a synchronous loop could not receive an abort, and natively, where
//! futures are always ready. [`steps`] splits computations that do not know their host into steps.

pub mod steps;

use crate::error::{Error, ErrorCode, Result};
use std::pin::Pin;
pub use steps::{Pace, Steps};

/// A boxed future without `Send`, because JavaScript values are not `Send`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// `Send + Sync` where there are threads. In WebAssembly every type qualifies, because work and JavaScript values
/// stay on one thread.
#[cfg(not(target_arch = "wasm32"))]
pub trait Shareable: Send + Sync {}

#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync + ?Sized> Shareable for T {}

/// `Send + Sync` where there are threads; here every type.
#[cfg(target_arch = "wasm32")]
pub trait Shareable {}

#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> Shareable for T {}

/// One progress report.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress<'a> {
    /// The phase: `quantize`, `perplexity`, ...
    pub phase: &'a str,
    /// Finished units. The unit depends on the phase (bytes, tokens, modules).
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// The current tensor, prompt or text; may be empty.
    pub item: &'a str,
}

/// The caller's control over long work.
pub trait Control {
    /// Receives progress between steps, on the working thread.
    fn progress(&self, progress: &Progress<'_>);

    /// Whether to stop at the next step.
    fn cancelled(&self) -> bool {
        false
    }

    /// Yields to the host. Ready at once if there is no event loop.
    fn yield_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A function that receives progress and never cancels.
impl<F: Fn(&Progress<'_>)> Control for F {
    fn progress(&self, progress: &Progress<'_>) {
        self(progress);
    }
}

/// Yields to the host between two steps, then checks for cancellation.
///
/// # Errors
/// `cancelled`.
pub async fn yield_point(control: &dyn Control) -> Result<()> {
    control.yield_now().await;
    if control.cancelled() {
        return Err(Error::new(ErrorCode::Cancelled, "cancelled before the end"));
    }
    Ok(())
}

/// A [`Control`] that ignores progress and never cancels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Control for Silent {
    fn progress(&self, _: &Progress<'_>) {}
}

/// Runs a future to completion on this thread, for edges without an event loop.
#[cfg(not(target_os = "unknown"))]
pub fn block_on<F: Future>(future: F) -> F::Output {
    pollster::block_on(future)
}
