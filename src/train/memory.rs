//! The memory of a training run, computed before it starts.
//!
//! For each parameter: its master, its gradient, the optimizer's two means and the running weight. For each token: the
//! hidden states between blocks, the saved block activations, those of one block in the backward pass, and the logits
//! with their derivatives.

use super::activations::{count, elements};
use super::{BatchCapacity, MasterType, Precision};
use crate::backend::cpu::split_bytes;
use crate::error::{Error, ErrorCode, Result};
use crate::model::names::Linear;
use crate::model::runner::{cache_bytes, working_bytes};
use crate::model::{Checkpoint, ModelConfig};
use serde::Serialize;

const F32: u64 = 4;

/// The process with a tokenizer and a checkpoint open. Measured: 15 MB.
const PROCESS_BYTES: u64 = 15 << 20;

/// Encoding a text, per token; most of it stays with the allocator. Measured: 235 bytes.
const ENCODED_BYTES: u64 = 235;

/// Bytes of a training run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// Masters, gradients, and the optimizer's means.
    pub parameter_bytes: u64,
    /// The running weights: codes, tables, norms.
    pub weight_bytes: u64,
    /// Hidden states, activations and derivatives of blocks, logits.
    pub activation_bytes: u64,
    /// The teacher, with its KV cache and logits.
    pub teacher_bytes: u64,
    /// The text, and the memory of encoding it.
    pub text_bytes: u64,
    /// The sum, and what the process takes.
    pub peak_bytes: u64,
}

impl TrainingMemory {
    /// The plan for training a whole model.
    ///
    /// # Errors
    /// Errors of the teacher's layout.
    pub fn plan(
        config: &ModelConfig,
        precision: &Precision,
        capacity: BatchCapacity,
        text_tokens: u64,
        teacher: Option<&Checkpoint>,
    ) -> Result<Self> {
        let parameters = config.parameter_count();
        let layers = config.num_hidden_layers as u64;
        let in_blocks: u64 =
            Linear::ALL.iter().map(|linear| area(linear.shape(config))).sum::<u64>() * layers;
        let master = if precision.master == MasterType::Half { 2 } else { F32 };
        let float = precision.float.map_or(F32, |dtype| dtype.size() as u64);
        let (mut weight_bytes, mut decoded) = (parameters * float, 0);
        if let Some(scheme) = precision.scheme {
            let bits = u64::from(scheme.storage_bits()).next_power_of_two();
            let scales: u64 = Linear::ALL
                .iter()
                .map(|linear| linear.shape(config))
                .map(|(rows, cols)| scheme.granularity().scale_count(rows, cols) as u64)
                .sum();
            // Scales run in F32.
            weight_bytes = (parameters - in_blocks) * float + in_blocks * bits / 8 + scales * layers * F32;
            decoded = Linear::ALL.iter().map(|linear| area(linear.shape(config))).max().unwrap_or(0) * F32;
        }
        let table = (config.vocab_size * config.hidden_size) as u64;
        if float < F32 {
            decoded = decoded.max(table * F32);
        }
        let tokens = capacity.tokens as u64;
        let hidden = config.hidden_size as u64;
        let vocabulary = config.vocab_size as u64;
        let qkv = config.attention_shape(0).qkv_width() as u64;
        let attended = (config.num_attention_heads * config.head_dim) as u64;
        let inner = config.intermediate_size as u64;
        let kept = count(config, capacity.tokens, config.num_hidden_layers) as u64;
        // The runner's activations with keys and values, those saved, and the inputs of all blocks.
        let forward = elements(config) as u64 * (1 + kept) + hidden * (2 * kept + layers + 2);
        let back = 2 * hidden + attended + 3 * inner + qkv + 2 * hidden;
        let rounded = if precision.scheme.is_some() { inner.max(attended).max(hidden) } else { 0 };
        // Logits and their derivatives, and a teacher's logits twice: as it returns them and on the device.
        let heads = if teacher.is_some() { 4 } else { 2 };
        let products = split_bytes(capacity.tokens, inner.max(attended).max(hidden) as usize) as u64;
        let activation_bytes =
            tokens * F32 * (forward + back + rounded + heads * vocabulary) + decoded + products;
        let teacher_bytes = teacher.map_or(0, |teacher| {
            let config = teacher.config();
            teacher.bytes() + cache_bytes(config, capacity.tokens) + working_bytes(config)
        });
        let parameter_bytes = parameters * (master + 3 * F32);
        let text_bytes = text_tokens * ENCODED_BYTES;
        let parts = [parameter_bytes, weight_bytes, activation_bytes, teacher_bytes, text_bytes];
        let peak_bytes = PROCESS_BYTES + parts.iter().sum::<u64>();
        Ok(Self { parameter_bytes, weight_bytes, activation_bytes, teacher_bytes, text_bytes, peak_bytes })
    }

    /// The plan for training blocks one after another.
    pub fn plan_block(
        config: &ModelConfig,
        precision: &Precision,
        capacity: BatchCapacity,
        text_tokens: u64,
    ) -> Self {
        let in_block: u64 = Linear::ALL.iter().map(|linear| area(linear.shape(config))).sum();
        let largest = Linear::ALL.iter().map(|linear| area(linear.shape(config))).max().unwrap_or(0);
        let master = if precision.master == MasterType::Half { 2 } else { F32 };
        let tables = config.parameter_count() - in_block * config.num_hidden_layers as u64;
        let (tokens, hidden) = (capacity.tokens as u64, config.hidden_size as u64);
        let inner = config.intermediate_size as u64;
        let attended = (config.num_attention_heads * config.head_dim) as u64;
        let qkv = config.attention_shape(0).qkv_width() as u64;
        let back = 2 * hidden + attended + 3 * inner + qkv;
        let widest = inner.max(attended).max(hidden);
        let products = split_bytes(capacity.tokens, widest as usize) as u64;
        let host = 4 * hidden + widest;
        let activation_bytes =
            tokens * F32 * (elements(config) as u64 + back + host) + largest * F32 + products;
        let parameter_bytes = in_block * (master + 3 * F32);
        // The running block or the original's, and in F32 everything outside blocks.
        let weight_bytes = in_block * F32 + tables * F32;
        let text_bytes = text_tokens * ENCODED_BYTES;
        let peak_bytes = PROCESS_BYTES + parameter_bytes + weight_bytes + activation_bytes + text_bytes;
        Self { parameter_bytes, weight_bytes, activation_bytes, teacher_bytes: 0, text_bytes, peak_bytes }
    }

    /// Refuses a run that needs more than `limit`.
    ///
    /// # Errors
    /// `out_of_memory`, with both numbers.
    pub fn check_within(&self, limit: Option<u64>) -> Result<()> {
        match limit {
            Some(limit) if self.peak_bytes > limit => Err(Error::new(
                ErrorCode::OutOfMemory,
                format!(
                    "training needs about {} bytes but {limit} are allowed; use fewer tokens per batch, or masters of half \
                     precision",
                    self.peak_bytes
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn area((rows, cols): (usize, usize)) -> u64 {
    rows as u64 * cols as u64
}
