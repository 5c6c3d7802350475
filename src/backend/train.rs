//! Backward steps, as coarse as the forward steps: the operations that training adds to [`DeviceOps`].

use super::segment::{Extent, check_segments};
use super::step::check;
use super::{
    AttentionShape, DeviceOps, Element, Elements, GateActivation, KvLayer, Matrices, Norm, QkNorm, Segment,
};
use crate::error::{Context, Error, Result};

/// A backward step; `B` is a buffer, `W` a weight. A prefix `d` means the derivative of the loss with respect to the
/// named value. Gradients of parameters, and gradients to which several steps contribute, are accumulated; the others
/// are overwritten.
pub enum BackwardStep<'a, B, W> {
    /// Of `y = W x + bias`: `dx = dy W`, and for each matrix of the weight `dW += dy^T x` and `dbias += sum of dy`.
    /// Rounding uses the straight-through estimator: `W` and `x` are the operands of the forward product, rounded if it
    /// rounds (Bengio, Leonard, Courville, *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013).
    Linear {
        /// `[count, cols]`, the input of the forward step
        x: &'a B,
        /// `[count, rows of all matrices]`
        dy: &'a B,
        /// Rows of `x`.
        count: usize,
        /// As in the forward step.
        weight: &'a W,
        /// `[count, cols]`, written
        dx: &'a mut B,
        /// One entry for each matrix of the weight.
        parts: Vec<PartGradient<'a, B>>,
    },
    /// Of `y = x / sqrt(mean(x^2) + eps) * g`, for each row: `dx += ..`, `dg += ..`.
    RmsNorm {
        /// `[count, width]`
        x: &'a B,
        /// `[count, width]`
        dy: &'a B,
        /// Rows.
        count: usize,
        /// As in the forward step.
        norm: Norm<&'a B>,
        /// `[count, width]`
        dx: &'a mut B,
        /// `[width]`
        dweight: &'a mut B,
    },
    /// Of `y = act(gate) * up`.
    Gate {
        /// `[count, 2 * width]`, gate first
        gate_up: &'a B,
        /// `[count, width]`
        dy: &'a B,
        /// Rows.
        count: usize,
        /// Elements of a row of the output.
        width: usize,
        /// As in the forward step.
        activation: GateActivation,
        /// `[count, 2 * width]`, written
        dx: &'a mut B,
    },
    /// Of attention over segments that start at the beginning of their sequences (`past` 0).
    Attention {
        /// `[rows, qkv width]`, after rotation
        qkv: &'a B,
        /// As in the forward step.
        segments: &'a [Segment],
        /// As in the forward step.
        shape: AttentionShape,
        /// As in the forward step.
        cache: KvLayer<&'a B>,
        /// `[rows, heads * head_dim]`
        dy: &'a B,
        /// `[rows, qkv width]`, written: gradients of q, k and v after rotation
        dx: &'a mut B,
    },
    /// Of the per-head norms and the rotation of q and k, in place.
    Rope {
        /// `[rows, qkv width]`: on input gradients of q and k after rotation, on output before their norms
        dx: &'a mut B,
        /// As in the forward step.
        segments: &'a [Segment],
        /// As in the forward step.
        shape: AttentionShape,
        /// As in the forward step.
        rope: &'a B,
        /// Present if heads are normalized.
        norms: Option<HeadNorms<'a, B>>,
    },
    /// Of an embedding table: `dtable[token] += dx`.
    Embed {
        /// `[count]`
        tokens: &'a B,
        /// `[count, width]`
        dx: &'a B,
        /// Tokens.
        count: usize,
        /// Rows of the table.
        rows: usize,
        /// Elements of a row.
        width: usize,
        /// `[rows, width]`
        dtable: &'a mut B,
    },
    /// The cross-entropy loss of each row, `-ln softmax(logits)[target]`, and `share` times its gradient.
    CrossEntropy {
        /// `[count, vocabulary]`
        logits: &'a B,
        /// `[count]`; [`NO_INDEX`](super::NO_INDEX) marks a row without a target, whose loss and gradient are 0
        targets: &'a B,
        /// Rows.
        count: usize,
        /// Elements of a row.
        vocabulary: usize,
        /// Weight of a row in the loss of the batch.
        share: f32,
        /// `[count, vocabulary]`
        dlogits: &'a mut B,
        /// `[count]`, written
        losses: &'a mut B,
    },
    /// The divergence of each row's prediction from a teacher's, `KL(softmax(teacher / t) || softmax(logits / t))`, and
    /// `share` times its gradient (Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015; without
    /// its factor of `t^2`).
    Distill {
        /// `[count, vocabulary]`
        logits: &'a B,
        /// `[count, vocabulary]`
        teacher: &'a B,
        /// As for the cross-entropy. Only the presence of a target matters, not its value.
        targets: &'a B,
        /// Rows.
        count: usize,
        /// Elements of a row.
        vocabulary: usize,
        /// Divisor of the logits; positive.
        temperature: f32,
        /// Weight of a row in the loss of the batch.
        share: f32,
        /// `[count, vocabulary]`
        dlogits: &'a mut B,
        /// `[count]`, written
        losses: &'a mut B,
    },
    /// Gradient of `q = scale * clamp(round(w / scale), low, high)`, for each group of a matrix (Esser et al., *Learned
    /// Step Size Quantization*, 2019, without its gradient scale factor). With `v = w / scale`:
    ///
    /// - If `low < v < high`, the weight gets the gradient of `q` unchanged, and the scale gets it times `round(v) -
    ///   v`.
    /// - Otherwise the weight gets 0, and the scale gets the gradient times the bound.
    LearnedScales {
        /// `[rows, cols]`
        weight: Master<&'a B>,
        /// `[rows, groups]`, the scales of the forward step
        scales: &'a B,
        /// Layout of the scales.
        grid: ScaledGrid,
        /// `[rows, cols]`: on input the gradient of `q`, on output that of `w`
        dweight: &'a mut B,
        /// `[rows, groups]`
        dscales: &'a mut B,
    },
    /// The sum of squares of the first elements.
    SumOfSquares {
        /// `[len]`
        x: &'a B,
        /// Elements.
        len: usize,
        /// `[1]`, written
        out: &'a mut B,
    },
    /// A step of AdamW.
    AdamW {
        /// `[len]`
        value: Master<&'a mut B>,
        /// `[len]`
        gradient: &'a B,
        /// `[len]` each: the running means of the gradient and of its square
        moments: (&'a mut B, &'a mut B),
        /// Elements.
        len: usize,
        /// Hyperparameters and state of the step.
        update: AdamW,
    },
}

