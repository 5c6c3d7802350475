//! Stages before end-to-end training: GPTQ's codes, and training of single blocks.

use super::{
    Prepared, StartCodes, TrainContext, TrainInputs, TrainOptions, TrainOutcome, TrainingRecord, of_masters,
};
use crate::backend::Train;
use crate::calibrate::Samples;
use crate::error::{Error, Result};
use crate::format::safetensors::{SafetensorsWriter, TensorInfo};
use crate::format::sink::{MemorySinkDir, SinkDir, write_whole};
use crate::format::source::{ByteSource, MemoryDir, SourceDir};
use crate::model::names;
use crate::model::{Checkpoint, ModelConfig};
use crate::pipeline::calibrated::Calibration;
use crate::pipeline::quantize::{quantize_calibrated, write_trained};
use crate::pipeline::select::QuantizeOptions;
use crate::quant::{Method, Scales, Scheme};
use crate::task::BoxFuture;
use crate::train::Origin;
use crate::train::blocks::{BlockByBlock, BlockOptions};
use crate::train::corpus::{Corpus, Position, Sequence};
use crate::train::run::{Event, RunResult};
use crate::train::start::Start;
use crate::train::state::StateFolder;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Largest number of GPTQ's calibration windows.
const MOST_WINDOWS: usize = 512;

/// The result of the stages before end-to-end training.
#[derive(Default)]
pub(super) struct StageResults {
    codes: Option<Checkpoint>,
    blocks: Option<Blocks>,
}

/// A checkpoint with trained blocks.
struct Blocks {
    checkpoint: Checkpoint,
    /// Learned scales by module name.
    scales: BTreeMap<String, Vec<f32>>,
}

impl StageResults {
    /// Runs the stages, unless end-to-end training has a saved state, which replaces them.
    ///
    /// # Errors
    /// `invalid_argument` for a model with random weights; errors of GPTQ and training.
    pub(super) async fn new<B: Train>(
        new_backend: &dyn Fn() -> Result<B>,
        inputs: &mut TrainInputs<'_>,
        options: &TrainOptions,
        prepared: &Prepared,
        context: TrainContext<'_>,
    ) -> Result<Self> {
        let mut stages = Self::default();
        let Origin::Checkpoint(checkpoint) = inputs.origin else {
            if options.start == Some(StartCodes::Gptq) || options.blocks.is_some() {
                return Err(Error::invalid_argument(
                    "GPTQ and block steps need a checkpoint with weights, but the model is new",
                ));
            }
            return Ok(stages);
        };
        if context.state.has_begun().await? {
            return Ok(stages);
        }
        if options.start() == StartCodes::Gptq {
            stages.codes = Some(gptq(new_backend, checkpoint, inputs.corpus, options, context).await?);
        }
        if let Some(schedule) = options.blocks {
            let most = usize::try_from(schedule.steps).unwrap_or(usize::MAX);
            let texts = batches(inputs.corpus, options, most)?;
            let (learned_scales, optimizer) = (options.learned_scales, options.optimizer);
            let on = (checkpoint, prepared.precision);
            let how = BlockOptions { schedule, optimizer, learned_scales };
            let kept = (context.state, prepared.key.clone());
            let mut run = BlockByBlock::begin(
                new_backend()?,
                on,
                (&texts, options.capacity),
                how,
                context.scratch,
                kept,
            )
            .await?;
            for _ in 0..checkpoint.config().num_hidden_layers {
                (context.tell)(Event::Block(run.train(stages.start(), context.control).await?));
            }
            run.end().await?;
            stages.blocks = Some(Blocks::open(checkpoint, inputs, context.state, &prepared.key).await?);
        }
        Ok(stages)
    }

    /// The initial codes of layers.
    pub(super) fn start(&self) -> Start<'_> {
        match (&self.blocks, &self.codes) {
            (Some(blocks), _) => Start::Scales(&blocks.scales),
            (None, Some(codes)) => Start::Codes(codes),
            (None, None) => Start::Nearest,
        }
    }

    /// The origin of end-to-end training.
    pub(super) fn origin<'a>(&'a self, origin: Origin<'a>) -> Origin<'a> {
        self.blocks.as_ref().map_or(origin, |blocks| Origin::Checkpoint(&blocks.checkpoint))
    }
}

/// Trains blocks and writes the result without loading the whole model.
///
/// # Errors
/// As [`train`](super::train).
pub(super) async fn blocks_alone<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    inputs: &mut TrainInputs<'_>,
    options: &TrainOptions,
    context: TrainContext<'_>,
) -> Result<TrainOutcome> {
    let prepared = Prepared::new(inputs, options, context).await?;
    let stages = StageResults::new(new_backend, inputs, options, &prepared, context).await?;
    let Prepared { quantize, precision, memory, parameters, .. } = prepared;
    let (Some(quantize), Some(Blocks { checkpoint, scales })) = (quantize, stages.blocks) else {
        return Err(Error::invalid_argument("expected steps to train, end-to-end or of blocks"));
    };
    let mut stored = BTreeMap::new();
    for (module, values) in scales {
        let mut scales = Scales::with_capacity(precision.scale_type, values.len());
        for value in values {
            scales.push(precision.scale_type.round(value)?);
        }
        stored.insert(module, scales);
    }
    let record = TrainingRecord::new(inputs, parameters).within();
    let place = context.place();
    let quantized = write_trained(&checkpoint, &quantize, stored, record, &place, context.control).await?;
    let result = RunResult { steps: 0, tokens: 0, first: None, best: None };
    Ok(TrainOutcome { result, quantized: Some(quantized), memory })
}

