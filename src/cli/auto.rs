//! `lowbit auto`: quantizes and validates until quality is kept.

use super::Outcome;
use super::calibration::CalibrationFiles;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::perplexity::TextArgs;
use super::terminal::Terminal;
use super::validate::{MeasureFiles, describe_measurements, machine};
use crate::api::destination;
use crate::artifact::output::refuse_foreign;
use crate::backend::any::AnyBackend;
use crate::error::{Error, Result};
use crate::format::sink::{FsSinkDir, SinkDir};
use crate::format::source::FsDir;
use crate::model::Checkpoint;
use crate::pipeline::auto::search::{Attempt, Judgement};
use crate::pipeline::auto::{AutoContext, Event, Outputs, SearchCandidate, auto};
use crate::request::{AutoRequest, TextsOptions};
use crate::task::{BoxFuture, block_on};
use crate::tokenizer::{HuggingFaceTokenizer, TextCodec};
use crate::validate::windows::Dataset;
use serde_json::json;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::time::Instant;
#[cfg(feature = "train")]
use {
    crate::backend::cpu::CpuBackend,
    crate::pipeline::auto::training::QatTrainer,
    crate::request::{TrainRequest, TrainingSignal},
};

/// Quantize and validate until quality is kept: more calibration samples, mixed precision, INT8, training, the next
/// checkpoint
#[derive(clap::Args)]
pub struct AutoArgs {
    /// Checkpoints to try, ranked by their loss on the text
    #[arg(required = true)]
    checkpoints: Vec<PathBuf>,

    /// Output folder: a folder for each attempt, and quantization_summary.json
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    calibration: CalibrationFiles,

    #[command(flatten)]
    cut: OptionArgs<TextsOptions>,

    #[command(flatten)]
    request: OptionArgs<AutoRequest>,

    /// Minutes for training each checkpoint after other attempts were rejected; 0: no training
    #[cfg(feature = "train")]
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    training_minutes: f64,

    #[command(flatten)]
    files: MeasureFiles,

    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

#[cfg(feature = "train")]
/// A week. A longer time is a typing error.
const MOST_MINUTES: f64 = 7.0 * 24.0 * 60.0;

/// A checkpoint with its texts.
struct Opened {
    checkpoint: Checkpoint,
    codec: HuggingFaceTokenizer,
    data: Dataset,
    calibration: Vec<u32>,
    bos_token_id: Option<u32>,
}

/// Folders inside the output folder.
struct Folders(FsSinkDir);

impl Outputs for Folders {
    fn summary(&self) -> &dyn SinkDir {
        &self.0
    }