/// Gradient buffers for one matrix of a weight.
pub struct PartGradient<'a, B> {
    /// Rows of the matrix.
    pub rows: usize,
    /// `[rows, cols]`
    pub weight: &'a mut B,
    /// `[rows]`, if it has a bias
    pub bias: Option<&'a mut B>,
}

/// Master weights: values that an optimizer updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Master<B> {
    /// `F32`, `[len]`.
    Single(B),
    /// Half the memory: `BF16`, two per word, the even one in the low half; `[len / 2]` of `U32`, rounded up. Results
    /// are rounded stochastically, with probabilities that preserve the mean, so that steps far below a value's
    /// precision still accumulate (Gupta et al., *Deep Learning with Limited Numerical Precision*, 2015).
    Half(B),
}

impl<B> Master<B> {
    /// A view that borrows the buffer.
    pub fn as_ref(&self) -> Master<&B> {
        match self {
            Self::Single(buffer) => Master::Single(buffer),
            Self::Half(buffer) => Master::Half(buffer),
        }
    }

    /// A view that borrows the buffer mutably.
    pub fn as_mut(&mut self) -> Master<&mut B> {
        match self {
            Self::Single(buffer) => Master::Single(buffer),
            Self::Half(buffer) => Master::Half(buffer),
        }
    }
}

/// Layout of a matrix's scales, and its range of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledGrid {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Columns per group; the last group of a row may be smaller. 0 means one scale for the matrix.
    pub group_size: usize,
    /// The lowest code.
    pub low: f32,
    /// The highest code.
    pub high: f32,
}

impl ScaledGrid {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group_size.max(1))
    }

    /// Number of scales.
    pub fn scales(&self) -> usize {
        if self.group_size == 0 { 1 } else { self.rows * self.groups() }
    }
}

