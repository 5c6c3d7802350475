//! Transformer steps with their operands, and the checks before a device runs one.

use super::segment::{Extent, check_segments};
use super::{AttentionShape, Element, GateActivation, KvLayer, Norm, QkNorm, Segment, TopK};
use crate::error::{Context, Error, Result};
use std::ops::Range;

/// A step; `B` is a buffer of a device, `W` a weight. The methods of [`Backend`](super::Backend) define what each
/// computes.
#[allow(missing_docs, reason = "the fields are the parameters of the methods of the same names")]
pub enum Step<'a, B, W> {
    Embed {
        tokens: &'a B,
        count: usize,
        table: &'a W,
        out: &'a mut B,
    },
    Linear {
        x: &'a B,
        count: usize,
        w: &'a W,
        y: &'a mut B,
    },
    AddRmsNorm {
        residual: &'a mut B,
        delta: Option<&'a B>,
        count: usize,
        norm: Norm<&'a B>,
        out: &'a mut B,
    },
    RopeAndAppendKv {
        qkv: &'a mut B,
        segments: &'a [Segment],
        shape: AttentionShape,
        rope: &'a B,
        qk_norm: Option<QkNorm<&'a B>>,
        cache: KvLayer<&'a mut B>,
    },
    Attention {
        qkv: &'a B,
        segments: &'a [Segment],
        shape: AttentionShape,
        cache: KvLayer<&'a B>,
        out: &'a mut B,
    },
    Gate {
        gate_up: &'a B,
        count: usize,
        width: usize,
        activation: GateActivation,
        out: &'a mut B,
    },
    Gram {
        x: &'a B,
        count: usize,
        width: usize,
        columns: Range<usize>,
        out: &'a mut B,
    },
    Argmax {
        x: &'a B,
        count: usize,
        width: usize,
        out: &'a mut B,
    },
    TopK {
        x: &'a B,
        count: usize,
        width: usize,
        k: usize,
        out: TopK<&'a mut B>,
    },
}

/// Properties of a buffer that are checked before a step runs.
pub trait Elements {
    /// Type of the elements.
    fn element(&self) -> Element;

    /// Number of elements.
    fn len(&self) -> usize;

    /// Whether the buffer is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Properties of a weight that are checked before a step runs.
pub trait Matrices {
    /// Input features.
    fn cols(&self) -> usize;

    /// Output features of all matrices.
    fn rows(&self) -> usize;

    /// Number of matrices.
    fn parts(&self) -> usize;
}

/// The product of `factors`, unless it overflows.
fn product(factors: &[usize]) -> Result<usize> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .ok_or_else(|| Error::invalid_argument(format!("a shape of {factors:?} is larger than any buffer")))
}

/// Checks that a buffer has the element type and at least the elements of `shape`. `what` names the operand in errors.
pub(super) fn check<B: Elements>(what: &str, buffer: &B, element: Element, shape: &[usize]) -> Result<()> {
    let name = |element| if element == Element::F32 { "F32" } else { "U32" };
    if buffer.element() != element {
        return Err(Error::invalid_argument(format!(
            "{what} must be a buffer of {} but is one of {}",
            name(element),
            name(buffer.element())
        )));
    }
    check_length(what, buffer, product(shape)?)
}

/// As [`check`], for either element type.
pub(super) fn check_length<B: Elements>(what: &str, buffer: &B, len: usize) -> Result<()> {
    if buffer.len() < len {
        let found = buffer.len();
        return Err(Error::invalid_argument(format!(
            "{what} needs {len} elements but the buffer holds {found}"
        )));
    }
    Ok(())
}

fn floats<B: Elements>(what: &str, buffer: &B, shape: &[usize]) -> Result<()> {
    check(what, buffer, Element::F32, shape)
}

fn indices<B: Elements>(what: &str, buffer: &B, shape: &[usize]) -> Result<()> {
    check(what, buffer, Element::U32, shape)
}

fn norm_of<B: Elements>(norm: &Norm<&B>, width: usize) -> Result<()> {
    if norm.width == 0 || norm.width != width {
        return Err(Error::invalid_argument(format!(
            "expected a norm of width {width} but found {}",
            norm.width
        )));
    }
    floats("the norm's weight", norm.weight, &[width])
}

