//! The interface between the model and the devices that run it.
//!
//! [`Backend`] consists of fused transformer steps, not single tensor operations or raw buffers. Every linear layer is
//! a step of its own, because calibration taps its input. Steps are enqueued. Only [`DeviceOps::finish_read`], its
//! shorthands and [`DeviceOps::finish_weight`] wait.

pub mod any;
mod arrivals;
pub mod choice;
pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
mod sample;
mod segment;
mod step;
pub mod survey;
#[cfg(feature = "train")]
mod train;

pub use segment::{Mask, Segment};
pub use step::{Elements, Matrices, Step};
#[cfg(feature = "train")]
pub use train::{AdamW, BackwardStep, HeadNorms, Master, PartGradient, ScaledGrid, Train, TrainOps};

use crate::dtype::DType;
use crate::error::{Context, Result};
use crate::quant::{ActivationGrid, Activations, Coding, QuantizedRows};
use std::ops::Range;
use step::{check, check_length};

/// Properties of an open device.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Description of the device: `cpu (avx2, 2 threads)`.
    pub device: String,
    /// Whether steps run asynchronously. The next step is then best started before a result of the last one is read.
    pub runs_ahead: bool,
    /// One sentence for each fast kernel that failed on this device and was replaced by a simpler one.
    pub replaced: Vec<String>,
}

/// The number format of a loaded weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightFormat {
    /// Floating point: `F32`, `F16` or `BF16`. A backend may widen the type if it represents every value exactly.
    Dense(DType),
    /// Quantized values, encoded as `Coding` defines.
    Packed(Coding),
}

/// One matrix of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDesc {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Number format.
    pub format: WeightFormat,
    /// Precision of its input activations. With a dense weight, INT8 means activations that are rounded to INT8 and
    /// back.
    pub activations: Activations,
    /// How INT8 activations are rounded; ignored for `f32`.
    pub grid: ActivationGrid,
    /// Whether a bias follows through [`DeviceOps::put_bias`].
    pub bias: bool,
}

/// Values of some rows of one matrix.
#[derive(Clone, Debug)]
pub enum WeightView<'a> {
    /// Little-endian elements, row after row.
    Dense(&'a [u8]),
    /// Codes and scales.
    Packed(QuantizedRows<'a>),
}

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Activations and caches.
    F32,
    /// Token ids.
    U32,
}

/// The gate of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// `x * sigmoid(x)`
    Silu,
    /// `max(x, 0)^2`, used by BitNet
    SquaredRelu,
}

/// Head counts and sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head; even.
    pub head_dim: usize,
    /// Capacity of the cache in positions, shared by all its sequences.
    pub capacity: usize,
}

impl AttentionShape {
    /// Columns of the fused `q|k|v` buffer.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Elements of a key (or value) cache: `[kv_heads, capacity, head_dim]`.
    pub fn cache_len(&self) -> usize {
        self.kv_heads * self.capacity * self.head_dim
    }
}

/// RMS normalization weights, `[width]`, and the epsilon under the root.
#[derive(Clone, Copy, Debug)]
pub struct Norm<B> {
    /// `[width]`, `F32`.
    pub weight: B,
    /// Elements per normalized row.
    pub width: usize,
    /// Added to the mean of squares.
    pub epsilon: f32,
}

impl<B> Norm<B> {
    /// A view that borrows the buffer.
    pub fn as_ref(&self) -> Norm<&B> {
        Norm { weight: &self.weight, width: self.width, epsilon: self.epsilon }
    }
}

/// Per-head norms of q and k, of width `head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<B> {
    /// Norm of the query heads.
    pub q: Norm<B>,
    /// Norm of the key heads.
    pub k: Norm<B>,
}

impl<B> QkNorm<B> {
    /// A view that borrows the buffers.
    pub fn as_ref(&self) -> QkNorm<&B> {
        QkNorm { q: self.q.as_ref(), k: self.k.as_ref() }
    }
}

/// Keys and values of one layer, `[kv_heads, capacity, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer<B> {
    /// Keys, after RoPE.
    pub keys: B,
    /// Values.
    pub values: B,
}

impl<B> KvLayer<B> {
    /// A view that borrows the buffers.
    pub fn as_ref(&self) -> KvLayer<&B> {
        KvLayer { keys: &self.keys, values: &self.values }
    }

