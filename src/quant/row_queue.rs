//! A queue of row tasks that run in parallel, in steps, with results in order.
//!
//! The work on rows is in `gptq` and `awq`.

use crate::error::Result;
use crate::parallel;
use crate::task::Steps;
use std::collections::VecDeque;

/// Quantizes a matrix in steps, from rows in order. It is for calibrated methods, whose rows take long. Other methods
/// quantize rows at once.
pub trait RowQuantizer {
    /// Adds the next rows, `[n, cols]`, for [`step`](Self::step).
    ///
    /// # Panics
    /// When `weights` is not whole rows.
    fn take_rows(&mut self, weights: &[f32]);

    /// Whether the queue has room: time for [`take_rows`](Self::take_rows).
    fn wants_rows(&self) -> bool;

    /// Runs a step on the queued rows. Returns `false` when all are finished.
    ///
    /// # Errors
    /// `non_finite` with row and column of a NaN, an infinity, or a group whose scale is out of range.
    ///
    /// # Panics
    /// When there are more rows than in the matrix.
    fn step(&mut self) -> Result<bool>;

    /// Adds the next rows and quantizes them.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    ///
    /// # Panics
    /// When `weights` is not whole rows or has more rows than the matrix.
    fn push_rows(&mut self, weights: &[f32]) -> Result<()> {
        self.take_rows(weights);
        while self.step()? {}
        Ok(())
    }
}

/// Tasks in progress for each thread: two, so that a thread that finishes early has work.
const EACH_LANE: usize = 2;

/// Rows of a task: enough for efficient products, few enough to split small matrices.
pub(super) const TASK_ROWS: usize = 64;

/// Rows in progress with `lanes` threads. About as many are read at once.
pub(crate) fn rows_at_once(lanes: usize) -> usize {
    TASK_ROWS * tasks_at_once(lanes)
}

fn tasks_at_once(lanes: usize) -> usize {
    if lanes > 1 { EACH_LANE * lanes } else { 1 }
}

/// Tasks in row order.
pub(super) struct RowQueue<'a, T>(VecDeque<Steps<'a, T>>);

impl<T> Default for RowQueue<'_, T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<'a, T: Send> RowQueue<'a, T> {
    pub(super) fn push(&mut self, task: Steps<'a, T>) {
        self.0.push_back(task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is room for more tasks.
    pub(super) fn wants_more(&self) -> bool {
        self.0.len() < tasks_at_once(parallel::lanes())
    }

    /// Runs one step of each of the first tasks. Returns finished results in order.
    pub(super) fn step(&mut self) -> Vec<T> {
        let first = self.0.len().min(tasks_at_once(parallel::lanes()));
        parallel::for_each_chunk(&mut self.0.make_contiguous()[..first], 1, |_, task| {
            task[0].step();
        });
        let mut results = Vec::new();
        while let Some(result) = self.0.front_mut().and_then(Steps::take) {
            results.push(result);
            self.0.pop_front();
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::steps::STEP_WORK;

    #[test]
    fn results_come_in_order_however_long_each_task_takes() {
        let mut queue = RowQueue::default();
        assert!(queue.is_empty());
        for task in 0..20u64 {
            queue.push(Steps::new(move |mut pace| async move {
                for _ in 0..(task * 7) % 5 {
                    pace.spend(2 * STEP_WORK).await;
                }
                task
            }));
        }
        let mut results = Vec::new();
        let mut steps = 0;
        while !queue.is_empty() {
            results.extend(queue.step());
            steps += 1;
        }
        assert_eq!(results, (0..20).collect::<Vec<_>>());
        assert!(steps > 1, "{steps}");
    }
}
