//! Backward steps, at the size of the forward ones: what training asks of a device beside [`DeviceOps`].

use super::segment::{Extent, check_segments};
use super::step::check;
use super::{
    AttentionShape, DeviceOps, Element, Elements, GateActivation, KvLayer, Matrices, Norm, QkNorm, Segment,
};
use crate::error::{Context, Error, Result};

/// A backward step; `B` is a buffer, `W` a weight. `d` stands for the derivative of the loss by what is named after it. Derivatives
/// of parameters, and those that several steps make of one value, are added to what is there; the others are written.
pub enum BackwardStep<'a, B, W> {
    /// Of `y = W x + bias`: `dx = dy W`, and for each matrix of the weight `dW += dy^T x` and `dbias += sum of dy`. Rounding is
    /// passed straight through: `W` and `x` are what the forward step multiplied, the rounded ones where it rounds
    /// (Bengio, Leonard, Courville, *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013).
    Linear {
        /// `[count, cols]`, as the forward step was given it
        x: &'a B,
        /// `[count, rows of all matrices]`
        dy: &'a B,
        /// Rows of `x`.
        count: usize,
        /// The forward step's.
        weight: &'a W,
        /// `[count, cols]`, written
        dx: &'a mut B,
        /// As many as the weight has matrices.
        parts: Vec<PartGradient<'a, B>>,
    },
    /// Of `y = x / sqrt(mean(x^2) + eps) * g`, row by row: `dx += ..`, `dg += ..`.
    RmsNorm {
        /// `[count, width]`
        x: &'a B,
        /// `[count, width]`
        dy: &'a B,
        /// Rows.
        count: usize,
        /// The forward step's.
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
        /// The forward step's.
        activation: GateActivation,
        /// `[count, 2 * width]`, written
        dx: &'a mut B,
    },
    /// Of attention over segments that begin with their sequences (`past` 0).
    Attention {
        /// `[rows, qkv width]`, after rotation
        qkv: &'a B,
        /// The forward step's.
        segments: &'a [Segment],
        /// The forward step's.
        shape: AttentionShape,
        /// As the forward step found it.
        cache: KvLayer<&'a B>,
        /// `[rows, heads * head_dim]`
        dy: &'a B,
        /// `[rows, qkv width]`, written: by q, k and v after rotation
        dx: &'a mut B,
    },
    /// Of the norms of heads and the rotation of q and k, in place.
    Rope {
        /// `[rows, qkv width]`: by q and k after rotation, then before their norms
        dx: &'a mut B,
        /// The forward step's.
        segments: &'a [Segment],
        /// The forward step's.
        shape: AttentionShape,
        /// The forward step's.
        rope: &'a B,
        /// Where heads are normalized.
        norms: Option<HeadNorms<'a, B>>,
    },
    /// Of a table of embeddings: `dtable[token] += dx`.
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
    /// The loss itself, `-ln softmax(logits)[target]` of each row, and `share` times its derivative by the logits.
    CrossEntropy {
        /// `[count, vocabulary]`
        logits: &'a B,
        /// `[count]`; [`NO_INDEX`](super::NO_INDEX) for a row without one, whose loss and derivatives are 0
        targets: &'a B,
        /// Rows.
        count: usize,
        /// Elements of a row.
        vocabulary: usize,
        /// What a row counts in the loss of the batch.
        share: f32,
        /// `[count, vocabulary]`
        dlogits: &'a mut B,
        /// `[count]`, written
        losses: &'a mut B,
    },
    /// The divergence of each row's predictions from a teacher's, `KL(softmax(teacher / t) || softmax(logits / t))`, and `share` times
    /// its derivative by the logits (Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015; without its factor
    /// of `t^2`).
    Distill {
        /// `[count, vocabulary]`
        logits: &'a B,
        /// `[count, vocabulary]`
        teacher: &'a B,
        /// As for the cross-entropy; of a row that counts the target itself has no meaning.
        targets: &'a B,
        /// Rows.
        count: usize,
        /// Elements of a row.
        vocabulary: usize,
        /// By what logits are divided; positive.
        temperature: f32,
        /// What a row counts in the loss of the batch.
        share: f32,
        /// `[count, vocabulary]`
        dlogits: &'a mut B,
        /// `[count]`, written
        losses: &'a mut B,
    },
    /// Passes the derivative by `q = scale * clamp(round(w / scale), low, high)` on, group by group of a matrix: strictly inside the bounds to the
    /// weight as it is, and to the scale times `round(w / scale) - w / scale`; otherwise to the scale alone, times the bound
    /// (Esser et al., *Learned Step Size Quantization*, 2019, without its factor).
    LearnedScales {
        /// `[rows, cols]`
        weight: Master<&'a B>,
        /// `[rows, groups]`, as the forward step multiplied by them
        scales: &'a B,
        /// How the scales stand.
        grid: ScaledGrid,
        /// `[rows, cols]`: by `q`, then by `w`
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
        /// What the step is like.
        update: AdamW,
    },
}

