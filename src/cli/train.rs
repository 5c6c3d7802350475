//! `lowbit train`: a checkpoint or a configuration and texts in, a trained model out. Floor 9.

use super::Outcome;
use super::destination::destination;
use super::learner::{Learner, LearnerArgs};
use super::open;
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::artifact::records::SourceRecord;
use crate::backend::cpu::CpuBackend;
use crate::digest::sha256_hex;
use crate::error::{Context, Error, Result};
use crate::format::scratch::TempScratch;
use crate::format::sink::FsSinkDir;
use crate::format::source::{FsDir, SourceDir};
use crate::model::Checkpoint;
use crate::pipeline::train::{TrainInputs, TrainOptions, TrainOutcome, TrainSurroundings, train};
use crate::request::{Format, TrainRequest};
use crate::task::block_on;
use crate::train::blocks::BlockReport;
use crate::train::corpus::{Corpus, Position, Sequence};
use crate::train::run::Event;
use crate::train::state::StateFolder;
use indicatif::DecimalBytes;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// Train a model: from its weights, or anew from a configuration
#[derive(clap::Args, Clone)]
pub struct Args {
    #[command(flatten)]
    pub(super) from: LearnerArgs,

    /// The folder to write, or the file *.gguf
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Texts that are not learned from: the weights that predict them best are written
    #[arg(long, value_name = "FILE", num_args = 1..)]
    held_out: Vec<PathBuf>,

    /// A model whose predictions are learned, of the same vocabulary [default: qat takes the checkpoint itself]
    #[arg(long, value_name = "DIR")]
    pub(super) teacher: Option<PathBuf>,

    #[command(flatten)]
    pub(super) request: OptionArgs<TrainRequest>,

    /// Keep the state in this folder, and go on from there after a run that was stopped: the result is the same to the last bit. The state
    /// goes when the work is done
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,

    /// Append a line for each step and each look at the held-out text: JSON lines, or CSV in *.csv
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let request = &args.request.0;
    let is_file = request.format == Some(Format::Gguf);
    if args.held_out.is_empty() && request.evaluate_every.is_some() {
        return Err(Error::invalid_argument("how often to look belongs to a held-out text; give --held-out"));
    }
    open::check_writable(args.metrics.as_ref(), &[&args.output])?;
    let start = Instant::now();
    let (outcome, path) = block_on(async {
        let model = args.from.open(terminal).await?;
        let teacher = match &args.teacher {
            Some(path) => Some(open::checkpoint(path, terminal).await?),
            None => None,
        };
        let options = request.options(model.config(), teacher.is_some())?;
        let to = destination(&args.output, &args.from.model, is_file)?;
        let mut corpus = args.from.corpus(&model, options.room, &args.from.data)?;
        let held_out = if args.held_out.is_empty() {
            Vec::new()
        } else {
            sequences(args.from.corpus(&model, options.room, &args.held_out)?, &options)?
        };
        terminal.note(format_args!(
            "{} tokens to learn from, {} in a step",
            corpus.tokens(),
            options.room.tokens * options.accumulate
        ));
        let temporary;
        let folder = match &args.resume {
            Some(path) => path.as_path(),
            None => {
                temporary = tempfile::tempdir().context_with(|| "the folder of the state".to_owned())?;
                temporary.path()
            }
        };
        let sinks = FsSinkDir::at(folder);
        let source: Rc<dyn SourceDir> = Rc::new(FsDir::at(folder));
        let log = Log::open(args.metrics.as_deref(), terminal)?;
        let around = TrainSurroundings {
            target: &to.sinks,
            existing: Some(&to.existing),
            file: to.file.as_deref(),
            state: StateFolder { sinks: &sinks, source: &source },
            scratch: &TempScratch::new()?,
            limit: None,
            tell: &|event| log.take(&event),
            control: terminal,
        };
        let inputs = TrainInputs {
            origin: model.origin(request.seed),
            config_json: &model.config_json,
            files: &model.files,
            name: &model.name,
            corpus: &mut corpus,
            held_out: &held_out,
            sha256: args.sha256(&model, teacher.as_ref()).await?,
            teacher: teacher.as_ref(),
        };
        let outcome = train(&|| Ok(CpuBackend::new()), inputs, &options, around).await?;
        log.close()?;
        Ok::<_, Error>((outcome, to.path))
    })?;
    if let Some(path) = &args.resume {
        // Whatever else somebody put there stays, and so does the folder then.
        let _ = std::fs::remove_dir(path);
    }
    for note in outcome.quantized.iter().flat_map(|quantized| &quantized.notes) {
        terminal.note(note);
    }
    report(&outcome, &path, start.elapsed().as_secs_f64(), terminal)?;
    Ok(Outcome::Done)
}

