//! `lowbit quantize`: a checkpoint in, a smaller one out. Floor 9.

mod calibrated;

use super::Outcome;
use super::calibration::CalibrationArgs;
use super::convert::gguf::destination;
use super::device::DeviceArgs;
use super::format::OutputFormatArg;
use super::open::{self, ActivationsArg};
use super::recipe;
use super::terminal::Terminal;
use crate::artifact::metrics::{Metric, to_json_lines};
use crate::backend::cpu::CpuBackend;
use crate::error::{Context, Error, Result};
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::pipeline::{QuantizeOptions, QuantizeOutcome, QuantizeSurroundings, quantize_checkpoint, restore};
use crate::plan::parse_bytes;
use crate::quant::{Bits, ColumnOrder, GptqOptions, Granularity, ReferenceInputs, ScaleRule};
use crate::task::block_on;
use clap::ValueEnum;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Quantize a checkpoint
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// How codes are found: rtn rounds to nearest, gptq learns from calibration texts which way to round, awq which
    /// columns to round more finely; ternary makes -1, 0 and 1 as BitNet does
    #[arg(long, value_enum, default_value_t = MethodArg::Rtn)]
    method: MethodArg,

    /// Bits of a weight: 2, 3, 4 or 8 [default: 4]
    #[arg(long, value_name = "N", conflicts_with_all = ["ternary_scale", "sparsity_threshold"])]
    bits: Option<u32>,

    /// Weights that share a scale; -1: a whole row [default: 128, and -1 for 8 bits]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    group_size: Option<i64>,

    /// Give each group a zero point of its own
    #[arg(long)]
    asym: bool,

    /// Rules that give some modules other bits, group size or method, or keep them; JSON, or TOML in *.toml
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,

    /// Choose bits for each module so that all files' tensors take at most so much, as 500MB; by what each loses
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["recipe", "target_bpw"])]
    target_bytes: Option<String>,

    /// The same, for mean bits of a weight in the quantized modules, scales and zero points included
    #[arg(long, value_name = "BITS", conflicts_with = "recipe")]
    target_bpw: Option<f64>,

    /// Quantize the head too
    #[arg(long)]
    quantize_head: bool,

    /// Quantize the embedding too, to so many bits
    #[arg(long, value_name = "BITS")]
    quantize_embedding: Option<u32>,

    /// One ternary scale for each tensor or each channel
    #[arg(long, value_enum, value_name = "SCOPE")]
    ternary_scale: Option<TernaryScaleArg>,

    /// Ternary weights below this share of the scale become 0 [default: those that round to 0]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    sparsity_threshold: Option<f32>,

    /// Precision of the activations that the result is meant to run with
    #[arg(long, value_enum)]
    activations: Option<ActivationsArg>,

    /// The layout to write [default: compressed-tensors, and bitnet for ternary weights with one scale a tensor]
    #[arg(long, value_enum, value_name = "LAYOUT")]
    format: Option<OutputFormatArg>,

    /// Fail where the layout cannot hold a module as asked for, instead of taking the nearest scheme
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    calibration: CalibrationArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Take the tokenizer, for calibration texts, from another folder
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,

    /// gptq: share of the Hessian's mean diagonal that is added to its diagonal
    #[arg(long, value_name = "SHARE", default_value_t = GptqOptions::default().damping)]
    damping: f32,

    /// gptq: the order in which columns are rounded
    #[arg(long, value_enum, default_value_t = ActOrderArg::GroupAware)]
    act_order: ActOrderArg,

    /// gptq: where the scale of a group comes from
    #[arg(long, value_enum, default_value_t = ScalesArg::LeastError)]
    scales: ScalesArg,

    /// gptq: how often codes and scales are gone over again for less output error; 0: gptq alone
    #[arg(long, value_name = "N", default_value_t = GptqOptions::default().sweeps)]
    sweeps: usize,

    /// gptq: on whose inputs a layer's original outputs are computed, to which the rounded layer shall come near
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t = ReferenceInputsArg::Original)]
    reference_inputs: ReferenceInputsArg,

    /// gptq: the same as --act-order group-index, by the name of other tools
    #[arg(long, conflicts_with = "act_order")]
    desc_act: bool,

    /// Go back to the grid that a dequantized checkpoint was on: unchanged weights get the codes that they had
    #[arg(long, conflicts_with_all = ["method", "bits", "group_size", "asym", "quantize_head", "quantize_embedding",
        "ternary_scale", "sparsity_threshold", "activations", "format", "strict", "recipe"])]
    from_metadata: bool,

    /// Methods that calibrate: keep what is done in this folder, and go on from there after a run that was killed. The
    /// folder goes when the work is done
    #[arg(long, value_name = "DIR", conflicts_with = "scratch")]
    resume: Option<PathBuf>,

    /// Methods that calibrate: do not start where more memory than this would be needed, as 8GB. Runs on the CPU then, for
    /// which it is planned, unless --device says otherwise
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,

    /// Write the result as floating-point weights too, for training to go on from
    #[arg(long, value_name = "DIR")]
    also_dequantized: Option<PathBuf>,

    /// Append figures to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    Rtn,
    Gptq,
    Awq,
    Ternary,
}