/// Where the derivatives by one matrix of a weight go.
pub struct PartGradient<'a, B> {
    /// Rows of the matrix.
    pub rows: usize,
    /// `[rows, cols]`
    pub weight: &'a mut B,
    /// `[rows]`, where it has one
    pub bias: Option<&'a mut B>,
}

/// Values that an optimizer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Master<B> {
    /// `F32`, `[len]`.
    Single(B),
    /// Half as many bytes: `BF16`, two to a word, the even one low, `[len / 2]` of `U32`, rounded up. A step rounds what it writes at
    /// random, up or down with the chances that keep the mean, so that steps far below a value's precision still add up
    /// (Gupta et al., *Deep Learning with Limited Numerical Precision*, 2015).
    Half(B),
}

impl<B> Master<B> {
    /// As steps read it.
    pub fn as_ref(&self) -> Master<&B> {
        match self {
            Self::Single(buffer) => Master::Single(buffer),
            Self::Half(buffer) => Master::Half(buffer),
        }
    }

    /// As steps write it.
    pub fn as_mut(&mut self) -> Master<&mut B> {
        match self {
            Self::Single(buffer) => Master::Single(buffer),
            Self::Half(buffer) => Master::Half(buffer),
        }
    }
}

/// Scales of the groups of a matrix, and the codes that there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledGrid {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Columns of a group; the last of a row may have fewer. Where that is 0 there is one scale for all.
    pub group_size: usize,
    /// The lowest code.
    pub low: f32,
    /// The highest code.
    pub high: f32,
}

impl ScaledGrid {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group_size.max(1))
    }

    /// How many scales there are.
    pub fn scales(&self) -> usize {
        if self.group_size == 0 { 1 } else { self.rows * self.groups() }
    }
}

/// A step of AdamW (Loshchilov, Hutter, *Decoupled Weight Decay Regularization*, 2019): the gradient is multiplied by `clip`,
/// the value by `1 - rate * decay`, and then `rate * m / (sqrt(v) + epsilon)` is taken away, with both means corrected for their start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f64,
    /// Shares of the old means.
    pub betas: (f64, f64),
    /// Keeps the quotient finite.
    pub epsilon: f64,
    /// Weight decay.
    pub decay: f64,
    /// What the gradient is multiplied by.
    pub clip: f64,
    /// The number of the step, from 1.
    pub step: u64,
    /// What values of half precision are rounded by.
    pub seed: u64,
}

/// Norms of heads on the way back.
pub struct HeadNorms<'a, B> {
    /// `[rows, qkv width]`: q, k and v as the linear layer made them
    pub qkv: &'a B,
    /// The forward step's.
    pub norms: QkNorm<&'a B>,
    /// `[head_dim]`
    pub dq: &'a mut B,
    /// `[head_dim]`
    pub dk: &'a mut B,
}

/// What a device does in training, with operands that were checked.
pub trait TrainOps: DeviceOps {
    /// Runs or records a backward step whose operands belong together.
    fn run_backward(&mut self, step: BackwardStep<'_, Self::Buffer, Self::Weight>) -> Result<()>;
}

/// A device that trains: the backward steps of every [`TrainOps`], each of which first checks its operands.
pub trait Train: TrainOps {
    /// Checks a step, and runs it.
    ///
    /// # Errors
    /// `invalid_argument` naming the step and the operand; what goes wrong on the device.
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
    /// The name in errors.
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
                        "expected segments that begin with their sequences but found one after {} positions",
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