/// What came of it.
fn report(outcome: &TrainOutcome, path: &Path, seconds: f64, terminal: &Terminal) -> Result<()> {
    let TrainOutcome { ended, quantized, memory } = outcome;
    let perplexity = |loss: Option<f64>| loss.map(f64::exp);
    let (before, after) = (perplexity(ended.first), perplexity(ended.best.map(|best| best.loss)));
    let document = json!({
        "output": path,
        "steps": ended.steps,
        "tokens": ended.tokens,
        "perplexity_before": before,
        "perplexity": after,
        "best_step": ended.best.map(|best| best.step),
        "scheme": quantized.as_ref().map(|quantized| quantized.record.scheme.clone()),
        "format": quantized.as_ref().map(|quantized| quantized.record.format.clone()),
        "bits_per_weight": quantized.as_ref().map(|quantized| quantized.record.bits_per_weight),
        "bytes": quantized.as_ref().map(|quantized| quantized.bytes),
        "planned_memory": memory,
        "seconds": seconds,
    });
    let mut text = format!("{}: {} steps, {} tokens", path.display(), ended.steps, ended.tokens);
    if let Some(quantized) = quantized {
        text += &format!(
            ", {} at {:.2} bits a weight, {}",
            quantized.record.scheme,
            quantized.record.bits_per_weight,
            DecimalBytes(quantized.bytes)
        );
    }
    if let (Some(before), Some(after), Some(best)) = (before, after, ended.best) {
        text += &format!("\nheld-out perplexity {before:.4} before, {after:.4} after step {}", best.step);
    }
    terminal.result(&document, format!("{text}\n"))
}

impl Args {
    /// Of everything that the run's result depends on beside its options.
    async fn sha256(&self, model: &Learner, teacher: Option<&Checkpoint>) -> Result<String> {
        let digests = |paths: &[PathBuf]| -> Result<Vec<String>> {
            paths.iter().map(|path| Ok(sha256_hex(&open::bytes(path)?))).collect()
        };
        let teacher = match teacher {
            Some(teacher) => Some(SourceRecord::of(teacher).await?.sha256),
            None => None,
        };
        let seen = json!([
            model.sha256,
            digests(&self.from.data)?,
            digests(&self.held_out)?,
            self.from.field,
            teacher
        ]);
        Ok(sha256_hex(seen.to_string().as_bytes()))
    }
}

/// All sequences of a text that is not learned from.
fn sequences(mut corpus: Corpus, options: &TrainOptions) -> Result<Vec<Sequence>> {
    let (mut position, mut all) = (Position::default(), Vec::new());
    while position.epoch == 0 {
        let (batch, next) = corpus.batch(0, position, options.room.tokens)?;
        all.extend(batch);
        position = next;
    }
    Ok(all)
}

/// What is written of the run as it goes.
struct Log<'a> {
    terminal: &'a Terminal,
    start: Instant,
    /// The file, and whether it is one of columns.
    file: Option<(File, bool)>,
    state: RefCell<LogState>,
}

struct LogState {
    /// When the last step was done, and tokens up to then.
    last: Option<(f64, u64)>,
    speed: f64,
    failed: Option<std::io::Error>,
}

/// The columns of a CSV file, in order.
const COLUMNS: [&str; 12] = [
    "event",
    "step",
    "seconds",
    "loss",
    "cross_entropy",
    "divergence",
    "gradient",
    "learning_rate",
    "tokens",
    "epoch",
    "tokens_per_second",
    "block",
];

