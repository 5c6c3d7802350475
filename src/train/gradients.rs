//! Gradient check: every parameter has a gradient, and gradients are the slope of the loss.
//!
//! On one batch there are three checks:
//!
//! 1. The gradients. One that is 0 everywhere is dead; one with NaN or infinity is invalid. Rows of the embedding whose
//!    tokens do not occur are 0, as they should be.
//! 2. A step of AdamW must lower the loss of the same batch.
//! 3. If nothing is rounded, the derivative of the loss along a few directions, by central differences.
//!
//! A direction moves each tensor along its own normalized gradient, times a random factor from 0.5 to 1.5. It detects a
//! gradient of the wrong length in one tensor, and wrong values in places. It does not detect gradients that are
//! wrongly zero. Rounding is passed through by a straight-through estimator, so gradients of a rounded model are not
//! derivatives and the third check is left out.

use super::optimizer::{Optimizer, OptimizerOptions, Rate};
use super::{LossWeights, Row, Stored, TrainedModel, counted};
use crate::backend::{Backend, Master, Train};
use crate::dtype::DType;
use crate::error::Result;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// Number of directions.
const DIRECTIONS: usize = 3;
/// The relative change of the loss along a direction, each way. It is far above the error of sums in single precision,
/// 1e-7, and small enough for the loss to be linear.
const CHANGE: f64 = 1e-3;
/// Largest relative difference between the slope by differences and by gradients. Measured on every architecture of the
/// golden files: at most 4.4e-4, and 2.9e-5 for a trained model.
pub const SLOPE_ERROR: f64 = 1e-2;
/// Learning rates of the step, tried in order until the loss falls.
const RATES: [f64; 3] = [1e-3, 1e-4, 1e-5];

/// The result of the gradient check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GradientReport {
    /// Whether all checks passed.
    pub passed: bool,
    /// One sentence per failure.
    pub failures: Vec<String>,
    /// Tensors that have a gradient.
    pub tensors: usize,
    /// Elements of all those tensors.
    pub elements: u64,
    /// Predictions of the batch.
    pub predictions: usize,
    /// Mean loss of the batch, in nats.
    pub loss: f64,
    /// The norm of all gradients together.
    pub length: f64,
    /// Tensors whose gradient is exactly 0 everywhere.
    pub dead: Vec<String>,
    /// Tensors whose gradient has NaN or infinity.
    pub non_finite: Vec<String>,
    /// The result of one step; `None` if the gradients are not finite.
    pub step: Option<CheckedStep>,
    /// The slopes along directions; `None` if the gradients are not finite or something is rounded.
    pub slopes: Option<Vec<Slope>>,
    /// Whether the model that ran rounds anything.
    pub rounded: bool,
}

/// A step of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CheckedStep {
    /// The largest tried learning rate at which the loss fell, or the smallest of all.
    pub learning_rate: f64,
    /// Mean loss of the same batch after it.
    pub loss: f64,
}

/// The derivative of the loss along a direction of length 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Slope {
    /// According to the gradients.
    pub expected: f64,
    /// By central differences.
    pub found: f64,
}

impl Slope {
    /// The relative difference from what the gradients say.
    pub fn error(&self) -> f64 {
        (self.found / self.expected - 1.0).abs()
    }
}

