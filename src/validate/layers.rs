//! Weight errors of quantized layers, and the bytes that they save.

use super::measurements::LayerMemory;
use super::report::Layer;
use crate::error::{Context, Error, Result};
use crate::layout::ModuleStorage;
use crate::model::Checkpoint;
use crate::model::names::{self, Linear};
use crate::model::weights::DenseRows;
use crate::quant::Coding;
use crate::quant::stats::WeightError;
use crate::task::{Control, Progress};
use std::ops::Range;

/// All quantized modules of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Weight errors, in data-flow order.
    pub layers: Vec<Layer>,
    /// Bytes, in the same order.
    pub memory: Vec<LayerMemory>,
}

impl Layers {
    /// The scheme of most weights.
    pub fn main_scheme(&self) -> Option<Coding> {
        let mut bytes: Vec<(Coding, u64)> = Vec::new();
        for layer in &self.memory {
            match bytes.iter_mut().find(|(scheme, _)| *scheme == layer.scheme) {
                Some((_, sum)) => *sum += layer.f16_bytes,
                None => bytes.push((layer.scheme, layer.f16_bytes)),
            }
        }
        // The first among equals: `max_by_key` would take the last.
        bytes.into_iter().rev().max_by_key(|(_, sum)| *sum).map(|(scheme, _)| scheme)
    }

    /// Mean bits per weight, scales and zero points included. NaN without any.
    pub fn bits_per_weight(&self) -> f64 {
        let packed: u64 = self.memory.iter().map(|layer| layer.packed_bytes).sum();
        let f16: u64 = self.memory.iter().map(|layer| layer.f16_bytes).sum();
        packed as f64 * 16.0 / f16 as f64
    }
}

/// Compares the weights of every quantized module with the original's.
///
/// # Errors
/// `invalid_argument` if the two checkpoints do not belong together, or the second is not quantized.
pub async fn measure(original: &Checkpoint, quantized: &Checkpoint, control: &dyn Control) -> Result<Layers> {
    let mut measured = Layers::default();
    let count = quantized.config().num_hidden_layers;
    let blocks = (0..count).flat_map(|layer| Linear::ALL.map(|linear| linear.module(layer)));
    let head = (!quantized.config().tie_word_embeddings).then(|| names::HEAD.to_owned());
    let modules: Vec<String> = blocks.chain([quantized.embedding_module().to_owned()]).chain(head).collect();
    for (done, module) in modules.iter().enumerate() {
        control.progress(&Progress {
            phase: "layers",
            done: done as u64,
            total: modules.len() as u64,
            item: module,
        });
        let ModuleStorage::Packed { coding: scheme, rows, cols, .. } = quantized.module(module)? else {
            continue;
        };
        let source = source_module(original, module);
        let error = compare(original, &source, quantized, module, control)
            .await
            .context_with(|| format!("module `{module}`"))?;
        measured.layers.push(Layer {
            name: module.clone(),
            scheme: scheme.to_string(),
            snr_db: error.1.snr_db().unwrap_or(f64::INFINITY),
            max_abs_error: f64::from(error.1.max_abs_error()),
        });
        measured.memory.push(LayerMemory {
            scheme,
            f16_bytes: 2 * rows as u64 * cols as u64,
            packed_bytes: error.0,
        });
    }
    if measured.layers.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{}: expected a quantized checkpoint",
            quantized.name()
        )));
    }
    Ok(measured)
}

/// The original's name of `module`: a tied table has only one name there.
fn source_module(original: &Checkpoint, module: &str) -> String {
    let is_table = module == names::EMBEDDING || module == names::HEAD;
    if is_table && (original.config().tie_word_embeddings || module == names::EMBEDDING) {
        original.embedding_module().to_owned()
    } else {
        module.to_owned()
    }
}

/// Packed bytes and weight error of one module.
async fn compare(
    original: &Checkpoint,
    source: &str,
    quantized: &Checkpoint,
    module: &str,
    control: &dyn Control,
) -> Result<(u64, WeightError)> {
    let packed = quantized.layout().read_packed(quantized.store(), module).await?;
    let shape = original.module(source)?.shape();
    if shape != (packed.rows(), packed.cols()) {
        return Err(Error::invalid_argument(format!(
            "expected the original's shape, {} x {}, but found {} x {}: the checkpoints do not belong together",
            shape.0,
            shape.1,
            packed.rows(),
            packed.cols()
        )));
    }
    let mut error = WeightError::default();
    let add = |range: Range<usize>, values: &[f32]| {
        error.add_rows(values, &*packed, range);
        Ok(())
    };
    DenseRows::new(original, source)?.for_each(control, add).await?;
    Ok((packed.bytes(), error))
}