    fn create<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Box<dyn SinkDir>>> {
        let folder: Box<dyn SinkDir> = Box::new(FsSinkDir::at(self.0.path().join(name)));
        Box::pin(ready(Ok(folder)))
    }
}

impl AutoArgs {
    async fn open(&self, path: &Path, request: &AutoRequest, terminal: &Terminal) -> Result<Opened> {
        let checkpoint = open::checkpoint(path, terminal).await?;
        let codec = open::tokenizer(&checkpoint, &self.tokenizer).await?;
        let data = request.text.dataset(&codec)?;
        let (calibration, bos_token_id) = self.calibration.tokens(&checkpoint, &self.tokenizer).await?;
        Ok(Opened { checkpoint, codec, data, calibration, bos_token_id })
    }
}

pub fn run(args: &AutoArgs, terminal: &Terminal) -> Result<Outcome> {
    if !args.calibration.is_given() {
        return Err(Error::invalid_argument("expected texts to calibrate with; give --calibration FILE"));
    }
    #[cfg(feature = "train")]
    if !(0.0..=MOST_MINUTES).contains(&args.training_minutes) {
        return Err(Error::invalid_argument(format!(
            "--training-minutes: expected minutes from 0 to {MOST_MINUTES} but found {}",
            args.training_minutes
        )));
    }
    let mut request = args.request.0.clone();
    request.text = args.text.read(&request.text)?;
    request.calibration = args.calibration.cut(&args.cut.0);
    request.validate = args.files.read(&request.validate)?;
    for path in &args.checkpoints {
        destination::folder(&args.output, path)?;
    }
    block_on(refuse_foreign(&FsDir::at(&args.output)))?;
    let outcome = block_on(async {
        let mut opened = Vec::new();
        for path in &args.checkpoints {
            opened.push(args.open(path, &request, terminal).await?);
        }
        let candidates = opened.iter().map(|opened| {
            let Opened { checkpoint, codec, data, calibration, bos_token_id } = opened;
            Ok(SearchCandidate {
                checkpoint,
                codec: codec as &dyn TextCodec,
                data,
                validate: request.validate_options(data, checkpoint.config(), codec, machine())?,
                calibration,
                bos_token_id: *bos_token_id,
                cut: request.calibration.cut(checkpoint.config(), 1),
            })
        });
        let candidates = candidates.collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let (clock, scratch) = (|| start.elapsed().as_secs_f64(), args.calibration.scratch()?);
        #[cfg(feature = "train")]
        let memory = request.residency.memory;
        #[cfg(feature = "train")]
        let trainer = QatTrainer {
            new_backend: &|| Ok(CpuBackend::new()),
            options: &|scheme, config| match TrainRequest::to_scheme(scheme) {
                Some(request) => TrainRequest { memory, ..request }.options(config, TrainingSignal::Teacher),
                None => Err(Error::invalid_argument(format!("{scheme}: no scheme to train to"))),
            },
            seconds: 60.0 * args.training_minutes,
            clock: &clock,
            scratch: &scratch,
            tell: &|_| (),
        };
        let context = AutoContext {
            outputs: &Folders(FsSinkDir::at(&args.output)),
            scratch: &scratch,
            clock: &clock,
            #[cfg(feature = "train")]
            trainer: (args.training_minutes > 0.0).then_some(&trainer),
            #[cfg(not(feature = "train"))]
            trainer: None,
            control: terminal,
            tell: &|event| tell(&event, terminal),
        };
        let options = request.options();
        let search =
            async |backend: AnyBackend| auto(&candidates, &options, || backend.sibling(), &context).await;
        let ran = request.device.run(|error| terminal.note_cpu(error), search).await?;
        Ok::<_, Error>(ran.result)
    })?;
    let accepted = outcome.accepted().map(|name| args.output.join(name));
    let recommendation = outcome.summary.outcome.as_ref().map(|outcome| outcome.recommendation.as_str());
    let document = json!({
        "output": args.output,
        "accepted": accepted,
        "recommendation": recommendation,
        "attempts": outcome.summary.variants,
        "reports": outcome.reports,
    });
    let last = match &accepted {
        Some(path) => format!("ACCEPTED: {}\n", path.display()),
        None => format!("REJECTED: {}\n", recommendation.unwrap_or_default()),
    };
    terminal.result(&document, last)?;
    Ok(if accepted.is_some() { Outcome::Done } else { Outcome::Rejected })
}

fn tell(event: &Event<'_>, terminal: &Terminal) {
    match event {
        Event::Ranked { name, nats } => terminal.note(format_args!("{name}: the text takes {nats:.1} nats")),
        Event::Checkpoint { name, reason, attempts } => {
            let attempts: Vec<String> = attempts.iter().map(Attempt::name).collect();
            terminal.note(format_args!("{name}: {reason}\nto try: {}", attempts.join(", ")));
        }
        Event::Attempt { name, promoted: [] } => terminal.note(format_args!("{name}")),
        Event::Attempt { name, promoted } => {
            terminal.note(format_args!("{name}, with more bits for {}", promoted.join(", ")));
        }
        Event::Judged { report, judgement, .. } => {
            // Not the report's verdict, which includes memory and speed.
            let verdict = match judgement {
                Judgement::Good => "good enough",
                Judgement::Bad => "not good enough",
                Judgement::Hopeless => "the original itself has no finite perplexity",
            };
            terminal.note(format_args!("{}{verdict}\n", describe_measurements(report)));
        }
    }
}
