//! Errors of quantized weights. Errors of predictions are in `validate`.

use super::codings::Coded;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Running sums over pairs of original and quantized weights. Sums are `f64` in weight order, so
/// chunk sizes do not change them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightError {
    count: u64,
    zeros: u64,
    signal: f64,
    noise: f64,
    max_abs_error: f32,
}

impl WeightError {
    /// Adds weights with their quantized values.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add(&mut self, original: &[f32], quantized: &[f32]) {
        assert_eq!(original.len(), quantized.len(), "each weight has one quantized value");
        self.count += original.len() as u64;
        for (&w, &q) in original.iter().zip(quantized) {
            let error = f64::from(w) - f64::from(q);
            self.signal += f64::from(w) * f64::from(w);
            self.noise += error * error;
            self.max_abs_error = self.max_abs_error.max(error.abs() as f32);
            self.zeros += u64::from(q == 0.0);
        }
    }

    /// Adds rows of a packed matrix; `original` is `[rows.len(), cols]`.
    ///
    /// # Panics
    /// When the rows are not in the matrix or `original` has another length.
    pub fn add_rows(&mut self, original: &[f32], tensor: &dyn Coded, rows: Range<usize>) {
        let mut quantized = vec![0.0; rows.len() * tensor.cols()];
        tensor.decode_rows(rows, &mut quantized);
        self.add(original, &quantized);
    }

    /// The number of weights.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Signal-to-noise ratio in decibels, `10 log10(sum w^2 / sum (w - q)^2)`; `None` if error or
    /// signal is zero.
    pub fn snr_db(&self) -> Option<f64> {
        (self.noise > 0.0 && self.signal > 0.0).then(|| 10.0 * libm::log10(self.signal / self.noise))
    }

    /// The largest `|w - q|`.
    pub fn max_abs_error(&self) -> f32 {
        self.max_abs_error
    }

    /// The mean of `(w - q)^2`; 0 without weights.
    pub fn mean_squared_error(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.noise / self.count as f64 }
    }

    /// The share of quantized values that are exactly zero; 0 without weights.
    pub fn sparsity(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.zeros as f64 / self.count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let mut stats = WeightError::default();
        assert_eq!((stats.snr_db(), stats.sparsity(), stats.mean_squared_error()), (None, 0.0, 0.0));
        stats.add(&[3.0, 4.0], &[3.0, 4.0]);
        assert_eq!(stats.snr_db(), None, "no error at all");
        stats.add(&[0.5, 0.0], &[0.0, 0.0]);
        // signal 9 + 16 + 0.25, noise 0.25
        assert!((stats.snr_db().unwrap() - 20.0432).abs() < 1e-4);
        assert_eq!(stats.max_abs_error(), 0.5);
        assert_eq!(stats.sparsity(), 0.5);
        assert_eq!(stats.mean_squared_error(), 0.0625);
        assert_eq!(stats.count(), 4);
    }
}
