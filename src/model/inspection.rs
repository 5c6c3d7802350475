//! A summary of a checkpoint, without loading its weights.

use super::checkpoint::Checkpoint;
use super::names::Linear;
use crate::error::Result;
use crate::layout::ModuleStorage;
use serde::Serialize;
use std::collections::BTreeMap;

/// A summary of a checkpoint: architecture, sizes, number formats.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The checkpoint's name in messages.
    pub path: String,
    /// Model family: `llama`, `qwen2`, ...
    pub architecture: &'static str,
    /// Number of weights and biases; a tied table counts once.
    pub parameters: u64,
    /// Bytes of all stored tensors.
    pub bytes: u64,
    /// The files that hold weights.
    pub files: Vec<String>,
    /// Number of stored tensors.
    pub tensors: usize,
    /// The layout of the weights.
    pub layout: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The longest context that the model supports.
    pub max_position_embeddings: usize,
    /// Whether the embedding is also the head.
    pub tie_word_embeddings: bool,
    /// Number of linear modules in the blocks by number format.
    pub linear_formats: BTreeMap<String, usize>,
    /// Warnings about how the checkpoint was interpreted.
    pub warnings: Vec<String>,
}

impl Inspection {
    /// Reads only the configuration and the headers.
    ///
    /// # Errors
    /// As [`Checkpoint::module`].
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.config();
        let mut linear_formats = BTreeMap::new();
        for layer in 0..config.num_hidden_layers {
            for linear in Linear::ALL {
                let format = match checkpoint.module(&linear.module(layer))? {
                    ModuleStorage::Dense { dtype, .. } => dtype.to_string(),
                    ModuleStorage::Packed { coding, .. } => coding.to_string(),
                };
                *linear_formats.entry(format).or_insert(0) += 1;
            }
        }
        Ok(Self {
            path: checkpoint.name().to_owned(),
            architecture: config.architecture.name(),
            parameters: config.parameter_count(),
            bytes: checkpoint.bytes(),
            files: checkpoint.store().files().iter().map(|file| file.name.clone()).collect(),
            tensors: checkpoint.store().names().count(),
            layout: checkpoint.layout().name(),
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            tie_word_embeddings: config.tie_word_embeddings,
            linear_formats,
            warnings: checkpoint.warnings().to_vec(),
        })
    }
}
