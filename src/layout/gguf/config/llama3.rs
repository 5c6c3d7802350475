//! Llama 3.1's scaling of RoPE, which GGUF files hold as a tensor of factors. Floor 3.

use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Llama 3.1's scaling of RoPE.
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

impl Llama3 {
    /// What frequency `i` of a head is divided by.
    pub(super) fn divisor(&self, theta: f64, head_dim: u64, i: u64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI * libm::pow(theta, (2 * i) as f64 / head_dim as f64);
        if wavelength < self.original / self.high {
            1.0
        } else if wavelength > self.original / self.low {
            self.factor
        } else {
            let share = (self.original / wavelength - self.low) / (self.high - self.low);
            1.0 / ((1.0 - share) / self.factor + share)
        }
    }
}

/// The most that a factor of a file, computed in `f32`, differs from ours, computed in `f64`, as a share of it.
const FACTOR_TOLERANCE: f64 = 1e-5;

/// The scaling of Llama 3.1 that divides frequencies by `factors`. Files do not say its parameters, but all models have the
/// same three besides the largest factor.
pub(super) fn scaling_of_factors(theta: f64, head_dim: u64, factors: &[f32]) -> Result<Value> {
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let scaling = Llama3 { factor, low: 1.0, high: 4.0, original: 8192.0 };
    let fits = |(i, &found): (usize, &f32)| {
        let expected = scaling.divisor(theta, head_dim, i as u64);
        (f64::from(found) - expected).abs() <= FACTOR_TOLERANCE * expected
    };
    if factors.len() as u64 != head_dim / 2 || !factors.iter().enumerate().all(fits) {
        return Err(Error::unsupported_model(
            "the tensor `rope_freqs.weight` holds other factors than Llama 3.1's scaling of RoPE gives, which is not supported",
        ));
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original as u64,
    }))
}
