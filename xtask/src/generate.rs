//! `cargo xtask generate`: files of the package that come from what the crate declares.
//!
//! The tests that find them stale are those that write them.

use crate::process::{Outcome, cargo, run as execute, step};
use std::process::ExitCode;

/// Tells the tests to write.
const GENERATE: &str = "LOWBIT_GENERATE";

/// Writes them.
///
/// # Errors
/// What the tests failed with.
pub fn run() -> Outcome {
    step("generate", || {
        let mut tests = cargo(&["test", "--lib", "--", "request::tests::the_packages"]);
        tests.env(GENERATE, "1");
        execute(tests)
    })?;
    Ok(ExitCode::SUCCESS)
}
