//! A checkpoint of any layout as one GGUF file.
//!
//! Packed modules keep their codes where a type of the format holds them; everything else is rounded by ggml's own rules to
//! the type that was asked for, or to `F16` where its width is no whole blocks. [`plan`] says so before anything is
//! written, [`write()`] measures what became of the weights. Floor 8.

mod model;

use crate::dtype::{DType, decode_f32};
use crate::error::{Context, Error, Result};
use crate::format::gguf::TensorType;
use crate::format::sink::SinkDir;
use crate::format::small_file::{read_file, read_json};
use crate::layout::ModuleStorage;
use crate::layout::gguf::{
    GgufOutput, GgufTensor, GgufTokenizer, block_type_of, can_quantize, check_config, decode_rows, encode,
    is_exact, quantize_rows, tokenizer_metadata,
};
use crate::model::Checkpoint;
use crate::model::names::{self, BlockNorm, Linear};
use crate::model::weights::{DenseRows, read_vector};
use crate::quant::{PackedTensor, dequantize};
use crate::task::{self, Control, Progress};
use serde_json::Value;

/// What the floating-point matrices become.
#[derive(Clone, Copy, Debug)]
pub struct GgufOptions {
    /// The linear layers of the blocks.
    pub linear: TensorType,
    /// The embedding, and the head where it has a table of its own.
    pub tables: TensorType,
}

/// How a matrix will be written.
#[derive(Clone, Debug)]
pub struct GgufModule {
    /// `model.layers.0.self_attn.q_proj`
    pub module: String,
    /// Its type in the file.
    pub tensor_type: TensorType,
    /// Why it is not exactly what the checkpoint holds; `None` where it is.
    pub reason: Option<String>,
    rows: usize,
    cols: usize,
    /// The module of the checkpoint.
    source: String,
    keeps_codes: bool,
}

/// What became of a matrix.
#[derive(Clone, Debug)]
pub struct GgufDifference {
    /// How it was written.
    pub plan: GgufModule,
    /// The largest distance of a weight in the file from the checkpoint's.
    pub max_abs_difference: f32,
}

/// What was written.
#[derive(Debug)]
pub struct GgufReport {
    /// Every matrix, in the order of the file.
    pub modules: Vec<GgufDifference>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Mean bits of a weight in the matrices that keep their codes; 0 without any.
    pub bits_per_weight: f64,
    /// Why the file has no tokenizer for llama.cpp, where it has none.
    pub tokenizer_problem: Option<Error>,
    /// Whether it carries tokenizer.json instead, for readers that look for it, as this crate does.
    pub carries_tokenizer_json: bool,
    /// Where readers of the file do something else than the checkpoint's tokenizer.
    pub notes: Vec<String>,
}

impl GgufReport {
    /// What a user should know about the file's tokenizer, a sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let problem = self.tokenizer_problem.as_ref().map(|problem| {
            let carried = "; it carries the tokenizer.json, which lowbit reads and llama.cpp does not";
            format!(
                "the file has no tokenizer: {problem}{}",
                if self.carries_tokenizer_json { carried } else { "" }
            )
        });
        problem.into_iter().chain(self.notes.iter().cloned()).collect()
    }
}

/// Whether a GGUF file can hold the model, whatever becomes of its weights.
///
/// # Errors
/// `unsupported_model` for what llama.cpp's decoder of the family does not do, naming it.
pub fn check(checkpoint: &Checkpoint) -> Result<()> {
    check_config(&model::config_json(checkpoint.config())).context_with(|| checkpoint.name().to_owned())
}

/// The type of each matrix of the checkpoint. Packed ones are read for that.
///
/// # Errors
/// `invalid_argument` for a type that is not made; [`check`]'s; whatever reading meets.
pub async fn plan(
    checkpoint: &Checkpoint,
    options: GgufOptions,
    control: &dyn Control,
) -> Result<Vec<GgufModule>> {
    for tensor_type in [options.linear, options.tables] {
        if !can_quantize(tensor_type) {
            return Err(Error::invalid_argument(format!("weights cannot be rounded to {tensor_type}")));
        }
    }
    check(checkpoint)?;
    let config = checkpoint.config();
    let mut wanted =
        vec![(names::EMBEDDING.to_owned(), checkpoint.embedding_module().to_owned(), options.tables)];
    if !config.tie_word_embeddings {
        wanted.push((names::HEAD.to_owned(), names::HEAD.to_owned(), options.tables));
    }
    for layer in 0..config.num_hidden_layers {
        for linear in Linear::ALL {
            wanted.push((linear.module(layer), linear.module(layer), options.linear));
        }
    }
    let mut modules = Vec::new();
    for (module, source, tensor_type) in wanted {
        task::checkpoint(control).await?;
        modules.push(plan_module(checkpoint, module, source, tensor_type).await?);
    }
    Ok(modules)
}

