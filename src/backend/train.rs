//! Backward steps, at the size of the forward ones: what training asks of a device beside [`DeviceOps`]. Floor 4.

use super::segment::{Extent, check_segments};
use super::step::check;
use super::{AttentionShape, DeviceOps, Element, Elements, GateActivation, KvLayer, Norm, QkNorm, Segment};
use crate::error::{Context, Error, Result};

/// A backward step; `B` is a buffer. `d` stands for the derivative of the loss by what is named after it. Derivatives of weights, and
/// those that several steps make of one input, are added to what is there; the others are written.
pub enum BackwardStep<'a, B> {
    /// Of `y = W x + bias` for one matrix of a weight, whose outputs are columns of `dy`: `dW += dy^T x`, `dbias += sum of dy`,
    /// `dx += dy W`.
    Linear {
        /// `[count, cols]`
        x: &'a B,
        /// `[count, columns.stride]`
        dy: &'a B,
        /// Where the matrix's outputs stand.
        columns: Columns,
        /// Rows of `x`.
        count: usize,
        /// Input features.
        cols: usize,
        /// `[columns.len, cols]`
        weight: &'a B,
        /// `[count, cols]`
        dx: &'a mut B,
        /// `[columns.len, cols]`
        dweight: &'a mut B,
        /// `[columns.len]`
        dbias: Option<&'a mut B>,
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
        /// `[count, vocabulary]`, written
        dlogits: &'a mut B,
        /// `[count]`, written
        losses: &'a mut B,
    },
}

/// Columns of a fused output that one matrix makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first.
    pub first: usize,
    /// How many.
    pub len: usize,
    /// Columns of the whole output.
    pub stride: usize,
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
    fn run_backward(&mut self, step: BackwardStep<'_, Self::Buffer>) -> Result<()>;
}

/// A device that trains: the backward steps of every [`TrainOps`], each of which first checks its operands.
pub trait Train: TrainOps {
    /// Checks a step, and runs it.
    ///
    /// # Errors
    /// `invalid_argument` naming the step and the operand; what goes wrong on the device.
    fn backward(&mut self, step: BackwardStep<'_, Self::Buffer>) -> Result<()> {
        let name = step.name();
        step.check().context_with(|| name)?;
        self.run_backward(step).context_with(|| name)
    }
}

impl<D: TrainOps> Train for D {}

fn floats<B: Elements>(what: &str, buffer: &B, shape: &[usize]) -> Result<()> {
    check(what, buffer, Element::F32, shape)
}

impl<B: Elements> BackwardStep<'_, B> {
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
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Linear { x, dy, columns, count, cols, weight, dx, dweight, dbias } => {
                if columns.first.checked_add(columns.len).is_none_or(|end| end > columns.stride) {
                    return Err(Error::invalid_argument(format!("{columns:?} end outside their row")));
                }
                floats("x", *x, &[*count, *cols])?;
                floats("dy", *dy, &[*count, columns.stride])?;
                floats("the weight", *weight, &[columns.len, *cols])?;
                floats("dx", *dx, &[*count, *cols])?;
                floats("dweight", *dweight, &[columns.len, *cols])?;
                dbias.as_ref().map_or(Ok(()), |dbias| floats("dbias", *dbias, &[columns.len]))
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
        }
    }
}
