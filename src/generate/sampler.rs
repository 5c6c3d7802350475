//! Samples the next token from a row of logits.
//!
//! The filters and their order are those of transformers' `generate`:
//!
//! 1. Repetition penalty (Keskar et al. 2019, CTRL) over prompt and generated tokens, once for each distinct token:
//!    a positive logit is divided by it, a negative one multiplied.
//! 2. Temperature 0: greedy, without random numbers. The largest logit wins; of equal ones the lowest id.
//! 3. Temperature: logits are divided by it.
//! 4. Top-k (Fan et al. 2018): drops tokens below the k-th largest logit; tokens tied with it stay.
//! 5. Top-p (Holtzman et al. 2020): keeps the smallest set of most likely tokens whose probability reaches `p`.
//! 6. Min-p (Nguyen et al. 2024): drops tokens less likely than `min_p` times the most likely token.
//! 7. One draw from the rest.
//!
//! Departures: 1. Equal logits are ordered by id, so the cut of top-p is reproducible. 2. The maximum is subtracted
//! before the division by the temperature, in `f64`, so that no temperature overflows.
//!
//! The same seed and logits give the same tokens on every target: `exp` is libm's, sums run in a fixed order, and the
//! generator is PCG32 (O'Neill 2014), whose output for a seed is fixed.

use crate::error::{Error, ErrorCode, Result};
use crate::model::decoder::{LogitsRequest, Next};
use crate::options::{Bounds, Options, options};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};

options! {
    /// How tokens are chosen.
    #[derive(Copy)]
    pub struct SamplerOptions {
        /// Divides the logits; 0: always take the most likely token
        pub temperature: f32 = 0.0, within Bounds::from(0.0);
        /// Choose among this many of the most likely tokens; 0: all
        pub top_k: usize = 0;
        /// Choose among the most likely tokens that together reach this probability; 1: all
        pub top_p: f32 = 1.0, within Bounds::above(0.0).up_to(1.0);
        /// Drop tokens below this share of the most likely token's probability
        pub min_p: f32 = 0.0, within Bounds::from(0.0).up_to(1.0);
        /// Above 1: discourage tokens that already occur in the prompt or the output
        pub repetition_penalty: f32 = 1.0, within Bounds::above(0.0);
        /// Seed of the random numbers: the same seed gives the same text
        pub seed: u64 = 0;
    }
}

/// A candidate token with its unnormalized probability, `exp((logit - max) / temperature)`.
#[derive(Clone, Copy, Debug)]
struct TokenCandidate {
    id: u32,
    weight: f64,
}

/// Chooses tokens by [`SamplerOptions`]. Holds the random state and reusable buffers.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    random: Pcg32,
    candidates: Vec<TokenCandidate>,
    seen: Vec<bool>,
}

impl Sampler {
    /// A sampler with freshly seeded random numbers.
    ///
    /// # Errors
    /// `invalid_argument` for options out of their bounds.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.check()?;
        let random = Pcg32::seed_from_u64(options.seed);
        Ok(Self { options, random, candidates: Vec::new(), seen: Vec::new() })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// What it needs of the logits to choose the next token.
    pub fn wanted(&self, vocab_size: usize) -> LogitsRequest {
        /// Beyond this, reading all logits is as fast.
        const MOST_CANDIDATES: usize = 1024;
        let SamplerOptions { temperature, top_k, repetition_penalty, .. } = self.options;
        if repetition_penalty != 1.0 {
            LogitsRequest::Logits
        } else if temperature == 0.0 {
            LogitsRequest::Largest
        } else if (1..=MOST_CANDIDATES.min(vocab_size)).contains(&top_k) {
            LogitsRequest::TopK(top_k)
        } else {
            LogitsRequest::Logits
        }
    }

