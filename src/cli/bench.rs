//! `lowbit bench`: times a model's steps on a device, and relates them to the device's limits.

use super::Outcome;
use super::open;
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::backend::DeviceOps;
use crate::backend::any::AnyBackend;
use crate::backend::choice::DeviceRequest;
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

/// Tokens to decode.
const TOKENS: usize = 64;

/// Time a model's steps and whole models on a device
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Checkpoints whose decoding is timed
    checkpoints: Vec<PathBuf>,

    /// Operand sizes of an 8B model, or small ones [default: large on a hardware GPU]
    #[arg(long, value_enum)]
    size: Option<SizeArg>,

    /// Time only the models, not single steps
    #[arg(long)]
    models_only: bool,

    #[command(flatten)]
    device: OptionArgs<DeviceRequest>,
}

/// `--size`
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SizeArg {
    Small,
    Large,
}

#[derive(Serialize)]
struct BenchReport {
    device: String,
    /// Descriptions of kernel variants that replace base kernels.
    fast_kernels: Vec<&'static str>,
    /// Set when the figures say nothing about hardware.
    label: Option<&'static str>,
    /// Bytes read and written by a copy, measured in this run; null on the CPU.
    copy_bytes_per_second: Option<f64>,
    /// Multiplications and additions in f32 without memory access, measured in this run; null on the CPU.
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
    /// Bytes per second relative to a copy.
    share_of_copy: Option<f64>,
    /// Operations per second relative to the peak.
    share_of_peak: Option<f64>,
}

#[derive(Serialize)]
struct Decoding {
    checkpoint: String,
    tokens_per_second: f64,
}

