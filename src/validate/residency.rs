//! How much of two compared models is in memory: both, or one block of one of them.
//!
//! A pure decision by sizes; nothing here queries the system.

use crate::layout::ModuleStorage;
use crate::model::names::Linear;
use crate::model::runner::{cache_bytes, working_bytes};
use crate::model::{Checkpoint, ModelConfig};
use crate::options::named;
use crate::{dtype::DType, error::Result};

/// The requested residency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Both models, whatever they need.
    SideBySide,
    /// One block of one model at a time. For prompts and questions, one whole model at a time.
    LayerStreamed,
    /// Both if they fit this many bytes, otherwise one block.
    Within(u64),
}

named! {
    /// How the two models were run; affects no figure but speed
    pub enum Execution {
        /// Both in memory
        SideBySide = "side-by-side",
        /// Block by block, hidden states in scratch; speed is not measured
        LayerStreamed = "layer-streamed",
    }
}

impl Residency {
    /// The execution for models that need `side_by_side` bytes together.
    pub fn execution(self, side_by_side: u64) -> Execution {
        match self {
            Self::SideBySide => Execution::SideBySide,
            Self::Within(bytes) if side_by_side <= bytes => Execution::SideBySide,
            Self::LayerStreamed | Self::Within(_) => Execution::LayerStreamed,
        }
    }
}

/// Estimated bytes of two models side by side, with KV caches for `context` positions. `timed`: speed is measured, for
/// which an F32 original is also held in half precision.
///
/// # Errors
/// As [`Checkpoint::module`].
pub fn side_by_side_bytes(
    original: &Checkpoint,
    quantized: &Checkpoint,
    context: usize,
    timed: bool,
) -> Result<u64> {
    let first = original.bytes();
    let half = if timed && is_single_precision(original)? { first / 2 } else { 0 };
    // A backend widens scales, and 3-bit codes.
    let second = quantized.bytes();
    let second = second.saturating_add(second / 4);
    let run = |config: &ModelConfig| cache_bytes(config, context).saturating_add(working_bytes(config));
    let runs = run(original.config()).saturating_add(run(quantized.config()));
    Ok(first.saturating_add(half).saturating_add(second).saturating_add(runs))
}

/// Whether the first linear module, and so probably all of them, is stored in F32.
pub(super) fn is_single_precision(checkpoint: &Checkpoint) -> Result<bool> {
    let storage = checkpoint.module(&Linear::Q.module(0))?;
    Ok(matches!(storage, ModuleStorage::Dense { dtype: DType::F32, .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_held_where_they_fit() {
        for (holding, needed, expected) in [
            (Residency::Within(100), 100, Execution::SideBySide),
            (Residency::Within(99), 100, Execution::LayerStreamed),
            (Residency::SideBySide, u64::MAX, Execution::SideBySide),
            (Residency::LayerStreamed, 0, Execution::LayerStreamed),
        ] {
            assert_eq!(holding.execution(needed), expected, "{holding:?}");
        }
    }
}
