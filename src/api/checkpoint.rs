//! The façade's checkpoint.

use super::destination::{Destination, destination, refuse_source};
use super::model::Model;
use super::opening;
use crate::artifact::records::{DequantizationRecord, QuantizationRecord};
use crate::calibrate::Samples;
use crate::error::{Error, ErrorCode, Result};
use crate::format::scratch::{KeptScratch, Scratch, TempScratch};
use crate::format::sink::SinkDir;
use crate::format::source::{ByteSource, SourceDir};
use crate::layout::OpenOptions;
use crate::model::{self, ModelConfig};
use crate::options::LocationGiven;
use crate::pipeline::convert::ConversionPlan;
use crate::pipeline::{QuantizeContext, QuantizeEvent};
use crate::request::{
    CalibrationHost, ConvertRequest, DequantizeContext, DequantizeRequest, Dequantized, Format, LoadRequest,
    Machine, QuantizeRequest, ValidateRequest,
};
use crate::task::{Control, Silent, block_on};
use crate::tokenizer::HuggingFaceTokenizer;
use crate::validate::agreement::Agreement;
use crate::validate::report::ValidationReport;
use crate::validate::run::RunContext;
use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// An open checkpoint: the configuration, and the location of the weights.
///
/// ```no_run
/// # fn main() -> lowbit::Result<()> {
/// let checkpoint = lowbit::open("tale-llama")?;
/// println!("{} layers", checkpoint.config().num_hidden_layers);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Checkpoint {
    opened: Arc<model::Checkpoint>,
    /// The folder of a separate tokenizer.
    tokenizer: Option<PathBuf>,
    /// The folder for the state of a calibration.
    resume: Option<PathBuf>,
    control: Arc<dyn Control + Send + Sync>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checkpoint").field(&self.name()).finish()
    }
}