    /// The id of the next token, from at least what [`Sampler::wanted`] asked for. More logits do not change the
    /// choice.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn choose(&mut self, next: &mut Next, history: &[u32]) -> Result<u32> {
        match next {
            Next::Token(token) => Ok(*token),
            Next::Candidates(candidates) => {
                let logits: Vec<f32> = candidates.iter().map(|&(_, logit)| logit).collect();
                let (best, max) = checked_argmax(&logits)?;
                if self.options.temperature == 0.0 {
                    return Ok(candidates[best as usize].0);
                }
                self.collect(&logits, max);
                for candidate in &mut self.candidates {
                    candidate.id = candidates[candidate.id as usize].0;
                }
                Ok(self.filter_and_draw())
            }
            Next::Logits(logits) => self.sample(logits, history),
        }
    }

    /// The id of the next token. `logits` is `[vocab_size]`; the repetition penalty changes it in place. `history` is
    /// the prompt and the output so far. A logit of minus infinity excludes its token.
    ///
    /// # Errors
    /// `non_finite` when a logit is NaN or plus infinity, or when no token is left; `invalid_argument` when `history`
    /// has an id outside `logits`.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        self.penalize(logits, history)?;
        let (best, max) = checked_argmax(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best);
        }
        self.collect(logits, max);
        Ok(self.filter_and_draw())
    }

    fn filter_and_draw(&mut self) -> u32 {
        self.keep_top_k();
        self.keep_top_p();
        // The largest weight is exp(0) = 1, so a weight is its share of the largest probability.
        let min_p = f64::from(self.options.min_p);
        self.candidates.retain(|candidate| candidate.weight >= min_p);
        self.draw()
    }

    fn penalize(&mut self, logits: &mut [f32], history: &[u32]) -> Result<()> {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return Ok(());
        }
        self.seen.clear();
        self.seen.resize(logits.len(), false);
        for &id in history {
            let Some(seen) = self.seen.get_mut(id as usize) else {
                return Err(Error::invalid_argument(format!(
                    "token id {id} of the history is outside the {} logits",
                    logits.len()
                )));
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let logit = &mut logits[id as usize];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
        Ok(())
    }

    /// Makes a candidate of every token with a finite logit, in the order of ids.
    fn collect(&mut self, logits: &[f32], max: f32) {
        let temperature = f64::from(self.options.temperature);
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().filter_map(|(id, &logit)| {
            if logit == f32::NEG_INFINITY {
                return None;
            }
            let weight = libm::exp((f64::from(logit) - f64::from(max)) / temperature);
            Some(TokenCandidate { id: id as u32, weight })
        }));
    }

    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k == 0 || k >= self.candidates.len() {
            return;
        }
        let mut weights: Vec<f64> = self.candidates.iter().map(|candidate| candidate.weight).collect();
        let (_, &mut threshold, _) = weights.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        self.candidates.retain(|candidate| candidate.weight >= threshold);
    }

    fn keep_top_p(&mut self) {
        let top_p = f64::from(self.options.top_p);
        if top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        // Sorting a large vocabulary is slow. All weights below this cut add up to less than (1 - p) of the total, so
        // the others reach p without them (a trick of llama2.c).
        let cut = (1.0 - top_p) * total / self.candidates.len() as f64;
        self.candidates.retain(|candidate| candidate.weight >= cut);
        self.candidates.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id)));
        let mut mass = 0.0;
        let mut kept = 0;
        while kept < self.candidates.len() && (kept == 0 || mass < top_p * total) {
            mass += self.candidates[kept].weight;
            kept += 1;
        }
        self.candidates.truncate(kept);
    }

    fn draw(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut rest = uniform * total;
        for candidate in &self.candidates {
            if rest < candidate.weight {
                return candidate.id;
            }
            rest -= candidate.weight;
        }
        // Rounding can leave a rest after the last candidate. The largest weight always stays, so one is found.
        self.candidates
            .iter()
            .rfind(|candidate| candidate.weight > 0.0)
            .expect("the most likely token stays")
            .id
    }
}

