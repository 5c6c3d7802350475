//! Trains a model and writes it, as floating point or as the codes that it was trained to have.
//!
//! What is written is what ran: the same codes, the same rounded tables and norms. Not here: steps and states (`train`), how a folder is
//! written (`output`). Floor 8.

mod stages;

use super::output::Place;
use super::quantize::{QuantizationPlan, QuantizeOutcome, write_trained};
use super::select::QuantizeOptions;
use crate::artifact::output::OutputFolder;
use crate::artifact::records::TRAINING_RECORD;
use crate::backend::Train;
use crate::digest::sha256_hex;
use crate::dtype::DType;
use crate::error::{Context, Result};
use crate::format::scratch::Scratch;
use crate::format::sink::{MemorySinkDir, SinkDir, write_whole};
use crate::format::source::SourceDir;
use crate::layout::{PackedFormat, TargetLayout};
use crate::model::checkpoint::{Checkpoint, PRODUCER_KEY};
use crate::model::{CausalLm, LoadOptions};
use crate::options::named;
use crate::quant::{Activations, Bits, Granularity, ScaleType, Scales, Scheme};
use crate::task::Control;
use crate::train::corpus::{Corpus, Sequence};
use crate::train::memory::TrainingMemory;
use crate::train::optimizer::{Optimizer, OptimizerOptions};
pub use crate::train::run::TimeLimit;
use crate::train::run::{Ended, Event, Run, RunOptions};
use crate::train::schedule::Schedule;
use crate::train::state::{StateFolder, write_tensors};
use crate::train::teacher::Teacher;
use crate::train::{Goal, MasterType, Origin, Precision, Room, Stored, TrainedModel};
use serde::Serialize;
use serde_json::{Map, Value, json};
use stages::Begun;
use std::collections::BTreeMap;
use std::rc::Rc;

named! {
    /// At which codes quantized layers begin to be trained.
    pub enum StartCodes {
        /// Weights rounded to nearest
        Nearest = "nearest",
        /// Those that GPTQ finds with the texts that are learned from
        Gptq = "gptq",
    }
}

/// What to train, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Bits of the codes of linear layers; `None` for ternary ones and for floating point.
    pub bits: Option<Bits>,
    /// Whether linear layers are ternary.
    pub is_ternary: bool,
    /// How many weights share a scale.
    pub granularity: Granularity,
    /// At which codes they begin; `None`: at GPTQ's where that is possible.
    pub start: Option<StartCodes>,
    /// How each block is trained alone before the whole model is; `None`: it is not.
    pub blocks: Option<Schedule>,
    /// Whether scales are learned; otherwise they come from the weights after every step.
    pub learned_scales: bool,
    /// What quantized layers meet.
    pub activations: Activations,
    /// What is stored in floating point, where nothing is quantized; `None` for the checkpoint's types, and F16 for a new model.
    pub float: Option<DType>,
    /// In what the optimizer keeps parameters.
    pub masters: MasterType,
    /// Tokens of a batch, and of a row.
    pub room: Room,
    /// Batches of a step.
    pub accumulate: usize,
    /// Steps, and how fast.
    pub schedule: Schedule,
    /// How a step is made.
    pub optimizer: OptimizerOptions,
    /// What is made smaller.
    pub goal: Goal,
    /// In what order the text is seen, and with what a new model begins.
    pub seed: u64,
    /// Steps between looks at the held-out text.
    pub evaluate_every: u64,
    /// Steps after which the state is kept.
    pub keep_every: u64,
    /// The layout to write; `None`: the one that holds such a result best.
    pub layout: Option<TargetLayout>,
    /// Bytes that the run may take.
    pub memory: Option<u64>,
}

/// What a model is trained from.
pub struct TrainInputs<'a> {
    /// Its weights, or none.
    pub origin: Origin<'a>,
    /// Its config.json.
    pub config_json: &'a Value,
    /// What goes with it: tokenizer, template.
    pub files: &'a [(&'static str, Vec<u8>)],
    /// What messages call it.
    pub name: &'a str,
    /// What is learned from.
    pub corpus: &'a mut Corpus,
    /// What the best is chosen by; may be empty.
    pub held_out: &'a [Sequence],
    /// SHA-256 of what weights, texts and teacher are, for a state that is gone on from.
    pub sha256: String,
    /// Whose predictions are learned.
    pub teacher: Option<&'a Checkpoint>,
}

