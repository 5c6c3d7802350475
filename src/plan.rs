//! Memory plans without loading a model: bytes at each precision, what fits, and the recommended precision.
//!
//! Pure arithmetic on a model's dimensions, exact for the weights. `plan --json` prints [`MemoryPlan`].

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
    /// Weights and biases. A tied embedding counts once.
    pub parameters: u64,
    /// Whether `dims` are estimated from a parameter count. `parameters` is that of `dims`, within 2% of the given
    /// count.
    pub estimated: bool,
    /// The model's dimensions.
    pub dims: ModelDims,
    /// Tokens in the KV cache.
    pub context: u64,
    /// Available bytes, if given.
    pub memory: Option<u64>,
    /// One for each precision, largest first.
    pub precisions: Vec<PrecisionPlan>,
    /// The recommended precision.
    pub recommendation: Recommendation,
}

impl MemoryPlan {
    /// Plans for known dimensions.
    ///
    /// # Errors
    /// `invalid_argument` for dimensions or options that are zero, or so large that bytes exceed
    /// 64 bits.
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

    /// Plans for a parameter count with [`ModelDims::typical`] dimensions.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`], and for an implausible count.
    pub fn for_parameters(parameters: u64, options: &PlanOptions) -> Result<Self> {
        let mut plan = Self::new(ModelDims::typical(parameters)?, options)?;
        plan.estimated = true;
        Ok(plan)
    }
}

/// Multiplies, or fails for models beyond 64-bit counts.
fn product(factors: &[u64]) -> Result<u64> {
    factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor)).ok_or_else(too_large)
}

/// Adds, or fails for models beyond 64-bit counts.
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
