//! How well a model does at each level of a task, and at which level it learns most: at the edge of what it can do.
//!
//! An answer is right where it is what the model would say: at each of its tokens, its end included, the likeliest one with the right
//! tokens before it. So one pass over question and answer is enough, and greedy generation would give the same.
//!
//! The edge is folklore: the highest level of which the model gets between 70% and 80% right, or the one nearest to 75%. Each accuracy has
//! its interval of 95% (Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, 1927).

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

/// Shares of right answers between which the edge is.
pub const EDGE: (f64, f64) = (0.70, 0.80);
/// The middle of them.
pub const TARGET: f64 = 0.75;

/// The normal distribution is within so many deviations in 95% of all cases.
const DEVIATIONS: f64 = 1.959_963_984_540_054;

/// Right answers among all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Questions.
    pub questions: usize,
    /// Right answers.
    pub right: usize,
    /// Their share.
    pub share: f64,
    /// The lower end of its interval of 95%.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Accuracy {
    /// Of at least one question.
    pub fn new(right: usize, questions: usize) -> Self {
        let (n, share) = (questions as f64, right as f64 / questions as f64);
        let squared = DEVIATIONS * DEVIATIONS;
        let middle = (share + squared / (2.0 * n)) / (1.0 + squared / n);
        let variance = share * (1.0 - share) / n + squared / (4.0 * n * n);
        let half = DEVIATIONS * libm::sqrt(variance) / (1.0 + squared / n);
        Self { questions, right, share, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }
}

/// A level that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Level {
    /// Its number.
    pub level: usize,
    /// How many answers are right.
    pub accuracy: Accuracy,
    /// How much the gradients of its questions differ: see [`noise`](super::noise). It decides nothing.
    pub gradient_noise: Option<f64>,
}

named! {
    /// What a model's levels are like.
    pub enum Verdict {
        /// A level has between 70% and 80%
        AtTheEdge = "at the edge",
        /// No level has, though some have more and some less
        Between = "between levels",
        /// All levels have more
        TooEasy = "too easy",
        /// All levels have less
        TooHard = "too hard",
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assessment {
    /// From the first on.
    pub levels: Vec<Level>,
    /// The number of the level at the edge, or of the one nearest to it.
    pub chosen: usize,
    /// Which of the two it is, and why.
    pub verdict: Verdict,
    /// Whether no level has certainly more right answers than one before it.
    pub monotonic: bool,
    /// Pairs of levels of which the later one has more: their intervals are apart.
    pub inversions: Vec<(usize, usize)>,
    /// Why gradients were left out.
    pub no_gradient_noise: Option<String>,
}

impl Assessment {
    /// Chooses among levels, which come in the order of their difficulty.
    ///
    /// # Errors
    /// `invalid_argument` without a level.
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
            (None, None) => return Err(Error::invalid_argument("expected a level at least but found none")),
        };
        let mut inversions = Vec::new();
        for (index, harder) in levels.iter().enumerate() {
            let easier = levels[..index].iter().filter(|easier| harder.accuracy.low > easier.accuracy.high);
            inversions.extend(easier.map(|easier| (easier.level, harder.level)));
        }
        let monotonic = inversions.is_empty();
        Ok(Self { levels, chosen, verdict, monotonic, inversions, no_gradient_noise: None })
    }

    /// The level that was chosen.
    pub fn optimal(&self) -> Option<&Level> {
        self.levels.iter().find(|level| level.level == self.chosen)
    }
}

/// How many of these questions a model answers right.
///
/// # Errors
/// `invalid_argument` without a question, and `context_overflow` for one that is longer than what the model was made for, with its number;
/// `cancelled`; what goes wrong on the device.
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