    /// A view that borrows the buffers mutably.
    pub fn as_mut(&mut self) -> KvLayer<&mut B> {
        KvLayer { keys: &mut self.keys, values: &mut self.values }
    }
}

/// Output of [`Backend::top_k`].
#[derive(Debug)]
pub struct TopK<B> {
    /// Indices, `[rows, capacity]`, `U32`.
    pub ids: B,
    /// Their values, `[rows, capacity]`, `F32`.
    pub values: B,
    /// Number of elements found, `[rows]`, `U32`.
    pub found: B,
    /// Room for elements per row.
    pub capacity: usize,
}

impl<B> TopK<B> {
    /// A view that borrows the buffers mutably.
    pub fn as_mut(&mut self) -> TopK<&mut B> {
        let Self { ids, values, found, capacity } = self;
        TopK { ids, values, found, capacity: *capacity }
    }
}

/// Result of [`Backend::argmax`] for a row without a largest element, and of [`Backend::top_k`] for a row with a NaN or
/// plus infinity.
pub const NO_INDEX: u32 = u32::MAX;

/// Allowed orders of summation in products of many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// A token gives the same bits alone and in any batch.
    Repeatable,
    /// Any order, equally accurate. The last bits of a token then depend on the number of tokens in its batch. For
    /// statistics over many tokens, as in calibration.
    Reordered,
    /// As [`Sums::Reordered`]. Dense weights also use the fastest product of whole matrices, as backward steps do.
    Whole,
    /// Any order. Errors of linear layers are about `1e-5` of the sum of magnitudes, at most `4e-5`. For comparing
    /// outputs that differ by far more, such as those of two roundings.
    Coarse,
}

/// The operations that a device implements. Their operands are already checked: callers go through [`Backend`], which
/// checks them.
pub trait DeviceOps {
    /// Activations, token ids or a cache. Owns its memory and frees it when dropped.
    type Buffer: Elements;
    /// One or several matrices that share an input (`q|k|v`, `gate|up`), dense or packed, in the device's layout.
    type Weight: Matrices;
    /// A weight that is being loaded.
    type WeightBuilder;
    /// A pending read of elements.
    type Reading;

    /// Properties of the device.
    fn capabilities(&self) -> &Capabilities;

    /// Sets the order of summation that later calls of [`Backend::linear`] with many tokens and of [`Backend::gram`]
    /// may use. It starts as [`Sums::Repeatable`]. Devices that sum in only one way ignore it.
    fn set_sums(&mut self, _sums: Sums) {}

    /// Begins a weight of one or several matrices with equal `cols`. [`Backend::linear`] writes their outputs side by
    /// side.
    fn begin_weight(&mut self, parts: &[WeightDesc]) -> Result<Self::WeightBuilder>;

    /// Loads some rows of matrix `part`. Every row must come exactly once. Runs of rows may come in any order.
    fn put_rows(
        &mut self,
        builder: &mut Self::WeightBuilder,
        part: usize,
        rows: Range<usize>,
        data: WeightView<'_>,
    ) -> Result<()>;

    /// Loads the bias of matrix `part`, `[rows]`.
    fn put_bias(&mut self, builder: &mut Self::WeightBuilder, part: usize, bias: &[f32]) -> Result<()>;

    /// Waits until the weight is on the device and all errors are known.
    fn finish_weight(&mut self, builder: Self::WeightBuilder) -> impl Future<Output = Result<Self::Weight>>;

    /// Allocates a zeroed buffer.
    fn buffer(&mut self, element: Element, len: usize) -> Result<Self::Buffer>;

    /// Overwrites the front of a buffer, which is long enough.
    fn write(&mut self, out: &mut Self::Buffer, words: &[u32]) -> Result<()>;

