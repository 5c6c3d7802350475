//! The request of `tasks`.

use crate::options::{Bounds, options};
use crate::train::tasks::LEVELS;

options! {
    /// The generated questions of a task.
    pub struct TasksRequest {
        /// Levels, from 1 to 10
        pub levels: Vec<usize> = (1..=LEVELS).collect();
        /// Training questions of each level
        pub train: usize = 4000, within Bounds::from(0.0);
        /// Test questions of each level
        pub test: usize = 200, within Bounds::from(0.0);
        /// Seed of the questions
        pub seed: u64 = 0;
    }
}
