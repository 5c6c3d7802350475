//! Accuracy of a model at each level of a task, and the level at which it learns most: the edge of its ability.
//!
//! An answer is right if each of its tokens, the end token included, is the most likely one after the right tokens
//! before it. One pass over question and answer is therefore enough: greedy generation would give the same result.
//!
//! The edge is folklore: the highest level with an accuracy from 70% to 80%, or else the one nearest to 75%. Each
//! accuracy has a 95% interval (Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, 1927).

use super::corpus::Document;
use crate::backend::Backend;
use crate::error::{Context, Error, Result};
use crate::model::CausalLm;
use crate::model::decoder::{Logits, Run};
use crate::model::runner::chunk_tokens;
use crate::options::named;
use crate::task::{Control, Progress};
use crate::validate::metrics::argmax;
use serde::Serialize;

/// The accuracies that count as the edge.
pub const EDGE: (f64, f64) = (0.70, 0.80);
/// The middle of that range.
pub const TARGET: f64 = 0.75;

/// Standard deviations within which 95% of a normal distribution lie.
const DEVIATIONS: f64 = 1.959_963_984_540_054;

/// Right answers out of all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Questions.
    pub questions: usize,
    /// Right answers.
    pub right: usize,
    /// Right answers as a fraction of questions.
    pub share: f64,
    /// The lower end of the 95% interval.
    pub low: f64,
    /// The upper end of the 95% interval.
    pub high: f64,
}

impl Accuracy {
    /// Needs at least one question.
    pub fn new(right: usize, questions: usize) -> Self {
        let (n, share) = (questions as f64, right as f64 / questions as f64);
        let squared = DEVIATIONS * DEVIATIONS;
        let middle = (share + squared / (2.0 * n)) / (1.0 + squared / n);
        let variance = share * (1.0 - share) / n + squared / (4.0 * n * n);
        let half = DEVIATIONS * libm::sqrt(variance) / (1.0 + squared / n);
        Self { questions, right, share, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }
}

/// A level that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Level {
    /// Its number.
    pub level: usize,
    /// The accuracy on its questions.
    pub accuracy: Accuracy,
    /// How much the gradients of its questions differ (see [`noise`](super::noise)). It does not influence the choice.
    pub gradient_noise: Option<f64>,
}

named! {
    /// How a model's accuracies over the levels relate to the edge.
    pub enum Verdict {
        /// A level has an accuracy from 70% to 80%
        AtTheEdge = "at the edge",
        /// No level has, but some are above and some below
        Between = "between levels",
        /// All levels are above 80%
        TooEasy = "too easy",
        /// All levels are below 70%
        TooHard = "too hard",
    }
}

/// The levels and the choice among them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assessment {
    /// From the first level on.
    pub levels: Vec<Level>,
    /// The number of the level at the edge, or of the one nearest to it.
    pub chosen: usize,
    /// Whether it is at the edge or only nearest, and why.
    pub verdict: Verdict,
    /// Whether no level is significantly easier than one before it.
    pub monotonic: bool,
    /// Pairs of levels in which the later one has the higher accuracy, with disjoint intervals.
    pub inversions: Vec<(usize, usize)>,
    /// Why gradient noise was not measured.
    pub no_gradient_noise: Option<String>,
}

impl Assessment {
    /// Chooses among levels, given in order of difficulty.
    ///
    /// # Errors
    /// `invalid_argument` without levels.
    pub fn new(levels: Vec<Level>) -> Result<Self> {
        let share = |level: &Level| level.accuracy.share;
        let at_edge = |level: &&Level| (EDGE.0..=EDGE.1).contains(&share(level));
        let distance = |level: &Level| (share(level) - TARGET).abs();
        let nearest = levels.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let (chosen, verdict) = match (levels.iter().rfind(at_edge), nearest) {
            (Some(level), _) => (level.level, Verdict::AtTheEdge),
            (None, Some(level)) => {
                let verdict = if levels.iter().all(|level| share(level) > EDGE.1) {
                    Verdict::TooEasy
                } else if levels.iter().all(|level| share(level) < EDGE.0) {
                    Verdict::TooHard
                } else {
                    Verdict::Between
                };
                (level.level, verdict)
            }
            (None, None) => return Err(Error::invalid_argument("expected a level but found none")),
        };
        let mut inversions = Vec::new();
        for (index, harder) in levels.iter().enumerate() {
            let easier = levels[..index].iter().filter(|easier| harder.accuracy.low > easier.accuracy.high);
            inversions.extend(easier.map(|easier| (easier.level, harder.level)));
        }
        let monotonic = inversions.is_empty();
        Ok(Self { levels, chosen, verdict, monotonic, inversions, no_gradient_noise: None })
    }

