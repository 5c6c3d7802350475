//! Trains a model and writes it, in floating point or quantized.
//!
//! The output has the same codes, embedding, head and norms as the forward pass. Steps and states are in `train`.
//! Folders are written by `output`.

mod options;
mod stages;
mod texts;

use super::output::OutputPlace;
use super::quantize::{QuantizationPlan, QuantizeOutcome, write_trained};
use super::select::QuantizeOptions;
use crate::artifact::output::OutputFolder;
use crate::artifact::records::TRAINING_RECORD;
use crate::backend::Train;
use crate::digest::sha256_hex;
use crate::error::{Context, Error, Result};
use crate::format::scratch::Scratch;
use crate::format::sink::{MemorySinkDir, SinkDir, write_whole};
use crate::layout::TargetLayout;
use crate::model::checkpoint::{Checkpoint, IGNORED_KEYS, PRODUCER_KEY};
use crate::model::{CausalLm, LoadOptions};
use crate::quant::Scales;
use crate::task::Control;
use crate::train::corpus::{Corpus, Sequence};
use crate::train::curriculum::Curriculum;
use crate::train::memory::TrainingMemory;
use crate::train::optimizer::Optimizer;
pub use crate::train::run::TimeLimit;
use crate::train::run::{Event, Run, RunOptions, RunResult};
use crate::train::state::{StateFolder, write_tensors};
use crate::train::teacher::Teacher;
use crate::train::{Origin, Precision, Stored, TrainedModel};
pub use options::{StartCodes, TrainOptions};
use serde::Serialize;
use serde_json::{Map, Value, json};
use stages::StageResults;
use std::collections::BTreeMap;
use std::sync::Arc;
pub use texts::TrainingTexts;

/// Inputs of training.
pub struct TrainInputs<'a> {
    /// The origin of the parameters.
    pub origin: Origin<'a>,
    /// The model's config.json.
    pub config_json: &'a Value,
    /// Side files: tokenizer, template.
    pub files: &'a [(&'static str, Vec<u8>)],
    /// The model's name in messages.
    pub name: &'a str,
    /// Training data.
    pub corpus: &'a mut Corpus,
    /// Held-out data for choosing the best weights; may be empty.
    pub held_out: &'a [Sequence],
    /// The curriculum; `None`: all data from the start.
    pub curriculum: Option<Curriculum>,
    /// SHA-256 of weights, texts and teacher, to identify a saved state.
    pub sha256: String,
    /// The teacher.
    pub teacher: Option<&'a Checkpoint>,
}

/// Resources of the host.
#[derive(Clone, Copy)]
pub struct TrainContext<'a> {
    /// The output folder.
    pub target: &'a dyn SinkDir,
    /// The name of a GGUF output file.
    pub file: Option<&'a str>,
    /// The folder of the saved state.
    pub state: StateFolder<'a>,
    /// Scratch space for hidden states and GPTQ's results.
    pub scratch: &'a dyn Scratch,
    /// The time limit. Only runs without one are reproducible.
    pub limit: Option<TimeLimit<'a>>,
    /// Receives events.
    pub tell: &'a dyn Fn(Event),
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// The result of training.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    /// The result of the run.
    pub result: RunResult,
    /// The written output, if quantized.
    pub quantized: Option<QuantizeOutcome>,
    /// The memory plan.
    pub memory: TrainingMemory,
}

/// `training_record.json`, and the training section of a quantized folder's record.
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

    /// The training section of a quantized folder's record.
    fn within(&self) -> Map<String, Value> {
        Map::from_iter([("training".to_owned(), json!(self))])
    }
}

/// A trained model, to be written.
pub struct Learned<B: Train> {
    /// The best weights, or the last without held-out data.
    pub model: TrainedModel<B>,
    /// The result of the run.
    pub result: RunResult,
    /// The memory plan.
    pub memory: TrainingMemory,
    /// Parameters for the record.
    parameters: Map<String, Value>,
}

/// Preparations before any work.
struct Prepared {
    quantize: Option<QuantizeOptions>,
    precision: Precision,
    memory: TrainingMemory,
    /// Parameters for the record.
    parameters: Map<String, Value>,
    /// The key of everything that determines the result.
    key: String,
}

impl Prepared {
    async fn new(
        inputs: &TrainInputs<'_>,
        options: &TrainOptions,
        context: TrainContext<'_>,
    ) -> Result<Self> {
        if inputs.curriculum.is_some() && (options.schedule.steps == 0 || options.blocks.is_some()) {
            return Err(Error::invalid_argument(
                "block steps use all training data from the start; give no curriculum",
            ));
        }
        let quantize = options.quantize_options(context.file);
        let layout =
            quantize.as_ref().map_or(TargetLayout::CompressedTensors, QuantizeOptions::target_layout);
        context.place().refuse_foreign(layout).await?;
        if let (Some(quantize), Origin::Checkpoint(checkpoint)) = (&quantize, inputs.origin) {
            // A scheme without a layout is refused before any step.
            QuantizationPlan::new(checkpoint, quantize)?;
        }
        let precision = options.precision(inputs.origin)?;
        let (config, tokens) = (inputs.origin.config(), inputs.corpus.tokens());
        let memory = if options.schedule.steps == 0 {
            TrainingMemory::plan_block(config, &precision, options.capacity, tokens)
        } else {
            TrainingMemory::plan(config, &precision, options.capacity, tokens, inputs.teacher)?
        };
        memory.check_within(options.memory).context_with(|| inputs.name.to_owned())?;
        let mut parameters = options.parameters();
        parameters.insert("curriculum".into(), json!(inputs.curriculum.is_some()));
        let run = json!([env!("CARGO_PKG_VERSION"), inputs.sha256, parameters, options.evaluate_every]);
        Ok(Self { quantize, precision, memory, parameters, key: sha256_hex(run.to_string().as_bytes()) })
    }
}

