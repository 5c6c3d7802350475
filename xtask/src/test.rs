//! `cargo xtask test`: every check that a change must pass.
//!
//! Steps run cheapest first, and the first failure ends the run. The test suites all run, so that one run shows every
//! failing test. The last line of the output is `N passed, N failed, N skipped`.

use crate::libtest::{Reading, Tally};
use crate::nodetest;
use crate::package;
use crate::process::{Outcome, TEST_FEATURES, cargo, line_of, root, run as execute, step};
use crate::setup;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

/// Lints of the npm package's modules and command, as they are built: what, the target, the features.
const WASM_LINTS: [(&[&str], &str, &str); 5] = [
    (&["--lib"], setup::WASM, ""),
    (&["--lib"], setup::WASM, "engine"),
    (&["--lib"], setup::WASM, "kernel-tests"),
    (&["--lib"], setup::WASM, "tokenizer-module"),
    (&["--lib", "--bins"], setup::WASI, "cli"),
];

/// Tests of the npm package, run by Node's test runner.
const NODE_TESTS: [&str; 4] = ["tests/kernels", "tests/js", "tests/packaging", "tests/browser"];

/// Runs all steps.
///
/// # Errors
/// The first failed step. Failing tests are an exit code instead, because their output names them.
pub fn run() -> Outcome {
    step("set-up", || {
        setup::system(setup::FOR_TESTS)?;
        setup::system(setup::FOR_PACKAGE)?;
        setup::gpu();
        setup::browsers();
        setup::rust()
    })?;
    step("formatting", || {
        execute(cargo(&["fmt", "--all", "--check"]))
            .map_err(|message| format!("{message}; `cargo fmt --all` mends it"))
    })?;
    step("clippy, native", || {
        let all =
            ["clippy", "--workspace", "--all-targets", "--features", TEST_FEATURES, "--", "-D", "warnings"];
        execute(cargo(&all))
    })?;
    // As dependent programs see the library: without the command line, and every public type can be named.
    step("clippy, the library", || {
        let library = ["clippy", "--package", "lowbit", "--lib", "--", "-D", "warnings"];
        let mut clippy = cargo(&library);
        clippy.args(["-D", "unnameable_types"]);
        execute(clippy)
    })?;
    for (parts, target, features) in WASM_LINTS {
        step(&format!("clippy, {target} {features}"), || {
            let mut clippy = cargo(&["clippy", "--package", "lowbit", "--no-default-features"]);
            clippy.args(parts).args(["--features", features, "--target", target, "--", "-D", "warnings"]);
            execute(clippy)
        })?;
    }
    step("documentation", || {
        // All links resolve, and public docs do not link to private items.
        let mut doc = cargo(&[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--features",
            TEST_FEATURES,
        ]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        execute(doc)
    })?;
    let mut tally = step("tests", || {
        cargo_test(cargo(&["test", "--workspace", "--features", TEST_FEATURES, "--no-fail-fast"]), &[])
    })?;
    package::build(package::Options { fast: true })?;
    step("types of the package", nodetest::types)?;
    step("npm packages of the demo page", || package::install(&root().join("www")))?;
    for folder in NODE_TESTS {
        tally += step(folder, || nodetest::run(folder))?;
    }
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a `cargo test` command with `arguments` for the test binaries. Hides the output of passing tests, except for their
/// `skipped:` and `note:` lines, which it prints at the end.
///
/// # Errors
/// Cargo is missing, or the tests do not build.
pub fn cargo_test(mut command: Command, arguments: &[&str]) -> Result<Tally, String> {
    command.args(["--", "--show-output"]).args(arguments).stdout(Stdio::piped());
    let broke = |error: std::io::Error| format!("cannot run `{}`: {error}", line_of(&cargo(&["test"])));
    let mut child = command.spawn().map_err(broke)?;
    let mut reading = Reading::default();
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).split(b'\n') {
        let line = line.map_err(broke)?;
        let line = String::from_utf8_lossy(&line);
        if reading.take(line.trim_end_matches('\r')) {
            println!("{line}");
        }
    }
    let status = child.wait().map_err(broke)?;
    let (tally, remarks) = reading.finish(status.success()).ok_or("the tests do not build")?;
    for remark in remarks {
        println!("{}: {}", remark.test, remark.line);
    }
    Ok(tally)
}
