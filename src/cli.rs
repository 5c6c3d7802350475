//! The command line: arguments and terminal output.
//!
//! Each command has a file without logic. Results go to standard output, progress and messages to
//! standard error. Exit codes: 0 done, 1 a check rejected the model, 2 invalid input or usage, 130 interrupted.

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
use options::GlobalArgs;
use std::ffi::OsString;
use std::process::ExitCode;
use terminal::Terminal;

/// Quantize, run, train and validate language models locally.
#[derive(Parser)]
#[command(name = "lowbit", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print a single JSON document to standard output.
    #[arg(long, global = true)]
    json: bool,

    /// Number of CPU threads [default: all]; results do not depend on it.
    #[cfg(not(target_arch = "wasm32"))]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,

    #[command(flatten)]
    open: GlobalArgs<OpenOptions>,
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

/// The exit code of an interrupted command, as in shells: 128 plus the signal's number.
const INTERRUPTED: u8 = 130;

/// The outcome of a completed command.
enum Outcome {
    Done,
    /// A check rejected the model.
    Rejected,
}

/// Runs the command line and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Checked before parsing, because usage errors are reported as JSON too.
    let json = args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Invalid values are reported in one sentence, like later errors.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => {
            Terminal::new(json, Default::default()).error(&usage_error(&error));
            return ExitCode::from(2);
        }
        Err(error) => {
            if json && error.use_stderr() {
                Terminal::new(json, Default::default()).error_document(&usage_error(&error));
            }
            // Help and version arrive here too. clap knows their stream and exit code.
            error.exit()
        }
    };
    #[cfg(not(target_arch = "wasm32"))]
    crate::parallel::take_part(cli.threads);
    let terminal = Terminal::new(cli.json, cli.open.0.0);
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

/// The first paragraph of clap's message, without its advice.
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
