//! The texts of a training: for learning, and held out. With a curriculum both are questions by level.

use crate::error::{Error, Result};
use crate::pipeline::assess::Levels;
use crate::train::BatchCapacity;
use crate::train::corpus::{Corpus, Document, Sequence};
use crate::train::curriculum::Curriculum;

/// Training and held-out texts.
pub struct TrainingTexts {
    /// The texts to learn from.
    pub corpus: Corpus,
    /// The sequences of the held-out texts.
    pub held_out: Vec<Sequence>,
    /// The held-out questions by level.
    pub curriculum: Option<Curriculum>,
}

impl TrainingTexts {
    /// Texts without levels.
    ///
    /// # Errors
    /// As [`Corpus::sequences`].
    pub fn new(corpus: Corpus, held_out: Option<Corpus>, capacity: BatchCapacity) -> Result<Self> {
        let held_out = held_out.map_or(Ok(Vec::new()), |held_out| held_out.sequences(capacity.tokens))?;
        Ok(Self { corpus, held_out, curriculum: None })
    }

    /// Questions for a curriculum. `new_corpus` builds a corpus for the model.
    ///
    /// # Errors
    /// `invalid_argument` for a held-out question that is longer than a row; as [`Curriculum::new`] and `new_corpus`.
    pub fn graded(
        questions: Levels,
        held_out: Levels,
        capacity: BatchCapacity,
        new_corpus: impl Fn(Vec<Document>) -> Result<Corpus>,
    ) -> Result<Self> {
        let (mut documents, mut numbers) = (Vec::new(), Vec::new());
        for (level, questions) in questions {
            numbers.extend(vec![level; questions.len()]);
            documents.extend(questions);
        }
        let corpus = new_corpus(documents)?.graded(numbers)?;
        let mut levels = Vec::new();
        for (level, questions) in held_out {
            let count = questions.len();
            let whole = new_corpus(questions)?.sequences(capacity.tokens)?;
            if whole.len() != count {
                return Err(Error::invalid_argument(format!(
                    "level {level}: expected held-out questions of at most {} tokens but found a longer one",
                    capacity.context
                )));
            }
            levels.push((level, whole));
        }
        let held_out = levels.iter().flat_map(|(_, questions)| questions).cloned().collect();
        let curriculum = Some(Curriculum::new(levels, &corpus.levels())?);
        Ok(Self { corpus, held_out, curriculum })
    }
}
