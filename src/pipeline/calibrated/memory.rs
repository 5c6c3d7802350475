//! The peak memory of a calibrated run, computed before it starts.
//!
//! For each input of a block this is the sum of what is held at once on the CPU backend. The peak is the largest sum:
//!
//! - the block: stored weights, with quantized layers as the backend holds them; a second copy if
//!   the samples also run through the original; and its stored bytes, so that the source is read
//!   once, unless the run fits its limit only without them;
//! - statistics: second moments of the input, and derived matrices (GPTQ: for each group size a factor and
//!   the damped matrix, and the drift from the original's inputs; AWQ: a triangle, and blocks for clipping);
//! - rows being quantized, and the packed matrices of the input;
//! - working memory: hidden states of a batch of tokens, keys and values of one block, the samples' tokens.
//!
//! Everything else, including the process, is one small constant, plus one heap gap as large as the largest matrix of
//! statistics (fragmentation). Other hidden states and finished matrices are in scratch. The memory of inference is in
//! `plan`.

use super::statistics;
use crate::backend::cpu::split_bytes;
use crate::calibrate::Samples;
use crate::calibrate::moments::gram_columns;
use crate::error::{Error, ErrorCode, Result};
use crate::layout::ModuleStorage;
use crate::model::block::{LinearInput, elements_per_token};
use crate::model::names::{self, Linear};
use crate::model::runner::chunk_tokens;
use crate::model::weights::{CHUNK_BYTES, MIN_CHUNK_BYTES};
use crate::model::{Checkpoint, ModelConfig};
use crate::parallel;
use crate::pipeline::select::{Method, ModulePlan, QuantizeOptions};
use crate::plan::memory::packed_bytes;
use crate::quant::Scheme;
use crate::quant::row_queue::rows_at_once;
use serde::Serialize;

const F32: u64 = 4;

/// Memory of an idle process, and of small allocations that are not counted. Measured: 10 to
/// 14 MB for the smallest models. In WebAssembly only the module's memory counts.
const PROCESS_BYTES: u64 = if cfg!(target_arch = "wasm32") { 3 << 20 } else { 12 << 20 };

/// Allocators keep freed allocations up to this size. Larger ones return to the system, except in
/// WebAssembly.
const LARGEST_KEPT: Option<u64> = if cfg!(target_arch = "wasm32") { None } else { Some(32 << 20) };

/// GPTQ's bytes for each weight being quantized: its value in the stored order and in the factor's order, errors of
/// both roundings, their effect on other columns, and two codes.
const GPTQ_WEIGHT_BYTES: u64 = 7 * F32 + 2;
/// The same for AWQ: its value, its rounded value, the error, and a code.
const AWQ_WEIGHT_BYTES: u64 = 3 * F32 + 1;

/// Memory of a calibrated run in bytes. All fields but the last two are taken at the peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CalibrationMemory {
    /// The weights of one block.
    pub block_bytes: u64,
    /// Second moments of inputs, and derived matrices.
    pub statistics_bytes: u64,
    /// Rows being quantized, and packed matrices.
    pub rows_bytes: u64,
    /// Hidden states of one batch of tokens, keys and values, tokens.
    pub working_bytes: u64,
    /// The sum, with the process's own memory and a heap gap.
    pub peak_bytes: u64,
    /// Scratch space: hidden states of all samples, and finished matrices.
    pub scratch_bytes: u64,
    /// Whether the stored bytes of a block are kept, as a part of `block_bytes`.
    #[serde(skip)]
    pub holds_block: bool,
}

impl CalibrationMemory {
    /// Refuses a run that needs more than `budget`.
    ///
    /// # Errors
    /// `out_of_memory` with the figures.
    pub fn check_within(&self, budget: Option<u64>) -> Result<()> {
        let Some(budget) = budget.filter(|&budget| budget < self.peak_bytes) else { return Ok(()) };
        Err(Error::new(
            ErrorCode::OutOfMemory,
            format!(
                "calibrating takes about {} bytes at its peak, {} of them for statistics and {} for the weights of a block, \
                 but only {budget} may be used",
                self.peak_bytes, self.statistics_bytes, self.block_bytes
            ),
        ))
    }
}