/// Checks that rows have at least one element.
fn positive(width: usize) -> Result<()> {
    if width == 0 {
        return Err(Error::invalid_argument("expected rows of at least one element"));
    }
    Ok(())
}

impl<B: Elements, W: Matrices> Step<'_, B, W> {
    /// Name for error messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::Linear { .. } => "linear",
            Self::AddRmsNorm { .. } => "add_rms_norm",
            Self::RopeAndAppendKv { .. } => "rope_and_append_kv",
            Self::Attention { .. } => "attention",
            Self::Gate { .. } => "gate",
            Self::Gram { .. } => "gram",
            Self::Argmax { .. } => "argmax",
            Self::TopK { .. } => "top_k",
        }
    }

    /// Checks that the operands fit together, so that devices need no further checks.
    ///
    /// # Errors
    /// `invalid_argument` naming the step and the operand; `context_overflow` for segments beyond the cache.
    pub fn check(&self) -> Result<()> {
        self.operands().context_with(|| self.name())
    }

    fn operands(&self) -> Result<()> {
        match self {
            Self::Embed { tokens, count, table, out } => {
                if table.parts() != 1 {
                    let found = table.parts();
                    return Err(Error::invalid_argument(format!(
                        "expected a table of one matrix but found {found}"
                    )));
                }
                indices("tokens", *tokens, &[*count])?;
                floats("out", *out, &[*count, table.cols()])
            }
            Self::Linear { x, count, w, y } => {
                floats("x", *x, &[*count, w.cols()])?;
                floats("y", *y, &[*count, w.rows()])
            }
            Self::AddRmsNorm { residual, delta, count, norm, out } => {
                norm_of(norm, norm.width)?;
                let shape = [*count, norm.width];
                floats("residual", *residual, &shape)?;
                delta.map_or(Ok(()), |delta| floats("delta", delta, &shape))?;
                floats("out", *out, &shape)
            }
            Self::RopeAndAppendKv { qkv, segments, shape, rope, qk_norm, cache } => {
                let Extent { rows, positions } = check_segments(shape, segments)?;
                floats("qkv", *qkv, &[rows, shape.qkv_width()])?;
                floats("rope", *rope, &[positions, shape.head_dim])?;
                if let Some(QkNorm { q, k }) = qk_norm {
                    norm_of(q, shape.head_dim)?;
                    norm_of(k, shape.head_dim)?;
                }
                let cached = [shape.kv_heads, shape.capacity, shape.head_dim];
                floats("keys", cache.keys, &cached)?;
                floats("values", cache.values, &cached)
            }
            Self::Attention { qkv, segments, shape, cache, out } => {
                let Extent { rows, .. } = check_segments(shape, segments)?;
                let cached = [shape.kv_heads, shape.capacity, shape.head_dim];
                floats("qkv", *qkv, &[rows, shape.qkv_width()])?;
                floats("keys", cache.keys, &cached)?;
                floats("values", cache.values, &cached)?;
                floats("out", *out, &[rows, shape.heads, shape.head_dim])
            }
            Self::Gate { gate_up, count, width, out, .. } => {
                positive(*width)?;
                floats("gate_up", *gate_up, &[*count, 2, *width])?;
                floats("out", *out, &[*count, *width])
            }
            Self::Gram { x, count, width, columns, out } => {
                if columns.start > columns.end || columns.end > *width {
                    return Err(Error::invalid_argument(format!(
                        "expected columns of a matrix of {width} but found {}..{}",
                        columns.start, columns.end
                    )));
                }
                floats("x", *x, &[*count, *width])?;
                floats("out", *out, &[columns.len(), *width])
            }
            Self::Argmax { x, count, width, out } => {
                positive(*width)?;
                floats("x", *x, &[*count, *width])?;
                indices("out", *out, &[*count])
            }
            Self::TopK { x, count, width, k, out } => {
                positive(*width)?;
                let capacity = out.capacity;
                if *k == 0 || k > width || capacity == 0 {
                    return Err(Error::invalid_argument(format!(
                        "expected from 1 to {width} elements and room for one at least but found {k} and {capacity}"
                    )));
                }
                floats("x", *x, &[*count, *width])?;
                indices("ids", out.ids, &[*count, capacity])?;
                floats("values", out.values, &[*count, capacity])?;
                indices("found", out.found, &[*count])
            }
        }
    }
}