/// `--scales`
#[derive(Clone, Copy, ValueEnum)]
enum ScalesArg {
    /// The range of its weights
    Range,
    /// A search for the least error
    LeastError,
}

/// `--reference-inputs`
#[derive(Clone, Copy, ValueEnum)]
enum ReferenceInputsArg {
    /// The original model's: a layer makes up for what the layers before it lost
    Original,
    /// Those that the quantized layers before it make
    Quantized,
}

/// `--act-order`
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum ActOrderArg {
    /// As columns are stored
    None,
    /// Groups with the largest inputs first, and so the columns of each group
    GroupAware,
    /// Columns with the largest inputs first, on groups as they are stored
    Static,
    /// Columns with the largest inputs first, with groups along that order; the result names each column's group (g_idx)
    GroupIndex,
}

#[derive(Clone, Copy, ValueEnum)]
enum TernaryScaleArg {
    Tensor,
    Channel,
}

impl Args {
    fn is_gguf(&self) -> bool {
        self.format == Some(OutputFormatArg::Gguf)
    }

    fn options(&self) -> Result<QuantizeOptions> {
        let mut options = match self.method {
            MethodArg::Rtn | MethodArg::Gptq | MethodArg::Awq => {
                let bits = Bits::try_from(self.bits.unwrap_or(4))?;
                let granularity = match self.group_size {
                    // Its blocks have a scale for every 32 columns, whether it is another one or not.
                    None if self.is_gguf() => Granularity::Group(32),
                    None => bits.usual_granularity(),
                    Some(size) => Granularity::from_group_size(size)?,
                };
                match self.method {
                    MethodArg::Gptq => QuantizeOptions::gptq(bits, granularity, !self.asym),
                    MethodArg::Awq => QuantizeOptions::awq(bits, granularity, !self.asym),
                    _ => QuantizeOptions::rtn(bits, granularity, !self.asym),
                }
            }
            MethodArg::Ternary => {
                if self.bits.is_some() || self.group_size.is_some() || self.asym {
                    return Err(Error::invalid_argument(
                        "ternary weights have no bits, group size or zero point to choose; see --ternary-scale",
                    ));
                }
                QuantizeOptions::ternary(match self.ternary_scale {
                    Some(TernaryScaleArg::Channel) => Granularity::Channel,
                    _ => Granularity::Tensor,
                })
            }
        };
        if self.ternary_scale.is_some() && !matches!(self.method, MethodArg::Ternary) {
            return Err(Error::invalid_argument("--ternary-scale belongs to --method ternary"));
        }
        options.recipe = self.recipe.as_deref().map(recipe::read).transpose()?;
        self.check_target()?;
        if self.is_gguf()
            && (self.also_dequantized.is_some() || self.target_bytes.is_some() || self.target_bpw.is_some())
        {
            return Err(Error::invalid_argument(
                "--format gguf goes with neither a target, because its types have 4 or 8 bits, nor --also-dequantized; \
                 convert a folder that was made with them",
            ));
        }
        let calibrated = options.calibrated_method();
        if self.calibration.is_given() != calibrated.is_some() {
            let (method, what) = (
                calibrated.unwrap_or(options.method).name(),
                if calibrated.is_some() { "needs" } else { "takes no" },
            );
            return Err(Error::invalid_argument(format!("--method {method} {what} --calibration texts")));
        }
        options.gptq = GptqOptions {
            damping: self.damping,
            sweeps: self.sweeps,
            reference: match self.reference_inputs {
                ReferenceInputsArg::Original => ReferenceInputs::Original,
                ReferenceInputsArg::Quantized => ReferenceInputs::Quantized,
            },
            scales: match self.scales {
                ScalesArg::Range => ScaleRule::Range,
                ScalesArg::LeastError => ScaleRule::LeastError,
            },
            order: match self.act_order {
                _ if self.desc_act => ColumnOrder::GroupIndex,
                ActOrderArg::None => ColumnOrder::Stored,
                ActOrderArg::GroupAware => ColumnOrder::GroupAware,
                ActOrderArg::Static => ColumnOrder::StaticGroups,
                ActOrderArg::GroupIndex => ColumnOrder::GroupIndex,
            },
        };
        let of_calibration = [
            ("--memory", self.memory.is_some()),
            ("--resume", self.resume.is_some()),
            ("--device", self.device.request().is_given()),
        ];
        if let (None, Some((option, _))) = (calibrated, of_calibration.iter().find(|(_, given)| *given)) {
            return Err(Error::invalid_argument(format!("{option} belongs to methods that calibrate")));
        }
        options.resume = self.resume.is_some();
        options.memory = self.memory.as_deref().map(parse_bytes).transpose()?;
        options.quantize_head = self.quantize_head;
        options.quantize_embedding = self.quantize_embedding.map(Bits::try_from).transpose()?;
        options.layout = self.format.map(Into::into);
        options.target = self.target()?;
        options.strict = self.strict;
        options.sparsity_threshold = self.sparsity_threshold;
        if let Some(activations) = self.activations {
            options.activations = activations.into();
        }
        options.check()?;
        Ok(options)
    }
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let mut options = args.options()?;
    let folders: Vec<&Path> = [Some(&args.output), args.also_dequantized.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    open::check_writable(args.metrics.as_ref(), &folders)?;
    if let Some(path) = &args.also_dequantized {
        if *path == args.output {
            return Err(Error::invalid_argument("--output and --also-dequantized name the same folder"));
        }
        open::output(path, &args.checkpoint)?;
    }
    let start = Instant::now();
    let (outcome, source_bytes, output) = block_on(async {
        let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
        let to = destination(&args.output, &args.checkpoint, args.is_gguf())?;
        options.file = to.file.clone();
        let outcome = if args.from_metadata {
            restore(&checkpoint, &to.sinks, Some(&to.existing), terminal).await?
        } else {
            let around = QuantizeSurroundings {
                target: &to.sinks,
                existing: Some(&to.existing),
                tell: &|told| calibrated::show(told, terminal),
                control: terminal,
            };
            if options.calibrated_method().is_some() {
                calibrated::run(args, &checkpoint, &options, &around, terminal).await?
            } else {
                quantize_checkpoint::<CpuBackend>(&checkpoint, &options, None, &around).await?
            }
        };
        Ok::<_, Error>((outcome, checkpoint.bytes(), to.path))
    })?;
    for note in &outcome.notes {
        terminal.note(note);
    }
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &args.also_dequantized {
        block_on(async {
            let quantized = open::checkpoint(&output, terminal).await?;
            // By another name it may be the folder that was just written.
            open::output(path, &output)?;
            let (sinks, existing) = open::output(path, &args.checkpoint)?;
            let dtype = default_dtype(&quantized)?;
            dequantize_checkpoint(&quantized, dtype, &sinks, Some(&existing), terminal).await
        })?;
    }
    if let Some(path) = &args.metrics {
        append(path, &metrics(&outcome, source_bytes, seconds, &output))?;
    }
    let document = json!({
        "output": output,
        "method": outcome.record.method,
        "scheme": outcome.record.scheme,
        "format": outcome.record.format,
        "bits_per_weight": outcome.record.bits_per_weight,
        "original_bytes": source_bytes,
        "quantized_bytes": outcome.bytes,
        "seconds": seconds,
        "planned_memory": outcome.planned_memory,
        "modules": outcome.modules.iter().map(|(name, scheme, error)| json!({
            "name": name,
            "scheme": scheme.to_string(),
            "snr_db": error.snr_db(),
            "max_abs_error": error.max_abs_error(),
            "sparsity": error.sparsity(),
            "calibration": outcome.record.modules.iter().find(|m| &m.name == name).map(|m| &m.calibration),
        })).collect::<Vec<_>>(),
    });
    let text = format!(
        "{} modules to {}, {:.2} bits a weight; {} bytes became {} in {seconds:.1} s\n{}\n",
        outcome.modules.len(),
        schemes(&outcome),
        outcome.record.bits_per_weight,
        source_bytes,
        outcome.bytes,
        output.display()
    );
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

/// The scheme, or how many modules got which.
fn schemes(outcome: &QuantizeOutcome) -> String {
    if outcome.record.scheme != "mixed" {
        return outcome.record.scheme.clone();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, scheme, _) in &outcome.modules {
        *counts.entry(scheme.to_string()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(scheme, count)| format!("{scheme} ({count})")).collect();
    counts.join(", ")
}

fn metrics(outcome: &QuantizeOutcome, source_bytes: u64, seconds: f64, output: &Path) -> Vec<Metric> {
    let subject = output.display().to_string();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let mut metrics = vec![
        Metric::new("original_model_size_mb", mb(source_bytes), &subject),
        Metric::new("quantized_model_size_mb", mb(outcome.bytes), &subject),
        Metric::new("compression_ratio", source_bytes as f64 / outcome.bytes as f64, &subject),
        Metric::new("bits_per_weight", outcome.record.bits_per_weight, &subject),
        Metric::new("quantization_seconds", seconds, &subject),
    ];
    for (name, _, error) in &outcome.modules {
        if let Some(snr) = error.snr_db() {
            metrics.push(Metric::new("layer_snr_db", snr, name));
        }
    }
    metrics
}

/// Appends figures to a file; runs add to what earlier runs left there.
pub fn append(path: &Path, metrics: &[Metric]) -> Result<()> {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(to_json_lines(metrics).as_bytes()))
        .context_with(|| path.display().to_string())
}
