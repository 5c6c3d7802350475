//! The project's task runner, for people and CI.
//!
//! A task calls cargo, rustup, npm, Python and the `lowbit` command, always in the workspace's root. Nothing here knows models
//! or formats.

mod bench;
mod demo;
mod figures;
mod generate;
mod guard;
mod interop;
mod libtest;
mod nodetest;
mod package;
mod process;
mod serve;
mod setup;
mod tables;
mod test;

use clap::Parser;
use std::process::ExitCode;

/// Tasks of this repository
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Quantize the shipped checkpoint, validate it, and generate text from both models
    Demo,
    /// Install what the tests need, then check formatting, lints and documentation, and run every test
    Test,
    /// Measure README.md's table of 3 and 2 bits, and write it there
    Tables,
    /// Run the missing long measurements of README.md, and write them to figures/ and into its tables
    Figures,
    /// Compare with Hugging Face transformers and llama.cpp, installed under target/
    Interop,
    /// Build the npm package, in target/package
    Package(package::Options),
    /// Generate the package's types and JSON Schemas from the crate's options
    Generate,
    /// Build the npm package and serve the demo page on this machine
    Serve(serve::Options),
    /// Record what every command writes, or compare with a record
    Guard(guard::Options),
    /// Time a model's steps on the CPU, or with `--gpu` on the GPU
    Bench {
        /// Run on the GPU, even a software one
        #[arg(long)]
        gpu: bool,
        /// Arguments for `lowbit bench`: `-- --size small --json`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Demo => demo::run(),
        Task::Test => test::run(),
        Task::Tables => tables::run(),
        Task::Figures => figures::run(),
        Task::Interop => interop::run(),
        Task::Package(options) => package::run(options),
        Task::Generate => generate::run(),
        Task::Serve(options) => serve::run(options),
        Task::Guard(options) => guard::run(options),
        Task::Bench { gpu, arguments } => bench::run(gpu, &arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
