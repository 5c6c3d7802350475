//! Rows of a matrix on their way: tasks that are worked on side by side, in steps, and whose results come in order.
//!
//! Not here: what is done to the rows (`gptq`, `awq`).

use crate::error::Result;
use crate::parallel;
use crate::task::Steps;
use std::collections::VecDeque;

/// Quantizes a matrix whose rows come in order, in steps: where a row takes so long that others wait beside it. Methods without
/// calibration take theirs at once.
pub trait RowQuantizer {
    /// Takes the next rows, `[n, cols]`, which [`step`](Self::step) then quantizes.
    ///
    /// # Panics
    /// When `weights` is not whole rows.
    fn take_rows(&mut self, weights: &[f32]);

    /// Whether more rows could be worked on at once than were taken: time for [`take_rows`](Self::take_rows).
    fn wants_rows(&self) -> bool;

    /// Works for some time on the rows that were taken; `false` when all are done.
    ///
    /// # Errors
    /// `non_finite` naming row and column of a NaN or an infinity, or of a group whose scale is out of range.
    ///
    /// # Panics
    /// When more rows were taken than the matrix has.
    fn step(&mut self) -> Result<bool>;

    /// Takes the next rows and quantizes them.
    ///
    /// # Errors
    /// As [`step`](Self::step)'s.
    ///
    /// # Panics
    /// When `weights` is not whole rows or has more rows than the matrix.
    fn push_rows(&mut self, weights: &[f32]) -> Result<()> {
        self.take_rows(weights);
        while self.step()? {}
        Ok(())
    }
}

/// Tasks worked on at once for each thread: a second, so that a thread that is done early finds work.
const EACH_LANE: usize = 2;

/// Rows that one task is for: enough for products to pay, few enough for small matrices to make several tasks.
pub(super) const TASK_ROWS: usize = 64;

/// Rows that are worked on at once by so many threads; about as many are read at once.
pub(crate) fn rows_at_once(lanes: usize) -> usize {
    TASK_ROWS * tasks_at_once(lanes)
}

fn tasks_at_once(lanes: usize) -> usize {
    if lanes > 1 { EACH_LANE * lanes } else { 1 }
}

/// Tasks in the order of their rows.
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

    /// Whether more tasks could be worked on at once than there are.
    pub(super) fn wants_more(&self) -> bool {
        self.0.len() < tasks_at_once(parallel::lanes())
    }

    /// One step of each of the first tasks. Results of those that are done, as far as all before them are.
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
