//! An open checkpoint, as programs use it.

use super::destination::{Destination, destination, refuse_source};
use super::model::Model;
use super::opening;
use crate::artifact::records::{DequantizationRecord, QuantizationRecord};
use crate::calibrate::Samples;
use crate::error::{Error, Result};
use crate::format::scratch::{KeptScratch, Scratch, TempScratch};
use crate::format::sink::SinkDir;
use crate::format::source::{ByteSource, SourceDir};
use crate::layout::OpenOptions;
use crate::model::{self, ModelConfig};
use crate::options::LocationGiven;
use crate::pipeline::convert::ConversionPlan;
use crate::pipeline::{QuantizeContext, QuantizeEvent};
use crate::request::{
    CalibrationHost, ConvertRequest, DequantizeRequest, Format, LoadRequest, Machine, QuantizeRequest,
    ValidateRequest,
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

/// An open checkpoint: what the model is, and where its weights are.
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
    /// Whose tokenizer it has, where not its own.
    tokenizer: Option<PathBuf>,
    /// Where a calibration keeps what is done.
    resume: Option<PathBuf>,
    control: Arc<dyn Control + Send + Sync>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checkpoint").field(&self.name()).finish()
    }
}

/// A checkpoint that was written, and what there is to say of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Written<Record = QuantizationRecord> {
    /// The checkpoint, opened.
    pub checkpoint: Checkpoint,
    /// As it stands in the folder.
    pub record: Record,
    /// What a user should know, a sentence each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    pub(super) fn open(path: &Path) -> Result<Self> {
        block_on(opening::checkpoint(path, &OpenOptions::default())).map(Self::new)
    }

    /// Opens a folder that is not on a disk: in memory, or behind whatever a program reads from.
    ///
    /// # Errors
    /// As [`open`](crate::open).
    pub fn from_dir(dir: Arc<dyn SourceDir>) -> Result<Self> {
        block_on(model::Checkpoint::open(dir)).map(Self::new)
    }

    /// Opens a GGUF file that is not on a disk.
    ///
    /// # Errors
    /// As [`open`](crate::open).
    pub fn from_gguf(source: Arc<dyn ByteSource>) -> Result<Self> {
        block_on(model::Checkpoint::open_gguf(source)).map(Self::new)
    }

    fn new(opened: model::Checkpoint) -> Self {
        Self { opened: Arc::new(opened), tokenizer: None, resume: None, control: Arc::new(Silent) }
    }

    /// Lets `control` hear how far work with this checkpoint is, and stop it. A function of [`Progress`](crate::Progress) is
    /// one too. It goes on to what is made of this checkpoint: models, and other checkpoints.
    #[must_use]
    pub fn with_control(self, control: impl Control + Send + Sync + 'static) -> Self {
        Self { control: Arc::new(control), ..self }
    }

    /// Takes the tokenizer from another folder.
    #[must_use]
    pub fn with_tokenizer(self, folder: impl Into<PathBuf>) -> Self {
        Self { tokenizer: Some(folder.into()), ..self }
    }

    /// Lets calibrations keep in `folder` what is done, and go on from there after a run that was stopped.
    #[must_use]
    pub fn with_resume(self, folder: impl Into<PathBuf>) -> Self {
        Self { resume: Some(folder.into()), ..self }
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        self.opened.name()
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        self.opened.config()
    }

    /// What a user should know about how the files were understood.
    pub fn warnings(&self) -> &[String] {
        self.opened.warnings()
    }

    /// Whether weights of its blocks are quantized.
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
    /// `not_found` where there is none, `tokenizer` where it cannot be used.
    pub fn tokenizer(&self) -> Result<HuggingFaceTokenizer> {
        block_on(opening::tokenizer(&self.opened, self.tokenizer.as_deref()))
    }

    /// Loads the model onto the device that the request names; without one, onto a GPU where there is one that can run it.
    ///
    /// # Errors
    /// `no_device` where the one that was asked for is not there; `out_of_memory`; whatever reading meets.
    pub fn load(&self, request: &LoadRequest) -> Result<Model> {
        Model::load(&self.opened, self.tokenizer()?, request, self.control.clone())
    }

    /// Quantizes into a folder, or into the GGUF file that `output` names. Another checkpoint there that lowbit has not
    /// written is never overwritten.
    ///
    /// # Errors
    /// `invalid_argument` for options that contradict each other; `out_of_memory` before the work where a calibration would
    /// take more than the request allows; whatever reading and writing meet, with the tensor's name; `cancelled`.
    pub fn quantize(&self, output: impl AsRef<Path>, request: &QuantizeRequest) -> Result<Written> {
        let to = self.destination(output.as_ref(), request.format)?;
        let file = to.file.or_else(|| request.file.clone());
        self.quantize_into(&to.sinks, &QuantizeRequest { file, ..request.clone() })
    }

    /// As [`quantize`](Self::quantize), into any folder that can be written.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn quantize_into(&self, target: &dyn SinkDir, request: &QuantizeRequest) -> Result<Written> {
        if request.resume.0 && self.resume.is_none() {
            let reason = "resume: expected the folder to go on from; name it by Checkpoint::with_resume";
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
            // Whatever else somebody put there stays, and so does the folder then.
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

    /// Spells the weights as another layout does, into a folder or into the GGUF file that `output` names.
    ///
    /// # Errors
    /// `unsupported_format` where the layout cannot hold the weights and the request is strict; as
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

    /// Writes the quantized weights as floating-point numbers, for other tools and for training. Where the request has a text,
    /// predictions on it are compared, with those of `original` too.
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
        let codec = codec.as_ref().map(|codec| codec as _);
        let original = original.map(|original| original.opened.as_ref());
        let run = request.run(&self.opened, original, codec, &sinks, self.control.as_ref());
        let (record, agreement) = block_on(run)?;
        Ok((self.written(&sinks, (None, None), record, Vec::new())?, agreement))
    }

    /// Judges this quantized checkpoint against its original: by perplexity, divergence, texts, memory and speed.
    ///
    /// # Errors
    /// `invalid_argument` without a text, or for limits that nothing can reach; whatever reading and running meet. A bad result
    /// is no error but a report that is not accepted and says what to try next.
    pub fn validate(&self, original: &Checkpoint, request: &ValidateRequest) -> Result<ValidationReport> {
        let codec = original.tokenizer()?;
        let (scratch, start) = (TempScratch::new()?, Instant::now());
        let context = RunContext {
            codec: &codec,
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

    /// What was written, opened to be used as this one is.
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
            let source = source.ok_or_else(|| Error::invalid_argument(format!("{file} is gone")))?;
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
