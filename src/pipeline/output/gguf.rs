//! Metadata and tensor list of a GGUF file.
//!
//! Packed matrices keep their codes if a GGUF type holds them. Other matrices are rounded by ggml's rules to
//! the requested type, or to `F16` if rows are not whole blocks. Norms and biases are `F32`.

mod model;

use super::{Form, OutputPlan, Tensor};
use crate::dtype::DType;
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::gguf::TensorType;
use crate::format::safetensors::TensorInfo;
use crate::format::sink::ByteSink;
use crate::format::small_file::{read_file, read_json};
use crate::layout::ModuleStorage;
use crate::layout::gguf::{GgufOutput, GgufTensor, GgufTokenizer, check_config, tokenizer_metadata};
use crate::model::Checkpoint;
use crate::model::names::{self, BlockNorm, Linear};
use crate::model::weights::vector_type;
use serde_json::Value;

/// The default file name.
pub(super) const FILE: &str = "model.gguf";

/// The outcome for the checkpoint's tokenizer.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct FileTokenizer {
    /// The reason why the file has no tokenizer for llama.cpp.
    pub problem: Option<Error>,
    /// Notes for users, one sentence each.
    pub remarks: Vec<String>,
}

/// Checks that a GGUF file can hold the model, apart from its weights.
///
/// # Errors
/// `unsupported_model` for settings that llama.cpp's decoder of the family does not implement.
pub(in crate::pipeline) fn check(checkpoint: &Checkpoint) -> Result<()> {
    check_config(&model::config_json(checkpoint.config())).context_with(|| checkpoint.name().to_owned())
}

/// The matrices of a file in order, with their source modules. An untied head takes the
/// table from the embedding.
pub(in crate::pipeline) fn matrices(checkpoint: &Checkpoint, unties: bool) -> Vec<(String, String)> {
    let config = checkpoint.config();
    let table = checkpoint.embedding_module().to_owned();
    let head = if config.tie_word_embeddings { table.clone() } else { names::HEAD.to_owned() };
    let mut matrices = vec![(names::EMBEDDING.to_owned(), table)];
    if unties || !config.tie_word_embeddings {
        matrices.push((names::HEAD.to_owned(), head));
    }
    for layer in 0..config.num_hidden_layers {
        matrices.extend(Linear::ALL.map(|linear| (linear.module(layer), linear.module(layer))));
    }
    matrices
}

/// A floating-point matrix in the form `wanted` if its rows are whole blocks of it. Returns also the loss, in words.
///
/// # Errors
/// As [`Checkpoint::master`].
pub(in crate::pipeline) fn copied(
    checkpoint: &Checkpoint,
    module: &str,
    source: &str,
    wanted: TensorType,
) -> Result<(Tensor, Option<String>)> {
    let ModuleStorage::Dense { tensor, dtype, rows, cols } = checkpoint.master(source)? else {
        let message = format!("module `{source}`: expected floating-point weights");
        return Err(Error::invalid_argument(message));
    };
    let (form, narrow) = form(wanted, cols);
    let exact = form == Form::Plain(dtype) || form == Form::Plain(DType::F32);
    let reason = narrow.or_else(|| (!exact).then(|| format!("{dtype} weights are rounded")));
    let loss = reason.map(|reason| format!("{} ({reason})", form.name()));
    let name = format!("{module}.weight");
    Ok((Tensor::copied(&name, form.info(rows, cols), form, &tensor, false), loss))
}

/// The form of rows with `cols` columns, and the reason if it is not the `wanted` one.
pub(in crate::pipeline) fn form(wanted: TensorType, cols: usize) -> (Form, Option<String>) {
    match wanted.row_bytes(cols as u64) {
        Some(_) => (wanted.into(), None),
        None => (Form::Plain(DType::F16), Some(format!("{cols} columns are not whole {wanted} blocks"))),
    }
}

/// Norms and biases.
///
/// # Errors
/// `invalid_checkpoint` for a wrong shape; `unsupported_format` for another type.
pub(in crate::pipeline) fn vectors(checkpoint: &Checkpoint) -> Result<Vec<Tensor>> {
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
    let planned = |(name, len): (String, usize)| {
        vector_type(checkpoint, &name, len)?;
        let info = TensorInfo::new(DType::F32, [len as u64]);
        Ok(Tensor::copied(&name, info, Form::Plain(DType::F32), &name, false))
    };
    vectors.into_iter().map(planned).collect()
}

/// Writes the header of a file.
pub(super) async fn begin(
    plan: &OutputPlan,
    checkpoint: &Checkpoint,
    sink: Box<dyn ByteSink>,
) -> Result<(GgufOutput, FileTokenizer)> {
    let mut config_json = model::config_json(checkpoint.config());
    for (key, value) in &plan.changes {
        config_json[key] = value.clone();
    }
    let found = tokenizer(checkpoint, &config_json).await;
    let (tokenizer, problem, mut remarks) = match found {
        Ok(GgufTokenizer { metadata, problem, notes }) => (Some(metadata), problem, notes),
        Err(problem) => (None, Some(problem), Vec::new()),
    };
    if let Some(problem) = &problem {
        let carries =
            tokenizer.as_ref().is_some_and(|tokens| tokens.contains_key("tokenizer.huggingface.json"));
        let carried = "; it carries the tokenizer.json, which lowbit reads and llama.cpp does not";
        let carried = if carries { carried } else { "" };
        remarks.insert(0, format!("the file has no tokenizer: {problem}{carried}"));
    }
    let tensors: Vec<GgufTensor> = plan.tensors.iter().map(described).collect();
    let output = GgufOutput::begin(sink, &config_json, tokenizer, &tensors).await;
    Ok((output.context_with(|| checkpoint.name().to_owned())?, FileTokenizer { problem, remarks }))
}

/// A tensor in GGUF's terms.
fn described(tensor: &Tensor) -> GgufTensor {
    let mut dims = tensor.info.shape.dims().to_vec();
    let tensor_type = match tensor.form {
        Form::Blocks(blocks) => {
            if let Some(width) = dims.last_mut() {
                *width = *width / blocks.block_bytes() * blocks.block_elements();
            }
            blocks
        }
        Form::Plain(DType::F16) => TensorType::F16,
        Form::Plain(DType::BF16) => TensorType::BF16,
        Form::Plain(_) => TensorType::F32,
    };
    GgufTensor { name: tensor.name.clone(), tensor_type, dims }
}

async fn tokenizer(checkpoint: &Checkpoint, config_json: &Value) -> Result<GgufTokenizer> {
    if let Some(problem) = checkpoint.tokenizer_problem() {
        return Err(problem.clone());
    }
    let dir = checkpoint.dir().as_ref();
    let Some(bytes) = read_file(dir, "tokenizer.json").await? else {
        let message = format!("{}: expected a tokenizer.json but found none", dir.name());
        return Err(Error::new(ErrorCode::NotFound, message));
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
