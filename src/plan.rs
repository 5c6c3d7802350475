//! What a model needs before any of it is loaded: bytes at each precision, what fits, and which precision to take.
//!
//! Pure arithmetic over a model's dimensions, exact for the weights. [`MemoryPlan`] is also the document that `plan --json`
//! prints. Not here: reading a checkpoint's config.

pub mod dims;
pub mod memory;
pub mod recommend;
pub mod units;

pub use dims::ModelDims;
pub use memory::{PlanOptions, Precision, PrecisionPlan};
pub use recommend::Recommendation;
pub use units::{parse_bytes, parse_params};

use crate::error::{Error, Result};
use serde::Serialize;

/// A plan for one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// Weights and biases; a tied table counts once.
    pub parameters: u64,
    /// Whether `dims` were made up from a parameter count. `parameters` then counts `dims`, within 2% of what was asked.
    pub estimated: bool,
    /// The dimensions that the figures are for.
    pub dims: ModelDims,
    /// Tokens that the KV cache has room for.
    pub context: u64,
    /// Bytes that may be used, when given.
    pub memory: Option<u64>,
    /// One for each precision, largest first.
    pub precisions: Vec<PrecisionPlan>,
    /// Which to take.
    pub recommendation: Recommendation,
}

impl MemoryPlan {
    /// Plans for known dimensions.
    ///
    /// # Errors
    /// `invalid_argument` for dimensions or options that are zero where they must not be, or so large that bytes do not
    /// fit 64 bits.
    pub fn new(dims: ModelDims, options: &PlanOptions) -> Result<Self> {
        let parameters = dims.parameters()?;
        let precisions = memory::plan_precisions(&dims, options)?;
        let recommendation = recommend::recommend(parameters, &precisions, options.memory);
        Ok(Self {
            parameters,
            estimated: false,
            dims,
            context: options.context,
            memory: options.memory,
            precisions,
            recommendation,
        })
    }

    /// Plans for a parameter count, by the typical dimensions of [`ModelDims::typical`].
    ///
    /// # Errors
    /// As [`MemoryPlan::new`], and for a count that no model has.
    pub fn for_parameters(parameters: u64, options: &PlanOptions) -> Result<Self> {
        let mut plan = Self::new(ModelDims::typical(parameters)?, options)?;
        plan.estimated = true;
        Ok(plan)
    }
}

/// Multiplies, or says that the model is too large to count.
fn product(factors: &[u64]) -> Result<u64> {
    factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor)).ok_or_else(too_large)
}

/// Adds, or says that the model is too large to count.
fn sum(terms: &[u64]) -> Result<u64> {
    terms.iter().try_fold(0u64, |sum, &term| sum.checked_add(term)).ok_or_else(too_large)
}

fn too_large() -> Error {
    Error::invalid_argument("the model's dimensions are too large: its bytes do not fit 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_figure() {
        let options = PlanOptions { memory: Some(8_000_000_000), ..PlanOptions::default() };
        let plan = MemoryPlan::for_parameters(500_000_000, &options).unwrap();
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["estimated"], true);
        assert_eq!(json["memory"], 8_000_000_000u64);
        let names: Vec<&str> =
            json["precisions"].as_array().unwrap().iter().map(|p| p["precision"].as_str().unwrap()).collect();
        assert_eq!(names, ["f32", "f16", "int8", "int4", "ternary"]);
        for key in
            ["linear_bytes", "embedding_bytes", "norm_bytes", "weight_bytes", "kv_cache_bytes", "total_bytes"]
        {
            assert!(json["precisions"][0][key].as_u64().unwrap() > 0, "{key}");
        }
        assert_eq!(json["recommendation"]["precision"], "int8");
    }

    #[test]
    fn dimensions_that_overflow_are_errors() {
        let mut dims = ModelDims::typical(1_000_000_000).unwrap();
        dims.hidden_size = u64::MAX / 2;
        let error = MemoryPlan::new(dims, &PlanOptions::default()).unwrap_err();
        assert!(error.message().contains("64 bits"), "{error}");
    }
}
