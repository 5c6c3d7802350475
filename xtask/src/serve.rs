//! `cargo xtask serve`: the demo page, on this machine.
//!
//! The page is put together in `target/site` from `www/page`, the package and the checkpoint that ships with the
//! repository; that folder is all that another host needs. Not here: how it is put together (`www/site.mjs`) and the
//! headers that it is served with (`www/serve.mjs`).

use crate::process::{Outcome, program, root, run as execute, step, target_dir};
use crate::{package, setup};
use std::path::PathBuf;
use std::process::ExitCode;

/// What is served, and where.
#[derive(clap::Args)]
pub struct Options {
    /// The port on this machine
    #[arg(long, default_value_t = 8000)]
    pub port: u16,

    /// A package that is built already, instead of building one
    #[arg(long, value_name = "DIR")]
    pub package: Option<PathBuf>,

    /// Build the package quickly: larger modules
    #[arg(long, conflicts_with = "package")]
    pub fast: bool,
}

/// Builds the package, puts the page together and serves it until it is interrupted.
///
/// # Errors
/// The first step that failed.
pub fn run(options: Options) -> Outcome {
    step("set-up", || {
        setup::system(setup::FOR_PACKAGE)?;
        setup::rust()
    })?;
    let folder = match options.package {
        Some(folder) => folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?,
        None => package::build(package::Options { fast: options.fast })?,
    };
    step("npm packages of the page", || package::install(&root().join("www")))?;
    let mut node = program("node", &["www/serve.mjs", "--port", &options.port.to_string(), "--package"]);
    node.arg(folder).arg("--out").arg(target_dir().join("site"));
    execute(node)?;
    Ok(ExitCode::SUCCESS)
}
