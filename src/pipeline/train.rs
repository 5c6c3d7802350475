//! Trains a model and writes it, as floating point or as the codes that it was trained to have.
//!
//! What is written is what ran: the same codes, the same rounded tables and norms. Not here: steps and states (`train`), how a folder is
//! written (`output`).

mod options;
mod stages;

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
use crate::model::checkpoint::{Checkpoint, PRODUCER_KEY};
use crate::model::{CausalLm, LoadOptions};
use crate::quant::Scales;
use crate::task::Control;
use crate::train::corpus::{Corpus, Sequence};
use crate::train::curriculum::Curriculum;
use crate::train::memory::TrainingMemory;
use crate::train::optimizer::Optimizer;
pub use crate::train::run::TimeLimit;
use crate::train::run::{Ended, Event, Run, RunOptions};
use crate::train::state::{StateFolder, write_tensors};
use crate::train::teacher::Teacher;
use crate::train::{Origin, Precision, Stored, TrainedModel};
pub use options::{StartCodes, TrainOptions};
use serde::Serialize;
use serde_json::{Map, Value, json};
use stages::Begun;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// In what order what is learned from is taken up; `None`: all at once.
    pub curriculum: Option<Curriculum>,
    /// SHA-256 of what weights, texts and teacher are, for a state that is gone on from.
    pub sha256: String,
    /// Whose predictions are learned.
    pub teacher: Option<&'a Checkpoint>,
}

/// What the work needs from outside.
#[derive(Clone, Copy)]
pub struct TrainContext<'a> {
    /// The folder to write into.
    pub target: &'a dyn SinkDir,
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
        context: TrainContext<'_>,
    ) -> Result<Self> {
        if inputs.curriculum.is_some() && (options.schedule.steps == 0 || options.blocks.is_some()) {
            return Err(Error::invalid_argument(
                "blocks that are trained alone see what is learned from all at once; give no curriculum",
            ));
        }
        let quantize = options.quantize_options(context.file);
        let layout =
            quantize.as_ref().map_or(TargetLayout::CompressedTensors, QuantizeOptions::target_layout);
        context.place().refuse_foreign(layout).await?;
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
        let mut parameters = options.parameters();
        parameters.insert("curriculum".into(), json!(inputs.curriculum.is_some()));
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

/// Trains a model. Its state stays where it was kept.
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
    let begun = Begun::new(new_backend, inputs, options, &prepared, context).await?;
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
            let model = CausalLm::load(on, checkpoint, LoadOptions::default(), context.control).await?;
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
        curriculum: inputs.curriculum.as_ref(),
        state: context.state,
        limit: context.limit,
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
    let ended = run.run(context.tell, context.control).await?;
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
        context: TrainContext<'_>,
    ) -> Result<TrainOutcome> {
        let Self { mut model, ended, memory, parameters } = self;
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
        Ok(TrainOutcome { ended, quantized, memory })
    }
}

impl<'a> TrainContext<'a> {
    fn place(self) -> OutputPlace<'a> {
        OutputPlace { target: self.target, file: self.file }
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
    Ok((Checkpoint::open(Arc::new(folder.to_dir())).await?, scales))
}

/// What metadata transformers asks of a file of weights.
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
    folder.write_config(inputs.config_json, &[], None).await?;
    for (file, bytes) in inputs.files {
        folder.write(file, bytes).await?;
    }
    write_tensors(model, folder.create("model.safetensors").await?, pytorch()).await?;
    folder.finish(record).await
}
