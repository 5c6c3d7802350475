//! The seam between the model and the devices that run it.
//!
//! [`Backend`] has transformer steps of the size that a GPU fuses: not every tensor operation, not raw buffers. No step
//! swallows the input of a linear layer, because calibration taps it. Steps enqueue; only [`DeviceOps::finish_read`], its shorthands
//! and [`DeviceOps::finish_weight`] wait.

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

/// What a device can do and how much it may be asked for.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// The device in words: `cpu (avx2, 2 threads)`.
    pub device: String,
    /// Whether steps run while their caller goes on, so that it pays to start the next step before a result of the last one is
    /// read.
    pub runs_ahead: bool,
    /// Fast kernels that the device refused or computed wrong, and that simpler ones took the place of: a sentence each.
    pub replaced: Vec<String>,
}

/// The number format in which a weight is handed over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightFormat {
    /// Floating point: `F32`, `F16` or `BF16`. A backend keeps it as it is or in a type that holds every value of it.
    Dense(DType),
    /// Codes with scales, or however else the coding has it.
    Packed(Coding),
}

/// One matrix of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDesc {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// How its values are written.
    pub format: WeightFormat,
    /// Precision of the activations it meets. For a dense weight INT8 means activations that are rounded to INT8 and back.
    pub activations: Activations,
    /// How INT8 activations are rounded; without meaning for `f32`.
    pub grid: ActivationGrid,
    /// Whether a bias follows by [`DeviceOps::put_bias`].
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
    /// `max(x, 0)^2`, as BitNet has it.
    SquaredRelu,
}

/// Head counts and sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Positions that the cache has room for, those of all its sequences together.
    pub capacity: usize,
}

impl AttentionShape {
    /// Columns of a row of the fused `q|k|v` buffer.
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
    /// Elements that one mean is taken over.
    pub width: usize,
    /// Added to the mean of squares.
    pub epsilon: f32,
}

impl<B> Norm<B> {
    /// As steps take it.
    pub fn as_ref(&self) -> Norm<&B> {
        Norm { weight: &self.weight, width: self.width, epsilon: self.epsilon }
    }
}

/// Norms of the heads of q and k, of width `head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<B> {
    /// Of each query head.
    pub q: Norm<B>,
    /// Of each key head.
    pub k: Norm<B>,
}

impl<B> QkNorm<B> {
    /// As steps take them.
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
    /// As steps read it.
    pub fn as_ref(&self) -> KvLayer<&B> {
        KvLayer { keys: &self.keys, values: &self.values }
    }

    /// As steps write it.
    pub fn as_mut(&mut self) -> KvLayer<&mut B> {
        KvLayer { keys: &mut self.keys, values: &mut self.values }
    }
}

/// Where [`Backend::top_k`] puts what it finds in some rows.
#[derive(Debug)]
pub struct TopK<B> {
    /// Indices, `[rows, capacity]`, `U32`.
    pub ids: B,
    /// Their values, `[rows, capacity]`, `F32`.
    pub values: B,
    /// How many there are, `[rows]`, `U32`.
    pub found: B,
    /// Most elements of a row that there is room for.
    pub capacity: usize,
}

impl<B> TopK<B> {
    /// As steps write it.
    pub fn as_mut(&mut self) -> TopK<&mut B> {
        let Self { ids, values, found, capacity } = self;
        TopK { ids, values, found, capacity: *capacity }
    }
}

/// What [`Backend::argmax`] gives for a row without a largest element, and [`Backend::top_k`] for one with a NaN.
pub const NO_INDEX: u32 = u32::MAX;

/// How products with many tokens may be added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// A token gives the same bits alone and among others.
    Repeatable,
    /// In any order, as exact: a token's last bits then depend on how many come with it. For statistics over many tokens, as
    /// calibration takes them.
    Reordered,
    /// As [`Sums::Reordered`], and dense matrices by what multiplies whole ones fastest, which backward steps do too.
    Whole,
    /// In any order, and linear layers with errors of about `1e-5` of the sum of magnitudes, `4e-5` at most: to compare outputs
    /// that differ by far more, as those of two roundings do.
    Coarse,
}

/// What a device does, with operands that were checked: [`Backend`] is the front that checks them.
pub trait DeviceOps {
    /// Activations, token ids, caches. Owns its memory; dropping it gives the memory back.
    type Buffer: Elements;
    /// One or several matrices that share an input (`q|k|v`, `gate|up`), dense or packed, as this device likes them.
    type Weight: Matrices;
    /// A weight on its way to the device.
    type WeightBuilder;
    /// Elements on their way to the host.
    type Reading;

    /// What the device can do.
    fn capabilities(&self) -> &Capabilities;

    /// From now on [`Backend::linear`] of many tokens and [`Backend::gram`] may add up in this way, where that is faster. It begins
    /// with [`Sums::Repeatable`]; devices without use for others do nothing.
    fn set_sums(&mut self, _sums: Sums) {}

    /// Starts a weight of one or several matrices with equal `cols`. Their outputs stand side by side in the
    /// result of [`Backend::linear`].
    fn begin_weight(&mut self, parts: &[WeightDesc]) -> Result<Self::WeightBuilder>;

    /// Hands over some rows of matrix `part`. Every row comes exactly once, in any order of runs.
    fn put_rows(
        &mut self,
        builder: &mut Self::WeightBuilder,
        part: usize,
        rows: Range<usize>,
        data: WeightView<'_>,
    ) -> Result<()>;