/// A step of AdamW (Loshchilov, Hutter, *Decoupled Weight Decay Regularization*, 2019):
///
/// 1. Multiply the gradient by `clip`.
/// 2. Multiply the value by `1 - rate * decay`.
/// 3. Subtract `rate * m / (sqrt(v) + epsilon)`, with bias-corrected means `m` and `v`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f64,
    /// Decay rates of the running means.
    pub betas: (f64, f64),
    /// Keeps the quotient of the update finite.
    pub epsilon: f64,
    /// Weight decay.
    pub decay: f64,
    /// Factor for the gradient.
    pub clip: f64,
    /// Index of the step, starting at 1.
    pub step: u64,
    /// Seed of the stochastic rounding of half-precision values.
    pub seed: u64,
}

/// Operands of the backward step of per-head norms.
pub struct HeadNorms<'a, B> {
    /// `[rows, qkv width]`: q, k and v from the linear layer, before norms
    pub qkv: &'a B,
    /// As in the forward step.
    pub norms: QkNorm<&'a B>,
    /// `[head_dim]`
    pub dq: &'a mut B,
    /// `[head_dim]`
    pub dk: &'a mut B,
}

/// The backward operations that a device implements. Their operands are already checked.
pub trait TrainOps: DeviceOps {
    /// Runs or records a backward step with checked operands.
    fn run_backward(&mut self, step: BackwardStep<'_, Self::Buffer, Self::Weight>) -> Result<()>;
}

/// The backward steps of every [`TrainOps`]. Each step checks its operands before it runs.
pub trait Train: TrainOps {
    /// Checks a step and runs it.
    ///
    /// # Errors
    /// `invalid_argument` naming the step and the operand; errors of the device.
    fn backward(&mut self, step: BackwardStep<'_, Self::Buffer, Self::Weight>) -> Result<()> {
        let name = step.name();
        step.check().context_with(|| name)?;
        self.run_backward(step).context_with(|| name)
    }
}

impl<D: TrainOps> Train for D {}

fn floats<B: Elements>(what: &str, buffer: &B, shape: &[usize]) -> Result<()> {
    check(what, buffer, Element::F32, shape)
}

impl<B: Elements, W: Matrices> BackwardStep<'_, B, W> {
    /// Name for error messages.
    fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear, backward",
            Self::RmsNorm { .. } => "rms_norm, backward",
            Self::Gate { .. } => "gate, backward",
            Self::Attention { .. } => "attention, backward",
            Self::Rope { .. } => "rope, backward",
            Self::Embed { .. } => "embed, backward",
            Self::CrossEntropy { .. } => "cross_entropy",
            Self::Distill { .. } => "distill",
            Self::LearnedScales { .. } => "learned_scales",
            Self::SumOfSquares { .. } => "sum_of_squares",
            Self::AdamW { .. } => "adamw",
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Linear { x, dy, count, weight, dx, parts } => {
                let (cols, rows) = (weight.cols(), parts.iter().map(|part| part.rows).sum::<usize>());
                if parts.len() != weight.parts() || rows != weight.rows() {
                    return Err(Error::invalid_argument(format!(
                        "expected gradients of {} matrices with {} rows but found {} with {rows}",
                        weight.parts(),
                        weight.rows(),
                        parts.len()
                    )));
                }
                floats("x", *x, &[*count, cols])?;
                floats("dy", *dy, &[*count, rows])?;
                floats("dx", *dx, &[*count, cols])?;
                parts.iter().try_for_each(|part| {
                    floats("dweight", part.weight, &[part.rows, cols])?;
                    part.bias.as_ref().map_or(Ok(()), |bias| floats("dbias", *bias, &[part.rows]))
                })
            }
            Self::RmsNorm { x, dy, count, norm, dx, dweight } => {
                let shape = [*count, norm.width];
                floats("x", *x, &shape)?;
                floats("dy", *dy, &shape)?;
                floats("the norm's weight", norm.weight, &[norm.width])?;
                floats("dx", *dx, &shape)?;
                floats("dweight", *dweight, &[norm.width])
            }
            Self::Gate { gate_up, dy, count, width, dx, .. } => {
                floats("gate_up", *gate_up, &[*count, 2, *width])?;
                floats("dy", *dy, &[*count, *width])?;
                floats("dx", *dx, &[*count, 2, *width])
            }
            Self::Attention { qkv, segments, shape, cache, dy, dx } => {
                let Extent { rows, .. } = check_segments(shape, segments)?;
                if let Some(segment) = segments.iter().find(|segment| segment.past > 0) {
                    return Err(Error::invalid_argument(format!(
                        "expected segments that start at position 0 of their sequences but found one at position {}",
                        segment.past
                    )));
                }
                let cached = [shape.kv_heads, shape.capacity, shape.head_dim];
                floats("qkv", *qkv, &[rows, shape.qkv_width()])?;
                floats("keys", cache.keys, &cached)?;
                floats("values", cache.values, &cached)?;
                floats("dy", *dy, &[rows, shape.heads, shape.head_dim])?;
                floats("dx", *dx, &[rows, shape.qkv_width()])
            }
            Self::Rope { dx, segments, shape, rope, norms } => {
                let Extent { rows, positions } = check_segments(shape, segments)?;
                floats("dx", *dx, &[rows, shape.qkv_width()])?;
                floats("rope", *rope, &[positions, shape.head_dim])?;
                let Some(HeadNorms { qkv, norms, dq, dk }) = norms else { return Ok(()) };
                floats("qkv", *qkv, &[rows, shape.qkv_width()])?;
                floats("the norm of q", norms.q.weight, &[shape.head_dim])?;
                floats("the norm of k", norms.k.weight, &[shape.head_dim])?;
                floats("dq", *dq, &[shape.head_dim])?;
                floats("dk", *dk, &[shape.head_dim])
            }
            Self::Embed { tokens, dx, count, rows, width, dtable } => {
                check("tokens", *tokens, Element::U32, &[*count])?;
                floats("dx", *dx, &[*count, *width])?;
                floats("dtable", *dtable, &[*rows, *width])
            }
            Self::CrossEntropy { logits, targets, count, vocabulary, dlogits, losses, .. } => {
                floats("logits", *logits, &[*count, *vocabulary])?;
                check("targets", *targets, Element::U32, &[*count])?;
                floats("dlogits", *dlogits, &[*count, *vocabulary])?;
                floats("losses", *losses, &[*count])
            }
            Self::Distill {
                logits,
                teacher,
                targets,
                count,
                vocabulary,
                temperature,
                dlogits,
                losses,
                ..
            } => {
                if !(temperature.is_finite() && *temperature > 0.0) {
                    return Err(Error::invalid_argument(format!(
                        "expected a positive temperature but found {temperature}"
                    )));
                }
                let shape = [*count, *vocabulary];
                floats("logits", *logits, &shape)?;
                floats("the teacher's logits", *teacher, &shape)?;
                check("targets", *targets, Element::U32, &[*count])?;
                floats("dlogits", *dlogits, &shape)?;
                floats("losses", *losses, &[*count])
            }
            Self::LearnedScales { weight, scales, grid, dweight, dscales } => {
                let len = grid.rows.saturating_mul(grid.cols);
                master(weight.as_ref(), len)?;
                floats("scales", *scales, &[grid.scales()])?;
                floats("dweight", *dweight, &[len])?;
                floats("dscales", *dscales, &[grid.scales()])
            }
            Self::SumOfSquares { x, len, out } => {
                floats("x", *x, &[*len])?;
                floats("out", *out, &[1])
            }
            Self::AdamW { value, gradient, moments, len, update } => {
                if update.step == 0 {
                    return Err(Error::invalid_argument("expected steps from 1 on but found step 0"));
                }
                master(value.as_ref(), *len)?;
                floats("the gradient", *gradient, &[*len])?;
                floats("the mean", moments.0, &[*len])?;
                floats("the mean of squares", moments.1, &[*len])
            }
        }
    }
}

fn master<B: Elements, R: std::ops::Deref<Target = B>>(master: Master<&R>, len: usize) -> Result<()> {
    match master {
        Master::Single(buffer) => floats("the value", &**buffer, &[len]),
        Master::Half(buffer) => check("the value", &**buffer, Element::U32, &[len.div_ceil(2)]),
    }
}