impl<'a> Log<'a> {
    fn open(path: Option<&Path>, terminal: &'a Terminal) -> Result<Self> {
        let mut file = None;
        if let Some(path) = path {
            let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
            let opened = OpenOptions::new().create(true).append(true).open(path);
            let mut opened = opened.context_with(|| path.display().to_string())?;
            if is_csv && opened.metadata().is_ok_and(|metadata| metadata.len() == 0) {
                writeln!(opened, "{}", COLUMNS.join(",")).context_with(|| path.display().to_string())?;
            }
            file = Some((opened, is_csv));
        }
        let state = RefCell::new(LogState { last: None, speed: 0.0, failed: None });
        Ok(Self { terminal, start: Instant::now(), file, state })
    }

    fn take(&self, event: &Event) {
        let seconds = self.start.elapsed().as_secs_f64();
        let mut line = Map::new();
        let name = match event {
            Event::Resumed { step } => {
                self.terminal.note(format_args!("going on after step {step}"));
                line.insert("step".into(), json!(step));
                "resumed"
            }
            Event::Block(BlockReport { layer, losses }) => {
                let how = match losses {
                    Some((first, last)) => format!("loss {first:.3e} at first, {last:.3e} at last"),
                    None => "as it was kept".to_owned(),
                };
                self.terminal.note(format_args!("block {layer}: {how}"));
                line.insert("block".into(), json!(layer));
                line.insert("loss".into(), json!(losses.map(|(_, last)| last)));
                "block"
            }
            Event::Step(report) => {
                let mut state = self.state.borrow_mut();
                if let Some((then, tokens)) = state.last {
                    let now = (report.tokens.saturating_sub(tokens)) as f64 / (seconds - then).max(1e-9);
                    state.speed = if state.speed == 0.0 { now } else { 0.9 * state.speed + 0.1 * now };
                }
                state.last = Some((seconds, report.tokens));
                let speed = state.speed;
                self.terminal.set_message(format!("loss {:.4}, {speed:.0} tokens/s", report.loss));
                let values = [
                    ("step", json!(report.step)),
                    ("loss", json!(report.loss)),
                    ("cross_entropy", json!(report.cross_entropy)),
                    ("divergence", json!(report.divergence)),
                    ("gradient", json!(report.gradient)),
                    ("learning_rate", json!(report.rate)),
                    ("tokens", json!(report.tokens)),
                    ("epoch", json!(report.epoch)),
                    ("tokens_per_second", json!(speed)),
                ];
                line.extend(values.map(|(name, value)| (name.to_owned(), value)));
                "step"
            }
            Event::Evaluated { step, loss, is_best } => {
                let best = if *is_best { ", the best so far" } else { "" };
                let perplexity = loss.exp();
                self.terminal.note(format_args!("step {step}: held-out perplexity {perplexity:.4}{best}"));
                line.extend([("step".to_owned(), json!(step)), ("loss".to_owned(), json!(loss))]);
                "held_out"
            }
            Event::WentBack { from, to, reason } => {
                self.terminal.note(format_args!(
                    "warning: step {from}: {reason}; going on from step {to} with half of the learning rate"
                ));
                line.insert("step".into(), json!(to));
                "went_back"
            }
        };
        line.insert("event".into(), json!(name));
        line.insert("seconds".into(), json!(seconds));
        self.write(line);
    }

    fn write(&self, line: Map<String, Value>) {
        let Some((file, is_csv)) = &self.file else { return };
        let text = if *is_csv {
            let cell = |name: &&str| match line.get(*name) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(value) => value.to_string(),
            };
            COLUMNS.iter().map(cell).collect::<Vec<_>>().join(",")
        } else {
            Value::Object(line).to_string()
        };
        let mut file = file;
        if let Err(error) = writeln!(file, "{text}") {
            self.state.borrow_mut().failed.get_or_insert(error);
        }
    }

    /// What went wrong while writing.
    fn close(self) -> Result<()> {
        match self.state.into_inner().failed {
            Some(error) => Err(Error::from(error).context("the metrics")),
            None => Ok(()),
        }
    }
}