/// A written checkpoint, with its record.
#[derive(Debug)]
#[non_exhaustive]
pub struct Written<Record = QuantizationRecord> {
    /// The checkpoint, opened.
    pub checkpoint: Checkpoint,
    /// The record in the folder.
    pub record: Record,
    /// Notes for users, one sentence each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        block_on(opening::checkpoint(path, options)).map(Self::new)
    }

    /// Opens a folder that is not on disk, such as one in memory.
    ///
    /// # Errors
    /// As [`open`](crate::open).
    pub fn from_dir(dir: Arc<dyn SourceDir>) -> Result<Self> {
        block_on(model::Checkpoint::open(dir)).map(Self::new)
    }

    /// Opens a GGUF file that is not on disk.
    ///
    /// # Errors
    /// As [`open`](crate::open).
    pub fn from_gguf(source: Arc<dyn ByteSource>) -> Result<Self> {
        block_on(model::Checkpoint::open_gguf(source)).map(Self::new)
    }

    fn new(opened: model::Checkpoint) -> Self {
        Self { opened: Arc::new(opened), tokenizer: None, resume: None, control: Arc::new(Silent) }
    }

    /// Sets the receiver of progress, which can also cancel work. A function of [`Progress`](crate::Progress) is a
    /// control too. Models and checkpoints derived from this one inherit it.
    #[must_use]
    pub fn with_control(self, control: impl Control + Send + Sync + 'static) -> Self {
        Self { control: Arc::new(control), ..self }
    }

    /// Uses the tokenizer of another folder.
    #[must_use]
    pub fn with_tokenizer(self, folder: impl Into<PathBuf>) -> Self {
        Self { tokenizer: Some(folder.into()), ..self }
    }

    /// Makes calibrations store finished blocks in `folder`, and continue from there after an interruption.
    #[must_use]
    pub fn with_resume(self, folder: impl Into<PathBuf>) -> Self {
        Self { resume: Some(folder.into()), ..self }
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        self.opened.name()
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.opened.config()
    }

    /// Warnings about the interpretation of the files.
    pub fn warnings(&self) -> &[String] {
        self.opened.warnings()
    }

    /// Whether the blocks' weights are quantized.
    pub fn is_quantized(&self) -> bool {
        self.opened.is_quantized()
    }

    /// Bytes of all stored tensors.
    pub fn bytes(&self) -> u64 {
        self.opened.bytes()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// `not_found` if there is none, `tokenizer` if it cannot be used.
    pub fn tokenizer(&self) -> Result<HuggingFaceTokenizer> {
        block_on(opening::tokenizer(&self.opened, self.tokenizer.as_deref()))
    }

    /// Loads the model onto the requested device; by default onto a GPU that can run it, else onto the CPU.
    ///
    /// # Errors
    /// `no_device` if the requested one is missing; `out_of_memory`; errors of reading.
    pub fn load(&self, request: &LoadRequest) -> Result<Model> {
        Model::load(&self.opened, self.tokenizer()?, request, self.control.clone())
    }

    /// Quantizes into a folder, or into the GGUF file that `output` names. Another tool's checkpoint is
    /// never overwritten.
    ///
    /// # Errors
    /// `invalid_argument` for options that contradict each other; `out_of_memory` before the work if a calibration
    /// needs more memory than the request allows; errors of reading and writing, with the tensor's name; `cancelled`.
    pub fn quantize(&self, output: impl AsRef<Path>, request: &QuantizeRequest) -> Result<Written> {
        let to = self.destination(output.as_ref(), request.format)?;
        let file = to.file.or_else(|| request.file.clone());
        self.quantize_into(&to.sinks, &QuantizeRequest { file, ..request.clone() })
    }

    /// As [`quantize`](Self::quantize), into any [`SinkDir`].
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn quantize_into(&self, target: &dyn SinkDir, request: &QuantizeRequest) -> Result<Written> {
        if request.resume.0 && self.resume.is_none() {
            let reason = "resume: expected a folder to continue from; set it with Checkpoint::with_resume";
            return Err(Error::invalid_argument(reason));
        }
        let request = QuantizeRequest { resume: LocationGiven(self.resume.is_some()), ..request.clone() };
        request.options()?;
        if request.format != Some(Format::Gguf) {
            refuse_source(Path::new(target.name()), Path::new(self.name()))?;
        }
        let notes = RefCell::new(Vec::new());
        let tell = |told: QuantizeEvent<'_>| notes.borrow_mut().extend(told.notes());
        let control: &dyn Control = self.control.as_ref();
        let context = QuantizeContext { target, tell: &tell, control };
        let samples = self.samples(&request)?;
        let scratch: Box<dyn Scratch> = match &self.resume {
            Some(folder) => Box::new(KeptScratch::open(folder)?),
            None => Box::new(TempScratch::new()?),
        };
        let on_cpu = |error: &Error| notes.borrow_mut().push(error.to_string());
        let host = CalibrationHost {
            samples: samples.as_ref(),
            scratch: scratch.as_ref(),
            heap_bytes: None,
            on_cpu: &on_cpu,
        };
        let outcome = block_on(request.run(&self.opened, &context, &host))?;
        if let Some(folder) = &self.resume {
            // A folder with other files stays.
            let _ = std::fs::remove_dir(folder);
        }
        let mut notes = notes.into_inner();
        notes.extend(samples.as_ref().and_then(Samples::warning));
        notes.extend(outcome.notes);
        let file = request.file.as_deref();
        self.written(target, (request.format, file), outcome.record, notes)
    }

    fn samples(&self, request: &QuantizeRequest) -> Result<Option<Samples>> {
        let Some(calibration) = &request.calibration else { return Ok(None) };
        let codec = calibration.texts.needs_codec().then(|| self.tokenizer()).transpose()?;
        let codec = codec.as_ref().map(|codec| codec as _);
        calibration.draw(self.config(), codec).map(Some)
    }

    /// Converts to another layout, into a folder or into the GGUF file that `output` names.
    ///
    /// # Errors
    /// `unsupported_format` if the layout cannot hold the weights and the request is strict; as
    /// [`quantize`](Self::quantize).
    pub fn convert(&self, output: impl AsRef<Path>, request: &ConvertRequest) -> Result<Written> {
        let to = self.destination(output.as_ref(), request.format)?;
        let file = to.file.or_else(|| request.file.clone());
        let request = ConvertRequest { file, ..request.clone() };
        let mut notes = Vec::new();
        let tell = |plan: &ConversionPlan| notes.extend(plan.notes());
        let (_, outcome) = block_on(request.run(&self.opened, &to.sinks, tell, self.control.as_ref()))?;
        notes.extend(outcome.notes);
        self.written(&to.sinks, (request.format, request.file.as_deref()), outcome.record, notes)
    }

    /// Writes the quantized weights as floating point, for other tools and for training. If the request has a text,
    /// predictions on it are compared, also with those of `original`.
    ///
    /// # Errors
    /// `invalid_argument` for a checkpoint that is not quantized; as [`quantize`](Self::quantize).
    pub fn dequantize(
        &self,
        output: impl AsRef<Path>,
        original: Option<&Checkpoint>,
        request: &DequantizeRequest,
    ) -> Result<(Written<DequantizationRecord>, Option<Agreement>)> {
        let sinks = self.destination(output.as_ref(), None)?.sinks;
        let codec = (!request.texts.0.is_empty()).then(|| self.tokenizer()).transpose()?;
        let context = DequantizeContext {
            original: original.map(|original| original.opened.as_ref()),
            codec: codec.as_ref().map(|codec| codec as _),
            target: &sinks,
            control: self.control.as_ref(),
        };
        let Dequantized { record, agreement } = block_on(request.run(&self.opened, &context))?;
        Ok((self.written(&sinks, (None, None), record, Vec::new())?, agreement))
    }

    /// Validates this quantized checkpoint against its original: perplexity, divergence, texts, memory and speed.
    ///
    /// # Errors
    /// `invalid_argument` without a text or for impossible limits; errors of reading and running. A bad result
    /// is not an error but a rejecting report with a recommendation.
    pub fn validate(&self, original: &Checkpoint, request: &ValidateRequest) -> Result<ValidationReport> {
        let codec = original.tokenizer()?;
        let other = match self.tokenizer() {
            Err(error) if error.code() == ErrorCode::NotFound => None,
            other => Some(other),
        };
        let (scratch, start) = (TempScratch::new()?, Instant::now());
        let context = RunContext {
            codec: &codec,
            quantized_codec: other
                .as_ref()
                .map(|other| other.as_ref().map(|codec| codec as _).map_err(Clone::clone)),
            clock: &|| start.elapsed().as_secs_f64(),
            scratch: &scratch,
            control: self.control.as_ref(),
        };
        let machine = Machine::default();
        block_on(request.run(&original.opened, &self.opened, machine, &context, |_| Ok(()), |_| ()))
    }

    fn destination(&self, output: &Path, format: Option<Format>) -> Result<Destination> {
        destination(output, Path::new(self.name()), format)
    }

    /// Opens the written checkpoint with this one's settings.
    fn written<Record>(
        &self,
        target: &dyn SinkDir,
        (format, file): (Option<Format>, Option<&str>),
        record: Record,
        notes: Vec<String>,
    ) -> Result<Written<Record>> {
        let folder = target.existing();
        let opened = block_on(async {
            if format != Some(Format::Gguf) {
                return model::Checkpoint::open(folder).await;
            }
            let file = file.unwrap_or("model.gguf");
            let source = folder.open(file).await?;
            let source = source.ok_or_else(|| Error::invalid_argument(format!("{file} no longer exists")))?;
            model::Checkpoint::open_gguf(source).await
        })?;
        let checkpoint = Self {
            opened: Arc::new(opened),
            tokenizer: self.tokenizer.clone(),
            resume: None,
            control: self.control.clone(),
        };
        Ok(Written { checkpoint, record, notes })
    }
}