async fn plan_module(
    checkpoint: &Checkpoint,
    module: String,
    source: String,
    wanted: TensorType,
) -> Result<GgufModule> {
    let storage = checkpoint.module(&source)?;
    let (rows, cols) = storage.shape();
    let fallback = if wanted.row_bytes(cols as u64).is_some() { wanted } else { TensorType::F16 };
    let (tensor_type, keeps_codes, reason) = match storage {
        ModuleStorage::Packed { scheme, .. } => {
            let packed = read_packed(checkpoint, &source).await?;
            match block_type_of(&packed) {
                Some(kept) if is_exact(&packed) => (kept, true, None),
                Some(kept) => {
                    (kept, true, Some(format!("scales or minimums of {scheme} are rounded to halves")))
                }
                None => (fallback, false, Some(format!("no type holds the codes of {scheme} here"))),
            }
        }
        ModuleStorage::Dense { .. } if fallback != wanted => {
            (fallback, false, Some(format!("{cols} columns are no whole {wanted} blocks")))
        }
        ModuleStorage::Dense { dtype, .. } => {
            let rounded = (!holds(fallback, dtype)).then(|| format!("{dtype} weights are rounded"));
            (fallback, false, rounded)
        }
    };
    Ok(GgufModule { module, tensor_type, reason, rows, cols, source, keeps_codes })
}

async fn read_packed(checkpoint: &Checkpoint, module: &str) -> Result<PackedTensor> {
    let packed = checkpoint.layout().read_packed(checkpoint.store(), module).await;
    packed.context_with(|| format!("module `{module}`"))
}

/// Whether a type holds every value of a stored one.
fn holds(tensor_type: TensorType, dtype: DType) -> bool {
    tensor_type == TensorType::F32
        || matches!((tensor_type, dtype), (TensorType::F16, DType::F16) | (TensorType::BF16, DType::BF16))
}

/// Writes `file` as `modules`, which [`plan`] made of this checkpoint, say.
///
/// # Errors
/// `unsupported_model` for a family that llama.cpp does not run as this crate does; whatever reading and writing meet.
pub async fn write(
    checkpoint: &Checkpoint,
    modules: Vec<GgufModule>,
    target: &dyn SinkDir,
    file: &str,
    control: &dyn Control,
) -> Result<GgufReport> {
    let vectors = vectors(checkpoint);
    let mut tensors: Vec<GgufTensor> = modules
        .iter()
        .map(|plan| GgufTensor {
            name: format!("{}.weight", plan.module),
            tensor_type: plan.tensor_type,
            dims: vec![plan.rows as u64, plan.cols as u64],
        })
        .collect();
    tensors.extend(vectors.iter().map(|(name, len)| GgufTensor {
        name: name.clone(),
        tensor_type: TensorType::F32,
        dims: vec![*len as u64],
    }));
    let config_json = model::config_json(checkpoint.config());
    let (tokenizer, tokenizer_problem, notes) = match tokenizer(checkpoint, &config_json).await {
        Ok(GgufTokenizer { metadata, problem, notes }) => (Some(metadata), problem, notes),
        Err(problem) => (None, Some(problem), Vec::new()),
    };
    let carries_tokenizer_json =
        tokenizer.as_ref().is_some_and(|metadata| metadata.contains_key("tokenizer.huggingface.json"));
    let bytes = tensors
        .iter()
        .map(|tensor| {
            let (cols, rows) =
                tensor.dims.split_last().map_or((0, 1), |(&cols, rows)| (cols, rows.iter().product()));
            tensor.tensor_type.row_bytes(cols).unwrap_or(0) * rows
        })
        .sum();
    let (mut packed, mut weights) = (0, 0);
    for plan in modules.iter().filter(|plan| plan.keeps_codes) {
        packed += plan.tensor_type.row_bytes(plan.cols as u64).unwrap_or(0) * plan.rows as u64;
        weights += plan.rows as u64 * plan.cols as u64;
    }
    let bits_per_weight = packed as f64 * 8.0 / weights.max(1) as f64;
    let sink = target.create(file).await?;
    let mut output = GgufOutput::begin(sink, &config_json, tokenizer, &tensors)
        .await
        .context_with(|| checkpoint.name().to_owned())?;
    let total = modules.len() as u64;
    let mut written = Vec::new();
    for (done, plan) in modules.into_iter().enumerate() {
        control.progress(&Progress { phase: "write", done: done as u64, total, item: &plan.module });
        task::checkpoint(control).await?;
        let place = || format!("module `{}`", plan.module);
        let max_abs_difference = write_module(checkpoint, &plan, &mut output).await.context_with(place)?;
        written.push(GgufDifference { plan, max_abs_difference });
    }
    for (name, len) in vectors {
        let values = read_vector(checkpoint, &name, len).await?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        output.write(&name, &bytes).await?;
    }
    output.finish().await?;
    Ok(GgufReport {
        modules: written,
        bytes,
        bits_per_weight,
        tokenizer_problem,
        carries_tokenizer_json,
        notes,
    })
}

