//! The project's one task runner: what people type and what CI calls.
//!
//! Not here: anything about models or formats. A task only strings together cargo, rustup, npm, Python and the
//! `lowbit` command, always in the workspace's root, from wherever it was called.

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

/// Everything that this repository does, by one command.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Quantize the checkpoint that ships with the repository, validate it, and generate text from both models
    Demo,
    /// Install what the tests need, then check formatting, lints and documentation, and run every test
    Test,
    /// Measure the table of README.md that is about few bits of the shipped checkpoint, and write it there
    Tables,
    /// Make the long measurements of README.md that are missing, and write them to figures/ and into its tables
    Figures,
    /// Compare with Hugging Face transformers, in a Python environment under target/
    Interop,
    /// Build the npm package, in target/package
    Package(package::Options),
    /// Write what is made of the crate's options: the package's types of them, and the schemas of its tools
    Generate,
    /// Build the npm package and serve the demo page on this machine
    Serve(serve::Options),
    /// Record what every command writes, or check that it writes the same as before
    Guard(guard::Options),
    /// Time the steps of a model on the processor, or with `--gpu` on the GPU
    Bench {
        /// On the GPU, also where it is software
        #[arg(long)]
        gpu: bool,
        /// For `lowbit bench`: `-- --size small --json`
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
