//! A look at what a model can do, level by level.

use crate::options::options;

options! {
    /// What is looked at beside the answers.
    pub struct AssessRequest {
        /// Questions of each level whose gradients are compared; 0 leaves that out
        pub noise_questions: usize = 32;
    }
}
