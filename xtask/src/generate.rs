//! `cargo xtask generate`: writes the package's files that are derived from the crate's declarations.
//!
//! The tests that detect stale files also write them.

use crate::process::{Outcome, cargo, run as execute, step};
use std::process::ExitCode;

/// Makes the tests write.
const GENERATE: &str = "LOWBIT_GENERATE";

/// Writes the files.
///
/// # Errors
/// A test failed.
pub fn run() -> Outcome {
    step("generate", || {
        let mut tests = cargo(&["test", "--lib", "--", "request::tests::the_packages"]);
        tests.env(GENERATE, "1");
        execute(tests)
    })?;
    Ok(ExitCode::SUCCESS)
}