/// What the work needs from outside.
#[derive(Clone, Copy)]
pub struct TrainSurroundings<'a> {
    /// The folder to write into.
    pub target: &'a dyn SinkDir,
    /// The same folder to read from, so that nothing foreign is overwritten.
    pub existing: Option<&'a dyn SourceDir>,
    /// The name of a GGUF file.
    pub file: Option<&'a str>,
    /// Where the state is kept while it runs.
    pub state: StateFolder<'a>,
    /// Where hidden states and what GPTQ finds wait.
    pub scratch: &'a dyn Scratch,
    /// Until when there is time; a run without it always gives the same bits.
    pub limit: Option<TimeLimit<'a>>,
    /// Hears what happens.
    pub tell: &'a dyn Fn(Event),
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// What training gave.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    /// How the run ended.
    pub ended: Ended,
    /// What was written, where that is codes.
    pub quantized: Option<QuantizeOutcome>,
    /// What it was to take.
    pub memory: TrainingMemory,
}

/// `training_record.json`, and what the record of a quantized folder says of its training.
#[derive(Serialize)]
struct TrainingRecord<'a> {
    schema: &'static str,
    version: &'static str,
    source: &'a str,
    sha256: &'a str,
    teacher: Option<&'a str>,
    parameters: Map<String, Value>,
}

impl<'a> TrainingRecord<'a> {
    fn new(inputs: &'a TrainInputs<'_>, parameters: Map<String, Value>) -> Self {
        Self {
            schema: "lowbit.training/1",
            version: env!("CARGO_PKG_VERSION"),
            source: inputs.name,
            sha256: &inputs.sha256,
            teacher: inputs.teacher.map(Checkpoint::name),
            parameters,
        }
    }

    /// The same within the record of a quantized folder.
    fn within(&self) -> Map<String, Value> {
        Map::from_iter([("training".to_owned(), json!(self))])
    }
}

impl TrainOptions {
    /// What linear layers become; `None` for floating point.
    pub fn scheme(&self) -> Option<Scheme> {
        match self.bits {
            Some(bits) => Some(Scheme::integer(bits, self.granularity, true)),
            None => self.is_ternary.then(|| Scheme::ternary(self.granularity)),
        }
    }

    /// At which codes a model begins that has weights.
    fn start(&self) -> StartCodes {
        let usual = match self.bits {
            Some(_) if self.learned_scales => StartCodes::Gptq,
            _ => StartCodes::Nearest,
        };
        self.start.unwrap_or(usual)
    }

    /// The same as options of quantizing.
    fn quantize_options(&self, file: Option<&str>) -> Option<QuantizeOptions> {
        let options = match self.bits {
            Some(bits) => QuantizeOptions::rtn(bits, self.granularity, true),
            None if self.is_ternary => QuantizeOptions::ternary(self.granularity),
            None => return None,
        };
        let (layout, activations) = (self.layout, self.activations);
        Some(QuantizeOptions { layout, activations, file: file.map(str::to_owned), ..options })
    }

    /// What parameters are stored as. Where layers are quantized everything else is of one type of 16 bits: no layout's loaders mind
    /// that, and some ask for it.
    pub(super) fn precision(&self, origin: Origin<'_>) -> Result<Precision> {
        let mut precision = Precision { float: self.float, master: self.masters, ..Precision::default() };
        let (Some(scheme), Some(options)) = (self.scheme(), self.quantize_options(None)) else {
            return Ok(precision);
        };
        let float = match origin {
            Origin::Checkpoint(checkpoint) => {
                let table = format!("{}.weight", checkpoint.embedding_module());
                match checkpoint.store().require(&table)?.dtype {
                    DType::BF16 => DType::BF16,
                    _ => DType::F16,
                }
            }
            Origin::Random { .. } => DType::F16,
        };
        let layout = options.target_layout();
        let usual = PackedFormat { coding: scheme.into(), scale_type: ScaleType::F16, reordered: false };
        precision.scheme = Some(scheme);
        precision.float = Some(float);
        precision.activations = self.activations;
        precision.grid = layout.activation_grid();
        if layout == TargetLayout::BitNet {
            precision.scale_type = ScaleType::from_dtype(float).unwrap_or_default();
        } else {
            precision.scale_type = layout.own_format(usual).scale_type;
        }
        Ok(precision)
    }

