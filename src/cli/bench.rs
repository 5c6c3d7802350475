//! `lowbit bench`: how fast a device does the steps of a model, beside what it can do at most. Floor 9.

use super::Outcome;
use super::device::{DeviceArgs, note_cpu};
use super::open;
use super::terminal::Terminal;
use crate::backend::Backend;
use crate::backend::any::AnyBackend;
use crate::error::Result;
use crate::model::{CausalLm, LoadOptions};
use crate::task::block_on;
use crate::validate::kernels::{self, Limits, Sizes, Timed};
use crate::validate::speed;
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

/// Tokens that a model decodes.
const TOKENS: usize = 64;

/// Time the steps of a model on a device, and whole models
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoints whose decoding is timed
    checkpoints: Vec<PathBuf>,

    /// Operands of a model of 8 billion parameters, or small ones [default: large on a GPU that is no software]
    #[arg(long, value_enum)]
    size: Option<SizeArg>,

    /// Leave the single steps out
    #[arg(long)]
    models_only: bool,

    #[command(flatten)]
    device: DeviceArgs,
}

/// `--size`
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SizeArg {
    Small,
    Large,
}

#[derive(Serialize)]
struct Document {
    device: String,
    /// Set where the figures say nothing about hardware.
    label: Option<&'static str>,
    /// Read and written by a copy in this run; null on the CPU.
    copy_bytes_per_second: Option<f64>,
    /// Multiplications and additions in f32 without memory, in this run; null on the CPU.
    peak_operations_per_second: Option<f64>,
    steps: Vec<Step>,
    models: Vec<Decoding>,
}

#[derive(Serialize)]
struct Step {
    step: String,
    shape: String,
    seconds: f64,
    bytes_per_second: f64,
    operations_per_second: f64,
    /// Of the bytes that a copy moves in the same time.
    share_of_copy: Option<f64>,
    /// Of the operations that are possible in the same time.
    share_of_peak: Option<f64>,
}

#[derive(Serialize)]
struct Decoding {
    checkpoint: String,
    tokens_per_second: f64,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64();
    let document = block_on(async {
        let (backend, why_cpu) = args.device.request().open().await?;
        why_cpu.iter().for_each(|error| note_cpu(terminal, error));
        match backend {
            AnyBackend::Cpu(_) => {
                measure(backend, args, SizeArg::Small, (None, None), &clock, terminal).await
            }
            #[cfg(feature = "gpu")]
            AnyBackend::Gpu(mut gpu) => {
                let software = gpu.adapter().kind == crate::backend::gpu::AdapterKind::Software;
                let label = software.then_some(
                    "a correctness run: this adapter is software, so no figure says how fast a GPU is",
                );
                let usual = if software { SizeArg::Small } else { SizeArg::Large };
                let sizes = args.size.unwrap_or(usual).sizes();
                let limits = kernels::limits(&mut gpu, &sizes, &clock).await?;
                let gpu = AnyBackend::Gpu(gpu);
                measure(gpu, args, usual, (label, Some(limits)), &clock, terminal).await
            }
        }
    })?;
    terminal.result(&document, text(&document))?;
    Ok(Outcome::Done)
}

impl SizeArg {
    fn sizes(self) -> Sizes {
        match self {
            Self::Small => Sizes::SMALL,
            Self::Large => Sizes::LARGE,
        }
    }
}

async fn measure(
    mut device: AnyBackend,
    args: &Args,
    usual: SizeArg,
    (label, limits): (Option<&'static str>, Option<Limits>),
    clock: speed::Clock<'_>,
    terminal: &Terminal,
) -> Result<Document> {
    let sizes = args.size.unwrap_or(usual).sizes();
    let timed = if args.models_only {
        Vec::new()
    } else {
        kernels::steps(&mut device, &sizes, clock, terminal).await?
    };
    let mut models = Vec::new();
    for path in &args.checkpoints {
        let checkpoint = open::checkpoint(path, terminal).await?;
        let mut model =
            CausalLm::load(device.another()?, &checkpoint, LoadOptions::default(), terminal).await?;
        models.push(Decoding {
            checkpoint: checkpoint.name().to_owned(),
            tokens_per_second: speed::greedy(&mut model, TOKENS, clock, terminal).await?,
        });
    }
    Ok(Document {
        device: device.capabilities().device.clone(),
        label,
        copy_bytes_per_second: limits.map(|limits| limits.bytes_per_second),
        peak_operations_per_second: limits.map(|limits| limits.operations_per_second),
        steps: timed.into_iter().map(|timed| Step::new(timed, limits)).collect(),
        models,
    })
}

impl Step {
    fn new(timed: Timed, limits: Option<Limits>) -> Self {
        let bytes_per_second = timed.bytes as f64 / timed.seconds;
        let operations_per_second = timed.operations as f64 / timed.seconds;
        Self {
            step: timed.step,
            shape: timed.shape,
            seconds: timed.seconds,
            bytes_per_second,
            operations_per_second,
            share_of_copy: limits.map(|limits| bytes_per_second / limits.bytes_per_second),
            share_of_peak: limits.map(|limits| operations_per_second / limits.operations_per_second),
        }
    }
}

fn text(document: &Document) -> String {
    let mut text = format!("{}\n", document.device);
    // Writing to a string cannot fail.
    if let Some(label) = document.label {
        let _ = writeln!(text, "{label}");
    }
    if let (Some(copy), Some(peak)) = (document.copy_bytes_per_second, document.peak_operations_per_second) {
        let _ = writeln!(text, "copy {:.1} GB/s, arithmetic {:.1} GFLOP/s", copy / 1e9, peak / 1e9);
    }
    for step in &document.steps {
        let share =
            |share: Option<f64>| share.map_or_else(String::new, |share| format!(" ({:.0}%)", 100.0 * share));
        let _ = writeln!(
            text,
            "{:<20} {:<28} {:>10.1} us {:>8.1} GB/s{} {:>8.1} GFLOP/s{}",
            step.step,
            step.shape,
            1e6 * step.seconds,
            step.bytes_per_second / 1e9,
            share(step.share_of_copy),
            step.operations_per_second / 1e9,
            share(step.share_of_peak)
        );
    }
    for model in &document.models {
        let _ = writeln!(text, "{}: {:.1} tokens/s", model.checkpoint, model.tokens_per_second);
    }
    text
}
