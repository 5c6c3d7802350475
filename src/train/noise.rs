//! Gradient noise: `mean |g_i - mean g|^2 / |mean g|^2` over a sample of questions, noise over signal.
//!
//! It is reported beside accuracy and does not measure difficulty. For n questions with unrelated gradients it is about
//! n - 1, so only samples of the same size are comparable. Sums are accumulated: one gradient is held beside the
//! model's own, whatever the number of questions.

use super::corpus::Document;
use super::{LossWeights, Row, TrainedModel};
use crate::backend::{Backend, NO_INDEX, Train};
use crate::error::{Context, Error, Result};
use crate::task::{self, Control, Progress};

/// The gradient noise of `questions`. The loss of a question is the mean over its answer's tokens. `None` if the mean
/// gradient is 0.
///
/// # Errors
/// `invalid_argument` for fewer than two questions; as [`TrainedModel::backward`], with the question's number;
/// `cancelled`.
pub async fn gradient_noise<B: Train>(
    model: &mut TrainedModel<B>,
    questions: &[Document],
    control: &dyn Control,
) -> Result<Option<f64>> {
    if questions.len() < 2 {
        return Err(Error::invalid_argument(format!(
            "expected at least two questions, whose gradients may differ, but found {}",
            questions.len()
        )));
    }
    let mut held: Vec<Vec<f64>> = model.parts().1.all().map(|parameter| vec![0.0; parameter.len()]).collect();
    let (mut squares, count) = (0.0, questions.len() as f64);
    let mut values = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        let (done, total) = (index as u64, questions.len() as u64);
        control.progress(&Progress { phase: "gradients", done, total, item: "" });
        task::yield_point(control).await?;
        model.zero_gradients()?;
        backward(model, question).await.context_with(|| format!("question {}", index + 1))?;
        let (backend, parameters) = model.parts();
        for (parameter, held) in parameters.all().zip(&mut held) {
            values.resize(parameter.len(), 0.0);
            backend.read(&parameter.gradient, 0, &mut values).await?;
            for (held, &value) in held.iter_mut().zip(&values) {
                *held += f64::from(value);
                squares += f64::from(value) * f64::from(value);
            }
        }
    }
    let signal: f64 = held.iter().flatten().map(|sum| sum / count * (sum / count)).sum();
    Ok((signal > 0.0).then(|| (squares / count - signal).max(0.0) / signal))
}

async fn backward<B: Train>(model: &mut TrainedModel<B>, question: &Document) -> Result<()> {
    let Document { tokens, counts, .. } = question;
    let target = |(&token, &counts): (&u32, &bool)| if counts { token } else { NO_INDEX };
    let targets: Vec<u32> = tokens.iter().zip(counts).skip(1).map(target).collect();
    let counted = targets.iter().filter(|&&target| target != NO_INDEX).count();
    let row = Row { tokens: &tokens[..targets.len()], targets: &targets };
    model.backward(&[row], LossWeights::TEXT, None, 1.0 / counted.max(1) as f32).await?;
    Ok(())
}
