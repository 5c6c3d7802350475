//! Runs tests for Node's test runner and counts them as `libtest` counts Rust's.

use crate::libtest::Tally;
use crate::package;
use crate::process::{line_of, program, root, run as execute, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the built package for the tests.
const PACKAGE: &str = "LOWBIT_PACKAGE";
/// Names its tarball.
const TARBALL: &str = "LOWBIT_TARBALL";

/// Names the WebAssembly modules.
const MODULES: &str = "LOWBIT_MODULES";

/// Names Deno's command.
const DENO: &str = "LOWBIT_DENO";
const DENO_PACKAGE: &str = "deno@2.9.6";

/// Installs Deno with npm, without a lock file: not every registry has Deno's packages for other systems, and npm refuses a lock
/// file that lacks them.
fn deno() -> Result<PathBuf, String> {
    let folder = target_dir().join("deno");
    let command = folder.join("node_modules/deno/bin.cjs");
    if !command.exists() {
        package::create(&folder)?;
        let mut npm = program(
            "npm",
            &["install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", "--prefix"],
        );
        npm.arg(&folder).arg(DENO_PACKAGE);
        execute(npm)?;
    }
    Ok(command)
}

/// Runs as many files at once as there are processors. By default Node leaves one idle. The option needs Node 20.10.
fn files_at_once() -> Option<String> {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get());
    let option = format!("--test-concurrency={count}");
    let known = program("node", &[&option, "--version"]).output().is_ok_and(|output| output.status.success());
    known.then_some(option)
}

/// Installs the packages of a folder, if it has any, and runs its tests.
///
/// # Errors
/// Node does not run, or its packages cannot be installed.
pub fn run(folder: &str) -> Result<Tally, String> {
    let place = root().join(folder);
    if place.join("package-lock.json").exists() {
        package::install(&place)?;
    }
    let deno = deno()?;
    let tap = target_dir().join("package").join(format!("{}.tap", folder.replace('/', "-")));
    package::create(&target_dir().join("package"))?;
    let mut node = program("node", &["--test", "--test-reporter=spec", "--test-reporter-destination=stdout"]);
    node.arg("--test-reporter=tap").arg(format!("--test-reporter-destination={}", tap.display()));
    node.args(files_at_once());
    node.args(test_files(&place)?);
    node.env(PACKAGE, target_dir().join("package/lowbit"));
    node.env(TARBALL, package::tarball());
    node.env(MODULES, package::modules());
    node.env(DENO, deno);
    node.current_dir(&place);
    let status = status(&mut node)?;
    let text = fs::read_to_string(&tap).map_err(|error| format!("{}: {error}", tap.display()))?;
    let tally = read(&text);
    for line in text.lines().filter_map(skip_of) {
        println!("{folder}: skipped: {line}");
    }
    // A runner that dies is a failure too.
    Ok(if status || tally.failed > 0 { tally } else { Tally { failed: 1, ..tally } })
}

fn status(command: &mut Command) -> Result<bool, String> {
    let status = command.status().map_err(|error| format!("cannot run `{}`: {error}", line_of(command)))?;
    Ok(status.success())
}

fn test_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.to_string_lossy().ends_with(".test.mjs"));
    files.sort();
    Ok(files)
}

/// Type-checks the package's sources.
///
/// # Errors
/// A type error.
pub fn types() -> Result<(), String> {
    execute(package::tool("tsc", &["--project", ".", "--noEmit"]))
}

/// The totals, from the comments at the end of TAP output.
fn read(tap: &str) -> Tally {
    let count = |name: &str| {
        let line = tap.lines().rev().find_map(|line| line.strip_prefix("# ")?.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
    };
    Tally {
        passed: count("pass "),
        failed: count("fail ") + count("cancelled "),
        skipped: count("skipped ") + count("todo "),
    }
}

/// `NAME: REASON` of a line about a skipped test.
fn skip_of(line: &str) -> Option<String> {
    let (name, reason) = line.trim().strip_prefix("ok ")?.split_once(" # SKIP")?;
    let name = name.split_once(" - ").map_or(name, |(_, name)| name);
    Some(format!("{name}: {}", reason.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAP: &str = "\
TAP version 13
# Subtest: a group
    # Subtest: a case
    ok 1 - a case
      ---
      duration_ms: 1
      ...
    # Subtest: pass 7
    ok 2 - another # SKIP chromium is not there
    1..2
ok 1 - a group
not ok 2 - broken
1..2
# tests 4
# suites 0
# pass 2
# fail 1
# cancelled 1
# skipped 1
# todo 0
# duration_ms 12.5
";

    #[test]
    fn totals_and_reasons_are_read() {
        assert_eq!(read(TAP), Tally { passed: 2, failed: 2, skipped: 1 });
        assert_eq!(TAP.lines().filter_map(skip_of).collect::<Vec<_>>(), ["another: chromium is not there"]);
        assert_eq!(read(""), Tally::default());
    }
}
