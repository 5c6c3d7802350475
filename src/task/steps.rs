//! Long computations in steps: sequential code that pauses after some work and can be resumed.
//!
//! Numerical code does not know its host, but a browser worker must receive an abort in between. A computation is
//! therefore an `async` function that awaits only its [`Pace`], and its driver, [`Steps`], can do other things between
//! two steps. The pauses depend on the amount of work alone, and do not change results.

use super::{Control, yield_point};
use crate::error::Result;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Multiply-adds between two pauses: a few milliseconds natively, and about twenty in WebAssembly at an assumed 10^9 a
/// second.
pub const STEP_WORK: u64 = 1 << 24;

/// Tells a computation when to pause.
#[derive(Debug)]
pub struct Pace {
    left: u64,
}

impl Pace {
    /// Reports about so many multiply-adds, and pauses if they complete a step.
    pub async fn spend(&mut self, work: u64) {
        match self.left.checked_sub(work) {
            Some(left) => self.left = left,
            None => {
                self.left = STEP_WORK;
                let mut stopped = false;
                poll_fn(
                    |_| {
                        if std::mem::replace(&mut stopped, true) { Poll::Ready(()) } else { Poll::Pending }
                    },
                )
                .await;
            }
        }
    }
}

/// A computation that runs step by step.
pub struct Steps<'a, T> {
    running: Option<Pin<Box<dyn Future<Output = T> + Send + 'a>>>,
    result: Option<T>,
}

impl<'a, T> Steps<'a, T> {
    /// A computation that has not started. It may await only its pace.
    pub fn new<F: Future<Output = T> + Send + 'a>(computation: impl FnOnce(Pace) -> F) -> Self {
        Self { running: Some(Box::pin(computation(Pace { left: STEP_WORK }))), result: None }
    }

    /// Runs a step. Returns `false` at the end.
    pub fn step(&mut self) -> bool {
        if let Some(running) = &mut self.running
            && let Poll::Ready(result) = running.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            self.running = None;
            self.result = Some(result);
        }
        self.running.is_some()
    }

    /// Takes the result after the end.
    pub fn take(&mut self) -> Option<T> {
        self.result.take()
    }

    /// Runs all steps.
    pub fn finish(mut self) -> T {
        while self.step() {}
        self.take().expect("a computation that is at its end has a result")
    }

    /// Runs all steps, with a [`yield_point`] after each.
    ///
    /// # Errors
    /// `cancelled`.
    pub async fn run(mut self, control: &dyn Control) -> Result<T> {
        while self.step() {
            yield_point(control).await?;
        }
        Ok(self.take().expect("a computation that is at its end has a result"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds the numbers below `count`, each for a part of a step.
    fn sum(count: u64, parts: u64) -> Steps<'static, u64> {
        Steps::new(move |mut pace| async move {
            let mut sum = 0;
            for i in 0..count {
                sum += i;
                pace.spend(STEP_WORK / parts).await;
            }
            sum
        })
    }

    #[test]
    fn a_computation_stops_where_its_work_says_and_ends_with_its_result() {
        for (count, parts, stops) in [(0, 1, 0), (3, 4, 0), (5, 4, 1), (100, 4, 20), (7, 1, 3)] {
            let mut steps = sum(count, parts);
            let mut stopped = 0;
            while steps.step() {
                stopped += 1;
            }
            assert_eq!(stopped, stops, "{count} pieces of 1/{parts}");
            let expected: u64 = (0..count).sum();
            assert_eq!(steps.take(), Some(expected));
            assert_eq!((steps.step(), steps.take()), (false, None), "there is one result");
            assert_eq!(sum(count, parts).finish(), expected);
        }
    }
}
