//! The request of `assess`.

use crate::options::options;

options! {
    /// What is measured besides the answers.
    pub struct AssessRequest {
        /// Questions of each level for the gradient noise; 0 turns it off
        pub noise_questions: usize = 32;
    }
}
