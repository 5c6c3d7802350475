//! `cargo xtask serve`: serves the demo page on this machine.
//!
//! `www/site.mjs` assembles the page in `target/site` from `www/page`, the package and the shipped checkpoint.
//! That folder is all that another host needs. `www/serve.mjs` serves it and sets the headers.

use crate::process::{Outcome, program, root, run as execute, step, target_dir};
use crate::{package, setup};
use std::path::PathBuf;
use std::process::ExitCode;

/// What to serve, and where.
#[derive(clap::Args)]
pub struct Options {
    /// The port on this machine
    #[arg(long, default_value_t = 8000)]
    pub port: u16,

    /// Use this package instead of building one
    #[arg(long, value_name = "DIR")]
    pub package: Option<PathBuf>,

    /// Build the package quickly, with larger modules
    #[arg(long, conflicts_with = "package")]
    pub fast: bool,
}

/// Builds the package, assembles the page and serves it until it is interrupted.
///
/// # Errors
/// The first failed step.
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
