//! How well a row of logits predicts a token, and how far two rows are from each other.
//!
//! Sums are in `f64` and in the given order, with the maximum subtracted before `exp`. A row with NaN or plus infinity
//! gives NaN, so that the verdict fails on it. Minus infinity is a probability of 0.
//! A row is `[vocab_size]`. Not here: running the model.

use crate::error::{Error, ErrorCode, Result};
use crate::sort;

/// `ln(sum(exp(logits)))`. NaN for a row that is empty, contains NaN or plus infinity, or is all minus infinity.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let mut max = f32::NEG_INFINITY;
    for &logit in logits {
        if logit.is_nan() || logit == f32::INFINITY {
            return f64::NAN;
        }
        max = max.max(logit);
    }
    if max == f32::NEG_INFINITY {
        return f64::NAN;
    }
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - max)).sum();
    max + libm::log(sum)
}

/// The negative log-likelihood of token `target`, in nats: `-ln softmax(logits)[target]`. Infinite if the token's
/// probability is 0.
///
/// # Panics
/// If `target` is outside the row. Callers check tokens against the vocabulary first.
pub fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    assert!(target < logits.len(), "target {target} is outside a row of {} logits", logits.len());
    log_sum_exp(logits) - f64::from(logits[target])
}

/// The Kullback-Leibler divergence KL(P || Q) in nats, with P the softmax of `original` and Q that of `quantized`.
/// Never negative. Infinite if Q gives probability 0 to a token that P does not.
///
/// # Panics
/// If the rows differ in length.
pub fn kl_divergence(original: &[f32], quantized: &[f32]) -> f64 {
    assert_eq!(original.len(), quantized.len(), "rows of different vocabularies");
    let (p_total, q_total) = (log_sum_exp(original), log_sum_exp(quantized));
    if p_total.is_nan() || q_total.is_nan() {
        return f64::NAN;
    }
    let mut divergence = 0.0;
    for (&p, &q) in original.iter().zip(quantized) {
        let log_p = f64::from(p) - p_total;
        let probability = libm::exp(log_p);
        if probability > 0.0 {
            divergence += probability * (log_p - (f64::from(q) - q_total));
        }
    }
    // Rounding can leave a tiny negative sum for nearly equal rows.
    if divergence < 0.0 { 0.0 } else { divergence }
}

/// The id of the largest logit, the lowest among equals; `None` for a row whose [`log_sum_exp`] is NaN.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return None;
        }
        if logit > best.map_or(f32::NEG_INFINITY, |best| logits[best]) {
            best = Some(id);
        }
    }
    best
}

/// Whether both rows predict the same token. Rows without a prediction never agree.
pub fn top1_agrees(original: &[f32], quantized: &[f32]) -> bool {
    matches!((argmax(original), argmax(quantized)), (Some(a), Some(b)) if a == b)
}

/// The `percent`-th percentile, linearly interpolated between the closest ranks at position `percent / 100 * (n - 1)`
/// of the sorted values, like numpy's default. NaN without values or if one is NaN.
///
/// # Panics
/// If `percent` is outside 0 to 100.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    assert!((0.0..=100.0).contains(&percent), "percentile {percent} is outside 0 to 100");
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sort::sort_by(&mut sorted, f64::total_cmp);
    let position = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = position as usize;
    let fraction = position - below as f64;
    if fraction == 0.0 {
        return sorted[below];
    }
    sorted[below] + fraction * (sorted[below + 1] - sorted[below])
}

/// The middle value, [`percentile`] 50.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The mean. NaN without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard error of the mean: the sample standard deviation (divisor `n - 1`) over the square root of `n`. NaN for
/// fewer than two values.
pub fn standard_error(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() - 1) as f64 / values.len() as f64).sqrt()
}

/// Accumulates negative log-likelihoods into a perplexity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerplexitySum {
    total: f64,
    tokens: u64,
}

impl PerplexitySum {
    /// Adds one scored token.
    pub fn add(&mut self, negative_log_likelihood: f64) {
        self.total += negative_log_likelihood;
        self.tokens += 1;
    }