    /// Runs or records a step with checked operands.
    fn run(&mut self, step: Step<'_, Self::Buffer, Self::Weight>) -> Result<()>;

    /// Submits all recorded steps; does nothing on devices that run steps immediately.
    fn flush(&mut self) -> Result<()>;

    /// Number of kernels submitted so far; `None` for devices without a queue.
    fn dispatches(&self) -> Option<u64> {
        None
    }

    /// As [`Backend::begin_read`], for ranges that are inside their buffers.
    fn begin_reading(&mut self, ranges: &[(&Self::Buffer, Range<usize>)]) -> Result<Self::Reading>;

    /// Waits for the elements of all ranges, concatenated; `F32` elements are returned as their bits. Does not wait for
    /// steps that were submitted after [`Backend::begin_read`].
    fn finish_read(&mut self, reading: Self::Reading) -> impl Future<Output = Result<Vec<u32>>>;

    /// Copies the elements of a buffer from `offset` on into `out`. The buffer is long enough.
    fn read_words(
        &mut self,
        source: &Self::Buffer,
        offset: usize,
        out: &mut [u32],
    ) -> impl Future<Output = Result<()>>;

    /// Borrows the first `len` elements of an `F32` buffer, which avoids a copy by [`read`](Backend::read). `None` if
    /// the buffer is not in this process's memory.
    fn in_memory<'b>(&self, _buffer: &'b Self::Buffer, _len: usize) -> Option<&'b [f32]> {
        None
    }

    /// Borrows the elements mutably, which avoids a copy by [`write_f32`](Backend::write_f32).
    fn in_memory_mut<'b>(&self, _buffer: &'b mut Self::Buffer, _len: usize) -> Option<&'b mut [f32]> {
        None
    }
}

/// The transformer steps of every [`DeviceOps`]. Each step checks its operands before it runs.
pub trait Backend: DeviceOps {
    /// Overwrites the front of an `F32` buffer.
    fn write_f32(&mut self, out: &mut Self::Buffer, data: &[f32]) -> Result<()> {
        check("the target", out, Element::F32, &[data.len()]).context_with(|| "write_f32")?;
        self.write(out, bytemuck::cast_slice(data))
    }

    /// Overwrites the front of a `U32` buffer.
    fn write_u32(&mut self, out: &mut Self::Buffer, data: &[u32]) -> Result<()> {
        check("the target", out, Element::U32, &[data.len()]).context_with(|| "write_u32")?;
        self.write(out, data)
    }

    /// `out[t, :] = table[tokens[t], :]` for `count` tokens. The table is a weight of one matrix without bias; it can
    /// also be the output head.
    fn embed(
        &mut self,
        tokens: &Self::Buffer,
        count: usize,
        table: &Self::Weight,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.run_checked(Step::Embed { tokens, count, table, out })
    }

    /// `y[t, :] = W x[t, :] + bias` for `count` rows of `x`, which is `[count, cols]`; `y` is
    /// `[count, sum of rows of all parts]`.
    fn linear(
        &mut self,
        x: &Self::Buffer,
        count: usize,
        w: &Self::Weight,
        y: &mut Self::Buffer,
    ) -> Result<()> {
        self.run_checked(Step::Linear { x, count, w, y })
    }

    /// `residual += delta` (if given), then `out = residual / sqrt(mean(residual^2) + eps) * weight`, for each row of
    /// `[count, width]`.
    fn add_rms_norm(
        &mut self,
        residual: &mut Self::Buffer,
        delta: Option<&Self::Buffer>,
        count: usize,
        norm: Norm<&Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.run_checked(Step::AddRmsNorm { residual, delta, count, norm, out })
    }

    /// Appends positions to the sequences of `segments`. Their rows are in the fused `qkv` buffer, `[rows, (heads + 2
    /// kv_heads) * head_dim]`.
    ///
    /// 1. Normalizes each head of q and k, if norms of width `head_dim` are given.
    /// 2. Rotates q and k by halves: element `i` pairs with `i + head_dim/2`. The rotated q stays in `qkv`.
    /// 3. Writes k and v to the cache, from the segment's `past` on.
    ///
    /// No two segments may write to the same place. `rope` is `[positions, head_dim]`: for each position the cosines of
    /// the `head_dim/2` frequencies, then the sines.
    fn rope_and_append_kv(
        &mut self,
        qkv: &mut Self::Buffer,
        segments: &[Segment],
        shape: &AttentionShape,
        rope: &Self::Buffer,
        qk_norm: Option<QkNorm<&Self::Buffer>>,
        cache: KvLayer<&mut Self::Buffer>,
    ) -> Result<()> {
        self.run_checked(Step::RopeAndAppendKv { qkv, segments, shape: *shape, rope, qk_norm, cache })
    }

