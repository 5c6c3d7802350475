//! AdamW over all parameters of a model, learned scales included.

use crate::backend::{AdamW, Backend, BackwardStep, Element, Master, Train};
use crate::error::{Error, ErrorCode, Result};
use crate::model::runner::zero;
use crate::model::trained::Parameter;

/// Something with parameters that are trained together.
pub trait Trainable<B: Train> {
    /// The device of the parameters, and all parameters in a fixed order.
    fn trained(&mut self) -> (&mut B, Vec<&mut Parameter<B>>);
}

/// Sets all gradients to 0.
///
/// # Errors
/// Errors of the device.
pub fn zero_gradients<B: Train>(of: &mut impl Trainable<B>) -> Result<()> {
    let (backend, parameters) = of.trained();
    for parameter in parameters {
        let len = parameter.len();
        zero(backend, &mut parameter.gradient, len)?;
        if let Some(scales) = &mut parameter.scales {
            zero(backend, &mut scales.gradient, scales.grid.scales())?;
        }
    }
    Ok(())
}

/// Converts the gradients of dequantized weights into gradients of master weights and learned scales. Call it once,
/// after the gradients of all batches are accumulated.
///
/// # Errors
/// Errors of the device.
pub fn finish_gradients<B: Train>(of: &mut impl Trainable<B>) -> Result<()> {
    let (backend, parameters) = of.trained();
    for parameter in parameters {
        let Some(held) = parameter.scales.as_mut().filter(|held| held.learned) else { continue };
        backend.backward(BackwardStep::LearnedScales {
            weight: parameter.master.as_ref(),
            scales: &held.used,
            grid: held.grid,
            dweight: &mut parameter.gradient,
            dscales: &mut held.gradient,
        })?;
    }
    Ok(())
}

/// Settings that stay the same from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerOptions {
    /// Decay rates of the running means of gradients and of their squares.
    pub betas: (f64, f64),
    /// Keeps the quotient finite.
    pub epsilon: f64,
    /// Largest gradient norm over all parameters; a larger gradient is clipped to it. Infinite: no clipping.
    pub max_gradient_norm: f64,
    /// Learning rate of scales, relative to that of weights.
    pub scale_rate: f64,
    /// Seed of the stochastic rounding of half-precision masters.
    pub seed: u64,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self { betas: (0.9, 0.95), epsilon: 1e-8, max_gradient_norm: 1.0, scale_rate: 1.0, seed: 0 }
    }
}

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub rate: f64,
    /// Weight decay of matrices; norms, biases and scales have none.
    pub decay: f64,
}

/// AdamW with its running means.
pub struct Optimizer<B: Train> {
    options: OptimizerOptions,
    /// Completed steps.
    steps: u64,
    /// In parameter order: those of a parameter, then those of its learned scales.
    moments: Vec<Moments<B>>,
    sum: B::Buffer,
}

/// The running means of one parameter.
pub struct Moments<B: Train> {
    /// Of the gradient.
    pub mean: B::Buffer,
    /// Of its square.
    pub square: B::Buffer,
    /// Elements.
    pub len: usize,
}

impl<B: Train> Optimizer<B> {
    /// An optimizer before its first step.
    ///
    /// # Errors
    /// `out_of_memory`
    pub fn new(model: &mut impl Trainable<B>, options: OptimizerOptions) -> Result<Self> {
        let (backend, parameters) = model.trained();
        let mut moments = Vec::new();
        for parameter in parameters {
            let scales = parameter.scales.iter().filter(|scales| scales.learned);
            for len in std::iter::once(parameter.len()).chain(scales.map(|scales| scales.grid.scales())) {
                let mut buffer = || backend.buffer(Element::F32, len);
                moments.push(Moments { mean: buffer()?, square: buffer()?, len });
            }
        }
        let sum = backend.buffer(Element::F32, 1)?;
        Ok(Self { options, steps: 0, moments, sum })
    }

    /// Completed steps.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Step count and running means, to save or restore them.
    pub fn moments(&mut self) -> (&mut u64, &mut Vec<Moments<B>>) {
        (&mut self.steps, &mut self.moments)
    }

    /// Updates the parameters, and returns the gradient norm before clipping. The running weights change with the next
    /// [`TrainedModel::refresh_weights`](super::TrainedModel::refresh_weights).
    ///
    /// # Errors
    /// `non_finite` for a gradient that is NaN or infinite, before anything is changed; errors of the device.
    pub async fn step(&mut self, model: &mut impl Trainable<B>, at: Rate) -> Result<f64> {
        finish_gradients(model)?;
        let (backend, parameters) = model.trained();
        let mut squares = 0.0;
        for parameter in &parameters {
            squares += sum_of_squares(backend, &parameter.gradient, parameter.len(), &mut self.sum).await?;
            if let Some(scales) = parameter.scales.as_ref().filter(|scales| scales.learned) {
                let (gradient, len) = (&scales.gradient, scales.grid.scales());
                squares += sum_of_squares(backend, gradient, len, &mut self.sum).await?;
            }
        }
        let length = libm::sqrt(squares);
        if !length.is_finite() {
            return Err(Error::new(
                ErrorCode::NonFinite,
                "expected a gradient of finite norm but found NaN or infinity",
            ));
        }
        let OptimizerOptions { betas, epsilon, max_gradient_norm, scale_rate, seed } = self.options;
        let clip = (max_gradient_norm / (length + 1e-6)).min(1.0);
        self.steps += 1;
        let step = self.steps;
        let mut moments = self.moments.iter_mut();
        for (index, parameter) in parameters.into_iter().enumerate() {
            let decay = if parameter.is_matrix { at.decay } else { 0.0 };
            let seed = seed.wrapping_add(index as u64);
            let update = AdamW { rate: at.rate, betas, epsilon, decay, clip, step, seed };
            let mut change = |value: Master<&mut B::Buffer>, gradient: &B::Buffer, update| {
                let Moments { mean, square, len } = moments.next().ok_or_else(other_model)?;
                let moments = (mean, square);
                backend.backward(BackwardStep::AdamW { value, gradient, moments, len: *len, update })
            };
            change(parameter.master.as_mut(), &parameter.gradient, update)?;
            if let Some(scales) = parameter.scales.as_mut().filter(|scales| scales.learned) {
                let update = AdamW { rate: at.rate * scale_rate, decay: 0.0, ..update };
                change(Master::Single(&mut scales.master), &scales.gradient, update)?;
            }
        }
        Ok(length)
    }
}

async fn sum_of_squares<B: Train>(
    backend: &mut B,
    x: &B::Buffer,
    len: usize,
    out: &mut B::Buffer,
) -> Result<f64> {
    backend.backward(BackwardStep::SumOfSquares { x, len, out })?;
    let mut sum = [0.0];
    backend.read(out, 0, &mut sum).await?;
    Ok(f64::from(sum[0]))
}

fn other_model() -> Error {
    Error::invalid_argument("expected the model that the optimizer was made for")
}