/// Checks the gradients of a batch. Afterwards the model has its initial parameters again.
///
/// # Errors
/// As [`TrainedModel::backward`] and [`TrainedModel::refresh_weights`].
pub async fn check<B: Train>(
    model: &mut TrainedModel<B>,
    batch: &[Row<'_>],
    seed: u64,
) -> Result<GradientReport> {
    let loss = differentiate(model, batch).await?;
    model.finish_gradients()?;
    let gradients = model.gradients().await?;
    let named = |is: &dyn Fn(&[f32]) -> bool| -> Vec<String> {
        gradients.iter().filter(|(_, gradient)| is(gradient)).map(|(name, _)| name.clone()).collect()
    };
    let lengths: Vec<f64> = gradients.iter().map(|(_, gradient)| length(gradient)).collect();
    let mut report = GradientReport {
        passed: false,
        failures: Vec::new(),
        tensors: gradients.len(),
        elements: gradients.iter().map(|(_, gradient)| gradient.len() as u64).sum(),
        predictions: counted(batch),
        loss,
        length: libm::sqrt(lengths.iter().map(|length| length * length).sum()),
        dead: named(&|gradient| gradient.iter().all(|&value| value == 0.0)),
        non_finite: named(&|gradient| gradient.iter().any(|value| !value.is_finite())),
        step: None,
        slopes: None,
        rounded: is_rounded(model),
    };
    if report.non_finite.is_empty() {
        let begun = Snapshot::take(model).await?;
        if !report.rounded {
            report.slopes = Some(slopes(model, batch, &begun, &gradients, &lengths, (loss, seed)).await?);
        }
        drop(gradients);
        report.step = Some(step(model, batch, &begun, loss).await?);
        begun.give_back(model).await?;
    }
    report.judge();
    Ok(report)
}

impl GradientReport {
    /// Collects the failures.
    fn judge(&mut self) {
        let mut failures = Vec::new();
        for name in &self.dead {
            failures.push(format!("the gradient of `{name}` is 0 everywhere"));
        }
        for name in &self.non_finite {
            failures.push(format!("the gradient of `{name}` is not finite"));
        }
        if let Some(step) = self.step
            && (step.loss >= self.loss || step.loss.is_nan())
        {
            failures.push(format!(
                "expected a step to make the loss smaller than {} but found {}",
                self.loss, step.loss
            ));
        }
        for slope in self.slopes.iter().flatten() {
            if slope.error().is_nan() || slope.error() > SLOPE_ERROR {
                failures.push(format!(
                    "expected a slope of {} by the gradients but found {} by differences of the loss",
                    slope.expected, slope.found
                ));
            }
        }
        self.passed = failures.is_empty();
        self.failures = failures;
    }
}

/// Computes the gradients of a batch and returns its mean loss.
async fn differentiate<B: Train>(model: &mut TrainedModel<B>, batch: &[Row<'_>]) -> Result<f64> {
    let share = 1.0 / counted(batch).max(1) as f64;
    model.zero_gradients()?;
    let sums = model.backward(batch, LossWeights::TEXT, None, share as f32).await?;
    Ok(LossWeights::TEXT.loss(sums) * share)
}

async fn mean_loss<B: Train>(model: &mut TrainedModel<B>, batch: &[Row<'_>]) -> Result<f64> {
    let sums = model.losses(batch, LossWeights::TEXT, None).await?;
    Ok(LossWeights::TEXT.loss(sums) / counted(batch).max(1) as f64)
}

fn length(values: &[f32]) -> f64 {
    libm::sqrt(values.iter().map(|&value| f64::from(value) * f64::from(value)).sum())
}

/// Whether the running weights differ from the master weights, or the masters are of half precision.
fn is_rounded<B: Train>(model: &mut TrainedModel<B>) -> bool {
    model.parts().1.all().any(|parameter| {
        parameter.stored != Stored::Float(DType::F32) || matches!(parameter.master, Master::Half(_))
    })
}

/// The slopes of the loss along a few directions. Tensors without a gradient stay where they are.
async fn slopes<B: Train>(
    model: &mut TrainedModel<B>,
    batch: &[Row<'_>],
    begun: &Snapshot,
    gradients: &[(String, Vec<f32>)],
    lengths: &[f64],
    (loss, seed): (f64, u64),
) -> Result<Vec<Slope>> {
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut slopes = Vec::new();
    for _ in 0..DIRECTIONS {
        let factor = |length: &f64| {
            let factor = 0.5 + (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            if *length > 0.0 { factor } else { 0.0 }
        };
        let factors: Vec<f64> = lengths.iter().map(factor).collect();
        let whole = libm::sqrt(factors.iter().map(|factor| factor * factor).sum());
        let along: f64 = factors.iter().zip(lengths).map(|(factor, length)| factor * length).sum();
        let expected = along / whole;
        if expected == 0.0 {
            continue;
        }
        let way = CHANGE * loss / expected;
        let mut losses = [0.0; 2];
        for (loss, way) in losses.iter_mut().zip([way, -way]) {
            let (backend, parameters) = model.parts();
            let all = parameters.all_mut().zip(&begun.parameters).zip(gradients);
            for (((parameter, (values, _)), (_, gradient)), (factor, length)) in
                all.zip(factors.iter().zip(lengths))
            {
                let step = if *length > 0.0 { way * factor / (whole * length) } else { 0.0 };
                let moved = |(value, gradient): (&f32, &f32)| value + (step * f64::from(*gradient)) as f32;
                let moved: Vec<f32> = values.iter().zip(gradient).map(moved).collect();
                parameter.set(backend, &moved)?;
            }
            model.refresh_weights().await?;
            *loss = mean_loss(model, batch).await?;
        }
        slopes.push(Slope { expected, found: (losses[0] - losses[1]) / (2.0 * way) });
    }
    Ok(slopes)
}

/// Makes one step, at a lower rate where the loss does not fall.
async fn step<B: Train>(
    model: &mut TrainedModel<B>,
    batch: &[Row<'_>],
    begun: &Snapshot,
    before: f64,
) -> Result<CheckedStep> {
    let mut last = CheckedStep { learning_rate: 0.0, loss: before };
    for rate in RATES {
        begun.give_back(model).await?;
        differentiate(model, batch).await?;
        let mut optimizer = Optimizer::new(model, OptimizerOptions::default())?;
        optimizer.step(model, Rate { rate, decay: 0.0 }).await?;
        model.refresh_weights().await?;
        last = CheckedStep { learning_rate: rate, loss: mean_loss(model, batch).await? };
        if last.loss < before {
            break;
        }
    }
    Ok(last)
}

/// The values of all parameters and of their held scales, in order.
struct Snapshot {
    parameters: Vec<(Vec<f32>, Option<Vec<f32>>)>,
}

impl Snapshot {
    async fn take<B: Train>(model: &mut TrainedModel<B>) -> Result<Self> {
        let (backend, all) = model.parts();
        let mut parameters = Vec::new();
        for parameter in all.all() {
            let values = parameter.values(backend).await?.into_owned();
            let scales = match &parameter.scales {
                Some(held) => {
                    let mut scales = vec![0.0; held.grid.scales()];
                    backend.read(&held.master, 0, &mut scales).await?;
                    Some(scales)
                }
                None => None,
            };
            parameters.push((values, scales));
        }
        Ok(Self { parameters })
    }

    async fn give_back<B: Train>(&self, model: &mut TrainedModel<B>) -> Result<()> {
        let (backend, all) = model.parts();
        for (parameter, (values, scales)) in all.all_mut().zip(&self.parameters) {
            parameter.set(backend, values)?;
            if let (Some(held), Some(scales)) = (&mut parameter.scales, scales) {
                backend.write_f32(&mut held.master, scales)?;
            }
        }
        model.refresh_weights().await
    }
}
