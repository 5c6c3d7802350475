//! `cargo xtask bench`: how fast a device does the steps of a model, and decodes the shipped checkpoint.
//!
//! Not here: the measuring, which is `lowbit bench`.

use crate::process::{COMMAND, Outcome, cargo, root, run as execute, step};
use std::process::ExitCode;

/// The checkpoint whose decoding is timed beside those that are named.
const CHECKPOINT: &str = "tests/fixtures/tale-llama";

/// Builds the command in release mode and runs it: on the GPU, or on the processor.
///
/// # Errors
/// The build failed, or the benchmark did: there is no GPU, for example.
pub fn run(gpu: bool, arguments: &[String]) -> Outcome {
    let binary = [&["--release"], COMMAND.as_slice()].concat();
    step("build", || execute(cargo(&[&["build"], binary.as_slice()].concat())))?;
    let mut bench = cargo(&[&["run", "--quiet"], binary.as_slice()].concat());
    bench.args(["--", "bench", "--device", if gpu { "gpu" } else { "cpu" }]).args(arguments);
    bench.arg("--").arg(root().join(CHECKPOINT));
    execute(bench)?;
    Ok(ExitCode::SUCCESS)
}