/// Plans a run. It keeps the stored bytes of a block, unless that exceeds the options' limit.
///
/// # Errors
/// As [`Checkpoint::module`], and for sizes that do not fit 64 bits.
pub fn plan_memory(
    checkpoint: &Checkpoint,
    plans: &[ModulePlan],
    options: &QuantizeOptions,
    samples: &Samples,
) -> Result<CalibrationMemory> {
    let holding = plan_holding(checkpoint, plans, options, samples, true)?;
    match options.memory {
        Some(memory) if memory < holding.peak_bytes => {
            plan_holding(checkpoint, plans, options, samples, false)
        }
        _ => Ok(holding),
    }
}

fn plan_holding(
    checkpoint: &Checkpoint,
    plans: &[ModulePlan],
    options: &QuantizeOptions,
    samples: &Samples,
    holds_block: bool,
) -> Result<CalibrationMemory> {
    let follows = statistics(options).drift;
    let job = CalibrationJob { checkpoint, config: checkpoint.config(), plans, follows, holds_block };
    let working_bytes = job.working_bytes(samples);
    let hole = job.largest_square();
    let hole = if LARGEST_KEPT.is_none_or(|kept| hole <= kept) { hole } else { 0 };
    let moment = |block_bytes: u64, statistics_bytes: u64, rows_bytes: u64| CalibrationMemory {
        block_bytes,
        statistics_bytes,
        rows_bytes,
        working_bytes,
        peak_bytes: PROCESS_BYTES + hole + working_bytes + block_bytes + statistics_bytes + rows_bytes,
        scratch_bytes: 0,
        holds_block,
    };
    let chunk = CHUNK_BYTES as u64;
    // The samples are embedded before any block is loaded.
    let mut moments = vec![moment(job.table_bytes()?, 0, chunk)];
    for input in LinearInput::ALL {
        let block = job.block_bytes(input)?;
        moments.push(moment(block, job.sums_bytes(input, samples), chunk));
        let statistics = job.statistics_bytes(input);
        moments.push(moment(block, statistics, job.rows_bytes(input)?));
        if let Some(grown) = job.awq_growth(input)? {
            moments.push(moment(block + grown, statistics, job.packed_bytes(input)? + 2 * chunk));
        }
    }
    let peak = moments.into_iter().max_by_key(|moment| moment.peak_bytes).unwrap_or_default();
    Ok(CalibrationMemory { scratch_bytes: job.scratch_bytes(samples)?, ..peak })
}

struct CalibrationJob<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    plans: &'a [ModulePlan],
    /// Whether the samples also run through the original blocks.
    follows: bool,
    /// Whether the stored bytes of a block are kept.
    holds_block: bool,
}

