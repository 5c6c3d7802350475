//! Runs other programs in the workspace's root.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// A task's result: an exit code, or one sentence about the failure.
pub type Outcome = Result<ExitCode, String>;

/// Features that tests need besides the default ones: the command and the internals.
pub const TEST_FEATURES: &str = "lowbit/cli,lowbit/internals";

/// Cargo's arguments that select the command.
pub const COMMAND: [&str; 6] = ["--package", "lowbit", "--features", "cli", "--bin", "lowbit"];

/// The workspace's root: the folder above this crate.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Cargo's target folder.
pub fn target_dir() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A command that runs in the root.
pub fn program(name: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(root());
    command
}

/// The cargo that runs this program, with `args`.
pub fn cargo(args: &[&str]) -> Command {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), args)
}

/// Runs a command with its output shown.
///
/// # Errors
/// A sentence with the command line when it cannot start or fails.
pub fn run(mut command: Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{}` failed ({status})", line_of(&command))),
        Err(error) => Err(format!("cannot run `{}`: {error}", line_of(&command))),
    }
}

/// Whether a command runs and succeeds; its output is dropped.
pub fn succeeds(name: &str, args: &[&str]) -> bool {
    let status =
        program(name, args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A command as a person would type it, for messages.
pub fn line_of(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_stem().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs one step of a task under a heading and prints its duration.
///
/// # Errors
/// The step's error, prefixed with its name.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    println!("== {name}");
    let start = Instant::now();
    let result = work().map_err(|message| format!("{name}: {message}"))?;
    println!("   {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}