/// Norms and biases, and how long they are.
fn vectors(checkpoint: &Checkpoint) -> Vec<(String, usize)> {
    let config = checkpoint.config();
    let mut vectors = vec![(format!("{}.weight", names::FINAL_NORM), config.hidden_size)];
    for layer in 0..config.num_hidden_layers {
        let mut norms = vec![BlockNorm::Input, BlockNorm::PostAttention];
        if config.qk_norm {
            norms.extend([BlockNorm::Query, BlockNorm::Key]);
        }
        for norm in norms {
            vectors.push((format!("{}.weight", norm.module(layer)), norm.width(config)));
        }
        for linear in Linear::ALL.into_iter().filter(|linear| linear.has_bias(config)) {
            vectors.push((format!("{}.bias", linear.module(layer)), linear.shape(config).0));
        }
    }
    vectors
}

async fn tokenizer(checkpoint: &Checkpoint, config_json: &Value) -> Result<GgufTokenizer> {
    if let Some(problem) = checkpoint.tokenizer_problem() {
        return Err(problem.clone());
    }
    let dir = checkpoint.dir().as_ref();
    let Some(bytes) = read_file(dir, "tokenizer.json").await? else {
        return Err(Error::new(
            crate::error::ErrorCode::NotFound,
            format!("{}: expected a tokenizer.json but found none", dir.name()),
        ));
    };
    let empty = || Value::Object(serde_json::Map::new());
    let mut config = read_json(dir, "tokenizer_config.json").await?.unwrap_or_else(empty);
    if let (Some(bytes), Some(config)) =
        (read_file(dir, "chat_template.jinja").await?, config.as_object_mut())
    {
        config
            .insert("chat_template".to_owned(), Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(tokenizer_metadata(&bytes, &config, config_json))
}

/// Writes one matrix; the largest difference that it makes.
async fn write_module(checkpoint: &Checkpoint, plan: &GgufModule, output: &mut GgufOutput) -> Result<f32> {
    let name = format!("{}.weight", plan.module);
    if let ModuleStorage::Packed { .. } = checkpoint.module(&plan.source)? {
        let packed = read_packed(checkpoint, &plan.source).await?;
        return write_packed(&packed, plan, &name, output).await;
    }
    let mut rows = DenseRows::new(checkpoint, &plan.source)?;
    let mut largest = 0f32;
    let mut bytes = Vec::new();
    while let Some((_, values)) = rows.next().await? {
        bytes.clear();
        quantize_rows(plan.tensor_type, values, &mut bytes)?;
        largest = largest.max(difference(plan, values, &bytes)?);
        output.write(&name, &bytes).await?;
    }
    Ok(largest)
}

async fn write_packed(
    packed: &PackedTensor,
    plan: &GgufModule,
    name: &str,
    output: &mut GgufOutput,
) -> Result<f32> {
    if plan.keeps_codes {
        let bytes = encode(packed)?;
        let row_bytes = bytes.len() / plan.rows;
        let mut largest = 0f32;
        if !is_exact(packed) {
            let mut row = vec![0.0; plan.cols];
            for (index, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                dequantize::rows(packed, index..index + 1, &mut row);
                largest = largest.max(difference(plan, &row, bytes)?);
            }
        }
        output.write(name, &bytes).await?;
        return Ok(largest);
    }
    let mut largest = 0f32;
    let (mut row, mut bytes) = (vec![0.0; plan.cols], Vec::new());
    for index in 0..plan.rows {
        dequantize::rows(packed, index..index + 1, &mut row);
        bytes.clear();
        quantize_rows(plan.tensor_type, &row, &mut bytes)?;
        largest = largest.max(difference(plan, &row, &bytes)?);
        output.write(name, &bytes).await?;
    }
    Ok(largest)
}

/// The largest distance of a weight from the one that a reader of `bytes` sees.
fn difference(plan: &GgufModule, values: &[f32], bytes: &[u8]) -> Result<f32> {
    let mut read = vec![0.0; values.len()];
    match plan.tensor_type {
        TensorType::F32 => decode_f32(DType::F32, bytes, &mut read)?,
        TensorType::F16 => decode_f32(DType::F16, bytes, &mut read)?,
        TensorType::BF16 => decode_f32(DType::BF16, bytes, &mut read)?,
        tensor_type => decode_rows(tensor_type, plan.cols, bytes, &mut read)?,
    }
    Ok(values.iter().zip(&read).fold(0.0, |largest: f32, (value, read)| largest.max((value - read).abs())))
}