    /// Hands over the bias of matrix `part`, `[rows]`.
    fn put_bias(&mut self, builder: &mut Self::WeightBuilder, part: usize, bias: &[f32]) -> Result<()>;

    /// Waits until the weight is on the device and every error is known.
    fn finish_weight(&mut self, builder: Self::WeightBuilder) -> impl Future<Output = Result<Self::Weight>>;

    /// A zeroed buffer.
    fn buffer(&mut self, element: Element, len: usize) -> Result<Self::Buffer>;

    /// Overwrites the front of a buffer that has room for the words.
    fn write(&mut self, out: &mut Self::Buffer, words: &[u32]) -> Result<()>;

    /// Runs or records a step whose operands belong together.
    fn run(&mut self, step: Step<'_, Self::Buffer, Self::Weight>) -> Result<()>;

    /// Submits what has been recorded; devices that run at once have nothing to do.
    fn flush(&mut self) -> Result<()>;

    /// Kernels submitted so far; `None` for devices that have none.
    fn dispatches(&self) -> Option<u64> {
        None
    }

    /// As [`Backend::begin_read`], of ranges that the buffers have.
    fn begin_reading(&mut self, ranges: &[(&Self::Buffer, Range<usize>)]) -> Result<Self::Reading>;

    /// Waits for the elements of all ranges, one range after the other; those of `F32` buffers come as their bits. What was
    /// submitted after [`Backend::begin_read`] is not waited for.
    fn finish_read(&mut self, reading: Self::Reading) -> impl Future<Output = Result<Vec<u32>>>;

    /// Copies the elements of a buffer from `offset` on into `out`; the buffer has them.
    fn read_words(
        &mut self,
        source: &Self::Buffer,
        offset: usize,
        out: &mut [u32],
    ) -> impl Future<Output = Result<()>>;

    /// The first `len` elements of an `F32` buffer where they are, so that they need not be copied by
    /// [`read`](Backend::read); `None` where that is not in this process's memory.
    fn in_memory<'b>(&self, _buffer: &'b Self::Buffer, _len: usize) -> Option<&'b [f32]> {
        None
    }

    /// The same to be written, so that they need not be copied by [`write_f32`](Backend::write_f32).
    fn in_memory_mut<'b>(&self, _buffer: &'b mut Self::Buffer, _len: usize) -> Option<&'b mut [f32]> {
        None
    }
}

/// A device that runs transformer steps: the steps of every [`DeviceOps`], each of which first checks that its operands belong
/// together.
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
    /// serve as the head too.
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

    /// `residual += delta` (where given), then `out = residual / sqrt(mean(residual^2) + eps) * weight`, row by row of
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

    /// Takes new positions of the sequences of `segments`, whose rows stand in the fused `qkv` buffer,
    /// `[rows, (heads + 2 kv_heads) * head_dim]`: normalizes each head of q and k (where norms of width `head_dim` are
    /// given), rotates q and k by halves (element `i` with `i + head_dim/2`), leaves q in place and puts k and v into the
    /// cache, from the segment's `past` on. No two segments may write to the same place.
    ///
    /// `rope` is `[positions, head_dim]`: cosines of the `head_dim/2` frequencies, then sines, for each position.
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

    /// Attention of the queries of `segments`, whose rows stand in the fused `qkv` buffer, each over its own sequence in
    /// the cache, as far as its mask lets it see: `out` is `[rows, heads * head_dim]`, scores are scaled by
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

    /// `out[t, i] = act(gate[t, i]) * up[t, i]` where `gate_up` is `[count, 2 * width]`, gate first.
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

    /// Adds the products of columns of `x`, `[count, width]`, to `out`, `[columns.len(), width]`:
    /// `out[i - columns.start, j] += sum over t of x[t, i] * x[t, j]` for every column `i` of `columns` and every `j >= i`.
    /// Elements with `j < i` have no meaning. In `f32`; with all columns it is the sum that a Hessian is made of.
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

    /// `out[row]` = the index of the largest of `x[row, :]`, the lowest among equals, where `x` is `[count, width]` and
    /// `out` a `U32` buffer, `[count]`; it can feed [`Backend::embed`]. [`NO_INDEX`] where a value is NaN or plus
    /// infinity, or all are minus infinity.
    fn argmax(&mut self, x: &Self::Buffer, count: usize, width: usize, out: &mut Self::Buffer) -> Result<()> {
        self.run_checked(Step::Argmax { x, count, width, out })
    }

    /// The `k` largest of each row of `x`, `[count, width]`, and whatever equals the last of them, in any order. Where
    /// there are more than `out` has room for, some are missing, but `found` has their number; it is [`NO_INDEX`] for a
    /// row with a NaN or plus infinity.
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

    /// Submits what has been recorded, and begins to read some ranges of buffers, as they are then. Steps that come later may
    /// change the buffers; dropping the reading gives it up.
    fn begin_read(&mut self, ranges: &[(&Self::Buffer, Range<usize>)]) -> Result<Self::Reading> {
        for (source, range) in ranges {
            check_length("the source", *source, range.end).context_with(|| "read")?;
        }
        self.begin_reading(ranges)
    }

    /// As [`Backend::read`], of a `U32` buffer.
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

    /// Checks a step, and runs it.
    #[doc(hidden)]
    fn run_checked(&mut self, step: Step<'_, Self::Buffer, Self::Weight>) -> Result<()> {
        step.check()?;
        let name = step.name();
        self.run(step).context_with(|| name)
    }
}

impl<D: DeviceOps> Backend for D {}