    /// By the names of the command line, for the record.
    fn parameters(&self) -> Map<String, Value> {
        let Schedule { decay, steps, warmup, peak, last, weight_decay } = self.schedule;
        let parameters = json!({
            "scheme": self.scheme().map(|scheme| scheme.to_string()),
            "activations": self.activations,
            "start": self.start(),
            "block_steps": self.blocks.map_or(0, |schedule| schedule.steps),
            "block_rate": self.blocks.map(|schedule| schedule.peak),
            "format": self.layout.map(TargetLayout::name),
            "dtype": self.float.map(|dtype| dtype.to_string().to_lowercase()),
            "scales": if self.learned_scales { "learned" } else { "nearest" },
            "masters": if self.masters == MasterType::Half { "bf16" } else { "f32" },
            "context": self.room.context,
            "batch_tokens": self.room.tokens,
            "accumulate": self.accumulate,
            "steps": steps,
            "warmup": warmup,
            "decay": decay,
            "learning_rate": peak,
            "last_rate": last,
            "weight_decay": weight_decay,
            "scale_rate": self.optimizer.scale_rate,
            "clip": self.optimizer.longest,
            "cross_entropy": self.goal.cross_entropy,
            "teacher_share": self.goal.divergence,
            "temperature": self.goal.temperature,
            "seed": self.seed,
        });
        let Value::Object(parameters) = parameters else { unreachable!("an object was written above") };
        parameters
    }
}

/// A model that has learned, and is to be written.
pub struct Learned<B: Train> {
    /// The best that was found, or the last without a held-out text.
    pub model: TrainedModel<B>,
    /// How the run ended.
    pub ended: Ended,
    /// What it was to take.
    pub memory: TrainingMemory,
    /// For the record.
    parameters: Map<String, Value>,
}

/// What is known before any work.
struct Prepared {
    quantize: Option<QuantizeOptions>,
    precision: Precision,
    memory: TrainingMemory,
    /// For the record.
    parameters: Map<String, Value>,
    /// What the result depends on.
    key: String,
}

impl Prepared {
    async fn new(
        inputs: &TrainInputs<'_>,
        options: &TrainOptions,
        around: TrainSurroundings<'_>,
    ) -> Result<Self> {
        let quantize = options.quantize_options(around.file);
        let layout =
            quantize.as_ref().map_or(TargetLayout::CompressedTensors, QuantizeOptions::target_layout);
        around.place().refuse_foreign(layout).await?;
        if let (Some(quantize), Origin::Checkpoint(checkpoint)) = (&quantize, inputs.origin) {
            // What no layout holds is known before any step.
            QuantizationPlan::new(checkpoint, quantize)?;
        }
        let precision = options.precision(inputs.origin)?;
        let (config, tokens) = (inputs.origin.config(), inputs.corpus.tokens());
        let memory = if options.schedule.steps == 0 {
            TrainingMemory::plan_block(config, &precision, options.room, tokens)
        } else {
            TrainingMemory::plan(config, &precision, options.room, tokens, inputs.teacher)?
        };
        memory.check_within(options.memory).context_with(|| inputs.name.to_owned())?;
        let parameters = options.parameters();
        let run = json!([env!("CARGO_PKG_VERSION"), inputs.sha256, parameters, options.evaluate_every]);
        Ok(Self { quantize, precision, memory, parameters, key: sha256_hex(run.to_string().as_bytes()) })
    }
}

/// Trains a model and writes it. `new_backend` makes what runs it, and another for a teacher.
///
/// # Errors
/// `invalid_argument` for options that make no sense, for a layout that cannot hold the result, and for a teacher of another vocabulary;
/// `out_of_memory` for a run that would take more than the options allow; `non_finite` where losses are no numbers again and again;
/// `cancelled`, after which the same call goes on; whatever reading and writing meet.
pub async fn train<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    mut inputs: TrainInputs<'_>,
    options: &TrainOptions,
    around: TrainSurroundings<'_>,
) -> Result<TrainOutcome> {
    let outcome = if options.schedule.steps == 0 {
        stages::blocks_alone(new_backend, &mut inputs, options, around).await?
    } else {
        learn(new_backend, &mut inputs, options, around).await?.write(&inputs, options, around).await?
    };
    around.state.clear().await?;
    around.state.clear_blocks(inputs.origin.config().num_hidden_layers).await?;
    Ok(outcome)
}