/// Id and value of the largest logit, the lowest id among equals.
fn checked_argmax(logits: &[f32]) -> Result<(u32, f32)> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::new(
                ErrorCode::NonFinite,
                format!("expected finite logits but token id {id} has {logit}"),
            ));
        }
        if logit > best.map_or(f32::NEG_INFINITY, |(_, value)| value) {
            best = Some((id, logit));
        }
    }
    let (id, value) = best.ok_or_else(|| {
        let found = if logits.is_empty() { "there are no logits" } else { "every logit is minus infinity" };
        Error::new(ErrorCode::NonFinite, format!("expected a token to choose but {found}"))
    })?;
    Ok((id as u32, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options() -> SamplerOptions {
        SamplerOptions { temperature: 1.0, ..SamplerOptions::default() }
    }

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).unwrap()
    }

    /// The ids that occur in many draws.
    fn support(options: SamplerOptions, logits: &[f32]) -> Vec<u32> {
        let mut sampler = sampler(options);
        let ids: std::collections::BTreeSet<u32> =
            (0..4000).map(|_| sampler.sample(&mut logits.to_vec(), &[]).unwrap()).collect();
        ids.into_iter().collect()
    }

    #[test]
    fn greedy_takes_the_largest_and_the_lowest_id_among_equals() {
        let mut greedy = sampler(SamplerOptions::default());
        for (logits, expected) in [
            (vec![0.5, 2.0, 2.0, 1.0], 1),
            (vec![-3.0, -1.0, -2.0], 1),
            (vec![f32::NEG_INFINITY, -5.0], 1),
            (vec![-0.0, 0.0], 0),
            (vec![f32::MAX, f32::MIN], 0),
        ] {
            assert_eq!(greedy.sample(&mut logits.clone(), &[]).unwrap(), expected, "{logits:?}");
        }
    }

    #[test]
    fn filters_keep_what_transformers_keeps() {
        // Probabilities 0.4, 0.3, 0.2, 0.1 at ids 2, 0, 3, 1.
        let logits = [0.3_f32, 0.1, 0.4, 0.2].map(|p| p.ln());
        let cases: [(&str, SamplerOptions, &[u32]); 12] = [
            ("nothing off", options(), &[0, 1, 2, 3]),
            ("top_k 1", SamplerOptions { top_k: 1, ..options() }, &[2]),
            ("top_k 3", SamplerOptions { top_k: 3, ..options() }, &[0, 2, 3]),
            ("top_k beyond the vocabulary", SamplerOptions { top_k: 9, ..options() }, &[0, 1, 2, 3]),
            ("top_p below the first", SamplerOptions { top_p: 0.01, ..options() }, &[2]),
            ("top_p 0.6 needs two", SamplerOptions { top_p: 0.6, ..options() }, &[0, 2]),
            ("top_p 0.75 needs three", SamplerOptions { top_p: 0.75, ..options() }, &[0, 2, 3]),
            ("min_p 0.6", SamplerOptions { min_p: 0.6, ..options() }, &[0, 2]),
            ("min_p 1", SamplerOptions { min_p: 1.0, ..options() }, &[2]),
            // top_p sees the probabilities that top_k left: 0.4 becomes 4/7, which reaches 0.5.
            ("top_k, then top_p", SamplerOptions { top_k: 2, top_p: 0.5, ..options() }, &[2]),
            ("a low temperature sharpens", SamplerOptions { temperature: 1e-30, ..options() }, &[2]),
            // At temperature 2 the probabilities become flatter: 0.325, 0.281, 0.230, 0.163.
            (
                "temperature, then top_p",
                SamplerOptions { temperature: 2.0, top_p: 0.65, ..options() },
                &[0, 2, 3],
            ),
        ];
        for (name, options, expected) in cases {
            assert_eq!(support(options, &logits), expected, "{name}");
        }
    }

    #[test]
    fn ties_at_the_edge() {
        let tied = [1.0_f32, 2.0, 1.0, 1.0];
        assert_eq!(
            support(SamplerOptions { top_k: 2, ..options() }, &tied),
            [0, 1, 2, 3],
            "top_k keeps what is tied with the k-th"
        );
        let equal = [1.0_f32; 4];
        assert_eq!(support(SamplerOptions { top_p: 0.5, ..options() }, &equal), [0, 1], "top_p goes by id");
    }

    #[test]
    fn repetition_penalty_counts_each_token_once() {
        let mut logits = [2.0, -2.0, 1.0, f32::NEG_INFINITY];
        let mut greedy = sampler(SamplerOptions { repetition_penalty: 4.0, ..SamplerOptions::default() });
        assert_eq!(greedy.sample(&mut logits, &[0, 1, 0, 1, 3]).unwrap(), 2);
        assert_eq!(logits, [0.5, -8.0, 1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let probabilities = [0.5_f32, 0.25, 0.15, 0.1];
        let logits = probabilities.map(|p| p.ln());
        let mut sampler = sampler(SamplerOptions { seed: 7, ..options() });
        let draws = 40_000;
        let mut counts = [0u32; 4];
        for _ in 0..draws {
            counts[sampler.sample(&mut logits.clone(), &[]).unwrap() as usize] += 1;
        }
        // Five standard deviations of a share of one half over 40,000 draws.
        const TOLERANCE: f64 = 0.0125;
        for (count, p) in counts.iter().zip(probabilities) {
            assert!((f64::from(*count) / f64::from(draws) - f64::from(p)).abs() < TOLERANCE, "{counts:?}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_tokens_on_every_target() {
        let logits: Vec<f32> = (0..100).map(|i| (i * 37 % 100) as f32 / 25.0).collect();
        let draw = |seed| {
            let mut sampler = sampler(SamplerOptions { seed, top_p: 0.9, ..options() });
            (0..8).map(|_| sampler.sample(&mut logits.clone(), &[]).unwrap()).collect::<Vec<_>>()
        };
        // Recorded once; every dependency version, compiler and target must give the same.
        assert_eq!(draw(0), GOLDEN_SEED_0);
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    const GOLDEN_SEED_0: [u32; 8] = [4, 89, 97, 21, 59, 27, 78, 89];

    #[test]
    fn options_out_of_range_are_named() {
        let cases: [(&str, SamplerOptions); 11] = [
            ("temperature", SamplerOptions { temperature: -1.0, ..options() }),
            ("temperature", SamplerOptions { temperature: f32::NAN, ..options() }),
            ("temperature", SamplerOptions { temperature: f32::INFINITY, ..options() }),
            ("top_p", SamplerOptions { top_p: 0.0, ..options() }),
            ("top_p", SamplerOptions { top_p: 1.1, ..options() }),
            ("top_p", SamplerOptions { top_p: f32::NAN, ..options() }),
            ("min_p", SamplerOptions { min_p: -0.1, ..options() }),
            ("min_p", SamplerOptions { min_p: 1.5, ..options() }),
            ("repetition_penalty", SamplerOptions { repetition_penalty: 0.0, ..options() }),
            ("repetition_penalty", SamplerOptions { repetition_penalty: -2.0, ..options() }),
            ("repetition_penalty", SamplerOptions { repetition_penalty: f32::INFINITY, ..options() }),
        ];
        for (name, options) in cases {
            let error = Sampler::new(options).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(error.message().starts_with(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_errors() {
        for options in [SamplerOptions::default(), options()] {
            for (logits, says) in [
                (vec![0.0, f32::NAN], "token id 1 has NaN"),
                (vec![f32::INFINITY, 0.0], "token id 0 has inf"),
                (vec![f32::NEG_INFINITY; 3], "every logit is minus infinity"),
                (vec![], "no logits"),
            ] {
                let error = sampler(options).sample(&mut logits.clone(), &[]).unwrap_err();
                assert_eq!(error.code(), ErrorCode::NonFinite);
                assert!(error.message().contains(says), "{error}");
            }
        }
        let mut penalized = sampler(SamplerOptions { repetition_penalty: 1.1, ..options() });
        assert_eq!(penalized.sample(&mut [0.0], &[1]).unwrap_err().code(), ErrorCode::InvalidArgument);
    }

    /// The ids that stay, straight from the definitions.
    fn naive_support(options: &SamplerOptions, logits: &[f32]) -> Vec<u32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut left: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(id, &l)| {
                (id as u32, libm::exp((f64::from(l) - f64::from(max)) / f64::from(options.temperature)))
            })
            .collect();
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if options.top_k > 0 && options.top_k < left.len() {
            let threshold = left[options.top_k - 1].1;
            left.retain(|c| c.1 >= threshold);
        }
        if options.top_p < 1.0 {
            let total: f64 = left.iter().map(|c| c.1).sum();
            let mut mass = 0.0;
            left.retain(|c| {
                let keep = mass < f64::from(options.top_p) * total;
                mass += c.1;
                keep
            });
        }
        left.retain(|c| c.1 >= f64::from(options.min_p));
        let mut ids: Vec<u32> = left.iter().map(|c| c.0).collect();
        ids.sort_unstable();
        ids
    }

    proptest! {
        #[test]
        fn what_stays_equals_the_naive_filters(
            logits in prop::collection::vec(-8.0f32..8.0, 1..60),
            top_k in 0usize..70,
            top_p in 0.01f32..=1.0,
            min_p in 0.0f32..0.5,
            temperature in 0.1f32..3.0,
        ) {
            let options = SamplerOptions { temperature, top_k, top_p, min_p, ..options() };
            let expected = naive_support(&options, &logits);
            let mut sampler = sampler(options);
            let drawn = sampler.sample(&mut logits.clone(), &[]).unwrap();
            let mut kept: Vec<u32> = sampler.candidates.iter().map(|c| c.id).collect();
            kept.sort_unstable();
            prop_assert_eq!(&kept, &expected);
            prop_assert!(kept.contains(&drawn));
        }
    }
}