/// Quantizes a checkpoint with GPTQ on the training texts.
async fn gptq<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    checkpoint: &Checkpoint,
    corpus: &mut Corpus,
    options: &TrainOptions,
    context: TrainContext<'_>,
) -> Result<Checkpoint> {
    let Some(bits) = options.bits else {
        return Err(Error::invalid_argument("GPTQ finds codes of 2, 3, 4 or 8 bits; give bits"));
    };
    let TrainOptions { granularity, activations, memory, capacity, .. } = *options;
    let rows = capacity.tokens / capacity.context;
    let windows = batches(corpus, options, MOST_WINDOWS.div_ceil(rows))?.into_iter().flatten();
    let windows = windows.take(MOST_WINDOWS).map(|sequence| sequence.tokens).collect();
    let samples = Samples::of(windows);
    let quantize = QuantizeOptions {
        activations,
        memory,
        ..QuantizeOptions::new(Method::Gptq, Scheme::symmetric(bits, granularity))
    };
    let folder = MemorySinkDir::new(format!("GPTQ of {}", checkpoint.name()));
    let calibration = Calibration { samples: &samples, new_backend, scratch: context.scratch };
    quantize_calibrated(checkpoint, &quantize, calibration, &folder, context.control).await?;
    Checkpoint::open(Arc::new(folder.to_dir())).await
}

/// The first batches of the texts, each once, at most `most`.
fn batches(corpus: &mut Corpus, options: &TrainOptions, most: usize) -> Result<Vec<Vec<Sequence>>> {
    let (mut position, mut all) = (Position::default(), Vec::new());
    while position.epoch == 0 && all.len() < most {
        let (batch, next) = corpus.batch(options.seed, position, options.capacity.tokens)?;
        all.push(batch);
        position = next;
    }
    Ok(all)
}

impl Blocks {
    /// Opens saved blocks, with everything else from the source.
    async fn open(
        checkpoint: &Checkpoint,
        inputs: &TrainInputs<'_>,
        state: StateFolder<'_>,
        key: &str,
    ) -> Result<Self> {
        let rest = MemorySinkDir::new(checkpoint.name());
        let config = of_masters(inputs);
        write_whole(&rest, "config.json", config.to_string().as_bytes()).await?;
        for (file, bytes) in inputs.files {
            write_whole(&rest, file, bytes).await?;
        }
        copy_ends(checkpoint, &rest).await?;
        let (mut files, mut scales) = (vec![REST.to_owned()], BTreeMap::new());
        for layer in 0..checkpoint.config().num_hidden_layers {
            files.push(StateFolder::block_file(layer));
            for (tensor, values) in state.block_scales(layer, key).await? {
                scales.insert(tensor.trim_end_matches(".weight").to_owned(), values);
            }
        }
        // Only the file names are needed, because the files describe their tensors.
        let map =
            Map::from_iter(files.into_iter().enumerate().map(|(n, file)| (n.to_string(), Value::from(file))));
        let index = json!({ "weight_map": map });
        write_whole(&rest, "model.safetensors.index.json", index.to_string().as_bytes()).await?;
        let folder = Layered { upper: rest.to_dir(), lower: state.0.existing() };
        Ok(Self { checkpoint: Checkpoint::open(Arc::new(folder)).await?, scales })
    }
}

/// The file of all tensors outside blocks.
const REST: &str = "rest.safetensors";

/// Copies all tensors outside blocks.
async fn copy_ends(checkpoint: &Checkpoint, to: &dyn SinkDir) -> Result<()> {
    let (store, config) = (checkpoint.store(), checkpoint.config());
    let is_outside = |name: &&str| !is_in_block(name, config);
    let mut infos: Vec<(String, TensorInfo)> = Vec::new();
    for name in store.names().filter(is_outside) {
        infos.push((name.to_owned(), store.require(name)?.clone()));
    }
    let mut writer = SafetensorsWriter::begin(to.create(REST).await?, infos, BTreeMap::new()).await?;
    for name in writer.order().to_vec() {
        writer.write(&name, &store.read(&name).await?).await?;
    }
    writer.finish().await
}

fn is_in_block(tensor: &str, config: &ModelConfig) -> bool {
    (0..config.num_hidden_layers).any(|layer| tensor.starts_with(&names::block(layer)))
}

/// A folder overlaid on another.
struct Layered {
    upper: MemoryDir,
    lower: Arc<dyn SourceDir>,
}

impl SourceDir for Layered {
    fn name(&self) -> &str {
        self.upper.name()
    }

    fn open<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Option<Arc<dyn ByteSource>>>> {
        Box::pin(async move {
            match self.upper.open(file).await? {
                Some(source) => Ok(Some(source)),
                None => self.lower.open(file).await,
            }
        })
    }
}
