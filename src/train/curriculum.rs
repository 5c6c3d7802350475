//! Levels one after the other: a model learns the easiest until it masters them, and then the next one with all before it, so that
//! nothing is forgotten (Bengio, Louradour, Collobert, Weston, *Curriculum Learning*, 2009; that levels stay is the "baby steps" of
//! Spitkovsky, Alshawi, Jurafsky, 2010).
//!
//! A level is mastered when more of its held-out questions are answered right than a level at the [edge](super::assess::EDGE) has. A model that
//! masters the first levels already begins behind them: at the edge of what it can do.

use super::TrainedModel;
use super::assess::{Accuracy, EDGE};
use super::corpus::Sequence;
use super::run::{batches, rows};
use crate::backend::{NO_INDEX, Train};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeSet;

/// The held-out questions of each level, from the easiest on.
#[derive(Clone, Debug, Default)]
pub struct Curriculum {
    levels: Vec<(usize, Vec<Sequence>)>,
}

/// A look at the level that is learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mastered {
    /// Its number.
    pub level: usize,
    /// How many of its questions are answered right.
    pub accuracy: Accuracy,
    /// The level that is learned from now on; `None` where it stays.
    pub next: Option<usize>,
}

impl Curriculum {
    /// Of questions by their levels, for a text whose documents have those.
    ///
    /// # Errors
    /// `invalid_argument` without levels, for a level that is learned and has no held-out questions, and for one that has some and is not
    /// learned.
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

    /// Asks a model the held-out questions of a level, and says whether the next one comes.
    ///
    /// # Errors
    /// What goes wrong on the device.
    pub async fn look<B: Train>(&self, model: &mut TrainedModel<B>, level: usize) -> Result<Mastered> {
        let at = self.levels.iter().position(|(number, _)| *number == level).unwrap_or(0);
        let (level, questions) = &self.levels[at];
        let mut right = 0;
        for batch in batches(questions, model.room().tokens) {
            let guesses = model.guesses(&rows(batch)).await?;
            let mut guesses = guesses.iter();
            for question in batch {
                let guessed: Vec<u32> = guesses.by_ref().take(question.tokens.len()).copied().collect();
                let is_right = |(guess, target): (&u32, &u32)| *target == NO_INDEX || guess == target;
                right += usize::from(guessed.iter().zip(&question.targets).all(is_right));
            }
        }
        let accuracy = Accuracy::new(right, questions.len());
        let next = self.levels.get(at + 1).filter(|_| accuracy.share > EDGE.1).map(|(level, _)| *level);
        Ok(Mastered { level: *level, accuracy, next })
    }
}