    /// Scored tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The sum of the negative log-likelihoods, in nats.
    pub fn nats(&self) -> f64 {
        self.total
    }

    /// `exp` of the mean negative log-likelihood. NaN before the first token.
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.total / self.tokens as f64)
    }

    /// The perplexity, or an error if it is not finite.
    ///
    /// # Errors
    /// `non_finite`.
    pub fn finite_perplexity(&self) -> Result<f64> {
        let perplexity = self.perplexity();
        if perplexity.is_finite() {
            return Ok(perplexity);
        }
        let reason = "the model's logits are not finite, so it has no perplexity";
        Err(Error::new(ErrorCode::NonFinite, reason))
    }
}

/// Collects per-token differences between two models' losses on the same tokens. The difficulty of the text cancels
/// out. Takes 8 bytes per token.
#[derive(Clone, Debug, Default)]
pub struct PairedDifference {
    differences: Vec<f64>,
}

impl PairedDifference {
    /// Adds one token's negative log-likelihoods.
    pub fn add(&mut self, first: f64, second: f64) {
        self.differences.push(second - first);
    }

    /// The mean of second minus first, in nats: the logarithm of the ratio of the perplexities.
    pub fn mean(&self) -> f64 {
        mean(&self.differences)
    }

    /// The standard error of the mean. A mean within two of them may be chance.
    pub fn standard_error(&self) -> f64 {
        standard_error(&self.differences)
    }
}

/// Collects how a quantized model's logits differ from the original's, per position. Takes 8 bytes per position.
#[derive(Clone, Debug, Default)]
pub struct DivergenceSum {
    divergences: Vec<f64>,
    agreeing: usize,
}

impl DivergenceSum {
    /// Adds the rows of one position, each `[vocab_size]`.
    ///
    /// # Panics
    /// If the rows differ in length.
    pub fn add(&mut self, original: &[f32], quantized: &[f32]) {
        self.divergences.push(kl_divergence(original, quantized));
        self.agreeing += usize::from(top1_agrees(original, quantized));
    }

    /// Mean KL divergence in nats.
    pub fn kl_mean(&self) -> f64 {
        mean(&self.divergences)
    }

    /// The standard error of [`DivergenceSum::kl_mean`].
    pub fn kl_standard_error(&self) -> f64 {
        standard_error(&self.divergences)
    }

    /// The 99th [`percentile`] of the KL divergence.
    pub fn kl_p99(&self) -> f64 {
        percentile(&self.divergences, 99.0)
    }

