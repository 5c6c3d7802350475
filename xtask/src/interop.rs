//! `cargo xtask interop`: compares lowbit with Hugging Face transformers and llama.cpp. Each opens what the other wrote.
//!
//! The comparisons are the ignored tests of `tests/it` whose names begin with `interop_`. The variable [`PYTHON`] names
//! a Python with `tests/interop/requirements.txt` installed. `cargo xtask test` needs none of this: it checks golden values
//! that these programs wrote.

use crate::process::{Outcome, TEST_FEATURES, cargo, program, run as execute, step, target_dir};
use crate::setup;
use crate::test::cargo_test;
use std::path::PathBuf;
use std::process::ExitCode;

/// Names the Python interpreter for the tests.
const PYTHON: &str = "LOWBIT_PYTHON";

/// Names the folder of Node's packages for the tests.
const NODE_LLAMA: &str = "LOWBIT_NODE_LLAMA";

/// llama.cpp, built, inside an npm package.
const NODE_LLAMA_PACKAGE: &str = "node-llama-cpp@3.22.1";

/// Prepares the Python environment and runs the comparisons.
///
/// # Errors
/// Python or a package is missing, the tests do not build, or there are none.
pub fn run() -> Outcome {
    let python = step("Python environment", environment)?;
    let packages = step("llama.cpp", node_llama)?;
    let tally = step("comparisons", || {
        let mut test = cargo(&["test", "--package", "lowbit", "--features", TEST_FEATURES, "--test", "it"]);
        test.args(["--no-fail-fast", "interop_"]);
        test.env(PYTHON, &python);
        test.env(NODE_LLAMA, &packages);
        cargo_test(test, &["--ignored"])
    })?;
    if tally.passed + tally.failed + tally.skipped == 0 {
        return Err("no test is named interop_*".into());
    }
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs llama.cpp's prebuilt binaries for Node and returns their folder.
fn node_llama() -> Result<PathBuf, String> {
    let folder = target_dir().join("node-llama");
    if !folder.join("node_modules/node-llama-cpp").exists() {
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut npm = program("npm", &["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        npm.arg(&folder).arg(NODE_LLAMA_PACKAGE);
        execute(npm)?;
    }
    Ok(folder)
}

/// Creates or updates the environment and returns its interpreter.
fn environment() -> Result<PathBuf, String> {
    setup::system(setup::FOR_INTEROP)?;
    let folder = target_dir().join("python");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.exists() {
        let mut venv = program("python3", &["-m", "venv"]);
        venv.arg(&folder);
        execute(venv)?;
    }
    // Fast when everything is installed, and correct after requirements.txt changed.
    let mut pip = program(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--requirement", "tests/interop/requirements.txt"]);
    execute(pip)?;
    Ok(python)
}
