//! Questions to be made.

use crate::options::{Bounds, options};
use crate::train::tasks::LEVELS;

options! {
    /// Which questions of a task are made.
    pub struct TasksRequest {
        /// Levels, from 1 to 10
        pub levels: Vec<usize> = (1..=LEVELS).collect();
        /// Questions of a level to learn from
        pub train: usize = 4000, within Bounds::from(0.0);
        /// Questions of a level to judge by
        pub test: usize = 200, within Bounds::from(0.0);
        /// Equal numbers give equal questions
        pub seed: u64 = 0;
    }
}