pub fn run(args: &BenchArgs, terminal: &Terminal) -> Result<Outcome> {
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64();
    let document = block_on(async {
        let (backend, fallback_reason) = args.device.0.open().await?;
        fallback_reason.iter().for_each(|error| terminal.note_cpu(error));
        match backend {
            AnyBackend::Cpu(_) => {
                measure(backend, args, SizeArg::Small, Known::default(), &clock, terminal).await
            }
            #[cfg(feature = "gpu")]
            AnyBackend::Gpu(mut gpu) => {
                let software = gpu.adapter().kind == crate::backend::gpu::AdapterKind::Software;
                let label = software.then_some(
                    "software adapter: a correctness run, whose figures say nothing about the speed of a GPU",
                );
                let usual = if software { SizeArg::Small } else { SizeArg::Large };
                let sizes = args.size.unwrap_or(usual).sizes();
                // Decides which kernel variants run.
                gpu.check_formats().await?;
                let limits = kernels::limits(&mut gpu, &sizes, &clock).await?;
                let known = Known { label, limits: Some(limits), fast_kernels: gpu.fast_kernels() };
                measure(AnyBackend::Gpu(gpu), args, usual, known, &clock, terminal).await
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

/// Facts about a device, known before the steps run.
#[derive(Default)]
struct Known {
    label: Option<&'static str>,
    limits: Option<Limits>,
    fast_kernels: Vec<&'static str>,
}

async fn measure(
    mut device: AnyBackend,
    args: &BenchArgs,
    usual: SizeArg,
    Known { label, limits, fast_kernels }: Known,
    clock: speed::Clock<'_>,
    terminal: &Terminal,
) -> Result<BenchReport> {
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
            CausalLm::load(device.sibling()?, &checkpoint, LoadOptions::default(), terminal).await?;
        models.push(Decoding {
            checkpoint: checkpoint.name().to_owned(),
            tokens_per_second: speed::greedy(&mut model, TOKENS, clock, terminal).await?,
        });
    }
    Ok(BenchReport {
        device: device.capabilities().device.clone(),
        fast_kernels,
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

fn text(document: &BenchReport) -> String {
    let mut text = format!("{}\n", document.device);
    // Writing to a string cannot fail.
    if !document.fast_kernels.is_empty() {
        let _ = writeln!(text, "with {}", document.fast_kernels.join(", "));
    }
    if let Some(label) = document.label {
        let _ = writeln!(text, "{label}");
    }
    if let (Some(copy), Some(peak)) = (document.copy_bytes_per_second, document.peak_operations_per_second) {
        let (copy, peak) = (copy / 1e9, peak / 1e9);
        let _ = writeln!(text, "a copy moves {copy:.1} GB/s; multiply-adds alone do {peak:.1} GFLOP/s");
    }
    if !document.steps.is_empty() {
        let (copy, peak) = document.copy_bytes_per_second.map_or(("", ""), |_| ("of copy", "of peak"));
        let _ = writeln!(
            text,
            "\n{:<19} {:<26} {:>9} {:>8} {copy:>7} {:>9} {peak:>7}",
            "step", "shape", "time", "GB/s", "GFLOP/s"
        );
    }
    for step in &document.steps {
        let operations =
            figure((step.operations_per_second > 0.0).then_some(step.operations_per_second / 1e9));
        let line = format!(
            "{:<19} {:<26} {:>9} {:>8} {:>7} {:>9} {:>7}",
            step.step,
            step.shape,
            time(step.seconds),
            figure(Some(step.bytes_per_second / 1e9)),
            share(step.share_of_copy),
            operations,
            share(step.share_of_peak.filter(|_| step.operations_per_second > 0.0))
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for (at, model) in document.models.iter().enumerate() {
        let space = if at == 0 { "\n" } else { "" };
        let _ = writeln!(
            text,
            "{space}{}: {:.1} tokens/s, {TOKENS} tokens greedily",
            model.checkpoint, model.tokens_per_second
        );
    }
    text
}

/// Formats with one decimal place, or two below 1.
fn figure(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value < 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn share(value: Option<f64>) -> String {
    match value.map(|value| 100.0 * value) {
        None => String::new(),
        Some(value) if value < 10.0 => format!("{value:.1}%"),
        Some(value) => format!("{value:.0}%"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        ..1e-3 => format!("{:.1} us", 1e6 * seconds),
        1e-3..1.0 => format!("{:.1} ms", 1e3 * seconds),
        _ => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_below_each_other_and_say_what_they_are_shares_of() {
        let timed = |step: &str, shape: &str, seconds| Timed {
            step: step.to_owned(),
            shape: shape.to_owned(),
            bytes: 3_000_000,
            operations: 10_000_000,
            seconds,
        };
        let steps = [
            timed("matvec int4-g32 a8", "14336 x 4096, 1 token", 2e-5),
            timed("gate", "14336, 512 tokens", 0.012),
        ];
        let document = |limits: Option<Limits>, label| BenchReport {
            device: "gpu: some GPU (vulkan, discrete)".to_owned(),
            fast_kernels: limits.map_or_else(Vec::new, |_| vec!["packed dot products", "norms that round"]),
            label,
            copy_bytes_per_second: limits.map(|limits| limits.bytes_per_second),
            peak_operations_per_second: limits.map(|limits| limits.operations_per_second),
            steps: steps.iter().map(|step| Step::new(step.clone(), limits)).collect(),
            models: vec![Decoding { checkpoint: "tale".to_owned(), tokens_per_second: 1234.56 }],
        };
        let limits = Limits { bytes_per_second: 2e11, operations_per_second: 1e13 };
        let expected = "\
gpu: some GPU (vulkan, discrete)
with packed dot products, norms that round
software
a copy moves 200.0 GB/s; multiply-adds alone do 10000.0 GFLOP/s

step                shape                           time     GB/s of copy   GFLOP/s of peak
matvec int4-g32 a8  14336 x 4096, 1 token        20.0 us    150.0     75%     500.0    5.0%
gate                14336, 512 tokens            12.0 ms     0.25    0.1%      0.83    0.0%

tale: 1234.6 tokens/s, 64 tokens greedily
";
        let found = text(&document(Some(limits), Some("software")));
        assert_eq!(found, expected);
        // The CPU has no shares.
        let found = text(&document(None, None));
        assert!(found.contains("1 token        20.0 us    150.0             500.0\n"), "{found}");
        assert!(!found.contains('%') && !found.contains("copy"), "{found}");
    }
}