    /// The fraction of positions where both predict the same token.
    pub fn top1_agreement(&self) -> f64 {
        self.agreeing as f64 / self.divergences.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Probabilities by the definition, without subtracting a maximum.
    fn naive_softmax(logits: &[f32]) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    /// `f64` arithmetic over 40 terms of moderate size: far below the precision of a report.
    const TOLERANCE: f64 = 1e-10;

    proptest! {
        #[test]
        fn rows_agree_with_the_definitions(
            rows in prop::collection::vec((-20.0f32..20.0, -20.0f32..20.0), 1..40),
            target in any::<prop::sample::Index>(),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let (p, q) = (naive_softmax(&a), naive_softmax(&b));
            let target = target.index(a.len());
            prop_assert!((negative_log_likelihood(&a, target) + p[target].ln()).abs() < TOLERANCE);
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            let found = kl_divergence(&a, &b);
            prop_assert!(found >= 0.0 && (found - kl).abs() < TOLERANCE * (1.0 + kl.abs()));
            prop_assert_eq!(kl_divergence(&a, &a), 0.0);
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert!((negative_log_likelihood(&[3e38, 0.0], 0)).abs() < TOLERANCE);
        assert_eq!(negative_log_likelihood(&[1000.0, 0.0], 1), 1000.0);
        assert_eq!(kl_divergence(&[1000.0, -1000.0], &[1000.0, -1000.0]), 0.0);
    }

    #[test]
    fn broken_rows_are_nan_and_masked_tokens_are_impossible() {
        let masked = [0.0, f32::NEG_INFINITY];
        assert_eq!(negative_log_likelihood(&masked, 1), f64::INFINITY);
        assert_eq!(negative_log_likelihood(&masked, 0), 0.0);
        assert_eq!(kl_divergence(&[0.0, 0.0], &masked), f64::INFINITY);
        assert!((kl_divergence(&masked, &[0.0, 0.0]) - 2f64.ln()).abs() < TOLERANCE);
        for broken in [[f32::NAN, 0.0], [0.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
            assert!(negative_log_likelihood(&broken, 0).is_nan());
            assert!(kl_divergence(&broken, &[0.0, 0.0]).is_nan());
            assert!(kl_divergence(&[0.0, 0.0], &broken).is_nan());
            assert_eq!(argmax(&broken), None);
            assert!(!top1_agrees(&broken, &broken));
        }
        assert!(log_sum_exp(&[]).is_nan());
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert!(top1_agrees(&[0.0, 2.0, 2.0], &[0.0, 1.0, 0.5]));
        assert!(!top1_agrees(&[0.0, 2.0], &[1.0, 0.0]));
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // numpy.percentile([4, 1, 3, 2], q) for these q.
        let values = [4.0, 1.0, 3.0, 2.0];
        for (percent, expected) in [(0.0, 1.0), (50.0, 2.5), (75.0, 3.25), (99.0, 3.97), (100.0, 4.0)] {
            assert!((percentile(&values, percent) - expected).abs() < TOLERANCE, "{percent}");
        }
        assert_eq!(median(&[5.0, 1.0, 3.0]), 3.0);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
        assert_eq!(percentile(&[1.0, f64::INFINITY], 100.0), f64::INFINITY);
        assert!(percentile(&[], 50.0).is_nan());
        assert!(percentile(&[1.0, f64::NAN], 0.0).is_nan());
    }

    #[test]
    fn means_and_errors() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        // Deviations -2, -1, 3: variance 14 / 2, standard error sqrt(7 / 3).
        assert!((standard_error(&[1.0, 2.0, 6.0]) - (7.0f64 / 3.0).sqrt()).abs() < TOLERANCE);
        assert!(mean(&[]).is_nan() && standard_error(&[1.0]).is_nan());
    }

    #[test]
    fn sums_over_positions() {
        let mut perplexity = PerplexitySum::default();
        assert!(perplexity.perplexity().is_nan());
        for probability in [0.5f64, 0.125] {
            perplexity.add(-probability.ln());
        }
        // The geometric mean of 2 and 8.
        assert!((perplexity.perplexity() - 4.0).abs() < TOLERANCE);
        assert_eq!(perplexity.tokens(), 2);

        let mut loss = PairedDifference::default();
        for (first, second) in [(1.0, 2.0), (3.0, 3.0), (5.0, 4.0), (2.0, 6.0)] {
            loss.add(first, second);
        }
        // Differences 1, 0, -1, 4: mean 1, sum of squares 14 around it.
        assert_eq!(loss.mean(), 1.0);
        assert!((loss.standard_error() - (14.0f64 / 3.0 / 4.0).sqrt()).abs() < TOLERANCE);

        let mut divergence = DivergenceSum::default();
        divergence.add(&[0.0, 1.0], &[0.0, 1.0]);
        divergence.add(&[0.0, 1.0], &[1.0, 0.0]);
        let swapped = kl_divergence(&[0.0, 1.0], &[1.0, 0.0]);
        assert!((divergence.kl_mean() - swapped / 2.0).abs() < TOLERANCE);
        assert!((divergence.kl_p99() - 0.99 * swapped).abs() < TOLERANCE);
        assert!((divergence.kl_standard_error() - swapped / 2.0).abs() < TOLERANCE);
        assert_eq!(divergence.top1_agreement(), 0.5);
        divergence.add(&[f32::NAN, 0.0], &[0.0, 0.0]);
        assert!(divergence.kl_mean().is_nan() && divergence.kl_p99().is_nan());
    }
}
