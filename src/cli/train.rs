//! `lowbit train`: trains a model from a checkpoint or a configuration, on texts.

use super::Outcome;
use super::learner::{Learner, LearnerArgs};
use super::open;
use super::options::OptionArgs;
use super::terminal::Terminal;
use super::train_log::Log;
use crate::api::destination::destination;
use crate::artifact::records::SourceRecord;
use crate::backend::cpu::CpuBackend;
use crate::digest::sha256_hex;
use crate::error::{Context, Error, Result};
use crate::format::scratch::TempScratch;
use crate::format::sink::FsSinkDir;
use crate::model::Checkpoint;
use crate::pipeline::train::{TrainContext, TrainInputs, TrainOutcome, TrainingTexts, train};
use crate::request::{TrainRequest, TrainingSignal};
use crate::task::block_on;
use crate::train::BatchCapacity;
use crate::train::state::StateFolder;
use indicatif::DecimalBytes;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train a model, from a checkpoint or from a configuration
#[derive(clap::Args, Clone)]
pub struct TrainArgs {
    #[command(flatten)]
    pub(super) from: LearnerArgs,

    /// Output folder, or file *.gguf
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Held-out texts; the weights with the least loss on them are written
    #[arg(long, value_name = "FILE", num_args = 1..)]
    held_out: Vec<PathBuf>,

    /// Train on questions level by level: add the next level when more than 80% of the last level's held-out questions are
    /// answered correctly. Files are levels in ascending order, or lines have a `level`
    #[arg(long, requires = "held_out", conflicts_with = "field")]
    curriculum: bool,

    /// Teacher for distillation, with the same vocabulary [default: for qat, the checkpoint itself]
    #[arg(long, value_name = "DIR")]
    pub(super) teacher: Option<PathBuf>,

    #[command(flatten)]
    pub(super) request: OptionArgs<TrainRequest>,

    /// Save the state in this folder and continue from it after an interruption, with a bit-identical result; deleted at the
    /// end
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,

    /// Append a line for each step and evaluation: JSON lines, or CSV for *.csv
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

pub fn run(args: &TrainArgs, terminal: &Terminal) -> Result<Outcome> {
    let request = &args.request.0;
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
        let learns = if teacher.is_some() { TrainingSignal::Teacher } else { TrainingSignal::Texts };
        let options = request.options(model.config(), learns)?;
        let to = destination(&args.output, &args.from.model, request.format)?;
        let TrainingTexts { mut corpus, held_out, curriculum } = args.texts(&model, options.capacity)?;
        terminal.note(format_args!(
            "{} tokens to learn from, {} in a step",
            corpus.tokens(),
            options.capacity.tokens * options.accumulate
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
        let log = Log::open(args.metrics.as_deref(), terminal)?;
        let context = TrainContext {
            target: &to.sinks,
            file: to.file.as_deref(),
            state: StateFolder(&sinks),
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
            curriculum,
            sha256: args.sha256(&model, teacher.as_ref()).await?,
            teacher: teacher.as_ref(),
        };
        let outcome = train(&|| Ok(CpuBackend::new()), inputs, &options, context).await?;
        log.close()?;
        Ok::<_, Error>((outcome, to.path))
    })?;
    if let Some(path) = &args.resume {
        // A folder with other files stays.
        let _ = std::fs::remove_dir(path);
    }
    for note in outcome.quantized.iter().flat_map(|quantized| &quantized.notes) {
        terminal.note(note);
    }
    report(&outcome, &path, start.elapsed().as_secs_f64(), terminal)?;
    Ok(Outcome::Done)
}

/// Prints the result.
fn report(outcome: &TrainOutcome, path: &Path, seconds: f64, terminal: &Terminal) -> Result<()> {
    let TrainOutcome { result, quantized, memory } = outcome;
    let perplexity = |loss: Option<f64>| loss.map(f64::exp);
    let (before, after) = (perplexity(result.first), perplexity(result.best.map(|best| best.loss)));
    let document = json!({
        "output": path,
        "steps": result.steps,
        "tokens": result.tokens,
        "perplexity_before": before,
        "perplexity": after,
        "best_step": result.best.map(|best| best.step),
        "scheme": quantized.as_ref().map(|quantized| quantized.record.scheme.clone()),
        "format": quantized.as_ref().map(|quantized| quantized.record.format.clone()),
        "bits_per_weight": quantized.as_ref().map(|quantized| quantized.record.bits_per_weight),
        "bytes": quantized.as_ref().map(|quantized| quantized.bytes),
        "planned_memory": memory,
        "seconds": seconds,
    });
    let mut text = format!("{}: {} steps, {} tokens", path.display(), result.steps, result.tokens);
    if let Some(quantized) = quantized {
        text += &format!(
            ", {} at {:.2} bits a weight, {}",
            quantized.record.scheme,
            quantized.record.bits_per_weight,
            DecimalBytes(quantized.bytes)
        );
    }
    if let (Some(before), Some(after), Some(best)) = (before, after, result.best) {
        text += &format!("\nheld-out perplexity {before:.4} before, {after:.4} after step {}", best.step);
    }
    terminal.result(&document, format!("{text}\n"))
}

impl TrainArgs {
    fn texts(&self, model: &Learner, capacity: BatchCapacity) -> Result<TrainingTexts> {
        let from = &self.from;
        if self.curriculum {
            let questions = (from.levels(model, &from.data)?, from.levels(model, &self.held_out)?);
            let new_corpus = |documents| from.corpus_of(model, capacity, documents);
            return TrainingTexts::graded(questions.0, questions.1, capacity, new_corpus);
        }
        let corpus = from.corpus(model, capacity, &from.data)?;
        let held_out = match &self.held_out[..] {
            [] => None,
            paths => Some(from.corpus(model, capacity, paths)?),
        };
        TrainingTexts::new(corpus, held_out, capacity)
    }

    /// Digest of everything besides options that determines the result.
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