/// Trains a model and writes it. `new_backend` creates backends for the model and for a teacher.
///
/// # Errors
/// `invalid_argument` for invalid options, a layout that cannot hold the result, and a teacher with another vocabulary;
/// `out_of_memory` for a run that needs more than the options allow; `non_finite` if losses are repeatedly NaN;
/// `cancelled`, after which the same call continues; errors of reading and writing.
pub async fn train<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    mut inputs: TrainInputs<'_>,
    options: &TrainOptions,
    context: TrainContext<'_>,
) -> Result<TrainOutcome> {
    let outcome = if options.schedule.steps == 0 {
        stages::blocks_alone(new_backend, &mut inputs, options, context).await?
    } else {
        learn(new_backend, &mut inputs, options, context).await?.write(&inputs, options, context).await?
    };
    context.state.clear().await?;
    context.state.clear_blocks(inputs.origin.config().num_hidden_layers).await?;
    Ok(outcome)
}

/// Trains a model. Its saved state is kept.
///
/// # Errors
/// As [`train`]'s.
pub async fn learn<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    inputs: &mut TrainInputs<'_>,
    options: &TrainOptions,
    context: TrainContext<'_>,
) -> Result<Learned<B>> {
    let prepared = Prepared::new(inputs, options, context).await?;
    let stages = StageResults::new(new_backend, inputs, options, &prepared, context).await?;
    let Prepared { quantize, precision, memory, mut parameters, key } = prepared;
    let TrainInputs { origin, name, teacher, .. } = *inputs;
    let made = TrainedModel::new(new_backend()?, stages.origin(origin), precision, options.capacity).await;
    let mut model = made.map_err(|error| error.within(name))?;
    if let (Some(quantize), Origin::Random { .. }) = (&quantize, origin) {
        QuantizationPlan::new(&stored(&mut model, inputs).await?.0, quantize)?;
    }
    if quantize.is_some() {
        stages.start().initialize(&mut model, options.learned_scales).await?;
        model.refresh_weights().await?;
    }
    drop(stages);
    let mut taught = match teacher {
        Some(checkpoint) => {
            let on = new_backend()?;
            let model = CausalLm::load(on, checkpoint, LoadOptions::default(), context.control).await?;
            Some(Teacher::new(model, options.capacity)?)
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
        curriculum: inputs.curriculum.as_ref(),
        state: context.state,
        limit: context.limit,
        options: RunOptions {
            loss_weights: options.loss_weights,
            schedule: options.schedule,
            accumulate: options.accumulate,
            seed: options.seed,
            evaluate_every: options.evaluate_every,
            keep_every: options.keep_every,
            key,
        },
    };
    let result = run.run(context.tell, context.control).await?;
    parameters.insert("steps_done".into(), json!(result.steps));
    if let Some(best) = result.best {
        parameters.insert("best_step".into(), json!(best.step));
        parameters.insert("held_out_loss".into(), json!(best.loss));
    }
    Ok(Learned { model, result, memory, parameters })
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
        context: TrainContext<'_>,
    ) -> Result<TrainOutcome> {
        let Self { mut model, result, memory, parameters } = self;
        let record = TrainingRecord::new(inputs, parameters);
        let place = context.place();
        let quantized = match options.quantize_options(context.file) {
            Some(quantize) => {
                let (checkpoint, scales) = stored(&mut model, inputs).await?;
                drop(model);
                let record = record.within();
                Some(write_trained(&checkpoint, &quantize, scales, record, &place, context.control).await?)
            }
            None => {
                write_dense(&mut model, inputs, &place, &record).await?;
                None
            }
        };
        Ok(TrainOutcome { result, quantized, memory })
    }
}

impl<'a> TrainContext<'a> {
    fn place(self) -> OutputPlace<'a> {
        OutputPlace { target: self.target, file: self.file }
    }
}

/// The configuration without keys about quantized weights and about its source folder, besides ignored ones.
fn of_masters(inputs: &TrainInputs<'_>) -> Value {
    let mut config = inputs.config_json.clone();
    if let Some(object) = config.as_object_mut() {
        object.shift_remove("quantization_config");
        object.insert(PRODUCER_KEY.to_owned(), json!({ IGNORED_KEYS: inputs.origin.ignored_keys() }));
    }
    config
}

/// The model as a checkpoint in memory, with master weights of quantized layers in `F32`, and their learned scales.
async fn stored<B: Train>(
    model: &mut TrainedModel<B>,
    inputs: &TrainInputs<'_>,
) -> Result<(Checkpoint, BTreeMap<String, Scales>)> {
    let folder = MemorySinkDir::new(inputs.name);
    let config = of_masters(inputs);
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
    Ok((Checkpoint::open(Arc::new(folder.to_dir())).await?, scales))
}

/// The metadata that transformers expects in a weight file.
fn pytorch() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Writes a folder of floating-point weights.
async fn write_dense<B: Train>(
    model: &mut TrainedModel<B>,
    inputs: &TrainInputs<'_>,
    place: &OutputPlace<'_>,
    record: &TrainingRecord<'_>,
) -> Result<()> {
    let folder = OutputFolder::begin(place.target, TRAINING_RECORD).await?;
    folder.write_config(inputs.config_json, &[], None, inputs.origin.ignored_keys()).await?;
    for (file, bytes) in inputs.files {
        folder.write(file, bytes).await?;
    }
    write_tensors(model, folder.create("model.safetensors").await?, pytorch()).await?;
    folder.finish(record).await
}