    /// Attention of the queries of `segments`, whose rows are in the fused `qkv` buffer. Each query attends to its own
    /// sequence in the cache, limited by the mask. `out` is `[rows, heads * head_dim]`; scores are scaled by
    /// `1/sqrt(head_dim)`.
    fn attention(
        &mut self,
        qkv: &Self::Buffer,
        segments: &[Segment],
        shape: &AttentionShape,
        cache: KvLayer<&Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.run_checked(Step::Attention { qkv, segments, shape: *shape, cache, out })
    }

    /// `out[t, i] = act(gate[t, i]) * up[t, i]`; `gate_up` is `[count, 2 * width]`, gate first.
    fn gate(
        &mut self,
        gate_up: &Self::Buffer,
        count: usize,
        width: usize,
        activation: GateActivation,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.run_checked(Step::Gate { gate_up, count, width, activation, out })
    }

    /// Adds products of the columns of `x`, `[count, width]`, to `out`, `[columns.len(), width]`: `out[i -
    /// columns.start, j] += sum over t of x[t, i] * x[t, j]` for every column `i` of `columns` and every `j >= i`.
    /// Elements with `j < i` are undefined. Sums are `f32`. With all columns, `out` accumulates GPTQ's Hessian.
    fn gram(
        &mut self,
        x: &Self::Buffer,
        count: usize,
        width: usize,
        columns: Range<usize>,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.run_checked(Step::Gram { x, count, width, columns, out })
    }

    /// `out[row]` = the index of the largest element of `x[row, :]`, the lowest index among equals. `x` is `[count,
    /// width]`; `out` is a `U32` buffer, `[count]`, which [`Backend::embed`] can read. The index is [`NO_INDEX`] if a
    /// value is NaN or plus infinity, or all are minus infinity.
    fn argmax(&mut self, x: &Self::Buffer, count: usize, width: usize, out: &mut Self::Buffer) -> Result<()> {
        self.run_checked(Step::Argmax { x, count, width, out })
    }

    /// The `k` largest elements of each row of `x`, `[count, width]`, and all that equal the last of them, in any
    /// order. If `out` has too little room, some are missing, but `found` still counts them all. `found` is
    /// [`NO_INDEX`] for a row with a NaN or plus infinity.
    fn top_k(
        &mut self,
        x: &Self::Buffer,
        count: usize,
        width: usize,
        k: usize,
        out: TopK<&mut Self::Buffer>,
    ) -> Result<()> {
        self.run_checked(Step::TopK { x, count, width, k, out })
    }

    /// Submits all recorded steps and begins to read ranges of buffers with their current values. Later steps may
    /// overwrite the buffers. Dropping the reading cancels it.
    fn begin_read(&mut self, ranges: &[(&Self::Buffer, Range<usize>)]) -> Result<Self::Reading> {
        for (source, range) in ranges {
            check_length("the source", *source, range.end).context_with(|| "read")?;
        }
        self.begin_reading(ranges)
    }

    /// As [`Backend::read`], for a `U32` buffer.
    fn read_u32(
        &mut self,
        source: &Self::Buffer,
        offset: usize,
        out: &mut [u32],
    ) -> impl Future<Output = Result<()>> {
        async move {
            let end = offset.saturating_add(out.len());
            check("the source", source, Element::U32, &[end]).context_with(|| "read")?;
            self.read_words(source, offset, out).await
        }
    }

    /// Copies the elements of an `F32` buffer from `offset` on into `out`.
    fn read(
        &mut self,
        source: &Self::Buffer,
        offset: usize,
        out: &mut [f32],
    ) -> impl Future<Output = Result<()>> {
        async move {
            let end = offset.saturating_add(out.len());
            check("the source", source, Element::F32, &[end]).context_with(|| "read")?;
            self.read_words(source, offset, bytemuck::cast_slice_mut(out)).await
        }
    }

    /// Checks a step and runs it.
    #[doc(hidden)]
    fn run_checked(&mut self, step: Step<'_, Self::Buffer, Self::Weight>) -> Result<()> {
        step.check()?;
        let name = step.name();
        self.run(step).context_with(|| name)
    }
}

impl<D: DeviceOps> Backend for D {}
