//! Assesses a checkpoint's answers and gradient noise by level.

use crate::backend::Train;
use crate::dtype::DType;
use crate::error::{Context, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::{CausalLm, LoadOptions};
use crate::task::Control;
use crate::train::assess::{Assessment, Level, accuracy};
use crate::train::corpus::Document;
use crate::train::corpus::questions::Graded;
use crate::train::noise::gradient_noise;
use crate::train::{BatchCapacity, Origin, Precision, TrainedModel};
use std::collections::BTreeMap;

/// The questions by level.
pub type Levels = BTreeMap<usize, Vec<Document>>;

/// Groups the questions of files by level. A question without a level has its file's number, counted from 1.
pub fn by_level(files: impl IntoIterator<Item = Vec<Graded>>) -> Levels {
    let mut levels = Levels::new();
    for (index, file) in files.into_iter().enumerate() {
        for Graded { level, document } in file {
            levels.entry(level.unwrap_or(index + 1)).or_default().push(document);
        }
    }
    levels
}

/// Asks a model all questions, and measures the gradient noise of the first `noise_questions` of each level, if at
/// least two.
///
/// # Errors
/// As [`accuracy`], [`gradient_noise`] and [`Assessment::new`], with the level's number; errors of loading.
pub async fn assess<B: Train>(
    new_backend: &dyn Fn() -> Result<B>,
    checkpoint: &Checkpoint,
    levels: &Levels,
    noise_questions: usize,
    control: &dyn Control,
) -> Result<Assessment> {
    let place = |level: &usize| format!("level {level}");
    let mut model = CausalLm::load(new_backend()?, checkpoint, LoadOptions::default(), control).await?;
    let mut found = Vec::new();
    for (level, questions) in levels {
        let accuracy = accuracy(&mut model, questions, control).await.context_with(|| place(level))?;
        found.push(Level { level: *level, accuracy, gradient_noise: None });
    }
    drop(model);
    let mut assessment = Assessment::new(found)?;
    assessment.no_gradient_noise = if checkpoint.is_quantized() {
        Some("a quantized checkpoint has none; dequantize it first".to_owned())
    } else if noise_questions < 2 {
        Some("not requested".to_owned())
    } else {
        let sample = |questions: &Vec<Document>| questions.len().min(noise_questions);
        let longest = |(_, questions): (_, &Vec<Document>)| {
            questions[..sample(questions)].iter().map(|question| question.tokens.len()).max().unwrap_or(0)
        };
        let longest = levels.iter().map(longest).max().unwrap_or(0);
        let capacity = BatchCapacity { tokens: longest, context: longest };
        let precision = Precision { float: Some(DType::F32), ..Precision::default() };
        let origin = Origin::Checkpoint(checkpoint);
        let mut model = TrainedModel::new(new_backend()?, origin, precision, capacity).await?;
        for (level, questions) in assessment.levels.iter_mut().zip(levels.values()) {
            if questions.len() > 1 {
                let questions = &questions[..sample(questions)];
                let noise = gradient_noise(&mut model, questions, control).await;
                level.gradient_noise = noise.context_with(|| place(&level.level))?;
            }
        }
        None
    };
    Ok(assessment)
}
