//! The command line: options as people type them, and what they see.
//!
//! One file for each command; none holds logic of its own. Standard output carries results, standard error progress and
//! messages. Exit codes: 0 done, 1 a check rejected the model, 2 bad input or usage, 130 interrupted.

#[cfg(feature = "train")]
mod assess;
mod auto;
mod bench;
mod calibration;
#[cfg(feature = "train")]
mod check_gradients;
mod compare;
mod convert;
mod demo;
mod dequantize;
mod devices;
mod generate;
mod inspect;
#[cfg(feature = "train")]
mod learner;
mod open;
mod options;
mod perplexity;
mod plan;
#[cfg(feature = "train")]
mod qat;
mod quantize;
mod recipe;
mod requantize;
mod system;
#[cfg(feature = "train")]
mod tasks;
mod terminal;
#[cfg(test)]
mod tests;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_log;
mod validate;

use crate::error::{Error, ErrorCode, Result};
use crate::layout::OpenOptions;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use options::OptionArgs;
use std::ffi::OsString;
use std::process::ExitCode;
use terminal::Terminal;

/// Quantize, run and validate language models where you are.
#[derive(Parser)]
#[command(name = "lowbit", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print one JSON document to standard output and nothing else.
    #[arg(long, global = true)]
    json: bool,

    /// Use so many threads of the processor [default: as many as it has]; results do not depend on it.
    #[cfg(not(target_arch = "wasm32"))]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,

    #[command(flatten)]
    open: OptionArgs<OpenOptions>,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::InspectArgs),
    Plan(plan::PlanArgs),
    Quantize(Box<quantize::QuantizeArgs>),
    Dequantize(dequantize::DequantizeArgs),
    Requantize(requantize::RequantizeArgs),
    Convert(convert::ConvertArgs),
    Auto(Box<auto::AutoArgs>),
    #[cfg(feature = "train")]
    Train(Box<train::TrainArgs>),
    #[cfg(feature = "train")]
    Qat(Box<qat::QatArgs>),
    #[cfg(feature = "train")]
    CheckGradients(Box<check_gradients::CheckGradientsArgs>),
    #[cfg(feature = "train")]
    Tasks(tasks::TasksArgs),
    #[cfg(feature = "train")]
    Assess(assess::AssessArgs),
    Validate(Box<validate::ValidateArgs>),
    Compare(compare::CompareArgs),
    Perplexity(perplexity::PerplexityArgs),
    Generate(generate::GenerateArgs),
    Demo(demo::DemoArgs),
    Devices(devices::DevicesArgs),
    Bench(bench::BenchArgs),
}

/// Every command with its arguments.
#[cfg(test)]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// The exit code of an interrupted command, as shells have it: 128 and the number of the signal.
const INTERRUPTED: u8 = 130;

/// How a command that did its work ended.
enum Outcome {
    Done,
    /// A check rejected the model.
    Rejected,
}

/// Runs the command line and says how the process shall end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Asked before parsing, which may fail: programs get their document for wrong usage too.
    let json = args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // A wrong value is said in one sentence, like everything that is found out later.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => {
            Terminal::new(json, Default::default()).error(&usage_error(&error));
            return ExitCode::from(2);
        }
        Err(error) => {
            if json && error.use_stderr() {
                Terminal::new(json, Default::default()).error_document(&usage_error(&error));
            }
            // Help and version arrive here too; clap knows where they go and with which code.
            error.exit()
        }
    };
    #[cfg(not(target_arch = "wasm32"))]
    crate::parallel::take_part(cli.threads);
    let terminal = Terminal::new(cli.json, cli.open.0);
    terminal::listen_for_interrupts(INTERRUPTED.into());
    match run(cli.command, &terminal) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Rejected) => ExitCode::from(1),
        Err(error) => {
            terminal.error(&error);
            ExitCode::from(if error.code() == ErrorCode::Cancelled { INTERRUPTED } else { 2 })
        }
    }
}

/// The first paragraph of what clap says; the rest is advice for people.
fn usage_error(error: &clap::Error) -> Error {
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or_default();
    let sentence: Vec<&str> = sentence.split_whitespace().collect();
    Error::invalid_argument(sentence.join(" ").trim_start_matches("error: "))
}

fn run(command: Command, terminal: &Terminal) -> Result<Outcome> {
    match command {
        Command::Inspect(args) => inspect::run(&args, terminal),
        Command::Plan(args) => plan::run(&args, terminal),
        Command::Quantize(args) => quantize::run(&args, terminal),
        Command::Dequantize(args) => dequantize::run(&args, terminal),
        Command::Requantize(args) => requantize::run(&args, terminal),
        Command::Convert(args) => convert::run(&args, terminal),
        Command::Auto(args) => auto::run(&args, terminal),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&args, terminal),
        #[cfg(feature = "train")]
        Command::Qat(args) => qat::run(&args, terminal),
        #[cfg(feature = "train")]
        Command::CheckGradients(args) => check_gradients::run(&args, terminal),
        #[cfg(feature = "train")]
        Command::Tasks(args) => tasks::run(&args, terminal),
        #[cfg(feature = "train")]
        Command::Assess(args) => assess::run(&args, terminal),
        Command::Validate(args) => validate::run(&args, terminal),
        Command::Compare(args) => compare::run(&args, terminal),
        Command::Perplexity(args) => perplexity::run(&args, terminal),
        Command::Generate(args) => generate::run(&args, terminal),
        Command::Demo(args) => demo::run(&args, terminal),
        Command::Devices(args) => devices::run(&args, terminal),
        Command::Bench(args) => bench::run(&args, terminal),
    }
}
