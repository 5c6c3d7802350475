//! `cargo xtask demo`: quantizes the shipped checkpoint, validates it, and generates text next to the original.
//!
//! The work itself is `lowbit demo`.

use crate::process::{COMMAND, Outcome, cargo, line_of, root, run as execute, step, target_dir};
use std::process::ExitCode;

/// The checkpoint that ships with the repository.
const CHECKPOINT: &str = "tests/fixtures/tale-llama";

/// The exit code of `lowbit` for a result that validation rejected.
const REJECTED: i32 = 1;

/// Builds and runs the demo. A rejected result is a success too: the demo shows it.
///
/// # Errors
/// The build or the demo failed.
pub fn run() -> Outcome {
    let binary = [&["--release"], COMMAND.as_slice()].concat();
    step("build", || execute(cargo(&[&["build"], binary.as_slice()].concat())))?;
    let mut demo = cargo(&[&["run", "--quiet"], binary.as_slice()].concat());
    demo.args(["--", "demo", "--checkpoint"]).arg(root().join(CHECKPOINT));
    demo.arg("--output").arg(target_dir().join("demo"));
    let status = demo.status().map_err(|error| format!("cannot run `{}`: {error}", line_of(&demo)))?;
    if status.success() || status.code() == Some(REJECTED) {
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("the demo broke ({status})"))
}