impl CalibrationJob<'_> {
    /// The plans of a layer in each block.
    fn plans(&self, linear: Linear) -> impl Iterator<Item = &ModulePlan> {
        let modules = (0..self.config.num_hidden_layers).map(move |layer| linear.module(layer));
        modules.filter_map(|module| self.plans.iter().find(|plan| plan.module == module))
    }

    /// Whether some block uses `method` for a layer.
    fn is_made_by(&self, linear: Linear, method: Method) -> bool {
        self.plans(linear).any(|plan| plan.method == Some(method))
    }

    /// Whether some layer that reads the input uses `method`.
    fn has(&self, input: LinearInput, method: Method) -> bool {
        input.linears().iter().any(|&linear| self.is_made_by(linear, method))
    }

    /// The scheme of a layer in the block where it has the most bits.
    fn scheme(&self, linear: Linear) -> Option<Scheme> {
        self.plans(linear).filter_map(|plan| plan.scheme).max_by_key(|scheme| scheme.storage_bits())
    }

    /// Elements of a layer.
    fn weights(&self, linear: Linear) -> u64 {
        let (rows, cols) = linear.shape(self.config);
        rows as u64 * cols as u64
    }

    /// Bytes of a weight of a module as the checkpoint stores it.
    fn stored_size(&self, module: &str) -> Result<u64> {
        Ok(match self.checkpoint.module(module)? {
            ModuleStorage::Dense { dtype, .. } => dtype.size() as u64,
            ModuleStorage::Packed { .. } => F32,
        })
    }

    /// Bytes of a layer as the checkpoint stores it.
    fn stored_bytes(&self, linear: Linear) -> Result<u64> {
        Ok(self.weights(linear) * self.stored_size(&linear.module(0))?)
    }

    /// Bytes of a quantized layer on the backend.
    fn replaced_bytes(&self, linear: Linear) -> Result<u64> {
        let Some(scheme) = self.scheme(linear) else { return self.stored_bytes(linear) };
        if self.is_made_by(linear, Method::Awq) {
            return Ok(self.weights(linear) * F32);
        }
        let (rows, cols) = linear.shape(self.config);
        // The CPU stores 3-bit codes in 4 bits, and scales in single precision.
        let bits = u64::from(scheme.storage_bits().next_power_of_two());
        Ok(self.weights(linear) * bits / 8 + scheme.granularity().scale_count(rows, cols) as u64 * 5)
    }

    /// Bytes of the block at `input`, of the original block, and of kept bytes.
    fn block_bytes(&self, input: LinearInput) -> Result<u64> {
        let mut bytes = 0;
        for other in LinearInput::ALL {
            for &linear in other.linears() {
                let copies = u64::from(self.follows) + u64::from(self.holds_block);
                bytes += copies * self.stored_bytes(linear)?;
                let replaced = (other as usize) < input as usize;
                bytes += if replaced { self.replaced_bytes(linear)? } else { self.stored_bytes(linear)? };
            }
        }
        Ok(bytes)
    }

    /// Bytes by which the layers of `input` grow when AWQ replaces them, after the old ones are freed. Candidates are
    /// packed, and with groups of at least 32 not larger than the originals.
    fn awq_growth(&self, input: LinearInput) -> Result<Option<u64>> {
        // Nothing runs after the last layer.
        let is_last = input == LinearInput::Down && self.config.num_hidden_layers == 1;
        if is_last || !self.has(input, Method::Awq) {
            return Ok(None);
        }
        let (mut stored, mut replaced) = (0, 0);
        for &linear in input.linears() {
            stored += self.stored_bytes(linear)?;
            replaced += self.replaced_bytes(linear)?;
        }
        Ok(Some(replaced.saturating_sub(stored)))
    }

    /// Bytes of the largest matrix of statistics.
    fn largest_square(&self) -> u64 {
        let calibrated = LinearInput::ALL
            .into_iter()
            .filter(|&input| self.has(input, Method::Gptq) || self.has(input, Method::Awq));
        calibrated.map(|input| (input.width(self.config) as u64).pow(2) * F32).max().unwrap_or(0)
    }

    /// Bytes of the second moments at `input` while they are read from the backend, tile by tile.
    fn sums_bytes(&self, input: LinearInput, samples: &Samples) -> u64 {
        let (width, tokens) = (input.width(self.config), chunk(self.config, samples));
        let stride = if self.follows { 2 * width } else { width };
        let tile = gram_columns(tokens, stride).min(width) * stride;
        // Rows joined with the original ones, on the host and on the device.
        let joined = if self.follows { tokens * 3 * stride } else { 0 };
        ((width * stride + tile.max(joined)) as u64 * F32)
            .max((width * stride) as u64 * F32 + CHUNK_BYTES as u64)
    }

    /// Bytes of statistics while the layers of `input` are quantized.
    fn statistics_bytes(&self, input: LinearInput) -> u64 {
        let width = input.width(self.config) as u64;
        let square = width * width * F32;
        let mut groups: Vec<u64> = Vec::new();
        for scheme in input.linears().iter().filter_map(|&linear| self.scheme(linear)) {
            let group = scheme.granularity().group_size(width as usize) as u64;
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let (mut gptq, mut awq) = (0, 0);
        if self.has(input, Method::Gptq) {
            gptq = square * (2 * groups.len() as u64 + u64::from(self.follows));
        }
        if self.has(input, Method::Awq) {
            awq = square + groups.iter().max().map_or(0, |group| width * group * F32);
        }
        square + gptq.max(awq)
    }

    /// Bytes of rows being quantized at `input`, and of its packed matrices.
    fn rows_bytes(&self, input: LinearInput) -> Result<u64> {
        let mut largest = 0;
        for &linear in input.linears() {
            let Some(scheme) = self.scheme(linear) else { continue };
            let (rows, cols) = linear.shape(self.config);
            let stored = (self.stored_bytes(linear)? / self.weights(linear).max(1)).max(1);
            let going = ((rows_at_once(parallel::lanes()) * cols) as u64).min(self.weights(linear));
            let chunk = (CHUNK_BYTES as u64 / stored).max(cols as u64);
            let read = going.max(MIN_CHUNK_BYTES as u64 / stored).min(chunk).min(self.weights(linear));
            let each = if self.has(input, Method::Awq) { AWQ_WEIGHT_BYTES } else { GPTQ_WEIGHT_BYTES };
            // Stored bytes, values, and copies in waiting and finished tasks.
            let on_the_way = read * (stored + 2 * F32) + going * each;
            let whole = packed_bytes(scheme, rows as u64, cols as u64)?;
            // GPTQ also rounds to nearest. Finished matrices are serialized once.
            largest = largest.max(on_the_way + 2 * whole);
        }
        Ok(largest + self.packed_bytes(input)?)
    }

    /// Bytes of the packed matrices of `input`.
    fn packed_bytes(&self, input: LinearInput) -> Result<u64> {
        let mut packed = 0;
        for &linear in input.linears() {
            let Some(scheme) = self.scheme(linear) else { continue };
            let (rows, cols) = linear.shape(self.config);
            packed += packed_bytes(scheme, rows as u64, cols as u64)?;
        }
        Ok(packed)
    }

    /// Bytes of the embedding, and of an untied head.
    fn table_bytes(&self) -> Result<u64> {
        let size = self.stored_size(self.checkpoint.embedding_module())?;
        let tables = if self.config.tie_word_embeddings { 1 } else { 2 };
        debug_assert!(tables == 1 || self.checkpoint.module(names::HEAD).is_ok());
        Ok(tables * (self.config.vocab_size * self.config.hidden_size) as u64 * size)
    }

    fn working_bytes(&self, samples: &Samples) -> u64 {
        let config = self.config;
        let context = samples.windows.iter().map(Vec::len).max().unwrap_or(0);
        let widest = LinearInput::ALL.into_iter().map(|input| input.width(config)).max().unwrap_or(0);
        // Hidden states before and after, and rows to and from scratch.
        let tokens = chunk(config, samples);
        let run = tokens * (elements_per_token(config) + 2 * widest);
        let cache = 2 * config.attention_shape(context).cache_len() + context * config.head_dim;
        (run + cache) as u64 * F32 + split_bytes(tokens, widest) as u64 + samples.tokens() * F32
    }

    /// Peak bytes of scratch.
    fn scratch_bytes(&self, samples: &Samples) -> Result<u64> {
        let tokens = samples.tokens();
        let widths = LinearInput::ALL.map(|input| input.width(self.config) as u64);
        let neighbours = widths.windows(2).map(|pair| pair[0] + pair[1]).max().unwrap_or(0);
        let mut packed = 0;
        for plan in self.plans {
            if let Some(scheme) = plan.scheme {
                packed += packed_bytes(scheme, plan.rows as u64, plan.cols as u64)?;
            }
        }
        let streams = if self.follows { 2 } else { 1 };
        Ok(streams * tokens * (self.config.hidden_size as u64 + neighbours) * F32 + packed)
    }
}

/// Tokens in a batch.
fn chunk(config: &ModelConfig, samples: &Samples) -> usize {
    let context = samples.windows.iter().map(Vec::len).max().unwrap_or(0);
    chunk_tokens(config).min(context.max(1))
}
