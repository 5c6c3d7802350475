//! Curriculum learning: a model learns the easiest level until it masters it, and then adds the next one. Earlier
//! levels stay in the data, so that they are not forgotten (Bengio, Louradour, Collobert, Weston, *Curriculum
//! Learning*, 2009; keeping levels is the "baby steps" of Spitkovsky, Alshawi, Jurafsky, 2010).
//!
//! A level is mastered if the accuracy on its held-out questions is above the [edge](super::assess::EDGE). A model that
//! masters the first levels from the start skips them and begins at the edge of its ability.

use super::TrainedModel;
use super::assess::{Accuracy, EDGE};
use super::corpus::Sequence;
use super::run::{batches, rows};
use crate::backend::{NO_INDEX, Train};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeSet;

/// The held-out questions of each level, easiest first.
#[derive(Clone, Debug, Default)]
pub struct Curriculum {
    levels: Vec<(usize, Vec<Sequence>)>,
}

/// An evaluation of the current level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LevelEvaluation {
    /// Its number.
    pub level: usize,
    /// The accuracy on its held-out questions.
    pub accuracy: Accuracy,
    /// The next level to learn; `None` if it stays the same.
    pub next: Option<usize>,
}

impl Curriculum {
    /// From held-out questions by level, for a corpus whose documents have levels `learned`.
    ///
    /// # Errors
    /// `invalid_argument` without levels, for a level to learn without held-out questions, and for held-out questions
    /// of a level that is not learned.
    pub fn new(levels: Vec<(usize, Vec<Sequence>)>, learned: &BTreeSet<usize>) -> Result<Self> {
        let held_out: BTreeSet<usize> = levels.iter().map(|(level, _)| *level).collect();
        if let Some(level) = learned.symmetric_difference(&held_out).next() {
            let missing =
                if learned.contains(level) { "held-out questions" } else { "questions to learn from" };
            return Err(Error::invalid_argument(format!("level {level}: expected {missing} but found none")));
        }
        if levels.is_empty() {
            return Err(Error::invalid_argument("expected levels but found none"));
        }
        Ok(Self { levels })
    }

    /// The first level.
    pub fn first(&self) -> usize {
        self.levels.first().map_or(0, |(level, _)| *level)
    }

    /// Evaluates a model on the held-out questions of a level, and decides whether the next one follows.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn evaluate<B: Train>(
        &self,
        model: &mut TrainedModel<B>,
        level: usize,
    ) -> Result<LevelEvaluation> {
        let at = self.levels.iter().position(|(number, _)| *number == level).unwrap_or(0);
        let (level, questions) = &self.levels[at];
        let mut right = 0;
        for batch in batches(questions, model.capacity().tokens) {
            let greedy_predictions = model.greedy_predictions(&rows(batch)).await?;
            let mut greedy_predictions = greedy_predictions.iter();
            for question in batch {
                let predicted: Vec<u32> =
                    greedy_predictions.by_ref().take(question.tokens.len()).copied().collect();
                let is_right = |(guess, target): (&u32, &u32)| *target == NO_INDEX || guess == target;
                right += usize::from(predicted.iter().zip(&question.targets).all(is_right));
            }
        }
        let accuracy = Accuracy::new(right, questions.len());
        let next = self.levels.get(at + 1).filter(|_| accuracy.share > EDGE.1).map(|(level, _)| *level);
        Ok(LevelEvaluation { level: *level, accuracy, next })
    }
}
