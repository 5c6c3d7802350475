//! How much the gradients of questions differ: `mean |g_i - mean g|^2 / |mean g|^2` over a sample, noise over signal.
//!
//! It is a figure beside accuracy and no measure of difficulty. Of n questions whose gradients have nothing in common it comes to about
//! n - 1, so that only figures of as many questions can be compared. Sums run: one gradient is held beside the model's own, however many
//! questions there are.

use super::corpus::Document;
use super::{Goal, Row, TrainedModel};
use crate::backend::{Backend, NO_INDEX, Train};
use crate::error::{Context, Error, Result};
use crate::task::{self, Control, Progress};

/// The figure of these questions; the loss of a question is the mean over its answer's tokens. `None` where the mean gradient is 0.
///
/// # Errors
/// `invalid_argument` for less than two questions; as [`TrainedModel::backward`]'s, with the question's number; `cancelled`.
pub async fn gradient_noise<B: Train>(
    model: &mut TrainedModel<B>,
    questions: &[Document],
    control: &dyn Control,
) -> Result<Option<f64>> {
    if questions.len() < 2 {
        return Err(Error::invalid_argument(format!(
            "expected two questions at least, whose gradients may differ, but found {}",
            questions.len()
        )));
    }
    let mut held: Vec<Vec<f64>> = model.parts().1.all().map(|parameter| vec![0.0; parameter.len()]).collect();
    let (mut squares, count) = (0.0, questions.len() as f64);
    let mut values = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        let (done, total) = (index as u64, questions.len() as u64);
        control.progress(&Progress { phase: "gradients", done, total, item: "" });
        task::checkpoint(control).await?;
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
    model.backward(&[row], Goal::TEXT, None, 1.0 / counted.max(1) as f32).await?;
    Ok(())
}
