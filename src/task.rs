//! How long work reports, yields and is cancelled.
//!
//! The same code runs in a browser worker, where a synchronous loop would hear no abort, and natively, where futures never
//! wait on anything but themselves. [`steps`] cuts computations that know no host into steps.

pub mod steps;

use crate::error::{Error, ErrorCode, Result};
use std::pin::Pin;
pub use steps::{Pace, Steps};

/// A boxed future that need not be `Send`: JavaScript values never are.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What goes from one thread to another, where there are threads: everything that is `Send` and `Sync`. In WebAssembly it is
/// every type, because JavaScript's values stay where they are and so does the work.
#[cfg(not(target_arch = "wasm32"))]
pub trait Shareable: Send + Sync {}

#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync + ?Sized> Shareable for T {}

/// What goes from one thread to another, where there are threads; here it is every type.
#[cfg(target_arch = "wasm32")]
pub trait Shareable {}

#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> Shareable for T {}

/// One progress report.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress<'a> {
    /// What is going on: `quantize`, `perplexity`, ...
    pub phase: &'a str,
    /// Units done and in all; the unit depends on the phase (bytes, tokens, modules).
    pub done: u64,
    /// See `done`.
    pub total: u64,
    /// The tensor, prompt or text at hand; may be empty.
    pub item: &'a str,
}

/// What long work is given by whoever started it.
pub trait Control {
    /// Hears how far the work is. Called between steps, from the thread that does the work.
    fn progress(&self, progress: &Progress<'_>);

    /// Whether the work shall stop at the next step.
    fn cancelled(&self) -> bool {
        false
    }

    /// Lets the host do other things; ready at once where there is nothing else to do.
    fn yield_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A function that hears how far the work is, and never stops it.
impl<F: Fn(&Progress<'_>)> Control for F {
    fn progress(&self, progress: &Progress<'_>) {
        self(progress);
    }
}

/// Between two steps: lets the host breathe, then stops the work if that was asked for.
///
/// # Errors
/// `cancelled` when the caller asked for it.
pub async fn checkpoint(control: &dyn Control) -> Result<()> {
    control.yield_now().await;
    if control.cancelled() {
        return Err(Error::new(ErrorCode::Cancelled, "cancelled before the end"));
    }
    Ok(())
}

/// A [`Control`] that says nothing and never cancels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Control for Silent {
    fn progress(&self, _: &Progress<'_>) {}
}

/// Runs a future to its end on this thread: for the native edges, where nothing waits for an event loop.
#[cfg(not(target_os = "unknown"))]
pub fn block_on<F: Future>(future: F) -> F::Output {
    pollster::block_on(future)
}