    /// The chosen level.
    pub fn optimal(&self) -> Option<&Level> {
        self.levels.iter().find(|level| level.level == self.chosen)
    }
}

/// The model's accuracy on `questions`.
///
/// # Errors
/// `invalid_argument` without a question; `context_overflow` with the question's number for one longer than the model's
/// context; `cancelled`; errors of the device.
pub async fn accuracy<B: Backend>(
    model: &mut CausalLm<B>,
    questions: &[Document],
    control: &dyn Control,
) -> Result<Accuracy> {
    let mut longest = 0;
    for (index, Document { tokens, .. }) in questions.iter().enumerate() {
        model.config().check_context(tokens.len()).context_with(|| format!("question {}", index + 1))?;
        longest = longest.max(tokens.len());
    }
    if longest < 2 {
        return Err(Error::invalid_argument("expected questions with answers but found none"));
    }
    let sequences = (chunk_tokens(model.config()) / longest).clamp(1, questions.len());
    let mut cache = model.new_batch_cache(sequences, longest)?;
    let mut right = 0;
    for (done, batch) in questions.chunks(sequences).enumerate() {
        let (done, total) = ((done * sequences) as u64, questions.len() as u64);
        control.progress(&Progress { phase: "answer", done, total, item: "" });
        (0..sequences).for_each(|sequence| cache.truncate(sequence, 0));
        // The last token is predicted, never fed.
        let inputs = batch.iter().map(|question| &question.tokens[..question.tokens.len().saturating_sub(1)]);
        let runs: Vec<Run<'_>> =
            inputs.enumerate().map(|(sequence, tokens)| Run { sequence, tokens }).collect();
        let mut is_right = vec![true; batch.len()];
        let each = |run: usize, index: usize, row: &[f32]| {
            let Document { tokens, counts, .. } = &batch[run];
            if counts[index + 1] && argmax(row) != Some(tokens[index + 1] as usize) {
                is_right[run] = false;
            }
            Ok(())
        };
        model.forward_runs(&runs, &mut cache, Logits::All, control, each).await?;
        right += is_right.into_iter().filter(|&is_right| is_right).count();
    }
    Ok(Accuracy::new(right, questions.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // Newcombe, *Two-sided confidence intervals for the single proportion*, 1998, table I, method 3.
        for (right, questions, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let found = Accuracy::new(right, questions);
            assert!((found.low - low).abs() < 5e-5 && (found.high - high).abs() < 5e-5, "{found:?}");
            let other = Accuracy::new(questions - right, questions);
            assert!((other.low + found.high - 1.0).abs() < 1e-12, "{other:?}");
        }
    }

    fn assessed(rights: &[usize]) -> Assessment {
        let level = |(index, &right)| Level {
            level: index + 1,
            accuracy: Accuracy::new(right, 100),
            gradient_noise: None,
        };
        Assessment::new(rights.iter().enumerate().map(level).collect()).unwrap()
    }

    #[test]
    fn the_edge_is_the_highest_level_between_70_and_80_percent_or_else_the_nearest_to_75() {
        type Case<'a> = (&'a [usize], usize, Verdict, &'a [(usize, usize)]);
        let cases: [Case<'_>; 9] = [
            (&[100, 90, 75, 40], 3, Verdict::AtTheEdge, &[]),
            (&[100, 79, 71, 40], 3, Verdict::AtTheEdge, &[]),
            (&[80], 1, Verdict::AtTheEdge, &[]),
            (&[70], 1, Verdict::AtTheEdge, &[]),
            (&[100, 90, 62, 40], 3, Verdict::Between, &[]),
            (&[100, 85, 60, 40], 2, Verdict::Between, &[]),
            (&[100, 99, 81], 3, Verdict::TooEasy, &[]),
            (&[69, 50, 10], 1, Verdict::TooHard, &[]),
            (&[50, 78, 52, 90], 2, Verdict::AtTheEdge, &[(1, 2), (1, 4), (3, 4)]),
        ];
        for (rights, chosen, verdict, inversions) in cases {
            let found = assessed(rights);
            assert_eq!((found.chosen, found.verdict), (chosen, verdict), "{rights:?}");
            assert_eq!(found.monotonic, inversions.is_empty(), "{rights:?}");
            assert_eq!(found.optimal().unwrap().level, chosen);
            assert_eq!(found.inversions, inversions, "{rights:?}");
        }
        assert!(Assessment::new(Vec::new()).is_err());
    }
}
