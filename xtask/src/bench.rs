//! `cargo xtask bench`: times a model's steps on a device, and decoding of the shipped checkpoint.
//!
//! The measuring itself is `lowbit bench`.

use crate::process::{COMMAND, Outcome, cargo, root, run as execute, step};
use std::process::ExitCode;

/// The checkpoint whose decoding is timed besides the given ones.
const CHECKPOINT: &str = "tests/fixtures/tale-llama";

/// Builds the command in release mode and runs it, on the GPU or the CPU.
///
/// # Errors
/// The build or the benchmark failed, for example because there is no GPU.
pub fn run(gpu: bool, arguments: &[String]) -> Outcome {
    let binary = [&["--release"], COMMAND.as_slice()].concat();
    step("build", || execute(cargo(&[&["build"], binary.as_slice()].concat())))?;
    let mut bench = cargo(&[&["run", "--quiet"], binary.as_slice()].concat());
    bench.args(["--", "bench", "--device", if gpu { "gpu" } else { "cpu" }]).args(arguments);
    bench.arg("--").arg(root().join(CHECKPOINT));
    execute(bench)?;
    Ok(ExitCode::SUCCESS)
}