/// Trains a model. Its state stays where it was kept.
///
/// # Errors
/// As [`train`]'s.
pub async fn learn<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    inputs: &mut TrainInputs<'_>,
    options: &TrainOptions,
    around: TrainSurroundings<'_>,
) -> Result<Learned<B>> {
    let prepared = Prepared::new(inputs, options, around).await?;
    let begun = Begun::new(new_backend, inputs, options, &prepared, around).await?;
    let Prepared { quantize, precision, memory, mut parameters, key } = prepared;
    let TrainInputs { origin, name, teacher, .. } = *inputs;
    let made = TrainedModel::new(new_backend()?, begun.origin(origin), precision, options.room).await;
    let mut model = made.map_err(|error| error.within(name))?;
    if let (Some(quantize), Origin::Random { .. }) = (&quantize, origin) {
        QuantizationPlan::new(&stored(&mut model, inputs).await?.0, quantize)?;
    }
    if quantize.is_some() {
        begun.start().give(&mut model, options.learned_scales).await?;
        model.bring().await?;
    }
    drop(begun);
    let mut taught = match teacher {
        Some(checkpoint) => {
            let on = new_backend()?;
            let model = CausalLm::load(on, checkpoint, LoadOptions::default(), around.control).await?;
            Some(Teacher::new(model, options.room)?)
        }
        None => None,
    };
    if let Some(teacher) = &taught {
        teacher.check(model.config())?;
    }
    let optimizer = Optimizer::new(&mut model, options.optimizer)?;
    let run = Run {
        model: &mut model,
        optimizer,
        teacher: taught.as_mut(),
        corpus: &mut *inputs.corpus,
        held_out: inputs.held_out,
        state: around.state,
        limit: around.limit,
        options: RunOptions {
            goal: options.goal,
            schedule: options.schedule,
            accumulate: options.accumulate,
            seed: options.seed,
            evaluate_every: options.evaluate_every,
            keep_every: options.keep_every,
            key,
        },
    };
    let ended = run.run(around.tell, around.control).await?;
    parameters.insert("steps_done".into(), json!(ended.steps));
    if let Some(best) = ended.best {
        parameters.insert("best_step".into(), json!(best.step));
        parameters.insert("held_out_loss".into(), json!(best.loss));
    }
    Ok(Learned { model, ended, memory, parameters })
}

impl<B: Train> Learned<B> {
    /// Writes the model.
    ///
    /// # Errors
    /// As [`train`]'s.
    pub async fn write(
        self,
        inputs: &TrainInputs<'_>,
        options: &TrainOptions,
        around: TrainSurroundings<'_>,
    ) -> Result<TrainOutcome> {
        let Self { mut model, ended, memory, parameters } = self;
        let record = TrainingRecord::new(inputs, parameters);
        let place = around.place();
        let quantized = match options.quantize_options(around.file) {
            Some(quantize) => {
                let (checkpoint, scales) = stored(&mut model, inputs).await?;
                drop(model);
                let record = record.within();
                Some(write_trained(&checkpoint, &quantize, scales, record, &place, around.control).await?)
            }
            None => {
                write_dense(&mut model, inputs, &place, &record).await?;
                None
            }
        };
        Ok(TrainOutcome { ended, quantized, memory })
    }
}

impl<'a> TrainSurroundings<'a> {
    fn place(self) -> Place<'a> {
        Place { target: self.target, existing: self.existing, file: self.file }
    }
}

/// The configuration without what it says of quantized weights, which are masters now, and of the folder that it came from.
fn of_masters(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        object.shift_remove("quantization_config");
        object.shift_remove(PRODUCER_KEY);
    }
    config
}

/// The model as a checkpoint in memory: quantized layers as their masters in `F32`, and the scales that were learned for them.
async fn stored<B: Train>(
    model: &mut TrainedModel<B>,
    inputs: &TrainInputs<'_>,
) -> Result<(Checkpoint, BTreeMap<String, Scales>)> {
    let folder = MemorySinkDir::new(inputs.name);
    let config = of_masters(inputs.config_json);
    write_whole(&folder, "config.json", config.to_string().as_bytes()).await?;
    for (file, bytes) in inputs.files {
        write_whole(&folder, file, bytes).await?;
    }
    let mut scales = BTreeMap::new();
    let (backend, parameters) = model.parts();
    for parameter in parameters.all_mut() {
        let (Some(_), Stored::Packed { .. }) = (&parameter.scales, parameter.stored) else { continue };
        if let (Some(codes), Some(module)) =
            (parameter.codes(backend).await?, parameter.tensor.strip_suffix(".weight"))
        {
            scales.insert(module.to_owned(), codes.scales().clone());
        }
    }
    write_tensors(model, folder.create("model.safetensors").await?, pytorch()).await?;
    Ok((Checkpoint::open(Rc::new(folder.to_dir())).await?, scales))
}

/// What metadata transformers asks of a file of weights.
fn pytorch() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Writes a folder of floating-point weights.
async fn write_dense<B: Train>(
    model: &mut TrainedModel<B>,
    inputs: &TrainInputs<'_>,
    place: &Place<'_>,
    record: &TrainingRecord<'_>,
) -> Result<()> {
    let folder = OutputFolder::begin(place.target, place.existing, TRAINING_RECORD).await?;
    folder.write_config(inputs.config_json, &[], None).await?;
    for (file, bytes) in inputs.files {
        folder.write(file, bytes).await?;
    }
    write_tensors(model, folder.create("model.safetensors").await?, pytorch()).await?;
    folder.finish(record).await
}
